//! A client by memif: its program takes the socket that the answer names.

use anyhow::{Context, Result, ensure};
use ferrule_dataplane::port::FRAME_MAX;
use ferrule_dataplane::spec::{MemifSpec, NetNs, Role};
use ferrule_endpoints::end::EndSpec;

use super::ends::{open, receive, send};
use super::{ENDPOINT_ADDRESS, ONE_FAMILY, wait_until};
use crate::TIMEOUT;
use crate::nsm::mesh::{Mesh, SERVICE};
use crate::nsm::pod::MeshPod;
use crate::nsm::programs::ours;
use crate::process::Process;

pub(super) fn client_by_memif(mesh: &mut Mesh) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    mesh.far().start_endpoint(&endpoint_pod, ONE_FAMILY, "ETHERNET")?;
    let client = mesh.near().start_client_of(&client_pod, 0, &format!("memif://{SERVICE}"))?;
    mesh.wait_connected(&client);
    let said = client.output();
    let socket = said.split([' ', ',']).find(|word| word.starts_with("@ferrule/nsm/")).context("no socket is told")?;
    let mut command = client_pod.command(&ours("responder")?);
    let responder = Process::start(command.args(["--socket", socket, "--address", CLIENT_ADDRESS]));
    endpoint_pod.wait_ping(CLIENT_ADDRESS, TIMEOUT)?;
    endpoint_pod.netns().ping_all(CLIENT_ADDRESS, 10, 1400);
    ensure!(client_pod.interfaces().is_empty(), "a memif is no interface: {:?}", client_pod.interfaces());
    client.stop();
    endpoint_pod.wait_interfaces(0, TIMEOUT)?;
    ensure!(!mesh.near().has_wire()?, "the wire is there still");
    drop(responder);
    Ok(())
}

/// Our endpoint by memif: a client by an interface pings it, and one by memif asks who has its address.
pub(super) fn endpoint_by_memif(mesh: &mut Mesh) -> Result<()> {
    let (client_pod, other_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new(), MeshPod::new());
    mesh.far().start_endpoint_of(&endpoint_pod, ONE_FAMILY, "ETHERNET", Some("memif,kernel"))?;
    let client = mesh.near().start_client(&client_pod, 0)?;
    mesh.wait_connected(&client);
    // The forwarder asks for MEMIF first.
    client_pod.wait_ping(ENDPOINT_ADDRESS, TIMEOUT)?;
    client_pod.netns().ping_all(ENDPOINT_ADDRESS, 20, 1400);
    ensure!(endpoint_pod.interfaces().is_empty(), "a memif is no interface: {:?}", endpoint_pod.interfaces());
    let other = mesh.near().start_client_of(&other_pod, 1, &format!("memif://{SERVICE}"))?;
    mesh.wait_connected(&other);
    let said = other.output();
    let socket = said.split([' ', ',']).find(|word| word.starts_with("@ferrule/nsm/")).context("no socket is told")?;
    let netns = Some(NetNs::Path(other_pod.netns().path()));
    let mut end = open(&EndSpec::Memif(MemifSpec { netns, ..MemifSpec::new(socket.parse()?, Role::Client) }))?;
    let mut gather = vec![0; FRAME_MAX];
    wait_until("somebody says who has the second endpoint's address", || {
        send(&mut end, &WHO_HAS)?;
        let answers = receive(&mut end, &mut gather)?;
        Ok(answers.iter().any(|frame| frame.len() >= 42 && frame[20..22] == [0, 2] && frame[28..32] == WHO_HAS[38..42]))
    })?;
    drop(end);
    other.stop();
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)?;
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()?))
}

const CLIENT_ADDRESS: &str = "172.16.1.1";
/// ARP: 172.16.1.3 asks all for 172.16.1.2.
const WHO_HAS: [u8; 60] = {
    let mut frame = [0; 60];
    let head = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 172, 16,
        1, 3, 0, 0, 0, 0, 0, 0, 172, 16, 1, 2,
    ];
    let mut at = 0;
    while at < head.len() {
        frame[at] = head[at];
        at += 1;
    }
    frame
};
