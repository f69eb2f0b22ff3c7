//! Lending a VF: choose, journal, apply, read back, or bring it back to what it was.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::info;

use super::apply::must_be_told;
use super::choose::{Chosen, Excluded};
use super::release::Remains;
use super::{Reason, VfError, Vfs};
use crate::address::{Driver, PciAddress};
use crate::attributes::VfReport;
use crate::inventory::VirtualFunction;
use crate::lease::{Before, Lease, Stage, Wanted};
use crate::plan::{Current, Step, Target, plan};
use crate::policy::PeerCredentials;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's own name for the lease: asking twice under one name is asking once, and asking otherwise
    /// under one name changes the lease.
    pub id: String,
    /// For whom, in words for people.
    pub holder: String,
    /// Which VF.
    pub choice: Choice,
    /// How it shall be.
    pub wanted: Wanted,
    /// Who asks.
    pub peer: PeerCredentials,
    /// Whether a VF is taken that the host itself uses.
    pub force: bool,
}

/// Which VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Vf(PciAddress),
    /// Any of a pool.
    Pool(String),
}

/// A VF that was lent, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// The VF.
    pub vf: PciAddress,
    /// The steps that were needed; none: it was as wanted.
    pub steps: Vec<Step>,
}

impl Vfs {
    /// Lends a VF. The same request twice changes nothing.
    pub fn acquire(&self, request: &Request) -> Result<Acquired, VfError> {
        self.acquire_unless(request, &|| false)
    }

    /// [`Vfs::acquire`] for somebody who may go away: a new lease that nobody was told of is undone.
    pub fn acquire_unless(&self, request: &Request, cancelled: &dyn Fn() -> bool) -> Result<Acquired, VfError> {
        request.check()?;
        let mut excluded = BTreeMap::new();
        loop {
            let (chosen, lock) = self.lock_vfs(|state| {
                if cancelled() { Err(request.cancelled()) } else { self.choose(state, request, &excluded) }
            })?;
            match (&chosen.lease, chosen.lease.as_ref().map(|lease| &lease.stage)) {
                // What an earlier try began and did not bring to an end is undone first: nobody was told of it.
                (Some(lease), Some(Stage::New)) => {
                    info!(vf = %lease.vf, lease = lease.id, "an earlier try to lend it did not end, and is undone");
                    self.clean(lease.clone(), Remains::Refused)?;
                }
                (Some(lease), Some(Stage::Changing { .. })) => {
                    info!(vf = %lease.vf, lease = lease.id, "an earlier try to change it did not end, and is undone");
                    self.go_back(lease)?;
                }
                _ => match self.lend(&chosen, request, cancelled) {
                    // Others of the pool may be to be had.
                    Err(VfError::Unavailable { vf, reasons }) if chosen.is_any => {
                        excluded.insert(vf, reasons);
                    }
                    lent => return lent,
                },
            }
            drop(lock);
        }
    }

    /// What [`Vfs::acquire`] would do.
    pub fn plan_acquire(&self, request: &Request) -> Result<Acquired, VfError> {
        request.check()?;
        let mut excluded = Excluded::new();
        loop {
            let (chosen, lock) = self.lock_vfs(|state| self.choose(state, request, &excluded))?;
            match self.ready(&chosen, request) {
                Err(VfError::Unavailable { vf, reasons }) if chosen.is_any => {
                    excluded.insert(vf, reasons);
                }
                ready => return ready.map(|Ready { lease, steps, .. }| Acquired { vf: lease.vf, steps }),
            }
            drop(lock);
        }
    }

    /// Lends the VF that was chosen. It is locked.
    fn lend(&self, chosen: &Chosen, request: &Request, cancelled: &dyn Fn() -> bool) -> Result<Acquired, VfError> {
        let ready = self.ready(chosen, request)?;
        let Ready { lease, steps, .. } = &ready;
        let acquired = Acquired { vf: lease.vf, steps: steps.clone() };
        if chosen.lease.as_ref() == Some(lease) {
            return Ok(acquired);
        }
        self.record_lease(lease.vf, Some(lease.clone()))?;
        if lease.stage == Stage::Lent {
            // Only its words for people have changed.
            return Ok(acquired);
        }
        let lease = self.carry_out(chosen, ready)?;
        if chosen.lease.is_none() && cancelled() {
            info!(vf = %lease.vf, lease = lease.id, "whoever asked has gone: the lease is undone");
            let lease = Lease { stage: Stage::Releasing, ..lease };
            self.record_lease(lease.vf, Some(lease.clone()))?;
            self.clean(lease, Remains::Refused)?;
            return Err(request.cancelled());
        }
        info!(vf = %acquired.vf, lease = request.id, holder = request.holder, driver = %request.wanted.driver, "lent");
        Ok(acquired)
    }

