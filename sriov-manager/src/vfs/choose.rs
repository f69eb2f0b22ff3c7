//! Which VFs requests get.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::reasons::Obstacles;
use super::{Choice, LockRequest, Order, Reason, Request, State, VfError, Vfs};
use crate::address::{Driver, PciAddress, VFIO_PCI, is_userspace_driver};
use crate::inventory::VirtualFunction;
use crate::lease::{Lease, Stage};
use crate::policy::{PeerCredentials, Policies, Pool};

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
    /// The driver and the MTU of the pool that is chosen from, for who names none.
    pub fn pool_defaults(&self, choice: &Choice) -> (Option<Driver>, Option<u32>) {
        let state = self.lock();
        let pool = choice.pool().and_then(|pool| state.policies.pool(pool));
        pool.map_or((None, None), |pool| (pool.driver, pool.mtu))
    }

    /// The VFs that requests get, as things stand. With `same_pf` they are all of one PF.
    pub(super) fn choose_all(
        &self,
        state: &State,
        requests: &[Request],
        same_pf: bool,
        excluded: &Excluded,
    ) -> Result<(Vec<Chosen>, LockRequest), VfError> {
        if !same_pf {
            return self.choose_each(state, requests, None, excluded);
        }
        let mut first = None;
        for &pf in state.inventory.pfs.keys() {
            match self.choose_each(state, requests, Some(pf), excluded) {
                Ok(chosen) => return Ok(chosen),
                // A PF that has no VF of the pool says less than one that has too few.
                Err(error) => first = Some(first.unwrap_or(error)),
            }
        }
        let why = first.map(|error: VfError| format!(": {error}")).unwrap_or_default();
        Err(VfError::NoPfHasAll { count: requests.len(), why })
    }

    fn choose_each(
        &self,
        state: &State,
        requests: &[Request],
        pf: Option<PciAddress>,
        excluded: &Excluded,
    ) -> Result<(Vec<Chosen>, LockRequest), VfError> {
        let mut chooser = Chooser { vfs: self, state, pf, excluded, taken: BTreeSet::new() };
        let mut all = Vec::new();
        let mut wants = LockRequest::default();
        for request in requests {
            let chosen = chooser.choose(request)?;
            chooser.take(&chosen.vf, request);
            wants.extend(LockRequest::of(&chosen.vf));
            if chosen.lease.is_none() {
                // Asked twice at the same moment is asked once.
                wants.names.insert(request.id.clone());
            }
            all.push(chosen);
        }
        Ok((all, wants))
    }
}

struct Chooser<'a> {
    vfs: &'a Vfs,
    state: &'a State,
    pf: Option<PciAddress>,
    excluded: &'a Excluded,
    /// VFs that other requests of the same call get, and those that go with them.
    taken: BTreeSet<PciAddress>,
}

