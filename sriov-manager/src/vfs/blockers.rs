//! Everything that forbids another number of VFs of a PF.

use super::reasons::{Obstacles, is_tenants};
use super::{Reason, VfError, Vfs};
use crate::address::{Driver, PciAddress};
use crate::policy::PeerCredentials;

impl Vfs {
    /// What forbids another number of VFs of a PF, VF by VF, all at once: whoever empties it wants to know of all. Whether somebody
    /// has a VF open is asked by opening it, which can get in the way of its tenant: of one that is lent only root is told.
    pub fn blockers(&self, pf: PciAddress, peer: PeerCredentials) -> Result<Vec<(PciAddress, Reason)>, VfError> {
        let (state, vfs) = {
            let state = self.lock().clone();
            let vfs: Vec<_> =
                state.pf(pf)?.vfs.values().filter_map(|vf| state.inventory.vfs.get(vf).cloned()).collect();
            (state, vfs)
        };
        let obstacles = Obstacles::new(&self.executor().sysfs);
        let mut blockers = Vec::new();
        for vf in vfs {
            let forbids = |reason: &Reason| {
                matches!(
                    reason,
                    Reason::Lent { .. } | Reason::LostLease { .. } | Reason::Stuck { .. } | Reason::Resizing { .. }
                )
            };
            let all = self.reasons(&state, &vf, Driver::None, None, &obstacles);
            let is_lent = is_tenants(&vf, &all);
            let known: Vec<_> = all.into_iter().filter(forbids).collect();
            let is_stuck = known.iter().any(|reason| matches!(reason, Reason::Stuck { .. }));
            blockers.extend(known.into_iter().map(|reason| (vf.address, reason)));
            if is_stuck || (is_lent && peer.uid != 0) {
                continue;
            }
            match self.holders(&vf) {
                Ok(holders) => blockers.extend(holders.into_iter().map(|holder| (vf.address, Reason::Held(holder)))),
                Err(error) => blockers.push((vf.address, Reason::Unknown(error.to_string()))),
            }
            match self.host_use(&vf) {
                Ok(host_use) => blockers.extend(host_use.map(|host_use| (vf.address, Reason::UsedByHost(host_use)))),
                Err(error) => blockers.push((vf.address, Reason::Unknown(error.to_string()))),
            }
        }
        Ok(blockers)
    }
}
