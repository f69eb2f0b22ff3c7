//! The first example: a client reaches a gateway through a firewall and three passthroughs.

use anyhow::{Context, Result, ensure};

use super::bed::{ChainClient, FirewallChain, LIMIT, PASSTHROUGHS, SECURE_INTRANET, start_clients, way_of};
use crate::TIMEOUT;
use crate::nsm::cases::wait_until;
use crate::nsm::chain::{get, serve_page, start_trace, trace, until};
use crate::nsm::mesh::Mesh;
use crate::process::Process;

/// All of its checks, with two clients at once.
pub(super) fn secure_intranet(mesh: &mut Mesh) -> Result<()> {
    let chain = FirewallChain::start(mesh, &SECURE_INTRANET, &PASSTHROUGHS)?;
    let clients = chain.connect(mesh, 2)?;
    let servers = [OPEN, SHUT].map(|port| serve_page(&chain.end_pod, port));
    for (number, client) in clients.iter().enumerate() {
        ensure!(client.process.output().contains(" by firewall, "), "who serves it is {}", client.process.output());
        if let Some(way) = way_of(mesh, number)? {
            let wanted = SECURE_INTRANET.plan.apps.iter().flat_map(|hop| ["nsmgr-1", "fwd-1", hop]);
            ensure!(way[1..].iter().eq(wanted), "client {number} goes through {way:?}");
        }
    }
    for client in &clients {
        client.pod.netns().ping_all(&client.target()?.to_string(), 5, 1400);
        client.check_ports(&chain.end_pod)?;
    }
    trace_wire(mesh, &clients[0])?;
    trace_firewall(&chain, &clients[0])?;
    drop(servers);
    chain.close(mesh, clients)
}

/// The wire of a client is traced while it pings.
fn trace_wire(mesh: &mut Mesh, client: &ChainClient) -> Result<()> {
    let wires = mesh.near().wire_counts()?;
    let socket = mesh.near().admin_socket();
    // Of both clients, and of each hop: those of this client see its pings.
    let traces: Vec<_> = wires
        .keys()
        .map(|name| start_trace(&socket, &[name.as_str(), "--protocol", "icmp", "--frames", "2", "--snap", "128"]))
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
fn trace_firewall(chain: &FirewallChain, client: &ChainClient) -> Result<()> {
    let firewall = chain.function("firewall")?;
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

/// What lacks a hop is refused with its name, and leaves nothing; it is there once the hop is.
pub(super) fn hop_missing(mesh: &mut Mesh) -> Result<()> {
    let mut chain = FirewallChain::start(mesh, &SECURE_INTRANET, &["passthrough-1", "passthrough-3"])?;
    let clients = start_clients(mesh, &SECURE_INTRANET, 1)?;
    let ChainClient { process, pod, .. } = &clients[0];
    process.wait_for("network service secure-intranet-connectivity has no endpoint for this client");
    ensure!(pod.interfaces().is_empty(), "a refused client has {:?}", pod.interfaces());
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))?;
    chain.start_function(mesh, "passthrough-2")?;
    mesh.wait_connected(process);
    pod.wait_ping(&clients[0].target()?.to_string(), TIMEOUT)?;
    chain.close(mesh, clients)
}

const OPEN: u16 = 80;
const SHUT: u16 = 8080;
