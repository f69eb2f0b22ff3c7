//! The two example chains, composed by the mesh: our functions are its endpoints, with kernel interfaces at the ends and memif between.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::wait_until;
use crate::TIMEOUT;
use crate::nsm::chain::{ChainFunction, ChainPlan, PAGE, get, serve_page, start_trace, trace, until, way};
use crate::nsm::mesh::{INTERFACE, Mesh, client_name};
use crate::nsm::pod::MeshPod;
use crate::nsm::programs::Maker;
use crate::process::Process;

/// A client reaches a gateway through a firewall and three passthroughs, two clients at once.
pub(super) fn secure_intranet(mesh: &mut Mesh) -> Result<()> {
    let chain = SecureIntranet::start(mesh, &["passthrough-1", "passthrough-2", "passthrough-3"])?;
    let clients = connect(mesh, 2)?;
    let servers = [OPEN, SHUT].map(|port| serve_page(&chain.gateway_pod, port));
    for (number, client) in clients.iter().enumerate() {
        ensure!(client.process.output().contains(" by firewall, "), "who serves it is {}", client.process.output());
        if let Some(way) = way_of(mesh, number)? {
            let hops = ["firewall", "passthrough-1", "passthrough-2", "passthrough-3", "gateway"];
            let wanted = hops.iter().flat_map(|hop| ["nsmgr-1", "fwd-1", hop]);
            ensure!(way[1..].iter().eq(wanted), "client {number} goes through {way:?}");
        }
    }
    for client in &clients {
        client.pod.netns().ping_all(&client.target()?.to_string(), 5, 1400);
        client.check_ports(&chain.gateway_pod)?;
    }
    trace_wire(mesh, &clients[0])?;
    trace_firewall(&chain, &clients[0])?;
    drop(servers);
    chain.close(mesh, clients)
}

/// The wire of a client is traced while it pings.
fn trace_wire(mesh: &mut Mesh, client: &ChainClient) -> Result<()> {
    let json: serde_json::Value = serde_json::from_str(&mesh.near().wires()?)?;
    let wires = json["wires"].as_array().context("no wires are shown")?;
    let names = wires.iter().filter_map(|wire| wire["name"].as_str());
    let socket = mesh.near().admin_socket();
    // Of both clients, and of each hop: those of this client see its pings.
    let traces: Vec<_> = names
        .map(|name| start_trace(&socket, &[name, "--protocol", "icmp", "--frames", "2", "--snap", "128"]))
        .collect::<Result<_>>()?;
    let target = client.target()?.to_string();
    let pings = client.pod.start_pings(&target);
    until("five wires carry the client's pings", || {
        let seen = traces.iter().filter(|trace| {
            let said = trace.output();
            said.contains(&format!("> {target} echo request")) && said.contains("echo reply")
        });
        let seen = seen.count();
        ensure!(seen == 5, "{seen} of {} wires have", traces.len());
        Ok(())
    })?;
    pings.end()?;
    Ok(())
}

/// A firewall is traced while it drops what a client sends.
fn trace_firewall(chain: &SecureIntranet, client: &ChainClient) -> Result<()> {
    let (_, firewall) = chain.functions.first().context("a chain has a firewall")?;
    let several = trace(firewall.socket(), &[])?.output().context("run ferrule trace")?;
    let said = String::from_utf8_lossy(&several.stderr).into_owned();
    let (_, names) = said.split_once("several connections go through it; name one of ").context(said.clone())?;
    let begin = |name: &str| start_trace(firewall.socket(), &[name, "--dropped", "--host", "172.16.1.0/24"]);
    let traces = names.trim().split(", ").map(begin).collect::<Result<Vec<_>>>()?;
    ensure!(traces.len() == 2, "the firewall has the connections {names}");
    let target = client.target()?;
    let shut = get(&client.pod, target, SHUT, LIMIT);
    ensure!(shut.is_err(), "port {SHUT} of {target} gives {shut:?}");
    let dropped = format!("> {target}:{SHUT} SYN len ");
    until("the trace shows what was dropped, and why", || {
        let said: String = traces.iter().map(Process::output).collect();
        let line = said.lines().find(|line| line.contains(&dropped)).context("no line of it")?;
        ensure!(line.contains(" client in ") && line.ends_with("[dropped: unmatched]"), "the line is {line}");
        ensure!(!said.contains("[passed"), "what passed is shown too: {said}");
        Ok(())
    })?;
    Ok(())
}

