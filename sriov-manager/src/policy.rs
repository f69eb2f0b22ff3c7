//! Which VFs there shall be, in which pools, and who may have them. Checked: `config` reads it from text.

use std::collections::BTreeSet;

use nix::unistd::{Group, User};
use thiserror::Error;

use crate::address::PciAddress;
use crate::inventory::{Inventory, PhysicalFunction, VirtualFunction};
use crate::lease::Lease;

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
    /// How many VFs such a PF shall have; none: as it is.
    pub num_vfs: Option<NumVfs>,
    /// What drives a VF that is lent with the driver `kernel`; none: known from the PF's driver.
    pub kernel_driver: Option<String>,
    /// Who may have them; none: whoever may open the socket.
    pub who: Option<Vec<Principal>>,
}

/// How many VFs a PF shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumVfs {
    /// So many.
    Exactly(u32),
    /// As many as it offers, if it has none yet: what NSM's forwarder does.
    AllIfNone,
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
    /// How many VFs such a PF shall have, where that is said PF by PF and not for a pool.
    pub count: Option<PfCount>,
}

/// The resource of a policy, and the numbers of the VFs that it is about; none: all.
type VfGroup<'a> = (&'a String, Option<BTreeSet<u32>>);

/// How many VFs a policy of the SR-IOV network operator wants of a PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfCount {
    /// So many.
    pub num_vfs: u32,
    /// Of two policies the one with the lower number counts.
    pub priority: u32,
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

    /// Pools that a VF is in.
    pub fn pools_of<'a>(&'a self, inventory: &'a Inventory, vf: &VirtualFunction) -> impl Iterator<Item = &'a Pool> {
        let pf = inventory.pfs.get(&vf.pf);
        let index = vf.index;
        self.pools.iter().filter(move |pool| pf.is_some_and(|pf| pool.holds(pf, index)))
    }

    /// The driver of the kernel for a VF that is lent from a pool, or by its address; none: the kernel has to find it.
    pub fn kernel_driver(&self, inventory: &Inventory, vf: &VirtualFunction, pool: Option<&str>) -> Option<String> {
        let mut pools = self.pools_of(inventory, vf).filter(|of| pool.is_none_or(|pool| of.name == pool));
        pools.find_map(|pool| pool.kernel_driver.clone()).or_else(|| {
            let pf = inventory.pfs.get(&vf.pf)?;
            crate::address::kernel_vf_driver(pf.function.driver.as_deref()?).map(ToOwned::to_owned)
        })
    }

    /// How many VFs PFs shall have that do not have as many. Pools that disagree are refused by [`Policies::check`].
    pub fn counts(&self, inventory: &Inventory) -> Vec<(PciAddress, u32)> {
        let wanted = |pf: &PhysicalFunction| match self.wanted_count(pf)? {
            NumVfs::Exactly(count) => Some(count),
            NumVfs::AllIfNone => pf.vfs.is_empty().then_some(pf.total_vfs),
        };
        let different =
            |pf: &PhysicalFunction| Some((pf.address, wanted(pf)?)).filter(|(_, n)| *n as usize != pf.vfs.len());
        inventory.pfs.values().filter_map(different).collect()
    }

    /// How many VFs a PF shall have; none: nothing is said about it.
    pub fn wanted_count(&self, pf: &PhysicalFunction) -> Option<NumVfs> {
        let mut pools = self.pools.iter().filter(|pool| pool.pfs.iter().any(|selector| selector.fits(pf)));
        pools.find_map(|pool| pool.num_vfs).or_else(|| self.merged_count(pf).map(NumVfs::Exactly))
    }

    /// As the operator merges its policies (`mergeConfigs` of its api/v1/helper.go): from the least to the most important;
    /// the higher number of two that are as important, or that share the PF between two resources; otherwise the number
    /// of the more important one.
    fn merged_count(&self, pf: &PhysicalFunction) -> Option<u32> {
        let of_pool = |pool: &'_ Pool| -> Vec<_> {
            let fitting = pool.pfs.iter().filter(|selector| selector.fits(pf));
            fitting.filter_map(|selector| Some((selector.count?, selector.vfs.clone()))).collect()
        };
        let mut wishes: Vec<_> = self
            .pools
            .iter()
            .flat_map(|pool| of_pool(pool).into_iter().map(|(count, vfs)| (count, &pool.name, vfs)))
            .collect();
        wishes.sort_by_key(|(count, ..)| std::cmp::Reverse(count.priority));
        let apart = |a: &Option<BTreeSet<u32>>, b: &Option<BTreeSet<u32>>| match (a, b) {
            (Some(a), Some(b)) => a.is_disjoint(b),
            _ => false,
        };
        let mut merged: Option<(PfCount, Vec<VfGroup<'_>>)> = None;
        for (count, name, vfs) in wishes {
            let Some((before, groups)) = merged.take() else {
                merged = Some((count, vec![(name, vfs)]));
                continue;
            };
            let mut kept: Vec<_> = groups.into_iter().filter(|(other, of)| *other != name && apart(of, &vfs)).collect();
            let shared = !kept.is_empty() || before.priority == count.priority;
            let num_vfs = if shared { before.num_vfs.max(count.num_vfs) } else { count.num_vfs };
            kept.push((name, vfs));
            merged = Some((PfCount { num_vfs, ..count }, kept));
        }
        merged.map(|(count, _)| count.num_vfs)
    }

    /// What of them means nothing on this node, in words: a pool that fits no PF, a VF whose number its PF will not have.
    pub fn warnings(&self, inventory: &Inventory) -> Vec<String> {
        let mut warnings = Vec::new();
        for pool in &self.pools {
            let fits = |pf: &&PhysicalFunction| pool.pfs.iter().any(|selector| selector.fits(pf));
            let pfs: Vec<_> = inventory.pfs.values().filter(fits).collect();
            if pfs.is_empty() {
                warnings.push(format!(
                    "the pool {} fits no PF of this node: compare its `pfs` with the PFs above (a name may be another one now)",
                    pool.name
                ));
            }
            for pf in pfs {
                let will_have = match self.wanted_count(pf) {
                    Some(NumVfs::Exactly(count)) => count,
                    Some(NumVfs::AllIfNone) | None => pf.vfs.len().try_into().unwrap_or(u32::MAX),
                };
                let highest = pool
                    .pfs
                    .iter()
                    .filter(|selector| selector.fits(pf))
                    .filter_map(|selector| selector.vfs.as_ref()?.last());
                if let Some(highest) = highest.max().filter(|highest| **highest >= will_have) {
                    warnings.push(format!(
                        "the pool {} names VF {highest} of {}, which is to have {will_have}: raise `num_vfs` or lower the range",
                        pool.name,
                        pf.name()
                    ));
                }
            }
        }
        warnings
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

    /// PFs of this node about which two pools disagree.
    pub fn check(&self, inventory: &Inventory) -> Vec<String> {
        let mut wrong = Vec::new();
        for pf in inventory.pfs.values() {
            let pools = self.pools.iter().filter(|pool| pool.pfs.iter().any(|selector| selector.fits(pf)));
            let counts: Vec<_> = pools.filter_map(|pool| Some((&pool.name, pool.num_vfs?))).collect();
            if let [(first, count), rest @ ..] = &counts[..]
                && let Some((other, _)) = rest.iter().find(|(_, other)| other != count)
            {
                wrong.push(format!("the pools {first} and {other} want different numbers of VFs of {}", pf.name()));
            }
        }
        wrong
    }
}

impl Pool {
    /// Whether a VF of a PF is in it.
    pub fn holds(&self, pf: &PhysicalFunction, index: u32) -> bool {
        self.pfs
            .iter()
            .any(|selector| selector.fits(pf) && selector.vfs.as_ref().is_none_or(|vfs| vfs.contains(&index)))
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
            && self.name.as_ref().is_none_or(|name| function.netdevs.contains(name))
            && self.address.is_none_or(|address| address == pf.address)
            && self.vendor.is_none_or(|vendor| vendor == function.vendor)
            && self.device.is_none_or(|device| device == function.device)
            && self.driver.as_ref().is_none_or(|driver| function.driver.as_ref() == Some(driver))
    }

    /// Whether it says nothing, and so would fit every PF.
    pub fn is_empty(&self) -> bool {
        *self == Self { vfs: self.vfs.clone(), count: self.count, ..Self::default() }
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
