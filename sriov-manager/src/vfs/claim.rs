//! Functions that somebody works on, and waiting for them.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Instant;

use super::{State, VfError, Vfs};
use crate::address::PciAddress;
use crate::inventory::VirtualFunction;

/// What an operation works on.
pub(super) struct Wants {
    /// Nobody else may work on these meanwhile.
    pub functions: BTreeSet<PciAddress>,
    /// Nobody may be working on these at the beginning.
    pub quiet: BTreeSet<PciAddress>,
    /// The name of a lease that nobody else may make meanwhile.
    pub name: Option<String>,
}

impl Wants {
    /// What an operation on a VF has to have for itself.
    pub fn of(vf: &VirtualFunction) -> Self {
        let functions = vf.group_with.iter().copied().chain([vf.address]).collect();
        Self { functions, quiet: [vf.pf].into(), name: None }
    }

    /// What is in the way.
    fn taken(&self, state: &State) -> Option<String> {
        let function = self.functions.iter().chain(&self.quiet).find(|function| state.claimed.contains(function));
        let name = self.name.as_ref().filter(|name| state.naming.contains(*name));
        function.map(ToString::to_string).or_else(|| name.map(|name| format!("the lease {name}")))
    }
}

/// What nobody else works on while it lives.
pub(super) struct Claim {
    vfs: Vfs,
    wants: Wants,
}

impl Vfs {
    /// Waits until what `decide` wants is free, and claims it. `decide` is asked again after every wait.
    pub(super) fn claim<T>(
        &self,
        mut decide: impl FnMut(&State) -> Result<(T, Wants), VfError>,
    ) -> Result<(T, Claim), VfError> {
        let deadline = Instant::now() + self.hands().patience.busy;
        let mut state = self.lock();
        loop {
            let (value, wants) = decide(&state)?;
            let Some(what) = wants.taken(&state) else {
                state.claimed.extend(&wants.functions);
                state.naming.extend(wants.name.clone());
                return Ok((value, Claim { vfs: self.clone(), wants }));
            };
            if self.is_closing() {
                return Err(VfError::Stopping { tried: format!("wait for {what}") });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VfError::Busy { what });
            }
            let waited = self.0.freed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Wants { functions, name, .. } = &self.wants;
        // In this order: whoever waits decides by what is true now. A PF is claimed when its VFs come or go.
        let pf = functions.iter().any(|function| self.vfs.lock().inventory.pfs.contains_key(function));
        if pf {
            self.vfs.look();
        } else {
            self.vfs.look_at(functions);
        }
        let mut state = self.vfs.lock();
        state.claimed.retain(|function| !functions.contains(function));
        if let Some(name) = name {
            state.naming.remove(name);
        }
        drop(state);
        self.vfs.0.freed.notify_all();
        self.vfs.changed();
    }
}
