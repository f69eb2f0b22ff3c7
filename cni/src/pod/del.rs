//! DEL, GC and CHECK: what the record says, whatever the rules are by now.

use super::record::{KIND, Part, PodAttachment, PodRecord};
use crate::call::Call;
use crate::protocol::{Attachment, CniError, Command};
use crate::store::Store;
use crate::{endpoint, sriov};

/// Detaches a pod. What could not be undone is recorded with its network, and done by whoever meets it next.
pub fn del(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let record = store.find::<PodRecord>(attachment)?;
    record.map_or(Ok(()), |record| forget(call, &store, &record))
}

/// Detaches every pod but those that are to stay. One that fails does not stop the others.
pub fn gc(call: &Call<'_>) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let stale = store.all::<PodRecord>()?.into_iter();
    let stale =
        stale.filter(|record| record.network == call.network.name && !call.network.has_valid(&record.container));
    let forgotten = stale.filter_map(|record| forget(call, &store, &record).err());
    let problems = forgotten.chain(sriov::gc_of_chain(call).err()).chain(endpoint::gc_of_chain(call).err());
    CniError::of_all(problems.collect())
}

/// Whether a pod is attached as ADD said.
pub fn check(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let Some(record) = store.find::<PodRecord>(attachment)? else { return Ok(()) };
    for part in &record.what.parts {
        part.run(call, &record, Command::Check, call.network.previous.clone(), |call, attachment| {
            let check = if endpoint::is_of_endpoint(call.network) { endpoint::check } else { sriov::check };
            check(call, attachment)
        })?;
    }
    Ok(())
}

/// Undoes all that a record says, and removes it.
pub(super) fn forget(call: &Call<'_>, store: &Store, record: &PodAttachment) -> Result<(), CniError> {
    detach_all(call, record, record.what.parts.len())?;
    store.remove(record)
}

/// Undoes the first so many parts, the last of them first.
pub(super) fn detach_all(call: &Call<'_>, record: &PodAttachment, count: usize) -> Result<(), CniError> {
    let parts = record.what.parts.iter().take(count).rev();
    CniError::of_all(parts.filter_map(|part| detach(call, record, part).err()).collect())
}

fn detach(call: &Call<'_>, record: &PodAttachment, part: &Part) -> Result<(), CniError> {
    part.run(call, record, Command::Del, None, |call, attachment| {
        let del = if endpoint::is_of_endpoint(call.network) { endpoint::del } else { sriov::del };
        del(call, attachment)
    })
}
