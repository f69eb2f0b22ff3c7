//! What has to hold.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::node::{INTERFACE, MeshNode, NodeOptions, client_name};
use super::pod::MeshPod;
use super::programs::{Cast, Maker};
use crate::TIMEOUT;

/// Something that has to hold, on a node of its own.
pub struct NsmCase {
    /// A sentence.
    pub name: &'static str,
    /// Who plays which role.
    pub cast: Cast,
    /// How the node is.
    pub options: NodeOptions,
    /// What runs.
    pub run: Run,
}

/// What a case does.
type Run = fn(&mut MeshNode) -> Result<()>;

/// All cases: with our programs, with those in Go, and with every mixture.
pub fn all() -> Vec<NsmCase> {
    let plain = NodeOptions::default();
    let short = NodeOptions {
        certificates: Duration::from_mins(1),
        tokens: Duration::from_secs(20),
        request: Duration::from_secs(3),
        ..plain
    };
    let many = NodeOptions { clients: MANY, ..plain };
    let both: [(&str, &str, NodeOptions, Run); 9] = [
        ("refreshes_and_rotations_lose_no_ping", "go_refreshes_and_rotations_lose_no_ping", short, refreshes),
        ("thirty_clients_at_once", "go_thirty_clients_at_once", many, thirty_clients),
        ("forwarder_is_killed_and_replaced", "go_forwarder_is_killed_and_replaced", plain, forwarder_killed),
        ("kernel_to_kernel_both_families", "go_kernel_to_kernel_both_families", plain, kernel_both_families),
        ("kernel_to_kernel_ip_payload", "go_kernel_to_kernel_ip_payload", plain, kernel_ip_payload),
        ("close_leaves_nothing", "go_close_leaves_nothing", plain, close_leaves_nothing),
        ("manager_is_killed_and_replaced", "go_manager_is_killed_and_replaced", plain, manager_killed),
        ("endpoint_is_killed_and_replaced", "go_endpoint_is_killed_and_replaced", plain, endpoint_killed),
        ("interface_that_was_deleted_comes_back", "go_interface_that_was_deleted_comes_back", plain, interface_deleted),
    ];
    let case = |name, cast, options, run| NsmCase { name, cast, options, run };
    let mut cases: Vec<_> =
        both.iter().map(|(name, _, options, run)| case(*name, Cast::default(), *options, *run)).collect();
    cases.push(case("the_mesh_is_shown", Cast::default(), plain, mesh_is_shown));
    cases.push(case("what_is_wrong_is_refused_and_leaves_nothing", Cast::default(), plain, refusals));
    cases.extend(both.iter().map(|(_, name, options, run)| case(*name, Cast::GO, *options, *run)));
    let makers = |bit: bool| if bit { Maker::Go } else { Maker::Ours };
    for (name, [manager, client, endpoint]) in MIXTURES {
        let cast = Cast { manager: makers(manager), client: makers(client), endpoint: makers(endpoint) };
        cases.push(case(name, cast, plain, kernel_both_families));
    }
    cases
}

/// Of manager, client and endpoint, those that are in Go.
const MIXTURES: [(&str, [bool; 3]); 6] = [
    ("mixed_manager_go", [true, false, false]),
    ("mixed_client_go", [false, true, false]),
    ("mixed_endpoint_go", [false, false, true]),
    ("mixed_manager_client_go", [true, true, false]),
    ("mixed_manager_endpoint_go", [true, false, true]),
    ("mixed_client_endpoint_go", [false, true, true]),
];

fn kernel_both_families(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24,2001:db8::/116", "ETHERNET")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    let addresses = client_pod.addresses(INTERFACE);
    ensure!(addresses.len() == 2, "the client has {addresses:?}");
    for to in far_addresses(&endpoint_pod)? {
        client_pod.netns().ping_all(&to, 10, 1400);
        let stream = client_pod.netns().connect(endpoint_pod.netns(), to.parse()?);
        drop(stream);
    }
    let wires = node.wires()?;
    ensure!(wires.contains("\"origin\": \"mesh\"") || wires.contains("\"origin\":\"mesh\""), "the wire is {wires}");
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)
}