/// A NAT44 is traced: a connection shows both of its tuples, also in the file.
fn trace_nat(mesh: &Mesh, socket: &Path, pod: &MeshPod) -> Result<()> {
    let file = mesh.path("nat.pcapng");
    let name = file.to_str().context("a directory has a plain name")?;
    let trace = start_trace(socket, &["--write", name, "--port", "80", "--snap", "0"])?;
    until("the trace shows both tuples", || {
        get(pod, WEB, OPEN, LIMIT)?;
        let said = trace.output();
        let lines: Vec<_> = said.lines().collect();
        let is_pair =
            |pair: &[&str], [inward, outward]: [&str; 2]| pair[0].contains(inward) && pair[1].contains(outward);
        let there = ["client in  TCP 192.168.100.10:", "network out TCP 80.80.80.100:"];
        let back =
            ["network in  TCP 80.80.80.80:80 > 80.80.80.100:", "client out TCP 80.80.80.80:80 > 192.168.100.10:"];
        for wanted in [there, back] {
            ensure!(lines.windows(2).any(|pair| is_pair(pair, wanted)), "no {wanted:?} in {said}");
        }
        ensure!(lines.iter().any(|line| line.ends_with("[passed: translated]")), "no verdict in {said}");
        Ok(())
    })?;
    trace.stop();
    let bytes = std::fs::read(&file).context("read the file of the trace")?;
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    ensure!(bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "the file begins with {:02x?}", &bytes[..4]);
    for text in ["client", "network", "passed: translated", "GET / HTTP/1.1", PAGE] {
        ensure!(has(text), "{text:?} is not in the file");
    }
    Ok(())
}

/// A passthrough is killed: its chain heals when it is back, or by another one of its kind.
pub(super) fn passthrough_killed(mesh: &mut Mesh) -> Result<()> {
    let names = ["passthrough-1", "passthrough-2", "passthrough-3", "passthrough-3-b"];
    let mut chain = SecureIntranet::start(mesh, &names)?;
    let clients = connect(mesh, 2)?;
    if let (Some(first), Some(second)) = (way_of(mesh, 0)?, way_of(mesh, 1)?) {
        let used = |name: &str| [&first, &second].iter().filter(|way| way.iter().any(|hop| hop == name)).count();
        let used = [used("passthrough-3"), used("passthrough-3-b")];
        ensure!(used == [1, 1], "of two passthroughs {used:?} clients are through each: {first:?}, {second:?}");
    }
    let targets = clients.iter().map(ChainClient::target).collect::<Result<Vec<_>>>()?;
    chain.kill("passthrough-2")?;
    chain.start_function(mesh, "passthrough-2")?;
    for (client, target) in clients.iter().zip(&targets) {
        let took = client.pod.wait_ping(&target.to_string(), TIMEOUT)?;
        mesh.figure("a passthrough that was killed is back: the chain carries pings after its start", ms(took), "ms");
    }
    chain.kill("passthrough-3")?;
    for client in &clients {
        let (target, took) = until("the chain carries pings again", || {
            // The way beyond is another one, and so may its address be.
            let target = client.target()?;
            client.ping_once(target)?;
            Ok(target)
        })?;
        ensure!(targets.contains(&target), "the client's end is {target} now, of {targets:?} before");
        mesh.figure("one of two passthroughs was killed: the chain carries pings by the other one", ms(took), "ms");
    }
    for number in 0..clients.len() {
        let way = way_of(mesh, number)?.unwrap_or_else(|| vec!["passthrough-3-b".to_owned()]);
        ensure!(way.iter().any(|hop| hop == "passthrough-3-b"), "client {number} goes through {way:?}");
    }
    chain.close(mesh, clients)
}

