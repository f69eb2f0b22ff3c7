//! Lending VFs: choose, journal, apply, read back, or bring them back to what they were.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::info;

use super::apply::{is_its_card, must_be_told};
use super::choose::{Chosen, Excluded};
use super::release::Remains;
use super::request::{Resolved, cancelled, check_all};
use super::{Acquired, Caller, Reason, Request, VfError, Vfs};
use crate::address::{Driver, PciAddress};
use crate::attributes::VfReport;
use crate::inventory::VirtualFunction;
use crate::journal::Record;
use crate::lease::{Before, Lease, Stage, Wanted};
use crate::plan::{Current, Step, Target, plan};

impl Vfs {
    /// Lends a VF. The same request twice changes nothing.
    pub fn acquire(&self, request: &Request) -> Result<Acquired, VfError> {
        let mut acquired = self.acquire_all(std::slice::from_ref(request), false, Caller::PATIENT)?;
        Ok(acquired.remove(0))
    }

    /// Lends several VFs, all of them or none, also if the manager is killed meanwhile. With `same_pf` they are of one PF. New
    /// leases that nobody was told of, because who asked has gone, are undone.
    pub fn acquire_all(
        &self,
        requests: &[Request],
        same_pf: bool,
        caller: Caller<'_>,
    ) -> Result<Vec<Acquired>, VfError> {
        check_all(requests)?;
        let mut excluded = BTreeMap::new();
        loop {
            let (chosen, lock) = self.lock_vfs(caller.when_busy, |state| {
                if (caller.has_left)() {
                    return Err(cancelled(requests));
                }
                self.choose_all(state, requests, same_pf, &excluded)
            })?;
            if !self.end_earlier_tries(&chosen)? {
                let ready = self.ready_all(&chosen);
                match ready.and_then(|ready| self.lend(&chosen, ready, requests, caller)) {
                    // Others of the pool may be to be had.
                    Err(NotReady::Another(vf, reasons)) => drop(excluded.insert(vf, reasons)),
                    Err(NotReady::Failed(error)) => return Err(error),
                    Ok(acquired) => return Ok(acquired),
                }
            }
            drop(lock);
        }
    }

    /// What [`Vfs::acquire_all`] would do.
    pub fn plan_acquire_all(
        &self,
        requests: &[Request],
        same_pf: bool,
        caller: Caller<'_>,
    ) -> Result<Vec<Acquired>, VfError> {
        check_all(requests)?;
        let mut excluded = Excluded::new();
        loop {
            let (chosen, lock) =
                self.lock_vfs(caller.when_busy, |state| self.choose_all(state, requests, same_pf, &excluded))?;
            match self.ready_all(&chosen) {
                Err(NotReady::Another(vf, reasons)) => drop(excluded.insert(vf, reasons)),
                Err(NotReady::Failed(error)) => return Err(error),
                Ok(ready) => return Ok(ready.iter().map(Ready::acquired).collect()),
            }
            drop(lock);
        }
    }

    /// What [`Vfs::acquire`] would do.
    pub fn plan_acquire(&self, request: &Request) -> Result<Acquired, VfError> {
        let mut acquired = self.plan_acquire_all(std::slice::from_ref(request), false, Caller::PATIENT)?;
        Ok(acquired.remove(0))
    }

    /// What an earlier try began and did not bring to an end is undone first: nobody was told of it. Returns whether there was
    /// such a one.
    fn end_earlier_tries(&self, chosen: &[Chosen]) -> Result<bool, VfError> {
        let mut had_any = false;
        for lease in chosen.iter().filter_map(|chosen| chosen.lease.as_ref()) {
            match lease.stage {
                Stage::New => self.clean(lease.clone(), Remains::Refused)?,
                Stage::Changing { .. } | Stage::HandingOver { .. } => self.go_back(lease)?,
                Stage::Lent | Stage::Releasing | Stage::Dirty => continue,
            }
            info!(vf = %lease.vf, lease = lease.id, "an earlier try did not end, and was undone");
            had_any = true;
        }
        Ok(had_any)
    }

