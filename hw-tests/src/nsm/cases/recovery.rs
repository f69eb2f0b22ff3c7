//! One process is killed and replaced, and traffic goes on or comes back by itself.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{ENDPOINT_ADDRESS, ONE_FAMILY, few_lost, wait_until};
use crate::TIMEOUT;
use crate::nsm::mesh::{INTERFACE, Mesh, Pair};
use crate::nsm::pod::MeshPod;
use crate::nsm::programs::Maker;

pub(super) fn forwarder_killed(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    let index = pair.client_pod.index(INTERFACE)?;
    let pings = pair.client_pod.start_pings(ENDPOINT_ADDRESS);
    mesh.near().kill("forwarder")?;
    mesh.near().start_forwarder()?;
    let began = Instant::now();
    wait_until("the new forwarder has the wire", || mesh.near().has_wire())?;
    mesh.figure("wire taken over after the start", began.elapsed().as_secs_f64() * 1e3, "ms");
    let lost = few_lost(pings.end()?)?;
    mesh.figure("pings lost", lost as f64, "");
    // An endpoint in Go gives its interface another name when it is not told of the one before.
    if mesh.cast().endpoint == Maker::Ours {
        ensure!(pair.client_pod.index(INTERFACE)? == index, "the interface was made anew");
    }
    pair.close()
}

pub(super) fn near_forwarder_killed(mesh: &mut Mesh) -> Result<()> {
    remote_forwarder_killed(mesh, false)
}

pub(super) fn far_forwarder_killed(mesh: &mut Mesh) -> Result<()> {
    remote_forwarder_killed(mesh, true)
}

fn remote_forwarder_killed(mesh: &mut Mesh, is_far: bool) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, mesh.payload())?;
    let before = pair.client_pod.index(INTERFACE)?;
    let pings = pair.client_pod.start_pings(ENDPOINT_ADDRESS);
    let node = if is_far { mesh.far() } else { mesh.near() };
    node.kill("forwarder")?;
    node.start_forwarder()?;
    // Who comes new says that the new one serves.
    let took = other_client_connects(mesh)?;
    mesh.figure("a new client is connected after the start", took, "ms");
    let is_ours = mesh.cast().client == Maker::Ours;
    if is_ours {
        // It was told, and has asked again.
        wait_until("the client is connected again", || {
            let output = pair.client.output();
            Ok(output.rsplit_once("down: ").is_some_and(|(_, since)| since.contains("connected: ")))
        })?;
    }
    let (sent, received) = pings.end()?;
    mesh.figure("pings lost", sent.saturating_sub(received) as f64, "");
    // A device of the kernel works on without its forwarder, and the new one takes it over.
    if mesh.payload() == "ETHERNET" && is_ours {
        ensure!(sent.saturating_sub(received) <= LOST_MAX, "{received} of {sent} pings were answered");
        ensure!(pair.client_pod.index(INTERFACE)? == before, "the interface was made anew");
    }
    pair.client_pod.wait_ping(ENDPOINT_ADDRESS, TIMEOUT)?;
    close_at_once(mesh, pair)
}

pub(super) fn manager_killed(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    let pings = pair.client_pod.start_pings(ENDPOINT_ADDRESS);
    mesh.near().kill("manager")?;
    mesh.near().start_manager()?;
    // Who comes new says that all others are registered again.
    let took = other_client_connects(mesh)?;
    mesh.figure("a new client is connected after the start", took, "ms");
    few_lost(pings.end()?)?;
    close_at_once(mesh, pair)
}

pub(super) fn managers_killed(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    let pings = pair.client_pod.start_pings(ENDPOINT_ADDRESS);
    for is_far in [false, true] {
        let node = if is_far { mesh.far() } else { mesh.near() };
        node.kill("manager")?;
        node.start_manager()?;
        let took = other_client_connects(mesh)?;
        let which = if is_far { "far" } else { "near" };
        mesh.figure(&format!("a new client is connected after the start of the {which} manager"), took, "ms");
    }
    few_lost(pings.end()?)?;
    close_at_once(mesh, pair)
}

pub(super) fn registry_killed(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    let pings = pair.client_pod.start_pings(ENDPOINT_ADDRESS);
    mesh.kill_registry()?;
    mesh.start_registry()?;
    let took = other_client_connects(mesh)?;
    mesh.figure("a new client is connected after the start", took, "ms");
    few_lost(pings.end()?)?;
    pair.close()
}

/// Closes a connection that its client may not have asked for again since a process was replaced.
fn close_at_once(mesh: &Mesh, pair: Pair) -> Result<()> {
    let cast = mesh.cast();
    if cast.client == Maker::Ours && cast.manager == Maker::Ours {
        return pair.close();
    }
    // A client in Go takes seconds to ask again, and a manager in Go answers a Close of what it does not know, and passes it to nobody: then
    // the link stays until its token runs out.
    pair.client.stop();
    Ok(())
}

/// Connects one more client, and closes it again; how many milliseconds it took to connect.
fn other_client_connects(mesh: &mut Mesh) -> Result<f64> {
    let began = Instant::now();
    let pod = MeshPod::new();
    let client = mesh.start_other_client(&pod)?;
    while !mesh.is_connected(&client) {
        ensure!(began.elapsed() < RECOVERY_MAX, "no new client is connected within {RECOVERY_MAX:?}");
        thread::sleep(POLL);
    }
    let took = began.elapsed().as_secs_f64() * 1e3;
    client.stop();
    pod.wait_interfaces(0, TIMEOUT)?;
    Ok(took)
}

pub(super) fn endpoint_killed(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    mesh.far().kill("endpoint")?;
    mesh.far().start_endpoint(&pair.endpoint_pod, ONE_FAMILY, "ETHERNET")?;
    let took = pair.client_pod.wait_ping(ENDPOINT_ADDRESS, TIMEOUT)?;
    mesh.figure("the endpoint answers after its start", took.as_secs_f64() * 1e3, "ms");
    pair.client.stop();
    pair.client_pod.wait_interfaces(0, TIMEOUT)
}

pub(super) fn interface_deleted(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    pair.client_pod.netns().ip(&format!("link del {INTERFACE}"));
    let took = pair.client_pod.wait_ping(ENDPOINT_ADDRESS, TIMEOUT)?;
    mesh.figure("traffic is back", took.as_secs_f64() * 1e3, "ms");
    pair.close()
}

/// Of a tunnel whose forwarder is replaced: its MAC address and MTU are set again.
const LOST_MAX: u64 = 2;
/// An endpoint in Go registers again after 40 s, and not when its registry comes back.
const RECOVERY_MAX: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(20);
