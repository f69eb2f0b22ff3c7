//! A node made of files with a manager, and namespaces with interfaces that stand for those of its VFs, for several tests.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses some of it; and it is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ferrule_cni::plugin::{Answer, serve_observed};
use ferrule_daemon::ApiSocket;
use ferrule_ffi::netns::NetNs;
use serde_json::{Value, json};
use sriov_manager::daemon::{Daemon, DaemonOptions};
use sriov_manager::fake::FakeNode;
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use sriov_manager_client::{connect, v1};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A node with a manager, a namespace that stands for the host's, and a veth for each VF.
pub struct Site {
    pub node: FakeNode,
    pub directory: TempDir,
    pub host: NetNs,
    pub runtime: Runtime,
    manager: Option<Daemon>,
}

/// A container's namespace, and what leads to it.
pub struct Pod {
    pub netns: NetNs,
    pub path: PathBuf,
}

/// What is asked of the plugin.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub command: &'a str,
    pub container: &'a str,
    pub netns: Option<&'a Path>,
    pub config: Value,
}

impl Site {
    /// With so many VFs; none: namespaces cannot be made here.
    pub fn start(test: &str, vfs: u32) -> Option<Self> {
        let host = match NetNs::private() {
            Ok(host) => host,
            Err(error) => {
                println!("skipped: {test}: lacks a namespace of its own ({error})");
                return None;
            }
        };
        let runtime = Runtime::new().unwrap();
        let mut site =
            Self { node: FakeNode::new(1, 100), directory: TempDir::new().unwrap(), host, runtime, manager: None };
        let plugin = site.directory.path().join("bin");
        fs::create_dir(&plugin).unwrap();
        site.start_manager(vfs);
        for index in 0..vfs {
            site.make_stand_in(index);
        }
        Some(site)
    }

    pub fn start_manager(&mut self, vfs: u32) {
        let pfs = vec![PfSelector { vendor: Some(0x8086), ..PfSelector::default() }];
        let pool = Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(vfs)), ..Pool::default() };
        let parts = self.node.options();
        let options = DaemonOptions {
            sysfs: parts.sysfs,
            kernel: parts.kernel,
            state: parts.state,
            socket: ApiSocket::at(self.socket()),
            metrics: None,
            rescan: Duration::from_millis(50),
            policies: Policies { pools: vec![pool] },
            file: None,
            timeouts: parts.timeouts,
            observer: None,
        };
        self.manager = Some(self.runtime.block_on(Daemon::start(options)).unwrap());
    }

    pub fn stop_manager(&mut self) {
        let manager = self.manager.take().unwrap();
        self.runtime.block_on(manager.stop());
    }

    pub fn socket(&self) -> PathBuf {
        self.at("vf.sock")
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Asks the manager for something.
    pub fn manager<T>(
        &self,
        ask: impl AsyncFnOnce(sriov_manager_client::Client) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> T {
        let answer = self.runtime.block_on(async { ask(connect(&self.socket()).await.unwrap()).await });
        answer.unwrap().into_inner()
    }

    pub fn vf(&self, index: u32) -> v1::Vf {
        let address = self.address(index);
        let list = self.manager(async |mut client| client.list(v1::ListRequest::default()).await);
        list.vfs.into_iter().find(|vf| vf.address == address).unwrap()
    }

    pub fn address(&self, index: u32) -> String {
        self.node.vf(0, index).to_string()
    }

    /// Lends a VF to a pod, as the device plugin does.
    pub fn lend(&self, index: u32, driver: v1::Driver, attributes: v1::Attributes) {
        let request = v1::AcquireRequest {
            id: format!("intel.com/net@{}", self.address(index)),
            tenant: "a pod".into(),
            vf: self.address(index),
            driver: driver.into(),
            attributes: Some(attributes),
            ..Default::default()
        };
        self.manager(async |mut client| client.acquire(request).await);
    }

    /// Asks for that lease once more, as the device plugin does before a container starts, with what it took the lease for when it heard of
    /// it last.
    pub fn lend_again(&self, index: u32, attributes: v1::Attributes) {
        let request = v1::AcquireRequest {
            id: format!("intel.com/net@{}", self.address(index)),
            tenant: "a pod".into(),
            vf: self.address(index),
            driver: v1::Driver::Kernel.into(),
            attributes: Some(attributes.clone()),
            again: Some(v1::Again { from: Some(attributes), since: 0 }),
            ..Default::default()
        };
        self.manager(async |mut client| client.acquire(request).await);
    }

    /// What a lease of a VF asks for.
    pub fn asked_of(&self, index: u32) -> v1::Attributes {
        self.vf(index).lease.unwrap().attributes.unwrap_or_default()
    }

    /// What the interface of a VF is called on the host, once its driver has it.
    pub fn netdev(&self, index: u32) -> String {
        format!("enp{}", self.address(index).trim_start_matches("0000:").replace([':', '.'], "s"))
    }

    /// Makes what stands for the interface of a VF, with a neighbour at its other end.
    pub fn make_stand_in(&self, index: u32) {
        ip(&self.host, &format!("link add {} type veth peer name peer{index}", self.netdev(index)));
        ip(&self.host, &format!("link set peer{index} up"));
    }

    /// A network for one of the VFs, with more keys.
    pub fn config(&self, index: u32, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "sriov",
            "deviceID": self.address(index),
            "ferrule": {
                "manager": self.socket(),
                "state": self.directory.path().join("cni"),
                "root": self.node.sysfs().path(""),
            },
        });
        let Value::Object(more) = more else { panic!("keys are wanted") };
        config.as_object_mut().unwrap().extend(more);
        config
    }

    /// A plugin of ipam: it takes each address once, and says so in a file.
    pub fn with_ipam(&self) -> Value {
        let script = r#"#!/bin/sh
taken="$(dirname "$0")/taken-$CNI_CONTAINERID-$CNI_IFNAME"
case $CNI_COMMAND in
ADD)
    grep -q refuse && { echo '{"code": 11, "msg": "no address is left", "details": "in 10.9.0.0/24"}'; exit 1; }
    touch "$taken"
    echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"address": "2001:db8::5/64"}],
        "routes": [{"dst": "10.10.0.0/16"}]}' ;;
