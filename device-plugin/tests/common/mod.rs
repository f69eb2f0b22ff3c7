//! A node made of files with a manager, a kubelet and a plugin, for several tests.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses some of it; and it is a test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use device_plugin::allocate::{CdiMode, DeviceFiles};
use device_plugin::config::ConfigFile;
use device_plugin::daemon::{Daemon, DaemonOptions};
use device_plugin::pod_resources::Witness;
use ferrule_daemon::ApiSocket;
use ferrule_kubelet::KUBELET_SOCKET;
use ferrule_kubelet::stand_in::{Kubelet, Options, Release};
use sriov_manager::daemon::{Daemon as Manager, DaemonOptions as ManagerOptions};
use sriov_manager::fake::FakeNode;
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use sriov_manager_client::{Client, connect, v1};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A node with all that runs on it.
pub struct Site {
    pub node: FakeNode,
    pub directory: TempDir,
    pub options: DaemonOptions,
    /// How often the manager looks at what no event tells: made-up nodes have no events.
    pub rescan: Duration,
    pub manager: Option<Manager>,
    pub kubelet: Option<Kubelet>,
    pub plugin: Option<Daemon>,
}

/// Two resources that share all VFs.
pub const SHARED: &str = r#"{"resourceList": [
    {"resourceName": "dpdk", "driver": "vfio-pci", "selectors": {"vendors": ["8086"]}},
    {"resourceName": "kernel", "driver": "kernel", "selectors": {"vendors": ["8086"]}}
]}"#;
pub const DPDK: &str = "intel.com/dpdk";
pub const KERNEL: &str = "intel.com/kernel";

impl Site {
    /// With `vfs` VFs on each PF of a node, and nothing that runs.
    pub fn new(node: FakeNode, config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::write(at("config.json"), config).unwrap();
        let options = DaemonOptions {
            file: ConfigFile::load(&at("config.json"), "intel.com").unwrap(),
            presets: "intel.com".into(),
            root: node.sysfs().path(""),
            manager: at("vf.sock"),
            socket: at("device-plugin.sock"),
            forwarder: at("admin.sock"),
            software: at("software"),
            networks: at("networks.json"),
            plugins: at("device-plugins"),
            pod_resources: at("pod-resources/kubelet.sock"),
            witness: Witness { own_pod: Some("pod default/device-plugin".into()), settle: Duration::ZERO },
            state: at("state"),
            files: DeviceFiles { cdi: at("cdi"), device_info: at("devinfo/dp") },
            nsm_tokens: at("tokens"),
            cdi: CdiMode::Off,
            metrics: Some(([127, 0, 0, 1], 0).into()),
        };
        Self { node, directory, options, rescan: Duration::from_millis(50), manager: None, kubelet: None, plugin: None }
    }

    /// One PF with so many VFs, on which everything runs.
    pub async fn start(vfs: u32, config: &str) -> Self {
        Self::start_on(FakeNode::new(1, 7), vfs, config).await
    }

    /// The same on another node.
    pub async fn start_on(node: FakeNode, vfs: u32, config: &str) -> Self {
        let mut site = Self::new(node, config);
        site.start_manager(vfs).await;
        site.start_kubelet(Release::V1_36);
        site.start_plugin().await;
        site
    }

    pub async fn start_manager(&mut self, vfs: u32) {
        self.manager = Some(self.made_manager(vfs).await);
    }

