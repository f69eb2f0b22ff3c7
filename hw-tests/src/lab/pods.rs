//! A node that gives VFs to pods: a manager, a kubelet stand-in in this process, and the device plugin as a process of its own.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use device_plugin_client::{Report, Resource};
use ferrule_kubelet::stand_in::{Kubelet, Options, Refusal, Release};
use ferrule_kubelet::v1beta1::ContainerAllocateResponse;
use tokio::runtime::{self, Runtime};
use tokio::time::{sleep, timeout};

use super::manager::{Manager, ManagerOptions};
use super::scenario::Lab;
use crate::process::Process;

/// The node. Its manager is not here while it is away.
pub struct PodNode {
    runtime: Runtime,
    kubelet: Option<Kubelet>,
    manager: Option<Manager>,
    plugin: Process,
    directory: PathBuf,
    state: PathBuf,
}

impl PodNode {
    /// `config`: the plugin's. `state`: where it keeps what it keeps. The manager is that of `manager`.
    pub fn start(lab: &Lab, manager: Manager, config: &str, state: &Path) -> Result<Self> {
        let directory = lab.state();
        // A Unix address has 107 bytes, and the kubelet's own directory is as short.
        let kubelet_at = PathBuf::from(KUBELET);
        let _ = fs::remove_dir_all(&kubelet_at);
        fs::write(directory.join("config.json"), config).context("write the plugin's configuration")?;
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("make a runtime")?;
        let kubelet = {
            let _guard = runtime.enter();
            let (plugins, pod_resources) = (kubelet_at.join(PLUGINS), kubelet_at.join(POD_RESOURCES));
            Kubelet::start(Options { plugins, pod_resources, release: Release::V1_36 }).context("start a kubelet")?
        };
        kubelet.run_pod(OWN_POD);
        let plugin = Process::start(&mut plugin(&directory, state));
        let (state, manager) = (state.to_owned(), Some(manager));
        Ok(Self { runtime, kubelet: Some(kubelet), manager, plugin, directory, state })
    }

    /// The kubelet.
    pub fn kubelet(&self) -> &Kubelet {
        self.kubelet.as_ref().expect("it is there until the end")
    }

    /// The manager, which is there now.
    pub fn manager(&self) -> &Manager {
        self.manager.as_ref().expect("it is not away")
    }

    /// The manager dies.
    pub fn kill_manager(&mut self) {
        self.manager.take().expect("it is not away").kill();
    }

    /// The next one starts.
    pub fn start_manager(&mut self, lab: &Lab) -> Result<()> {
        self.manager = Some(Manager::start(lab, &ManagerOptions { quiet: true, ..ManagerOptions::default() })?);
        Ok(())
    }

    /// The plugin dies without a chance to close anything, and the next one starts at once.
    pub fn replace_plugin(&mut self) {
        self.plugin.kill();
        self.plugin = Process::start(&mut plugin(&self.directory, &self.state));
    }

    /// What the plugin logged.
    pub fn log(&self) -> String {
        self.plugin.output()
    }

    /// Waits until the kubelet may give away so many devices of a resource.
    pub fn until_healthy(&self, resource: &str, count: usize) -> Result<()> {
        self.until(&format!("{count} healthy devices of {resource}"), |kubelet| {
            kubelet.healthy(resource).len() == count
        })
    }

    /// Waits until the kubelet knows something.
    pub fn until(&self, what: &str, holds: impl Fn(&Kubelet) -> bool) -> Result<()> {
        let seen = self.runtime.block_on(async {
            timeout(DEADLINE, async {
                while !holds(self.kubelet()) {
                    sleep(Duration::from_millis(1)).await;
                }
            })
            .await
        });
        ensure!(seen.is_ok(), "not in time: {what}; the plugin's log:\n{}", self.log());
        Ok(())
    }

    /// Waits until the plugin says that so of a resource.
    pub fn until_told(&self, resource: &str, what: &str, holds: impl Fn(&Resource) -> bool) -> Result<()> {
        let socket = self.directory.join("device-plugin.sock");
        let told = async {
            loop {
                if let Ok(report) = Report::read(&socket).await
                    && report.resource(resource).is_some_and(&holds)
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let told = self.runtime.block_on(async { timeout(DEADLINE, told).await });
        ensure!(told.is_ok(), "the plugin does not say of {resource}: {what}; its log:\n{}", self.log());
        Ok(())
    }

    /// A pod with one container is admitted.
    pub fn admit(&self, pod: &str, resource: &str) -> Result<ContainerAllocateResponse, Refusal> {
        self.block_on(self.kubelet().admit(pod, "main", resource, 1))
    }

    /// Its container starts.
    pub fn start_container(&self, pod: &str) -> Result<(), Refusal> {
        self.block_on(self.kubelet().start_container(pod, "main")).map(drop)
    }

    /// The only device of a pod.
    pub fn device_of(&self, pod: &str) -> Result<String> {
        self.kubelet().devices_of(pod).pop_first().with_context(|| format!("{pod} has no device"))
    }

    /// Runs a question to the kubelet.
    pub fn block_on<T>(&self, asked: impl Future<Output = T>) -> T {
        self.runtime.block_on(asked)
    }
}

impl Drop for PodNode {
    fn drop(&mut self) {
        // Its tasks end within the runtime.
        let _guard = self.runtime.enter();
        self.kubelet = None;
    }
}

fn plugin(directory: &Path, state: &Path) -> Command {
    let mut command = Command::new("device-plugin");
    command.args(["--kubelet-settle", "0s", "--pod-namespace", "default", "--pod-name", OWN_POD]);
    for (flag, file) in [
        ("--config-file", "config.json"),
        ("--manager", "vf.sock"),
        ("--socket", "device-plugin.sock"),
        ("--cdi-dir", "cdi"),
        ("--device-info-dir", "devinfo"),
        ("--nsm-tokens", TOKENS),
    ] {
        command.arg(flag).arg(directory.join(file));
    }
    for (flag, path) in [("--plugins", PLUGINS), ("--pod-resources", POD_RESOURCES)] {
        command.arg(flag).arg(Path::new(KUBELET).join(path));
    }
    command.arg("--state").arg(state);
    command
}

/// Of the mesh, in the scenario's folder.
pub const TOKENS: &str = "tokens";
/// A list of pods without it is not believed.
const OWN_POD: &str = "device-plugin";
/// Where the kubelet's stand-in is.
const KUBELET: &str = "/run/kubelet";
const PLUGINS: &str = "device-plugins";
const POD_RESOURCES: &str = "pod-resources/kubelet.sock";
/// An emulated machine is slow, and one beside builds more so.
const DEADLINE: Duration = Duration::from_mins(2);
