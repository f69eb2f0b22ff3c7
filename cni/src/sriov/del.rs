//! DEL and GC: everything as it was.

use super::record::{KIND, LEASES, VfAttachment, VfRecord, lease_id};
use super::settle::settle;
use crate::call::Call;
use crate::device_info::DeviceInfo;
use crate::ipam::Ipam;
use crate::manager::Manager;
use crate::protocol::{Attachment, CniError, Command};
use crate::store::Store;

/// Detaches a container. What is not there any more is good as it is. What cannot be undone now does not keep the pod from ending: it
/// stays recorded.
pub fn del(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let record = store.find::<VfRecord>(attachment)?;
    let undone = record.map(|record| undo(call, &store, &record)).transpose();
    let released = Ipam::of(call.environment, call.network).map(|ipam| ipam.order(Command::Del)).transpose();
    if let Some(file) = call.network.device_info()? {
        DeviceInfo::remove(&file)?;
    }
    undone.and(released).map(drop)
}

/// Undoes every attachment of the network but those that are to stay. One that fails does not stop the others.
pub fn gc(call: &Call<'_>) -> Result<(), CniError> {
    let undone = undo_all(call, |record| record.is_stale(call.network)).err();
    let undone = undone.or(release_lost(call).err());
    let ipam = Ipam::of(call.environment, call.network).map(|ipam| ipam.order(Command::Gc)).transpose();
    CniError::of_all(undone.into_iter().chain(ipam.err()).collect())
}

/// The same of the conflist's pods.
pub fn gc_of_chain(call: &Call<'_>) -> Result<(), CniError> {
    undo_all(call, |record| record.is_stale_of_chain(call.network))
}

/// Leases of attachments of this network of which nobody knows anything any more: the records are lost, and they outlive those.
fn release_lost(call: &Call<'_>) -> Result<(), CniError> {
    let Ok(mut manager) = Manager::connect(&call.network.places.manager) else { return Ok(()) };
    let records = Store::open(&call.network.places.state, KIND)?.all::<VfRecord>()?;
    let of_network = format!(", network {}", call.network.name);
    let is_known = |id: &str| {
        let is = |container: &str, interface: &str| lease_id(container, interface) == id;
        records.iter().any(|record| is(&record.container, &record.interface))
            || call.network.valid.iter().any(|(container, interface)| is(container, interface))
    };
    let leases = manager.leases()?.into_iter();
    let lost = leases.filter(|lease| lease.tenant.ends_with(&of_network) && lease.id.starts_with(LEASES));
    let lost: Vec<_> = lost.filter(|lease| !is_known(&lease.id)).collect();
    let released = lost.iter().filter_map(|lease| {
        let released = manager.release(&lease.id).map_err(CniError::from);
        released.map_err(|error| error.about(&format!("device {}", lease.vf))).err()
    });
    CniError::of_all(released.collect())
}

fn undo_all(call: &Call<'_>, is_meant: impl Fn(&VfAttachment) -> bool) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let meant = store.all::<VfRecord>()?.into_iter().filter(is_meant);
    CniError::of_all(meant.filter_map(|record| undo(call, &store, &record).err()).collect())
}

fn undo(call: &Call<'_>, store: &Store, record: &VfAttachment) -> Result<(), CniError> {
    let device = &record.what.device;
    let about = |error: CniError| error.about(&format!("device {device}"));
    let _lock = store.lock(device).map_err(about)?;
    // Somebody may have undone it while the lock was waited for, and done it anew.
    let now = store.all::<VfRecord>()?.into_iter().any(|other| other == *record);
    if !now {
        return Ok(());
    }
    match settle(call, record).map_err(about)? {
        None => store.remove(record),
        Some(owed) => {
            eprintln!("device {device}: left for the next command about it: {owed}");
            Ok(())
        }
    }
}
