//! Policies as the API gives them: checked, kept over restarts, numbered.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use tracing::{error, info};

use super::rules::Counts;
use super::{Reason, VfError, Vfs};
use crate::address::PciAddress;
use crate::config::Config;
use crate::journal::Record;
use crate::lease::{Lease, PolicyDocument};
use crate::policy::{PeerCredentials, Policies};

/// What became of policies, or would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Their number.
    pub generation: u64,
    /// PFs whose number of VFs is another one then.
    pub changes: Vec<PolicyChange>,
    /// Leases that they would not allow. These stay.
    pub forbidden: Vec<Lease>,
    /// What of them means nothing on this node.
    pub warnings: Vec<String>,
}

/// Another number of VFs of a PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyChange {
    /// The PF.
    pub pf: PciAddress,
    /// Its VFs before.
    pub from: u32,
    /// Its VFs then.
    pub to: u32,
    /// Why it was not done.
    pub error: Option<String>,
    /// Everything that forbids it.
    pub blockers: Vec<(PciAddress, Reason)>,
}

impl Vfs {
    /// Where the policies come from: a file that is followed, or the API. Of the API those that were given last hold from now on;
    /// to be called before [`Vfs::recover`].
    pub fn take_policies_from(&self, file: Option<&Path>) {
        let document = {
            let mut state = self.lock();
            state.policies_file = file.map(Path::to_owned);
            state.facts.policies.clone().filter(|_| file.is_none())
        };
        let Some(document) = document else { return };
        let parsed = parse(&document.text);
        let mut state = self.lock();
        let good = parsed.and_then(|policies| {
            let wrong = policies.check(&state.inventory);
            if wrong.is_empty() { Ok(policies) } else { Err(wrong.join("\n")) }
        });
        match good {
            Ok(policies) => state.policies = Arc::new(policies),
            // They are of another release, or the node is another one than it was.
            Err(problem) => {
                error!(
                    problem,
                    "the policies that were given over the API cannot be used; nothing is lent before others are"
                );
                state.policies_refused = Some(problem.clone());
                state.policies_unknown = Some(problem);
            }
        }
        drop(state);
        self.changed();
    }

    /// From now on these policies hold, and after a restart.
    pub fn apply_policies(&self, text: &str) -> Result<Applied, VfError> {
        let _applying = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let (policies, mut applied) = self.judge_policies(text)?;
        let document = PolicyDocument { generation: applied.generation, text: text.to_owned() };
        self.record(&Record::Policies { document })?;
        // What is recorded holds: a PF that came since they were judged is as one that comes later.
        let adopted = self.hold_policies(policies, Counts::All)?;
        for (pf, why) in adopted.short {
            let blockers = self.blockers(pf, ROOT).unwrap_or_default();
            if let Some(change) = applied.changes.iter_mut().find(|change| change.pf == pf) {
                (change.error, change.blockers) = (Some(why), blockers);
            }
        }
        self.note_policies_reached();
        info!(generation = applied.generation, pools = self.lock().policies.pools.len(), "policies applied");
        Ok(applied)
    }

    /// What [`Vfs::apply_policies`] would do.
    pub fn plan_policies(&self, text: &str) -> Result<Applied, VfError> {
        let (_, mut applied) = self.judge_policies(text)?;
        for change in &mut applied.changes {
            change.blockers = self.blockers(change.pf, ROOT)?;
        }
        Ok(applied)
    }

    fn judge_policies(&self, text: &str) -> Result<(Policies, Applied), VfError> {
        if let Some(path) = self.lock().policies_file.clone() {
            return Err(VfError::PoliciesFile { path });
        }
        let policies = parse(text).map_err(VfError::Wrong)?;
        let state = self.lock().clone();
        let inventory = &state.inventory;
        let wrong = policies.check(inventory);
        if !wrong.is_empty() {
            return Err(VfError::Wrong(wrong.join("\n")));
        }
        let change = |(pf, to): (PciAddress, u32)| {
            let from = inventory.pfs.get(&pf).map_or(0, |pf| pf.vfs.len() as u32);
            PolicyChange { pf, from, to, error: None, blockers: Vec::new() }
        };
        let leases = state.facts.leases.values();
        let applied = Applied {
            generation: state.facts.policies.as_ref().map_or(0, |document| document.generation) + 1,
            changes: policies.counts(inventory).into_iter().map(change).collect(),
            forbidden: leases.filter(|lease| policies.forbids(inventory, lease).is_some()).cloned().collect(),
            warnings: policies.warnings(inventory),
        };
        Ok((policies, applied))
    }

    /// Looks whether every PF has been made what the policies want.
    pub(super) fn note_policies_reached(&self) {
        let mut state = self.lock();
        let wanted = state.facts.policies.as_ref().map_or(0, |document| document.generation);
        if state.policies_reached != wanted
            && state.policies_refused.is_none()
            && state.short.is_empty()
            && state.policies.counts(&state.inventory).is_empty()
        {
            state.policies_reached = wanted;
            drop(state);
            self.changed();
        }
    }
}

fn parse(text: &str) -> Result<Policies, String> {
    Config::parse("policies", text).map(|config| config.policies).map_err(|error| error.to_string())
}

/// Only root applies policies.
const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };
