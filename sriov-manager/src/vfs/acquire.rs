//! Lending VFs: choose, journal, apply, read back, or bring them back to what they were.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::info;

use super::apply::{is_its_card, must_be_told};
use super::choose::{Chosen, Excluded, holds};
use super::release::Remains;
use super::request::{Resolved, cancelled, check_all};
use super::{Acquired, Caller, HostVfs, Reason, Request, VfError, Vfs};
use crate::address::{Driver, PciAddress, is_userspace_driver};
use crate::attributes::VfReport;
use crate::holders::Holder;
use crate::inventory::VirtualFunction;
use crate::journal::Record;
use crate::lease::{Before, Lease, Stage, Wanted};
use crate::plan::{Current, Step, Target, plan};
use crate::watchdog::CallError;

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
        let mut attempts = Attempts::default();
        loop {
            let decided = self.lock_vfs(caller.when_busy, |state| {
                if (caller.has_left)() {
                    return Err(cancelled(requests));
                }
                self.choose_all(state, requests, same_pf, &attempts.excluded)
            });
            let (chosen, mut lock) = decided.map_err(|error| attempts.first_failure_or(error))?;
            if !self.end_earlier_tries(&chosen)? {
                let ready = self.ready_all(&chosen);
                let is_as_seen = ready.as_ref().is_ok_and(|ready| are_as_seen(&chosen, ready));
                match ready.and_then(|ready| self.lend(&chosen, ready, requests, caller)) {
                    Err(why) => self.pass_over(&mut attempts, why)?,
                    Ok(acquired) => {
                        if is_as_seen {
                            lock.forgo_look();
                        }
                        return Ok(acquired);
                    }
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
        let mut attempts = Attempts::default();
        loop {
            let decided =
                self.lock_vfs(caller.when_busy, |state| self.choose_all(state, requests, same_pf, &attempts.excluded));
            let (chosen, mut lock) = decided.map_err(|error| attempts.first_failure_or(error))?;
            match self.ready_all(&chosen) {
                Err(why) => self.pass_over(&mut attempts, why)?,
                Ok(ready) => {
                    if are_as_seen(&chosen, &ready) {
                        lock.forgo_look();
                    }
                    return Ok(ready.iter().map(Ready::acquired).collect());
                }
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

    /// Passes over what is not available, as long as there may be another one that is.
    fn pass_over(&self, attempts: &mut Attempts, why: NotReady) -> Result<(), VfError> {
        let (vf, pf, of_its_pf, error) = match why {
            NotReady::Failed(error) => return Err(error),
            NotReady::Another(vf, reasons) => {
                let is_elsewhere = |reason: &Reason| matches!(reason, Reason::Held(Holder::Namespace { .. }));
                if reasons.iter().any(is_elsewhere) && !attempts.has_looked_elsewhere {
                    attempts.has_looked_elsewhere = true;
                    // Where one is in a pod without a lease many are, and each would be looked for in every namespace.
                    attempts.excluded.extend(self.netdevs_elsewhere());
                }
                attempts.excluded.insert(vf, reasons);
                return Ok(());
            }
            NotReady::Faulty { vf, pf, of_its_pf, error } => (vf, pf, of_its_pf, error),
        };
        let mut state = self.lock();
        let is_like = |other: &&VirtualFunction| of_its_pf && other.address != vf && other.pf == pf;
        let like: Vec<_> = state.inventory.vfs.values().filter(is_like).map(|other| other.address).collect();
        for vf in like.into_iter().chain([vf]) {
            state.failed_to_lend.failed(vf, Instant::now());
            attempts.excluded.insert(vf, vec![Reason::Unknown(error.to_string())]);
        }
        attempts.failures += 1;
        let first = attempts.first.take().unwrap_or(error);
        if attempts.failures >= FAILURES_MAX {
            return Err(first);
        }
        attempts.first = Some(first);
        Ok(())
    }

    fn ready_all(&self, chosen: &[Chosen]) -> Result<Vec<Ready>, NotReady> {
        let ready = |chosen: &Chosen| {
            // What the PF does not say of this one in time it says of none.
            let current = self.current(&chosen.vf).map_err(|error| {
                let of_its_pf = matches!(error, VfError::Ask { error: CallError::Late { .. }, .. });
                NotReady::of(chosen, error, of_its_pf)
            })?;
            self.ready(chosen, current).map_err(|error| NotReady::of_vf(chosen, error))
        };
        chosen.iter().map(ready).collect()
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
            let undo = |chosen: &Chosen| {
                info!(vf = %chosen.vf.address, lease = chosen.resolved.request.id, "whoever asked has gone: the lease is undone");
                self.take_back(chosen.vf.address)
            };
            // All of them, also if one cannot be cleaned now.
            let undone: Vec<_> = new().map(undo).collect();
            undone.into_iter().collect::<Result<(), _>>()?;
            return Err(cancelled(requests).into());
        }
        for (chosen, acquired) in chosen.iter().zip(&acquired) {
            if chosen.lease.is_some() && acquired.steps.is_empty() {
                continue;
            }
            let Resolved { request, wanted, .. } = &chosen.resolved;
            info!(vf = %chosen.vf.address, lease = request.id, tenant = request.tenant, driver = %wanted.driver, "lent");
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
    fn ready(&self, chosen: &Chosen, current: Current) -> Result<Ready, VfError> {
        let Chosen { vf, lease: held, resolved, .. } = chosen;
        let Resolved { request, wanted, .. } = resolved;
        let until = request.until.as_ref();
        if let Some(until) = until.filter(|until| self.has_ended(vf.address, until, request.peer.uid)) {
            return Err(VfError::Ended { id: request.id.clone(), until: until.clone() });
        }
        let place = request.place.bound_to.filter(|_| held.is_none());
        if let Some(wanted) = place.filter(|driver| !holds(*driver, current.driver.as_deref())) {
            // It was when it was chosen.
            return Err(VfError::Unavailable { vf: vf.address, reasons: vec![Reason::NotBoundTo { wanted }] });
        }
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
        self.takes_from_nobody(chosen, &steps, request)?;
        Ok(Ready { lease, steps, current, target })
    }

    /// Nobody's VF is taken from its driver: not by a new lease, for somebody may have taken it who did not ask, nor by
    /// another wish of who has it.
    fn takes_from_nobody(&self, chosen: &Chosen, steps: &[Step], request: &Request) -> Result<(), VfError> {
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
        let host = if request.force { HostVfs::Taken } else { HostVfs::Kept };
        let Some((function, user)) = self.disturbed(vf.address, steps, host).map_err(ask)? else { return Ok(()) };
        match vf.function.iommu_group {
            Some(group) if function != vf.address => unavailable(user.in_group(group, function)),
            _ => Err(user.in_the_way(&format!("change the lease {id}"), function, false)),
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
                Some(chosen) => NotReady::of_vf(chosen, error),
                None => NotReady::Failed(error),
            }
        })?;
        for (chosen, ready) in &begun {
            if let Err(error) = self.bring(&chosen.vf, &ready.steps, &ready.current, &ready.target) {
                // A new lease is gone, a changed one is what it was.
                let undone = begun.iter().rev().map(|(chosen, ready)| self.undo(chosen, ready));
                let left: Vec<_> = undone.filter_map(|undone| Some(undone.err()?.to_string())).collect();
                if left.is_empty() {
                    return Err(NotReady::of_vf(chosen, error));
                }
                let next = "which is tried again and again";
                return Err(VfError::NotUndone { error: Box::new(error), next, undo: left.join("; ") }.into());
            }
        }
        {
            let mut state = self.lock();
            for chosen in chosen {
                state.failed_to_lend.forget(chosen.vf.address);
            }
        }
        let unsettled = begun.into_iter().filter(|(_, ready)| ready.lease.stage != Stage::Lent);
        let lent = unsettled.map(|(_, mut ready)| {
            ready.settle();
            ready.lease
        });
        Ok(self.record_leases(lent.collect())?)
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
                if let Err(error) = self.record_lease(lease.vf, Some(lease.clone())) {
                    // What of the new wish is done, and what is not, is compared later.
                    self.lock().remade.insert(lease.vf);
                    return Err(error);
                }
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

/// What an acquire has tried so far.
#[derive(Default)]
struct Attempts {
    /// What is not chosen again.
    excluded: Excluded,
    /// How many VFs seemed to be available, and failed.
    failures: usize,
    first: Option<VfError>,
    /// VFs whose interfaces are in other namespaces are excluded.
    has_looked_elsewhere: bool,
}

impl Attempts {
    /// Why there is no other one to try: what failed first says more than that all are passed over.
    fn first_failure_or(&mut self, error: VfError) -> VfError {
        match error {
            VfError::NoneFree { .. } | VfError::NoPfHasAll { .. } => self.first.take().unwrap_or(error),
            other => other,
        }
    }
}

/// Why VFs that were chosen are not lent.
enum NotReady {
    /// This one is not available; another one may be.
    Another(PciAddress, Vec<Reason>),
    /// This one failed, and is as it was; another one may do it.
    Faulty {
        vf: PciAddress,
        pf: PciAddress,
        /// The same is to be expected of the other VFs of its PF.
        of_its_pf: bool,
        error: VfError,
    },
    Failed(VfError),
}

impl NotReady {
    fn of_vf(chosen: &Chosen, error: VfError) -> Self {
        let of_its_pf = matches!(error, VfError::Untold { of_any: true, .. });
        Self::of(chosen, error, of_its_pf)
    }

    fn of(chosen: &Chosen, error: VfError, of_its_pf: bool) -> Self {
        match error {
            VfError::Unavailable { vf, reasons } if chosen.is_any => Self::Another(vf, reasons),
            error @ (VfError::Untold { .. } | VfError::Ask { .. } | VfError::Step(_) | VfError::NotAsWanted { .. })
                if chosen.is_any =>
            {
                Self::Faulty { vf: chosen.vf.address, pf: chosen.vf.pf, of_its_pf, error }
            }
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
    /// The VF before them.
    current: Current,
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

    /// Whether what is known of the VF is as it was at the last look: it was bound as it is, and only its PF is told something.
    fn is_as_seen(&self, chosen: &Chosen) -> bool {
        let driver = &self.current.driver;
        *driver == chosen.vf.function.driver
            && driver.as_deref().is_none_or(is_userspace_driver)
            && self.steps.iter().all(|step| matches!(step, Step::Set { .. }))
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

fn are_as_seen(chosen: &[Chosen], ready: &[Ready]) -> bool {
    chosen.iter().zip(ready).all(|(chosen, ready)| ready.is_as_seen(chosen))
}

pub(super) fn new_lease(vf: &VirtualFunction, current: &Current, resolved: &Resolved) -> Lease {
    let Resolved { request, pool, wanted } = resolved;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Lease {
        id: request.id.clone(),
        tenant: request.tenant.clone(),
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
        tenant: request.tenant.clone(),
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

/// So many VFs of pools are tried for one call: each may take seconds.
const FAILURES_MAX: usize = 4;
