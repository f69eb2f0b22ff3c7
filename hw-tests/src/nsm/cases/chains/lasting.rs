//! What stays of a chain as long as its connection, and what goes with it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ferrule_nsm::proto::connection::{Connection, Mechanism};

use super::bed::{FirewallChain, LIMIT, PASSTHROUGHS, SECURE_INTRANET, ms, start_clients};
use crate::TIMEOUT;
use crate::content::Content;
use crate::holdings::Holdings;
use crate::nsm::cases::few_lost;
use crate::nsm::cases::lasting::settled;
use crate::nsm::chain::{PAGE, get, serve_page, until};
use crate::nsm::driver::{DrivenClient, Driver, kernel, open};
use crate::nsm::mesh::{INTERFACE, Mesh};
use crate::nsm::pod::MeshPod;
use crate::nsm::programs::Maker;

/// Refreshes keep the whole path, also where another function or another end would do, and the data path.
pub(super) fn refreshes(mesh: &mut Mesh) -> Result<()> {
    let names = PASSTHROUGHS.into_iter().chain(["passthrough-3-b"]).collect::<Vec<_>>();
    let chain = FirewallChain::start(mesh, &SECURE_INTRANET, &names)?;
    let other_pod = MeshPod::new();
    let other_end = SECURE_INTRANET.plan.start_end(mesh, "gateway-b", &other_pod, "172.16.2.0/24")?;
    let client = DrivenChainClient::new(mesh)?;
    let mut known = client.first()?;
    let target = end_of(&known)?;
    let end_pod = if target.octets()[2] == 1 { &chain.end_pod } else { &other_pod };
    client.pod.wait_ping(&target.to_string(), TIMEOUT)?;
    let [mut near, mut far] = client.stream(end_pod, target)?;
    let before = (path_of(&known), client.pod.index(INTERFACE)?, end_pod.interfaces(), chain.joins(&names)?);
    let wires_before = mesh.near().wire_counts()?;
    let pings = client.pod.start_pings(&target.to_string());
    let (began, mut content) = (Instant::now(), Content::new(1));
    for number in 1..=REFRESHES {
        known = client.ask(known)?;
        let path = path_of(&known);
        ensure!(path == before.0, "refresh {number}: the path was {:?}, and is {path:?}", before.0);
        echo(&mut near, &mut far, &content.next(4096)).with_context(|| format!("TCP after refresh {number}"))?;
    }
    mesh.figure("a refresh of a chain takes", ms(began.elapsed() / REFRESHES), "ms");
    few_lost(pings.end()?)?;
    let after = (path_of(&known), client.pod.index(INTERFACE)?, end_pod.interfaces(), chain.joins(&names)?);
    ensure!(after == before, "path, interfaces, joints of the functions were {before:?} and are {after:?}");
    let wires = mesh.near().wire_counts()?;
    ensure!(wires.len() == 5 && wires.keys().eq(wires_before.keys()), "the wires were {wires_before:?}, are {wires:?}");
    for (name, was) in wires_before {
        let is = wires[&name];
        // One that was made anew would have lost its count.
        let is_same = is.generation == was.generation && is.frames >= was.frames + u64::from(REFRESHES);
        ensure!(is_same, "the wire {name} was {was:?} and is {is:?}");
    }
    client.driver.close(&client.client, known, &client.namespace)?;
    client.pod.wait_interfaces(0, TIMEOUT)?;
    other_pod.wait_interfaces(0, TIMEOUT)?;
    drop(other_end);
    chain.wait_empty(mesh)
}

/// One connection after the other: no process of the chain holds anything of them at the end.
pub(super) fn connects_and_closes(mesh: &mut Mesh) -> Result<()> {
    let chain = FirewallChain::start(mesh, &SECURE_INTRANET, &PASSTHROUGHS)?;
    let client = DrivenChainClient::new(mesh)?;
    let server = serve_page(&chain.end_pod, OPEN)?;
    // What a process opens once and keeps is not what this is about.
    client.use_and_close(client.first()?, &chain, mesh, true)?;
    let before = settled(|| chain.holdings(mesh), None)?;
    let began = Instant::now();
    for number in 1..=CONNECTS {
        client.use_and_close(client.another()?, &chain, mesh, number.is_multiple_of(4))?;
    }
    mesh.figure("a connection through a chain is made and closed within", ms(began.elapsed() / CONNECTS), "ms");
    let (after, _) = until("what was held is free again", || {
        let now = chain.holdings(mesh)?;
        let more = now.iter().find(|(name, now)| now.exceeds(&before[*name], KEPT_MAX));
        ensure!(more.is_none(), "after {CONNECTS} connections {more:?} holds more than before: {before:?}");
        Ok(now)
    })?;
    ensure!(after.len() == before.len(), "of {before:?} there is {after:?}");
    drop(server);
    Ok(())
}