fn kernel_ip_payload(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24,2001:db8::/116", "IP")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    for to in far_addresses(&endpoint_pod)? {
        client_pod.netns().ping_all(&to, 10, 64);
    }
    // Nobody may have to ask for an address of a link that has none.
    let neighbours = client_pod.netns().ip(&format!("neigh show dev {INTERFACE} nud permanent"));
    ensure!(neighbours.lines().count() == 2, "the client's neighbours are {neighbours}");
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)
}

fn close_leaves_nothing(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let names = ["forwarder", "manager"];
    // What a process opens once and keeps is not what this is about.
    let mut before = Vec::new();
    for round in 0..6 {
        let client = node.start_client(&client_pod, 0)?;
        node.wait_connected(&client);
        client_pod.netns().ping_all("172.16.1.0", 1, 64);
        client.stop();
        client_pod.wait_interfaces(0, TIMEOUT)?;
        endpoint_pod.wait_interfaces(0, TIMEOUT)?;
        if round == 0 {
            before = settled_files(node, &names, None)?;
        }
    }
    let after = settled_files(node, &names, Some(&before))?;
    ensure!(before == after, "open files of {names:?} were {before:?} and are {after:?}");
    ensure!(!node.wires()?.contains("nsm-"), "a wire is left: {}", node.wires()?);
    let rules = client_pod.netns().ip("rule show");
    ensure!(rules.lines().count() == 3, "rules are left: {rules}");
    Ok(())
}

/// The files that processes have open, once that is `wanted` or does not become so.
fn settled_files(node: &MeshNode, names: &[&str], wanted: Option<&Vec<usize>>) -> Result<Vec<usize>> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let now = names.iter().map(|name| node.open_files(name)).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(Duration::from_millis(200));
        let again = names.iter().map(|name| node.open_files(name)).collect::<Result<Vec<_>>>()?;
        let is_settled = wanted.map_or(now == again, |wanted| *wanted == again);
        if is_settled || Instant::now() > end {
            return Ok(again);
        }
    }
}

fn refreshes(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    let index = client_pod.index(INTERFACE)?;
    let pings = client_pod.start_pings("172.16.1.0");
    // Tokens of 20 s are refreshed every 4 s or earlier, and certificates of 60 s are new every 30 s.
    std::thread::sleep(REFRESHING);
    let (sent, received) = pings.end()?;
    ensure!(sent.saturating_sub(received) <= 1, "{} of {sent} pings were lost", sent - received);
    ensure!(client_pod.index(INTERFACE)? == index, "the interface was made anew");
    node.figure("pings without a loss", received as f64, "");
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)
}

fn thirty_clients(node: &mut MeshNode) -> Result<()> {
    let endpoint_pod = MeshPod::new();
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let pods: Vec<_> = (0..MANY).map(|_| MeshPod::new()).collect();
    let began = Instant::now();
    let clients =
        pods.iter().enumerate().map(|(number, pod)| node.start_client(pod, number)).collect::<Result<Vec<_>>>()?;
    for client in &clients {
        node.wait_connected(client);
    }
    node.figure("all connected", began.elapsed().as_secs_f64() * 1e3, "ms");
    let far = far_addresses(&endpoint_pod)?;
    ensure!(far.len() == MANY, "the endpoint has {far:?}");
    for (number, pod) in pods.iter().enumerate() {
        let own = pod.addresses(INTERFACE);
        let own = own.first().with_context(|| format!("client {number} has no address"))?;
        let to = pod.netns().ip(&format!("route show dev {INTERFACE}"));
        let to = to.split_whitespace().next().with_context(|| format!("{own} has no route"))?.to_owned();
        pod.netns().ping_all(&to, 1, 64);
    }
    node.figure("open files of the forwarder", node.open_files("forwarder")? as f64, "");
    node.figure("memory of the forwarder", node.resident("forwarder")? as f64, "kB");
    let began = Instant::now();
    let stopping: Vec<_> = clients.into_iter().map(|client| std::thread::spawn(|| client.stop())).collect();
    for stopping in stopping {
        drop(stopping.join());
    }
    for pod in &pods {
        pod.wait_interfaces(0, TIMEOUT)?;
    }
    node.figure("all closed", began.elapsed().as_secs_f64() * 1e3, "ms");
    endpoint_pod.wait_interfaces(0, TIMEOUT)
}