    fn ready_all(&self, chosen: &[Chosen]) -> Result<Vec<Ready>, NotReady> {
        chosen.iter().map(|chosen| self.ready(chosen).map_err(|error| NotReady::of(chosen, error))).collect()
    }

    /// Lends the VFs that were chosen. They are locked.
    fn lend(
        &self,
        chosen: &[Chosen],
        mut ready: Vec<Ready>,
        requests: &[Request],
        caller: Caller<'_>,
    ) -> Result<Vec<Acquired>, NotReady> {
        let acquired: Vec<_> = ready.iter().map(Ready::acquired).collect();
        // Of several none is lent, or is another one, before all are.
        let at_once = chosen.iter().zip(&ready).all(|(chosen, ready)| ready.is_done_by_a_start(chosen));
        for (chosen, ready) in chosen.iter().zip(&mut ready) {
            if at_once || ready.is_as_it_was(chosen) {
                ready.settle();
            }
        }
        self.carry_out_all(chosen, ready)?;
        let new = || chosen.iter().filter(|chosen| chosen.lease.is_none());
        if new().next().is_some() && (caller.has_left)() {
            for chosen in new() {
                info!(vf = %chosen.vf.address, lease = chosen.resolved.request.id, "whoever asked has gone: the lease is undone");
                self.take_back(chosen.vf.address)?;
            }
            return Err(cancelled(requests).into());
        }
        for (chosen, acquired) in chosen.iter().zip(&acquired) {
            if chosen.lease.is_some() && acquired.steps.is_empty() {
                continue;
            }
            let Resolved { request, wanted, .. } = &chosen.resolved;
            info!(vf = %chosen.vf.address, lease = request.id, holder = request.holder, driver = %wanted.driver, "lent");
        }
        Ok(acquired)
    }

    /// Frees a VF whose lease nobody was told of.
    fn take_back(&self, vf: PciAddress) -> Result<(), VfError> {
        let Some(lease) = self.lock().facts.leases.get(&vf).cloned() else { return Ok(()) };
        let lease = Lease { stage: Stage::Releasing, ..lease };
        self.record_lease(vf, Some(lease.clone()))?;
        self.clean(lease, Remains::Refused)
    }

    /// Looks at the VF, and plans. The VF is locked.
    fn ready(&self, chosen: &Chosen) -> Result<Ready, VfError> {
        let Chosen { vf, lease: held, resolved, .. } = chosen;
        let Resolved { request, wanted, .. } = resolved;
        let until = request.until.as_ref();
        if let Some(until) = until.filter(|until| self.has_ended(until)) {
            return Err(VfError::Ended { id: request.id.clone(), until: until.clone() });
        }
        let current = self.current(vf)?;
        let needs_pf = wanted.attributes.needs_pf();
        let lease = match held {
            None => {
                // What is not known now could not be restored later.
                must_be_told(&current, needs_pf || current.report != VfReport::NoInterface)?;
                new_lease(vf, &current, resolved)
            }
            Some(held) => {
                must_be_told(&current, needs_pf || held.before.state.is_some())?;
                is_its_card(held, &current)?;
                changed_lease(held, &current, resolved)
            }
        };
        let target = self.target(&lease, vf, &current);
        let mut steps = plan(&current, &target);
        if wanted.driver != Driver::VfioPci {
            // A member that an earlier try could not bring back may have no driver and be reserved all the same; asking
            // the kernel could take as long as a driver that hangs.
            let home = |(&member, driver): (&_, &Option<_>)| {
                let unbound = driver.is_none() && current.members.get(&member) == Some(&None);
                unbound.then_some(Step::Override { function: member, driver: None })
            };
            steps.extend(lease.before.members.iter().filter_map(home));
        }
        self.nobody_is_disturbed(chosen, &steps, request)?;
        Ok(Ready { lease, steps, target })
    }

