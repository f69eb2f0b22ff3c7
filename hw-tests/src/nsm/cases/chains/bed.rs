//! What the cases of chains share: a firewall, passthroughs and an end, as an example has them, and their clients.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::TIMEOUT;
use crate::nsm::cases::wait_until;
use crate::nsm::chain::{ChainFunction, ChainPlan, PAGE, get, way};
use crate::nsm::mesh::{INTERFACE, Mesh, client_name};
use crate::nsm::pod::MeshPod;
use crate::nsm::programs::Maker;
use crate::process::Process;

/// A chain as one of the examples has it.
pub(super) struct ChainExample {
    /// Its service and who follows whom.
    pub(super) plan: ChainPlan,
    /// The settings of its firewall.
    pub(super) firewall: &'static str,
    /// Out of which its end gives addresses.
    pub(super) prefix: &'static str,
    /// The port that its firewall lets pass, and the one that it does not.
    pub(super) ports: [u16; 2],
}

pub(super) const SECURE_INTRANET: ChainExample = ChainExample {
    plan: ChainPlan {
        service: "secure-intranet-connectivity",
        apps: &["firewall", "passthrough-1", "passthrough-2", "passthrough-3", "gateway"],
        client: None,
        payload: "ETHERNET",
    },
    firewall: "firewall:\n  aclRules:\n    \"Allow ICMP\": \"action=reflect,icmptype=8\"\n    \"Allow TCP 80\": \
               \"action=reflect,tcplowport=80,tcpupport=80\"",
    prefix: "172.16.1.0/24",
    ports: [80, 8080],
};
/// All of them.
pub(super) const PASSTHROUGHS: [&str; 3] = ["passthrough-1", "passthrough-2", "passthrough-3"];

/// A chain of an example, without clients.
pub(super) struct FirewallChain {
    example: &'static ChainExample,
    /// By their names: another one of the same kind ends with `-b`.
    functions: Vec<(String, ChainFunction)>,
    end: Option<Process>,
    /// Where the end is.
    pub(super) end_pod: MeshPod,
}

impl FirewallChain {
    /// Registers the service, and starts the end, the firewall and these passthroughs.
    pub(super) fn start(mesh: &mut Mesh, example: &'static ChainExample, passthroughs: &[&str]) -> Result<Self> {
        example.plan.register(mesh)?;
        let mut chain = Self::new(example);
        chain.start_end(mesh)?;
        for name in ["firewall"].iter().chain(passthroughs) {
            chain.start_function(mesh, name)?;
        }
        Ok(chain)
    }

    /// Nothing of it is there yet.
    pub(super) fn new(example: &'static ChainExample) -> Self {
        Self { example, functions: Vec::new(), end: None, end_pod: MeshPod::new() }
    }

    /// Starts its end, in its place if it was killed.
    pub(super) fn start_end(&mut self, mesh: &mut Mesh) -> Result<()> {
        let ChainExample { plan, prefix, .. } = self.example;
        self.end = Some(plan.start_end(mesh, "gateway", &self.end_pod, prefix)?);
        Ok(())
    }

    pub(super) fn start_function(&mut self, mesh: &mut Mesh, name: &str) -> Result<()> {
        let app = name.trim_end_matches("-b");
        let settings = if app == "firewall" { self.example.firewall } else { "passthrough: {}" };
        self.functions.push((name.to_owned(), self.example.plan.start(mesh, app, name, settings)?));
        Ok(())
    }

    pub(super) fn function(&self, name: &str) -> Result<&ChainFunction> {
        let found = self.functions.iter().find(|(known, _)| known == name);
        found.map(|(_, function)| function).with_context(|| format!("there is no {name}"))
    }

    /// All that run, by their names.
    pub(super) fn processes(&self) -> impl Iterator<Item = (&str, &Process)> {
        let functions = self.functions.iter().map(|(name, function)| (name.as_str(), function.process()));
        functions.chain(self.end.as_ref().map(|end| ("gateway", end)))
    }

