//! One thing that keeps a VF from being lent, and its words.

use std::fmt;

use crate::address::{Driver, PciAddress};
use crate::executor::CURE_UNBIND;
use crate::holders::{Holder, HostUse};
use crate::lease::Stage;

/// One thing that keeps a VF from being lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody has it.
    Lent {
        /// The lease.
        id: String,
        /// To whom.
        tenant: String,
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
    },
    /// Only its owner lends it.
    Claimed {
        /// Who.
        owner: String,
        /// The VF: this one, or another one of its IOMMU group.
        vf: PciAddress,
    },
    /// Nobody of that name owns it.
    NotClaimed {
        /// The name.
        owner: String,
    },
    /// No VF of its PF is lent to anybody new.
    Cordoned {
        /// The PF.
        pf: PciAddress,
        /// Why.
        why: String,
    },
    /// It is not of the PF that is wanted.
    OtherPf {
        /// Which is wanted.
        pf: PciAddress,
    },
    /// It is not of the IOMMU group that is wanted.
    OtherGroup {
        /// Which is wanted.
        group: u32,
    },
    /// It is not bound as it was wanted to be before it is lent.
    NotBoundTo {
        /// To which driver.
        wanted: Driver,
    },
    /// Another lease of the same request gets it, or another VF of its IOMMU group.
    SameCall,
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
    /// The host itself uses a VF of its IOMMU group.
    GroupUsedByHost {
        /// The group.
        group: u32,
        /// That VF.
        vf: PciAddress,
        /// What for.
        host_use: HostUse,
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
    /// The policies of the start, or that were given over the API, cannot be used, so nobody knows who may have it.
    NoPolicies {
        /// Why not.
        why: String,
    },
    /// The kernel could not be asked.
    Unknown(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lent {
                id,
                tenant,
                stage: Stage::Lent | Stage::Changing { .. } | Stage::HandingOver { .. },
                fault,
            } => {
                write!(f, "it is lent as {id} to {tenant}")?;
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
            Self::Stuck { what } => write!(f, "it is stuck: {what} has not come back; {CURE_UNBIND}"),
            Self::Claimed { owner, vf } => {
                write!(f, "{vf} is claimed by {owner}: only requests in that name get it (`--owner {owner}`)")
            }
            Self::NotClaimed { owner } => {
                write!(f, "it does not belong to {owner}: claim it first (`ferrule vf claim`), or ask without an owner")
            }
            Self::Cordoned { pf, why } => {
                write!(f, "its PF {pf} is cordoned ({why}): `ferrule vf uncordon {pf}` when that is over")
            }
            Self::OtherPf { pf } => write!(f, "it is not of the PF {pf}"),
            Self::OtherGroup { group } => write!(f, "it is not of the IOMMU group {group}"),
            Self::NotBoundTo { wanted: Driver::None } => write!(f, "it is bound to a driver"),
            Self::NotBoundTo { wanted } => write!(f, "it is not bound to {wanted}"),
            Self::SameCall => {
                f.write_str("another lease of the same request gets it, or another VF of its IOMMU group")
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
            Self::GroupUsedByHost { group, vf, host_use } => write!(
                f,
                "its IOMMU group {group} goes as a whole, and of {vf} of it {host_use}; end that, or take it all the same (`--force`)"
            ),
            Self::DriverMissing { driver } => write!(f, "the driver {driver} is not loaded: `modprobe {driver}`"),
            Self::NoIommu => f.write_str(
                "it has no IOMMU group: turn the IOMMU on (kernel arguments `intel_iommu=on iommu=pt`), or for \
                 trials `enable_unsafe_noiommu_mode=1` of the module vfio",
            ),
            Self::Forbidden { why } => {
                write!(f, "the policies do not allow this lease any more ({why}): it can stay as it is or be released")
            }
            Self::NoPolicies { why } => write!(
                f,
                "no VF is lent: the policies of the start, or those that were given over the API, cannot be used ({why}); correct \
                 the file, or apply others"
            ),
            Self::Unknown(problem) => f.write_str(problem),
        }
    }
}
