//! Network Service Mesh on VFs: pods get them by the device plugin, and show the forwarder their tokens.
//!
//! ```text
//!   namespace c: client, nsm-1 = VF of its token --- switch of the PF --- VF of its token = interface, endpoint: namespace e
//! ```

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sriov_manager_client::v1;

use crate::lab::forwarder::wait_until;
use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::Function;
use crate::lab::pods::{PodNode, TOKENS};
use crate::lab::scenario::Lab;
use crate::lab::testpmd;
use crate::process::Process;

use super::ip;
use super::wires::ping;

/// A kernel interface at either end; the forwarder is killed, the client closes it, or dies with its namespace.
pub fn kernel_by_tokens(lab: &Lab) -> Result<()> {
    let site = Site::start(lab)?;
    let forwarder = site.start_forwarder()?;
    let endpoint = site.start_endpoint();
    let client = site.start_client("kernel", "/nsm-1");
    client.wait_for("connected: ");
    lab.figure("VF to VF of one PF, by tokens: pings answered", ping("c", ENDPOINT, 20)?, "");
    let [near, far] = [&site.client, &site.endpoint].map(|pod| site.lease(&pod.vf));
    let (near, far) = (near?, far?);
    for lease in [&near, &far] {
        ensure!(lease.driver() == v1::Driver::Kernel, "{lease:?}");
    }
    let mac = near.attributes.clone().and_then(|told| told.mac).context("the PF was told of a MAC address")?;
    let shown = ip(&["-n", "c", "link", "show", "nsm-1"])?;
    ensure!(shown.contains(&mac), "the interface is the VF: {mac}, {shown}");
    let index = |shown: &str| shown.split(':').next().map(ToOwned::to_owned);
    // It is killed: what it has made works on, and the next one takes it over.
    let mut forwarder = forwarder;
    forwarder.kill();
    ping("c", ENDPOINT, 5)?;
    let forwarder = site.start_forwarder()?;
    client.wait_for_times("connected: ", 2);
    ping("c", ENDPOINT, 5)?;
    ensure!(index(&ip(&["-n", "c", "link", "show", "nsm-1"])?) == index(&shown), "it was made anew");
    // Closed: both VFs are what the plugin has lent them as.
    client.stop();
    site.until_back()?;
    // The client dies, and its namespace with it: when its token has run out.
    let mut client = site.start_client("kernel", "/nsm-1");
    client.wait_for("connected: ");
    ping("c", ENDPOINT, 5)?;
    client.kill();
    ip(&["netns", "del", "c"])?;
    site.until_back()?;
    // The forwarder dies before: the next one gives back what nobody asks for.
    ip(&["netns", "add", "c"])?;
    let mut client = site.start_client("kernel", "/nsm-1");
    client.wait_for("connected: ");
    let mut forwarder = forwarder;
    forwarder.kill();
    client.kill();
    ip(&["netns", "del", "c"])?;
    let _forwarder = site.start_forwarder()?;
    site.until_back()?;
    drop(endpoint);
    site.end()
}

/// A VF on VFIO, which DPDK drives, and an interface at the other end.
pub fn vfio_by_token(lab: &Lab) -> Result<()> {
    let site = Site::start(lab)?;
    let _forwarder = site.start_forwarder()?;
    let endpoint = site.start_endpoint();
    let client = site.start_client("vfio", "");
    client.wait_for(&format!(", {} with ", site.client.vf.address));
    let group = site.client.vf.iommu_group().context("a VF on vfio-pci has a group")?;
    fs::OpenOptions::new().read(true).write(true).open(format!("/dev/vfio/{group}")).context("open its group")?;
    let testpmd =
        testpmd::start(&[&site.client.vf], &["--forward-mode=icmpecho".to_owned(), "--auto-start".to_owned()])?;
    // It answers for every address.
    lab.figure("VF on VFIO by a token: pings answered", ping("e", CLIENT, 20)?, "");
    testpmd::quit(testpmd);
    client.stop();
    site.until_back()?;
    drop(endpoint);
    site.end()
}

/// A node with two pods and a mesh.
struct Site {
    node: PodNode,
    directory: PathBuf,
    _mesh: [Process; 2],
    client: TokenPod,
    endpoint: TokenPod,
}

/// A pod that has a VF.
struct TokenPod {
    vf: Function,
    tokens: String,
}

impl Site {
    fn start(lab: &Lab) -> Result<Self> {
        let pf = &lab.pfs[0];
        let manager = Manager::start(lab, &ManagerOptions { quiet: true, ..ManagerOptions::default() })?;
        manager.create(&lab.pfs[..1], 2)?;
        ip(&["link", "set", &pf.interface().context("a PF has an interface")?, "up"])?;
        let config = format!(
            "physicalFunctions:\n  \"{}\":\n    pfKernelDriver: igb\n    vfKernelDriver: igbvf\n    capabilities: [10G]\n    \
             serviceDomains: [worker.domain]\n",
            pf.address
        );
        let directory = lab.state();
        fs::write(directory.join("pci.config"), &config).context("write the SR-IOV configuration")?;
        let node = PodNode::start(lab, manager, &config, &directory.join("plugin"))?;
        node.until_healthy(RESOURCE, 2)?;
        let pod = |name: &str| -> Result<TokenPod> {
            let answer = node.admit(name, RESOURCE)?;
            node.start_container(name)?;
            let tokens = answer.envs.get(VARIABLE).context("a pod has a token")?.clone();
            Ok(TokenPod { vf: Function { address: node.device_of(name)? }, tokens })
        };
        let (client, endpoint) = (pod("client")?, pod("endpoint")?);
        for netns in ["c", "e"] {
            ip(&["netns", "add", netns])?;
        }
        let identities = {
            let mut command = Command::new("ferrule");
            command.args(["nsm", "identities", "--directory"]).arg(directory.join("identity"));
            let process = Process::start(command.args(["nsmgr", "fwd", "nse", "nsc"]));
            process.wait_for("identities of");
            process
        };
        let mut command = Command::new("ferrule");
        command.args(["nsm", "manager"]).args(RELAYS);
        set(&mut command, &directory, "nsmgr");
        command.env("NSM_LISTEN_ON", url(&directory, "nsm.io"));
        let manager = Process::start(&mut command);
        wait_until("the mesh has a manager", || directory.join("nsm.io.sock").exists())?;
        Ok(Self { node, directory, _mesh: [identities, manager], client, endpoint })
    }

