//! The numbers of VFs that the policies want, PF by PF, also of PFs that come later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::warn;

use super::backoff::Backoff;
use super::create::{HostVfs, WantedBy};
use super::{State, VfError, Vfs};
use crate::address::PciAddress;
use crate::policy::NumVfs;

/// What was last seen to with the numbers of VFs of PFs.
#[derive(Clone)]
pub(super) struct CountsSeen {
    /// What was wanted of a PF when it was last seen to.
    wanted: BTreeMap<PciAddress, NumVfs>,
    /// PFs whose number somebody changed since, which stays.
    by_hand: BTreeSet<PciAddress>,
    /// What was wanted of a PF when somebody began to change its number: only what is wanted since is news.
    begun: BTreeMap<PciAddress, Option<NumVfs>>,
    /// PFs that failed.
    retries: Backoff,
}

impl Default for CountsSeen {
    fn default() -> Self {
        let retries = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        Self { wanted: BTreeMap::new(), by_hand: BTreeSet::new(), begun: BTreeMap::new(), retries }
    }
}

impl CountsSeen {
    /// Somebody begins to change the number of a PF of which this is wanted.
    pub fn begins(&mut self, pf: PciAddress, wanted: Option<NumVfs>) {
        self.begun.insert(pf, wanted);
    }

    /// The number of a PF was changed: by hand, or as the policies want it.
    pub fn changed(&mut self, pf: PciAddress, by_hand: bool) {
        let begun = self.begun.remove(&pf);
        if by_hand {
            self.by_hand.insert(pf);
            match begun {
                Some(Some(wanted)) => drop(self.wanted.insert(pf, wanted)),
                Some(None) => drop(self.wanted.remove(&pf)),
                None => {}
            }
        } else {
            self.by_hand.remove(&pf);
        }
    }

    /// What failed is tried again at once.
    pub fn forget_failures(&mut self) {
        self.retries.clear();
    }

    /// What is wanted of every PF is seen to from now on, whatever became of it.
    pub fn see_to_all(state: &mut State) {
        let wanted = |pf| Some((pf, state.policies.wanted_count(state.inventory.pfs.get(&pf)?)?));
        state.counts.wanted = state.inventory.pfs.keys().filter_map(|&pf| wanted(pf)).collect();
    }
}

impl Vfs {
    /// Sees to PFs that came or got another name since, that lost all their VFs, or that could not have their number because
    /// of somebody who has gone by now.
    pub(super) fn reconcile_counts(&self) -> Result<(), VfError> {
        let due: Vec<_> = {
            let mut state = self.lock();
            let State { inventory, counts, policies, facts, short, locked, .. } = &mut *state;
            let different = policies.counts(inventory);
            // One that was unplugged, or has its number by now, is short of nothing.
            short.retain(|pf, _| different.iter().any(|(other, _)| other == pf));
            counts.wanted.retain(|pf, _| inventory.pfs.contains_key(pf));
            counts.by_hand.retain(|pf| inventory.pfs.contains_key(pf));
            counts.begun.retain(|pf, _| inventory.pfs.contains_key(pf));
            counts.retries.retain(|pf| inventory.pfs.contains_key(&pf));
            let now = Instant::now();
            let is_due = |(pf, _): &(PciAddress, u32)| {
                let Some(function) = inventory.pfs.get(pf) else { return false };
                let is_new = counts.wanted.get(pf) != policies.wanted_count(function).as_ref();
                let is_empty = function.vfs.is_empty() && !counts.by_hand.contains(pf);
                // What is under way ends first.
                let is_changing = facts.resizes.contains_key(pf);
                (is_new || is_empty) && !is_changing && !counts.retries.is_waiting(*pf, now)
            };
            let (due, others): (Vec<_>, Vec<_>) = different.into_iter().partition(is_due);
            for (pf, count) in others {
                let is_meant = counts.by_hand.contains(&pf) || counts.retries.is_waiting(pf, now);
                let is_changing = facts.resizes.contains_key(&pf) || locked.contains(&pf);
                if let (Some(function), false) = (inventory.pfs.get(&pf), is_meant || is_changing) {
                    let there = function.vfs.len();
                    let why = || {
                        let cure = "somebody else changed the number; SIGHUP makes them";
                        format!("it has {there} VFs, and the policies want {count}: {cure}")
                    };
                    short.entry(pf).or_insert_with(why);
                }
            }
            due
        };
        self.changed();
        if due.is_empty() { Ok(()) } else { self.make_counts(&due).map(drop) }
    }

    /// Makes the numbers of VFs that policies want, or says why not, here and with each PF. Only the journal fails it.
    pub(super) fn make_counts(&self, counts: &[(PciAddress, u32)]) -> Result<Vec<(PciAddress, String)>, VfError> {
        let mut short = Vec::new();
        for (pf, _) in counts {
            // From here on: who changes one of them while others are made means it.
            self.lock().counts.by_hand.remove(pf);
        }
        for (pf, created) in self.create_all_by(WantedBy::Policies, counts, HostVfs::Kept) {
            let mut state = self.lock();
            let wanted = state.inventory.pfs.get(&pf).and_then(|function| state.policies.wanted_count(function));
            match created {
                Ok(_) => {
                    state.counts.retries.forget(pf);
                    state.counts.wanted.extend(wanted.map(|wanted| (pf, wanted)));
                }
                Err(VfError::Journal(error)) => return Err(error.into()),
                Err(error) => {
                    warn!(%pf, %error, "the VFs that the policies want could not be made");
                    state.counts.retries.failed(pf, Instant::now());
                    match wanted.filter(|_| !may_pass(&error)) {
                        Some(wanted) => drop(state.counts.wanted.insert(pf, wanted)),
                        None => drop(state.counts.wanted.remove(&pf)),
                    }
                    short.push((pf, error.to_string()));
                }
            }
        }
        self.lock().short.extend(short.iter().cloned());
        self.changed();
        Ok(short)
    }
}

/// Whether the same may be done later although the policies say nothing else: whoever is in the way has gone, the kernel answers, the
/// driver is there or has time.
fn may_pass(error: &VfError) -> bool {
    match error {
        VfError::Lent { .. }
        | VfError::Held { .. }
        | VfError::UsedByHost { .. }
        | VfError::Busy { .. }
        | VfError::Ask { .. }
        | VfError::Stopping { .. } => true,
        VfError::Step(step) => !step.is_final(),
        _ => false,
    }
}

/// A PF that failed is left alone for so long at first.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// And for so long at last.
const RETRY_LONGEST: Duration = Duration::from_mins(10);
