//! Why a VF is not to be had.

use std::fmt;

use super::{State, VfError, Vfs};
use crate::address::{Driver, PciAddress, VFIO_PCI, is_userspace_driver};
use crate::executor::CURE_UNBIND;
use crate::holders::{Holder, HostUse};
use crate::inventory::{Inventory, VirtualFunction};
use crate::lease::Stage;
use crate::policy::Policies;
use crate::sysfs::Sysfs;

/// One thing that keeps a VF from being lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody has it.
    Lent {
        /// The lease.
        id: String,
        /// To whom.
        holder: String,
        /// How far it is.
        stage: Stage,
        /// What is wrong with it.
        fault: Option<String>,
    },
    /// A lease is of another VF, which had this address before and is gone.
    LostLease {
        /// That lease.
        id: String,
    },
    /// The number of VFs of its PF is being changed, and they go.
    Resizing {
        /// The PF.
        pf: PciAddress,
    },
    /// Somebody uses it who has not borrowed it.
    Held(Holder),
    /// The host itself uses it.
    UsedByHost(HostUse),
    /// A call into the kernel about it has not come back.
    Stuck {
        /// What was asked.
        what: String,
        /// How long ago.
        seconds: u64,
    },
    /// The PF is in its IOMMU group.
    PfInGroup {
        /// The group.
        group: u32,
        /// The PF.
        pf: PciAddress,
    },
    /// A device that is no VF is in its IOMMU group, with a driver.
    DeviceInGroup {
        /// The group.
        group: u32,
        /// The device.
        device: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// A VF of its IOMMU group is lent.
    GroupLent {
        /// The group.
        group: u32,
        /// That VF.
        vf: PciAddress,
        /// Its lease.
        id: String,
    },
    /// A VF of its IOMMU group is in use.
    GroupHeld {
        /// The group.
        group: u32,
        /// That VF.
        vf: PciAddress,
        /// By whom.
        holder: Holder,
    },
    /// The driver is not there.
    DriverMissing {
        /// Which.
        driver: String,
    },
    /// There is no IOMMU.
    NoIommu,
    /// The policies do not allow the lease that is there.
    Forbidden {
        /// Why.
        why: String,
    },
    /// The kernel could not be asked.
    Unknown(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lent { id, holder, stage: Stage::Lent | Stage::Changing { .. }, fault } => {
                write!(f, "it is lent as {id} to {holder}")?;
                fault.iter().try_for_each(|fault| write!(f, " ({fault})"))
            }
            Self::Lent { id, stage: Stage::New, .. } => write!(f, "it is being lent as {id}"),
            Self::Lent { stage: Stage::Dirty, fault: Some(fault), .. } => f.write_str(fault),
            Self::Lent { id, fault: None, .. } => write!(f, "it is being cleaned after the lease {id}"),
            Self::Lent { id, fault: Some(fault), .. } => {
                write!(f, "it could not be cleaned after the lease {id}, which is tried again: {fault}")
            }
            Self::LostLease { id } => write!(
                f,
                "the lease {id} is of a VF that had this address before and is gone: release that lease, and this VF is free"
            ),
            Self::Resizing { pf } => write!(f, "the number of VFs of its PF {pf} is being changed"),
            Self::UsedByHost(host_use) => write!(f, "{host_use}; end that, or take it all the same (`--force`)"),
            Self::Held(holder) => write!(f, "it is in use by somebody who has not borrowed it: {holder}"),
            Self::Stuck { what, seconds } => {
                write!(f, "it is stuck: {what} has not come back for {seconds} s; {CURE_UNBIND}")
            }
            Self::PfInGroup { group, pf } => write!(
                f,
                "its IOMMU group {group} also holds the PF {pf}, which is never taken from the kernel: the \
                 platform needs ACS between them (a BIOS setting, or another slot)"
            ),
            Self::DeviceInGroup { group, device, driver } => write!(
                f,
                "its IOMMU group {group} also holds {device}, which is no VF and is bound to {driver}: unbind that, \
                 or turn on ACS"
            ),
            Self::GroupLent { group, vf, id } => {
                write!(f, "its IOMMU group {group} goes as a whole, and {vf} of it is lent as {id}")
            }
            Self::GroupHeld { group, vf, holder } => {
                write!(f, "its IOMMU group {group} goes as a whole, and {vf} of it is in use: {holder}")
            }
            Self::DriverMissing { driver } => write!(f, "the driver {driver} is not loaded: `modprobe {driver}`"),
            Self::NoIommu => f.write_str(
                "it has no IOMMU group: turn the IOMMU on (kernel arguments `intel_iommu=on iommu=pt`), or for \
                 trials `enable_unsafe_noiommu_mode=1` of the module vfio",
            ),
            Self::Forbidden { why } => {
                write!(f, "the policies do not allow this lease any more ({why}): it can stay as it is or be released")
            }
            Self::Unknown(problem) => f.write_str(problem),
        }
    }
}

