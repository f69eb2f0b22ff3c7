//! Making a VF what its lease wants, and going back from a change that did not end.

use tracing::info;

use super::held::FunctionUser;
use super::{VfError, Vfs};
use crate::address::{Driver, VFIO_PCI, is_userspace_driver};
use crate::attributes::{Mac, VfReport, VfState};
use crate::executor::CURE_INTERFACE;
use crate::inventory::VirtualFunction;
use crate::lease::{Lease, Stage, Wanted};
use crate::plan::{Binding, Current, Step, Target, plan};

impl Vfs {
    /// What a lease's VF is to be.
    pub(super) fn target(&self, lease: &Lease, vf: &VirtualFunction, current: &Current) -> Target {
        let Wanted { driver, attributes } = &lease.wanted;
        // What was asked before and is not any more goes back to what it was at first.
        let mut wanted = attributes.clone();
        if let Stage::Changing { from } = &lease.stage {
            let mut at_first = lease.before.state.as_ref().map(VfState::as_wanted).unwrap_or_default();
            at_first.mtu = lease.before.mtu;
            wanted = wanted.or(&at_first.within(&from.attributes));
        }
        // A driver in user space may take zeros for an address.
        let has_none = current.report.told().is_some_and(|state| state.mac.is_zero());
        if *driver == Driver::VfioPci && wanted.mac.is_none() && has_none {
            wanted.mac = self.own_mac(vf).or(current.derived_mac);
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
                // While nobody knows what its pool says, the driver that it has is the one.
                let is_driven = current.driver.as_deref().is_some_and(|driver| !is_userspace_driver(driver));
                let is_kept = state.policies_unknown.is_some() && is_driven;
                let named = || state.policies.kernel_driver(&state.inventory, vf, lease.pool.as_deref());
                if is_kept { Binding::Found } else { named().map_or(Binding::Found, Binding::To) }
            }
        };
        Target { binding, attributes: wanted, members, fresh: false }
    }

    /// The address that the interface of a VF has.
    fn own_mac(&self, vf: &VirtualFunction) -> Option<Mac> {
        let sysfs = &self.executor().sysfs;
        let netdev = sysfs.netdevs(vf.address).into_iter().next()?;
        sysfs.mac(vf.address, &netdev).filter(|mac| !mac.is_zero())
    }

    /// Brings a lease whose change or whose handing over did not end back to what it was before, unless that takes the VF from
    /// somebody.
    pub(super) fn go_back(&self, lease: &Lease) -> Result<(), VfError> {
        // What the change asked for and the lease did not goes as well.
        let stage = Stage::Changing { from: lease.wanted.clone() };
        let back = match &lease.stage {
            Stage::Changing { from } => Lease { wanted: from.clone(), stage, ..lease.clone() },
            Stage::HandingOver { .. } => Lease { stage, ..lease.clone().into_in_force() },
            Stage::New | Stage::Lent | Stage::Releasing | Stage::Dirty => return Ok(()),
        };
        let Some(vf) = self.function(lease) else {
            // With it went what would have to be undone.
            let lost = Lease { stage: Stage::Lent, fault: Some(GONE.to_owned()), ..back };
            return self.record_lease(lease.vf, Some(lost));
        };
        let done = self.apply_wanted(&back, &vf);
        let now = match &done {
            Ok(()) => Lease { stage: Stage::Lent, fault: None, ..back },
            Err(error) => Lease { fault: Some(error.to_string()), ..lease.clone() },
        };
        self.record_lease(lease.vf, Some(now)).and(done)
    }

    /// Makes a VF what its lease wants, unless that takes it from somebody.
    pub(super) fn apply_wanted(&self, lease: &Lease, vf: &VirtualFunction) -> Result<(), VfError> {
        let look = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
        let current = self.current(vf)?;
        is_its_card(lease, &current)?;
        must_be_told(&current, lease.wanted.attributes.needs_pf() || lease.before.state.is_some())?;
        let target = self.target(lease, vf, &current);
        let steps = plan(&current, &target);
        if steps.is_empty() {
            return Ok(());
        }
        let tried = format!("bring back the lease {}", lease.id);
        // Somebody who works with the VF as it is is not to be surprised by what drifted behind his back, either.
        if lease.stage == Stage::Lent
            && let Some(holder) = self.holders(vf).map_err(look)?.into_iter().next()
        {
            return Err(VfError::Held { tried, vf: vf.address, holder });
        }
        // The host itself may be the tenant, and what it made of the interface would be gone.
        let is_driven =
            lease.wanted.driver == Driver::Kernel && steps.iter().any(|step| step.disturbs() == Some(vf.address));
        if lease.stage == Stage::Lent
            && is_driven
            && let Some(host_use) = self.host_use(vf).map_err(look)?
        {
            return Err(FunctionUser::Host(host_use).in_the_way(&tried, vf.address, false));
        }
        self.nobody_is_disturbed(vf.address, &steps, &tried)?;
        info!(vf = %lease.vf, lease = lease.id, steps = steps.len(), "bringing back");
        self.bring(vf, &steps, &current, &target)
    }

    /// Does the steps to a target, and looks whether the VF is what it was made.
    pub(super) fn bring(
        &self,
        vf: &VirtualFunction,
        steps: &[Step],
        current: &Current,
        target: &Target,
    ) -> Result<(), VfError> {
        if steps.is_empty() {
            return Ok(());
        }
        let (Some(interface), true) = (current.interface, steps.iter().all(|step| matches!(step, Step::Set { .. })))
        else {
            self.executor().apply(steps).map_err(VfError::Step)?;
            return self.read_back(vf, target);
        };
        let told = self.executor().tell(steps, interface).map_err(VfError::Step)?;
        if let Some(state) = told.and_then(|mut report| report.vfs.remove(&vf.index)) {
            let now = Current { report: VfReport::Told(state), ..current.clone() };
            if plan(&now, &settled(target)).is_empty() {
                return Ok(());
            }
        }
        self.read_back(vf, target)
    }

    /// Looks whether a VF is what it was made.
    pub(super) fn read_back(&self, vf: &VirtualFunction, target: &Target) -> Result<(), VfError> {
        let settled = settled(target);
        let needs_pf = target.attributes.needs_pf();
        let is_done = || {
            let current = self.executor().current_at_once(vf).ok()?;
            let is_told = !needs_pf || current.report.told().is_some();
            (is_told && plan(&current, &settled).is_empty()).then_some(())
        };
        // A PF learns of a reset a moment after it.
        if self.executor().appears(is_done, self.executor().timeouts.settle).is_some() {
            return Ok(());
        }
        let look = |error| VfError::Ask { tried: format!("look at {}", vf.address), error };
        let current = self.executor().current_at_once(vf).map_err(look)?;
        must_be_told(&current, needs_pf)?;
        let left = plan(&current, &settled);
        if left.is_empty() {
            return Ok(());
        }
        let left = left.iter().map(Step::to_string).collect::<Vec<_>>().join(", ");
        Err(VfError::NotAsWanted { vf: vf.address, left })
    }
}

