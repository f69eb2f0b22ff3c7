//! Open vSwitch with DPDK: a database, a switch and two flows of its own, beside any that the system has.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::spec::SocketAddress;

use super::process::{Process, run};
use super::{Site, StartError};
use crate::bench::case::Kind;
use crate::bench::folder::Folder;

/// Starts a switch whose bridge has both sockets, and a flow from each to the other.
pub(super) fn start(
    site: &Site,
    folder: &Folder,
    sockets: &[SocketAddress; 2],
    cancel: &AtomicBool,
) -> Result<Vec<Process>, StartError> {
    if site.ends != [Kind::Vhost; 2] {
        return Err(StartError::Unable("Open vSwitch has vhost-user ports only; no memif"));
    }
    let switch = Switch { folder };
    run(&mut switch.tool("ovsdb-tool", ["create", &switch.path("conf.db"), SCHEMA]), PACKAGE)?;
    let log = folder.join("log");
    let mut server = switch.tool("ovsdb-server", [&*switch.path("conf.db")]);
    server.arg(format!("--remote=punix:{}", switch.path("db.sock"))).arg(switch.unixctl("db.ctl"));
    let mut processes = vec![Process::start(&mut server, &log, PACKAGE)?];
    switch.wait_for("db.sock", &processes, cancel)?;
    switch.vsctl(["--no-wait", "init"])?;
    let mut settings: Vec<String> = vec!["--no-wait".into(), "set".into(), "Open_vSwitch".into(), ".".into()];
    let mask = |cpus: &[usize]| format!("{:#x}", cpus.iter().fold(0u64, |mask, cpu| mask | 1 << (cpu % 64)));
    settings.push("other_config:dpdk-init=true".into());
    settings.push(format!(
        "other_config:dpdk-extra=--no-huge -m 1024 --no-pci --no-shconf --no-telemetry --file-prefix={}",
        switch.prefix()
    ));
    settings.push(format!("other_config:dpdk-lcore-mask={}", mask(&[site.other])));
    settings.push(format!("other_config:pmd-cpu-mask={}", mask(&site.workers)));
    settings.push(format!("other_config:vhost-sock-dir={}", "."));
    switch.vsctl(settings.iter().map(String::as_str))?;
    let mut daemon = switch.tool("ovs-vswitchd", [&*format!("unix:{}", switch.path("db.sock"))]);
    daemon.arg(switch.unixctl("switch.ctl"));
    processes.push(Process::start(&mut daemon, &log, PACKAGE)?);
    switch.wait_for("switch.ctl", &processes, cancel)?;
    switch.vsctl(["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail-mode=secure"])?;
    for socket in [0, 1] {
        let name = format!("{socket}.sock");
        let (request, queues) = (format!("ofport_request={}", socket + 1), format!("options:n_rxq={}", site.queues));
        let kind = "type=dpdkvhostuser";
        switch.vsctl(["add-port", BRIDGE, &name, "--", "set", "Interface", &name, kind, &request, &queues])?;
    }
    for flow in ["in_port=1,actions=output:2", "in_port=2,actions=output:1"] {
        let management = format!("unix:{}", switch.path(&format!("{BRIDGE}.mgmt")));
        run(&mut switch.tool("ovs-ofctl", ["add-flow", &management, flow]), PACKAGE)?;
    }
    debug_assert!(sockets.iter().all(|socket| socket.to_string().starts_with(&switch.path(""))));
    Ok(processes)
}

/// A switch that has everything in one folder.
struct Switch<'a> {
    folder: &'a Folder,
}

impl Switch<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn prefix(&self) -> String {
        self.folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
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
        let deadline = Instant::now() + PATIENCE;
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
const BRIDGE: &str = "br0";
/// Where Debian has it.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(10);
