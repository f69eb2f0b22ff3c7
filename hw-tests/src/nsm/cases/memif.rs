//! A client by memif: its program takes the socket that the answer names.

use anyhow::{Context, Result, ensure};

use super::ONE_FAMILY;
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

const CLIENT_ADDRESS: &str = "172.16.1.1";
