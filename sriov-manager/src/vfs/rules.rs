//! The policies, and other ones while the manager runs.

use std::sync::Arc;

use tracing::warn;

use super::counts::CountsSeen;
use super::{VfError, Vfs};
use crate::address::PciAddress;
use crate::policy::Policies;

/// What became of new policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Leases that they would not allow, and why. These stay.
    pub forbidden: Vec<(String, String)>,
    /// PFs that have not got their number of VFs, and why.
    pub short: Vec<(PciAddress, String)>,
}

/// Of which PFs the number of VFs is changed by new policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Of those about which they say something else than before: a number that was made by hand stays.
    Changed,
    /// Of all that they speak of.
    All,
}

impl Vfs {
    /// From now on these policies hold. Leases stay, also those that they would not allow. Policies that
    /// contradict each other on this node are refused with everything that is wrong, and those before hold on.
    pub fn adopt_policies(&self, policies: Policies, which: Counts) -> Result<Adopted, AdoptError> {
        let wrong = policies.check(&self.lock().inventory);
        if !wrong.is_empty() {
            return Err(AdoptError::Contradiction(wrong));
        }
        self.hold_policies(policies, which).map_err(AdoptError::Journal)
    }

    /// From now on these policies hold, which were found good.
    pub(super) fn hold_policies(&self, policies: Policies, which: Counts) -> Result<Adopted, VfError> {
        let counts: Vec<_> = {
            let mut state = self.lock();
            let before = std::mem::replace(&mut state.policies, Arc::new(policies));
            (state.policies_refused, state.policies_unknown) = (None, None);
            let inventory = &state.inventory;
            let says_new = |pf: &PciAddress| {
                let pf = inventory.pfs.get(pf);
                pf.is_some_and(|pf| before.wanted_count(pf) != state.policies.wanted_count(pf))
            };
            let different = state.policies.counts(inventory);
            let counts: Vec<_> =
                different.iter().filter(|(pf, _)| which == Counts::All || says_new(pf)).copied().collect();
            // What is not wanted any more is not lacked.
            state.short.retain(|short, _| different.iter().any(|(pf, _)| pf == short));
            CountsSeen::see_to_all(&mut state);
            counts
        };
        self.changed();
        let short = self.make_counts(&counts)?;
        let state = self.lock();
        let leases = state.facts.leases.values();
        let forbidden = leases.filter_map(|lease| {
            let why = state.policies.forbids(&state.inventory, lease)?;
            warn!(vf = %lease.vf, lease = lease.id, why, "the new policies would not allow this lease; it stays");
            Some((lease.id.clone(), why))
        });
        Ok(Adopted { forbidden: forbidden.collect(), short })
    }

    /// Shows with everything else that new policies were not taken, and why.
    pub fn refuse_policies(&self, why: String) {
        self.lock().policies_refused = Some(why);
        self.changed();
    }
}

/// Why new policies do not hold.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// They contradict each other on this node.
    #[error("{}", .0.join("; "))]
    Contradiction(Vec<String>),
    /// They hold, and a change of a number of VFs could not be recorded.
    #[error("the new policies hold, but: {0}")]
    Journal(VfError),
}
