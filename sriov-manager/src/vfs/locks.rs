//! Functions that somebody works on, and waiting for them.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Instant;

use super::{State, VfError, Vfs};
use crate::address::PciAddress;
use crate::inventory::VirtualFunction;
use crate::lease::Lease;

/// Who asked for an operation.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// Whether he waits for the answer no more.
    pub has_left: &'a dyn Fn() -> bool,
    /// What is done while another operation works on the same VF.
    pub when_busy: WhenBusy,
}

/// What is done while another operation works on the same VF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBusy {
    /// It is waited for, for a while.
    Wait,
    /// [`VfError::Busy`] is answered at once: whoever asks waits by [`Vfs::watch_unlocked`], without a thread, and asks again.
    Refuse,
}

impl Caller<'static> {
    /// Somebody who waits for as long as it takes.
    pub const PATIENT: Self = Self { has_left: &|| false, when_busy: WhenBusy::Wait };
}

/// What an operation works on.
#[derive(Default)]
pub(super) struct LockRequest {
    /// Nobody else may work on these meanwhile.
    pub functions: BTreeSet<PciAddress>,
    /// Nobody may be working on these at the beginning.
    pub quiet: BTreeSet<PciAddress>,
    /// Names of leases that nobody else may make meanwhile.
    pub names: BTreeSet<String>,
}

impl LockRequest {
    /// What an operation on a VF has to have for itself.
    pub fn of(vf: &VirtualFunction) -> Self {
        let functions = vf.group_with.iter().copied().chain([vf.address]).collect();
        Self { functions, quiet: [vf.pf].into(), names: BTreeSet::new() }
    }

    /// What an operation on a lease has to have for itself, also when its VF is not there.
    pub fn of_lease(state: &State, lease: &Lease) -> Self {
        let members = lease.before.members.keys().copied();
        let group = state.inventory.vfs.get(&lease.vf).into_iter().flat_map(|vf| vf.group_with.iter().copied());
        Self {
            functions: members.chain(group).chain([lease.vf]).collect(),
            quiet: [lease.pf].into(),
            names: BTreeSet::new(),
        }
    }

    /// Both at once.
    pub fn extend(&mut self, other: Self) {
        self.functions.extend(other.functions);
        self.quiet.extend(other.quiet);
        self.names.extend(other.names);
    }

    /// What is in the way.
    fn taken(&self, state: &State) -> Option<String> {
        let function = self.functions.iter().chain(&self.quiet).find(|function| state.locked.contains(function));
        let name = self.names.iter().find(|name| state.naming.contains(*name));
        function.map(ToString::to_string).or_else(|| name.map(|name| format!("the lease {name}")))
    }
}

/// What nobody else works on while it lives.
pub(super) struct VfLock {
    vfs: Vfs,
    wants: LockRequest,
    /// What was locked is as it was at the last look.
    is_as_seen: bool,
}

impl VfLock {
    /// Nothing was done that a look at the functions would show.
    pub fn forgo_look(&mut self) {
        self.is_as_seen = true;
    }
}

impl Vfs {
    /// Waits until what `decide` wants is free, and locks it. `decide` is asked again after every wait.
    pub(super) fn lock_vfs<T>(
        &self,
        when_busy: WhenBusy,
        mut decide: impl FnMut(&State) -> Result<(T, LockRequest), VfError>,
    ) -> Result<(T, VfLock), VfError> {
        let deadline = Instant::now() + self.executor().timeouts.busy;
        let mut state = self.lock();
        loop {
            let (value, wants) = decide(&state)?;
            let Some(what) = wants.taken(&state) else {
                state.locked.extend(&wants.functions);
                state.naming.extend(wants.names.iter().cloned());
                drop(state);
                self.changed();
                return Ok((value, VfLock { vfs: self.clone(), wants, is_as_seen: false }));
            };
            if self.is_closing() {
                return Err(VfError::Stopping { tried: format!("wait for {what}") });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || when_busy == WhenBusy::Refuse {
                return Err(VfError::Busy { what });
            }
            let waited = self.0.freed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for VfLock {
    fn drop(&mut self) {
        let LockRequest { functions, names, .. } = &self.wants;
        // In this order: whoever waits decides by what is true now. A PF is locked when its VFs come or go.
        let pf = functions.iter().any(|function| self.vfs.lock().inventory.pfs.contains_key(function));
        if pf {
            self.vfs.look();
        } else if !self.is_as_seen {
            self.vfs.look_at(functions);
        }
        let mut state = self.vfs.lock();
        state.locked.retain(|function| !functions.contains(function));
        state.naming.retain(|name| !names.contains(name));
        drop(state);
        self.vfs.0.freed.notify_all();
        self.vfs.0.unlocked.send_modify(|count| *count += 1);
        self.vfs.changed();
    }
}
