//! DEL, GC and CHECK: the wire is gone, and the interface with it.

use super::EndpointConfig;
use super::record::{CHAIN, EndpointAttachment, EndpointRecord, KIND, wires_of};
use crate::call::Call;
use crate::forwarder::Forwarder;
use crate::interface::{Namespace, lost_address};
use crate::ipam::Ipam;
use crate::protocol::{Attachment, CniError, Code, Command};
use crate::store::{self, Store};

/// Detaches a container. While the forwarder is away the pod ends all the same: the wire stays recorded, and goes with the next command
/// about an endpoint.
pub fn del(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let record = store.find::<EndpointRecord>(attachment)?;
    let undone = record.map(|record| undo(call, &store, &record)).transpose();
    let released = Ipam::of(call.environment, call.network).map(|ipam| ipam.order(Command::Del)).transpose();
    undone.and(released).map(drop)
}

/// Undoes every attachment of the conflist's pods but of those that are to stay.
pub fn gc_of_chain(call: &Call<'_>) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let stale = store.all::<EndpointRecord>()?.into_iter().filter(|record| record.is_stale_of_chain(call.network));
    let undone = stale.filter_map(|record| undo(call, &store, &record).err());
    CniError::of_all(undone.chain(remove_lost(call, &store).err()).collect())
}

/// Wires of the conflist's pods of which nobody knows anything any more: the records are lost, and a journal of the forwarder is not.
fn remove_lost(call: &Call<'_>, store: &Store) -> Result<(), CniError> {
    let Ok(mut forwarder) = Forwarder::connect(&call.network.places.forwarder) else { return Ok(()) };
    let records = store.all::<EndpointRecord>()?;
    let is_known = |name: &str| {
        records.iter().any(|record| record.what.wire == name)
            || call.network.valid.iter().any(|(container, _)| name.starts_with(&wires_of(container)))
    };
    let wires = forwarder.wires()?.into_iter();
    let lost = wires.filter(|wire| wire.labels.get(CHAIN) == Some(&call.network.name) && !is_known(&wire.name));
    let removed: Vec<_> = lost.filter_map(|wire| forwarder.remove(&wire.name).err()).map(CniError::from).collect();
    CniError::of_all(removed)
}

/// Whether a container is attached as ADD said.
pub fn check(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let config = EndpointConfig::read(call.network, attachment)?;
    let about = |error: CniError| error.about(&format!("endpoint {}", config.id));
    check_endpoint(call, attachment).map_err(about)?;
    Ipam::of(call.environment, call.network).map_or(Ok(()), |ipam| ipam.order(Command::Check))
}

fn check_endpoint(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let lost = |problem: String| CniError::new(Code::Failed, format!("{problem}: delete the pod"));
    let record = Store::open(&call.network.places.state, KIND)?.find::<EndpointRecord>(attachment)?;
    let record = record.ok_or_else(|| lost("nothing is known of this attachment".to_owned()))?;
    if !Forwarder::connect(&call.network.places.forwarder)?.has(&record.what.wire)? {
        return Err(lost(format!("its wire {} is gone", record.what.wire)));
    }
    let name = &record.interface;
    let mut pod = Namespace::open(&record.netns)
        .map_err(|error| CniError::new(Code::UnknownContainer, format!("{}: {error}", record.netns.display())))?;
    let link = pod.named(name)?.ok_or_else(|| lost(format!("its interface {name} is not in the container")))?;
    let Some(previous) = &call.network.previous else { return Ok(()) };
    let missing = lost_address(&mut pod, &link, previous)?;
    missing.map_or(Ok(()), |address| Err(lost(format!("its interface {name} has lost {address}"))))
}

/// What pods before had of this endpoint, and what was left of others that are gone.
pub(super) fn settle_owed(call: &Call<'_>, store: &Store, id: &str) -> Result<(), CniError> {
    let boot = store::boot(&call.network.places.root);
    for record in store.all::<EndpointRecord>()? {
        if record.what.id == id {
            forget(call, store, &record)?;
        } else if record.is_over(&boot)
            && let Err(error) = undo(call, store, &record)
        {
            // It is not this pod's trouble.
            eprintln!("{error}");
        }
    }
    Ok(())
}

/// Undoes what a record says, and removes it.
pub(super) fn forget(call: &Call<'_>, store: &Store, record: &EndpointAttachment) -> Result<(), CniError> {
    Forwarder::connect(&call.network.places.forwarder)?.remove(&record.what.wire)?;
    call.step("the wire is gone");
    store.remove(record)
}

fn undo(call: &Call<'_>, store: &Store, record: &EndpointAttachment) -> Result<(), CniError> {
    match forget(call, store, record) {
        Err(error) if error.code == Code::TryAgain => {
            eprintln!("endpoint {}: left for the next command about one: {error}", record.what.id);
            Ok(())
        }
        forgotten => forgotten.map_err(|error| error.about(&format!("endpoint {}", record.what.id))),
    }
}