/// A target that was reached: what is left to do is nothing.
fn settled(target: &Target) -> Target {
    let mut settled = Target { fresh: false, ..target.clone() };
    if settled.attributes.mac.is_some_and(Mac::is_zero) && leaves_address_to_driver(&settled.binding) {
        settled.attributes.mac = None;
    }
    settled
}

/// A driver of the kernel takes an address of its own where none was given, and tells the PF.
fn leaves_address_to_driver(binding: &Binding) -> bool {
    matches!(binding, Binding::Found) || matches!(binding, Binding::To(driver) if !is_userspace_driver(driver))
}

/// Where the PF has to be asked, nothing is done before it has told: a VF of which nothing is known may be anything.
pub(super) fn must_be_told(current: &Current, is_needed: bool) -> Result<(), VfError> {
    let (why, of_any) = match &current.report {
        VfReport::Told(_) => return Ok(()),
        VfReport::NoInterface => (format!("the PF has no interface here; {CURE_INTERFACE}"), true),
        VfReport::Untold(why) => (why.clone(), true),
        VfReport::LeftOut(why) => (why.clone(), false),
    };
    if is_needed { Err(VfError::Untold { vf: current.vf, pf: current.pf, why, of_any }) } else { Ok(()) }
}

/// Nothing is done with a VF that came to the address of the one that is lent.
pub(super) fn is_its_card(lease: &Lease, current: &Current) -> Result<(), VfError> {
    match (lease.card, current.card) {
        (Some(then), Some(now)) if then != now => {
            Err(VfError::OtherCard { id: lease.id.clone(), vf: lease.vf, then, now })
        }
        _ => Ok(()),
    }
}

/// A lease whose VF is not there stays: its client still believes in it, and the VF may come back.
pub(super) const GONE: &str =
    "its VF is gone: make it again with `ferrule vf create`, and the lease comes back, or release it";