fn forwarder_killed(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    let index = client_pod.index(INTERFACE)?;
    let pings = client_pod.start_pings("172.16.1.0");
    node.kill("forwarder")?;
    node.start_forwarder()?;
    let began = Instant::now();
    wait_until("the new forwarder has the wire", || Ok(node.wires()?.contains("nsm-")))?;
    node.figure("wire taken over after the start", began.elapsed().as_secs_f64() * 1e3, "ms");
    let (sent, received) = pings.end()?;
    node.figure("pings lost", sent.saturating_sub(received) as f64, "");
    ensure!(sent.saturating_sub(received) <= 1, "{} of {sent} pings were lost", sent - received);
    ensure!(client_pod.index(INTERFACE)? == index, "the interface was made anew");
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)?;
    endpoint_pod.wait_interfaces(0, TIMEOUT)
}

fn manager_killed(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    let pings = client_pod.start_pings("172.16.1.0");
    node.kill("manager")?;
    node.start_manager()?;
    // Who comes new says that all others are registered again.
    let began = Instant::now();
    let other_pod = MeshPod::new();
    let other = node.start_other_client(&other_pod)?;
    node.wait_connected(&other);
    node.figure("a new client is connected after the start", began.elapsed().as_secs_f64() * 1e3, "ms");
    let (sent, received) = pings.end()?;
    ensure!(sent.saturating_sub(received) <= 1, "{} of {sent} pings were lost", sent - received);
    other.stop();
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)
}

fn endpoint_killed(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    node.kill("endpoint")?;
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let took = client_pod.wait_ping("172.16.1.0", TIMEOUT)?;
    node.figure("the endpoint answers after its start", took.as_secs_f64() * 1e3, "ms");
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)
}

fn interface_deleted(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    client_pod.netns().ip(&format!("link del {INTERFACE}"));
    let took = client_pod.wait_ping("172.16.1.0", TIMEOUT)?;
    node.figure("traffic is back", took.as_secs_f64() * 1e3, "ms");
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)?;
    endpoint_pod.wait_interfaces(0, TIMEOUT)
}

fn mesh_is_shown(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    node.start_endpoint(&endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    let table = node.shown(&[])?;
    ensure!(table.contains(&format!("{} > nsmgr > fwd > nse", client_name(0))), "the table is {table}");
    let json: serde_json::Value = serde_json::from_str(&node.shown(&["--json"])?)?;
    let hops = json["connections"][0]["hops"].as_array().context("no hops")?;
    ensure!(hops.len() == 4 && hops[2]["metrics"]["server_interface"] == "KERNEL/nsm-1", "the hops are {hops:?}");
    let drawn = node.shown(&["--draw"])?;
    ensure!(drawn.contains("[KERNEL/nsm-1]==[KERNEL/icmp-respo-"), "it is drawn as {drawn}");
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)
}

fn refusals(node: &mut MeshNode) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    // Two addresses: one client.
    node.start_endpoint(&endpoint_pod, "172.16.1.0/31", "ETHERNET")?;
    let unknown = node.start_client_of(&client_pod, 0, "kernel://nobody/nsm-1")?;
    unknown.wait_for("network service nobody is not found");
    unknown.stop();
    let client = node.start_client(&client_pod, 0)?;
    node.wait_connected(&client);
    let second_pod = MeshPod::new();
    let second = node.start_other_client(&second_pod)?;
    second.wait_for("has no two addresses left");
    ensure!(second_pod.interfaces().is_empty(), "a refused client has {:?}", second_pod.interfaces());
    second.stop();
    client_pod.netns().ping_all("172.16.1.0", 3, 64);
    // An interface of that name is there already, and is not ours.
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)?;
    client_pod.netns().ip(&format!("link add {INTERFACE} type veth peer name other"));
    let taken = node.start_client(&client_pod, 0)?;
    taken.wait_for("the name is taken");
    taken.stop();
    endpoint_pod.wait_interfaces(0, TIMEOUT)?;
    ensure!(!node.wires()?.contains("nsm-"), "a wire is left: {}", node.wires()?);
    Ok(())
}

/// The addresses of the endpoint's ends.
fn far_addresses(pod: &MeshPod) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for interface in pod.interfaces() {
        all.extend(pod.addresses(&interface).iter().filter_map(|address| Some(address.split_once('/')?.0.to_owned())));
    }
    ensure!(!all.is_empty(), "the endpoint has no address");
    Ok(all)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + TIMEOUT;
    while !is_so()? {
        ensure!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

const MANY: usize = 30;
/// More than two rotations.
const REFRESHING: Duration = Duration::from_secs(65);
