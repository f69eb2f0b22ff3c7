//! The start after a stop, a kill or a reboot, and going on later with what could not be finished.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::PoisonError;
use std::time::Instant;

use tracing::{debug, error, info, warn};

use super::apply::GONE;
use super::counts::CountsSeen;
use super::parallel::for_each_parallel;
use super::release::Remains;
use super::{LockRequest, State, VfError, Vfs, WhenBusy};
use crate::address::PciAddress;
use crate::attributes::Mac;
use crate::inventory::PhysicalFunction;
use crate::journal::Record;
use crate::lease::{Cordon, Lease, Resize, Stage};

/// How far a start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recovery {
    /// Numbers of VFs are being made what the policies want: VFs come and go.
    Counts,
    /// Leases are being brought back. VFs without one are lent.
    Leases,
    /// Everything was tried.
    Done,
}

impl Vfs {
    /// Finishes or undoes what was under way, makes the VFs that the policies want, and brings every lease back. What fails is
    /// logged and shown with its VF; it stops nothing else. What the journal refuses is told as well: with a full disk nothing is
    /// lent, and everything is shown all the same. A stop ends it early; the next start goes on.
    pub fn recover(&self) {
        let facts = self.facts();
        let boot = self.executor().sysfs.boot_id().unwrap_or_default();
        if !facts.boot.is_empty() && facts.boot != boot {
            info!(
                leases = facts.leases.len(),
                "the node was rebooted: its VFs are made anew, and its leases brought back"
            );
        }
        // At the same time: the kernel may be late with each of them.
        for_each_parallel(&facts.resizes.iter().collect::<Vec<_>>(), |&(&pf, resize)| {
            info!(%pf, from = resize.from, to = resize.to, "finishing a change of its number of VFs");
            told(self.finish_resize(pf, resize));
        });
        self.look();
        let counts: Vec<_> = {
            let mut state = self.lock();
            CountsSeen::keep_by_hand(&mut state, &boot);
            CountsSeen::see_to_all(&mut state);
            let is_due = |(pf, _): &(PciAddress, u32)| !state.counts.is_by_hand(*pf);
            state.policies.counts(&state.inventory).into_iter().filter(is_due).collect()
        };
        if !self.is_closing() {
            told(self.make_counts(&counts).map(drop));
        }
        self.look();
        told(self.follow_cards(WhenBusy::Wait));
        {
            // One that somebody works on for too long is compared later.
            let State { facts, remade, .. } = &mut *self.lock();
            remade.extend(facts.leases.keys());
        }
        self.recovered_to(Recovery::Leases);
        // At the same time: a reboot may have many leases to bring back, and some may have to wait for the kernel.
        for_each_parallel(&self.leases(), |lease| told(self.restore_alone(lease, WhenBusy::Wait)));
        if self.is_closing() {
            return;
        }
        self.note_policies_reached();
        told(self.record(&Record::Boot { id: boot }));
        self.recovered_to(Recovery::Done);
    }

    /// Which card a PF is, as it told before or tells now.
    pub(super) fn card(&self, pf: PciAddress) -> Option<Mac> {
        let known = self.lock().cards.get(&pf).copied();
        known.or_else(|| {
            let card = self.executor().permanent_mac(pf)?;
            self.lock().cards.insert(pf, card);
            Some(card)
        })
    }

    fn recovered_to(&self, recovery: Recovery) {
        self.0.recovery.send_replace(recovery);
        self.changed();
    }

    fn leases(&self) -> Vec<Lease> {
        self.lock().facts.leases.values().cloned().collect()
    }

