//! The processes of one node.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::pod::MeshPod;
use super::programs::{Maker, go, ours};
use super::settings::{INTERFACE, MeshOptions, MeshSettings, SERVICE, client_name};
use crate::holdings::Holdings;
use crate::process::Process;

/// A node: a manager and our forwarder, in a namespace that stands for the node's own. All of it ends with this value.
pub struct MeshNode {
    number: usize,
    common: Arc<MeshSettings>,
    processes: BTreeMap<&'static str, Process>,
    place: MeshPod,
}

/// How often a wire was changed, and what has crossed since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireCount {
    /// Another one after each change.
    pub generation: u64,
    /// Both ways together.
    pub frames: u64,
}

impl MeshNode {
    pub(super) fn new(number: usize, common: Arc<MeshSettings>) -> Self {
        Self { number, common, processes: BTreeMap::new(), place: MeshPod::new() }
    }

    /// Gives each node its address, and connects two of them.
    pub(super) fn join(nodes: &[Self]) {
        if let [near, far] = nodes {
            let (near_pod, far_pod) = (near.place.netns(), far.place.netns());
            near_pod.ip(&format!("link add {UPLINK} type veth peer name {UPLINK} netns {}", far_pod.name()));
        } else {
            // It is asked for by its address alone.
            for node in nodes {
                node.place.netns().ip(&format!("link add {UPLINK} type veth peer name nobody"));
            }
        }
        for node in nodes {
            let (netns, address) = (node.place.netns(), node.address());
            netns.ip(&match address {
                IpAddr::V4(address) => format!("address add {address}/24 dev {UPLINK}"),
                IpAddr::V6(address) => format!("address add {address}/64 dev {UPLINK} nodad"),
            });
            netns.ip(&format!("link set {UPLINK} up"));
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            netns.ip(&format!("{family} route add default dev {UPLINK}"));
        }
    }

    /// The address of a node.
    pub(super) fn address_of(number: usize, options: &MeshOptions) -> IpAddr {
        if options.is_ipv6 {
            return Ipv6Addr::new(0xfd00, 0xfe44, 0, 0, 0, 0, 0, number as u16).into();
        }
        Ipv4Addr::new(10, 255, 0, number as u8).into()
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        Self::address_of(self.number, &self.common.options)
    }

    /// The namespace that stands for the node's own.
    pub fn place(&self) -> &MeshPod {
        &self.place
    }

    /// The manager's name, and that of its identity.
    pub fn manager_name(&self) -> String {
        format!("nsmgr-{}", self.number)
    }

    /// The forwarder's name, and that of its identity.
    pub fn forwarder_name(&self) -> String {
        format!("fwd-{}", self.number)
    }

    /// Starts the manager.
    pub fn start_manager(&mut self) -> Result<()> {
        let mut command = match self.common.cast.manager {
            Maker::Ours => {
                let mut command = self.place.command(&ours("ferrule")?);
                command.args(["nsm", "manager", "--observer", "spiffe://ferrule.local/ferrule"]);
                command.args(self.common.relays());
                command
            }
            Maker::Go => self.place.command(&go("nsmgr")?),
        };
        self.common.set(&mut command, &self.manager_name());
        let reached = SocketAddr::new(self.address(), MANAGER_PORT);
        command.env("NSM_LISTEN_ON", format!("{},tcp://{reached}", self.manager_url()));
        if let Some(registry) = &self.common.registry {
            command.env("NSM_REGISTRY_URL", registry);
        }
        self.common.set_traces(&mut command, self.address());
        let process = Process::start(&mut command);
        process.wait_for(match self.common.cast.manager {
            Maker::Ours => ":5001",
            Maker::Go => "Startup completed",
        });
        self.processes.insert("manager", process);
        Ok(())
    }

    /// Starts our forwarder, and waits until it serves. It is registered soon afterwards.
    pub fn start_forwarder(&mut self) -> Result<()> {
        let mut command = self.place.command(&ours("dpdk-forwarder")?);
        command.arg("--socket").arg(self.socket("admin"));
        self.common.set(&mut command, &self.forwarder_name());
        command.env("NSM_LISTEN_ON", self.forwarder_url()).env("NSM_CONNECT_TO", self.manager_url());
        // The second one finds it out.
        if self.number == 1 {
            command.env("NSM_TUNNEL_IP", self.address().to_string());
        }
        self.common.set_traces(&mut command, self.address());
        if let Some(selector) = self.common.options.device_selector {
            let path = self.common.path("device-selector.yaml");
            fs::write(&path, selector).context("write the device selector")?;
            command.env("NSM_DEVICE_SELECTOR_FILE", path);
        }
        let process = Process::start(&mut command);
        process.wait_for("a forwarder of the mesh");
        self.processes.insert("forwarder", process);
        Ok(())
    }

    /// Starts an endpoint of the service in a namespace, and waits until it is registered.
    pub fn start_endpoint(&mut self, pod: &MeshPod, prefixes: &str, payload: &str) -> Result<()> {
        self.start_endpoint_of(pod, prefixes, payload, None)
    }

