//! DPDK's test program on VFs and other devices: who carries frames, and who holds a VF.

use std::process::Command;
use std::thread::available_parallelism;

use anyhow::Result;

use super::pci::Function;
use super::scenario::Lacks;
use crate::process::Process;
use crate::vm::pieces::program;

/// Starts one on these VFs, which are bound to vfio-pci, and waits until it takes commands.
pub fn start(vfs: &[&Function], arguments: &[String]) -> Result<Process> {
    let devices: Vec<_> = vfs.iter().map(|vf| format!("--allow={}", vf.address)).collect();
    start_on(&devices, arguments)
}

/// Starts one on devices, as arguments of DPDK name them, and waits until it takes commands.
pub fn start_on(devices: &[String], arguments: &[String]) -> Result<Process> {
    let testpmd = program("dpdk-testpmd").map_err(|_| Lacks("dpdk-testpmd (apt-get install dpdk-dev)".to_owned()))?;
    // Its standard output is a pipe, which libc would fill a block at a time.
    let mut command = Command::new("stdbuf");
    // Two threads, that which forwards on the node of the first PF; the other one only waits for commands.
    let last = available_parallelism().map_or(0, |count| count.get() - 1);
    command.arg("-oL").arg(testpmd).args(["--in-memory", "--no-telemetry", "--lcores", &format!("0@{last},1@0")]);
    command.args(devices);
    command.args(["--", "-i", "--total-num-mbufs=8192", "--disable-link-check"]).args(arguments);
    let process = Process::start(&mut command);
    process.wait_for("testpmd> ");
    Ok(process)
}

/// What each of its two ports has received since it began to forward.
pub fn received(process: &mut Process) -> [u64; 2] {
    let asked = process.output().matches(STATISTICS_END).count() + 1;
    process.type_in("show fwd stats all\n");
    process.wait_for_times(STATISTICS_END, asked);
    let output = process.output();
    let last = output.rsplit("Forward statistics for port 0").next().unwrap_or_default();
    let mut counts =
        last.lines().filter_map(|line| line.split_once("RX-packets:")?.1.split_whitespace().next()?.parse().ok());
    [counts.next().unwrap_or(0), counts.next().unwrap_or(0)]
}

/// Ends it; it closes its devices then.
pub fn quit(mut process: Process) {
    process.type_in("quit\n");
    assert_eq!(process.wait().0, Some(0));
}

/// Printed once, behind what each port has.
const STATISTICS_END: &str = "Accumulated forward statistics for all ports";
