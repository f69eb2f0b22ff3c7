//! The daemons of a node, and a stand-in for its kubelet.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use ferrule_kubelet::KUBELET_SOCKET;
use ferrule_kubelet::stand_in::{Kubelet, Options, Refusal, Release};
use ferrule_kubelet::v1beta1::ContainerAllocateResponse;
use tokio::runtime::Handle;

use crate::admin::Admin;
use crate::admin::proto::Wire;
use crate::demo::daemon::{Daemon, Launch};
use crate::demo::testbed::Testbed;
use crate::demo::{DemoError, Stop, plan};

/// A node without a NIC. What is declared first ends first: the plugin before whom it asks.
pub(super) struct DemoNode<'a> {
    handle: &'a Handle,
    plugin: Daemon,
    pub(super) kubelet: Kubelet,
    admin: Admin,
    forwarder: Daemon,
}

impl<'a> DemoNode<'a> {
    /// Starts the forwarder, the kubelet's stand-in and the plugin, in this order.
    pub(super) fn start(
        [forwarder, plugin]: [PathBuf; 2],
        cpu: usize,
        testbed: &Testbed,
        handle: &'a Handle,
        stop: &Stop,
    ) -> Result<Self, DemoError> {
        let admin = plan::admin_socket(testbed);
        let file = format!("workers: [{cpu}]\nsocket: {}\nwires: []\n", admin.display());
        let launch = plan::forwarder(testbed, "forwarder", forwarder, &file)?;
        let mut forwarder = Daemon::start(launch, testbed, stop, |mut command| command.spawn())?;
        let admin = handle.block_on(Admin::connect(&admin)).map_err(|error| forwarder.error(&error.to_string()))?;
        let kubelet = start_kubelet(testbed, handle)?;
        let plugin = Daemon::start(plugin_launch(testbed, plugin)?, testbed, stop, |mut command| command.spawn())?;
        Ok(Self { handle, plugin, kubelet, admin, forwarder })
    }

    /// Admits a pod's only container, as a kubelet does, and asks the plugin before its start.
    pub(super) fn run_pod(&self, pod: &str, resource: &str) -> Result<ContainerAllocateResponse, String> {
        let admitted = async {
            let answer = self.kubelet.admit(pod, CONTAINER, resource, 1).await?;
            self.kubelet.start_container(pod, CONTAINER).await?;
            Ok(answer)
        };
        self.handle.block_on(admitted).map_err(|error: Refusal| error.to_string())
    }

    /// The forwarder's wires.
    pub(super) fn wires(&mut self) -> Result<Vec<Wire>, DemoError> {
        let answer = self.handle.block_on(self.admin.list());
        answer.map(|answer| answer.wires).map_err(|error| self.forwarder.error(&error.to_string()))
    }

    /// Devices that the kubelet may give away.
    pub(super) fn healthy(&self) -> Vec<String> {
        RESOURCES.iter().flat_map(|resource| self.kubelet.healthy(resource)).collect()
    }

    /// An error of a step, with what the plugin logged.
    pub(super) fn failed(&mut self, step: &'static str, problem: &str) -> DemoError {
        let log = self.plugin.log().join("\n  ");
        DemoError::Step { step, problem: format!("{problem}; the plugin's log:\n  {log}") }
    }

    /// Ends the daemons as an administrator would, and wants them to end well.
    pub(super) fn stop(self) -> Result<(), DemoError> {
        self.plugin.stop()?;
        self.forwarder.stop()
    }
}

fn start_kubelet(testbed: &Testbed, handle: &Handle) -> Result<Kubelet, DemoError> {
    let _runtime = handle.enter();
    let options = Options {
        plugins: testbed.directory().join(PLUGINS),
        pod_resources: testbed.directory().join(PODS).join(KUBELET_SOCKET),
        release: Release::V1_37,
    };
    let kubelet = Kubelet::start(options).map_err(|error| DemoError::testbed("start the kubelet's stand-in", error))?;
    // What the plugin looks for before it believes a list of pods.
    kubelet.run_pod(PLUGIN_POD);
    Ok(kubelet)
}

fn plugin_launch(testbed: &Testbed, program: PathBuf) -> Result<Launch, DemoError> {
    let directory = testbed.directory();
    let config = directory.join("config.json");
    fs::write(&config, CONFIG).map_err(|error| DemoError::testbed(format!("write {}", config.display()), error))?;
    let files = BTreeMap::from([
        ("--config-file", config),
        ("--forwarder", plan::admin_socket(testbed)),
        ("--software-dir", directory.join("software")),
        ("--manager", directory.join("vf.sock")),
        // Not that of a plugin which serves this machine.
        ("--socket", directory.join("device-plugin.sock")),
        ("--plugins", directory.join(PLUGINS)),
        ("--pod-resources", directory.join(PODS).join(KUBELET_SOCKET)),
        ("--state", directory.join("state")),
        ("--cdi-dir", directory.join("cdi")),
        ("--device-info-dir", directory.join("devinfo")),
    ]);
    let mut arguments: Vec<_> =
        files.into_iter().flat_map(|(option, path)| [option.into(), path.into_os_string()]).collect();
    let words = ["--kubelet-settle", "0s", "--pod-namespace", "default", "--pod-name", PLUGIN_POD];
    arguments.extend(words.map(Into::into));
    Ok(Launch { name: "device-plugin", program, arguments })
}

/// What pods ask for: a memif socket.
pub(super) const PORT: &str = "example.com/port";
/// And what those do that run virtual machines: a vhost-user socket.
pub(super) const GUEST: &str = "example.com/guest";
/// Both.
pub(super) const RESOURCES: [&str; 2] = [PORT, GUEST];
const CONFIG: &str = r#"{"resourceList": [
  {"resourcePrefix": "example.com", "resourceName": "port", "software": 4},
  {"resourcePrefix": "example.com", "resourceName": "guest", "software": {"count": 2, "kind": "vhost-user"}}
]}
"#;
/// As many as the configuration says.
pub(super) const ENDPOINTS: usize = 6;
const CONTAINER: &str = "sidecar";
const PLUGIN_POD: &str = "device-plugin";
const PLUGINS: &str = "device-plugins";
const PODS: &str = "pod-resources";
