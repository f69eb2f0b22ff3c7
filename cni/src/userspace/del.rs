//! DEL, GC, CHECK and STATUS: the seat is free, and a wire that nobody has is gone.

use super::SocketConfig;
use super::files::{has_link, remove};
use super::seats::{KIND, SeatRecord, SocketAttachment, seat_label, wire, wire_name, wires_of};
use crate::call::Call;
use crate::device_info::DeviceInfo;
use crate::forwarder::Forwarder;
use crate::ipam::Ipam;
use crate::protocol::{Attachment, CniError, Code, Command};
use crate::store::{self, Store};

/// Detaches a container. While the forwarder is away its files go, and its seat is free for the next one that comes when the forwarder
/// is back.
pub fn del(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let undone = undo(call, &store, |record| record.is_of(attachment));
    let released = Ipam::of(call.environment, call.network).map(|ipam| ipam.order(Command::Del)).transpose();
    if let Some(file) = call.network.device_info()? {
        DeviceInfo::remove(&file)?;
    }
    undone.and(released).map(drop)
}

/// Undoes every attachment of the network but those that are to stay.
pub fn gc(call: &Call<'_>) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let undone = undo(call, &store, |record| record.is_stale(call.network)).and_then(|()| remove_lost(call, &store));
    let released = Ipam::of(call.environment, call.network).map(|ipam| ipam.order(Command::Gc)).transpose();
    undone.and(released).map(drop)
}

/// Wires of the network of which nobody knows anything any more: the records are lost, and a journal of the forwarder is not.
fn remove_lost(call: &Call<'_>, store: &Store) -> Result<(), CniError> {
    let Ok(mut forwarder) = Forwarder::connect(&call.network.places.forwarder) else { return Ok(()) };
    let _lock = store.lock(&format!("network-{}", call.network.name))?;
    let records = store.all::<SeatRecord>()?.into_iter().filter(|record| record.network == call.network.name);
    let known: Vec<_> = records.map(|record| wire_name(&record.network, record.what.pair)).collect();
    let is_valid = |who: &String| {
        let mut valid = call.network.valid.iter();
        valid.any(|(container, interface)| *who == seat_label(container, interface))
    };
    let of_network = wires_of(&call.network.name);
    let wires = forwarder.wires()?.into_iter().filter(|wire| wire.name.starts_with(&of_network));
    let lost = wires.filter(|wire| !known.contains(&wire.name) && !wire.labels.values().any(is_valid));
    let removed: Vec<_> = lost.filter_map(|wire| forwarder.remove(&wire.name).err()).map(CniError::from).collect();
    CniError::of_all(removed)
}

/// Whether a container is attached as ADD said.
pub fn check(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let lost = |problem: String| CniError::new(Code::Failed, format!("{problem}: delete the pod"));
    let record = Store::open(&call.network.places.state, KIND)?.find::<SeatRecord>(attachment)?;
    let record = record.ok_or_else(|| lost("nothing is known of this attachment".to_owned()))?;
    let about = |error: CniError| error.about(&format!("socket {}", record.what.file));
    let name = wire_name(&record.network, record.what.pair);
    let has_wire = Forwarder::connect(&call.network.places.forwarder).and_then(|mut forwarder| forwarder.has(&name));
    if !has_wire.map_err(CniError::from).map_err(about)? {
        return Err(about(lost(format!("its wire {name} is gone"))));
    }
    if !has_link(&record) {
        return Err(about(lost(format!("somebody has removed it from {}", record.what.shared.display()))));
    }
    Ipam::of(call.environment, call.network).map_or(Ok(()), |ipam| ipam.order(Command::Check))
}

/// Whether ADD would be served.
pub fn status(call: &Call<'_>) -> Result<(), CniError> {
    SocketConfig::read(call.network)?;
    let forwarder = Forwarder::connect(&call.network.places.forwarder);
    forwarder.map_err(|error| CniError::new(Code::Unavailable, error.to_string()))?;
    Ipam::of(call.environment, call.network).map_or(Ok(()), |ipam| ipam.order(Command::Status))
}

/// What was left while the forwarder was away, or is of pods that ended without a DEL: nobody else gets their seats before.
pub(super) fn settle_owed(call: &Call<'_>, store: &Store) -> Result<(), CniError> {
    let boot = store::boot(&call.network.places.root);
    let owed = store.all::<SeatRecord>()?.into_iter().filter(|record| record.network == call.network.name);
    for record in owed.filter(|record| record.is_over(&boot)) {
        forget(call, store, &record)?;
    }
    Ok(())
}

/// Undoes what a record says, and removes it.
pub(super) fn forget(call: &Call<'_>, store: &Store, record: &SocketAttachment) -> Result<(), CniError> {
    remove(record)?;
    call.step("the pod's files are gone");
    leave(call, store, record)?;
    call.step("the wire is nobody's, or the other pod's");
    store.remove(record)
}

/// The wire is as whoever stays has it.
fn leave(call: &Call<'_>, store: &Store, record: &SocketAttachment) -> Result<(), CniError> {
    let is_of_wire = |other: &SocketAttachment| other.network == record.network && other.what.pair == record.what.pair;
    let others = store.all::<SeatRecord>()?.into_iter();
    let stays = others.filter(is_of_wire).find(|other| other.what.seat != record.what.seat);
    let mut forwarder = Forwarder::connect(&call.network.places.forwarder)?;
    match stays {
        Some(stays) => forwarder.put(wire(&stays, &[]))?,
        None => forwarder.remove(&wire_name(&record.network, record.what.pair))?,
    }
    Ok(())
}

fn undo(call: &Call<'_>, store: &Store, is_meant: impl Fn(&SocketAttachment) -> bool) -> Result<(), CniError> {
    let _lock = store.lock(&format!("network-{}", call.network.name))?;
    let meant = store.all::<SeatRecord>()?.into_iter().filter(|record| record.network == call.network.name);
    let mut failure = None;
    for record in meant.filter(is_meant) {
        let about = |error: CniError| error.about(&format!("socket {}", record.what.file));
        match forget(call, store, &record) {
            Err(error) if error.code == Code::TryAgain => {
                eprintln!("socket {}: left for the next command about this network: {error}", record.what.file);
            }
            forgotten => failure = failure.or(forgotten.map_err(about).err()),
        }
    }
    failure.map_or(Ok(()), Err)
}
