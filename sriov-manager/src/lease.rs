//! Who has which VF, and what it was before; and whose VFs are to lend.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::address::{Driver, PciAddress, VFIO_PCI, is_userspace_driver};
use crate::attributes::{Attributes, Mac, VfState};
use crate::inventory::VirtualFunction;
use crate::plan::Binding;

/// A VF that is lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The client's own name for it: asking twice under one name is asking once.
    pub id: String,
    /// For whom, in the client's words.
    #[serde(alias = "holder")]
    pub tenant: String,
    /// The user whose process asked.
    pub uid: u32,
    /// The group of that process; none: the lease is from before leases knew.
    #[serde(default)]
    pub gid: Option<u32>,
    /// When, in seconds since 1970.
    pub since: u64,
    /// The pool that it was asked from; none: by its address.
    pub pool: Option<String>,
    /// The owner of the VF, who lent it on; none: nobody had claimed it.
    #[serde(default)]
    pub owner: Option<String>,
    /// It is given back by itself when this is gone; none: when somebody says so.
    #[serde(default)]
    pub until: Option<Until>,
    /// The VF.
    pub vf: PciAddress,
    /// Its PF.
    pub pf: PciAddress,
    /// Its number there.
    pub index: u32,
    /// The address that the PF was made with: after a reboot another card may be at its PCI address. None: it did not tell.
    #[serde(default)]
    pub card: Option<Mac>,
    /// The lease from which it was handed over; none: it was not.
    #[serde(default)]
    pub handed_from: Option<String>,
    /// What was asked.
    pub wanted: Wanted,
    /// What the VF was, and will be again.
    pub before: Before,
    /// How far it is.
    pub stage: Stage,
    /// What is wrong with it.
    #[serde(alias = "trouble")]
    pub fault: Option<String>,
}

impl Lease {
    /// The lease that has the VF: until it is handed over, the one that is at its end.
    pub fn in_force(&self) -> &Self {
        match &self.stage {
            Stage::HandingOver { from } => from,
            _ => self,
        }
    }

    /// [`Lease::in_force`] of the VF where it is now, with what that was before the first lease.
    #[must_use]
    pub fn into_in_force(self) -> Self {
        match self.stage {
            Stage::HandingOver { from } => {
                let Self { vf, pf, index, card, before, .. } = self;
                Self { vf, pf, index, card, before, ..*from }
            }
            _ => self,
        }
    }

    /// Whether the others of the VF's IOMMU group are its lease's as well, or were, and may be again.
    pub fn takes_group(&self) -> bool {
        let before = match &self.stage {
            Stage::Changing { from } => Some(from.driver),
            Stage::HandingOver { from } => Some(from.wanted.driver),
            Stage::New | Stage::Lent | Stage::Releasing | Stage::Dirty => None,
        };
        [Some(self.wanted.driver), before].contains(&Some(Driver::VfioPci))
    }

    /// Whether a VF has the driver that it wants, or another one of that kind.
    pub fn is_driven_as_wanted(&self, vf: &VirtualFunction) -> bool {
        let driver = vf.function.driver.as_deref();
        match self.wanted.driver {
            Driver::VfioPci => driver == Some(VFIO_PCI),
            Driver::None => driver.is_none(),
            Driver::Kernel => driver.is_some_and(|driver| !is_userspace_driver(driver)),
        }
    }

    /// Whether it is of this VF: another one may have come to its address.
    pub fn is_of(&self, vf: &VirtualFunction) -> bool {
        (vf.address, vf.pf, vf.index) == (self.vf, self.pf, self.index)
    }
}

/// What ends a lease when it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// A process.
    Process {
        /// Its number, as the manager sees it.
        pid: u32,
        /// When it was started, in the kernel's ticks since the boot: a number may be another process's later.
        start_time: u64,
        /// That boot; none: it was named before leases knew.
        #[serde(default)]
        boot: Option<String>,
    },
    /// A network namespace.
    Namespace {
        /// A file of it, such as `/run/netns/pod`.
        path: PathBuf,
        /// Which one it is: another one may get the file's name.
        #[serde(flatten)]
        identity: NamespaceIdentity,
        /// The boot during which it is; none: it was named before leases knew.
        #[serde(default)]
        boot: Option<String>,
    },
    /// A control group. One without processes is as good as gone.
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
}

