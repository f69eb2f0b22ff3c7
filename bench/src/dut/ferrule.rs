//! Our forwarder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ferrule_dataplane::spec::SocketAddress;

use super::error::{DutError, StartError};
use super::process::Process;
use super::setup::{DutSetup, Idle};
use crate::case::EndKind;
use crate::folder::Folder;
use crate::ports::DpdkStart;

/// The forwarder that is asked for, or the one beside this program.
pub fn forwarder(asked: Option<&Path>) -> Result<PathBuf, DutError> {
    if let Some(path) = asked {
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe()?.with_file_name("dpdk-forwarder");
    if beside.exists() { Ok(beside) } else { Err(DutError::NoForwarder(beside)) }
}

/// Starts it with one wire.
pub(super) fn start(
    forwarder: &Path,
    trusted: bool,
    site: &DutSetup,
    folder: &Folder,
    sockets: &[SocketAddress; 2],
) -> Result<Vec<Process>, StartError> {
    let file = folder.join("wires.yaml");
    fs::write(&file, document(trusted, site, &folder.join("admin.sock"), sockets))?;
    let mut command = Command::new(forwarder);
    command.arg("--config").arg(file);
    Ok(vec![Process::start(&mut command, &folder.join("log"), "none: build it with cargo")?])
}

/// The wires file.
fn document(trusted: bool, site: &DutSetup, admin: &Path, sockets: &[SocketAddress; 2]) -> String {
    let queues = site.queues;
    let end = |number: usize| {
        let socket = &sockets[number];
        match site.ends[number] {
            EndKind::Memif if trusted && number == 1 => {
                format!("{{ memif: {{ socket: \"{socket}\", id: 0, role: client, queues: {queues} }} }}")
            }
            EndKind::Memif => format!("{{ memif: {{ socket: \"{socket}\", id: 0, role: server, queues: {queues} }} }}"),
            EndKind::Vhost => format!("{{ vhost-user: {{ socket: \"{socket}\", role: server, queues: {queues} }} }}"),
            EndKind::Port => {
                let device = site.devices.as_ref().map_or("", |devices| &*devices[number]);
                let mtu = site.ports.as_ref().and_then(|ports| ports.mtu).map(|mtu| format!(", mtu: {mtu}"));
                format!("{{ ethdev: {{ device: \"{device}\", queues: {queues}{} }} }}", mtu.unwrap_or_default())
            }
        }
    };
    let idle = match site.idle {
        Idle::Adaptive => "adaptive",
        Idle::Poll => "poll",
    };
    let dpdk = site.ports.as_ref().map(|ports| {
        let DpdkStart { memory_mib, hugepages } = ports.dpdk;
        format!("dpdk: {{ memory: {memory_mib}MiB, hugepages: {hugepages} }}\n")
    });
    let trust = if trusted { "    trusted: true\n" } else { "" };
    format!(
        "workers: {:?}\nidle: {idle}\nadmin: {}\n{}wires:\n  - name: bench\n{trust}    ends:\n      - {}\n      - {}\n",
        site.workers,
        admin.display(),
        dpdk.unwrap_or_default(),
        end(0),
        end(1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::PortSetup;
    use dpdk_forwarder::config::Config;

    fn site(ends: [EndKind; 2]) -> DutSetup {
        DutSetup {
            ends,
            queues: 2,
            buffer: 2048,
            workers: vec![0],
            other: 1,
            idle: Idle::Poll,
            ports: None,
            devices: None,
        }
    }

    #[test]
    fn the_forwarder_takes_the_document() {
        let sockets = ["/tmp/a b/0.sock", "/tmp/1.sock"].map(|socket| socket.parse().unwrap());
        for ends in
            [[EndKind::Memif, EndKind::Memif], [EndKind::Vhost, EndKind::Vhost], [EndKind::Memif, EndKind::Vhost]]
        {
            let text = document(false, &site(ends), Path::new("/tmp/admin.sock"), &sockets);
            let config = Config::parse("wires.yaml", &text);
            assert!(config.is_ok(), "{text}\n{:?}", config.err());
        }
    }

    #[test]
    fn the_forwarder_takes_devices_and_how_dpdk_is_started() {
        let devices = ["net_af_packet0,iface=a", "0000:3b:02.1"].map(str::to_owned);
        let dpdk = DpdkStart { memory_mib: 512, hugepages: true };
        let ports = PortSetup { devices: devices.clone(), queues: 1, mtu: Some(9000), stamps: false, dpdk };
        let site = DutSetup { ports: Some(ports), devices: Some(devices), ..site([EndKind::Port; 2]) };
        let text = document(false, &site, Path::new("/tmp/admin.sock"), &["/a", "/b"].map(|s| s.parse().unwrap()));
        let config = Config::parse("wires.yaml", &text).unwrap_or_else(|error| panic!("{text}\n{error:?}"));
        assert_eq!((config.dpdk.memory_mib, config.dpdk.hugepages), (512, true));
        assert_eq!(config.wires[0].ends[1].to_string(), "ethdev 0000:3b:02.1");
    }

    #[test]
    fn a_trusted_wire_connects_to_its_second_end() {
        let sockets = ["/tmp/0.sock", "/tmp/1.sock"].map(|socket| socket.parse().unwrap());
        let text = document(true, &site([EndKind::Memif; 2]), Path::new("/tmp/admin.sock"), &sockets);
        assert!(text.contains("trusted: true") && text.contains("role: client"), "{text}");
    }
}
