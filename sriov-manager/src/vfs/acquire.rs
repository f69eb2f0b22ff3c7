//! Lending a VF: choose, journal, apply, read back, or bring it back to what it was.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::info;

use super::{Reason, State, VfError, Vfs, Wants};
use crate::address::{Driver, PciAddress, VFIO_PCI};
use crate::attributes::{Mac, Settings};
use crate::inventory::{PhysicalFunction, VirtualFunction};
use crate::journal::Record;
use crate::lease::{Before, Lease, Stage, Wanted};
use crate::plan::{Binding, Current, Step, Target, plan};
use crate::policy::Asker;

/// What a borrower asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The borrower's own name for the lease: asking twice under one name is asking once, and asking otherwise
    /// under one name changes the lease.
    pub id: String,
    /// For whom, in words for people.
    pub holder: String,
    /// Which VF.
    pub choice: Choice,
    /// How it shall be.
    pub wanted: Wanted,
    /// Who asks.
    pub asker: Asker,
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
        self.acquire_while(request, &|| true)
    }

    /// [`Vfs::acquire`] for somebody who may go away: a new lease that nobody was told of is undone.
    pub fn acquire_while(&self, request: &Request, asked: &dyn Fn() -> bool) -> Result<Acquired, VfError> {
        let unasked = || VfError::Unasked { tried: format!("lend a VF as {}", request.id) };
        request.check()?;
        let (chosen, claim) = self.claim(|state| if asked() { self.choose(state, request) } else { Err(unasked()) })?;
        let ready = self.ready(&chosen, request)?;
        let Ready { lease, steps, .. } = &ready;
        let acquired = Acquired { vf: lease.vf, steps: steps.clone() };
        if ready.nothing_new {
            return Ok(acquired);
        }
        self.record_lease(lease.vf, Some(lease.clone()))?;
        let lease = self.carry_out(&chosen, ready)?;
        if chosen.lease.is_none() && !asked() {
            self.undo_unasked(lease)?;
            return Err(unasked());
        }
        info!(vf = %acquired.vf, lease = request.id, holder = request.holder, driver = %request.wanted.driver, "lent");
        drop(claim);
        Ok(acquired)
    }

    /// Takes a VF back that nobody was told of. It is claimed.
    fn undo_unasked(&self, lease: Lease) -> Result<(), VfError> {
        info!(vf = %lease.vf, lease = lease.id, "whoever asked has gone: the lease is undone");
        let lease = Lease { stage: Stage::Releasing, ..lease };
        self.record_lease(lease.vf, Some(lease.clone()))?;
        self.clean(lease)
    }

    /// What [`Vfs::acquire`] would do.
    pub fn plan_acquire(&self, request: &Request) -> Result<Acquired, VfError> {
        request.check()?;
        let (chosen, claim) = self.claim(|state| self.choose(state, request))?;
        let Ready { lease, steps, .. } = self.ready(&chosen, request)?;
        drop(claim);
        Ok(Acquired { vf: lease.vf, steps })
    }

    /// The VF that a request gets, as the ledger stands.
    fn choose(&self, state: &State, request: &Request) -> Result<(Chosen, Wants), VfError> {
        let leases = &state.journal.facts().leases;
        if let Some(lease) = leases.values().find(|lease| lease.id == request.id) {
            let same = match &request.choice {
                Choice::Vf(vf) => *vf == lease.vf,
                Choice::Pool(pool) => lease.pool.as_ref() == Some(pool),
            };
            if lease.stage == Stage::Releasing && state.claimed.contains(&lease.vf) {
                // It is being taken back this moment. Whoever asks again so soon waits for that, and decides anew.
                return Self::chosen(state, lease.vf, None);
            }
            if !same || lease.stage == Stage::Releasing {
                return Err(VfError::IdTaken { id: request.id.clone(), vf: lease.vf });
            }
            if lease.uid != request.asker.uid && request.asker.uid != 0 {
                let tried = format!("change the lease {}", lease.id);
                return Err(VfError::NotAllowed { uid: request.asker.uid, tried });
            }
            if lease.wanted != request.wanted {
                let own = |reason: &Reason| matches!(reason, Reason::Lent { .. });
                let reasons = self.reasons(state, state.vf(lease.vf)?, request.wanted.driver);
                let forbidden = state.policies.forbids(&state.inventory, lease).map(|why| Reason::Forbidden { why });
                let reasons: Vec<_> = reasons.into_iter().filter(|reason| !own(reason)).chain(forbidden).collect();
                if !reasons.is_empty() {
                    return Err(VfError::Unavailable { vf: lease.vf, reasons });
                }
            }
            return Self::chosen(state, lease.vf, Some(lease.clone()));
        }
        let vf = match &request.choice {
            Choice::Vf(vf) => {
                let function = state.vf(*vf)?;
                Self::may_have(state, function, request.asker)?;
                let reasons = self.reasons(state, function, request.wanted.driver);
                if !reasons.is_empty() {
                    return Err(VfError::Unavailable { vf: *vf, reasons });
                }
                *vf
            }
            Choice::Pool(pool) => self.choose_of_pool(state, pool, request)?,
        };
        let (chosen, mut wants) = Self::chosen(state, vf, None)?;
        // Asked twice at the same moment is asked once.
        wants.name = Some(request.id.clone());
        Ok((chosen, wants))
    }

    fn chosen(state: &State, vf: PciAddress, lease: Option<Lease>) -> Result<(Chosen, Wants), VfError> {
        let vf = state.vf(vf)?.clone();
        let pf = state.pf(vf.pf)?.clone();
        let wants = Wants::of(&vf);
        Ok((Chosen { vf, pf, lease }, wants))
    }

    fn may_have(state: &State, vf: &VirtualFunction, asker: Asker) -> Result<(), VfError> {
        let mut pools = state.policies.pools_of(&state.inventory, vf).peekable();
        // A VF that is in no pool is lent by its address, to whoever may open the socket.
        if pools.peek().is_none() || pools.any(|pool| pool.allows(asker)) {
            return Ok(());
        }
        Err(VfError::NotAllowed { uid: asker.uid, tried: format!("have {}", vf.address) })
    }

    /// First a VF that needs no other driver, then one of the PF with the most free ones, then the lowest address.
    fn choose_of_pool(&self, state: &State, name: &str, request: &Request) -> Result<PciAddress, VfError> {
        let policies = &state.policies;
        let Some(pool) = policies.pool(name) else {
            let there: Vec<_> = policies.pools.iter().map(|pool| pool.name.as_str()).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(VfError::NoSuchPool { pool: name.to_owned(), there });
        };
        if !pool.allows(request.asker) {
            let tried = format!("have a VF of the pool {name}");
            return Err(VfError::NotAllowed { uid: request.asker.uid, tried });
        }
        let inventory = &state.inventory;
        let of_pool =
            inventory.vfs.values().filter(|vf| inventory.pfs.get(&vf.pf).is_some_and(|pf| pool.holds(pf, vf.index)));
        let judged: Vec<_> = of_pool.map(|vf| (vf, self.reasons(state, vf, request.wanted.driver))).collect();
        let mut free_of_pf = BTreeMap::<_, usize>::new();
        for (vf, _) in judged.iter().filter(|(_, reasons)| reasons.is_empty()) {
            *free_of_pf.entry(vf.pf).or_default() += 1;
        }
        let fits = |vf: &VirtualFunction| holds(request.wanted.driver, vf.function.driver.as_deref());
        let free = judged.iter().filter(|(_, reasons)| reasons.is_empty()).map(|(vf, _)| *vf);
        let best = free.min_by_key(|vf| {
            let most_free = std::cmp::Reverse(free_of_pf.get(&vf.pf).copied());
            let worked_on = [vf.address, vf.pf].iter().any(|function| state.claimed.contains(function));
            (worked_on, !fits(vf), most_free, vf.address)
        });
        best.map(|vf| vf.address).ok_or_else(|| {
            let first = judged.iter().find_map(|(vf, reasons)| Some(format!("{}: {}", vf.address, reasons.first()?)));
            let first = first.map(|first| format!(", the first is {first}")).unwrap_or_default();
            VfError::NoneFree { pool: name.to_owned(), summary: format!("it has {} VFs{first}", judged.len()) }
        })
    }

    /// Looks at the VF, and plans. The VF is claimed.
    fn ready(&self, chosen: &Chosen, request: &Request) -> Result<Ready, VfError> {
        let Chosen { vf, pf, lease } = chosen;
        let asked = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
        let current = self.hands().current(vf, pf).map_err(asked)?;
        if request.wanted.attributes.needs_pf() && current.settings.is_none() {
            return Err(VfError::Wrong(format!(
                "{}: its PF {} has no interface in this namespace, so no attributes can be set; ask without them",
                vf.address, pf.address
            )));
        }
        let is_new = lease.is_none();
        let (lease, nothing_new) = match lease {
            Some(lease) => {
                let same = lease.wanted == request.wanted && lease.trouble.is_none();
                let previous = if same { None } else { Some(lease.wanted.clone()) };
                let mut before = lease.before.clone();
                if before.members.is_empty() {
                    before.members = members(&current, request);
                }
                let changed = Lease {
                    before,
                    wanted: request.wanted.clone(),
                    holder: request.holder.clone(),
                    previous,
                    stage: Stage::Acquiring,
                    ..lease.clone()
                };
                (changed, same)
            }
            None => (Self::new_lease(vf, &current, request), false),
        };
        let target = self.target(&lease, vf, pf, &current);
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
        self.nobody_is_disturbed(vf, &steps, is_new, &lease.id)?;
        Ok(Ready { nothing_new: nothing_new && steps.is_empty(), lease, steps, target })
    }

    /// Nobody's VF is taken from its driver: not by a new lease, for somebody may have taken it who did not ask, nor by
    /// another wish of who has it.
    fn nobody_is_disturbed(&self, vf: &VirtualFunction, steps: &[Step], is_new: bool, id: &str) -> Result<(), VfError> {
        let unbound = |vf: &VirtualFunction| {
            steps.iter().any(|step| matches!(step, Step::Unbind { function, .. } if *function == vf.address))
        };
        let members: Vec<_> = {
            let state = self.lock();
            vf.group_with.iter().filter_map(|member| state.inventory.vfs.get(member).cloned()).collect()
        };
        let to_ask = [vf].into_iter().filter(|vf| is_new || unbound(vf)).chain(members.iter().filter(|vf| unbound(vf)));
        for asked in to_ask {
            let tried = || format!("lend {} as {id}", vf.address);
            let holders = self.holders(asked).map_err(|error| VfError::Ask { tried: tried(), error })?;
            let Some(holder) = holders.into_iter().next() else { continue };
            let reason = match vf.function.iommu_group {
                Some(group) if asked.address != vf.address => Reason::GroupHeld { group, vf: asked.address, holder },
                _ if is_new => Reason::Held(holder),
                _ => return Err(VfError::Held { tried: format!("change the lease {id}"), vf: vf.address, holder }),
            };
            return Err(VfError::Unavailable { vf: vf.address, reasons: vec![reason] });
        }
        Ok(())
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
            uid: request.asker.uid,
            gid: Some(request.asker.gid),
            since: since.as_secs(),
            pool,
            vf: vf.address,
            pf: vf.pf,
            index: vf.index,
            wanted: request.wanted.clone(),
            previous: None,
            before: Before {
                driver: current.driver.clone(),
                settings: current.settings.clone(),
                mtu: current.mtu,
                members: members(current, request),
            },
            stage: Stage::Acquiring,
            trouble: None,
        }
    }

    /// What a lease's VF is to be.
    pub(super) fn target(
        &self,
        lease: &Lease,
        vf: &VirtualFunction,
        pf: &PhysicalFunction,
        current: &Current,
    ) -> Target {
        let Wanted { driver, attributes } = &lease.wanted;
        // What was asked before and is not any more goes back to what it was at first.
        let mut wanted = attributes.clone();
        if let Some(previous) = &lease.previous {
            let mut at_first = lease.before.settings.as_ref().map(Settings::as_wanted).unwrap_or_default();
            at_first.mtu = lease.before.mtu;
            wanted = wanted.or(&at_first.within(&previous.attributes));
        }
        // A driver in user space may take zeros for an address.
        if *driver == Driver::VfioPci
            && let (None, Some(settings)) = (wanted.mac, &current.settings)
            && settings.mac.is_zero()
        {
            wanted.mac = self.own_mac(vf, pf);
        }
        let vfio = || Binding::To(VFIO_PCI.to_owned());
        let members = match driver {
            Driver::VfioPci => current.members.keys().map(|&member| (member, vfio())).collect(),
            // Those that went with it to vfio-pci come back.
            Driver::Kernel | Driver::None => lease.before.bindings(),
        };
        let binding = match driver {
            Driver::VfioPci => vfio(),
            Driver::None => Binding::None,
            Driver::Kernel => {
                let state = self.lock();
                let named = state.policies.kernel_driver(&state.inventory, vf);
                named.map_or(Binding::Found, Binding::To)
            }
        };
        Target { binding, attributes: wanted, members, fresh: false }
    }

    /// The address that a VF has, or one made for it.
    fn own_mac(&self, vf: &VirtualFunction, pf: &PhysicalFunction) -> Option<Mac> {
        let sysfs = &self.hands().sysfs;
        let own = sysfs.netdevs(vf.address).first().and_then(|netdev| sysfs.mac(vf.address, netdev));
        own.filter(|mac| !mac.is_zero()).or_else(|| Some(sysfs.mac(pf.address, pf.netdev()?)?.derived(vf.index)))
    }

    /// Does the steps and records the outcome. The lease is in the journal.
    fn carry_out(&self, chosen: &Chosen, ready: Ready) -> Result<Lease, VfError> {
        let Ready { mut lease, steps, target, .. } = ready;
        let done = self.hands().apply(&steps);
        let outcome = match done {
            Ok(()) => self.read_back(&chosen.vf, &chosen.pf, &target),
            Err(error) => Err(VfError::Step(error)),
        };
        match outcome {
            Ok(()) => {
                lease.stage = Stage::Held;
                lease.previous = None;
                lease.trouble = None;
                if lease.wanted.driver != Driver::VfioPci {
                    lease.before.members.clear();
                }
                self.record_lease(lease.vf, Some(lease.clone()))?;
                Ok(lease)
            }
            Err(error) => Err(self.back_out(chosen, lease, error)),
        }
    }

    /// Undoes a failed acquire: a new lease is gone, a changed one is what it was.
    fn back_out(&self, chosen: &Chosen, mut lease: Lease, error: VfError) -> VfError {
        let undone = if let Some(previous) = lease.previous.take() {
            lease.previous = Some(std::mem::replace(&mut lease.wanted, previous));
            let undone = self.make_so(&chosen.vf, &chosen.pf, &lease);
            lease.previous = None;
            lease.stage = Stage::Held;
            lease.trouble = undone.as_ref().err().map(ToString::to_string);
            self.record_lease(lease.vf, Some(lease)).and(undone)
        } else {
            lease.stage = Stage::Releasing;
            self.clean(lease)
        };
        match undone {
            Ok(()) => error,
            Err(undo) => VfError::NotUndone {
                error: Box::new(error),
                next: "which is tried again and again",
                undo: undo.to_string(),
            },
        }
    }

    /// Brings a VF to what its lease wants.
    pub(super) fn make_so(&self, vf: &VirtualFunction, pf: &PhysicalFunction, lease: &Lease) -> Result<(), VfError> {
        let asked = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
        let current = self.hands().current(vf, pf).map_err(asked)?;
        let target = self.target(lease, vf, pf, &current);
        self.hands().apply(&plan(&current, &target)).map_err(VfError::Step)?;
        self.read_back(vf, pf, &target)
    }

    /// Looks whether a VF is what it was made.
    pub(super) fn read_back(
        &self,
        vf: &VirtualFunction,
        pf: &PhysicalFunction,
        target: &Target,
    ) -> Result<(), VfError> {
        let settled = Target { fresh: false, ..target.clone() };
        let left = || self.hands().current(vf, pf).map(|current| plan(&current, &settled));
        // A PF learns of a reset a moment after it.
        let settle = self.hands().patience.settle;
        if self.hands().appears(|| left().ok().filter(Vec::is_empty), settle).is_some() {
            return Ok(());
        }
        let left = left().map_err(|error| VfError::Ask { tried: format!("look at {}", vf.address), error })?;
        let left = left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(VfError::NotAsWanted { vf: vf.address, left })
    }

    pub(super) fn record_lease(&self, vf: PciAddress, lease: Option<Lease>) -> Result<(), VfError> {
        self.record(&mut self.lock(), &Record::Lease { vf, lease: lease.map(Box::new) })
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
        self.wanted.attributes.check().map_err(|error| VfError::Wrong(error.to_string()))?;
        if self.wanted.attributes.mtu.is_some() && self.wanted.driver != Driver::Kernel {
            let problem = "mtu: only a VF with the driver `kernel` has an interface whose MTU can be set";
            return Err(VfError::Wrong(problem.to_owned()));
        }
        Ok(())
    }
}

/// The VF that a request gets. The claim on it is held.
struct Chosen {
    vf: VirtualFunction,
    pf: PhysicalFunction,
    /// The lease that is there already.
    lease: Option<Lease>,
}

/// A lease that is about to be.
struct Ready {
    lease: Lease,
    steps: Vec<Step>,
    target: Target,
    nothing_new: bool,
}

/// The others of the IOMMU group, if they go with the VF.
fn members(current: &Current, request: &Request) -> BTreeMap<PciAddress, Option<String>> {
    if request.wanted.driver == Driver::VfioPci { current.members.clone() } else { BTreeMap::new() }
}

fn holds(wanted: Driver, driver: Option<&str>) -> bool {
    match wanted {
        Driver::VfioPci => driver == Some(VFIO_PCI),
        Driver::None => driver.is_none(),
        Driver::Kernel => driver.is_some_and(|driver| driver != VFIO_PCI),
    }
}

/// Enough for a pod's UID, a container's name and an interface.
const NAME_MAX: usize = 256;
