//! Taking a VF back: wait for its holder, journal, clean, read back, free.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::apply::{is_its_card, must_be_told};
use super::{Caller, LockRequest, State, VfError, Vfs};
use crate::address::PciAddress;
use crate::attributes::{Attributes, VfState};
use crate::inventory::VirtualFunction;
use crate::lease::{Before, Lease, Stage};
use crate::plan::{Binding, Step, Target, plan, plan_members};
use crate::policy::PeerCredentials;
use crate::watchdog::CallError;

/// What becomes of a VF of which something could not be brought back to what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// It is not lent before it was.
    Refused,
    /// It is free as it is: somebody has looked at it.
    Accepted,
}

impl Vfs {
    /// Takes a VF back. `lease` is its name or the address of its VF. While somebody holds the VF it waits up to
    /// `wait`, and then leaves the lease as it is.
    pub fn release(&self, lease: &str, wait: Duration, peer: PeerCredentials) -> Result<Lease, VfError> {
        let deadline = Instant::now() + wait;
        loop {
            let began = Instant::now();
            let released = self.release_once(lease, Remains::Refused, peer, Caller::PATIENT);
            if !released.as_ref().is_err_and(VfError::is_about_holders) || Instant::now() >= deadline {
                return released;
            }
            if self.is_closing() {
                return Err(VfError::Stopping { tried: format!("release {lease}") });
            }
            sleep(pause_before_next_look(began.elapsed()).min(deadline.saturating_duration_since(Instant::now())));
        }
    }

    /// [`Vfs::release`] without waiting for whoever holds the VF.
    pub fn release_once(
        &self,
        lease: &str,
        remains: Remains,
        peer: PeerCredentials,
        caller: Caller<'_>,
    ) -> Result<Lease, VfError> {
        self.release_if(lease, remains, peer, caller, |_| true)
    }

    /// The same for a lease that is still what the caller means.
    pub(super) fn release_if(
        &self,
        lease: &str,
        remains: Remains,
        peer: PeerCredentials,
        caller: Caller<'_>,
        is_meant: impl Fn(&Lease) -> bool,
    ) -> Result<Lease, VfError> {
        let (lease, lock) = self.lock_vfs(caller.when_busy, |state| {
            if (caller.has_left)() {
                return Err(VfError::Cancelled { tried: format!("release {lease}") });
            }
            let found = find(state, lease, peer)?;
            if is_meant(&found.0) { Ok(found) } else { Err(VfError::NoSuchLease { lease: lease.to_owned() }) }
        })?;
        let mut lease = lease.into_in_force();
        if let Some(vf) = self.function(&lease) {
            self.nobody_holds_lease(&lease, &vf)?;
        }
        // Before it was tried to clean it, a VF is not free for the next one with all that its last user set: root may say so.
        let is_accepted = lease.stage == Stage::Dirty || peer.uid == 0;
        let remains = if is_accepted { remains } else { Remains::Refused };
        lease.stage = Stage::Releasing;
        lease.fault = None;
        self.record_lease(lease.vf, Some(lease.clone()))?;
        self.clean(lease.clone(), remains)?;
        info!(vf = %lease.vf, lease = lease.id, "taken back");
        drop(lock);
        Ok(lease)
    }

    /// What [`Vfs::release`] would do.
    pub fn plan_release(&self, lease: &str, peer: PeerCredentials, caller: Caller<'_>) -> Result<Vec<Step>, VfError> {
        let (lease, lock) = self.lock_vfs(caller.when_busy, |state| find(state, lease, peer))?;
        let lease = lease.into_in_force();
        let Some(vf) = self.function(&lease) else { return self.members_home(&lease) };
        let current = self.current(&vf)?;
        drop(lock);
        Ok(plan(&current, &target_before(&lease.before)))
    }

