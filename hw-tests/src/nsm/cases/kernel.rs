//! Kernel interfaces at both ends.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{BOTH_FAMILIES, far_addresses};
use crate::content::{CHUNK, exchange};
use crate::netns::TestNetNs;
use crate::nsm::mesh::{INTERFACE, Mesh};

pub(super) fn both_families(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(BOTH_FAMILIES, "ETHERNET")?;
    let addresses = pair.client_pod.addresses(INTERFACE);
    ensure!(addresses.len() == 2, "the client has {addresses:?}");
    // A tunnel's headers take room.
    let size = if mesh.is_remote() { 1300 } else { 1400 };
    let (near, far) = (pair.client_pod.netns(), pair.endpoint_pod.netns());
    for to in far_addresses(&pair.endpoint_pod)? {
        near.ping_all(&to, 10, size);
        stream(near, far, &to)?;
    }
    let wires = mesh.near().wires()?;
    let is_of_mesh = wires.contains("\"origin\": \"mesh\"") || wires.contains("\"origin\":\"mesh\"");
    // Tunnels are devices of the kernel.
    ensure!(is_of_mesh != mesh.is_remote(), "the wire is {wires}");
    pair.close()
}

pub(super) fn ip_payload(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(BOTH_FAMILIES, "IP")?;
    for to in far_addresses(&pair.endpoint_pod)? {
        pair.client_pod.netns().ping_all(&to, 10, 64);
        stream(pair.client_pod.netns(), pair.endpoint_pod.netns(), &to)?;
    }
    // Nobody may have to ask for an address of a link that has none.
    let neighbours = pair.client_pod.netns().ip(&format!("neigh show dev {INTERFACE} nud permanent"));
    ensure!(neighbours.lines().count() == 2, "the client's neighbours are {neighbours}");
    pair.close()
}

/// Payload IP between nodes: a tunnel of packets.
pub(super) fn packets(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(BOTH_FAMILIES, "IP")?;
    let (near, far) = (pair.client_pod.netns(), pair.endpoint_pod.netns());
    let shown = near.ip(&format!("link show {INTERFACE}"));
    let mtu = if mesh.near().address().is_ipv4() { 1440 } else { 1420 };
    let is_tunnel = shown.contains(&format!("mtu {mtu}")) && shown.contains("link/none");
    ensure!(is_tunnel, "the client's interface is {shown}");
    let (mut carried, mut took) = (0, Duration::ZERO);
    for to in far_addresses(&pair.endpoint_pod)? {
        // As long as the tunnel carries: IPv6 has the longer header.
        let size = if to.contains(':') { mtu - 48 } else { mtu - 28 };
        near.ping_all(&to, 10, size);
        let began = Instant::now();
        stream(near, far, &to)?;
        (carried, took) = (carried + 2 * STREAM_BYTES, took + began.elapsed());
    }
    mesh.figure("TCP through the tunnel, both ways", carried as f64 * 8e-6 / took.as_secs_f64(), "Mbit/s");
    pair.close()
}

/// Bytes both ways by TCP, each compared.
fn stream(near: &TestNetNs, far: &TestNetNs, to: &str) -> Result<()> {
    let [one, other] = near.connect(far, to.parse()?);
    thread::scope(|scope| {
        let there = scope.spawn(|| exchange(&one, STREAM_BYTES, 1, 2));
        exchange(&other, STREAM_BYTES, 2, 1)?;
        there.join().map_err(|_| anyhow::anyhow!("the client's side panicked"))?
    })
}

/// What crosses in each direction.
const STREAM_BYTES: usize = 32 * CHUNK;
