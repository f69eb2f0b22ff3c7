//! A mesh of one node or of two: identities, a registry, and on each node a manager and our forwarder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::node::MeshNode;
use super::pod::MeshPod;
use super::programs::{Cast, Maker, go, ours};
use super::settings::MeshSettings;
pub use super::settings::{INTERFACE, MeshOptions, SERVICE, client_name};
use crate::TIMEOUT;
use crate::lab::scenario::Figure;
use crate::process::Process;

/// A mesh. All of it ends with this value.
pub struct Mesh {
    /// What all of its processes are told.
    pub(super) common: Arc<MeshSettings>,
    /// The first has the clients, the last one the endpoint.
    nodes: Vec<MeshNode>,
    shared: BTreeMap<&'static str, Process>,
    /// What was measured.
    pub figures: Vec<Figure>,
}

impl Mesh {
    /// Starts all of it, and waits until the forwarders serve.
    pub fn start(cast: Cast, options: MeshOptions) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nsm-").tempdir().context("make a directory")?;
        let is_needed = cast.registry.is_some() || options.nodes > 1;
        let registry = SocketAddr::new(MeshNode::address_of(1, &options), REGISTRY_PORT);
        let registry = is_needed.then(|| format!("tcp://{registry}"));
        let common = Arc::new(MeshSettings { directory, cast, options, registry });
        let nodes = (1..=options.nodes).map(|number| MeshNode::new(number, Arc::clone(&common))).collect();
        let mut mesh = Self { common, nodes, shared: BTreeMap::new(), figures: Vec::new() };
        MeshNode::join(&mesh.nodes);
        mesh.start_identities()?;
        mesh.start_registry()?;
        for node in &mut mesh.nodes {
            node.start_manager()?;
            node.start_forwarder()?;
        }
        Ok(mesh)
    }

    /// The node of the clients.
    pub fn near(&mut self) -> &mut MeshNode {
        self.nodes.first_mut().expect("there is a node")
    }

    /// The node of the endpoint: the same one, if there is one only.
    pub fn far(&mut self) -> &mut MeshNode {
        self.nodes.last_mut().expect("there is a node")
    }

    /// All of them.
    pub fn nodes(&self) -> &[MeshNode] {
        &self.nodes
    }

    /// Whether clients and endpoint are on different nodes.
    pub fn is_remote(&self) -> bool {
        self.nodes.len() > 1
    }

    fn start_identities(&mut self) -> Result<()> {
        let mut command = Command::new(ours("ferrule")?);
        let lifetime = self.common.options.certificates.as_secs();
        command.args(["nsm", "identities", "--lifetime"]).arg(format!("{lifetime}s"));
        command.arg("--directory").arg(self.path("identity")).args(["registry", "nse", "ferrule", "stranger"]);
        command.args(["firewall", "passthrough-1", "passthrough-2", "passthrough-3", "gateway", "nat44", "webserver"]);
        command.args(["vpn-gateway", "nptv6"]);
        command.args(self.nodes.iter().flat_map(|node| [node.manager_name(), node.forwarder_name()]));
        // One more for whoever comes later.
        command.args((0..=self.common.options.clients).map(client_name));
        let process = Process::start(&mut command);
        process.wait_for("identities of");
        self.shared.insert("identities", process);
        Ok(())
    }

    /// Starts the registry, if it is a process of its own.
    pub fn start_registry(&mut self) -> Result<()> {
        let Some(url) = self.common.registry.clone() else { return Ok(()) };
        let place = self.nodes.first().expect("there is a node").place();
        let mut command = match self.common.cast.registry.unwrap_or_default() {
            Maker::Ours => {
                let mut command = place.command(&ours("ferrule")?);
                command.args(["nsm", "registry"]).args(self.common.relays());
                command
            }
            Maker::Go => place.command(&go("registry-memory")?),
        };
        self.common.set(&mut command, "registry");
        command.env("NSM_LISTEN_ON", url);
        let process = Process::start(&mut command);
        process.wait_for(match self.common.cast.registry.unwrap_or_default() {
            Maker::Ours => "registry on",
            Maker::Go => "Startup completed",
        });
        self.shared.insert("registry", process);
        Ok(())
    }

    /// Kills the registry.
    pub fn kill_registry(&mut self) -> Result<()> {
        self.shared.remove("registry").context("there is no registry")?.kill();
        Ok(())
    }

    /// Connects a first client and the endpoint, in namespaces of their own.
    pub fn connect(&mut self, prefixes: &str, payload: &str) -> Result<Pair> {
        let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
        self.far().start_endpoint(&endpoint_pod, prefixes, payload)?;
        let client = self.near().start_client(&client_pod, 0)?;
        self.wait_connected(&client);
        Ok(Pair { client, client_pod, endpoint_pod })
    }

    /// Starts a client beside the first ones.
    pub fn start_other_client(&mut self, pod: &MeshPod) -> Result<Process> {
        let number = self.common.options.clients;
        self.near().start_client(pod, number)
    }

    /// Waits until a client is connected.
    pub fn wait_connected(&self, client: &Process) {
        client.wait_for(self.connected());
    }

    /// Whether a client has been connected.
    pub fn is_connected(&self, client: &Process) -> bool {
        client.output().contains(self.connected())
    }

    fn connected(&self) -> &'static str {
        match self.common.cast.client {
            Maker::Ours => "connected: ",
            Maker::Go => "successfully connected to",
        }
    }

    /// What its connections carry.
    pub fn payload(&self) -> &'static str {
        self.common.options.payload
    }

    /// Who plays which role.
    pub fn cast(&self) -> Cast {
        self.common.cast
    }

    /// Puts a figure into the report.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.figures.push(Figure { name: name.to_owned(), value, unit: unit.to_owned() });
    }

    /// Prints what its processes have printed.
    pub fn show_logs(&self, case: &str) {
        for (name, process) in &self.shared {
            eprintln!("--- {case}: {name} has printed:\n{}\n---", process.output());
        }
        for node in &self.nodes {
            node.show_logs(case);
        }
    }

    /// A path in the directory of the mesh.
    pub fn path(&self, name: &str) -> PathBuf {
        self.common.path(name)
    }
}

/// A client and the endpoint, connected.
pub struct Pair {
    /// The client's process.
    pub client: Process,
    /// Where it is.
    pub client_pod: MeshPod,
    /// Where the endpoint is.
    pub endpoint_pod: MeshPod,
}

impl Pair {
    /// Stops the client, and waits until no interface is left at either end.
    pub fn close(self) -> Result<()> {
        self.client.stop();
        self.client_pod.wait_interfaces(0, TIMEOUT)?;
        self.endpoint_pod.wait_interfaces(0, TIMEOUT)
    }
}

const REGISTRY_PORT: u16 = 5002;
