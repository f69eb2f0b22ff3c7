//! The numbers of VFs that the policies want, PF by PF, also of PFs that come later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ferrule_daemon::counted;
use tracing::warn;

use super::backoff::Backoff;
use super::create::{HostVfs, WantedBy};
use super::{State, VfError, Vfs};
use crate::address::PciAddress;
use crate::journal::Record;
use crate::num_vfs::{MadeByHand, NumVfs};

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

    /// What the policies want of a PF whose number somebody made instead; none: they have theirs, or want nothing.
    fn instead_of(&self, pf: PciAddress) -> Option<NumVfs> {
        self.wanted.get(&pf).copied().filter(|_| self.by_hand.contains(&pf))
    }

    /// A number that somebody made during this boot stays, unless the policies want something else by now.
    pub fn keep_by_hand(state: &mut State, boot: &str) {
        for (&pf, made) in &state.facts.by_hand {
            let wanted = state.inventory.pfs.get(&pf).and_then(|pf| state.policies.wanted_count(pf));
            let is_meant = wanted == Some(made.wanted) || state.policies_unknown.is_some();
            if made.boot == boot && is_meant {
                state.counts.by_hand.insert(pf);
            }
        }
    }

    /// Whether somebody made the number of a PF.
    pub fn is_by_hand(&self, pf: PciAddress) -> bool {
        self.by_hand.contains(&pf)
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
    /// Has the journal know whether somebody made the number of VFs of a PF.
    pub(super) fn keep_by_hand(&self, pf: PciAddress) -> Result<(), VfError> {
        let (known, now) = {
            let state = self.lock();
            (state.facts.by_hand.get(&pf).cloned(), state.counts.instead_of(pf))
        };
        let boot = || self.executor().sysfs.boot_id().unwrap_or_default();
        let made = now.map(|wanted| MadeByHand { boot: boot(), wanted });
        if made == known { Ok(()) } else { self.record(&Record::ByHand { pf, made }) }
    }

    /// Sees to PFs that came or got another name since, that lost all their VFs, or that could not have their number because
    /// of somebody who has gone by now.
    pub(super) fn reconcile_counts(&self) -> Result<(), VfError> {
        let (due, is_news) = {
            let mut state = self.lock();
            let State { inventory, counts, policies, facts, short, locked, .. } = &mut *state;
            let different = policies.counts(inventory);
            let before = short.clone();
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
                        format!("it has {}, and the policies want {count}: {cure}", counted(there, "VF"))
                    };
                    short.entry(pf).or_insert_with(why);
                }
            }
            (due, *short != before)
        };
        if is_news {
            self.changed();
        }
        let of_before: Vec<_> = {
            let state = self.lock();
            state.facts.by_hand.keys().copied().filter(|&pf| !state.counts.is_by_hand(pf)).collect()
        };
        of_before.into_iter().try_for_each(|pf| self.keep_by_hand(pf))?;
        if due.is_empty() { Ok(()) } else { self.make_counts(&due).map(drop) }
    }

    /// Makes the numbers of VFs that policies want, or says why not, here and with each PF. Only the journal fails it.
    pub(super) fn make_counts(&self, counts: &[(PciAddress, u32)]) -> Result<Vec<(PciAddress, String)>, VfError> {
        let mut short = Vec::new();
        for (pf, _) in counts {
            // From here on: who changes one of them while others are made means it.
            self.lock().counts.by_hand.remove(pf);
            self.keep_by_hand(*pf)?;
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
                    let remakes = state.inventory.pfs.get(&pf).is_some_and(|pf| !pf.vfs.is_empty());
                    let is_over = remakes && is_over(&error, state.counts.retries.wait(pf));
                    match wanted.filter(|_| is_over || !may_pass(&error)) {
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

/// Whether a driver that is busy each time is not asked again: each try takes the VFs that are there away, and makes others.
fn is_over(error: &VfError, wait: Option<Duration>) -> bool {
    matches!(error, VfError::Step(_)) && wait.is_some_and(|wait| wait >= REMAKES_LONGEST)
}

/// A PF with VFs is not tried again after it was left alone for so long.
const REMAKES_LONGEST: Duration = Duration::from_mins(2);
/// A PF that failed is left alone for so long at first.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// And for so long at last.
const RETRY_LONGEST: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::executor::StepError;
    use crate::plan::Step;

    #[test]
    fn a_driver_that_is_busy_each_time_has_its_vfs_made_anew_a_few_times_only() {
        let pf = PciAddress::new(0, 1, 0, 0);
        let step = Step::Count { pf, count: 8 };
        let busy =
            StepError { step, problem: "busy".into(), cure: "wait".into(), errno: Some(Errno::EBUSY), stuck: false };
        let (busy, mut retries, mut tries) = (VfError::Step(busy), CountsSeen::default().retries, 0);
        assert!(may_pass(&busy));
        loop {
            retries.failed(pf, Instant::now());
            tries += 1;
            if is_over(&busy, retries.wait(pf)) {
                break;
            }
        }
        assert_eq!(tries, 3);
        let lent = VfError::Busy { what: "it".into() };
        assert!(!is_over(&lent, retries.wait(pf)), "nothing was taken away");
    }
}
