//! ADD: a wire from the endpoint's socket to an interface in the pod.

use dpdk_forwarder_client::v1;

use super::EndpointConfig;
use super::del::{forget, settle_owed};
use super::record::{EndpointAttachment, EndpointRecord, KIND, wire, wire_name};
use crate::call::Call;
use crate::forwarder::Forwarder;
use crate::interface::{Namespace, open_pod};
use crate::ipam::Ipam;
use crate::protocol::{AddResult, Attachment, CniError, Command, Interface};
use crate::store::{self, Store};

/// Attaches a container to an endpoint.
pub fn add(call: &Call<'_>, attachment: &Attachment) -> Result<AddResult, CniError> {
    let config = EndpointConfig::read(call.network, attachment)?;
    add_endpoint(call, attachment, &config).map_err(|error| error.about(&format!("endpoint {}", config.id)))
}

fn add_endpoint(call: &Call<'_>, attachment: &Attachment, config: &EndpointConfig) -> Result<AddResult, CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let _lock = store.lock(&format!("{KIND}-{}", config.id))?;
    settle_owed(call, &store, &config.id)?;
    let mut pod = open_pod(attachment)?;
    let ipam = Ipam::of(call.environment, call.network);
    let addresses = ipam.map(Ipam::add).transpose()?.unwrap_or_default();
    call.step("there are addresses");
    let what = EndpointRecord { id: config.id.clone(), wire: wire_name(&attachment.container, &attachment.interface) };
    let boot = store::boot(&call.network.places.root);
    let record = EndpointAttachment::new(call.network, attachment, boot, what);
    let wire = wire(&record, attachment, config, &addresses);
    let attached = wire.and_then(|wire| attach(call, &store, &record, wire, &mut pod));
    let failure = match attached {
        Ok(interface) => return Ok(call.network.with_previous(interface, addresses)),
        Err(failure) => failure,
    };
    let made = store.find::<EndpointRecord>(attachment)?;
    let left = made.map(|record| forget(call, &store, &record)).transpose().err();
    let left = left.or(ipam.map(|ipam| ipam.order(Command::Del)).transpose().err());
    Err(failure.and_then_left(left))
}

fn attach(
    call: &Call<'_>,
    store: &Store,
    record: &EndpointAttachment,
    wire: v1::WireSpec,
    pod: &mut Namespace,
) -> Result<Interface, CniError> {
    let mut forwarder = Forwarder::connect(&call.network.places.forwarder)?;
    store.write(record)?;
    call.step("the wire is recorded");
    forwarder.put(wire)?;
    call.step("the wire is there");
    let name = &record.interface;
    let link = pod.named(name)?.ok_or_else(|| CniError::failed(&format!("look at {name}"), "somebody took it away"))?;
    Ok(Interface {
        name: link.name,
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu),
        sandbox: record.netns.to_string_lossy().into_owned(),
        ..Interface::default()
    })
}
