//! A chain over two nodes, and one without Ethernet headers.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use ferrule_dataplane::port::FRAME_MAX;
use ferrule_dataplane::spec::{MemifSpec, Mode, NetNs, Role};
use ferrule_endpoints::end::EndSpec;
use ferrule_functions::packet::checksum;

use super::bed::{ChainExample, FirewallChain, PASSTHROUGHS, SECURE_INTRANET, ms, start_clients, way_of};
use crate::TIMEOUT;
use crate::nsm::cases::ends::{open, receive, send};
use crate::nsm::chain::{ChainPlan, serve_page, start_trace, until};
use crate::nsm::mesh::{INTERFACE, Mesh};

/// The firewall is on the clients' node and all others are on another one.
pub(super) fn two_nodes(mesh: &mut Mesh) -> Result<()> {
    let chain = FirewallChain::start(mesh, &SECURE_INTRANET, &PASSTHROUGHS)?;
    let clients = chain.connect(mesh, 2)?;
    let servers = SECURE_INTRANET.ports.map(|port| serve_page(&chain.end_pod, port));
    for (number, client) in clients.iter().enumerate() {
        let target = client.target()?.to_string();
        client.pod.wait_ping(&target, TIMEOUT)?;
        if let Some(way) = way_of(mesh, number)? {
            let (firewall, others) = SECURE_INTRANET.plan.apps.split_first().context("a chain has a first function")?;
            let (first, next) = others.split_first().context("a chain has a second function")?;
            let near = ["nsmgr-1", "fwd-1", firewall, "nsmgr-1", "fwd-1", "nsmgr-2", "fwd-2", first];
            let far = next.iter().flat_map(|hop| ["nsmgr-2", "fwd-2", hop]);
            ensure!(way[1..].iter().eq(near.into_iter().chain(far)), "client {number} goes through {way:?}");
        }
        // As long as its interface says, in one piece.
        let link = client.pod.netns().ip(&format!("link show {INTERFACE}"));
        let mtu = link.split_once(" mtu ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u32>().ok());
        let mtu = mtu.with_context(|| format!("the client's link is {link}"))?;
        ensure!(mtu < 1500, "the tunnel takes nothing of the MTU, {mtu}");
        client.pod.netns().ping_all(&target, 5, mtu - PING_HEADERS);
        client.check_ports(&chain.end_pod)?;
    }
    drop(servers);
    chain.close(mesh, clients)
}

/// Memif from end to end, and packets without an Ethernet header in it: the firewall judges them all the same.
pub(super) fn ip_payload(mesh: &mut Mesh) -> Result<()> {
    let chain = FirewallChain::start(mesh, &WITHOUT_ETHERNET, &PASSTHROUGHS)?;
    let clients = start_clients(mesh, &WITHOUT_ETHERNET, 1)?;
    let client = &clients[0];
    mesh.wait_connected(&client.process);
    let said = client.process.output();
    let mut words = said.split([' ', ',', '\n']);
    let socket = words.find(|word| word.starts_with("@ferrule/nsm/")).context("no socket is told")?;
    let mut addresses = words.filter_map(|word| word.split_once('/')?.0.parse().ok());
    let mut address = || addresses.next().with_context(|| format!("two addresses are not told: {said}"));
    let (own, far): (Ipv4Addr, Ipv4Addr) = (address()?, address()?);
    let netns = Some(NetNs::Path(client.pod.netns().path()));
    let memif = MemifSpec { netns, mode: Mode::Ip, ..MemifSpec::new(socket.parse()?, Role::Client) };
    let mut end = open(&EndSpec::Memif(memif))?;
    let mut gather = vec![0; FRAME_MAX];
    let is_reply =
        |came: &Vec<u8>| came.len() == 28 && came[12..20] == [far.octets(), own.octets()].concat() && came[20] == 0;
    let ((), took) = until("a ping comes back", || {
        send(&mut end, &packet(own, far, ICMP, [8, 0, 0, 0, 0, 7, 0, 1]))?;
        let came = receive(&mut end, &mut gather)?;
        ensure!(came.iter().any(is_reply), "what comes is {came:02x?}");
        Ok(())
    })?;
    mesh.figure("packets without Ethernet come through a chain after", ms(took), "ms");
    let trace = start_trace(chain.function("firewall")?.socket(), &["--dropped"])?;
    until("what no rule lets pass is dropped", || {
        send(&mut end, &packet(own, far, UDP, [0, 9, 0, 9, 0, 8, 0, 0]))?;
        let said = trace.output();
        let line = said.lines().find(|line| line.contains(&format!("UDP {own}:9 > {far}:9")));
        ensure!(line.is_some_and(|line| line.ends_with("[dropped: unmatched]")), "the firewall's trace is {said}");
        Ok(())
    })?;
    drop((end, trace));
    chain.close(mesh, clients)
}

/// An IPv4 packet with a checksum of its header, and for ICMP one of its contents.
fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, mut contents: [u8; 8]) -> Vec<u8> {
    let mut header = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = checksum::full(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    if protocol == ICMP {
        let sum = checksum::full(&contents, 0);
        contents[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    [&header[..], &contents].concat()
}

/// The first example, as its own documents have it: payload IP.
const WITHOUT_ETHERNET: ChainExample =
    ChainExample { plan: ChainPlan { payload: "IP", ..SECURE_INTRANET.plan }, ..SECURE_INTRANET };
/// IPv4 and ICMP.
const PING_HEADERS: u32 = 28;
const ICMP: u8 = 1;
const UDP: u8 = 17;
