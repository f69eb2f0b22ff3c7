//! A network's configuration: what every plugin is told, and the keys of this one.

use std::path::PathBuf;

use device_plugin_client::networks::NETWORKS_DEFAULT;
use ferrule_kubelet::POD_RESOURCES_SOCKET;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sriov_manager_client::mac::Mac;

use crate::protocol::{AddResult, Attachment, CniError, Code, Interface, IpAddress, Version};

/// A network's configuration, as it came on standard input.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its release.
    pub version: Version,
    /// What it is called.
    pub name: String,
    /// The plugin that it is for.
    pub plugin: String,
    /// The plugin that has its addresses; none: it has none.
    pub ipam: Option<String>,
    /// What plugins before this one made, or ADD answered.
    pub previous: Option<AddResult>,
    /// Of GC: the attachments that are to stay, by container and interface.
    pub valid: Vec<(String, String)>,
    /// The conflist whose pods' devices are attached to it; none: a runtime knows it.
    pub chain: Option<String>,
    /// Where this plugin finds what it needs.
    pub places: Places,
    keys: Keys,
    raw: Vec<u8>,
}

/// Where this plugin finds what it needs: the key `ferrule` of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The socket of `sriov-manager`.
    pub manager: PathBuf,
    /// The admin socket of `dpdk-forwarder`.
    pub forwarder: PathBuf,
    /// The kubelet's podresources socket.
    pub kubelet: PathBuf,
    /// The device plugin's file of networks.
    pub networks: PathBuf,
    /// What it has to know later is kept there.
    pub state: PathBuf,
    /// The tree that holds `sys`.
    pub root: PathBuf,
}

impl Network {
    /// Reads a configuration.
    pub fn read(raw: &[u8]) -> Result<Self, CniError> {
        let document: Value = serde_json::from_slice(raw)
            .map_err(|error| CniError::new(Code::Decode, format!("the network's configuration is no JSON: {error}")))?;
        let keys = Keys::of("", &document)?;
        let version = keys.text("cniVersion")?.unwrap_or_else(|| VERSION_DEFAULT.to_owned()).parse()?;
        let name = keys.text("name")?.unwrap_or_default();
        if !is_name(&name) {
            let problem =
                format!("name `{name}`: a letter or digit and then letters, digits, `_`, `.` or `-` are wanted");
            return Err(CniError::config(problem));
        }
        let ipam = keys.object("ipam")?.map(|ipam| ipam.text("type")).transpose()?.flatten();
        let previous = keys.value("prevResult").filter(|value| !value.is_null()).map(AddResult::read).transpose();
        let places = keys.object("ferrule")?.unwrap_or_default();
        let place = |key: &str, default: &str| -> Result<PathBuf, CniError> {
            Ok(places.text(key)?.unwrap_or_else(|| default.to_owned()).into())
        };
        Ok(Self {
            version,
            name,
            plugin: keys.text("type")?.unwrap_or_default(),
            ipam: ipam.filter(|ipam| !ipam.is_empty()),
            previous: previous.map_err(|error| error.about("prevResult"))?,
            valid: read_valid(&keys)?,
            chain: places.text("chain")?,
            places: Places {
                manager: place("manager", sriov_manager_client::SOCKET_DEFAULT)?,
                forwarder: place("forwarder", dpdk_forwarder_client::ADMIN_DEFAULT)?,
                kubelet: place("kubelet", POD_RESOURCES_SOCKET)?,
                networks: place("networks", NETWORKS_DEFAULT)?,
                state: place("state", STATE_DEFAULT)?,
                root: place("root", "/")?,
            },
            keys,
            raw: raw.to_vec(),
        })
    }

    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// As it came: other plugins are told the same.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// `runtimeConfig`: what a runtime fills in for this attachment.
    pub fn runtime(&self) -> Result<Keys, CniError> {
        Ok(self.keys.object("runtimeConfig")?.unwrap_or_default())
    }

    /// What plugins before this one made, and then what this one did: an interface with the addresses that it was given.
    pub fn with_previous(&self, interface: Interface, addresses: AddResult) -> AddResult {
        let mut result = self.previous.clone().unwrap_or_default();
        let index = result.interfaces.len();
        result.interfaces.push(interface);
        result.ips.extend(addresses.ips.into_iter().map(|ip| IpAddress { interface: Some(index), ..ip }));
        result.routes.extend(addresses.routes);
        result.dns.extend(addresses.dns);
        result
    }

    /// The address that an attachment's interface is to have; none: its own. The runtime's goes before that of `CNI_ARGS`, and this before
    /// the configuration's.
    pub fn mac(&self, attachment: &Attachment) -> Result<Option<Mac>, CniError> {
        let mac = self.runtime()?.text("mac")?;
        let mac = mac.or_else(|| attachment.args.get("MAC").cloned()).or(self.keys.text("mac")?);
        let Some(text) = mac.filter(|mac| !mac.is_empty()) else { return Ok(None) };
        let mac = text.parse::<Mac>().ok().filter(|mac| mac.is_unicast());
        mac.map(Some).ok_or_else(|| {
            CniError::config(format!("mac: `{text}`, where a unicast address as 02:00:00:00:00:01 is wanted"))
        })
    }