    /// The same of one of ours, which has these mechanisms.
    pub fn start_endpoint_of(
        &mut self,
        pod: &MeshPod,
        prefixes: &str,
        payload: &str,
        mechanisms: Option<&str>,
    ) -> Result<()> {
        let mut command = match self.common.cast.endpoint {
            Maker::Ours => {
                let mut command = pod.command(&ours("ferrule")?);
                command.args(["nsm", "endpoint"]).args(self.common.relays());
                command.arg("--listen-on").arg(self.common.path("nse.sock"));
                command.args(mechanisms.iter().flat_map(|mechanisms| ["--mechanism", mechanisms]));
                command
            }
            Maker::Go => pod.command(&go("nse-icmp-responder")?),
        };
        self.common.set(&mut command, "nse");
        command.env("NSM_SERVICE_NAMES", SERVICE).env("NSM_CIDR_PREFIX", prefixes).env("NSM_PAYLOAD", payload);
        command.env("NSM_CONNECT_TO", self.manager_url());
        let process = Process::start(&mut command);
        process.wait_for(match self.common.cast.endpoint {
            Maker::Ours => ": registered",
            Maker::Go => "startup completed",
        });
        self.processes.insert("endpoint", process);
        Ok(())
    }

    /// Starts a client in a namespace. Its interface is `nsm-1`.
    pub fn start_client(&self, pod: &MeshPod, number: usize) -> Result<Process> {
        self.start_client_of(pod, number, &format!("kernel://{SERVICE}/{INTERFACE}"))
    }

    /// Starts a client of this url.
    pub fn start_client_of(&self, pod: &MeshPod, number: usize, url: &str) -> Result<Process> {
        let mut command = match self.common.cast.client {
            Maker::Ours => {
                let mut command = pod.command(&ours("ferrule")?);
                command.args(["nsm", "client"]);
                command
            }
            Maker::Go => {
                let mut command = pod.command(&go("nsc")?);
                command.env("NSM_LOCAL_DNS_SERVER_ENABLED", "false");
                command
            }
        };
        self.common.set(&mut command, &client_name(number));
        command.env("NSM_NETWORK_SERVICES", url).env("NSM_CONNECT_TO", self.manager_url());
        Ok(Process::start(&mut command))
    }

    /// Kills a process: `forwarder`, `manager` or `endpoint`.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let mut process = self.processes.remove(name).with_context(|| format!("there is no {name}"))?;
        process.kill();
        Ok(())
    }

    /// Stops a process as whoever runs it does, and waits for its end.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        self.processes.remove(name).with_context(|| format!("there is no {name}"))?.stop();
        Ok(())
    }

    /// A process that runs.
    pub fn process(&self, name: &str) -> Result<&Process> {
        self.processes.get(name).with_context(|| format!("there is no {name}"))
    }

    /// How many files a process has open.
    pub fn open_files(&self, name: &str) -> Result<usize> {
        Ok(Holdings::of(self.process(name)?.id())?.files)
    }

    /// How many of them are sockets.
    pub fn open_sockets(&self, name: &str) -> Result<usize> {
        let directory = format!("/proc/{}/fd", self.process(name)?.id());
        let files = fs::read_dir(&directory).with_context(|| format!("read {directory}"))?;
        // One that was closed meanwhile is none.
        let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        Ok(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count())
    }

    /// Kilobytes of memory that a process has.
    pub fn resident(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process(name)?.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    /// What `ferrule nsm` shows.
    pub fn shown(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(ours("ferrule")?);
        command.arg("nsm").args(arguments);
        self.common.set(&mut command, "ferrule");
        command.env("NSM_CONNECT_TO", self.manager_url());
        run(&mut command)
    }

    /// The wires that the forwarder has.
    pub fn wires(&self) -> Result<String> {
        run(Command::new(ours("ferrule")?).args(["wires", "--json", "--socket"]).arg(self.admin_socket()))
    }

    /// The wires by their names.
    pub fn wire_counts(&self) -> Result<BTreeMap<String, WireCount>> {
        let json: serde_json::Value = serde_json::from_str(&self.wires()?)?;
        let wires = json["wires"].as_array().context("no wires are shown")?;
        let count = |wire: &serde_json::Value| {
            let directions = wire["directions"].as_array()?.iter();
            let frames = directions.filter_map(|direction| direction["frames"].as_u64()).sum();
            Some((wire["name"].as_str()?.to_owned(), WireCount { generation: wire["generation"].as_u64()?, frames }))
        };
        wires.iter().map(|wire| count(wire).with_context(|| format!("what is shown of a wire is {wire}"))).collect()
    }

    /// Where the forwarder is asked for its wires.
    pub fn admin_socket(&self) -> std::path::PathBuf {
        self.socket("admin")
    }

    /// Whether the forwarder has a wire of the mesh.
    pub fn has_wire(&self) -> Result<bool> {
        Ok(self.wires()?.contains("nsm-"))
    }

    /// Prints what the node's processes have printed.
    pub(super) fn show_logs(&self, case: &str) {
        for (name, process) in &self.processes {
            eprintln!("--- {case}: {name} of node {} has printed:\n{}\n---", self.number, process.output());
        }
    }

    /// Where the forwarder serves.
    pub fn forwarder_url(&self) -> String {
        format!("unix://{}", self.socket("fwd").display())
    }

    /// Where the manager serves those of its node.
    pub fn manager_url(&self) -> String {
        format!("unix://{}", self.socket("nsm.io").display())
    }

    fn socket(&self, name: &str) -> std::path::PathBuf {
        self.common.path(&format!("{name}-{}.sock", self.number))
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// The interface by which nodes reach each other.
const UPLINK: &str = "uplink";
const MANAGER_PORT: u16 = 5001;
