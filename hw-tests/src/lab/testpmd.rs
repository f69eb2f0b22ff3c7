//! DPDK's test program on VFs: who carries frames, and who holds a VF.

use std::process::Command;

use anyhow::Result;

use super::pci::Function;
use super::scenario::Lacks;
use crate::process::Process;
use crate::vm::pieces::program;

/// Starts one on these VFs, which are bound to vfio-pci, and waits until it takes commands.
pub fn start(vfs: &[&Function], arguments: &[String]) -> Result<Process> {
    let testpmd = program("dpdk-testpmd").map_err(|_| Lacks("dpdk-testpmd (apt-get install dpdk-dev)".to_owned()))?;
    // Its standard output is a pipe, which libc would fill a block at a time.
    let mut command = Command::new("stdbuf");
    // Two threads on the node of the first PF, one of which only waits for commands.
    command.arg("-oL").arg(testpmd).args(["--in-memory", "--no-telemetry", "--lcores", "0@1,1@0"]);
    for vf in vfs {
        command.args(["-a", &vf.address]);
    }
    command.args(["--", "-i", "--total-num-mbufs=8192", "--disable-link-check"]).args(arguments);
    let process = Process::start(&mut command);
    process.wait_for("testpmd> ");
    Ok(process)
}

/// Ends it; it closes its VFs then.
pub fn quit(mut process: Process) {
    process.type_in("quit\n");
    assert_eq!(process.wait().0, Some(0));
}
