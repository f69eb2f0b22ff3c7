//! A VF that goes from one lease to the next without being free in between, and without anything of its last tenant.

use tracing::info;

use super::acquire::new_lease;
use super::apply::{is_its_card, must_be_told};
use super::choose::{may_have, resolve};
use super::release::find_named;
use super::request::Resolved;
use super::{Acquired, Caller, Choice, HostVfs, LockRequest, Request, State, VfError, Vfs};
use crate::address::Driver;
use crate::attributes::{Attributes, VfState};
use crate::inventory::VirtualFunction;
use crate::lease::{Before, Lease, Stage};
use crate::plan::{Current, Target, plan};

impl Vfs {
    /// Gives the VF of the lease `from` to the lease that `request` asks for, whose choice of a VF is not looked at: its driver is
    /// unbound, it is reset, and everything that the new lease does not ask for is what it was before the first one. Whoever
    /// holds the VF is not disturbed. If it fails, the VF is still `from`'s. Once it was done, the same again is an acquire.
    /// `from` is a name: at an address another lease may be the next moment.
    pub fn hand_over(&self, from: &str, request: &Request, caller: Caller<'_>) -> Result<Acquired, VfError> {
        let done = self.lock().handed_over(from, &request.id).cloned();
        if let Some(lease) = done {
            let again = Request { choice: Choice::again(&lease), ..request.clone() };
            let mut acquired = self.acquire_all(&[again], false, caller)?;
            return Ok(acquired.remove(0));
        }
        loop {
            let ((lease, vf, resolved), lock) =
                self.lock_vfs(caller.when_busy, |state| self.choose_heir(state, from, request))?;
            match lease.stage {
                Stage::Lent => {
                    self.nobody_holds_lease(&lease, &vf)?;
                    let acquired = self.carry_over(&lease, &vf, &resolved)?;
                    drop(lock);
                    return Ok(acquired);
                }
                // An earlier try that did not end is undone first.
                _ => self.go_back(&lease)?,
            }
            drop(lock);
        }
    }

    /// The lease that ends, its VF, and what is asked for it.
    fn choose_heir(
        &self,
        state: &State,
        from: &str,
        request: &Request,
    ) -> Result<((Lease, VirtualFunction, Resolved), LockRequest), VfError> {
        let (found, mut wants) = find_named(state, from, request.peer)?;
        let lease = found.clone().into_in_force();
        let request = Request { choice: Choice::again(&lease), ..request.clone() };
        request.check()?;
        let resolved = resolve(state, &request, lease.pool.as_ref())?;
        if let Some(other) = state.facts.lease_named(&request.id).filter(|other| other.vf != lease.vf) {
            return Err(VfError::IdTaken { id: request.id.clone(), vf: other.vf, is_ending: false });
        }
        if matches!(lease.stage, Stage::New | Stage::Releasing | Stage::Dirty) {
            return Err(VfError::IdTaken { id: lease.id, vf: lease.vf, is_ending: true });
        }
        let Some(vf) = state.inventory.vfs.get(&lease.vf).filter(|vf| state.is_of(&lease, vf)) else {
            return Err(VfError::Lost { id: lease.id.clone(), vf: lease.vf });
        };
        may_have(state, vf, lease.pool.as_ref(), request.peer)?;
        let driver = resolved.wanted.driver;
        let mut reasons = self.reasons_beside(state, vf, driver, &lease);
        // The next tenant is a new one.
        reasons.extend(state.kept_from(vf, &resolved));
        if !reasons.is_empty() {
            return Err(VfError::Unavailable { vf: vf.address, reasons });
        }
        wants.names.insert(request.id.clone());
        Ok(((found, vf.clone(), resolved), wants))
    }

    fn carry_over(&self, from: &Lease, vf: &VirtualFunction, resolved: &Resolved) -> Result<Acquired, VfError> {
        let Resolved { request, wanted, .. } = resolved;
        let current = self.current(vf)?;
        is_its_card(from, &current)?;
        must_be_told(&current, wanted.attributes.needs_pf() || from.before.state.is_some())?;
        let mut before = from.before.clone();
        // Of a PF that could not be asked at first nothing was changed until now.
        before.state = before.state.or_else(|| current.report.told().cloned());
        if before.members.is_empty() && wanted.driver == Driver::VfioPci {
            before.members = current.members.clone();
        }
        let lease = Lease {
            before,
            card: from.card.or(current.card),
            handed_from: Some(from.id.clone()),
            stage: Stage::HandingOver { from: Box::new(from.clone()) },
            ..new_lease(vf, &current, resolved)
        };
        let target = self.target_of_heir(&lease, vf, &current);
        let steps = plan(&current, &target);
        // The others of the IOMMU group may go along only now.
        let tried = format!("hand over {}", vf.address);
        let host = if request.force { HostVfs::Taken } else { HostVfs::Kept };
        let ask = |error| VfError::Ask { tried: tried.clone(), error };
        if let Some((vf, user)) = self.disturbed(vf.address, &steps, host).map_err(ask)? {
            return Err(user.in_the_way(&tried, vf, false));
        }
        self.record_unless_kept([(vf, resolved)], vec![lease.clone()])?;
        let done = self.executor().apply(&steps).map_err(VfError::Step);
        if let Err(error) = done.and_then(|()| self.read_back(vf, &target)) {
            return Err(match self.go_back(&lease) {
                Ok(()) => error,
                Err(undo) => VfError::NotUndone {
                    error: Box::new(error),
                    next: "which is tried again and again",
                    undo: undo.to_string(),
                },
            });
        }
        let mut lent = Lease { stage: Stage::Lent, ..lease };
        if lent.wanted.driver != Driver::VfioPci {
            lent.before.members.clear();
        }
        self.record_lease(vf.address, Some(lent))?;
        info!(vf = %vf.address, from = from.id, lease = request.id, tenant = request.tenant, "handed over");
        Ok(Acquired { vf: vf.address, steps })
    }

    /// Clean, and what is not asked for as it was before the first lease.
    fn target_of_heir(&self, lease: &Lease, vf: &VirtualFunction, current: &Current) -> Target {
        let Before { state, mtu, .. } = &lease.before;
        let at_first = state.as_ref().map(VfState::as_wanted).unwrap_or_default();
        let at_first = Attributes { mtu: *mtu, ..at_first };
        let mut attributes = lease.wanted.attributes.or(&at_first);
        // A driver in user space may take zeros for an address.
        if lease.wanted.driver == Driver::VfioPci && attributes.mac.is_some_and(crate::attributes::Mac::is_zero) {
            attributes.mac = current.derived_mac;
        }
        if lease.wanted.driver != Driver::Kernel {
            attributes.mtu = None;
        }
        Target { attributes, fresh: true, ..self.target(lease, vf, current) }
    }
}

impl State {
    /// The lease `to`, if the lease `from` was handed over to it and is no more.
    fn handed_over(&self, from: &str, to: &str) -> Option<&Lease> {
        let is_over = self.facts.lease_named(from).is_none();
        self.facts.lease_named(to).filter(|lease| is_over && lease.handed_from.as_deref() == Some(from))
    }
}