impl Vfs {
    /// Why a VF is not to be had on a driver; nothing: it is. Holders are looked for as well.
    pub fn explain(&self, vf: PciAddress, driver: Driver) -> Result<Vec<Reason>, VfError> {
        let (function, members, mut reasons) = {
            let state = self.lock();
            let function = state.vf(vf)?.clone();
            let members = function.group_with.iter().filter_map(|member| state.inventory.vfs.get(member).cloned());
            let members: Vec<_> = if driver == Driver::VfioPci { members.collect() } else { Vec::new() };
            let reasons = self.reasons(&state, &function, driver);
            (function, members, reasons)
        };
        let lent = reasons.iter().any(|reason| matches!(reason, Reason::Lent { .. }));
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
            let held = |vf: VirtualFunction| Some((vf.address, self.holders(&vf).ok()?.into_iter().next()?));
            let held = members.into_iter().filter_map(held);
            reasons.extend(held.map(|(vf, holder)| Reason::GroupHeld { group, vf, holder }));
        }
        Ok(reasons)
    }

    /// Why a VF is not to be had, as things stand.
    pub(super) fn reasons(&self, state: &State, vf: &VirtualFunction, driver: Driver) -> Vec<Reason> {
        let leases = &state.journal.facts().leases;
        let mut reasons = Vec::new();
        if let Some(lease) = leases.get(&vf.address) {
            let (id, holder, fault) = (lease.id.clone(), lease.holder.clone(), lease.fault.clone());
            reasons.push(if lease.is_of(vf) {
                Reason::Lent { id, holder, stage: lease.stage.clone(), fault }
            } else {
                Reason::LostLease { id }
            });
        }
        // A PF whose VFs are about to go has none to lend.
        let watchdog = &self.executor().watchdog;
        if let Some(stuck) = watchdog.stuck(vf.address).or_else(|| watchdog.stuck(vf.pf)) {
            reasons.push(Reason::Stuck { what: stuck.what, seconds: stuck.since.elapsed().as_secs() });
        }
        if state.journal.facts().resizes.contains_key(&vf.pf) {
            reasons.push(Reason::Resizing { pf: vf.pf });
        }
        let lent = vf.function.iommu_group.into_iter().flat_map(|group| {
            vf.group_with.iter().filter_map(move |&member| {
                let lease = leases.get(&member)?;
                let together = driver != Driver::VfioPci && lease.wanted.driver != Driver::VfioPci;
                (!together).then(|| Reason::GroupLent { group, vf: member, id: lease.id.clone() })
            })
        });
        reasons.extend(lent);
        let named = state.policies.kernel_driver(&state.inventory, vf, None);
        reasons.extend(obstacles_for(&self.executor().sysfs, &state.inventory, vf, driver, named));
        reasons
    }
}

/// What keeps a VF from a driver, as the tree alone shows it.
pub fn obstacles(sysfs: &Sysfs, inventory: &Inventory, vf: &VirtualFunction, driver: Driver) -> Vec<Reason> {
    let named = Policies::default().kernel_driver(inventory, vf, None);
    obstacles_for(sysfs, inventory, vf, driver, named)
}

fn obstacles_for(
    sysfs: &Sysfs,
    inventory: &Inventory,
    vf: &VirtualFunction,
    driver: Driver,
    kernel_driver: Option<String>,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if let (Some(group), Driver::VfioPci) = (vf.function.iommu_group, driver) {
        let members = vf.group_with.iter();
        reasons.extend(members.filter_map(|&member| reason_in_group(sysfs, inventory, group, member)));
    }
    let needs = match driver {
        Driver::VfioPci => Some(VFIO_PCI.to_owned()),
        Driver::Kernel => kernel_driver,
        Driver::None => None,
    };
    if let Some(driver) = needs.filter(|driver| !sysfs.has_driver(driver)) {
        reasons.push(Reason::DriverMissing { driver });
    }
    if driver == Driver::VfioPci && vf.function.iommu_group.is_none() && !without_iommu(sysfs) {
        reasons.push(Reason::NoIommu);
    }
    reasons
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
    let driver = sysfs.driver(member).filter(|driver| !is_userspace_driver(driver) && !is_bridge)?;
    Some(Reason::DeviceInGroup { group, device: member, driver })
}

fn without_iommu(sysfs: &Sysfs) -> bool {
    let file = sysfs.path("sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "Y")
}

/// The base class of bridges (PCI code and id assignment specification, 1.7).
const CLASS_BRIDGE: u32 = 0x06;
