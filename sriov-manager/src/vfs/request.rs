//! What a client asks for.

use std::collections::BTreeSet;

use super::VfError;
use crate::address::{Driver, PciAddress};
use crate::attributes::Attributes;
use crate::lease::{Lease, Until, Wanted};
use crate::plan::Step;
use crate::policy::{PeerCredentials, Pool};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's own name for the lease: asking twice under one name is asking once, and asking otherwise
    /// under one name changes the lease.
    pub id: String,
    /// For whom, in words for people.
    pub tenant: String,
    /// Which VF.
    pub choice: Choice,
    /// Which of a pool.
    pub place: Place,
    /// In whose name: the owner who claimed the VF. None: nobody has.
    pub owner: Option<String>,
    /// The lease ends by itself when this is gone.
    pub until: Option<Until>,
    /// What is to drive it; none: what its pool says, or else the kernel.
    pub driver: Option<Driver>,
    /// What the PF is to say of it, and the MTU of its interface, which its pool may say as well.
    pub attributes: Attributes,
    /// Who asks.
    pub peer: PeerCredentials,
    /// Whether a VF is taken that the host itself uses.
    pub force: bool,
    /// Of a lease that is there already, only some attributes are to be others.
    pub again: Option<Again>,
}

/// A change of some attributes of a lease, whatever somebody else has changed of it meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// What its asker takes them for.
    pub from: Attributes,
    /// Only of the lease that began then; none: of any, or of a new one.
    pub since: Option<u64>,
}

impl Again {
    /// Whether this lease is meant.
    pub(super) fn is_of(&self, lease: &Lease) -> bool {
        self.since.is_none_or(|since| since == lease.since)
    }
}

/// Which VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Vf(PciAddress),
    /// Any of these pools, of the first of them that has one.
    Pools(Vec<String>),
    /// This one, by the rules of the first of the pools that it is in.
    VfOfPools {
        /// The VF.
        vf: PciAddress,
        /// The pools.
        pools: Vec<String>,
    },
}

/// What is asked of a VF that is chosen: what the request does not say, the pool does.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub request: Request,
    /// The pool that the VF is taken from.
    pub pool: Option<String>,
    pub wanted: Wanted,
}

/// A VF that was lent, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// The VF.
    pub vf: PciAddress,
    /// The steps that were needed; none: it was as wanted.
    pub steps: Vec<Step>,
}

/// Which VF of a pool is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// One of this NUMA node, if there is one.
    pub numa: Option<u32>,
    /// Only one of this PF.
    pub pf: Option<PciAddress>,
    /// Only one of this IOMMU group.
    pub iommu_group: Option<u32>,
    /// Only one that is bound so already, or to nothing. It says which VF is chosen, and nothing about one that is lent already.
    pub bound_to: Option<Driver>,
    /// In which order PFs are used.
    pub order: Order,
}

/// In which order the PFs of a pool are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The PF with the most free VFs first, so that load is shared.
    #[default]
    Spread,
    /// The PF with the fewest free VFs first, so that whole PFs stay free.
    Pack,
}

impl Choice {
    /// Any of one pool.
    pub fn pool(name: impl Into<String>) -> Self {
        Self::Pools(vec![name.into()])
    }

    /// The VF of a lease, as it was asked for.
    pub(super) fn again(lease: &Lease) -> Self {
        match &lease.pool {
            Some(pool) => Self::VfOfPools { vf: lease.vf, pools: vec![pool.clone()] },
            None => Self::Vf(lease.vf),
        }
    }

    /// Whether a lease was asked for so.
    pub(super) fn is_of(&self, lease: &Lease) -> bool {
        let is_from = |pools: &[String]| lease.pool.as_ref().is_some_and(|pool| pools.contains(pool));
        match self {
            Self::Vf(vf) => *vf == lease.vf,
            Self::Pools(pools) => is_from(pools),
            Self::VfOfPools { vf, pools } => *vf == lease.vf && is_from(pools),
        }
    }

