//! Who has which VF, and what it was before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::address::{Driver, PciAddress};
use crate::attributes::{Attributes, Settings};
use crate::plan::Binding;

/// A VF that is lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The borrower's own name for it: asking twice under one name is asking once.
    pub id: String,
    /// For whom, in the borrower's words.
    pub holder: String,
    /// The user whose process asked.
    pub uid: u32,
    /// The group of that process; none: the lease is from before leases knew.
    #[serde(default)]
    pub gid: Option<u32>,
    /// When, in seconds since 1970.
    pub since: u64,
    /// The pool that it was asked from; none: by its address.
    pub pool: Option<String>,
    /// The VF.
    pub vf: PciAddress,
    /// Its PF.
    pub pf: PciAddress,
    /// Its number there.
    pub index: u32,
    /// What was asked.
    pub wanted: Wanted,
    /// What was asked before a change that is under way.
    pub previous: Option<Wanted>,
    /// What the VF was, and will be again.
    pub before: Before,
    /// How far it is.
    pub stage: Stage,
    /// What is wrong with it.
    pub trouble: Option<String>,
}

/// What a lease asks of its VF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What drives it.
    pub driver: Driver,
    /// What the PF says of it.
    pub attributes: Attributes,
}

/// How far a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The VF is being made ready. Killed here, it goes back to what it was.
    Acquiring,
    /// The borrower has it.
    Held,
    /// The VF is being cleaned. Killed here, the cleaning goes on.
    Releasing,
}

impl Stage {
    /// As people and programs read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Acquiring => "acquiring",
            Self::Held => "held",
            Self::Releasing => "releasing",
        }
    }
}

/// A VF before it was lent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its driver.
    pub driver: Option<String>,
    /// What the PF said of it; none: it was not asked, and nothing was changed.
    pub settings: Option<Settings>,
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
}
