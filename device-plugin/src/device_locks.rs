//! One at a time for each device: what is given back must not be what was just given away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A lock for each device that was ever used; there are no more than the node has.
#[derive(Debug, Default)]
pub struct DeviceLocks(Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>);

/// Devices that are locked, while this or a copy of it is kept.
pub type DeviceLock = Arc<Vec<OwnedMutexGuard<()>>>;

impl DeviceLocks {
    /// Locks all of these; always in the same order, so that nobody waits for who waits for him.
    pub async fn lock(&self, devices: impl Iterator<Item = String>) -> DeviceLock {
        let devices: BTreeSet<String> = devices.collect();
        let mut locked = Vec::with_capacity(devices.len());
        for device in devices {
            let lock = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(device).or_default());
            locked.push(lock.lock_owned().await);
        }
        Arc::new(locked)
    }
}
