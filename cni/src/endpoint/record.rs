//! What has to be known of a pod's endpoint later, and the wire that it is.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use dpdk_forwarder_client::v1;
use serde::{Deserialize, Serialize};

use super::EndpointConfig;
use crate::forwarder::OWNER;
use crate::protocol::{AddResult, Attachment, CniError, Route};
use crate::store;

/// What was done for an endpoint, or was about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// As the device plugin calls it.
    pub id: String,
    /// The wire from its socket to the pod's interface.
    pub wire: String,
}

/// The record of an attachment with an endpoint.
pub type EndpointAttachment = store::Record<EndpointRecord>;

/// What the wire of an attachment is called.
pub(super) fn wire_name(container: &str, interface: &str) -> String {
    format!("{}{interface}", wires_of(container))
}

/// What names of wires of a container begin with.
pub(super) fn wires_of(container: &str) -> String {
    format!("cni/{}/", container.get(..CONTAINER_PART).unwrap_or(container))
}

/// The wire as it is to be. The forwarder gives the interface its addresses, and does so again when it has started again.
pub(super) fn wire(
    record: &EndpointAttachment,
    attachment: &Attachment,
    config: &EndpointConfig,
    addresses: &AddResult,
) -> Result<v1::WireSpec, CniError> {
    let netns = v1::NetNs { place: Some(v1::net_ns::Place::Path(real(&record.netns).display().to_string())) };
    let routes: Result<Vec<_>, _> = addresses.routes.iter().map(|to| route(to, addresses)).collect();
    let kernel = v1::KernelEnd {
        netns: Some(netns),
        name: record.interface.clone(),
        mac: config.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: config.mtu,
        addresses: addresses.ips.iter().map(|ip| ip.address.to_string()).collect(),
        routes: routes?,
    };
    let socket = config.socket.to_string_lossy().into_owned();
    let memif = v1::MemifEnd { socket, role: v1::Role::Client.into(), ..Default::default() };
    let kinds = [v1::end_spec::Kind::Kernel(kernel), v1::end_spec::Kind::Memif(memif)];
    let pod =
        ["K8S_POD_NAMESPACE", "K8S_POD_NAME"].map(|key| attachment.args.get(key).map_or("", String::as_str)).join("/");
    let chain = record.chain.as_deref().unwrap_or_default();
    let labels = [("network", record.network.as_str()), ("endpoint", &config.id), ("pod", &pod), (CHAIN, chain)];
    Ok(v1::WireSpec {
        name: record.what.wire.clone(),
        ends: kinds.map(|kind| v1::EndSpec { kind: Some(kind) }).into(),
        owner: OWNER.to_owned(),
        labels: labels.map(|(key, value)| (key.to_owned(), value.chars().take(LABEL_MAX).collect())).into(),
        ..Default::default()
    })
}

/// Without the links on the way, such as `/var/run`: the forwarder's root may be another one.
fn real(netns: &Path) -> PathBuf {
    let folder = netns.parent().and_then(|folder| folder.canonicalize().ok());
    folder.zip(netns.file_name()).map_or_else(|| netns.to_owned(), |(folder, name)| folder.join(name))
}

/// The forwarder knows no tables and priorities.
fn route(route: &Route, addresses: &AddResult) -> Result<v1::Route, CniError> {
    if route.table.is_some() || route.priority.is_some() || route.mtu.is_some() || route.advmss.is_some() {
        let problem =
            format!("a route to {} with a table, priority or MTU: leave these out on a node without a NIC", route.dst);
        return Err(CniError::config(problem));
    }
    let is_of_family = |gateway: &IpAddr| gateway.is_ipv4() == route.dst.addr().is_ipv4();
    let gateway = route.gw.or_else(|| addresses.ips.iter().filter_map(|ip| ip.gateway).find(is_of_family));
    let via = gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    Ok(v1::Route { to: route.dst.trunc().to_string(), via })
}

/// Of the records' folder.
pub const KIND: &str = "endpoint";
/// The label with the conflist's name.
pub(super) const CHAIN: &str = "chain";
/// Names of wires have 64 bytes, and those of interfaces 15.
const CONTAINER_PART: usize = 44;
/// Of a label's value.
const LABEL_MAX: usize = 256;
