//! VFs that have an owner, who alone lends them on; and PFs that are being emptied.
//!
//! An owner is somebody who told others about VFs before anybody uses them: a device plugin that advertised them. What he claimed
//! is lent under his name and to his user alone, so that nobody else at the socket takes what was promised. A claim outlives
//! its owner's process and ours. Leases that were there before stay, whoever has them.

use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::info;

use super::choose::{may_have, pool};
use super::request::{Resolved, check_name};
use super::{Reason, Request, State, VfError, Vfs};
use crate::address::{Driver, PciAddress};
use crate::inventory::VirtualFunction;
use crate::journal::Record;
use crate::lease::{Claim, Cordon, Lease};
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
        let _claiming = self.0.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let claim = {
            let state = self.lock();
            let before = state.facts.claims.get(owner);
            if let Some(before) = before.filter(|before| before.uid != peer.uid) {
                return Err(VfError::OwnerOfAnother { owner: owner.to_owned(), uid: before.uid });
            }
            if before.is_none() {
                state.may_own(peer)?;
            }
            // One that is made wider is not older than what others have claimed since.
            let since = before.filter(|before| before.covers(&wanted)).map_or(since, |before| before.since);
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
        let _claiming = self.0.claiming.lock().unwrap_or_else(PoisonError::into_inner);
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
        let _claiming = self.0.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        let now = {
            let state = self.lock();
            state.pf(pf)?;
            state.facts.cordons.get(&pf).cloned()
        };
        // Which card it is need not be asked now, which may take long: it is known, or will be.
        let card = self.lock().cards.get(&pf).copied();
        let cordon = cordon.map(|cordon| Cordon { card, ..cordon });
        if now != cordon {
            self.record(&Record::Cordon { pf, cordon })?;
        }
        Ok(())
    }
}

impl Vfs {
    /// Records leases for the first time, unless a VF of a new one was claimed, or its PF cordoned, since it was chosen.
    pub(super) fn record_unless_kept<'a>(
        &self,
        new: impl IntoIterator<Item = (&'a VirtualFunction, &'a Resolved)>,
        leases: Vec<Lease>,
    ) -> Result<(), VfError> {
        let _claiming = self.0.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = {
            let state = self.lock();
            new.into_iter().find_map(|(vf, resolved)| Some((vf.address, state.kept_from(vf, resolved)?)))
        };
        match kept {
            Some((vf, reason)) => Err(VfError::Unavailable { vf, reasons: vec![reason] }),
            None => self.record_leases(leases),
        }
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
        let takes_others = driver == Driver::VfioPci;
        is_his(vf).err().or_else(|| takes_others.then(|| self.group_not_lent_by(vf, request)).flatten())
    }

    /// The same for the others of its IOMMU group, which go to vfio-pci as well.
    pub(super) fn group_not_lent_by(&self, vf: &VirtualFunction, request: &Request) -> Option<Reason> {
        let mut members = vf.group_with.iter().filter_map(|member| self.inventory.vfs.get(member));
        members.find_map(|member| match self.owner_of(member) {
            Some((owner, _)) if request.owner.as_ref() != Some(owner) => {
                Some(Reason::Claimed { owner: owner.clone(), vf: member.address })
            }
            // Who may not have it by itself does not get it along with another one.
            _ => {
                let refused = may_have(self, member, None, request.peer).err()?;
                Some(Reason::Unknown(format!("its IOMMU group goes as a whole: {refused}")))
            }
        })
    }

    /// Why a VF is not lent to somebody new: because of its owner, or because its PF is being emptied.
    pub(super) fn kept_from(&self, vf: &VirtualFunction, resolved: &Resolved) -> Option<Reason> {
        self.not_lent_by(vf, &resolved.request, resolved.wanted.driver).or_else(|| self.cordoned(vf.pf))
    }

    pub(super) fn cordoned(&self, pf: PciAddress) -> Option<Reason> {
        self.facts.cordons.get(&pf).map(|cordon| Reason::Cordoned { pf, why: cordon.why.clone() })
    }

    fn may_own(&self, peer: PeerCredentials) -> Result<(), VfError> {
        let names = self.facts.claims.values().filter(|claim| claim.uid == peer.uid).count();
        if names >= OWNERS_MAX {
            let problem = format!("owner: the user {} is {OWNERS_MAX} owners already: end a claim first", peer.uid);
            return Err(VfError::Wrong(problem));
        }
        Ok(())
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
        // Also one that has no VF yet.
        let of_another = |(other, claim): (&String, &Claim)| {
            let pool = claim.pools.intersection(&wanted.pools).next().filter(|_| other != owner)?;
            Some(VfError::PoolOfAnother { pool: pool.clone(), owner: other.clone() })
        };
        if let Some(error) = self.facts.claims.iter().find_map(of_another) {
            return Err(error);
        }
        for &vf in &wanted.vfs {
            may_have(self, self.vf(vf)?, None, peer)?;
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

/// Owners that one user can be: a claim is in the journal and in every list.
const OWNERS_MAX: usize = 64;
