//! Leases that end by themselves when what they were for is gone: a process, a namespace, a control group.
//!
//! The journal knows what a lease is for, so nobody has to wait for it to end, and a start after a kill goes on looking.

use std::time::Instant;

use tracing::{info, warn};

use super::parallel::for_each_parallel;
use super::release::Remains;
use super::{Caller, VfError, Vfs, WhenBusy};
use crate::holders::{is_gone, namespace_inode, start_time};
use crate::lease::{Lease, Stage, Until};
use crate::policy::PeerCredentials;

impl Vfs {
    /// A process, from now on as itself and no other one that may get its number; none: it is not there.
    pub fn this_process(&self, pid: u32) -> Option<Until> {
        Some(Until::Process { pid, start_time: start_time(&self.executor().sysfs, pid).ok()?? })
    }

    /// A network namespace by a file of it; none: it is not there.
    pub fn this_namespace(&self, path: std::path::PathBuf) -> Option<Until> {
        let inode = namespace_inode(&self.executor().sysfs, &path).ok()??;
        Some(Until::Namespace { path, inode })
    }

    /// Tells for whom a lease is, and what ends it, without touching its VF. What is not given stays.
    pub fn update(
        &self,
        lease: &str,
        tenant: Option<String>,
        until: Option<Option<Until>>,
        peer: PeerCredentials,
        caller: Caller<'_>,
    ) -> Result<Lease, VfError> {
        if let Some(tenant) = &tenant {
            super::request::check_name("tenant", tenant)?;
        }
        let (now, lock) = loop {
            let found = self.lock_vfs(caller.when_busy, |state| super::release::find(state, lease, peer))?;
            if !matches!(found.0.stage, Stage::HandingOver { .. }) {
                break found;
            }
            // A try to hand its VF over that did not end is undone first.
            self.go_back(&found.0)?;
        };
        let updated = Lease {
            tenant: tenant.unwrap_or_else(|| now.tenant.clone()),
            until: until.unwrap_or_else(|| now.until.clone()),
            ..now.clone()
        };
        if let Some(until) = updated.until.as_ref().filter(|until| self.has_ended(until)) {
            return Err(VfError::Ended { id: updated.id, until: until.clone() });
        }
        if updated != now {
            self.record_lease(now.vf, Some(updated.clone()))?;
        }
        drop(lock);
        Ok(updated)
    }

    pub(super) fn has_ended(&self, until: &Until) -> bool {
        is_gone(&self.executor().sysfs, until)
    }

    /// Whether there is a lease that is at its end and is not known to wait for something.
    pub(crate) fn has_ended_leases(&self) -> bool {
        !self.ended_leases().is_empty()
    }

    /// Gives leases back that are at their end, unless somebody still holds their VFs.
    pub(crate) fn release_ended(&self) {
        for_each_parallel(&self.ended_leases(), |lease| {
            if self.0.stop.has_begun() {
                return;
            }
            let root = PeerCredentials { uid: 0, gid: 0 };
            let caller = Caller { when_busy: WhenBusy::Refuse, ..Caller::PATIENT };
            info!(vf = %lease.vf, lease = lease.id, "what the lease was for is gone");
            // By its VF, and only if it is still the same: meanwhile it may have been given back, changed or lent again.
            match self.release_if(&lease.vf.to_string(), Remains::Refused, root, caller, |now| now == lease) {
                Ok(_) | Err(VfError::NoSuchLease { .. } | VfError::Busy { .. }) => {}
                Err(error) => {
                    warn!(vf = %lease.vf, lease = lease.id, %error, "a lease that is at its end is not given back yet");
                    self.lock().retries.failed(lease.vf, Instant::now());
                }
            }
        });
    }

    fn ended_leases(&self) -> Vec<Lease> {
        let (facts, waiting) = {
            let state = self.lock();
            let now = Instant::now();
            let leases = state.facts.leases.keys().copied();
            let waiting: Vec<_> = leases.filter(|&vf| state.retries.is_waiting(vf, now)).collect();
            (std::sync::Arc::clone(&state.facts), waiting)
        };
        let is_due = |lease: &&Lease| {
            let ended = lease.until.as_ref().is_some_and(|until| self.has_ended(until));
            ended && lease.stage == Stage::Lent && !waiting.contains(&lease.vf)
        };
        facts.leases.values().filter(is_due).cloned().collect()
    }
}
