//! Taking a VF back: wait for its holder, journal, clean, read back, free.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::apply::must_be_told;
use super::{LockRequest, State, VfError, Vfs};
use crate::address::PciAddress;
use crate::attributes::{Attributes, VfState};
use crate::inventory::VirtualFunction;
use crate::lease::{Before, Lease, Stage};
use crate::plan::{Binding, Step, Target, plan, plan_members};
use crate::policy::PeerCredentials;

/// How to take a VF back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseOptions {
    /// How long its holder is waited for.
    pub wait: Duration,
    /// What of it the kernel does not let us restore.
    pub remains: Remains,
}

/// What becomes of a VF of which something could not be brought back to what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// It is not lent before it was.
    Refused,
    /// It is free as it is: somebody has looked at it.
    Accepted,
}

impl ReleaseOptions {
    /// Waits so long, and frees only a VF that is what it was.
    pub fn waiting(wait: Duration) -> Self {
        Self { wait, remains: Remains::Refused }
    }
}

impl Vfs {
    /// Takes a VF back. `lease` is its name or the address of its VF. While somebody holds the VF it waits up to
    /// `wait`, and then leaves the lease as it is.
    pub fn release(&self, lease: &str, wait: Duration, peer: PeerCredentials) -> Result<Lease, VfError> {
        self.release_unless(lease, ReleaseOptions::waiting(wait), peer, &|| false)
    }

    /// [`Vfs::release`] for somebody who may go away: then nobody waits for the holder any more.
    pub fn release_unless(
        &self,
        lease: &str,
        options: ReleaseOptions,
        peer: PeerCredentials,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Lease, VfError> {
        let (mut lease, lock) = self.lock_vfs(|state| find(state, lease, peer))?;
        if let Some(vf) = self.function(&lease) {
            self.wait_for_holder(&vf, &lease, options.wait, cancelled)?;
        }
        lease.stage = Stage::Releasing;
        lease.fault = None;
        self.record_lease(lease.vf, Some(lease.clone()))?;
        self.clean(lease.clone(), options.remains)?;
        info!(vf = %lease.vf, lease = lease.id, "taken back");
        drop(lock);
        Ok(lease)
    }

    /// What [`Vfs::release`] would do.
    pub fn plan_release(&self, lease: &str, peer: PeerCredentials) -> Result<Vec<Step>, VfError> {
        let (lease, lock) = self.lock_vfs(|state| find(state, lease, peer))?;
        let Some(vf) = self.function(&lease) else { return Ok(self.members_home(&lease)) };
        let look = |error| VfError::Ask { tried: format!("look at {}", lease.vf), error };
        let current = self.executor().current(&vf).map_err(look)?;
        drop(lock);
        Ok(plan(&current, &target_before(&lease.before)))
    }

    fn wait_for_holder(
        &self,
        vf: &VirtualFunction,
        lease: &Lease,
        wait: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), VfError> {
        let tried = format!("release {}", vf.address);
        let ask = |error| VfError::Ask { tried: format!("release {}", vf.address), error };
        let members: Vec<_> = {
            let state = self.lock();
            lease.before.members.keys().filter_map(|member| state.inventory.vfs.get(member).cloned()).collect()
        };
        let deadline = Instant::now() + wait;
        loop {
            let began = Instant::now();
            let mut holder = None;
            for vf in [vf].into_iter().chain(&members) {
                holder = self.holders(vf).map_err(ask)?.into_iter().next().map(|holder| (vf.address, holder));
                if holder.is_some() {
                    break;
                }
            }
            let Some((vf, holder)) = holder else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VfError::Held { tried, vf, holder });
            }
            if cancelled() {
                return Err(VfError::Cancelled { tried });
            }
            if self.is_closing() {
                return Err(VfError::Stopping { tried });
            }
            // Nobody tells when a process closes a file. To look through every process takes long where there are many.
            sleep(HOLDER_POLL.max(began.elapsed() * HOLDER_REST).min(left));
        }
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
        let Some(vf) = self.function(lease) else {
            // The VF is gone, and with it everything that was to be cleaned but the others of its group.
            return self.executor().apply(&self.members_home(lease)).map_err(VfError::Step);
        };
        let look = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
        let current = self.executor().current(&vf).map_err(look)?;
        must_be_told(&current, lease.before.state.is_some() && remains == Remains::Refused)?;
        let target = target_before(&lease.before);
        let steps = plan(&current, &target);
        if let Some((held, holder)) = self.disturbed(&vf, &steps).map_err(look)? {
            return Err(VfError::Held { tried: format!("release {}", vf.address), vf: held, holder });
        }
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

    /// The steps that bring the others of the IOMMU group back.
    fn members_home(&self, lease: &Lease) -> Vec<Step> {
        let sysfs = &self.executor().sysfs;
        let there = lease.before.members.keys().filter(|&&member| sysfs.physfn(member).is_some());
        let current: BTreeMap<PciAddress, _> = there.map(|&member| (member, sysfs.driver(member))).collect();
        plan_members(&current, &lease.before.bindings())
    }

    /// The VF of a lease, if it is there and is the same one.
    pub(super) fn function(&self, lease: &Lease) -> Option<VirtualFunction> {
        let state = self.lock();
        state.inventory.vfs.get(&lease.vf).filter(|vf| lease.is_of(vf)).cloned()
    }
}

/// A lease by the address of its VF or by its name.
fn find(state: &State, name: &str, peer: PeerCredentials) -> Result<(Lease, LockRequest), VfError> {
    let leases = &state.journal.facts().leases;
    let by_address = name.parse().ok().and_then(|address| leases.get(&address));
    let lease = by_address.or_else(|| leases.values().find(|lease| lease.id == name));
    let lease = lease.ok_or_else(|| VfError::NoSuchLease { lease: name.to_owned() })?;
    if lease.uid != peer.uid && peer.uid != 0 {
        return Err(VfError::NotAllowed { uid: peer.uid, tried: format!("release the lease {}", lease.id) });
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

/// How often it is looked whether a holder has let go.
const HOLDER_POLL: Duration = Duration::from_millis(50);
/// So many times as long as the look took is waited before the next one.
const HOLDER_REST: u32 = 4;
