//! Which VFs there are to be, in which pools, and who may have them. Checked: `config` reads it from text.
//!
//! Modules: `merged` (policies of the SR-IOV network operator, which divide the VFs of a PF among pools).

use std::collections::{BTreeMap, BTreeSet};

use nix::unistd::{Group, User};
use thiserror::Error;

use crate::address::{Driver, PciAddress};
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::lease::Lease;
pub use crate::num_vfs::NumVfs;

mod merged;
mod warnings;

pub use merged::OperatorPolicy;

use merged::{Merged, merge};

/// Everything that is decided about the node's VFs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Pools in the order of the file; a VF may be in several.
    pub pools: Vec<Pool>,
}

/// VFs that are as good as each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Unique.
    pub name: String,
    /// The VFs of PFs that any of these fits.
    pub pfs: Vec<PfSelector>,
    /// How many VFs such a PF is to have; none: as it is.
    pub num_vfs: Option<NumVfs>,
    /// What a VF is lent with to whoever names no driver; none: `kernel`, or policies of the operator that make this pool
    /// disagree.
    pub driver: Option<Driver>,
    /// The MTU that a VF gets that is lent as an interface, unless another one is asked for.
    pub mtu: Option<u32>,
    /// What drives a VF that is lent with the driver `kernel`; none: known from the PF's driver.
    pub kernel_driver: Option<String>,
    /// Who may have them; none: whoever may open the socket.
    pub who: Option<Vec<Principal>>,
    /// Where it is from.
    pub source: Source,
}

/// Where in a text something stands, for whoever has to change it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// What the text is called.
    pub file: String,
    /// The lines of its fields, by their names here; none: it is not from a text.
    pub lines: BTreeMap<&'static str, usize>,
}

impl Source {
    /// What a line about a field begins with, as compilers have it.
    pub fn prefix(&self, field: &str) -> String {
        self.lines.get(field).map_or_else(String::new, |line| format!("{}:{line}: ", self.file))
    }
}

/// Fits PFs of which everything that is named is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PfSelector {
    /// The name of the interface.
    pub name: Option<String>,
    /// Where it is.
    pub address: Option<PciAddress>,
    /// PCI vendor id.
    pub vendor: Option<u32>,
    /// PCI device id of the PF.
    pub device: Option<u32>,
    /// Its driver.
    pub driver: Option<String>,
    /// Numbers of the VFs that are meant; none: all.
    pub vfs: Option<BTreeSet<u32>>,
    /// How many VFs such a PF is to have; none: what the pool says.
    pub num_vfs: Option<NumVfs>,
    /// The policy of the SR-IOV network operator that this is of. Which VFs of a PF are meant is decided by all of them
    /// together.
    pub policy: Option<OperatorPolicy>,
}

/// Which VFs of one PF are in which pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division<'a> {
    pf: &'a PhysicalFunction,
    merged: Option<Merged<'a>>,
}

/// Who may have VFs of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A user.
    User(u32),
    /// A group, as the group of the asking process.
    Group(u32),
}

/// Who asks, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl PeerCredentials {
    /// This process itself.
    pub fn myself() -> Self {
        Self { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }
}

impl Policies {
    /// The pool of a name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// Whether they name a PF that no interface is called like, as far as `inventory` knows: it may have other names.
    pub fn names_nobody(&self, inventory: &Inventory) -> bool {
        let selectors = self.pools.iter().flat_map(|pool| &pool.pfs);
        let mut names = selectors.filter_map(|selector| selector.name.as_ref());
        names.any(|name| !inventory.pfs.values().any(|pf| pf.function.has_name(name)))
    }

    /// Which VFs of a PF are in which pools.
    pub fn division<'a>(&'a self, pf: &'a PhysicalFunction) -> Division<'a> {
        Division { pf, merged: merge(&self.pools, pf) }
    }

    /// Pools that a VF is in.
    pub fn pools_of<'a>(&'a self, inventory: &'a Inventory, vf: &VirtualFunction) -> impl Iterator<Item = &'a Pool> {
        let division = inventory.pfs.get(&vf.pf).map(|pf| self.division(pf));
        let index = vf.index;
        self.pools.iter().filter(move |pool| division.as_ref().is_some_and(|division| division.holds(pool, index)))
    }