/// What lacks a hop is refused with its name, and leaves nothing; it is there once the hop is.
pub(super) fn hop_missing(mesh: &mut Mesh) -> Result<()> {
    let mut chain = SecureIntranet::start(mesh, &["passthrough-1", "passthrough-3"])?;
    let pod = MeshPod::new();
    let client = SECURE_INTRANET.start_client(mesh, &pod, 0)?;
    client.wait_for("network service secure-intranet-connectivity has no endpoint for this client");
    ensure!(pod.interfaces().is_empty(), "a refused client has {:?}", pod.interfaces());
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))?;
    chain.start_function(mesh, "passthrough-2")?;
    mesh.wait_connected(&client);
    let clients = vec![ChainClient { process: client, pod }];
    clients[0].pod.wait_ping(&clients[0].target()?.to_string(), TIMEOUT)?;
    chain.close(mesh, clients)
}

/// A client reaches a web server through a NAT44: the server sees an address of the pool.
pub(super) fn nat44(mesh: &mut Mesh) -> Result<()> {
    NAT.register(mesh)?;
    let web_pod = MeshPod::new();
    let web = NAT.start_end(mesh, &web_pod, "80.80.80.80/31")?;
    let nat = NAT.start(mesh, "nat44", "nat44", NAT_SETTINGS)?;
    let pod = MeshPod::new();
    let process = NAT.start_client(mesh, &pod, 0)?;
    mesh.wait_connected(&process);
    ensure!(pod.addresses(INTERFACE) == ["192.168.100.10/24"], "the client has {:?}", pod.addresses(INTERFACE));
    let server = serve_page(&web_pod, OPEN)?;
    until("the page comes through", || Ok(get(&pod, WEB, OPEN, LIMIT)?))?;
    pod.netns().ping_all(&WEB.to_string(), 5, 64);
    let seen: Vec<_> = server.served().iter().map(|served| served.client.ip()).collect();
    ensure!(!seen.is_empty() && seen.iter().all(|ip| *ip == POOL_FIRST), "the server has seen {seen:?}");
    trace_nat(mesh, nat.socket(), &pod)?;
    // Without its label a client is nobody's: no match is without a source.
    let other_pod = MeshPod::new();
    let other = mesh.near().start_client_of(&other_pod, 1, &format!("kernel://{}/{INTERFACE}", NAT.service))?;
    other.wait_for("no candidates found");
    other.stop();
    // Each client has an address of the pool, of which there is one.
    let second = NAT.start_client(mesh, &other_pod, 1)?;
    second.wait_for("all 1 are in use");
    second.stop();
    process.stop();
    pod.wait_interfaces(0, TIMEOUT)?;
    web_pod.wait_interfaces(0, TIMEOUT)?;
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))?;
    drop((server, nat, web));
    Ok(())
}

/// The first chain, without clients.
struct SecureIntranet {
    functions: Vec<(String, ChainFunction)>,
    gateway: Process,
    gateway_pod: MeshPod,
}

struct ChainClient {
    process: Process,
    pod: MeshPod,
}

impl SecureIntranet {
    fn start(mesh: &mut Mesh, passthroughs: &[&str]) -> Result<Self> {
        SECURE_INTRANET.register(mesh)?;
        let gateway_pod = MeshPod::new();
        let gateway = SECURE_INTRANET.start_end(mesh, &gateway_pod, "172.16.1.0/24")?;
        let mut chain = Self { functions: Vec::new(), gateway, gateway_pod };
        for name in ["firewall"].iter().chain(passthroughs) {
            chain.start_function(mesh, name)?;
        }
        Ok(chain)
    }

    fn start_function(&mut self, mesh: &mut Mesh, name: &str) -> Result<()> {
        let app = name.trim_end_matches("-b");
        let settings = if app == "firewall" { RULES } else { "passthrough: {}" };
        self.functions.push((name.to_owned(), SECURE_INTRANET.start(mesh, app, name, settings)?));
        Ok(())
    }

    fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.functions.iter().position(|(known, _)| known == name);
        let (_, function) = self.functions.remove(at.with_context(|| format!("there is no {name}"))?);
        function.kill();
        Ok(())
    }

    /// Ends the clients: nothing is left of their connections.
    fn close(self, mesh: &mut Mesh, clients: Vec<ChainClient>) -> Result<()> {
        for client in clients {
            client.process.stop();
            client.pod.wait_interfaces(0, TIMEOUT)?;
        }
        self.gateway_pod.wait_interfaces(0, TIMEOUT)?;
        wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))?;
        drop(self.gateway);
        Ok(())
    }
}

/// Connects clients to the first chain.
fn connect(mesh: &mut Mesh, count: usize) -> Result<Vec<ChainClient>> {
    let start = |number| {
        let pod = MeshPod::new();
        Ok(ChainClient { process: SECURE_INTRANET.start_client(mesh, &pod, number)?, pod })
    };
    let clients = (0..count).map(start).collect::<Result<Vec<_>>>()?;
    for client in &clients {
        mesh.wait_connected(&client.process);
    }
    Ok(clients)
}

/// The way of a client; none: the manager does not show it.
fn way_of(mesh: &mut Mesh, number: usize) -> Result<Option<Vec<String>>> {
    if mesh.cast().manager == Maker::Go {
        return Ok(None);
    }
    way(mesh, &client_name(number)).map(Some)
}

impl ChainClient {
    /// The gateway's address, as the client's routes have it.
    fn target(&self) -> Result<Ipv4Addr> {
        let routes = self.pod.netns().ip(&format!("route show dev {INTERFACE}"));
        let to = routes.split_whitespace().next().with_context(|| format!("the client's routes are {routes:?}"))?;
        Ok(to.parse()?)
    }

    fn ping_once(&self, to: Ipv4Addr) -> Result<()> {
        let output = self.pod.netns().ping(&format!("-c 1 -W 1 {to}")).output().context("run ping")?;
        ensure!(output.status.success(), "{to} does not answer");
        Ok(())
    }

    /// Port 80 gives the page. 8080 is blocked, though a server listens there.
    fn check_ports(&self, gateway: &MeshPod) -> Result<()> {
        let target = self.target()?;
        let page = get(&self.pod, target, OPEN, LIMIT)?;
        ensure!(page == PAGE, "port {OPEN} of {target} gives {page:?}");
        let beside = get(gateway, target, SHUT, LIMIT)?;
        ensure!(beside == PAGE, "port {SHUT} of {target} gives {beside:?} to the gateway itself");
        match get(&self.pod, target, SHUT, LIMIT) {
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(()),
            other => bail!("port {SHUT} of {target}: {other:?}, and no timeout"),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

const SECURE_INTRANET: ChainPlan = ChainPlan {
    service: "secure-intranet-connectivity",
    apps: &["firewall", "passthrough-1", "passthrough-2", "passthrough-3", "gateway"],
    client: None,
};
const RULES: &str = "firewall:\n  aclRules:\n    \"Allow ICMP\": \"action=reflect,icmptype=8\"\n    \"Allow TCP 80\": \
                     \"action=reflect,tcplowport=80,tcpupport=80\"";
const NAT: ChainPlan = ChainPlan { service: "cnf-nat-example", apps: &["nat44", "webserver"], client: Some("client") };
const NAT_SETTINGS: &str = "nat44:\n  inside: { address: 192.168.100.1/24 }\n  outside: { address: 80.80.80.100/24 }\n  \
                            clients: 192.168.100.10-192.168.100.20\n  pool: [80.80.80.100]";
const WEB: Ipv4Addr = Ipv4Addr::new(80, 80, 80, 80);
const POOL_FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(80, 80, 80, 100));
const OPEN: u16 = 80;
const SHUT: u16 = 8080;
/// As the example's check waits.
const LIMIT: Duration = Duration::from_secs(3);
