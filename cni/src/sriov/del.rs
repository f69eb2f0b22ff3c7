//! DEL and GC: everything as it was.

use super::record::{KIND, VfAttachment, VfRecord};
use super::settle::settle;
use crate::call::Call;
use crate::device_info::DeviceInfo;
use crate::ipam::Ipam;
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
    let ipam = Ipam::of(call.environment, call.network).map(|ipam| ipam.order(Command::Gc)).transpose();
    CniError::of_all(undone.into_iter().chain(ipam.err()).collect())
}

/// The same of the conflist's pods.
pub fn gc_of_chain(call: &Call<'_>) -> Result<(), CniError> {
    undo_all(call, |record| record.is_stale_of_chain(call.network))
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
