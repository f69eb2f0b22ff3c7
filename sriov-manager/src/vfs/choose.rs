//! Which VFs requests get.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ferrule_daemon::counted;

use super::reasons::Obstacles;
use super::request::Resolved;
use super::{Again, Choice, LockRequest, Order, Reason, Request, State, VfError, Vfs};
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
    /// What is asked of it.
    pub resolved: Resolved,
    /// How many pools would have been liked better.
    rank: usize,
}

/// VFs that are not available although they seemed to be, and why.
pub(super) type Excluded = BTreeMap<PciAddress, Vec<Reason>>;

impl Vfs {
    /// The VFs that requests get, as things stand. With `same_pf` they are all of one PF, of the one where they come from the
    /// pools that are liked best.
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
        let (mut best, mut lacks) = (None, None::<VfError>);
        for &pf in state.inventory.pfs.keys() {
            match self.choose_each(state, requests, Some(pf), excluded) {
                Ok(found) => {
                    let rank: usize = found.0.iter().map(|chosen| chosen.rank).sum();
                    if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                        best = Some((rank, found));
                    }
                }
                // What the first PF lacks, unless that is only to be another one.
                Err(error @ (VfError::NoneFree { .. } | VfError::Unavailable { .. })) => {
                    lacks = lacks.filter(|lacks| !is_elsewhere(lacks)).or(Some(error));
                }
                // The same on every PF.
                Err(error) => return Err(error),
            }
        }
        best.map(|(_, found)| found).ok_or_else(|| {
            let why = lacks.map(|error| format!(": {error}")).unwrap_or_default();
            VfError::NoPfHasAll { count: requests.len(), why }
        })
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
            chooser.take(&chosen);
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
    /// Whether another request of the same call gets the VF, or another one of its IOMMU group that would have to go with it.
    fn is_taken(&self, vf: &VirtualFunction, driver: Driver) -> bool {
        let others = vf.group_with.iter().filter(|_| driver == Driver::VfioPci);
        others.chain([&vf.address]).any(|function| self.taken.contains(function))
    }

    /// Why a VF is not of the place that is asked for.
    fn other_place(&self, vf: &VirtualFunction, request: &Request) -> Option<Reason> {
        let group = request.place.iommu_group.filter(|group| vf.function.iommu_group != Some(*group));
        self.other_pf(vf, request).or(group.map(|group| Reason::OtherGroup { group }))
    }

    fn other_pf(&self, vf: &VirtualFunction, request: &Request) -> Option<Reason> {
        let mut pfs = [self.pf, request.place.pf].into_iter().flatten();
        pfs.find(|pf| *pf != vf.pf).map(|pf| Reason::OtherPf { pf })
    }

    /// Why a VF that is not lent yet is not to be chosen.
    fn not_meant(&self, vf: &VirtualFunction, request: &Request) -> Option<Reason> {
        let bound_to = request.place.bound_to.filter(|driver| !holds(*driver, vf.function.driver.as_deref()));
        self.other_place(vf, request).or(bound_to.map(|wanted| Reason::NotBoundTo { wanted }))
    }

    fn take(&mut self, chosen: &Chosen) {
        self.taken.insert(chosen.vf.address);
        if chosen.resolved.wanted.driver == Driver::VfioPci {
            self.taken.extend(&chosen.vf.group_with);
        }
    }

    fn choose(&self, request: &Request) -> Result<Chosen, VfError> {
        let found = self.state.facts.lease_named(&request.id);
        let is_meant = |again: &Again| match found {
            Some(lease) => again.is_of(lease),
            None => again.since.is_none(),
        };
        if let Some(again) = &request.again
            && !is_meant(again)
        {
            return Err(VfError::NoSuchLease { lease: request.id.clone() });
        }
        if let Some(lease) = found {
            return self.choose_again(request, lease);
        }
        match &request.choice {
            Choice::Vf(vf) => self.this_one(*vf, &[], request),
            Choice::VfOfPools { vf, pools } => self.this_one(*vf, pools, request),
            Choice::Pools(pools) => self.one_of_pools(pools, request),
        }
    }

    /// The VF of a lease that is there already.
    fn choose_again(&self, request: &Request, found: &Lease) -> Result<Chosen, VfError> {
        let (state, lease) = (self.state, found.clone().into_in_force());
        // Also root has names of its own: it would have another's VF, and take it for its own.
        if lease.uid != request.peer.uid {
            return Err(VfError::IdOfAnother { id: request.id.clone(), uid: lease.uid });
        }
        let is_back = matches!(lease.stage, Stage::Releasing | Stage::Dirty);
        if is_back && state.locked.contains(&lease.vf) {
            // It is being taken back this moment. Whoever asks again so soon waits for that, and decides anew.
            let resolved = resolve(state, request, lease.pool.as_ref())?;
            return Ok(Chosen { vf: state.vf(lease.vf)?.clone(), lease: None, is_any: false, resolved, rank: 0 });
        }
        let is_same = request.choice.is_of(&lease) && request.owner == lease.owner;
        if !is_same || is_back {
            return Err(VfError::IdTaken { id: request.id.clone(), vf: lease.vf, is_ending: is_back });
        }
        let Some(vf) = state.inventory.vfs.get(&lease.vf).filter(|vf| state.is_of(&lease, vf)) else {
            return Err(VfError::Lost { id: lease.id.clone(), vf: lease.vf });
        };
        let pool = lease.pool.as_ref().and_then(|name| state.policies.pool(name));
        let resolved = request.resolve_again(&lease, pool)?;
        // The rest of a place says which VF is chosen. Groups have other numbers after a start of the machine.
        let mut reasons: Vec<_> = self.other_pf(vf, request).into_iter().collect();
        if lease.wanted != resolved.wanted {
            let driver = resolved.wanted.driver;
            reasons.extend(self.vfs.reasons_beside(state, vf, driver, &lease));
            reasons.extend(self.is_taken(vf, driver).then_some(Reason::SameCall));
            if driver == Driver::VfioPci && lease.wanted.driver != Driver::VfioPci {
                // What another one has claimed since stays where it is.
                reasons.extend(state.group_not_lent_by(vf, request));
            }
        }
        if !reasons.is_empty() {
            return Err(VfError::Unavailable { vf: lease.vf, reasons });
        }
        Ok(Chosen { vf: vf.clone(), lease: Some(found.clone()), is_any: false, resolved, rank: 0 })
    }

    /// A VF that is named, of the first of the pools that it is in.
    fn this_one(&self, vf: PciAddress, pools: &[String], request: &Request) -> Result<Chosen, VfError> {
        let state = self.state;
        let function = state.vf(vf)?;
        let is_in = |name: &&String| state.policies.pools_of(&state.inventory, function).any(|of| of.name == **name);
        let pool = pools.iter().find(is_in).or(pools.first());
        may_have(state, function, pool, request.peer)?;
        let resolved = resolve(state, request, pool)?;
        let mut reasons = self.reasons(function, &resolved, &Obstacles::new(&self.vfs.executor().sysfs));
        reasons.extend(self.not_meant(function, request));
        if !reasons.is_empty() {
            return Err(VfError::Unavailable { vf, reasons });
        }
        Ok(Chosen { vf: function.clone(), lease: None, is_any: false, resolved, rank: 0 })
    }

    /// A VF of the first pool that has one. A pool that is not there, or not for this user, is told also if it is not the first.
    fn one_of_pools(&self, names: &[String], request: &Request) -> Result<Chosen, VfError> {
        let state = self.state;
        let found = |name: &String| {
            let pool = pool(state, name)?;
            if !pool.allows(request.peer) {
                let tried = format!("have a VF of the pool {name}");
                return Err(VfError::NotAllowed { uid: request.peer.uid, tried });
            }
            Ok((pool, request.resolve(Some(name), Some(pool))?))
        };
        let pools: Vec<_> = names.iter().map(found).collect::<Result<_, _>>()?;
        let mut without = Vec::new();
        for (rank, (pool, resolved)) in pools.into_iter().enumerate() {
            match self.one_of_pool(pool, &resolved) {
                Ok(vf) => return Ok(Chosen { vf: vf.clone(), lease: None, is_any: true, resolved, rank }),
                Err(why) => {
                    let subject = if names.len() == 1 { "it" } else { &pool.name };
                    without.push(format!("{subject} {why}"));
                }
            }
        }
        Err(VfError::NoneFree { pools: names.to_vec(), why: without.join("; ") })
    }

    /// First a VF that nobody works on, then one that has not failed lately, then one of the wanted NUMA node, then one that needs no other driver, then one of the PF
    /// that the order says, then the lowest address; or what it has instead.
    fn one_of_pool(&self, pool: &Pool, resolved: &Resolved) -> Result<&VirtualFunction, String> {
        let (state, place) = (self.state, &resolved.request.place);
        let inventory = &state.inventory;
        let divisions: BTreeMap<_, _> =
            inventory.pfs.iter().map(|(&pf, known)| (pf, state.policies.division(known))).collect();
        let is_of_pool = |vf: &&VirtualFunction| divisions.get(&vf.pf).is_some_and(|of| of.holds(pool, vf.index));
        let mut not_meant = None;
        let mut is_meant = |vf: &&VirtualFunction| match self.not_meant(vf, &resolved.request) {
            None => true,
            Some(why) => {
                not_meant.get_or_insert((vf.address, why));
                false
            }
        };
        let obstacles = Obstacles::new(&self.vfs.executor().sysfs);
        let judge = |vf: &VirtualFunction| match self.excluded.get(&vf.address) {
            Some(reasons) => reasons.clone(),
            None => self.reasons(vf, resolved, &obstacles),
        };
        let judged: Vec<_> =
            inventory.vfs.values().filter(is_of_pool).filter(&mut is_meant).map(|vf| (vf, judge(vf))).collect();
        let mut free_of_pf = BTreeMap::<_, usize>::new();
        for (vf, _) in judged.iter().filter(|(_, reasons)| reasons.is_empty()) {
            *free_of_pf.entry(vf.pf).or_default() += 1;
        }
        let now = Instant::now();
        let fits = |vf: &VirtualFunction| holds(resolved.wanted.driver, vf.function.driver.as_deref());
        let free = judged.iter().filter(|(_, reasons)| reasons.is_empty()).map(|(vf, _)| *vf);
        let best = free.min_by_key(|vf| {
            let free = free_of_pf.get(&vf.pf).copied().unwrap_or_default();
            let (most, fewest) = match place.order {
                Order::Spread => (Reverse(free), 0),
                Order::Pack => (Reverse(0), free),
            };
            let worked_on = [vf.address, vf.pf].iter().any(|function| state.locked.contains(function));
            let is_far = place.numa.is_some_and(|numa| vf.function.numa != Some(numa));
            let has_failed = state.failed_to_lend.is_waiting(vf.address, now);
            (worked_on, has_failed, is_far, !fits(vf), most, fewest, vf.address)
        });
        best.ok_or_else(|| {
            let first = judged.iter().find_map(|(vf, reasons)| Some(format!("{}: {}", vf.address, reasons.first()?)));
            if let (true, Some((vf, why))) = (judged.is_empty(), not_meant) {
                return format!("has none of the place that is asked for, the first is {vf}: {why}");
            }
            let first = first.map(|first| format!(", the first is {first}")).unwrap_or_default();
            format!("has {}{first}", counted(judged.len(), "VF"))
        })
    }

    fn reasons(&self, vf: &VirtualFunction, resolved: &Resolved, obstacles: &Obstacles<'_>) -> Vec<Reason> {
        let Resolved { request, pool, wanted } = resolved;
        let mut reasons = self.vfs.reasons(self.state, vf, wanted.driver, pool.as_deref(), obstacles);
        reasons.extend(self.state.not_lent_by(vf, request, wanted.driver));
        reasons.extend(self.is_taken(vf, wanted.driver).then_some(Reason::SameCall));
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

/// Whether nothing was wrong but that a VF is of another PF.
fn is_elsewhere(error: &VfError) -> bool {
    let is_other_pf = |reason: &Reason| matches!(reason, Reason::OtherPf { .. });
    matches!(error, VfError::Unavailable { reasons, .. } if reasons.iter().all(is_other_pf))
}

/// What is asked of a VF of a pool. A pool that is gone says nothing.
pub(super) fn resolve(state: &State, request: &Request, pool: Option<&String>) -> Result<Resolved, VfError> {
    request.resolve(pool, pool.and_then(|name| state.policies.pool(name)))
}

pub(super) fn pool<'a>(state: &'a State, name: &str) -> Result<&'a Pool, VfError> {
    let policies = known_policies(state)?;
    policies.pool(name).ok_or_else(|| {
        let there: Vec<_> = policies.pools.iter().map(|pool| pool.name.as_str()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        VfError::NoSuchPool { pool: name.to_owned(), there }
    })
}

impl Vfs {
    /// Whether there are pools of these names. While the policies cannot be used, any may be one.
    pub fn check_pools(&self, names: &[String]) -> Result<(), VfError> {
        let state = self.lock();
        if state.policies_unknown.is_some() {
            return Ok(());
        }
        names.iter().try_for_each(|name| pool(&state, name).map(drop))
    }
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

pub(super) fn holds(wanted: Driver, driver: Option<&str>) -> bool {
    match wanted {
        Driver::VfioPci => driver == Some(VFIO_PCI),
        Driver::None => driver.is_none(),
        Driver::Kernel => driver.is_some_and(|driver| !is_userspace_driver(driver)),
    }
}
