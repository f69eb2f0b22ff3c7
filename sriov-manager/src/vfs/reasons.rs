//! Why a VF is not available.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;

use super::held::FunctionUser;
use super::{Reason, State, VfError, Vfs};
use crate::address::{Driver, PciAddress, VFIO_PCI, is_userspace_driver};
use crate::inventory::{Inventory, VirtualFunction};
use crate::lease::Lease;
use crate::policy::Policies;
use crate::sysfs::Sysfs;
use crate::watchdog::CallError;

impl Vfs {
    /// Why a VF is not available on a driver; nothing: it is. Holders are looked for as well.
    pub fn explain(&self, vf: PciAddress, driver: Driver) -> Result<Vec<Reason>, VfError> {
        self.explain_to(vf, Some(driver), None)
    }

    /// [`Vfs::explain`] to the owner of VFs. Without a driver: on that of the VF's first pool, as an acquire from it.
    pub fn explain_to(
        &self,
        vf: PciAddress,
        driver: Option<Driver>,
        owner: Option<&str>,
    ) -> Result<Vec<Reason>, VfError> {
        let (state, function, members, mut reasons) = {
            let state = self.lock().clone();
            let function = state.vf(vf)?.clone();
            let of_pool = || state.policies.pools_of(&state.inventory, &function).next().and_then(|pool| pool.driver);
            let driver = driver.or_else(of_pool).unwrap_or_default();
            let members = function.group_with.iter().filter_map(|member| state.inventory.vfs.get(member).cloned());
            let members: Vec<_> = if driver == Driver::VfioPci { members.collect() } else { Vec::new() };
            let obstacles = Obstacles::new(&self.executor().sysfs);
            let reasons = self.reasons(&state, &function, driver, None, &obstacles);
            (state, function, members, reasons)
        };
        let lent = is_tenants(&function, &reasons);
        let stuck = reasons.iter().any(|reason| matches!(reason, Reason::Stuck { .. }));
        if !lent && !stuck {
            match self.holders(&function) {
                Ok(holders) => reasons.extend(holders.into_iter().map(Reason::Held)),
                Err(error) => reasons.push(Reason::Unknown(error.to_string())),
            }
            match self.host_use(&function) {
                Ok(host_use) => reasons.extend(host_use.map(Reason::UsedByHost)),
                Err(error) => reasons.push(Reason::Unknown(error.to_string())),
            }
        }
        if let (Some(group), true) = (function.function.iommu_group, reasons.is_empty()) {
            reasons.extend(members.iter().filter_map(|member| self.use_in_group(group, member)));
        }
        let claim = state.owner_of(&function).map(|(owner, _)| owner.as_str()).filter(|of| owner != Some(*of));
        reasons.extend(claim.map(|of| Reason::Claimed { owner: of.to_owned(), vf }));
        Ok(reasons)
    }

    /// Why a VF cannot go to vfio-pci together with another one of its IOMMU group.
    fn use_in_group(&self, group: u32, member: &VirtualFunction) -> Option<Reason> {
        let used = || -> Result<_, CallError> {
            let holder = self.holders(member)?.into_iter().next().map(FunctionUser::Holder);
            Ok(holder.or(self.host_use(member)?.map(FunctionUser::Host)))
        };
        match used() {
            Ok(user) => Some(user?.in_group(group, member.address)),
            Err(error) => Some(Reason::Unknown(error.to_string())),
        }
    }

    /// Why a VF is not available on a driver, beside being lent as `lease`.
    pub(super) fn reasons_beside(
        &self,
        state: &State,
        vf: &VirtualFunction,
        driver: Driver,
        lease: &Lease,
    ) -> Vec<Reason> {
        let pool = lease.pool.as_deref();
        let reasons = self.reasons(state, vf, driver, pool, &Obstacles::new(&self.executor().sysfs));
        let is_beside = |reason: &Reason| !matches!(reason, Reason::Lent { .. } | Reason::Cordoned { .. });
        let forbidden = state.policies.forbids(&state.inventory, lease).map(|why| Reason::Forbidden { why });
        reasons.into_iter().filter(is_beside).chain(forbidden).collect()
    }

    /// Why a VF is not available, of a pool if one is named, by whoever owns it, as things stand.
    pub(super) fn reasons(
        &self,
        state: &State,
        vf: &VirtualFunction,
        driver: Driver,
        pool: Option<&str>,
        obstacles: &Obstacles<'_>,
    ) -> Vec<Reason> {
        let leases = &state.facts.leases;
        let mut reasons = Vec::new();
        if let Some(lease) = leases.get(&vf.address) {
            let Lease { id, tenant, .. } = lease.in_force().clone();
            let fault = lease.fault.clone();
            reasons.push(if state.is_of(lease, vf) {
                Reason::Lent { id, tenant, stage: lease.stage.clone(), fault }
            } else {
                Reason::LostLease { id }
            });
        }
        // A PF whose VFs are about to go has none to lend.
        let watchdog = &self.executor().watchdog;
        if let Some(stuck) = watchdog.stuck(vf.address).or_else(|| watchdog.stuck(vf.pf)) {
            reasons.push(Reason::Stuck { what: stuck.what });
        }
        if state.facts.resizes.contains_key(&vf.pf) {
            reasons.push(Reason::Resizing { pf: vf.pf });
        }
        reasons.extend(state.cordoned(vf.pf));
        reasons.extend(state.policies_unknown.clone().map(|why| Reason::NoPolicies { why }));
        let lent = vf.function.iommu_group.into_iter().flat_map(|group| {
            vf.group_with.iter().filter_map(move |&member| {
                let lease = leases.get(&member)?;
                let together = driver != Driver::VfioPci && !lease.takes_group();
                (!together).then(|| Reason::GroupLent { group, vf: member, id: lease.in_force().id.clone() })
            })
        });
        reasons.extend(lent);
        let named = || state.policies.kernel_driver(&state.inventory, vf, pool);
        obstacles.add_to(&mut reasons, &state.inventory, vf, driver, named);
        reasons
    }
}

