//! What stays as long as a connection, and what goes with it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{ENDPOINT_ADDRESS, ONE_FAMILY, far_addresses, few_lost};
use crate::TIMEOUT;
use crate::nsm::mesh::{INTERFACE, Mesh};
use crate::nsm::pod::MeshPod;

pub(super) fn close_leaves_nothing(mesh: &mut Mesh) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    let payload = mesh.payload();
    mesh.far().start_endpoint(&endpoint_pod, ONE_FAMILY, payload)?;
    // What a process opens once and keeps is not what this is about.
    let mut before = Vec::new();
    for round in 0..6 {
        let client = mesh.near().start_client(&client_pod, 0)?;
        mesh.wait_connected(&client);
        client_pod.netns().ping_all(ENDPOINT_ADDRESS, 1, 64);
        client.stop();
        client_pod.wait_interfaces(0, TIMEOUT)?;
        endpoint_pod.wait_interfaces(0, TIMEOUT)?;
        if round == 0 {
            before = settled_files(mesh, None)?;
        }
    }
    let after = settled_files(mesh, Some(&before))?;
    ensure!(before == after, "open files of {PROCESSES:?} were {before:?} and are {after:?}");
    for node in mesh.nodes() {
        ensure!(!node.has_wire()?, "a wire is left: {}", node.wires()?);
        let interfaces = node.place().interfaces();
        ensure!(interfaces.iter().all(|name| name == "uplink" || name == "nobody"), "the node has {interfaces:?}");
    }
    Ok(())
}

/// The files that processes have open, once that is `wanted` or does not become so.
fn settled_files(mesh: &Mesh, wanted: Option<&Vec<usize>>) -> Result<Vec<usize>> {
    let count = || {
        let all = mesh.nodes().iter().flat_map(|node| PROCESSES.map(|name| node.open_files(name)));
        all.collect::<Result<Vec<_>>>()
    };
    settled(count, wanted)
}

/// What is counted, once that is `wanted` (without it: once it stays) or does not become so.
pub(super) fn settled<T: PartialEq>(count: impl Fn() -> Result<T>, wanted: Option<&T>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let now = count()?;
        thread::sleep(Duration::from_millis(200));
        let again = count()?;
        let is_settled = wanted.map_or(now == again, |wanted| *wanted == again);
        if is_settled || Instant::now() > end {
            return Ok(again);
        }
    }
}

pub(super) fn refreshes(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, mesh.payload())?;
    let index = pair.client_pod.index(INTERFACE)?;
    let pings = pair.client_pod.start_pings(ENDPOINT_ADDRESS);
    // Tokens of 20 s are refreshed every 4 s or earlier, and certificates of 60 s are new every 30 s.
    thread::sleep(REFRESHING);
    few_lost(pings.end()?)?;
    ensure!(pair.client_pod.index(INTERFACE)? == index, "the interface was made anew");
    pair.close()
}

pub(super) fn thirty_clients(mesh: &mut Mesh) -> Result<()> {
    let endpoint_pod = MeshPod::new();
    mesh.far().start_endpoint(&endpoint_pod, ONE_FAMILY, "ETHERNET")?;
    let pods: Vec<_> = (0..MANY).map(|_| MeshPod::new()).collect();
    let began = Instant::now();
    let start = |(number, pod)| mesh.nodes()[0].start_client(pod, number);
    let clients = pods.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
    for client in &clients {
        mesh.wait_connected(client);
    }
    mesh.figure("all connected", began.elapsed().as_secs_f64() * 1e3, "ms");
    let far = far_addresses(&endpoint_pod)?;
    ensure!(far.len() == MANY, "the endpoint has {far:?}");
    for (number, pod) in pods.iter().enumerate() {
        let own = pod.addresses(INTERFACE);
        let own = own.first().with_context(|| format!("client {number} has no address"))?;
        let to = pod.netns().ip(&format!("route show dev {INTERFACE}"));
        let to = to.split_whitespace().next().with_context(|| format!("{own} has no route"))?.to_owned();
        pod.netns().ping_all(&to, 1, 64);
    }
    let (files, memory) = (mesh.near().open_files("forwarder")?, mesh.near().resident("forwarder")?);
    mesh.figure("open files of the forwarder", files as f64, "");
    mesh.figure("memory of the forwarder", memory as f64, "kB");
    let began = Instant::now();
    let stopping: Vec<_> = clients.into_iter().map(|client| thread::spawn(|| client.stop())).collect();
    for stopping in stopping {
        drop(stopping.join());
    }
    for pod in &pods {
        pod.wait_interfaces(0, TIMEOUT)?;
    }
    mesh.figure("all closed", began.elapsed().as_secs_f64() * 1e3, "ms");
    endpoint_pod.wait_interfaces(0, TIMEOUT)
}

/// Clients at once.
pub(super) const MANY: usize = 30;
/// More than two rotations.
const REFRESHING: Duration = Duration::from_secs(65);
const PROCESSES: [&str; 2] = ["forwarder", "manager"];
