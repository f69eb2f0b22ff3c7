//! The second example: clients behind one address.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::bed::LIMIT;
use crate::TIMEOUT;
use crate::nsm::cases::{far_addresses, wait_until};
use crate::nsm::chain::{ChainPlan, PAGE, get, serve_page, start_trace, until};
use crate::nsm::mesh::{INTERFACE, Mesh};
use crate::nsm::pod::MeshPod;

/// A client reaches a web server through a NAT44: the server sees an address of the pool.
pub(super) fn one_address(mesh: &mut Mesh) -> Result<()> {
    NAT.register(mesh)?;
    let web_pod = MeshPod::new();
    let web = NAT.start_end(mesh, "webserver", &web_pod, "80.80.80.80/31")?;
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

/// Whoever is outside reaches the server of the client that a forward names, and no other client.
pub(super) fn forward(mesh: &mut Mesh) -> Result<()> {
    NAT.register(mesh)?;
    let web_pod = MeshPod::new();
    let web = NAT.start_end(mesh, "webserver", &web_pod, "80.80.80.80/30")?;
    let nat = NAT.start(mesh, "nat44", "nat44", FORWARD_SETTINGS)?;
    // Nobody asks for an address: the one that the forward names goes last.
    let mut clients = Vec::new();
    for (number, address) in ["192.168.100.11/24", "192.168.100.10/24"].into_iter().enumerate() {
        let pod = MeshPod::new();
        let process = NAT.start_client(mesh, &pod, number)?;
        mesh.wait_connected(&process);
        ensure!(pod.addresses(INTERFACE) == [address], "client {number} has {:?}", pod.addresses(INTERFACE));
        let server = serve_page(&pod, SERVER)?;
        clients.push((process, pod, server));
    }
    let (page, _) = until("the page of the forward's client comes", || Ok(get(&web_pod, FORWARDED, OPEN, LIMIT)?))?;
    ensure!(page == PAGE, "port {OPEN} of {FORWARDED} gives {page:?}");
    let outside = far_addresses(&web_pod)?;
    let served: Vec<Vec<_>> = clients
        .iter()
        .map(|(_, _, server)| server.served().iter().map(|served| served.client.ip().to_string()).collect())
        .collect();
    ensure!(served[0].is_empty(), "the other client has served {:?}", served[0]);
    ensure!(
        served[1].len() == 1 && outside.contains(&served[1][0]),
        "the forward's client has served {:?} of {outside:?}",
        served[1]
    );
    // Another port of its address, and the same one of the other client's, lead nowhere.
    let nowhere = |(address, port)| {
        let other = get(&web_pod, address, port, LIMIT);
        ensure!(other.is_err(), "port {port} of {address} gives {other:?}");
        Ok(())
    };
    thread::scope(|scope| {
        let others = [(FORWARDED, SERVER), (NOT_FORWARDED, OPEN), (NOT_FORWARDED, SERVER)];
        let asking = others.map(|other| scope.spawn(move || nowhere(other)));
        asking.into_iter().try_for_each(|asking| asking.join().map_err(|_| anyhow::anyhow!("GET panicked"))?)
    })?;
    for (process, pod, server) in clients {
        drop(server);
        process.stop();
        pod.wait_interfaces(0, TIMEOUT)?;
    }
    web_pod.wait_interfaces(0, TIMEOUT)?;
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))?;
    drop((nat, web));
    Ok(())
}

/// The way outside is a tunnel, which carries less than the client's interface: the NAT44 is told so by the mesh, and sends what is too long in
/// parts, or says so.
pub(super) fn two_nodes(mesh: &mut Mesh) -> Result<()> {
    NAT.register(mesh)?;
    let web_pod = MeshPod::new();
    let web = NAT.start_end(mesh, "webserver", &web_pod, "80.80.80.80/31")?;
    let nat = NAT.start(mesh, "nat44", "nat44", NAT_SETTINGS)?;
    let pod = MeshPod::new();
    let process = NAT.start_client(mesh, &pod, 0)?;
    mesh.wait_connected(&process);
    let link = pod.netns().ip(&format!("link show {INTERFACE}"));
    let mtu = link.split_once(" mtu ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u32>().ok());
    let mtu = mtu.with_context(|| format!("the client's link is {link}"))?;
    ensure!(mtu < CLIENT_MTU, "the tunnel takes nothing of the MTU, {mtu}");
    pod.wait_ping(&WEB.to_string(), TIMEOUT)?;
    // As long as its interface says, in one piece; then it is a client that knows no better.
    let ping = |flags: &str, size: u32| -> Result<_> {
        let output =
            pod.netns().ping(&format!("-c 3 -i 0.2 -W 3 -s {size} {flags} {WEB}")).output().context("run ping")?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let (is_answered, said) = ping("-M do", mtu - PING_HEADERS)?;
    ensure!(is_answered, "what the tunnel carries is lost: {said}");
    pod.netns().ip(&format!("link set {INTERFACE} mtu {CLIENT_MTU}"));
    let (is_answered, said) = ping("-M dont", CLIENT_MTU - PING_HEADERS)?;
    ensure!(is_answered, "what may be parted is lost: {said}");
    let (_, said) = ping("-M do", CLIENT_MTU - PING_HEADERS)?;
    ensure!(said.contains(&format!("(mtu = {mtu})")), "of what must not be parted its sender is told {said}");
    process.stop();
    pod.wait_interfaces(0, TIMEOUT)?;
    web_pod.wait_interfaces(0, TIMEOUT)?;
    drop((nat, web));
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
    // The page comes after the first lines.
    until("the frames are in the file", || {
        let bytes = std::fs::read(&file).context("read the file of the trace")?;
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        ensure!(bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "the file is no pcapng: {} bytes", bytes.len());
        for text in ["client", "network", "passed: translated", "GET / HTTP/1.1", PAGE] {
            ensure!(has(text), "{text:?} is not in the file");
        }
        Ok(())
    })?;
    trace.stop();
    Ok(())
}

const NAT: ChainPlan = ChainPlan {
    service: "cnf-nat-example",
    apps: &["nat44", "webserver"],
    client: Some("client"),
    payload: "ETHERNET",
};
const NAT_SETTINGS: &str = "nat44:\n  inside: { address: 192.168.100.1/24 }\n  outside: { address: 80.80.80.100/24 }\n  \
                            clients: 192.168.100.10-192.168.100.20\n  pool: [80.80.80.100]";
const FORWARD_SETTINGS: &str = "nat44:\n  inside: { address: 192.168.100.1/24 }\n  outside: { address: 80.80.80.100/24 }\n  \
                                clients: 192.168.100.10-192.168.100.11\n  pool: [80.80.80.100-80.80.80.101]\n  \
                                forwards: [{ protocol: tcp, outside: \"80.80.80.100:80\", inside: \"192.168.100.10:8080\" }]";
const FORWARDED: Ipv4Addr = Ipv4Addr::new(80, 80, 80, 100);
const NOT_FORWARDED: Ipv4Addr = Ipv4Addr::new(80, 80, 80, 101);
const SERVER: u16 = 8080;
/// Of an interface that knows nothing of tunnels.
const CLIENT_MTU: u32 = 1500;
/// IPv4 and ICMP.
const PING_HEADERS: u32 = 28;
const WEB: Ipv4Addr = Ipv4Addr::new(80, 80, 80, 80);
const POOL_FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(80, 80, 80, 100));
const OPEN: u16 = 80;
