//! The start after a stop, a kill or a reboot, and going on later with what could not be finished.

use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

use tracing::{error, info, warn};

use super::counts::CountsSeen;
use super::release::Remains;
use super::{LockRequest, VfError, Vfs};
use crate::address::PciAddress;
use crate::journal::Record;
use crate::lease::{Lease, Resize, Stage};

impl Vfs {
    /// Brings everything that the journal knows to a known state. What the journal refuses is told: with a full disk nothing is
    /// lent, and everything is shown all the same.
    pub(super) fn recover(&self) {
        let facts = self.facts();
        let boot = self.0.boot_id();
        if !facts.boot.is_empty() && facts.boot != boot {
            info!(
                leases = facts.leases.len(),
                "the node was rebooted: its VFs are made anew, and its leases brought back"
            );
        }
        let told = |result: Result<(), VfError>| {
            if let Err(error) = result {
                error!(%error, "what the start did cannot be recorded; VFs are shown, and nothing is lent before it can be");
            }
        };
        for (&pf, resize) in &facts.resizes {
            info!(%pf, from = resize.from, to = resize.to, "finishing a change of its number of VFs");
            told(self.finish_resize(pf, resize));
        }
        self.look();
        let counts = {
            let state = self.lock();
            state.policies.counts(&state.inventory)
        };
        CountsSeen::see_to_all(&mut self.lock());
        told(self.make_counts(&counts).map(drop));
        self.look();
        // PFs beside each other: a reboot may have many leases to bring back.
        let pfs: BTreeSet<_> = facts.leases.values().map(|lease| lease.pf).collect();
        thread::scope(|scope| {
            let leases = |pf| facts.leases.values().filter(move |lease| lease.pf == pf);
            for &pf in &pfs {
                scope.spawn(move || leases(pf).for_each(|lease| told(self.restore(lease))));
            }
        });
        // What was brought back is not what was seen before.
        self.look();
        told(self.record(&mut self.lock(), &Record::Boot { id: boot }));
    }

    /// Goes on with what could not be finished, with leases that something is wrong with or whose VF is not what it was, and
    /// with the numbers of VFs of PFs that came since.
    pub(crate) fn reconcile(&self) {
        let facts = self.facts();
        for (&pf, resize) in &facts.resizes {
            if let Err(error) = self.reconcile_resize(pf, resize) {
                warn!(%pf, %error, "a change of its number of VFs cannot be finished");
            }
        }
        if let Err(error) = self.reconcile_counts() {
            warn!(%error, "the numbers of VFs cannot be made what the policies want");
        }
        for lease in facts.leases.values() {
            if self.needs_reconciling(lease)
                && let Err(error) = self.reconcile_one(lease)
            {
                warn!(vf = %lease.vf, lease = lease.id, %error, "still not as it should be");
            }
        }
    }

    fn needs_reconciling(&self, lease: &Lease) -> bool {
        let state = self.lock();
        let vf = state.inventory.vfs.get(&lease.vf).filter(|vf| lease.is_of(vf));
        let Some(vf) = vf else {
            // Told once; it is looked at again when the VF is back.
            return lease.fault.as_deref() != Some(GONE);
        };
        let drifted = state.remade.contains(&lease.vf) || !lease.is_driven_as_wanted(vf);
        let faulty = lease.fault.is_some() || lease.stage != Stage::Lent || drifted;
        let stuck = self.executor().watchdog.stuck(lease.vf).is_some();
        faulty && !stuck && !state.retries.is_waiting(lease.vf, Instant::now())
    }

    /// Finishes a change of a number of VFs whose call into the kernel had not come back.
    fn reconcile_resize(&self, pf: PciAddress, resize: &Resize) -> Result<(), VfError> {
        let is_busy = self.executor().watchdog.stuck(pf).is_some() || self.lock().locked.contains(&pf);
        if is_busy {
            return Ok(());
        }
        let (now, lock) = self.lock_vfs(|state| {
            let now = state.journal.facts().resizes.get(&pf).cloned();
            Ok((now, LockRequest { functions: [pf].into(), quiet: BTreeSet::new(), name: None }))
        })?;
        let result = if now.as_ref() == Some(resize) { self.finish_resize(pf, resize) } else { Ok(()) };
        drop(lock);
        result
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
        if now.as_ref() != Some(lease) {
            return Ok(());
        }
        self.lock().remade.remove(&lease.vf);
        let result = self.restore(lease);
        let mut state = self.lock();
        let is_well = |lease: &Lease| lease.fault.is_none() && lease.stage == Stage::Lent;
        if state.journal.facts().leases.get(&lease.vf).is_none_or(is_well) {
            state.retries.forget(lease.vf);
        } else {
            state.retries.failed(lease.vf, Instant::now());
        }
        drop(state);
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