    /// Nobody's VF is taken from its driver: not by a new lease, for somebody may have taken it who did not ask, nor by
    /// another wish of who has it.
    fn nobody_is_disturbed(&self, chosen: &Chosen, steps: &[Step], request: &Request) -> Result<(), VfError> {
        let Chosen { vf, lease, .. } = chosen;
        let id = &request.id;
        let ask = |error| VfError::Ask { tried: format!("lend {} as {id}", vf.address), error };
        let unavailable = |reason| Err(VfError::Unavailable { vf: vf.address, reasons: vec![reason] });
        if lease.is_none() {
            if let Some(holder) = self.holders(vf).map_err(ask)?.into_iter().next() {
                return unavailable(Reason::Held(holder));
            }
            if let Some(host_use) = self.host_use(vf).map_err(ask)?.filter(|_| !request.force) {
                return unavailable(Reason::UsedByHost(host_use));
            }
        }
        let Some((function, holder)) = self.disturbed(vf, steps).map_err(ask)? else { return Ok(()) };
        match vf.function.iommu_group {
            Some(group) if function != vf.address => unavailable(Reason::GroupHeld { group, vf: function, holder }),
            _ => Err(VfError::Held { tried: format!("change the lease {id}"), vf: vf.address, holder }),
        }
    }

    /// Records what is about to be, does it, and records that it was done, unless the first record says so; or brings everything
    /// back to what it was.
    fn carry_out_all(&self, chosen: &[Chosen], ready: Vec<Ready>) -> Result<(), NotReady> {
        let is_news =
            |chosen: &Chosen, ready: &Ready| chosen.lease.as_ref() != Some(&ready.lease) || !ready.steps.is_empty();
        let begun: Vec<_> = chosen.iter().zip(ready).filter(|(chosen, ready)| is_news(chosen, ready)).collect();
        let first = begun.iter().filter(|(chosen, ready)| chosen.lease.as_ref() != Some(&ready.lease));
        let new = chosen.iter().filter(|chosen| chosen.lease.is_none()).map(|chosen| (&chosen.vf, &chosen.resolved));
        self.record_unless_kept(new, first.map(|(_, ready)| ready.lease.clone()).collect()).map_err(|error| {
            let is_meant =
                |chosen: &&Chosen| matches!(&error, VfError::Unavailable { vf, .. } if *vf == chosen.vf.address);
            match chosen.iter().find(is_meant) {
                Some(chosen) => NotReady::of(chosen, error),
                None => NotReady::Failed(error),
            }
        })?;
        for (chosen, ready) in &begun {
            if let Err(error) = self.carry_out(chosen, ready) {
                // A new lease is gone, a changed one is what it was.
                let undone = begun.iter().rev().map(|(chosen, ready)| self.undo(chosen, ready));
                let left: Vec<_> = undone.filter_map(|undone| Some(undone.err()?.to_string())).collect();
                return Err(NotReady::Failed(if left.is_empty() {
                    error
                } else {
                    let next = "which is tried again and again";
                    VfError::NotUndone { error: Box::new(error), next, undo: left.join("; ") }
                }));
            }
        }
        let unsettled = begun.into_iter().filter(|(_, ready)| ready.lease.stage != Stage::Lent);
        let lent = unsettled.map(|(_, mut ready)| {
            ready.settle();
            ready.lease
        });
        Ok(self.record_leases(lent.collect())?)
    }

    fn carry_out(&self, chosen: &Chosen, ready: &Ready) -> Result<(), VfError> {
        if ready.steps.is_empty() {
            return Ok(());
        }
        self.executor().apply(&ready.steps).map_err(VfError::Step)?;
        self.read_back(&chosen.vf, &ready.target)
    }

    fn undo(&self, chosen: &Chosen, ready: &Ready) -> Result<(), VfError> {
        let lease = &ready.lease;
        match (&lease.stage, &chosen.lease) {
            (Stage::Changing { .. } | Stage::HandingOver { .. }, _) => self.go_back(lease),
            (Stage::New | Stage::Releasing | Stage::Dirty, _) => self.clean(lease.clone(), Remains::Refused),
            (Stage::Lent, None) => self.take_back(lease.vf),
            // Only its words for people were to change.
            (Stage::Lent, Some(_)) if ready.steps.is_empty() => self.record_lease(lease.vf, chosen.lease.clone()),
            (Stage::Lent, Some(before)) => {
                let lease = Lease { stage: Stage::Changing { from: before.wanted.clone() }, ..lease.clone() };
                self.record_lease(lease.vf, Some(lease.clone()))?;
                self.go_back(&lease)
            }
        }
    }