/// What tells a network namespace from those that come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceIdentity {
    /// Its number. The kernel gives it to the next namespace when this one has ended.
    pub inode: u64,
    /// When its file was made: the same file is the same namespace.
    #[serde(default)]
    pub changed: Option<Duration>,
    /// What no other one of this boot has; none: Linux before 5.14, or it was named before leases knew.
    #[serde(default)]
    pub cookie: Option<u64>,
}

/// What a lease asks of its VF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What drives it.
    pub driver: Driver,
    /// What the PF says of it.
    pub attributes: Attributes,
}

/// How far a lease is: what a start after a kill, and a second try, make of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The VF is being made ready and is nobody's yet. Interrupted here, it goes back to what it was.
    New,
    /// The VF is lent and is being changed, or made again what it drifted from. Interrupted here, it goes back to
    /// `from`, and is never cleaned: its tenant has it.
    Changing {
        /// What was asked before.
        from: Wanted,
    },
    /// The VF goes from one lease to another: it is cleaned, and made ready for the new one. Interrupted here, it goes back to
    /// the lease that had it, which was at its end.
    HandingOver {
        /// That lease.
        from: Box<Lease>,
    },
    /// The VF is lent. Attributes that are set without another driver are so from the beginning: a start goes on with it.
    Lent,
    /// The VF is being cleaned. Interrupted here, the cleaning goes on.
    Releasing,
    /// The VF was given back and cleaned as far as the kernel let us; it is not lent until the rest is done, or
    /// accepted as it is.
    Dirty,
}

impl Stage {
    /// As people and programs read it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changing { .. } => "changing",
            Self::HandingOver { .. } => "handing-over",
            Self::Lent => "lent",
            Self::Releasing => "releasing",
            Self::Dirty => "dirty",
        }
    }
}

/// A VF before it was lent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its driver.
    pub driver: Option<String>,
    /// What the PF said of it; none: it could not be asked, and nothing was changed.
    #[serde(alias = "settings")]
    pub state: Option<VfState>,
    /// The MTU of its interface.
    pub mtu: Option<u32>,
    /// Drivers of the VFs that share its IOMMU group, if they go with it.
    pub members: BTreeMap<PciAddress, Option<String>>,
}

impl Before {
    /// What the others of the IOMMU group were bound to.
    pub fn bindings(&self) -> BTreeMap<PciAddress, Binding> {
        self.members.iter().map(|(&member, driver)| (member, Binding::to(driver.as_deref()))).collect()
    }
}

/// VFs that only one owner lends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The user whose process claimed them, and who alone lends them.
    pub uid: u32,
    /// Every VF of these pools, whenever it comes.
    pub pools: BTreeSet<String>,
    /// And these VFs.
    pub vfs: BTreeSet<PciAddress>,
    /// When it was made or made wider, in seconds since 1970. Of two claims of one VF the older one holds.
    pub since: u64,
}

impl Claim {
    /// Whether it covers everything that another one does.
    pub fn covers(&self, other: &Self) -> bool {
        self.pools.is_superset(&other.pools) && self.vfs.is_superset(&other.vfs)
    }
}

/// A PF of which no VF is lent to anybody new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// Who said so.
    pub uid: u32,
    /// Why, in words for people.
    pub why: String,
    /// The address that the PF was made with, if it told: the cordon is of that card, wherever it is.
    #[serde(default)]
    pub card: Option<Mac>,
}

/// Policies as they were given over the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDocument {
    /// Grows with every document.
    pub generation: u64,
    /// As a policies file has it.
    pub text: String,
}

/// A change of the number of VFs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// VFs before.
    pub from: u32,
    /// VFs wanted.
    pub to: u32,
    /// Whether drivers were looked for when VFs appear, and will be again.
    pub autoprobe: bool,
    /// Drivers of the VFs before, to go back if it fails.
    pub drivers: BTreeMap<u32, String>,
    /// Whether VFs that the host itself uses go as well.
    #[serde(default)]
    pub force: bool,
    /// Whether somebody wants it, whatever the policies say.
    #[serde(default)]
    pub by_hand: bool,
}
