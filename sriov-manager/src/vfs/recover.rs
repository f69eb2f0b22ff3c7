//! The start after a stop, a kill or a reboot, and going on later with what could not be finished.

use std::collections::BTreeSet;
use std::thread;

use tracing::{info, warn};

use super::release::Remains;
use super::{LockRequest, VfError, Vfs};
use crate::journal::Record;
use crate::lease::{Lease, Stage};

impl Vfs {
    /// Brings everything that the journal knows to a known state. Only the journal itself can fail it.
    pub(super) fn recover(&self) -> Result<(), VfError> {
        let facts = self.facts();
        let boot = self.0.boot_id();
        if !facts.boot.is_empty() && facts.boot != boot {
            info!(
                leases = facts.leases.len(),
                "the node was rebooted: its VFs are made anew, and its leases brought back"
            );
        }
        for (&pf, resize) in &facts.resizes {
            info!(%pf, from = resize.from, to = resize.to, "finishing a change of its number of VFs");
            self.finish_resize(pf, resize)?;
        }
        self.look();
        let counts = {
            let state = self.lock();
            state.policies.counts(&state.inventory)
        };
        self.make_counts(&counts)?;
        self.look();
        // PFs beside each other: a reboot may have many leases to bring back.
        let pfs: BTreeSet<_> = facts.leases.values().map(|lease| lease.pf).collect();
        thread::scope(|scope| {
            let leases = |pf| facts.leases.values().filter(move |lease| lease.pf == pf);
            let work = |pf| scope.spawn(move || leases(pf).try_for_each(|lease| self.restore(lease)));
            let threads: Vec<_> = pfs.iter().map(|&pf| work(pf)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        // What was brought back is not what was seen before.
        self.look();
        self.record(&mut self.lock(), &Record::Boot { id: boot })
    }

    /// Goes on with leases that something is wrong with.
    pub(crate) fn reconcile(&self) {
        let facts = self.facts();
        for lease in facts.leases.values() {
            let gone = self.function(lease).is_none();
            let faulty = lease.fault.is_some() || lease.stage != Stage::Lent;
            let stuck = self.executor().watchdog.stuck(lease.vf).is_some();
            if (gone || faulty)
                && !stuck
                && let Err(error) = self.reconcile_one(lease)
            {
                warn!(vf = %lease.vf, lease = lease.id, %error, "still not as it should be");
            }
        }
    }

    /// Only if nobody works on it: whoever does will see to it.
    fn reconcile_one(&self, lease: &Lease) -> Result<(), VfError> {
        {
            let state = self.lock();
            if LockRequest::of_lease(&state, lease).is_taken(&state) {
                return Ok(());
            }
        }
        let (now, lock) = self.lock_vfs(|state| {
            let now = state.journal.facts().leases.get(&lease.vf).cloned();
            Ok((now, LockRequest::of_lease(state, lease)))
        })?;
        // Whoever came in between saw to it.
        let result = if now.as_ref() == Some(lease) { self.restore(lease) } else { Ok(()) };
        drop(lock);
        result
    }

    /// Brings one lease to a known state: lent and as wanted, or free, or faulty and saying why. Only the journal fails it.
    fn restore(&self, lease: &Lease) -> Result<(), VfError> {
        let Some(vf) = self.function(lease) else {
            return match lease.stage {
                Stage::Lent | Stage::Changing { .. } => self.fault(lease, Some(GONE.to_owned())),
                // What was to be cleaned is gone.
                Stage::New | Stage::Releasing | Stage::Dirty => self.clean(lease.clone(), Remains::Refused),
            };
        };
        let restored = match lease.stage {
            Stage::Lent => {
                let fault = self.apply_wanted(lease, &vf).err();
                return self.fault(lease, fault.map(|error| error.to_string()));
            }
            Stage::Changing { .. } => self.go_back(lease),
            Stage::New | Stage::Releasing | Stage::Dirty => self.clean(lease.clone(), Remains::Refused),
        };
        match restored {
            Err(VfError::Journal(error)) => Err(error.into()),
            // Recorded as its fault, and tried again.
            _ => Ok(()),
        }
    }

    fn fault(&self, lease: &Lease, fault: Option<String>) -> Result<(), VfError> {
        let mut state = self.lock();
        let now = Lease { fault, ..lease.clone() };
        if state.journal.facts().leases.get(&lease.vf) == Some(&now) {
            return Ok(());
        }
        if let Some(fault) = &now.fault {
            warn!(vf = %lease.vf, lease = lease.id, fault, "a lease is not as it should be");
        }
        self.record(&mut state, &Record::Lease { vf: lease.vf, lease: Some(Box::new(now)) })
    }
}

/// A lease whose VF is not there stays: its client still believes in it, and the VF may come back.
const GONE: &str = "its VF is gone: make it again with `ferrule vf create`, and the lease comes back, or release it";