    /// The driver of the kernel for a VF that is lent from a pool, or by its address; none: the kernel has to find it.
    pub fn kernel_driver(&self, inventory: &Inventory, vf: &VirtualFunction, pool: Option<&str>) -> Option<String> {
        let mut pools = self.pools_of(inventory, vf).filter(|of| pool.is_none_or(|pool| of.name == pool));
        pools.find_map(|pool| pool.kernel_driver.clone()).or_else(|| {
            let pf = inventory.pfs.get(&vf.pf)?;
            crate::address::kernel_vf_driver(pf.function.driver.as_deref()?).map(ToOwned::to_owned)
        })
    }

    /// How many VFs PFs are to have that do not have as many. Pools that disagree are refused by [`Policies::check`].
    pub fn counts(&self, inventory: &Inventory) -> Vec<(PciAddress, u32)> {
        let wanted = |pf: &PhysicalFunction| match self.wanted_count(pf)? {
            NumVfs::Exactly(count) => Some(count),
            NumVfs::AllIfNone => pf.vfs.is_empty().then_some(pf.total_vfs),
        };
        let different =
            |pf: &PhysicalFunction| Some((pf.address, wanted(pf)?)).filter(|(_, n)| *n as usize != pf.vfs.len());
        inventory.pfs.values().filter_map(different).collect()
    }

    /// How many VFs a PF is to have; none: nothing is said about it, or somebody else makes them.
    pub fn wanted_count(&self, pf: &PhysicalFunction) -> Option<NumVfs> {
        self.named_counts(pf).next().map(|(_, count)| count).or_else(|| {
            let merged = merge(&self.pools, pf).filter(|merged| !merged.is_externally_managed)?;
            Some(NumVfs::Exactly(merged.num_vfs))
        })
    }

    /// How many VFs a PF is to have, by each entry of each pool that says so.
    fn named_counts<'a>(&'a self, pf: &'a PhysicalFunction) -> impl Iterator<Item = (&'a Pool, NumVfs)> {
        self.pools.iter().flat_map(move |pool| {
            let fitting = pool.pfs.iter().filter(|selector| selector.fits(pf));
            fitting.filter_map(move |selector| Some((pool, selector.num_vfs.or(pool.num_vfs)?)))
        })
    }

    /// Whether policies of the operator say that somebody else makes the VFs of a PF.
    pub fn is_externally_managed(&self, pf: &PhysicalFunction) -> bool {
        merge(&self.pools, pf).is_some_and(|merged| merged.is_externally_managed)
    }

    /// Why a lease would not be made now; none: it would. A lease whose VF is not there is not judged.
    pub fn forbids(&self, inventory: &Inventory, lease: &Lease) -> Option<String> {
        let vf = inventory.vfs.get(&lease.vf)?;
        let allows = |pool: &Pool| match lease.gid {
            Some(gid) => pool.allows(PeerCredentials { uid: lease.uid, gid }),
            // Nobody knows whether a group of the pool is meant.
            None => pool.names_group() || pool.allows(PeerCredentials { uid: lease.uid, gid: u32::MAX }),
        };
        let Some(name) = &lease.pool else {
            let pools: Vec<_> = self.pools_of(inventory, vf).collect();
            let allowed = pools.is_empty() || pools.iter().any(|pool| allows(pool));
            return (!allowed).then(|| format!("no pool that has {} allows the user {}", lease.vf, lease.uid));
        };
        let pool = self.pool(name);
        match pool {
            None => Some(format!("there is no pool {name} any more")),
            Some(_) if !self.pools_of(inventory, vf).any(|pool| pool.name == *name) => {
                Some(format!("{} is not in the pool {name} any more", lease.vf))
            }
            Some(pool) if !allows(pool) => {
                Some(format!("the pool {name} does not allow the user {} any more", lease.uid))
            }
            Some(_) => None,
        }
    }

    /// PFs of this node about which two pools, or two policies of the operator, disagree.
    pub fn check(&self, inventory: &Inventory) -> Vec<String> {
        let mut wrong = Vec::new();
        for pf in inventory.pfs.values() {
            let counts: Vec<_> = self.named_counts(pf).collect();
            if let [(first, count), rest @ ..] = &counts[..]
                && let Some((other, _)) = rest.iter().find(|(_, other)| other != count)
            {
                let who = if first.name == other.name {
                    format!("entries of the pool {}", first.name)
                } else {
                    format!("the pools {} and {}", first.name, other.name)
                };
                wrong.push(format!(
                    "{}{who} want different numbers of VFs of {}: make their `num_vfs` the same",
                    other.source.prefix("num_vfs"),
                    pf.name()
                ));
            }
            if let Some((first, other)) = merge(&self.pools, pf).and_then(|merged| merged.disagree) {
                wrong.push(format!(
                    "{}the policies {} and {} disagree about `externallyManaged` of {}: make it the same",
                    other.source.prefix("externally_managed"),
                    first.name,
                    other.name,
                    pf.name()
                ));
            }
        }
        wrong
    }
}

