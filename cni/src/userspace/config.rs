//! A network of sockets, as userspace-cni's configuration has it, key by key.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::network::{Keys, Network};
use crate::protocol::{CniError, Code};
use crate::socket_kind::Kind;

/// What a network says of a pod's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// What speaks over it.
    pub kind: Kind,
    /// Whether the forwarder listens, and the pod connects.
    pub forwarder_listens: bool,
    /// The directory of the host that the pods have as a mount.
    pub shared: PathBuf,
    /// What the socket is called there; none: after the pod.
    pub file: Option<String>,
    /// The group of a socket that the forwarder listens on; empty: everybody may connect.
    pub group: String,
    /// The block `container`: the pod is told what it says.
    pub container: Value,
    /// The block `host`'s engine, which the pod is told as well.
    pub engine: String,
}

/// Whether a network is of sockets: the type of userspace-cni, or its block `host`.
pub fn is_of_sockets(network: &Network) -> bool {
    network.plugin == "userspace" || network.keys().value("host").is_some()
}

impl SocketConfig {
    /// Reads it.
    pub fn read(network: &Network) -> Result<Self, CniError> {
        if network.name.len() > NAME_MAX {
            let problem = format!("name: at most {NAME_MAX} bytes are wanted, since its wires are called after it");
            return Err(CniError::config(problem));
        }
        let keys = network.keys();
        let host = keys.object("host")?.ok_or_else(|| CniError::config("host: it says what end the pod gets"))?;
        refuse_bridges(&host)?;
        let engines = [("vpp", "vpp"), ("ovs-dpdk", "ovs-dpdk"), ("ferrule", "ferrule")];
        let engine = host.word("engine", &engines)?.unwrap_or("ferrule");
        let is_memif = host.word("iftype", &[("memif", true), ("vhostuser", false)])?;
        let is_memif = is_memif.ok_or_else(|| host.wrong("iftype", "nothing", "memif or vhostuser"))?;
        let memif = host.object("memif")?.unwrap_or_default();
        let vhost = host.object("vhost")?.unwrap_or_default();
        let (kind, forwarder_listens, file) = if is_memif {
            let modes = [("ethernet", Some(Kind::Memif)), ("ip", Some(Kind::MemifIp)), ("inject-punt", None)];
            let kind = memif.word("mode", &modes)?.unwrap_or(Some(Kind::Memif));
            let kind = kind.ok_or_else(|| unsupported(&memif, "mode", "inject-punt", "say `ethernet` or `ip`"))?;
            let listens = memif.word("role", &[("master", true), ("slave", false)])?;
            (kind, listens, memif.text("socketfile")?)
        } else {
            let listens = vhost.word("mode", &[("server", true), ("client", false)])?;
            (Kind::VhostUser, listens, vhost.text("socketfile")?)
        };
        let file = file.filter(|file| !file.is_empty());
        if let Some(file) = file.as_deref().filter(|file| !is_file_name(file)) {
            return Err(host.wrong("socketfile", &format!("`{file}`"), "the name of a file in sharedDir"));
        }
        Ok(Self {
            kind,
            forwarder_listens: forwarder_listens.unwrap_or(true),
            shared: shared(keys)?,
            file,
            group: vhost.text("group")?.unwrap_or_default(),
            container: keys.value("container").cloned().unwrap_or(Value::Null),
            engine: engine.to_owned(),
        })
    }
}

/// A wire has two ends. What more than two pods have in common is another program's work.
fn refuse_bridges(host: &Keys) -> Result<(), CniError> {
    let is_bridge = host.word("netType", &[("bridge", true), ("interface", false), ("none", false)])?;
    if is_bridge != Some(true) {
        return Ok(());
    }
    let bridge = host.object("bridge")?.unwrap_or_default();
    let name = bridge.text("bridgeName")?.or(bridge.number("bridgeId")?.map(|id| id.to_string()));
    let name = name.map(|name| format!(" {name}")).unwrap_or_default();
    Err(unsupported(
        host,
        "netType",
        &format!("bridge{name}"),
        "a wire joins two pods and is no bridge: say `interface`",
    ))
}

fn unsupported(keys: &Keys, key: &str, is: &str, why: &str) -> CniError {
    CniError::new(Code::Unsupported, format!("{}: `{is}` cannot be had: {why}", keys.place_of(key)))
}

fn shared(keys: &Keys) -> Result<PathBuf, CniError> {
    let shared = keys.text("sharedDir")?.filter(|shared| !shared.is_empty());
    let Some(shared) = shared else {
        let problem =
            "sharedDir: it is wanted: no API server is asked, so the pods' own volumes are not known (`kubeconfig`)";
        return Err(CniError::config(problem));
    };
    if !Path::new(&shared).is_absolute() {
        return Err(keys.wrong("sharedDir", &format!("`{shared}`"), "an absolute path"));
    }
    Ok(shared.into())
}

fn is_file_name(name: &str) -> bool {
    !name.contains('/') && !name.starts_with('.') && name.len() <= SOCKET_NAME_MAX
}

/// Names of wires have 64 bytes.
const NAME_MAX: usize = 48;
/// What the forwarder takes for the last part of a path.
const SOCKET_NAME_MAX: usize = 82;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(host: &Value, shared: &str) -> Result<SocketConfig, CniError> {
        let document =
            json!({ "cniVersion": "1.0.0", "name": "net", "type": "userspace", "sharedDir": shared, "host": host });
        SocketConfig::read(&Network::read(document.to_string().as_bytes())?)
    }

    #[test]
    fn the_forwarder_listens_unless_the_host_is_the_slave() {
        let master = json!({ "engine": "vpp", "iftype": "memif", "netType": "interface", "memif": { "role": "master", "mode": "ip" } });
        let config = read(&master, "/run/shared").unwrap();
        assert_eq!((config.kind, config.forwarder_listens), (Kind::MemifIp, true));
        let slave = json!({ "iftype": "memif", "memif": { "role": "slave" } });
        assert!(!read(&slave, "/run/shared").unwrap().forwarder_listens);
        let vhost =
            json!({ "engine": "ovs-dpdk", "iftype": "vhostuser", "vhost": { "mode": "client", "group": "qemu" } });
        let config = read(&vhost, "/run/shared").unwrap();
        assert_eq!((config.kind, config.forwarder_listens, config.group.as_str()), (Kind::VhostUser, false, "qemu"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let memif = json!({ "iftype": "memif" });
        let bridge =
            json!({ "engine": "vpp", "iftype": "memif", "netType": "bridge", "bridge": { "bridgeName": "4" } });
        let punt = json!({ "iftype": "memif", "memif": { "mode": "inject-punt" } });
        let cases = [
            (bridge, "/a", Code::Unsupported, "host.netType: `bridge 4` cannot be had"),
            (punt, "/a", Code::Unsupported, "host.memif.mode: `inject-punt`"),
            (json!({ "engine": "fd.io" }), "/a", Code::Config, "host.engine: `fd.io`"),
            (json!({}), "/a", Code::Config, "host.iftype: nothing"),
            (memif.clone(), "", Code::Config, "sharedDir: it is wanted"),
            (memif, "a", Code::Config, "sharedDir: `a`"),
            (json!({ "iftype": "memif", "memif": { "socketfile": "../x" } }), "/a", Code::Config, "socketfile: `../x`"),
        ];
        for (host, shared, code, part) in cases {
            let error = read(&host, shared).unwrap_err();
            assert!(error.code == code && error.message.contains(part), "{part}: {error}");
        }
    }
}