    /// Whether an interface of a container is to stay when garbage is collected.
    pub fn has_valid(&self, container: &str) -> bool {
        self.valid.iter().any(|(valid, _)| valid == container)
    }

    /// Where a description of the device is to be written, if the runtime wants one.
    pub fn device_info(&self) -> Result<Option<PathBuf>, CniError> {
        Ok(self.runtime()?.text("CNIDeviceInfoFile")?.map(PathBuf::from))
    }
}

fn read_valid(keys: &Keys) -> Result<Vec<(String, String)>, CniError> {
    let Some(list) = keys.value("cni.dev/valid-attachments").and_then(Value::as_array) else { return Ok(Vec::new()) };
    let pairs = list.iter().map(|one| {
        let one = Keys::of("cni.dev/valid-attachments.", one)?;
        Ok((one.text("containerID")?.unwrap_or_default(), one.text("ifname")?.unwrap_or_default()))
    });
    pairs.collect()
}

fn is_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_part)
}

/// The keys of an object of a configuration. Plugins in Go find keys in any case, so these do.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Where the object is, as `host.`; empty: it is the whole.
    place: String,
    keys: Map<String, Value>,
}

impl Keys {
    fn of(place: &str, value: &Value) -> Result<Self, CniError> {
        match value {
            Value::Object(keys) => Ok(Self { place: place.to_owned(), keys: keys.clone() }),
            other => Err(CniError::config(format!("`{other}` of {place}: an object is wanted"))),
        }
    }

    /// What a key says.
    pub fn value(&self, key: &str) -> Option<&Value> {
        let exact = self.keys.get(key);
        exact.or_else(|| self.keys.iter().find(|(other, _)| other.eq_ignore_ascii_case(key)).map(|(_, value)| value))
    }

    /// A text; none: it is not there.
    pub fn text(&self, key: &str) -> Result<Option<String>, CniError> {
        self.read(key, "a text")
    }

    /// A whole number that is not negative.
    pub fn number(&self, key: &str) -> Result<Option<u32>, CniError> {
        self.read(key, "a number")
    }

    /// One of some words, in any case. An empty text says nothing.
    pub fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, CniError> {
        let Some(text) = self.text(key)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        if let Some((_, meant)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text)) {
            return Ok(Some(*meant));
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        Err(self.wrong(key, &format!("`{text}`"), &known.join(" or ")))
    }

    /// The keys of an object in it.
    pub fn object(&self, key: &str) -> Result<Option<Self>, CniError> {
        let place = format!("{}{key}.", self.place);
        self.value(key).filter(|value| !value.is_null()).map(|value| Self::of(&place, value)).transpose()
    }

    /// A key that is not as it should be.
    pub fn wrong(&self, key: &str, is: &str, wanted: &str) -> CniError {
        CniError::config(format!("{}: {is}, where {wanted} is wanted", self.place_of(key)))
    }

    /// Where a key is in the whole.
    pub fn place_of(&self, key: &str) -> String {
        format!("{}{key}", self.place)
    }

    fn read<T: DeserializeOwned>(&self, key: &str, wanted: &str) -> Result<Option<T>, CniError> {
        let Some(value) = self.value(key).filter(|value| !value.is_null()) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|_| self.wrong(key, &format!("`{value}`"), wanted))
    }
}

/// What the specification takes a configuration without a release for. It is none that is understood.
const VERSION_DEFAULT: &str = "0.1.0";
const STATE_DEFAULT: &str = "/var/lib/cni/ferrule";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_with_its_keys_in_any_case() {
        let network =
            br#"{"cniVersion": "1.0.0", "name": "net", "type": "sriov", "IPAM": {"type": "static"}, "VLAN": 7}"#;
        let network = Network::read(network).unwrap();
        assert_eq!((network.ipam.as_deref(), network.keys().number("vlan").unwrap()), (Some("static"), Some(7)));
        assert_eq!(network.places.state, PathBuf::from(STATE_DEFAULT));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cases: [(&str, Code, &str); 5] = [
            ("{", Code::Decode, "no JSON"),
            (r#"{"name": "net"}"#, Code::Version, "cniVersion `0.1.0`"),
            (r#"{"cniVersion": "1.0.0", "name": "-"}"#, Code::Config, "name `-`"),
            (r#"{"cniVersion": "1.0.0", "name": "a", "ferrule": {"state": 1}}"#, Code::Config, "ferrule.state: `1`"),
            (r#"{"cniVersion": "1.0.0", "name": "a", "ipam": 1}"#, Code::Config, "`1` of ipam."),
        ];
        for (text, code, part) in cases {
            let error = Network::read(text.as_bytes()).unwrap_err();
            assert!(error.code == code && error.message.contains(part), "{text}: {error}");
        }
    }
}