impl Division<'_> {
    /// Whether a VF of the PF is in a pool of the policies.
    pub fn holds(&self, pool: &Pool, index: u32) -> bool {
        let is_named = |selector: &PfSelector| {
            selector.policy.is_none()
                && selector.fits(self.pf)
                && selector.vfs.as_ref().is_none_or(|vfs| vfs.contains(&index))
        };
        self.merged.as_ref().is_some_and(|merged| merged.has(&pool.name, index)) || pool.pfs.iter().any(is_named)
    }
}

impl Pool {
    /// Takes over driver and MTU of the operator's policies that it is made of, where they agree.
    pub(crate) fn take_use_of_policies(&mut self) {
        let drivers: Vec<_> = self.policies().map(|policy| policy.driver).collect();
        self.driver = drivers.first().copied().filter(|first| drivers.iter().all(|driver| driver == first));
        let mtus = self.mtus_of_policies();
        self.mtu = mtus.first().copied().flatten().filter(|_| mtus.len() == 1);
    }

    /// The MTUs that the operator's policies say for VFs that are interfaces. More than one: they disagree.
    fn mtus_of_policies(&self) -> BTreeSet<Option<u32>> {
        self.policies().filter(|policy| policy.driver == Driver::Kernel).map(|policy| policy.mtu).collect()
    }

    fn policies(&self) -> impl Iterator<Item = &OperatorPolicy> {
        self.pfs.iter().filter_map(|selector| selector.policy.as_ref())
    }

    /// Notes what the text is called that it is from.
    pub(crate) fn name_source(&mut self, file: &str) {
        let policies = self.pfs.iter_mut().filter_map(|selector| selector.policy.as_mut());
        for source in policies.map(|policy| &mut policy.source).chain([&mut self.source]) {
            file.clone_into(&mut source.file);
        }
    }

    fn names_group(&self) -> bool {
        self.who.iter().flatten().any(|principal| matches!(principal, Principal::Group(_)))
    }

    /// Whether somebody may have a VF of it. Root may.
    pub fn allows(&self, peer: PeerCredentials) -> bool {
        let named = |who: &Vec<Principal>| {
            who.iter().any(|principal| match principal {
                Principal::User(uid) => *uid == peer.uid,
                Principal::Group(gid) => *gid == peer.gid,
            })
        };
        peer.uid == 0 || self.who.as_ref().is_none_or(named)
    }
}

impl PfSelector {
    /// Whether everything that is named is true of a PF.
    pub fn fits(&self, pf: &PhysicalFunction) -> bool {
        let function = &pf.function;
        // What is not named by its address, and is no NIC, is not meant.
        (function.is_network() || self.address.is_some())
            && self.name.as_ref().is_none_or(|name| function.has_name(name))
            && self.address.is_none_or(|address| address == pf.address)
            && self.vendor.is_none_or(|vendor| vendor == function.vendor)
            && self.device.is_none_or(|device| device == function.device)
            && self.driver.as_ref().is_none_or(|driver| function.driver.as_ref() == Some(driver))
    }

    /// Whether it says nothing, and so would fit every PF.
    pub fn is_empty(&self) -> bool {
        let Self { vfs, num_vfs, policy, .. } = self.clone();
        *self == Self { vfs, num_vfs, policy, ..Self::default() }
    }
}

impl std::str::FromStr for Principal {
    type Err = PrincipalError;

    /// A user by name or number, a group behind an `@`.
    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        let unknown = |kind| PrincipalError { text: text.to_owned(), kind };
        match text.strip_prefix('@') {
            Some(name) => match name.parse() {
                Ok(gid) => Ok(Self::Group(gid)),
                Err(_) => Group::from_name(name)
                    .ok()
                    .flatten()
                    .map(|group| Self::Group(group.gid.as_raw()))
                    .ok_or_else(|| unknown("group")),
            },
            None => match text.parse() {
                Ok(uid) => Ok(Self::User(uid)),
                Err(_) => User::from_name(text)
                    .ok()
                    .flatten()
                    .map(|user| Self::User(user.uid.as_raw()))
                    .ok_or_else(|| unknown("user")),
            },
        }
    }
}

/// Nobody of that name is known here.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{text}`: this machine knows no {kind} of that name; a number is good as well")]
pub struct PrincipalError {
    text: String,
    kind: &'static str,
}