impl Chooser<'_> {
    fn take(&mut self, vf: &VirtualFunction, request: &Request) {
        self.taken.insert(vf.address);
        if request.wanted.driver == Driver::VfioPci {
            self.taken.extend(&vf.group_with);
        }
    }

    fn choose(&self, request: &Request) -> Result<Chosen, VfError> {
        let state = self.state;
        if let Some(lease) = state.facts.leases.values().find(|lease| lease.id == request.id) {
            return self.choose_again(request, lease);
        }
        let (vf, is_any) = match &request.choice {
            Choice::Vf(vf) => (self.this_one(*vf, None, request)?, false),
            Choice::VfOfPool { vf, pool } => (self.this_one(*vf, Some(pool), request)?, false),
            Choice::Pool(pool) => (self.one_of_pool(pool, request)?, true),
        };
        Ok(Chosen { vf: state.vf(vf)?.clone(), lease: None, is_any })
    }

    /// The VF of a lease that is there already.
    fn choose_again(&self, request: &Request, lease: &Lease) -> Result<Chosen, VfError> {
        let state = self.state;
        // Also root has names of its own: it would have another's VF, and take it for its own.
        if lease.uid != request.peer.uid {
            return Err(VfError::IdOfAnother { id: request.id.clone(), uid: lease.uid });
        }
        let is_back = matches!(lease.stage, Stage::Releasing | Stage::Dirty);
        if is_back && state.locked.contains(&lease.vf) {
            // It is being taken back this moment. Whoever asks again so soon waits for that, and decides anew.
            return Ok(Chosen { vf: state.vf(lease.vf)?.clone(), lease: None, is_any: false });
        }
        let is_same = request.choice.is_of(lease) && request.owner == lease.owner;
        if !is_same || is_back {
            return Err(VfError::IdTaken { id: request.id.clone(), vf: lease.vf });
        }
        let Some(vf) = state.inventory.vfs.get(&lease.vf).filter(|vf| state.is_of(lease, vf)) else {
            return Err(VfError::Lost { id: lease.id.clone(), vf: lease.vf });
        };
        if lease.wanted != request.wanted {
            let reasons = self.vfs.reasons_beside(state, vf, request.wanted.driver, lease);
            if !reasons.is_empty() {
                return Err(VfError::Unavailable { vf: lease.vf, reasons });
            }
        }
        Ok(Chosen { vf: vf.clone(), lease: Some(lease.clone()), is_any: false })
    }

    /// A VF that is named.
    fn this_one(&self, vf: PciAddress, pool: Option<&String>, request: &Request) -> Result<PciAddress, VfError> {
        let function = self.state.vf(vf)?;
        may_have(self.state, function, pool, request.peer)?;
        let mut reasons = self.reasons(function, request, &Obstacles::new(&self.vfs.executor().sysfs));
        if let Some(pf) = self.pf.or(request.place.pf).filter(|pf| *pf != function.pf) {
            reasons.push(Reason::OtherPf { pf });
        }
        if reasons.is_empty() { Ok(vf) } else { Err(VfError::Unavailable { vf, reasons }) }
    }

    /// First a VF that nobody works on, then one of the wanted NUMA node, then one that needs no other driver, then one of the PF
    /// that the order says, then the lowest address.
    fn one_of_pool(&self, name: &str, request: &Request) -> Result<PciAddress, VfError> {
        let (state, place) = (self.state, &request.place);
        let pool = pool(state, name)?;
        if !pool.allows(request.peer) {
            let tried = format!("have a VF of the pool {name}");
            return Err(VfError::NotAllowed { uid: request.peer.uid, tried });
        }
        let inventory = &state.inventory;
        let divisions: BTreeMap<_, _> =
            inventory.pfs.iter().map(|(&pf, known)| (pf, state.policies.division(known))).collect();
        let is_meant = |vf: &&VirtualFunction| {
            let is_of_pool = divisions.get(&vf.pf).is_some_and(|of| of.holds(pool, vf.index));
            is_of_pool && self.pf.or(place.pf).is_none_or(|wanted| wanted == vf.pf)
        };
        let obstacles = Obstacles::new(&self.vfs.executor().sysfs);
        let judge = |vf: &VirtualFunction| match self.excluded.get(&vf.address) {
            Some(reasons) => reasons.clone(),
            None => self.reasons(vf, request, &obstacles),
        };
        let judged: Vec<_> = inventory.vfs.values().filter(is_meant).map(|vf| (vf, judge(vf))).collect();
        let mut free_of_pf = BTreeMap::<_, usize>::new();
        for (vf, _) in judged.iter().filter(|(_, reasons)| reasons.is_empty()) {
            *free_of_pf.entry(vf.pf).or_default() += 1;
        }
        let fits = |vf: &VirtualFunction| holds(request.wanted.driver, vf.function.driver.as_deref());
        let free = judged.iter().filter(|(_, reasons)| reasons.is_empty()).map(|(vf, _)| *vf);
        let best = free.min_by_key(|vf| {
            let free = free_of_pf.get(&vf.pf).copied().unwrap_or_default();
            let (most, fewest) = match place.order {
                Order::Spread => (Reverse(free), 0),
                Order::Pack => (Reverse(0), free),
            };
            let worked_on = [vf.address, vf.pf].iter().any(|function| state.locked.contains(function));
            let is_far = place.numa.is_some_and(|numa| vf.function.numa != Some(numa));
            (worked_on, is_far, !fits(vf), most, fewest, vf.address)
        });
        best.map(|vf| vf.address).ok_or_else(|| {
            let first = judged.iter().find_map(|(vf, reasons)| Some(format!("{}: {}", vf.address, reasons.first()?)));
            let first = first.map(|first| format!(", the first is {first}")).unwrap_or_default();
            VfError::NoneFree { pool: name.to_owned(), summary: format!("it has {} VFs{first}", judged.len()) }
        })
    }

    fn reasons(&self, vf: &VirtualFunction, request: &Request, obstacles: &Obstacles<'_>) -> Vec<Reason> {
        let pool = request.choice.pool().map(String::as_str);
        let mut reasons = self.vfs.reasons(self.state, vf, request.wanted.driver, pool, obstacles);
        reasons.extend(self.state.not_lent_by(vf, request));
        if self.taken.contains(&vf.address) {
            reasons.push(Reason::SameCall);
        }
        reasons
    }
}

/// The policies, without which nobody may have anything.
fn known_policies(state: &State) -> Result<&Policies, VfError> {
    match &state.policies_unknown {
        Some(why) => Err(VfError::NoPolicies { why: why.clone() }),
        None => Ok(&state.policies),
    }
}

pub(super) fn pool<'a>(state: &'a State, name: &str) -> Result<&'a Pool, VfError> {
    let policies = known_policies(state)?;
    policies.pool(name).ok_or_else(|| {
        let there: Vec<_> = policies.pools.iter().map(|pool| pool.name.as_str()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        VfError::NoSuchPool { pool: name.to_owned(), there }
    })
}

/// Whether somebody may have a VF, of a pool that he names or of any.
pub(super) fn may_have(
    state: &State,
    vf: &VirtualFunction,
    named: Option<&String>,
    peer: PeerCredentials,
) -> Result<(), VfError> {
    let policies = known_policies(state)?;
    if let Some(name) = named
        && !policies.pools_of(&state.inventory, vf).any(|of| of.name == *name)
    {
        pool(state, name)?;
        return Err(VfError::NotOfPool { vf: vf.address, pool: name.clone() });
    }
    let is_meant = |of: &&Pool| named.is_none_or(|name| of.name == *name);
    let mut pools = policies.pools_of(&state.inventory, vf).filter(is_meant).peekable();
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