/// Clients are there before the functions are, which come in no order: all reach the open port, and all that is theirs goes with them.
pub(super) fn clients_first(mesh: &mut Mesh) -> Result<()> {
    let clients = start_clients(mesh, &SECURE_INTRANET, CLIENTS)?;
    let mut chain = FirewallChain::new(&SECURE_INTRANET);
    chain.start_function(mesh, "passthrough-2")?;
    chain.start_function(mesh, "firewall")?;
    SECURE_INTRANET.plan.register(mesh)?;
    chain.start_function(mesh, "passthrough-3")?;
    chain.start_end(mesh)?;
    chain.start_function(mesh, "passthrough-1")?;
    let began = Instant::now();
    for client in &clients {
        mesh.wait_connected(&client.process);
    }
    mesh.figure("clients of a chain are connected after its last function", ms(began.elapsed()), "ms");
    let server = serve_page(&chain.end_pod, OPEN)?;
    for client in &clients {
        let target = client.target()?;
        let (page, _) = until("the page comes through", || Ok(get(&client.pod, target, OPEN, LIMIT)?))?;
        ensure!(page == PAGE, "port {OPEN} of {target} gives {page:?}");
    }
    mesh.figure("and all have reached port 80 after", ms(began.elapsed()), "ms");
    drop(server);
    let began = Instant::now();
    let (processes, pods): (Vec<_>, Vec<_>) = clients.into_iter().map(|client| (client.process, client.pod)).unzip();
    let stopping: Vec<_> = processes.into_iter().map(|process| thread::spawn(|| process.stop())).collect();
    for stopping in stopping {
        let said = stopping.join().map_err(|_| anyhow::anyhow!("a client does not stop"))?;
        ensure!(!said.contains("not closed"), "a client says {said}");
    }
    for pod in pods {
        pod.wait_interfaces(0, TIMEOUT)?;
    }
    chain.wait_empty(mesh)?;
    mesh.figure("all are closed after", ms(began.elapsed()), "ms");
    Ok(())
}

impl FirewallChain {
    /// How often ends of these functions were joined with a peer.
    fn joins(&self, names: &[&str]) -> Result<Vec<usize>> {
        let joins = |name: &&str| Ok(self.function(name)?.process().output().matches("connected: ").count());
        names.iter().map(joins).collect()
    }

    /// What its processes hold, and those of the node that are ours: one in Go has as many threads as it likes.
    fn holdings(&self, mesh: &Mesh) -> Result<BTreeMap<&str, Holdings>> {
        let node = ["forwarder", "manager"].into_iter().take(if mesh.cast().manager == Maker::Ours { 2 } else { 1 });
        let mut all: Vec<_> = self.processes().collect();
        for name in node {
            all.push((name, mesh.nodes()[0].process(name)?));
        }
        all.into_iter().map(|(name, process)| Ok((name, Holdings::of(process.id())?))).collect()
    }
}

/// A client of the first example that asks when a case wants it to.
struct DrivenChainClient {
    driver: Driver,
    client: DrivenClient,
    pod: MeshPod,
    namespace: Arc<OwnedFd>,
    wanted: Mechanism,
}

impl DrivenChainClient {
    fn new(mesh: &mut Mesh) -> Result<Self> {
        let (driver, pod) = (Driver::new(mesh)?, MeshPod::new());
        let namespace = open(&pod.netns().path())?;
        let (client, wanted) = (driver.client(0)?, kernel(&namespace, INTERFACE)?);
        Ok(Self { driver, client, pod, namespace, wanted })
    }

    /// The first connection, once the forwarder is registered.
    fn first(&self) -> Result<Connection> {
        Ok(until("a chain is made", || self.another())?.0)
    }

    /// A new connection.
    fn another(&self) -> Result<Connection> {
        let network_service = SECURE_INTRANET.plan.service.to_owned();
        self.ask(Connection { network_service, ..self.client.first()? })
    }

    fn ask(&self, connection: Connection) -> Result<Connection> {
        Ok(self.driver.ask(&self.client, connection, &self.wanted, &self.namespace)?)
    }

    /// Closes a connection, and waits until no interface and no wire of it is left.
    fn use_and_close(&self, known: Connection, chain: &FirewallChain, mesh: &Mesh, is_used: bool) -> Result<()> {
        if is_used {
            let target = end_of(&known)?;
            until("the page comes through", || Ok(get(&self.pod, target, OPEN, LIMIT)?))?;
        }
        self.driver.close(&self.client, known, &self.namespace)?;
        self.pod.wait_interfaces(0, TIMEOUT)?;
        chain.wait_empty(mesh)
    }

    /// A TCP connection to the open port of its end: our side and the other one.
    fn stream(&self, end: &MeshPod, target: Ipv4Addr) -> Result<[TcpStream; 2]> {
        let listener = end.netns().run(|| TcpListener::bind((target, OPEN)))?;
        let near = self.pod.netns().run(|| TcpStream::connect_timeout(&(target, OPEN).into(), TIMEOUT))?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(TIMEOUT))?;
        }
        Ok([near, far])
    }
}

/// There and back.
fn echo(near: &mut TcpStream, far: &mut TcpStream, content: &[u8]) -> Result<()> {
    let mut came = vec![0; content.len()];
    near.write_all(content)?;
    far.read_exact(&mut came)?;
    ensure!(came == content, "other bytes come out at the end");
    far.write_all(content)?;
    near.read_exact(&mut came)?;
    ensure!(came == content, "other bytes come back");
    Ok(())
}

/// Each process of the way, and what it calls the connection.
fn path_of(connection: &Connection) -> Vec<(String, String)> {
    let segments = connection.path.iter().flat_map(|path| &path.path_segments);
    segments.map(|segment| (segment.name.clone(), segment.id.clone())).collect()
}

/// The address of the end.
fn end_of(connection: &Connection) -> Result<Ipv4Addr> {
    let ip = connection.context.as_ref().and_then(|context| context.ip_context.as_ref()).context("no addresses")?;
    let address = ip.dst_ip_addrs.first().and_then(|address| address.split('/').next()).context("no address there")?;
    Ok(address.parse()?)
}

/// Clients at once.
pub(super) const CLIENTS: usize = 30;
/// The tenth is like the third. Some more, for what happens only now and then.
const REFRESHES: u32 = 20;
/// So many that what every second one leaves is more than [`KEPT_MAX`].
const CONNECTS: u32 = 20;
/// Connections to others and threads that a process keeps for the next work: fewer than one for each that was closed.
const KEPT_MAX: usize = 8;
const OPEN: u16 = 80;
