//! Leases that end by themselves when what they were for is gone: a process, a namespace, a control group.
//!
//! The journal knows what a lease is for, so nobody has to wait for it to end, and a start after a kill goes on looking.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrule_ffi::netlink::NetlinkError;
use nix::errno::Errno;
use tracing::{info, warn};

use super::parallel::for_each_parallel;
use super::release::Remains;
use super::{Caller, VfError, Vfs, WhenBusy};
use crate::address::PciAddress;
use crate::holders::{is_gone, namespace, start_time};
use crate::lease::{Lease, Stage, Until};
use crate::policy::PeerCredentials;
use crate::watchdog::CallError;

impl Vfs {
    /// A process, from now on as itself and no other one that may get its number; none: it is not there.
    pub fn this_process(&self, pid: u32) -> Option<Until> {
        Some(self.process_of(pid, start_time(&self.executor().sysfs, pid).ok()??))
    }

    /// A process that was started then.
    pub fn process_of(&self, pid: u32, start_time: u64) -> Until {
        Until::Process { pid, start_time, boot: self.executor().sysfs.boot_id() }
    }

    /// A network namespace by a file of it, that a user names; none: it is not there.
    pub fn this_namespace(&self, path: std::path::PathBuf, uid: u32) -> Result<Option<Until>, CallError> {
        let (sysfs, asked) = (self.executor().sysfs.clone(), path.clone());
        let what = format!("look for the network namespace {}", path.display());
        let found = self.ask_about_path(&what, &[], uid, move || Ok(namespace(&sysfs, &asked)?))?;
        let boot = self.executor().sysfs.boot_id();
        Ok(found.map(|identity| Until::Namespace { path, identity, boot }))
    }

    /// Asks about a path that a user named. It may never answer, and the user may have many such ones: others have theirs answered.
    fn ask_about_path<T: Send + 'static>(
        &self,
        what: &impl std::fmt::Display,
        about: &[PciAddress],
        uid: u32,
        look: impl FnOnce() -> Result<T, NetlinkError> + Send + 'static,
    ) -> Result<T, CallError> {
        let Some(place) = PathQuestion::of(&self.0.path_questions, uid) else {
            let hint = format!("{PATHS_MAX} paths that the user {uid} named have not answered yet");
            return Err(CallError::Refused(NetlinkError { errno: Errno::EAGAIN, hint: Some(hint) }));
        };
        self.0.questions_about_paths.call(what, about, ANSWER_MAX, move |_| {
            let answer = look();
            drop(place);
            answer
        })
    }

    /// Tells for whom a lease is, and what ends it, without touching its VF. What is not given stays.
    pub fn update(
        &self,
        lease: &str,
        tenant: Option<String>,
        until: Option<Option<Until>>,
        peer: PeerCredentials,
        caller: Caller<'_>,
    ) -> Result<Lease, VfError> {
        if let Some(tenant) = &tenant {
            super::request::check_name("tenant", tenant)?;
        }
        let (now, lock) = loop {
            let found = self.lock_vfs(caller.when_busy, |state| super::release::find(state, lease, peer))?;
            if !matches!(found.0.stage, Stage::HandingOver { .. }) {
                break found;
            }
            // A try to hand its VF over that did not end is undone first.
            self.go_back(&found.0)?;
        };
        let updated = Lease {
            tenant: tenant.unwrap_or_else(|| now.tenant.clone()),
            until: until.unwrap_or_else(|| now.until.clone()),
            ..now.clone()
        };
        if let Some(until) = updated.until.as_ref().filter(|until| self.has_ended(now.vf, until, peer.uid)) {
            return Err(VfError::Ended { id: updated.id, until: until.clone() });
        }
        if updated != now {
            self.record_lease(now.vf, Some(updated.clone()))?;
        }
        drop(lock);
        Ok(updated)
    }

    /// Whether what the lease of a VF is for is gone. A path may lead to what does not answer: as long as it is waited for, it is not.
    /// `uid`: who named it.
    pub(super) fn has_ended(&self, vf: PciAddress, until: &Until, uid: u32) -> bool {
        let sysfs = self.executor().sysfs.clone();
        if let Until::Process { .. } = until {
            return is_gone(&sysfs, until);
        }
        let asked = until.clone();
        let what = "look for what the lease is for";
        self.ask_about_path(&what, &[vf], uid, move || Ok(is_gone(&sysfs, &asked))).unwrap_or(false)
    }

    /// Whether there is a lease that may come to its end by itself.
    pub(crate) fn has_leases_that_end(&self) -> bool {
        self.lock().facts.leases.values().any(|lease| lease.until.is_some())
    }

    /// Gives leases back that are at their end, unless somebody still holds their VFs.
    pub(crate) fn release_ended(&self) {
        for_each_parallel(&self.ended_leases(), |lease| {
            if self.0.stop.has_begun() {
                return;
            }
            let root = PeerCredentials { uid: 0, gid: 0 };
            let caller = Caller { when_busy: WhenBusy::Refuse, ..Caller::PATIENT };
            info!(vf = %lease.vf, lease = lease.id, "what the lease was for is gone");
            // By its VF, and only if it is still the same: meanwhile it may have been given back, changed or lent again.
            match self.release_if(&lease.vf.to_string(), Remains::Refused, root, caller, |now| now == lease) {
                Ok(_) | Err(VfError::NoSuchLease { .. } | VfError::Busy { .. }) => {}
                Err(error) => {
                    warn!(vf = %lease.vf, lease = lease.id, %error, "a lease that is at its end is not given back yet");
                    self.lock().retries.failed(lease.vf, Instant::now());
                }
            }
        });
    }

    fn ended_leases(&self) -> Vec<Lease> {
        let (facts, waiting) = {
            let state = self.lock();
            let now = Instant::now();
            let leases = state.facts.leases.keys().copied();
            let waiting: Vec<_> = leases.filter(|&vf| state.retries.is_waiting(vf, now)).collect();
            (Arc::clone(&state.facts), waiting)
        };
        let is_due = |lease: &&Lease| {
            // The question about a path has a thread answer it: it comes last.
            let may_end = lease.stage == Stage::Lent && !waiting.contains(&lease.vf);
            may_end && lease.until.as_ref().is_some_and(|until| self.has_ended(lease.vf, until, lease.uid))
        };
        facts.leases.values().filter(is_due).cloned().collect()
    }
}