    fn start_forwarder(&self) -> Result<Process> {
        let file = self.directory.join("mesh.yaml");
        let at = |name: &str| self.directory.join(name).display().to_string();
        let text = format!(
            "sriov_manager: {}\nnsm:\n  sriov_tokens: {}\n  sriov_state: {}\nwires: []\n",
            at("vf.sock"),
            at(TOKENS),
            at(USED)
        );
        fs::write(&file, text).context("write the forwarder's file")?;
        let mut command = Command::new("dpdk-forwarder");
        command.arg("--config").arg(&file).arg("--socket").arg(self.directory.join("mesh-admin.sock"));
        set(&mut command, &self.directory, "fwd");
        command.env("NSM_LISTEN_ON", url(&self.directory, "fwd")).env("NSM_SRIOV_CONFIG_FILE", at("pci.config"));
        let process = Process::start(&mut command);
        process.wait_for("a forwarder of the mesh");
        Ok(process)
    }

    fn start_endpoint(&self) -> Process {
        let mut command = inside("e");
        command.args(["ferrule", "nsm", "endpoint", "--prefix", "172.16.1.0/24", "--service", SERVICE]).args(RELAYS);
        command.arg("--listen-on").arg(self.directory.join("nse.sock"));
        set(&mut command, &self.directory, "nse");
        let process = Process::start(command.env(VARIABLE, &self.endpoint.tokens));
        process.wait_for(": registered");
        process
    }

    fn start_client(&self, kind: &str, interface: &str) -> Process {
        let mut command = inside("c");
        command.args(["ferrule", "nsm", "client"]).arg(format!("{kind}://{SERVICE}{interface}?sriovToken={RESOURCE}"));
        set(&mut command, &self.directory, "nsc");
        Process::start(command.env(VARIABLE, &self.client.tokens))
    }

    fn lease(&self, vf: &Function) -> Result<v1::Lease> {
        self.node.manager().vf(vf)?.lease.context("it is lent")
    }

    /// Waits until both VFs are what the plugin has lent them as, and nothing is written of them any more.
    fn until_back(&self) -> Result<()> {
        for pod in [&self.client, &self.endpoint] {
            wait_until(&format!("{} is its pod's as before", pod.vf.address), || {
                let plain = |lease: v1::Lease| {
                    lease.driver() == v1::Driver::VfioPci
                        && lease.attributes.unwrap_or_default() == v1::Attributes::default()
                };
                pod.vf.driver().as_deref() == Some("vfio-pci") && self.lease(&pod.vf).is_ok_and(plain)
            })?;
        }
        wait_until("nothing is written of VFs", || {
            let entries = fs::read_dir(self.directory.join(USED)).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name()).all(|name| name == "forwarder.lock")
        })
    }

    fn end(self) -> Result<()> {
        for netns in ["c", "e"] {
            // The client's may have gone with it.
            let _ = ip(&["netns", "del", netns]);
        }
        for name in ["client", "endpoint"] {
            self.node.kubelet().end_pod(name);
        }
        self.node.until_told(RESOURCE, "all are free", |told| told.free().count() == 2)?;
        wait_until("tokens of pods that have gone mean nothing", || {
            fs::read_dir(self.directory.join(TOKENS)).is_ok_and(|tokens| tokens.count() == 0)
        })
    }
}

fn inside(netns: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]);
    command
}

fn url(directory: &std::path::Path, name: &str) -> String {
    format!("unix://{}", directory.join(format!("{name}.sock")).display())
}

/// What each process of the mesh is told.
fn set(command: &mut Command, directory: &std::path::Path, name: &str) {
    let identity = directory.join("identity").join(format!("{name}.sock"));
    command.env("NSM_NAME", name).env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", identity.display()));
    command.env("NSM_CONNECT_TO", url(directory, "nsm.io")).env("NSM_DIAL_TIMEOUT", "10s");
    // A client that died is missed soon. An emulated machine is slow.
    command.env("NSM_MAX_TOKEN_LIFETIME", "60s").env("NSM_REQUEST_TIMEOUT", "30s");
}

const RESOURCE: &str = "worker.domain/10G";
const VARIABLE: &str = "NSM_SRIOV_TOKENS_worker.domain/10G";
const SERVICE: &str = "pingable";
const ENDPOINT: &str = "172.16.1.0";
const CLIENT: &str = "172.16.1.1";
const RELAYS: [&str; 4] = ["--relay", "spiffe://ferrule.local/nsmgr", "--relay", "spiffe://ferrule.local/fwd"];
/// Where the forwarder writes what VFs were.
const USED: &str = "nsm-vfs";