    /// Kills a function.
    pub(super) fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.functions.iter().position(|(known, _)| known == name);
        let (_, function) = self.functions.remove(at.with_context(|| format!("there is no {name}"))?);
        function.kill();
        Ok(())
    }

    /// Kills the end.
    pub(super) fn kill_end(&mut self) -> Result<()> {
        self.end.take().context("there is no end")?.kill();
        Ok(())
    }

    /// Connects clients.
    pub(super) fn connect(&self, mesh: &mut Mesh, count: usize) -> Result<Vec<ChainClient>> {
        let clients = start_clients(mesh, self.example, count)?;
        for client in &clients {
            mesh.wait_connected(&client.process);
        }
        Ok(clients)
    }

    /// Ends the clients: nothing is left of their connections.
    pub(super) fn close(self, mesh: &mut Mesh, clients: Vec<ChainClient>) -> Result<()> {
        for client in clients {
            client.process.stop();
            client.pod.wait_interfaces(0, TIMEOUT)?;
        }
        self.wait_empty(mesh)
    }

    /// Waits until nothing of a connection is there.
    pub(super) fn wait_empty(&self, mesh: &Mesh) -> Result<()> {
        self.end_pod.wait_interfaces(0, TIMEOUT)?;
        for node in mesh.nodes() {
            wait_until("no wire is left", || Ok(!node.has_wire()?))?;
        }
        Ok(())
    }
}

/// A client, in a namespace of its own.
pub(super) struct ChainClient {
    pub(super) process: Process,
    pub(super) pod: MeshPod,
    ports: [u16; 2],
}

/// Starts clients, and waits for nothing.
pub(super) fn start_clients(mesh: &mut Mesh, example: &ChainExample, count: usize) -> Result<Vec<ChainClient>> {
    let start = |number| {
        let pod = MeshPod::new();
        let process = example.plan.start_client(mesh, &pod, number)?;
        Ok(ChainClient { process, pod, ports: example.ports })
    };
    (0..count).map(start).collect()
}

impl ChainClient {
    /// The gateway's address, as the client's routes have it. Its interface may be another one meanwhile.
    pub(super) fn target(&self) -> Result<Ipv4Addr> {
        let routes = self.pod.netns().ip("route show");
        let route = routes.lines().find(|route| route.contains(&format!(" dev {INTERFACE} ")));
        let to = route.and_then(|route| route.split_whitespace().next());
        Ok(to.with_context(|| format!("the client's routes are {routes:?}"))?.parse()?)
    }

    pub(super) fn ping_once(&self, to: Ipv4Addr) -> Result<()> {
        let Output { status, .. } = self.pod.netns().ping(&format!("-c 1 -W 1 {to}")).output().context("run ping")?;
        ensure!(status.success(), "{to} does not answer");
        Ok(())
    }

    /// The open port gives the page. The other one is blocked, though a server listens there.
    pub(super) fn check_ports(&self, end: &MeshPod) -> Result<()> {
        let [open, shut] = self.ports;
        let target = self.target()?;
        let page = get(&self.pod, target, open, LIMIT)?;
        ensure!(page == PAGE, "port {open} of {target} gives {page:?}");
        let beside = get(end, target, shut, LIMIT)?;
        ensure!(beside == PAGE, "port {shut} of {target} gives {beside:?} to the end itself");
        match get(&self.pod, target, shut, LIMIT) {
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(()),
            other => bail!("port {shut} of {target}: {other:?}, and no timeout"),
        }
    }
}

/// The way of a client; none: the manager does not show it.
pub(super) fn way_of(mesh: &mut Mesh, number: usize) -> Result<Option<Vec<String>>> {
    if mesh.cast().manager == Maker::Go {
        return Ok(None);
    }
    way(mesh, &client_name(number)).map(Some)
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// As the check of the first example waits.
pub(super) const LIMIT: Duration = Duration::from_secs(3);