    /// Nobody has the VF of a lease, or another one that goes with it, in use.
    pub(super) fn nobody_holds_lease(&self, lease: &Lease, vf: &VirtualFunction) -> Result<(), VfError> {
        let tried = format!("release {}", vf.address);
        let members: Vec<_> = {
            let state = self.lock();
            lease.before.members.keys().filter_map(|member| state.inventory.vfs.get(member).cloned()).collect()
        };
        for vf in [vf].into_iter().chain(&members) {
            let holders = self.holders(vf).map_err(|error| VfError::Ask { tried: tried.clone(), error })?;
            if let Some(holder) = holders.into_iter().next() {
                return Err(VfError::Held { tried, vf: vf.address, holder });
            }
        }
        Ok(())
    }

    /// Brings a VF back to what it was before it was lent, as far as the kernel lets us, and frees it. Its lease is in the
    /// journal as [`Stage::New`], [`Stage::Releasing`] or [`Stage::Dirty`], and stays there with what is wrong if this
    /// fails: it is tried again later. Nobody's VF is taken from its driver on the way.
    pub(super) fn clean(&self, mut lease: Lease, remains: Remains) -> Result<(), VfError> {
        match self.way_back(&lease, remains) {
            Ok(()) => self.record_lease(lease.vf, None),
            Err(error @ VfError::Dirty { .. }) if remains == Remains::Accepted => {
                warn!(vf = %lease.vf, lease = lease.id, %error, "the VF is free as it is, which was asked for");
                self.record_lease(lease.vf, None)
            }
            Err(error) => {
                warn!(vf = %lease.vf, lease = lease.id, %error, "the VF could not be cleaned; it is tried again");
                lease.stage = if matches!(error, VfError::Dirty { .. }) { Stage::Dirty } else { Stage::Releasing };
                lease.fault = Some(error.to_string());
                self.record_lease(lease.vf, Some(lease))?;
                Err(error)
            }
        }
    }

