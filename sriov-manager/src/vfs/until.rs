//! Leases that end by themselves when what they were for is gone: a process, a namespace, a control group.
//!
//! The journal knows what a lease is for, so nobody has to wait for it to end, and a start after a kill goes on looking.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::parallel::for_each_parallel;
use super::release::Remains;
use super::{Caller, VfError, Vfs, WhenBusy};
use crate::address::PciAddress;
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
        let (sysfs, asked) = (self.executor().sysfs.clone(), path.clone());
        let what = format!("look for the network namespace {}", path.display());
        let inode = self.0.questions.call(&what, &[], ANSWER_MAX, move |_| Ok(namespace_inode(&sysfs, &asked)?));
        Some(Until::Namespace { path, inode: inode.ok()?? })
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
        if let Some(until) = updated.until.as_ref().filter(|until| self.has_ended(now.vf, until)) {
            return Err(VfError::Ended { id: updated.id, until: until.clone() });
        }
        if updated != now {
            self.record_lease(now.vf, Some(updated.clone()))?;
        }
        drop(lock);
        Ok(updated)
    }

    /// Whether what the lease of a VF is for is gone. A path may lead to what does not answer: as long as it is waited for, it is not.
    pub(super) fn has_ended(&self, vf: PciAddress, until: &Until) -> bool {
        let sysfs = self.executor().sysfs.clone();
        if let Until::Process { .. } = until {
            return is_gone(&sysfs, until);
        }
        let asked = until.clone();
        let ended = self
            .0
            .questions
            .call(&"look for what the lease is for", &[vf], ANSWER_MAX, move |_| Ok(is_gone(&sysfs, &asked)));
        ended.unwrap_or(false)
    }

    /// Whether there is a lease that may come to its end by itself.
    pub(crate) fn has_leases_that_end(&self) -> bool {
        self.lock().facts.leases.values().any(|lease| lease.until.is_some())
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
            // The question about a path has a thread answer it: it comes last.
            let may_end = lease.stage == Stage::Lent && !waiting.contains(&lease.vf);
            may_end && lease.until.as_ref().is_some_and(|until| self.has_ended(lease.vf, until))
        };
        facts.leases.values().filter(is_due).cloned().collect()
    }
}

/// What a path leads to is at hand, or does not answer at all.
const ANSWER_MAX: Duration = Duration::from_millis(500);