/// Whether somebody has a VF by a lease, of it or of another one of its IOMMU group: to open that could get in the way.
pub(super) fn is_tenants(vf: &VirtualFunction, reasons: &[Reason]) -> bool {
    let goes_as_a_whole = vf.function.driver.as_deref().is_some_and(is_userspace_driver);
    reasons.iter().any(|reason| match reason {
        Reason::Lent { .. } => true,
        Reason::GroupLent { .. } => goes_as_a_whole,
        _ => false,
    })
}

/// What keeps a VF from a driver, as the tree alone shows it.
pub fn obstacles(sysfs: &Sysfs, inventory: &Inventory, vf: &VirtualFunction, driver: Driver) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let named = || Policies::default().kernel_driver(inventory, vf, None);
    Obstacles::new(sysfs).add_to(&mut reasons, inventory, vf, driver, named);
    reasons
}

/// What keeps VFs from drivers. What is the same for all of them is looked at once.
pub(super) struct Obstacles<'a> {
    sysfs: &'a Sysfs,
    loaded: RefCell<BTreeMap<String, bool>>,
    without_iommu: OnceCell<bool>,
}

impl<'a> Obstacles<'a> {
    pub fn new(sysfs: &'a Sysfs) -> Self {
        Self { sysfs, loaded: RefCell::default(), without_iommu: OnceCell::new() }
    }

    fn add_to(
        &self,
        reasons: &mut Vec<Reason>,
        inventory: &Inventory,
        vf: &VirtualFunction,
        driver: Driver,
        kernel_driver: impl FnOnce() -> Option<String>,
    ) {
        if let (Some(group), Driver::VfioPci) = (vf.function.iommu_group, driver) {
            let members = vf.group_with.iter();
            reasons.extend(members.filter_map(|&member| reason_in_group(self.sysfs, inventory, group, member)));
        }
        let needs = match driver {
            Driver::VfioPci => Some(VFIO_PCI.to_owned()),
            Driver::Kernel => kernel_driver(),
            Driver::None => None,
        };
        if let Some(driver) = needs.filter(|driver| !self.is_loaded(driver)) {
            reasons.push(Reason::DriverMissing { driver });
        }
        let without_iommu = || *self.without_iommu.get_or_init(|| without_iommu(self.sysfs));
        if driver == Driver::VfioPci && vf.function.iommu_group.is_none() && !without_iommu() {
            reasons.push(Reason::NoIommu);
        }
    }

    /// Whether the group of a VF is one that VFIO made without an IOMMU (`vfio_noiommu_group_alloc` of drivers/vfio/group.c).
    pub fn is_noiommu(&self, vf: &VirtualFunction) -> bool {
        let is_possible = || *self.without_iommu.get_or_init(|| without_iommu(self.sysfs));
        let name = || self.sysfs.text(vf.address, "iommu_group/name");
        vf.function.iommu_group.is_some() && is_possible() && name().as_deref() == Some("vfio-noiommu")
    }

    fn is_loaded(&self, driver: &str) -> bool {
        let known = self.loaded.borrow().get(driver).copied();
        known.unwrap_or_else(|| {
            let is_loaded = self.sysfs.has_driver(driver);
            self.loaded.borrow_mut().insert(driver.to_owned(), is_loaded);
            is_loaded
        })
    }
}

fn reason_in_group(sysfs: &Sysfs, inventory: &Inventory, group: u32, member: PciAddress) -> Option<Reason> {
    if inventory.vfs.contains_key(&member) {
        return None;
    }
    if inventory.pfs.contains_key(&member) {
        return Some(Reason::PfInGroup { group, pf: member });
    }
    // VFIO takes a group with bridges in it, and with devices that nobody drives.
    let is_bridge = sysfs.hex(member, "class").is_some_and(|class| class >> 16 == CLASS_BRIDGE);
    let driver = match sysfs.read_driver(member) {
        Ok(driver) => driver.filter(|driver| !is_userspace_driver(driver) && !is_bridge)?,
        Err(error) => return Some(Reason::Unknown(format!("look for the driver of {member}: {error}"))),
    };
    Some(Reason::DeviceInGroup { group, device: member, driver })
}

fn without_iommu(sysfs: &Sysfs) -> bool {
    let file = sysfs.path("sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "Y")
}

/// The base class of bridges (PCI code and id assignment specification, 1.7).
const CLASS_BRIDGE: u32 = 0x06;
