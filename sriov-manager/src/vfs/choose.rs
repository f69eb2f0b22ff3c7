//! Which VF a request gets.

use std::collections::BTreeMap;

use super::{Choice, LockRequest, Reason, Request, State, VfError, Vfs};
use crate::address::{Driver, PciAddress, VFIO_PCI, is_userspace_driver};
use crate::inventory::VirtualFunction;
use crate::lease::{Lease, Stage};
use crate::policy::PeerCredentials;

/// The VF that a request gets. It is locked.
pub(super) struct Chosen {
    pub vf: VirtualFunction,
    /// The lease that is there already.
    pub lease: Option<Lease>,
    /// Another one would do as well.
    pub is_any: bool,
}

/// VFs that are not to be had although they seemed to be, and why.
pub(super) type Excluded = BTreeMap<PciAddress, Vec<Reason>>;

impl Vfs {
    /// The VF that a request gets, as things stand.
    pub(super) fn choose(
        &self,
        state: &State,
        request: &Request,
        excluded: &Excluded,
    ) -> Result<(Chosen, LockRequest), VfError> {
        let leases = &state.journal.facts().leases;
        if let Some(lease) = leases.values().find(|lease| lease.id == request.id) {
            return self.choose_again(state, request, lease);
        }
        let vf = match &request.choice {
            Choice::Vf(vf) => {
                let function = state.vf(*vf)?;
                may_have(state, function, request.peer)?;
                let reasons = self.reasons(state, function, request.wanted.driver);
                if !reasons.is_empty() {
                    return Err(VfError::Unavailable { vf: *vf, reasons });
                }
                *vf
            }
            Choice::Pool(pool) => self.choose_of_pool(state, pool, request, excluded)?,
        };
        let (mut chosen, mut wants) = chosen(state, vf, None)?;
        chosen.is_any = matches!(request.choice, Choice::Pool(_));
        // Asked twice at the same moment is asked once.
        wants.name = Some(request.id.clone());
        Ok((chosen, wants))
    }

    /// The VF of a lease that is there already.
    fn choose_again(&self, state: &State, request: &Request, lease: &Lease) -> Result<(Chosen, LockRequest), VfError> {
        // Also root has names of its own: it would have another's VF, and take it for its own.
        if lease.uid != request.peer.uid {
            return Err(VfError::IdOfAnother { id: request.id.clone(), uid: lease.uid });
        }
        let is_back = matches!(lease.stage, Stage::Releasing | Stage::Dirty);
        if is_back && state.locked.contains(&lease.vf) {
            // It is being taken back this moment. Whoever asks again so soon waits for that, and decides anew.
            return chosen(state, lease.vf, None);
        }
        let same = match &request.choice {
            Choice::Vf(vf) => *vf == lease.vf,
            Choice::Pool(pool) => lease.pool.as_ref() == Some(pool),
        };
        if !same || is_back {
            return Err(VfError::IdTaken { id: request.id.clone(), vf: lease.vf });
        }
        let Some(vf) = state.inventory.vfs.get(&lease.vf).filter(|vf| lease.is_of(vf)) else {
            return Err(VfError::Lost { id: lease.id.clone(), vf: lease.vf });
        };
        if lease.wanted != request.wanted {
            let own = |reason: &Reason| matches!(reason, Reason::Lent { .. });
            let reasons = self.reasons(state, vf, request.wanted.driver);
            let forbidden = state.policies.forbids(&state.inventory, lease).map(|why| Reason::Forbidden { why });
            let reasons: Vec<_> = reasons.into_iter().filter(|reason| !own(reason)).chain(forbidden).collect();
            if !reasons.is_empty() {
                return Err(VfError::Unavailable { vf: lease.vf, reasons });
            }
        }
        chosen(state, lease.vf, Some(lease.clone()))
    }

    /// First a VF that needs no other driver, then one of the PF with the most free ones, then the lowest address.
    fn choose_of_pool(
        &self,
        state: &State,
        name: &str,
        request: &Request,
        excluded: &Excluded,
    ) -> Result<PciAddress, VfError> {
        let policies = &state.policies;
        let Some(pool) = policies.pool(name) else {
            let there: Vec<_> = policies.pools.iter().map(|pool| pool.name.as_str()).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(VfError::NoSuchPool { pool: name.to_owned(), there });
        };
        if !pool.allows(request.peer) {
            let tried = format!("have a VF of the pool {name}");
            return Err(VfError::NotAllowed { uid: request.peer.uid, tried });
        }
        let inventory = &state.inventory;
        let divisions: BTreeMap<_, _> =
            inventory.pfs.iter().map(|(&pf, known)| (pf, policies.division(known))).collect();
        let is_of_pool = |vf: &&VirtualFunction| divisions.get(&vf.pf).is_some_and(|of| of.holds(pool, vf.index));
        let of_pool = inventory.vfs.values().filter(is_of_pool);
        let reasons = |vf: &VirtualFunction| match excluded.get(&vf.address) {
            Some(reasons) => reasons.clone(),
            None => self.reasons(state, vf, request.wanted.driver),
        };
        let judged: Vec<_> = of_pool.map(|vf| (vf, reasons(vf))).collect();
        let mut free_of_pf = BTreeMap::<_, usize>::new();
        for (vf, _) in judged.iter().filter(|(_, reasons)| reasons.is_empty()) {
            *free_of_pf.entry(vf.pf).or_default() += 1;
        }
        let fits = |vf: &VirtualFunction| holds(request.wanted.driver, vf.function.driver.as_deref());
        let free = judged.iter().filter(|(_, reasons)| reasons.is_empty()).map(|(vf, _)| *vf);
        let best = free.min_by_key(|vf| {
            let most_free = std::cmp::Reverse(free_of_pf.get(&vf.pf).copied());
            let worked_on = [vf.address, vf.pf].iter().any(|function| state.locked.contains(function));
            (worked_on, !fits(vf), most_free, vf.address)
        });
        best.map(|vf| vf.address).ok_or_else(|| {
            let first = judged.iter().find_map(|(vf, reasons)| Some(format!("{}: {}", vf.address, reasons.first()?)));
            let first = first.map(|first| format!(", the first is {first}")).unwrap_or_default();
            VfError::NoneFree { pool: name.to_owned(), summary: format!("it has {} VFs{first}", judged.len()) }
        })
    }
}

fn chosen(state: &State, vf: PciAddress, lease: Option<Lease>) -> Result<(Chosen, LockRequest), VfError> {
    let vf = state.vf(vf)?.clone();
    let wants = LockRequest::of(&vf);
    Ok((Chosen { vf, lease, is_any: false }, wants))
}

fn may_have(state: &State, vf: &VirtualFunction, peer: PeerCredentials) -> Result<(), VfError> {
    let mut pools = state.policies.pools_of(&state.inventory, vf).peekable();
    // A VF that is in no pool is lent by its address, to whoever may open the socket.
    if pools.peek().is_none() || pools.any(|pool| pool.allows(peer)) {
        return Ok(());
    }
    Err(VfError::NotAllowed { uid: peer.uid, tried: format!("have {}", vf.address) })
}

fn holds(wanted: Driver, driver: Option<&str>) -> bool {
    match wanted {
        Driver::VfioPci => driver == Some(VFIO_PCI),
        Driver::None => driver.is_none(),
        Driver::Kernel => driver.is_some_and(|driver| !is_userspace_driver(driver)),
    }
}
