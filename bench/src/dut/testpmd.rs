//! DPDK's test program.

use std::process::Command;

use ferrule_dataplane::spec::SocketAddress;

use super::error::StartError;
use super::process::Process;
use super::setup::{DutSetup, RING};
use crate::case::EndKind;
use crate::folder::Folder;

/// Starts it so that it forwards from one device to the other without looking at frames, on the first worker's CPU.
pub(super) fn start(
    burst: u16,
    site: &DutSetup,
    folder: &Folder,
    sockets: &[SocketAddress; 2],
) -> Result<Vec<Process>, StartError> {
    let mut command = Command::new("dpdk-testpmd");
    // Main on the generator's CPU, where it waits on its standard input for ever.
    let workers = site.workers.iter().enumerate().map(|(number, cpu)| format!(",{}@{cpu}", number + 1));
    command.args(["--lcores", &format!("0@{}{}", site.other, workers.collect::<String>())]);
    command.args(["--no-huge", "-m", "512", "--no-pci", "--no-shconf", "--no-telemetry"]);
    command.arg("--file-prefix").arg(folder.path().file_name().unwrap_or_default());
    let queues = site.queues;
    for (number, socket) in sockets.iter().enumerate() {
        let device = match site.ends[number] {
            EndKind::Memif => format!("net_memif{number},role=server,id=0,socket={socket},socket-abstract=no"),
            EndKind::Vhost => format!("net_vhost{number},iface={socket},queues={queues}"),
            // It is not asked to: a port has one program.
            EndKind::Port => continue,
        };
        command.args(["--vdev", &device]);
    }
    command.args(["--", "--forward-mode=io", "--auto-start", "--total-num-mbufs=16384"]);
    command.arg(format!("--nb-cores={}", site.workers.len()));
    command.args([format!("--rxq={queues}"), format!("--txq={queues}")]);
    command.args([format!("--rxd={RING}"), format!("--txd={RING}"), format!("--burst={burst}")]);
    if site.buffer > MBUF {
        command.arg(format!("--mbuf-size={}", site.buffer + HEADROOM));
    }
    Ok(vec![Process::start(&mut command, &folder.join("log"), "dpdk-dev")?])
}

/// Bytes of frame in its usual buffer, and in front of them (RTE_PKTMBUF_HEADROOM).
const MBUF: u32 = 2048;
const HEADROOM: u32 = 128;
