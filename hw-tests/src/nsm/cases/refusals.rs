//! What is refused, and leaves nothing.

use anyhow::{Result, ensure};

use super::ENDPOINT_ADDRESS;
use crate::TIMEOUT;
use crate::nsm::mesh::{INTERFACE, Mesh};
use crate::nsm::pod::MeshPod;

pub(super) fn by_clients(mesh: &mut Mesh) -> Result<()> {
    let (client_pod, endpoint_pod) = (MeshPod::new(), MeshPod::new());
    // Two addresses: one client.
    mesh.far().start_endpoint(&endpoint_pod, "172.16.1.0/31", "ETHERNET")?;
    let unknown = mesh.near().start_client_of(&client_pod, 0, "kernel://nobody/nsm-1")?;
    unknown.wait_for("network service nobody is not found");
    unknown.stop();
    let client = mesh.near().start_client(&client_pod, 0)?;
    mesh.wait_connected(&client);
    let second_pod = MeshPod::new();
    let second = mesh.start_other_client(&second_pod)?;
    second.wait_for("has no two addresses left");
    ensure!(second_pod.interfaces().is_empty(), "a refused client has {:?}", second_pod.interfaces());
    second.stop();
    client_pod.netns().ping_all(ENDPOINT_ADDRESS, 3, 64);
    // An interface of that name is there already, and is not ours.
    client.stop();
    client_pod.wait_interfaces(0, TIMEOUT)?;
    client_pod.netns().ip(&format!("link add {INTERFACE} type veth peer name other"));
    let taken = mesh.near().start_client(&client_pod, 0)?;
    taken.wait_for("the name is taken");
    taken.stop();
    endpoint_pod.wait_interfaces(0, TIMEOUT)?;
    ensure!(!mesh.near().has_wire()?, "a wire is left: {}", mesh.near().wires()?);
    Ok(())
}