    fn pools(&self) -> Option<&[String]> {
        match self {
            Self::Vf(_) => None,
            Self::Pools(pools) | Self::VfOfPools { pools, .. } => Some(pools),
        }
    }
}

impl Request {
    /// What is asked of a VF from a pool, or of one that is named alone.
    pub(super) fn resolve(&self, name: Option<&String>, pool: Option<&Pool>) -> Result<Resolved, VfError> {
        let driver = self.driver.or(pool.and_then(|pool| pool.driver)).unwrap_or_default();
        let mut attributes = self.attributes.clone();
        if driver == Driver::Kernel {
            attributes.mtu = attributes.mtu.or(pool.and_then(|pool| pool.mtu));
        } else if attributes.mtu.is_some() {
            let problem = "mtu: only a VF with the driver `kernel` has an interface whose MTU can be set";
            return Err(VfError::Wrong(problem.to_owned()));
        }
        Ok(Resolved { request: self.clone(), pool: name.cloned(), wanted: Wanted { driver, attributes } })
    }

    /// The same of the VF of a lease that is there, of which others may have changed something.
    pub(super) fn resolve_again(&self, lease: &Lease, pool: Option<&Pool>) -> Result<Resolved, VfError> {
        let mut resolved = self.resolve(lease.pool.as_ref(), pool)?;
        if let Some(again) = &self.again {
            let wanted = &mut resolved.wanted;
            wanted.attributes = lease.wanted.attributes.changed(&again.from, &self.attributes);
            if wanted.driver != Driver::Kernel {
                wanted.attributes.mtu = None;
            }
        }
        Ok(resolved)
    }

    pub(super) fn check(&self) -> Result<(), VfError> {
        for (name, text) in [("id", &self.id), ("tenant", &self.tenant)] {
            check_name(name, text)?;
        }
        if let Ok(address) = self.id.parse::<PciAddress>()
            && !matches!(self.choice, Choice::Vf(vf) | Choice::VfOfPools { vf, .. } if vf == address)
        {
            return Err(VfError::Wrong(format!(
                "id: {address} is the address of a VF, by which its lease is named as well: choose another id"
            )));
        }
        if let Some(pools) = self.choice.pools()
            && !(1..=POOLS_MAX).contains(&pools.len())
        {
            return Err(VfError::Wrong(format!("pools: 1 to {POOLS_MAX} are wanted, not {}", pools.len())));
        }
        self.attributes.check().map_err(|error| VfError::Wrong(error.to_string()))
    }
}

/// A word that people and programs name something by.
pub(crate) fn check_name(what: &str, text: &str) -> Result<(), VfError> {
    if text.is_empty() || text.len() > NAME_MAX || text.chars().any(char::is_control) {
        return Err(VfError::Wrong(format!("{what}: 1 to {NAME_MAX} bytes without control characters are wanted")));
    }
    Ok(())
}

/// How many leases are asked for at once.
pub(crate) fn check_how_many(count: usize) -> Result<(), VfError> {
    if !(1..=TOGETHER_MAX).contains(&count) {
        return Err(VfError::Wrong(format!("leases: 1 to {TOGETHER_MAX} at once are wanted, not {count}")));
    }
    Ok(())
}

pub(super) fn check_all(requests: &[Request]) -> Result<(), VfError> {
    check_how_many(requests.len())?;
    let mut ids = BTreeSet::new();
    for request in requests {
        request.check()?;
        if !ids.insert(&request.id) {
            return Err(VfError::Wrong(format!("id: {} is asked for twice", request.id)));
        }
    }
    Ok(())
}

pub(super) fn cancelled(requests: &[Request]) -> VfError {
    let ids: Vec<_> = requests.iter().map(|request| request.id.as_str()).collect();
    VfError::Cancelled { tried: format!("lend a VF as {}", ids.join(", ")) }
}

/// Enough for a pod's UID, a container's name and an interface.
const NAME_MAX: usize = 256;
/// VFs that are lent together: more than a pod ever had.
const TOGETHER_MAX: usize = 64;
/// Pools that one VF may come from: each is searched in turn.
const POOLS_MAX: usize = 16;
