//! Open vSwitch with DPDK: a database, a switch and two flows of its own, beside any that the system has.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::spec::SocketAddress;
use nix::unistd::geteuid;

use super::error::StartError;
use super::process::{Process, run};
use super::setup::DutSetup;
use crate::case::EndKind;
use crate::folder::Folder;

/// Starts a switch whose bridge has both sockets, and a flow from each to the other.
pub(super) fn start(
    site: &DutSetup,
    folder: &Folder,
    sockets: &[SocketAddress; 2],
    cancel: &AtomicBool,
) -> Result<Vec<Process>, StartError> {
    if site.ends != [EndKind::Vhost; 2] {
        return Err(StartError::Unable("Open vSwitch has vhost-user ports only; no memif"));
    }
    let switch = Switch { folder };
    let log = folder.join("log");
    run(&mut switch.tool("ovsdb-tool", ["create", &switch.path("conf.db"), SCHEMA]), PACKAGE)?;
    let mut server = switch.tool("ovsdb-server", [&*switch.path("conf.db")]);
    server.args([format!("--remote=punix:{}", switch.path("db.sock")), switch.unixctl("db.ctl")]);
    let mut processes = vec![Process::start(&mut server, &log, PACKAGE)?];
    switch.wait_for("db.sock", &processes, cancel)?;
    switch.vsctl(["--no-wait", "init"])?;
    let settings = settings(site);
    let set = ["--no-wait", "set", "Open_vSwitch", "."];
    switch.vsctl(set.into_iter().chain(settings.iter().map(String::as_str)))?;
    // The bridge makes an interface of the kernel, which nobody else is to see: in a network namespace of its own.
    let database = format!("unix:{}", switch.path("db.sock"));
    let mut daemon = switch.tool("unshare", ["--net"]);
    if !geteuid().is_root() {
        daemon.args(["--user", "--map-root-user"]);
    }
    daemon.args([DAEMON, &database, &switch.unixctl("switch.ctl")]);
    if !Path::new(DAEMON).exists() {
        return Err(StartError::Missing { program: DAEMON.to_owned(), package: PACKAGE });
    }
    processes.push(Process::start(&mut daemon, &log, PACKAGE)?);
    switch.wait_for("switch.ctl", &processes, cancel)?;
    switch.vsctl(["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail-mode=secure"])?;
    for (number, socket) in sockets.iter().enumerate() {
        // The socket is named like the port, and lies in the folder.
        let name = Path::new(&socket.to_string()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let port = format!("ofport_request={}", number + 1);
        let mtu = format!("mtu_request={}", if site.buffer > BUFFER { site.buffer } else { MTU });
        let interface = ["--", "set", "Interface", &name, "type=dpdkvhostuser", &port, &mtu];
        switch.vsctl(["add-port", BRIDGE, &name].into_iter().chain(interface))?;
    }
    for flow in ["in_port=1,actions=output:2", "in_port=2,actions=output:1"] {
        let management = format!("unix:{}", switch.path(&format!("{BRIDGE}.mgmt")));
        run(&mut switch.tool("ovs-ofctl", ["add-flow", &management, flow]), PACKAGE)?;
    }
    Ok(processes)
}

/// How DPDK is to start, and where threads are to run.
fn settings(site: &DutSetup) -> [String; 5] {
    [
        "other_config:dpdk-init=true".to_owned(),
        // Without --legacy-mem the switch adds --in-memory, which does not go with --no-huge.
        "other_config:dpdk-extra=--no-huge --legacy-mem -m 1024 --no-pci --no-shconf --no-telemetry".to_owned(),
        // Without it, the switch wants 262144 buffers at once.
        "other_config:per-port-memory=true".to_owned(),
        format!("other_config:dpdk-lcore-mask={}", mask(&[site.other])),
        format!("other_config:pmd-cpu-mask={}", mask(&site.workers)),
    ]
}

/// As many CPUs as there may be, in hexadecimal.
fn mask(cpus: &[usize]) -> String {
    let mut digits = vec![0; cpus.iter().max().map_or(0, |cpu| cpu / 4) + 1];
    for cpu in cpus {
        digits[cpu / 4] |= 1 << (cpu % 4);
    }
    digits.iter().rev().fold("0x".to_owned(), |mask, digit: &u8| format!("{mask}{digit:x}"))
}

/// A switch that has everything in one folder.
struct Switch<'a> {
    folder: &'a Folder,
}

impl Switch<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn unixctl(&self, name: &str) -> String {
        format!("--unixctl={}", self.path(name))
    }

    /// A program that looks for nothing outside of the folder.
    fn tool<'b>(&self, program: &str, args: impl IntoIterator<Item = &'b str>) -> Command {
        let mut command = Command::new(program);
        command.args(args);
        for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.folder.path());
        }
        command
    }

    fn vsctl<'b>(&self, args: impl IntoIterator<Item = &'b str>) -> Result<(), StartError> {
        let mut command = self.tool("ovs-vsctl", [&*format!("--db=unix:{}", self.path("db.sock")), "--timeout=20"]);
        run(command.args(args), PACKAGE)
    }

    /// Waits until a process has made a file.
    fn wait_for(&self, name: &str, processes: &[Process], cancel: &AtomicBool) -> Result<(), StartError> {
        let deadline = Instant::now() + TIMEOUT;
        while !Path::new(&self.path(name)).exists() {
            if let Some(process) = processes.iter().find(|process| process.has_ended()) {
                let problem = "it has ended".to_owned();
                return Err(StartError::Command { command: process.command.clone(), problem });
            }
            if cancel.load(Relaxed) || Instant::now() > deadline {
                return Err(StartError::Unable("it did not make its socket in time"));
            }
            thread::sleep(STEP);
        }
        Ok(())
    }
}

const PACKAGE: &str = "openvswitch-switch-dpdk";
/// Debian's `ovs-vswitchd` is this one only if the system's administrator chose it.
pub(super) const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const BRIDGE: &str = "br0";
/// Where Debian has it.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Bytes of our usual buffers, and the MTU that goes with them: frames of 1518 bytes without FCS.
const BUFFER: u32 = 2048;
const MTU: u32 = 1504;
const TIMEOUT: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dut::setup::Idle;

    #[test]
    fn threads_run_where_they_are_told_to() {
        let site = DutSetup {
            ends: [EndKind::Vhost; 2],
            queues: 1,
            buffer: BUFFER,
            workers: vec![0, 2],
            other: 3,
            idle: Idle::Adaptive,
            ports: None,
            devices: None,
        };
        let settings = settings(&site);
        assert!(settings[3].ends_with("=0x8") && settings[4].ends_with("=0x5"), "{settings:?}");
        assert_eq!(mask(&[64]), "0x10000000000000000");
        assert_eq!(mask(&[1, 6]), "0x42");
    }
}