    /// All of them or none.
    pub(super) fn record_leases(&self, mut leases: Vec<Lease>) -> Result<(), VfError> {
        match leases.len() {
            0 => Ok(()),
            1 => leases.pop().map_or(Ok(()), |lease| self.record_lease(lease.vf, Some(lease))),
            _ => self.record(&Record::Leases { leases }),
        }
    }
}

/// Why VFs that were chosen are not lent.
enum NotReady {
    /// This one is not to be had; another one may be.
    Another(PciAddress, Vec<Reason>),
    Failed(VfError),
}

impl NotReady {
    fn of(chosen: &Chosen, error: VfError) -> Self {
        match error {
            VfError::Unavailable { vf, reasons } if chosen.is_any => Self::Another(vf, reasons),
            other => Self::Failed(other),
        }
    }
}

impl From<VfError> for NotReady {
    fn from(error: VfError) -> Self {
        Self::Failed(error)
    }
}

/// A lease that is about to be.
struct Ready {
    lease: Lease,
    steps: Vec<Step>,
    target: Target,
}

impl Ready {
    /// Whether one record says all of it: there is nothing to do, or what a kill leaves undone is done by the next start, as what
    /// drifted is. A start does not know of what was asked before and is not any more.
    fn is_done_by_a_start(&self, chosen: &Chosen) -> bool {
        let wanted = &self.lease.wanted.attributes;
        let forgets_nothing =
            || chosen.lease.as_ref().is_none_or(|before| wanted.or(&before.wanted.attributes) == *wanted);
        self.steps.is_empty() || (self.steps.iter().all(Step::is_setting) && forgets_nothing())
    }

    /// Whether nothing of it changes but words.
    fn is_as_it_was(&self, chosen: &Chosen) -> bool {
        self.steps.is_empty() && chosen.lease.as_ref().is_some_and(|before| before.wanted == self.lease.wanted)
    }

    /// It is lent, as it was asked for.
    fn settle(&mut self) {
        let lease = &mut self.lease;
        (lease.stage, lease.fault) = (Stage::Lent, None);
        if lease.wanted.driver != Driver::VfioPci {
            lease.before.members.clear();
        }
    }

    fn acquired(&self) -> Acquired {
        Acquired { vf: self.lease.vf, steps: self.steps.clone() }
    }
}

pub(super) fn new_lease(vf: &VirtualFunction, current: &Current, resolved: &Resolved) -> Lease {
    let Resolved { request, pool, wanted } = resolved;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Lease {
        id: request.id.clone(),
        holder: request.holder.clone(),
        uid: request.peer.uid,
        gid: Some(request.peer.gid),
        since: since.as_secs(),
        pool: pool.clone(),
        owner: request.owner.clone(),
        until: request.until.clone(),
        vf: vf.address,
        pf: vf.pf,
        index: vf.index,
        card: current.card,
        handed_from: None,
        wanted: wanted.clone(),
        before: Before {
            driver: current.driver.clone(),
            state: current.report.told().cloned(),
            mtu: current.mtu,
            members: members(current, wanted),
        },
        stage: Stage::New,
        fault: None,
    }
}

/// A lease that is there, with another wish or with the same one.
fn changed_lease(held: &Lease, current: &Current, resolved: &Resolved) -> Lease {
    let Resolved { request, wanted, .. } = resolved;
    let mut before = held.before.clone();
    if before.members.is_empty() {
        before.members = members(current, wanted);
    }
    // Of a PF that could not be asked at first nothing was changed until now.
    before.state = before.state.or_else(|| current.report.told().cloned());
    Lease {
        before,
        wanted: wanted.clone(),
        holder: request.holder.clone(),
        until: request.until.clone(),
        card: held.card.or(current.card),
        stage: Stage::Changing { from: held.wanted.clone() },
        ..held.clone()
    }
}

/// The others of the IOMMU group, if they go with the VF.
fn members(current: &Current, wanted: &Wanted) -> BTreeMap<PciAddress, Option<String>> {
    if wanted.driver == Driver::VfioPci { current.members.clone() } else { BTreeMap::new() }
}
