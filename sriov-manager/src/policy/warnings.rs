//! What of policies means nothing on a node, or something else than it says.

use ferrule_daemon::counted;

use super::{Merged, NumVfs, Policies, Pool, merge};
use crate::inventory::{Inventory, PhysicalFunction};

impl Policies {
    /// What of them means nothing on this node, in words: a pool that fits no PF, a VF whose number its PF will not have.
    pub fn warnings(&self, inventory: &Inventory) -> Vec<String> {
        let mut warnings = Vec::new();
        for pool in &self.pools {
            let fits = |pf: &&PhysicalFunction| pool.pfs.iter().any(|selector| selector.fits(pf));
            let pfs: Vec<_> = inventory.pfs.values().filter(fits).collect();
            if pfs.is_empty() {
                warnings.push(format!(
                    "{}the pool {} fits no PF of this node, which has {}: compare its `pfs` (a name may be another one now)",
                    pool.source.prefix("pfs"),
                    pool.name,
                    names(inventory)
                ));
            }
            for pf in pfs {
                warnings.extend(self.beyond(pool, pf));
                warnings.extend(above_pf_mtu(pool, pf));
            }
            if pool.driver.is_none() && pool.pfs.iter().any(|selector| selector.policy.is_some()) {
                warnings.push(format!(
                    "{}the policies of the pool {} want its VFs on different drivers: whoever borrows one has to name the driver",
                    pool.source.prefix("name"),
                    pool.name
                ));
            }
        }
        warnings.extend(self.pools.iter().filter_map(different_mtus));
        // Of a PF that came or was renamed after they were taken.
        warnings.extend(self.check(inventory));
        warnings.extend(inventory.pfs.values().flat_map(|pf| self.of_operator(pf)));
        warnings
    }

    /// A pool that names VFs that its PF will not have.
    fn beyond(&self, pool: &Pool, pf: &PhysicalFunction) -> Option<String> {
        let will_have = match self.wanted_count(pf) {
            Some(NumVfs::Exactly(count)) => count,
            Some(NumVfs::AllIfNone) | None => pf.vfs.len().try_into().unwrap_or(u32::MAX),
        };
        let fitting = pool.pfs.iter().filter(|selector| selector.fits(pf));
        let highest = fitting.filter_map(|selector| selector.vfs.as_ref()?.last()).max();
        highest.filter(|highest| **highest >= will_have).map(|highest| {
            format!(
                "{}the pool {} names VF {highest} of {}, which is to have {will_have}: raise `num_vfs` or lower the range",
                pool.source.prefix("pfs"),
                pool.name,
                pf.name()
            )
        })
    }

    /// What the policies of the operator come to on a PF, where that is not what each of them says.
    fn of_operator(&self, pf: &PhysicalFunction) -> Vec<String> {
        let Some(merged) = merge(&self.pools, pf) else { return Vec::new() };
        let there = pf.vfs.len();
        let mut warnings: Vec<_> = merged
            .displaced
            .iter()
            .map(|(gone, by)| {
                format!(
                    "{}the policy {} has no VFs of {}: {} is more important, and names the same VFs or the same resource",
                    gone.source.prefix("name"),
                    gone.name,
                    pf.name(),
                    by.name
                )
            })
            .collect();
        warnings.extend(above_mtu_of_merged(&merged, pf));
        if merged.is_externally_managed && there < merged.num_vfs as usize {
            let first = merged.groups.first().map(|group| group.policy.source.prefix("externally_managed"));
            warnings.push(format!(
                "{}{} has {} and its policies want {}, which are made elsewhere (`externallyManaged`): make them there",
                first.unwrap_or_default(),
                pf.name(),
                counted(there, "VF"),
                merged.num_vfs
            ));
        }
        warnings
    }
}

/// A pool whose VFs cannot have the MTU that it says.
fn above_pf_mtu(pool: &Pool, pf: &PhysicalFunction) -> Option<String> {
    let (wanted, has) = (pool.mtu?, pf.function.mtu?);
    let is_own = pool.policies().next().is_none();
    (is_own && wanted > has).then(|| {
        format!(
            "{}the pool {} wants an MTU of {wanted}, and {} has {has}: give the PF as much (`ip link set {} mtu {wanted}`)",
            pool.source.prefix("mtu"),
            pool.name,
            pf.name(),
            pf.name()
        )
    })
}

/// Policies of the operator want an MTU that the PF has not got. The operator sets it on the PF, whatever drives the VFs: frames of that
/// size do not reach a user of DPDK either.
fn above_mtu_of_merged(merged: &Merged<'_>, pf: &PhysicalFunction) -> Option<String> {
    let (wanted, has) = (merged.mtu?, pf.function.mtu?);
    let first = merged.groups.iter().find(|group| group.policy.mtu == Some(wanted));
    (wanted > has).then(|| {
        format!(
            "{}the policies of {} want an MTU of {wanted}, and it has {has}: give it as much (`ip link set {} mtu {wanted}`)",
            first.map(|group| group.policy.source.prefix("mtu")).unwrap_or_default(),
            pf.name(),
            pf.name()
        )
    })
}

/// A pool whose policies want different MTUs: it has none of them.
fn different_mtus(pool: &Pool) -> Option<String> {
    (pool.mtus_of_policies().len() > 1).then(|| {
        format!(
            "{}the policies of the pool {} want different MTUs: a VF is lent with the one that it has, unless whoever borrows it names one",
            pool.source.prefix("mtu"),
            pool.name
        )
    })
}

/// The PFs of a node, for whoever named another one.
fn names(inventory: &Inventory) -> String {
    let all: Vec<_> = inventory.pfs.values().map(PhysicalFunction::name).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}
