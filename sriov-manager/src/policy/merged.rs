//! Policies of the SR-IOV network operator that speak of one PF, merged as the operator merges them (`Apply` and
//! `mergeConfigs` of its api/v1/helper.go).

use std::collections::BTreeSet;

use super::{PfSelector, Pool, Source};
use crate::address::Driver;
use crate::inventory::PhysicalFunction;

/// A policy of the SR-IOV network operator, apart from what it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorPolicy {
    /// Unique.
    pub name: String,
    /// Of two policies the one with the lower number is more important.
    pub priority: u32,
    /// How many VFs a PF is to have. Its VFs are the first so many, unless the selector says which.
    pub num_vfs: u32,
    /// What drives a VF that is lent.
    pub driver: Driver,
    /// The MTU of its interface.
    pub mtu: Option<u32>,
    /// Somebody else makes the VFs.
    pub is_externally_managed: bool,
    /// Where it is from.
    pub source: Source,
}

/// What all policies of the operator say of one PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merged<'a> {
    pub num_vfs: u32,
    pub mtu: Option<u32>,
    /// Which VFs are of which pool.
    pub groups: Vec<VfGroup<'a>>,
    /// Policies of which nothing is left on this PF, and the one that took their VFs.
    pub displaced: Vec<(&'a OperatorPolicy, &'a OperatorPolicy)>,
    /// Policies that disagree about who makes the VFs.
    pub disagree: Option<(&'a OperatorPolicy, &'a OperatorPolicy)>,
    pub is_externally_managed: bool,
}

/// VFs of a PF that are of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VfGroup<'a> {
    pub policy: &'a OperatorPolicy,
    pub pool: &'a str,
    pub vfs: BTreeSet<u32>,
}

/// Merges them from the least to the most important; none: no policy selects the PF.
pub(super) fn merge<'a>(pools: &'a [Pool], pf: &PhysicalFunction) -> Option<Merged<'a>> {
    let of_pool = |pool: &'a Pool| pool.pfs.iter().map(move |selector| (pool.name.as_str(), selector));
    let mut parts: Vec<(&OperatorPolicy, &str, &PfSelector)> = pools
        .iter()
        .flat_map(of_pool)
        .filter_map(|(pool, selector)| Some((selector.policy.as_ref()?, pool, selector)))
        .collect();
    parts.sort_by(|(a, ..), (b, ..)| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
    let mut merged: Option<Merged<'a>> = None;
    let mut priority_before = None;
    for policy_parts in parts.chunk_by(|(a, ..), (b, ..)| a.name == b.name) {
        let Some(&(policy, pool, _)) = policy_parts.first() else { continue };
        // As the operator has it: as important as the policy before it, whatever PFs that one selects.
        let is_equal = priority_before.replace(policy.priority) == Some(policy.priority);
        // Of a policy that names a PF twice, its first name counts.
        let Some((.., selector)) = policy_parts.iter().find(|(.., selector)| selector.fits(pf)) else { continue };
        let vfs = selector.vfs.clone().unwrap_or_else(|| (0..policy.num_vfs).collect());
        let group = VfGroup { policy, pool, vfs };
        merged = Some(match merged.take() {
            None => Merged::new(group),
            Some(before) => before.with(group, is_equal),
        });
    }
    merged
}

impl<'a> Merged<'a> {
    fn new(group: VfGroup<'a>) -> Self {
        let OperatorPolicy { num_vfs, mtu, is_externally_managed, .. } = *group.policy;
        let groups = vec![group];
        Self { num_vfs, mtu, groups, displaced: Vec::new(), disagree: None, is_externally_managed }
    }

    /// With a policy that is as important, or more.
    fn with(self, group: VfGroup<'a>, is_equal: bool) -> Self {
        let policy = group.policy;
        let stays = |other: &VfGroup<'_>| other.pool != group.pool && other.vfs.is_disjoint(&group.vfs);
        let (kept, gone): (Vec<_>, Vec<_>) = self.groups.into_iter().partition(stays);
        let mut now = Self::new(group);
        if is_equal || !kept.is_empty() {
            now.num_vfs = now.num_vfs.max(self.num_vfs);
            now.mtu = now.mtu.max(self.mtu);
        }
        let other =
            kept.iter().chain(&gone).find(|other| other.policy.is_externally_managed != policy.is_externally_managed);
        now.disagree = self.disagree.or(other.map(|other| (other.policy, policy)));
        now.displaced = self.displaced;
        now.displaced.extend(gone.iter().map(|gone| (gone.policy, policy)));
        now.groups.extend(kept);
        now
    }

    /// Whether a VF is of a pool.
    pub fn has(&self, pool: &str, index: u32) -> bool {
        self.groups.iter().any(|group| group.pool == pool && group.vfs.contains(&index))
    }
}