    pub async fn made_manager(&self, vfs: u32) -> Manager {
        let pfs = vec![PfSelector { vendor: Some(0x8086), ..PfSelector::default() }];
        let pool = Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(vfs)), ..Pool::default() };
        let parts = self.node.options();
        let options = ManagerOptions {
            sysfs: parts.sysfs,
            kernel: parts.kernel,
            state: parts.state,
            socket: ApiSocket::at(&self.options.manager),
            metrics: None,
            rescan: self.rescan,
            policies: Policies { pools: vec![pool] },
            file: None,
            timeouts: parts.timeouts,
            observer: None,
        };
        Manager::start(options).await.unwrap()
    }

    pub async fn stop_manager(&mut self) {
        self.manager.take().unwrap().stop().await;
    }

    pub fn kubelet_options(&self, release: Release) -> Options {
        let DaemonOptions { plugins, pod_resources, .. } = self.options.clone();
        Options { plugins, pod_resources, release }
    }

    pub fn start_kubelet(&mut self, release: Release) {
        let kubelet = Kubelet::start(self.kubelet_options(release)).unwrap();
        kubelet.run_pod("device-plugin");
        self.kubelet = Some(kubelet);
    }

    pub fn restart_kubelet(&mut self, release: Release) {
        self.kubelet = Some(self.kubelet.take().unwrap().restart(release).unwrap());
    }

    pub async fn start_plugin(&mut self) {
        self.plugin = Some(Daemon::start(self.options.clone()).await.unwrap());
    }

    pub async fn stop_plugin(&mut self) {
        self.plugin.take().unwrap().stop().await;
    }

    pub fn kubelet(&self) -> &Kubelet {
        self.kubelet.as_ref().unwrap()
    }

    /// Waits until the kubelet may give away so many devices of a resource.
    pub async fn until_healthy(&self, resource: &str, count: usize) {
        let what = format!("{count} healthy devices of {resource}");
        self.kubelet().until(&what, |kubelet| kubelet.healthy(resource).len() == count).await;
    }

    pub async fn client(&self) -> Client {
        connect(&self.options.manager).await.unwrap()
    }

    pub async fn list(&self) -> v1::ListResponse {
        self.client().await.list(v1::ListRequest::default()).await.unwrap().into_inner()
    }

    pub async fn vf(&self, address: &str) -> v1::Vf {
        self.list().await.vfs.into_iter().find(|vf| vf.address == address).unwrap()
    }

    /// Waits until the manager's list is so.
    pub async fn until_list(&self, what: &str, holds: impl Fn(&v1::ListResponse) -> bool) {
        let seen = async {
            while !holds(&self.list().await) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, seen).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// Waits until the plugin has kept this for the next one.
    pub async fn until_checkpoint(&self, text: &str) {
        let file = self.options.state.join("lists");
        let holds = || std::fs::read(&file).is_ok_and(|kept| String::from_utf8_lossy(&kept).contains(text));
        let kept = async {
            while !holds() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, kept).await.unwrap_or_else(|_| panic!("the checkpoint has no `{text}`"));
    }

    /// The text of a page of the plugin.
    pub async fn page(&self, path: &str) -> String {
        let address = self.plugin.as_ref().unwrap().metrics().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub async fn until_page(&self, path: &str, wanted: &str) {
        let mut last = String::new();
        let seen = async {
            loop {
                last = self.page(path).await;
                if last.contains(wanted) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let is_late = timeout(DEADLINE, seen).await.is_err();
        assert!(!is_late, "{path} has no `{wanted}`:\n{last}");
    }

    pub fn write_config(&self, text: &str) {
        let path = self.directory.path().join("config.json");
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    /// Sockets in the kubelet's directory, beside its own.
    pub fn plugin_sockets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.options.plugins).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.file_name().unwrap() != KUBELET_SOCKET).collect()
    }

    pub async fn stop(mut self) {
        if self.plugin.is_some() {
            self.stop_plugin().await;
        }
        if self.manager.is_some() {
            self.stop_manager().await;
        }
    }
}

/// The device that is named by a container's environment.
pub fn only_device(answer: &ferrule_kubelet::v1beta1::ContainerAllocateResponse, variable: &str) -> String {
    answer.envs[variable].clone()
}

pub fn is_there(path: &Path) -> bool {
    path.exists()
}

pub const DEADLINE: Duration = Duration::from_secs(30);