    /// Looks at the VF, and plans. The VF is locked.
    fn ready(&self, chosen: &Chosen, request: &Request) -> Result<Ready, VfError> {
        let Chosen { vf, lease: held, .. } = chosen;
        let look = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
        let current = self.executor().current(vf).map_err(look)?;
        let needs_pf = request.wanted.attributes.needs_pf();
        let mut lease = match held {
            None => {
                // What is not known now could not be restored later.
                must_be_told(&current, needs_pf || current.report != VfReport::NoInterface)?;
                new_lease(vf, &current, request)
            }
            Some(held) => {
                must_be_told(&current, needs_pf || held.before.state.is_some())?;
                changed_lease(held, &current, request)
            }
        };
        let target = self.target(&lease, vf, &current);
        let mut steps = plan(&current, &target);
        if request.wanted.driver != Driver::VfioPci {
            // A member that an earlier try could not bring back may have no driver and be reserved all the same; asking
            // the kernel could take as long as a driver that hangs.
            let home = |(&member, driver): (&_, &Option<_>)| {
                let unbound = driver.is_none() && current.members.get(&member) == Some(&None);
                unbound.then_some(Step::Override { function: member, driver: None })
            };
            steps.extend(lease.before.members.iter().filter_map(home));
        }
        if held.as_ref().is_some_and(|held| held.wanted == lease.wanted) && steps.is_empty() {
            lease.stage = Stage::Lent;
            lease.fault = None;
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

    /// Does the steps and records the outcome. The lease is in the journal.
    fn carry_out(&self, chosen: &Chosen, ready: Ready) -> Result<Lease, VfError> {
        let Ready { mut lease, steps, target } = ready;
        let done = self.executor().apply(&steps).map_err(VfError::Step);
        let Err(error) = done.and_then(|()| self.read_back(&chosen.vf, &target)) else {
            lease.stage = Stage::Lent;
            lease.fault = None;
            if lease.wanted.driver != Driver::VfioPci {
                lease.before.members.clear();
            }
            self.record_lease(lease.vf, Some(lease.clone()))?;
            return Ok(lease);
        };
        // A new lease is gone, a changed one is what it was.
        let undone = match lease.stage {
            Stage::Changing { .. } => self.go_back(&lease),
            _ => self.clean(lease, Remains::Refused),
        };
        Err(match undone {
            Ok(()) => error,
            Err(undo) => VfError::NotUndone {
                error: Box::new(error),
                next: "which is tried again and again",
                undo: undo.to_string(),
            },
        })
    }
}

impl Request {
    fn check(&self) -> Result<(), VfError> {
        for (name, text) in [("id", &self.id), ("holder", &self.holder)] {
            if text.is_empty() || text.len() > NAME_MAX || text.chars().any(char::is_control) {
                let problem = format!("{name}: 1 to {NAME_MAX} bytes without control characters are wanted");
                return Err(VfError::Wrong(problem));
            }
        }
        if let Ok(address) = self.id.parse::<PciAddress>()
            && self.choice != Choice::Vf(address)
        {
            return Err(VfError::Wrong(format!(
                "id: {address} is the address of a VF, by which its lease is named as well: choose another id"
            )));
        }
        self.wanted.attributes.check().map_err(|error| VfError::Wrong(error.to_string()))?;
        if self.wanted.attributes.mtu.is_some() && self.wanted.driver != Driver::Kernel {
            let problem = "mtu: only a VF with the driver `kernel` has an interface whose MTU can be set";
            return Err(VfError::Wrong(problem.to_owned()));
        }
        Ok(())
    }

    fn cancelled(&self) -> VfError {
        VfError::Cancelled { tried: format!("lend a VF as {}", self.id) }
    }
}

/// A lease that is about to be.
struct Ready {
    lease: Lease,
    steps: Vec<Step>,
    target: Target,
}

fn new_lease(vf: &VirtualFunction, current: &Current, request: &Request) -> Lease {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let pool = match &request.choice {
        Choice::Pool(pool) => Some(pool.clone()),
        Choice::Vf(_) => None,
    };
    Lease {
        id: request.id.clone(),
        holder: request.holder.clone(),
        uid: request.peer.uid,
        gid: Some(request.peer.gid),
        since: since.as_secs(),
        pool,
        vf: vf.address,
        pf: vf.pf,
        index: vf.index,
        wanted: request.wanted.clone(),
        before: Before {
            driver: current.driver.clone(),
            state: current.report.told().cloned(),
            mtu: current.mtu,
            members: members(current, request),
        },
        stage: Stage::New,
        fault: None,
    }
}

/// A lease that is there, with another wish or with the same one.
fn changed_lease(held: &Lease, current: &Current, request: &Request) -> Lease {
    let mut before = held.before.clone();
    if before.members.is_empty() {
        before.members = members(current, request);
    }
    // Of a PF that could not be asked at first nothing was changed until now.
    before.state = before.state.or_else(|| current.report.told().cloned());
    Lease {
        before,
        wanted: request.wanted.clone(),
        holder: request.holder.clone(),
        stage: Stage::Changing { from: held.wanted.clone() },
        ..held.clone()
    }
}

/// The others of the IOMMU group, if they go with the VF.
fn members(current: &Current, request: &Request) -> BTreeMap<PciAddress, Option<String>> {
    if request.wanted.driver == Driver::VfioPci { current.members.clone() } else { BTreeMap::new() }
}

/// Enough for a pod's UID, a container's name and an interface.
const NAME_MAX: usize = 256;
