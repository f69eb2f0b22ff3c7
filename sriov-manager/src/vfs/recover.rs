//! The start after a stop, a kill or a reboot, and going on later with what could not be finished.

use std::collections::BTreeSet;
use std::thread;

use tracing::{info, warn};

use super::{VfError, Vfs, Wants};
use crate::inventory::VirtualFunction;
use crate::journal::Record;
use crate::lease::{Lease, Stage};
use crate::plan::plan;

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
            let work = |pf| scope.spawn(move || leases(pf).try_for_each(|lease| self.bring_back(lease)));
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
    pub(crate) fn tend(&self) {
        let facts = self.facts();
        for lease in facts.leases.values() {
            let gone = self.functions(lease).is_none();
            let troubled = lease.trouble.is_some() || lease.stage != Stage::Held;
            let stuck = self.hands().watchdog.stuck(lease.vf).is_some();
            if (gone || troubled)
                && !stuck
                && let Err(error) = self.tend_one(lease)
            {
                warn!(vf = %lease.vf, lease = lease.id, %error, "still not as it should be");
            }
        }
    }

    /// Only if nobody works on it: whoever does will see to it.
    fn tend_one(&self, lease: &Lease) -> Result<(), VfError> {
        let mut functions = BTreeSet::from([lease.vf, lease.pf]);
        {
            let state = self.lock();
            functions.extend(state.inventory.vfs.get(&lease.vf).iter().flat_map(|vf| &vf.group_with));
            if functions.iter().any(|function| state.claimed.contains(function)) {
                return Ok(());
            }
        }
        let (now, claim) = self.claim(|state| {
            let now = state.journal.facts().leases.get(&lease.vf).cloned();
            let wants = state.inventory.vfs.get(&lease.vf).map(Wants::of);
            let gone = || Wants { functions: [lease.vf].into(), quiet: [lease.pf].into(), name: None };
            Ok((now, wants.unwrap_or_else(gone)))
        })?;
        // Whoever came in between saw to it.
        let result = if now.as_ref() == Some(lease) { self.bring_back(lease) } else { Ok(()) };
        drop(claim);
        result
    }

    /// Brings one lease to a known state: held and as wanted, or free, or troubled and saying why.
    fn bring_back(&self, lease: &Lease) -> Result<(), VfError> {
        let Some((vf, pf)) = self.functions(lease) else {
            return match lease.stage {
                Stage::Held => self.trouble(lease, Some(GONE.to_owned())),
                // What was to be cleaned is gone.
                Stage::Acquiring | Stage::Releasing => self.record_lease(lease.vf, None),
            };
        };
        match (lease.stage, &lease.previous) {
            (Stage::Held, _) => {
                let trouble = self.as_wanted(lease, &vf).err();
                self.trouble(lease, trouble.map(|error| error.to_string()))
            }
            (Stage::Acquiring, Some(previous)) => {
                let back = Lease { wanted: previous.clone(), previous: Some(lease.wanted.clone()), ..lease.clone() };
                let result = self.make_so(&vf, &pf, &back);
                let trouble = result.err().map(|error| error.to_string());
                self.record_lease(lease.vf, Some(Lease { previous: None, stage: Stage::Held, trouble, ..back }))
            }
            (Stage::Acquiring, None) | (Stage::Releasing, _) => {
                let tried = || format!("look at {}", lease.vf);
                let holder = self.holders(&vf).map_err(|error| VfError::Ask { tried: tried(), error });
                match holder.map(|holders| holders.into_iter().next()) {
                    Ok(None) => match self.clean(lease.clone()) {
                        Err(VfError::Journal(error)) => Err(error.into()),
                        // Recorded as its trouble, and tried again.
                        _ => Ok(()),
                    },
                    Ok(Some(holder)) => {
                        let releasing = Lease { stage: Stage::Releasing, previous: None, ..lease.clone() };
                        self.trouble(&releasing, Some(format!("it is held: {holder}")))
                    }
                    Err(error) => self.trouble(lease, Some(error.to_string())),
                }
            }
        }
    }

    /// Makes a held VF what it should be, unless somebody uses it as it is.
    fn as_wanted(&self, lease: &Lease, vf: &VirtualFunction) -> Result<(), VfError> {
        let Some((_, pf)) = self.functions(lease) else { return Ok(()) };
        let asked = |error| VfError::Ask { tried: format!("look at {}", lease.vf), error };
        let current = self.hands().current(vf, &pf).map_err(asked)?;
        let target = self.target(lease, vf, &pf, &current);
        let steps = plan(&current, &target);
        if steps.is_empty() {
            return Ok(());
        }
        if let Some(holder) = self.holders(vf).map_err(asked)?.into_iter().next() {
            let tried = format!("bring back the lease {}", lease.id);
            return Err(VfError::Held { tried, vf: lease.vf, holder });
        }
        info!(vf = %lease.vf, lease = lease.id, steps = steps.len(), "bringing back");
        self.hands().apply(&steps).map_err(VfError::Step)?;
        self.read_back(vf, &pf, &target)
    }

    fn trouble(&self, lease: &Lease, trouble: Option<String>) -> Result<(), VfError> {
        let mut state = self.lock();
        let now = Lease { trouble, ..lease.clone() };
        if state.journal.facts().leases.get(&lease.vf) == Some(&now) {
            return Ok(());
        }
        if let Some(trouble) = &now.trouble {
            warn!(vf = %lease.vf, lease = lease.id, trouble, "a lease is not as it should be");
        }
        self.record(&mut state, &Record::Lease { vf: lease.vf, lease: Some(Box::new(now)) })
    }
}

/// A lease whose VF is not there stays: its borrower still believes in it, and the VF may come back.
const GONE: &str = "its VF is gone: make it again with `ferrule vf create`, and the lease comes back, or release it";