/// A question about a path that is under way, and of whom.
struct PathQuestion {
    asked: Arc<Mutex<BTreeMap<u32, usize>>>,
    uid: u32,
}

impl PathQuestion {
    /// None: the user has too many under way.
    fn of(asked: &Arc<Mutex<BTreeMap<u32, usize>>>, uid: u32) -> Option<Self> {
        let mut users = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let questions = users.entry(uid).or_default();
        if *questions >= PATHS_MAX {
            return None;
        }
        *questions += 1;
        Some(Self { asked: Arc::clone(asked), uid })
    }
}

impl Drop for PathQuestion {
    fn drop(&mut self) {
        let mut users = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut questions) = users.entry(self.uid) {
            *questions.get_mut() -= 1;
            if *questions.get() == 0 {
                questions.remove();
            }
        }
    }
}

/// Paths of one user that may be waited for at once: an eighth of those of everybody.
const PATHS_MAX: usize = 8;
/// What a path leads to is at hand, or does not answer at all.
const ANSWER_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Driver;
    use crate::attributes::Attributes;
    use crate::fake::FakeNode;
    use crate::vfs::{Choice, Place, Request};

    #[test]
    fn paths_of_one_user_that_do_not_answer_keep_no_other_user_s_from_it() {
        let asked = Arc::default();
        let held: Vec<_> = (0..PATHS_MAX).map(|_| PathQuestion::of(&asked, 1000).unwrap()).collect();
        assert!(PathQuestion::of(&asked, 1000).is_none());
        drop(PathQuestion::of(&asked, 0).unwrap());
        drop(held);
        assert!(asked.lock().unwrap().is_empty());
    }

    #[test]
    fn a_lease_that_ends_is_not_kept_by_what_failed_with_the_one_before_it() {
        let node = FakeNode::new(1, 7);
        let vfs = node.open();
        vfs.create(node.pf(0), 1).unwrap();
        let vf = node.vf(0, 0);
        let process = node.sysfs().path("proc/77");
        let lend = |id: &str| {
            std::fs::create_dir_all(&process).unwrap();
            std::fs::write(process.join("stat"), format!("77 (x) S {}9 0\n", "0 ".repeat(18))).unwrap();
            let request = Request {
                id: id.into(),
                tenant: "a test".into(),
                choice: Choice::Vf(vf),
                place: Place::default(),
                owner: None,
                until: vfs.this_process(77),
                driver: Some(Driver::VfioPci),
                attributes: Attributes::default(),
                peer: PeerCredentials::myself(),
                force: false,
                again: None,
            };
            vfs.acquire(&request).unwrap();
            std::fs::remove_dir_all(&process).unwrap();
        };
        lend("first");
        let file = node.open_vfio(vf, 4242, "testpmd");
        vfs.release_ended();
        assert_eq!(vfs.facts().leases.len(), 1, "somebody has it open: it is tried again, later");
        drop(file);
        vfs.release("first", Duration::ZERO, PeerCredentials::myself()).unwrap();
        lend("second");
        vfs.release_ended();
        assert!(vfs.facts().leases.is_empty());
    }
}
