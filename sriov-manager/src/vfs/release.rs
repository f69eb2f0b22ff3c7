//! Taking a VF back: wait for its holder, journal, clean, read back, free.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{State, VfError, Vfs, Wants};
use crate::attributes::{Attributes, Settings};
use crate::inventory::{PhysicalFunction, VirtualFunction};
use crate::lease::{Before, Lease, Stage};
use crate::plan::{Binding, Step, Target, plan};
use crate::policy::Asker;

impl Vfs {
    /// Takes a VF back. `lease` is its name or the address of its VF. While somebody holds the VF it waits up to
    /// `wait`, and then leaves the lease as it is.
    pub fn release(&self, lease: &str, wait: Duration, asker: Asker) -> Result<Lease, VfError> {
        self.release_while(lease, wait, asker, &|| true)
    }

    /// [`Vfs::release`] for somebody who may go away: then nobody waits for the holder any more.
    pub fn release_while(
        &self,
        lease: &str,
        wait: Duration,
        asker: Asker,
        asked: &dyn Fn() -> bool,
    ) -> Result<Lease, VfError> {
        let (mut lease, claim) = self.claim(|state| Self::find(state, lease, asker))?;
        let vf = self.lock().inventory.vfs.get(&lease.vf).cloned();
        if let Some(vf) = vf.filter(|vf| (vf.pf, vf.index) == (lease.pf, lease.index)) {
            self.wait_for_holder(&vf, wait, asked)?;
            lease.stage = Stage::Releasing;
            lease.trouble = None;
            self.record_lease(lease.vf, Some(lease.clone()))?;
            self.clean(lease.clone())?;
        } else {
            // The VF is gone, and with it everything that was to be cleaned.
            self.record_lease(lease.vf, None)?;
        }
        info!(vf = %lease.vf, lease = lease.id, "taken back");
        drop(claim);
        Ok(lease)
    }

    /// What [`Vfs::release`] would do.
    pub fn plan_release(&self, lease: &str, asker: Asker) -> Result<Vec<Step>, VfError> {
        let (lease, claim) = self.claim(|state| Self::find(state, lease, asker))?;
        let Some((vf, pf)) = self.functions(&lease) else { return Ok(Vec::new()) };
        let asked = |error| VfError::Ask { tried: format!("look at {}", lease.vf), error };
        let current = self.hands().current(&vf, &pf).map_err(asked)?;
        drop(claim);
        Ok(plan(&current, &target_before(&lease.before)))
    }

    fn find(state: &State, name: &str, asker: Asker) -> Result<(Lease, Wants), VfError> {
        let leases = &state.journal.facts().leases;
        let by_address = || leases.get(&name.parse().ok()?);
        let lease = leases.values().find(|lease| lease.id == name).or_else(by_address);
        let lease = lease.ok_or_else(|| VfError::NoSuchLease { lease: name.to_owned() })?;
        if lease.uid != asker.uid && asker.uid != 0 {
            return Err(VfError::NotAllowed { uid: asker.uid, tried: format!("release the lease {}", lease.id) });
        }
        let wants = match state.inventory.vfs.get(&lease.vf) {
            Some(vf) => Wants::of(vf),
            None => Wants { functions: [lease.vf].into(), quiet: [lease.pf].into(), name: None },
        };
        Ok((lease.clone(), wants))
    }

    fn wait_for_holder(&self, vf: &VirtualFunction, wait: Duration, asked: &dyn Fn() -> bool) -> Result<(), VfError> {
        let tried = format!("release {}", vf.address);
        let deadline = Instant::now() + wait;
        loop {
            let began = Instant::now();
            let holders = self.holders(vf).map_err(|error| VfError::Ask { tried: tried.clone(), error })?;
            let Some(holder) = holders.into_iter().next() else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VfError::Held { tried, vf: vf.address, holder });
            }
            if !asked() {
                return Err(VfError::Unasked { tried });
            }
            if self.is_closing() {
                return Err(VfError::Stopping { tried });
            }
            // Nobody tells when a process closes a file. To look through every process takes long where there are many.
            sleep(HOLDER_POLL.max(began.elapsed() * HOLDER_REST).min(left));
        }
    }

    /// Brings a VF back to what it was before it was lent, and frees it. Its lease is in the journal as
    /// [`Stage::Releasing`], and stays there with what is wrong if this fails: it is tried again later.
    pub(super) fn clean(&self, mut lease: Lease) -> Result<(), VfError> {
        let cleaned = match self.functions(&lease) {
            Some((vf, pf)) => {
                let asked = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
                let target = target_before(&lease.before);
                self.hands()
                    .current(&vf, &pf)
                    .map_err(asked)
                    .and_then(|current| self.hands().apply(&plan(&current, &target)).map_err(VfError::Step))
                    .and_then(|()| self.read_back(&vf, &pf, &target))
            }
            None => Ok(()),
        };
        match cleaned {
            Ok(()) => self.record_lease(lease.vf, None),
            Err(error) => {
                warn!(vf = %lease.vf, lease = lease.id, %error, "the VF could not be cleaned; it is tried again");
                lease.stage = Stage::Releasing;
                lease.previous = None;
                lease.trouble = Some(error.to_string());
                self.record_lease(lease.vf, Some(lease))?;
                Err(error)
            }
        }
    }

    /// The VF of a lease and its PF, if it is there and is the same one.
    pub(super) fn functions(&self, lease: &Lease) -> Option<(VirtualFunction, PhysicalFunction)> {
        let state = self.lock();
        let vf = state.inventory.vfs.get(&lease.vf)?.clone();
        let pf = state.inventory.pfs.get(&vf.pf)?.clone();
        ((vf.pf, vf.index) == (lease.pf, lease.index)).then_some((vf, pf))
    }
}

fn target_before(before: &Before) -> Target {
    let settings = before.settings.as_ref().map(Settings::as_wanted).unwrap_or_default();
    Target {
        binding: Binding::to(before.driver.as_deref()),
        attributes: Attributes { mtu: before.mtu, ..settings },
        members: before.bindings(),
        fresh: true,
    }
}

/// How often it is looked whether a holder has let go.
const HOLDER_POLL: Duration = Duration::from_millis(50);
/// So many times as long as the look took is waited before the next one.
const HOLDER_REST: u32 = 4;
