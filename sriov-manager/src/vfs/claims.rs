//! VFs that have an owner, who alone lends them on; and PFs that are being emptied.
//!
//! An owner is somebody who told others about VFs before anybody uses them: a device plugin that advertised them. What he claimed
//! is lent under his name and to his user alone, so that nobody else at the socket takes what was promised. A claim outlives
//! its owner's process and ours. Leases that were there before stay, whoever has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::info;

use super::choose::pool;
use super::request::check_name;
use super::{Reason, Request, State, VfError, Vfs};
use crate::address::{Driver, PciAddress};
use crate::inventory::VirtualFunction;
use crate::journal::Record;
use crate::lease::{Claim, Cordon};
use crate::policy::PeerCredentials;

/// What an owner has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The VFs of the claim that are there.
    pub vfs: Vec<PciAddress>,
    /// Those of them that were lent to others before, and by which lease. They are the owner's when they come back.
    pub lent_to_others: Vec<(PciAddress, String)>,
}

impl Vfs {
    /// From now on only `owner` lends these VFs. What he claimed before and does not any more is anybody's.
    pub fn claim(&self, owner: &str, wanted: Claim, peer: PeerCredentials) -> Result<Claimed, VfError> {
        check_name("owner", owner)?;
        let _claiming = self.0.claiming.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let claim = {
            let state = self.lock();
            let before = state.facts.claims.get(owner);
            if let Some(before) = before.filter(|before| before.uid != peer.uid) {
                return Err(VfError::OwnerOfAnother { owner: owner.to_owned(), uid: before.uid });
            }
            let since = before.map_or(since, |before| before.since);
            let claim = Claim { uid: peer.uid, since, ..wanted };
            state.may_claim(owner, &claim, peer)?;
            claim
        };
        if self.lock().facts.claims.get(owner) != Some(&claim) {
            self.record(&Record::Claim { owner: owner.to_owned(), claim: Some(claim) })?;
            info!(owner, uid = peer.uid, "VFs claimed");
        }
        Ok(self.lock().claimed(owner))
    }

    /// The VFs of an owner are anybody's from now on. Leases that he made stay.
    pub fn unclaim(&self, owner: &str, peer: PeerCredentials) -> Result<(), VfError> {
        let _claiming = self.0.claiming.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        {
            let state = self.lock();
            let claim = state.facts.claims.get(owner);
            let claim = claim.ok_or_else(|| VfError::NoSuchOwner { owner: owner.to_owned() })?;
            if claim.uid != peer.uid && peer.uid != 0 {
                return Err(VfError::OwnerOfAnother { owner: owner.to_owned(), uid: claim.uid });
            }
        }
        self.record(&Record::Claim { owner: owner.to_owned(), claim: None })?;
        info!(owner, "VFs no longer claimed");
        Ok(())
    }

    /// No VF of a PF is lent to anybody new from now on, or they are again. Leases that are there stay, and can be changed.
    pub fn cordon(&self, pf: PciAddress, cordon: Option<Cordon>) -> Result<(), VfError> {
        let now = {
            let state = self.lock();
            state.pf(pf)?;
            state.facts.cordons.get(&pf).cloned()
        };
        if now != cordon {
            self.record(&Record::Cordon { pf, cordon })?;
        }
        Ok(())
    }
}

impl State {
    /// Who owns a VF, and what he claimed: the older of two claims.
    pub(super) fn owner_of(&self, vf: &VirtualFunction) -> Option<(&String, &Claim)> {
        let covers = |claim: &Claim| {
            claim.vfs.contains(&vf.address)
                || (!claim.pools.is_empty()
                    && self.policies.pools_of(&self.inventory, vf).any(|pool| claim.pools.contains(&pool.name)))
        };
        let claims = self.facts.claims.iter().filter(|(_, claim)| covers(claim));
        claims.min_by_key(|(owner, claim)| (claim.since, *owner))
    }

    /// Why a VF is not lent for a request on a driver: because of its owner.
    pub(super) fn not_lent_by(&self, vf: &VirtualFunction, request: &Request, driver: Driver) -> Option<Reason> {
        let is_his = |vf: &VirtualFunction| match (self.owner_of(vf), &request.owner) {
            (None, None) => Ok(()),
            (Some((owner, claim)), Some(named)) if owner == named && claim.uid == request.peer.uid => Ok(()),
            (Some((owner, _)), _) => Err(Reason::Claimed { owner: owner.clone(), vf: vf.address }),
            (None, Some(named)) => Err(Reason::NotClaimed { owner: named.clone() }),
        };
        if let Err(reason) = is_his(vf) {
            return Some(reason);
        }
        // The others of the IOMMU group go to vfio-pci as well.
        let members = vf.group_with.iter().filter_map(|member| self.inventory.vfs.get(member));
        let mut members = members.filter(|_| driver == Driver::VfioPci);
        members.find_map(|member| match self.owner_of(member) {
            Some((owner, _)) if request.owner.as_ref() != Some(owner) => {
                Some(Reason::Claimed { owner: owner.clone(), vf: member.address })
            }
            _ => None,
        })
    }

    fn may_claim(&self, owner: &str, wanted: &Claim, peer: PeerCredentials) -> Result<(), VfError> {
        if wanted.pools.is_empty() && wanted.vfs.is_empty() {
            return Err(VfError::Wrong("claim: a pool or a VF is wanted".to_owned()));
        }
        for name in &wanted.pools {
            if !pool(self, name)?.allows(peer) {
                return Err(VfError::NotAllowed { uid: peer.uid, tried: format!("claim the pool {name}") });
            }
        }
        for &vf in &wanted.vfs {
            super::choose::may_have(self, self.vf(vf)?, None, peer)?;
        }
        let is_wanted = |vf: &&VirtualFunction| {
            let mut pools = self.policies.pools_of(&self.inventory, vf);
            wanted.vfs.contains(&vf.address) || pools.any(|pool| wanted.pools.contains(&pool.name))
        };
        for vf in self.inventory.vfs.values().filter(is_wanted) {
            if let Some((other, _)) = self.owner_of(vf).filter(|(other, _)| *other != owner) {
                let reasons = vec![Reason::Claimed { owner: other.clone(), vf: vf.address }];
                return Err(VfError::Unavailable { vf: vf.address, reasons });
            }
        }
        Ok(())
    }

    fn claimed(&self, owner: &str) -> Claimed {
        let mut claimed = Claimed { vfs: Vec::new(), lent_to_others: Vec::new() };
        for vf in self.inventory.vfs.values() {
            if self.owner_of(vf).is_none_or(|(of, _)| of != owner) {
                continue;
            }
            claimed.vfs.push(vf.address);
            let lease = self.facts.leases.get(&vf.address);
            if let Some(lease) = lease.filter(|lease| lease.owner.as_deref() != Some(owner)) {
                claimed.lent_to_others.push((vf.address, lease.id.clone()));
            }
        }
        claimed
    }
}