    /// After a reboot, or in another slot, cards have other addresses: leases go with their cards. Those that are at their cards
    /// are not looked at, and PFs that have told which card they are are not asked again.
    fn follow_cards(&self, when_busy: WhenBusy) -> Result<(), VfError> {
        let unknown: Vec<_> = {
            let state = self.lock();
            let is_home = |lease: &Lease| lease.card.is_none() || state.cards.get(&lease.pf) == lease.card.as_ref();
            if state.facts.leases.values().all(is_home) && state.cordons_to_move().is_none() && !state.seeks_cordoned()
            {
                return Ok(());
            }
            state.inventory.pfs.keys().copied().filter(|pf| !state.cards.contains_key(pf)).collect()
        };
        for_each_parallel(&unknown, |&pf| {
            self.card(pf);
        });
        let decided = self.lock_vfs(when_busy, |state| {
            let moves = state.moves();
            let mut wants = LockRequest::default();
            for Move { from, lease, group } in &moves {
                wants.functions.extend([*from, lease.vf]);
                wants.functions.extend(group);
                wants.quiet.insert(lease.pf);
            }
            Ok((moves, wants))
        });
        let (moves, lock) = match decided {
            Ok(decided) => decided,
            // Whoever works on them now goes first.
            Err(VfError::Busy { .. } | VfError::Stopping { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        // Nobody cordons a PF between the question and the record.
        let _claiming = self.0.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        let cordons = self.lock().cordons_to_move();
        if moves.is_empty() && cordons.is_none() {
            return Ok(());
        }
        for pf in cordons.iter().flat_map(BTreeMap::keys) {
            info!(%pf, "the cards of cordons are at other addresses now; this one is cordoned");
        }
        for Move { from, lease, .. } in &moves {
            info!(%from, to = %lease.vf, lease = lease.id, "its card is at another address now, and the lease with it");
        }
        let (from, leases): (_, Vec<_>) = moves.into_iter().map(|Move { from, lease, .. }| (from, lease)).unzip();
        self.record(&Record::Moved { from, leases: leases.clone(), cordons })?;
        self.lock().remade.extend(leases.iter().map(|lease| lease.vf));
        drop(lock);
        Ok(())
    }

    /// Goes on with what could not be finished, with leases that something is wrong with or whose VF is not what it was, with
    /// those that are at their end, and with the numbers of VFs of PFs that came since.
    pub(crate) fn reconcile(&self) {
        for_each_parallel(&self.facts().resizes.iter().collect::<Vec<_>>(), |&(&pf, resize)| {
            if let Err(error) = self.reconcile_resize(pf, resize) {
                warn!(%pf, %error, "a change of its number of VFs cannot be finished");
            }
        });
        if let Err(error) = self.reconcile_counts() {
            warn!(%error, "the numbers of VFs cannot be made what the policies want");
        }
        self.note_policies_reached();
        // A PF may tell which card it is only now: its driver was late, or its interface was away.
        if let Err(error) = self.follow_cards(WhenBusy::Refuse) {
            warn!(%error, "leases cannot go with their cards");
        }
        self.release_ended();
        let due: Vec<_> = self.leases().into_iter().filter(|lease| self.needs_reconciling(lease)).collect();
        for_each_parallel(&due, |lease| {
            if let Err(error) = self.reconcile_one(lease) {
                warn!(vf = %lease.vf, lease = lease.id, %error, "still not as it should be");
            }
        });
    }

    fn needs_reconciling(&self, lease: &Lease) -> bool {
        let state = self.lock();
        let vf = state.inventory.vfs.get(&lease.vf).filter(|vf| state.is_of(lease, vf));
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
        let (now, lock) = self.lock_vfs(WhenBusy::Wait, |state| {
            let now = state.facts.resizes.get(&pf).cloned();
            Ok((now, LockRequest { functions: [pf].into(), ..LockRequest::default() }))
        })?;
        let result = if now.as_ref() == Some(resize) { self.finish_resize(pf, resize) } else { Ok(()) };
        drop(lock);
        result
    }

    /// Only if nobody works on it: whoever does will see to it.
    fn reconcile_one(&self, lease: &Lease) -> Result<(), VfError> {
        let result = self.restore_alone(lease, WhenBusy::Refuse);
        let mut state = self.lock();
        let is_well = |lease: &Lease| lease.fault.is_none() && lease.stage == Stage::Lent;
        if state.facts.leases.get(&lease.vf).is_none_or(is_well) {
            state.retries.forget(lease.vf);
        } else {
            state.retries.failed(lease.vf, Instant::now());
        }
        result
    }

    /// Brings the lease of a VF, as it is by now, to a known state.
    fn restore_alone(&self, lease: &Lease, when_busy: WhenBusy) -> Result<(), VfError> {
        if self.is_closing() {
            return Ok(());
        }
        let locked = self.lock_vfs(when_busy, |state| {
            let now = state.facts.leases.get(&lease.vf).cloned();
            let wants = LockRequest::of_lease(state, now.as_ref().unwrap_or(lease));
            Ok((now, wants))
        });
        let (now, lock) = match locked {
            Ok(locked) => locked,
            Err(VfError::Busy { .. } | VfError::Stopping { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        // What was told about the lease meanwhile says nothing of its VF. If that is remade once more from here on, it is marked anew.
        let was_remade = self.lock().remade.remove(&lease.vf);
        let result = now.map_or(Ok(()), |now| self.restore(&now));
        if result.is_err() && was_remade {
            self.lock().remade.insert(lease.vf);
        }
        drop(lock);
        result
    }

    /// Brings one lease to a known state: lent and as wanted, or free, or faulty and saying why. Only the journal fails it.
    fn restore(&self, lease: &Lease) -> Result<(), VfError> {
        let Some(vf) = self.function(lease) else {
            return match lease.stage {
                Stage::Lent => self.fault(lease, Some(GONE.to_owned())),
                Stage::Changing { .. } | Stage::HandingOver { .. } => self.go_back(lease),
                // What was to be cleaned is gone.
                Stage::New | Stage::Releasing | Stage::Dirty => self.clean(lease.clone(), Remains::Refused),
            };
        };
        let restored = match lease.stage {
            Stage::Lent => {
                let fault = self.apply_wanted(lease, &vf).err();
                return self.fault(lease, fault.map(|error| error.to_string()));
            }
            Stage::Changing { .. } | Stage::HandingOver { .. } => self.go_back(lease),
            Stage::New | Stage::Releasing | Stage::Dirty => self.clean(lease.clone(), Remains::Refused),
        };
        match restored {
            Err(VfError::Journal(error)) => Err(error.into()),
            // Recorded as its fault, and tried again.
            _ => Ok(()),
        }
    }

    fn fault(&self, lease: &Lease, fault: Option<String>) -> Result<(), VfError> {
        if lease.fault == fault {
            return Ok(());
        }
        let now = Lease { fault, ..lease.clone() };
        if let Some(fault) = &now.fault {
            warn!(vf = %lease.vf, lease = lease.id, fault, "a lease is not as it should be");
        }
        self.record_lease(lease.vf, Some(now))
    }
}

/// A lease that goes with its card.
struct Move {
    /// Where its VF was.
    from: PciAddress,
    /// The lease, with the addresses where its card is.
    lease: Lease,
    /// The others of its VF's IOMMU group there.
    group: Vec<PciAddress>,
}

impl State {
    /// PFs by the addresses that they were made with. One that two of them tell says of neither which card it is.
    fn pfs_by_card(&self) -> HashMap<Mac, Option<&PhysicalFunction>> {
        let mut pf_of = HashMap::new();
        for (pf, card) in &self.cards {
            if let Some(pf) = self.inventory.pfs.get(pf) {
                pf_of.entry(*card).and_modify(|of| *of = None).or_insert(Some(pf));
            }
        }
        pf_of
    }

    /// Whether nobody knows which card is at the address of a cordon.
    fn seeks_cordoned(&self) -> bool {
        self.facts.cordons.keys().any(|pf| !self.cards.contains_key(pf))
    }

    /// The cordons as they are where their cards are; none: that is where they are. One that knows no card is of the one that is there.
    fn cordons_to_move(&self) -> Option<BTreeMap<PciAddress, Cordon>> {
        let pf_of = self.pfs_by_card();
        let moved = |(&pf, cordon): (&PciAddress, &Cordon)| {
            let is_at_home = cordon.card.is_none() || self.cards.get(&pf) == cordon.card.as_ref();
            let card = cordon.card.filter(|_| !is_at_home);
            let at = card.and_then(|card| pf_of.get(&card).copied().flatten()).map_or(pf, |pf| pf.address);
            let card = cordon.card.or(self.cards.get(&pf).copied());
            (at, Cordon { card, ..cordon.clone() })
        };
        let moved: BTreeMap<_, _> = self.facts.cordons.iter().map(moved).collect();
        (moved != self.facts.cordons).then_some(moved)
    }

    /// Leases whose cards are at other addresses, where no other lease stays.
    fn moves(&self) -> Vec<Move> {
        let pf_of = self.pfs_by_card();
        let follow = |lease: &Lease| {
            let is_at_home = lease.card.is_some() && self.cards.get(&lease.pf) == lease.card.as_ref();
            let pf = pf_of.get(&lease.card?).copied().flatten().filter(|_| !is_at_home)?;
            let vf = self.inventory.vfs.get(pf.vfs.get(&lease.index)?)?;
            let mut moved = Lease { vf: vf.address, pf: pf.address, ..lease.clone() };
            // There the others of its IOMMU group have the drivers of a start.
            if !moved.before.members.is_empty() {
                moved.before.members = vf.group_with.iter().map(|&member| (member, None)).collect();
            }
            Some(Move { from: lease.vf, lease: moved, group: vf.group_with.clone() })
        };
        let mut moves: Vec<_> = self.facts.leases.values().filter_map(follow).collect();
        let stays = |vf: PciAddress, moves: &[Move]| {
            self.facts.leases.contains_key(&vf) && moves.iter().all(|other| other.from != vf)
        };
        while let Some(at) = moves.iter().position(|to| stays(to.lease.vf, &moves)) {
            let Move { lease, .. } = moves.swap_remove(at);
            debug!(vf = %lease.vf, lease = lease.id, "the card of a lease is at another address, where another lease is: it is not moved");
        }
        // Of two that were of the same VF before and after its card was moved, one goes with it. The other stays where it is.
        let mut taken = BTreeSet::new();
        moves.retain(|to| taken.insert(to.lease.vf));
        moves
    }
}

fn told(result: Result<(), VfError>) {
    if let Err(error) = result {
        error!(%error, "what the start did cannot be recorded; VFs are shown, and nothing is lent before it can be");
    }
}