DEL) rm -f "$taken" ;;
esac
"#;
        let path = self.bin().join("ledger");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        json!({ "type": "ledger" })
    }

    /// Addresses that the plugin of ipam has given away.
    pub fn taken(&self) -> usize {
        let entries = fs::read_dir(self.bin()).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("taken-")).count()
    }

    pub fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    /// Asks the plugin, as a runtime on the host.
    pub fn ask(&self, asked: &Asked<'_>) -> Answer {
        self.ask_observed(asked, &|_| ())
    }

    pub fn ask_observed(&self, asked: &Asked<'_>, observer: &(dyn Fn(&str) + Sync)) -> Answer {
        let (variables, input) = (self.variables(asked), asked.config.to_string());
        let serve = || serve_observed(|name| variables.get(name).cloned(), input.as_bytes(), observer);
        self.host.run(serve).unwrap()
    }

    /// Asks a program that is killed at this step.
    pub fn ask_killed(&self, asked: &Asked<'_>, at: usize) {
        let (variables, input) = (self.variables(asked), asked.config.to_string());
        self.host.run(|| run_killed(&variables, &input, at)).unwrap();
    }

    fn variables(&self, asked: &Asked<'_>) -> BTreeMap<&'static str, String> {
        let mut variables = BTreeMap::from([
            ("CNI_COMMAND", asked.command.to_owned()),
            ("CNI_CONTAINERID", asked.container.to_owned()),
            ("CNI_IFNAME", "net1".to_owned()),
            ("CNI_PATH", self.bin().display().to_string()),
        ]);
        variables.extend(asked.netns.map(|netns| ("CNI_NETNS", netns.display().to_string())));
        variables
    }

    /// Whether all is as it was before the first ADD.
    pub fn leftovers(&self) -> Vec<String> {
        let records = fs::read_dir(self.directory.path().join("cni/vf")).into_iter().flatten();
        let records = records.map(|entry| format!("record {}", entry.unwrap().path().display()));
        let leases = self.manager(async |mut client| client.list(v1::ListRequest::default()).await).vfs;
        let leases = leases.into_iter().filter_map(|vf| vf.lease).filter(|lease| lease.id.starts_with("cni/"));
        let leases = leases.map(|lease| format!("lease {}", lease.id));
        let taken = (self.taken() > 0).then(|| format!("{} addresses", self.taken()));
        records.chain(leases).chain(taken).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.manager.is_some() {
            self.stop_manager();
        }
    }
}

impl Pod {
    pub fn new() -> Self {
        let netns = NetNs::private().unwrap();
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()));
        Self { netns, path }
    }

    pub fn asked<'a>(&'a self, command: &'a str, container: &'a str, config: &Value) -> Asked<'a> {
        Asked { command, container, netns: Some(&self.path), config: config.clone() }
    }
}

/// Runs the plugin with these variables, and kills it at a step.
pub fn run_killed(variables: &BTreeMap<&'static str, String>, input: &str, at: usize) {
    let program = Path::new(env!("CARGO_BIN_EXE_ferrule-cni")).with_file_name("examples").join("killed-cni");
    let mut plugin = Command::new(program);
    plugin.envs(variables).env("DIE_AT", at.to_string()).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut plugin = plugin.spawn().unwrap();
    plugin.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = plugin.wait_with_output().unwrap();
    assert_eq!(ended.status.signal(), Some(9), "{at}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// What `ip` says inside a namespace.
pub fn ip(netns: &NetNs, arguments: &str) -> String {
    let run = || Command::new("ip").args(arguments.split(' ')).output();
    let output = netns.run(run).unwrap().expect("iproute2 is there");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether an interface is there.
pub fn has(netns: &NetNs, name: &str) -> bool {
    ip(netns, "-br link").lines().any(|line| line.split(['@', ' ']).next() == Some(name))
}