    fn way_back(&self, lease: &Lease, remains: Remains) -> Result<(), VfError> {
        let tried = format!("release {}", lease.vf);
        let bring_members_home = || {
            let steps = self.members_home(lease)?;
            self.nobody_is_disturbed(lease.vf, &steps, &tried)?;
            self.executor().apply(&steps).map_err(VfError::Step)
        };
        // The VF is gone, and with it everything that was to be cleaned but the others of its group.
        let Some(vf) = self.function(lease) else { return bring_members_home() };
        let current = self.current(&vf)?;
        if is_its_card(lease, &current).is_err() {
            return bring_members_home();
        }
        must_be_told(&current, lease.before.state.is_some() && remains == Remains::Refused)?;
        let target = target_before(&lease.before);
        let steps = plan(&current, &target);
        self.nobody_is_disturbed(vf.address, &steps, &tried)?;
        let mut errors = self.executor().apply_all(&steps);
        if let Some(passing) = errors.iter().position(|error| !error.is_final()) {
            return Err(VfError::Step(errors.swap_remove(passing)));
        }
        let left = if errors.is_empty() {
            match self.read_back(&vf, &target) {
                Ok(()) => return Ok(()),
                Err(error @ (VfError::Ask { .. } | VfError::Untold { .. })) if remains == Remains::Refused => {
                    return Err(error);
                }
                Err(error) => error.to_string(),
            }
        } else {
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        Err(VfError::Dirty { id: lease.id.clone(), vf: vf.address, left })
    }

    /// The steps that bring the others of the IOMMU group of a VF that is gone back.
    fn members_home(&self, lease: &Lease) -> Result<Vec<Step>, VfError> {
        let sysfs = &self.executor().sysfs;
        let left = self.lock().members_left(lease);
        let there = left.into_iter().filter(|&member| sysfs.physfn(member).is_some());
        let current = there.map(|member| Ok((member, sysfs.read_driver(member)?)));
        let current: BTreeMap<PciAddress, _> = current.collect::<io::Result<_>>().map_err(|error| {
            let tried = format!("look at the IOMMU group of {}", lease.vf);
            VfError::Ask { tried, error: CallError::Refused(error.into()) }
        })?;
        Ok(plan_members(&current, &lease.before.bindings()))
    }

    /// The VF of a lease, if it is there and is the same one.
    pub(super) fn function(&self, lease: &Lease) -> Option<VirtualFunction> {
        let state = self.lock();
        state.inventory.vfs.get(&lease.vf).filter(|vf| state.is_of(lease, vf)).cloned()
    }
}

impl State {
    /// The others of the IOMMU group of a VF that is gone, but for those that are another lease's by now. At the addresses of a card
    /// that is elsewhere are VFs of another one.
    fn members_left(&self, lease: &Lease) -> Vec<PciAddress> {
        let cards = lease.card.zip(self.cards.get(&lease.pf).copied());
        if cards.is_some_and(|(then, now)| then != now) {
            return Vec::new();
        }
        let lent = |other: &Lease| {
            let vf = self.inventory.vfs.get(&other.vf).filter(|vf| other.vf != lease.vf && self.is_of(other, vf))?;
            let group = vf.group_with.iter().copied().filter(|_| other.takes_group());
            Some(group.chain([vf.address]).collect::<Vec<_>>())
        };
        let lent: BTreeSet<_> = self.facts.leases.values().filter_map(lent).flatten().collect();
        lease.before.members.keys().copied().filter(|member| !lent.contains(member)).collect()
    }
}

/// A lease by the address of its VF or by its name.
pub(super) fn find(state: &State, name: &str, peer: PeerCredentials) -> Result<(Lease, LockRequest), VfError> {
    let leases = &state.facts.leases;
    // A lease may have its VF's address for a name, and be at another one by now.
    let by_address = || name.parse().ok().and_then(|address| leases.get(&address));
    if let Some(lease) = state.facts.lease_named(name).or_else(by_address) {
        return whose(state, lease, peer);
    }
    // A VF is being handed over to it this moment. Whoever asks waits for that, and decides anew.
    let begins = |lease: &&Lease| lease.id == name && state.locked.contains(&lease.vf);
    let lease = leases.values().find(begins).ok_or_else(|| VfError::NoSuchLease { lease: name.to_owned() })?;
    Ok((lease.clone(), LockRequest::of_lease(state, lease)))
}

/// A lease by its name.
pub(super) fn find_named(state: &State, name: &str, peer: PeerCredentials) -> Result<(Lease, LockRequest), VfError> {
    let lease = state.facts.lease_named(name);
    let missing = || match name.parse::<PciAddress>() {
        Ok(vf) => VfError::Wrong(format!("from: {vf} is the address of a VF: name the lease that ends")),
        Err(_) => VfError::NoSuchLease { lease: name.to_owned() },
    };
    whose(state, lease.ok_or_else(missing)?, peer)
}

/// A lease, for whoever may end it.
fn whose(state: &State, lease: &Lease, peer: PeerCredentials) -> Result<(Lease, LockRequest), VfError> {
    let Lease { id, uid, .. } = lease.in_force();
    if *uid != peer.uid && peer.uid != 0 {
        return Err(VfError::NotAllowed { uid: peer.uid, tried: format!("release the lease {id}") });
    }
    Ok((lease.clone(), LockRequest::of_lease(state, lease)))
}

fn target_before(before: &Before) -> Target {
    let state = before.state.as_ref().map(VfState::as_wanted).unwrap_or_default();
    Target {
        binding: Binding::to(before.driver.as_deref()),
        attributes: Attributes { mtu: before.mtu, ..state },
        members: before.bindings(),
        fresh: true,
    }
}

/// Nobody tells when a process closes a file, and to look through every process takes long where there are many: `look` is how
/// long that took.
pub(crate) fn pause_before_next_look(look: Duration) -> Duration {
    HOLDER_POLL.max(look * HOLDER_REST)
}

/// How often it is looked whether a holder has let go.
const HOLDER_POLL: Duration = Duration::from_millis(50);
/// So many times as long as the look took is waited before the next one.
const HOLDER_REST: u32 = 4;
