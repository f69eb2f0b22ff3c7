//! PFs and VFs by the names that people and policies have for them. Other names of an interface than its own are not in sysfs:
//! the kernel is asked for them where a name is nobody's own.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::{VfError, Vfs};
use crate::address::PciAddress;
use crate::inventory::Inventory;

/// Other names of interfaces, by their own names.
#[derive(Clone, Default)]
pub(super) struct Altnames(Arc<(Mutex<Known>, Condvar)>);

#[derive(Default)]
struct Known {
    altnames: BTreeMap<String, Vec<String>>,
    /// What the kernel was asked and has not answered: it is not asked again before it has.
    asked: Option<Question>,
    /// How often it was asked.
    questions: u64,
}

#[derive(Clone, Copy)]
struct Question {
    number: u64,
    /// Whoever asked waits no more, and so does nobody else.
    is_late: bool,
}

impl Altnames {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a question, unless there is one: then waits for its answer, which is as good.
    fn ask(&self, wait: Duration, is_stopping: impl Fn() -> bool) -> Option<Answer> {
        let deadline = Instant::now() + wait;
        let mut known = self.lock();
        if known.asked.is_some() {
            while known.asked.is_some_and(|asked| !asked.is_late) && !is_stopping() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.0.1.wait_timeout(known, left.min(STOP_POLL));
                known = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            return None;
        }
        known.questions += 1;
        let number = known.questions;
        known.asked = Some(Question { number, is_late: false });
        Some(Answer { altnames: self.clone(), number })
    }

    /// Nobody waits for this question any more.
    fn give_up(&self, number: u64) {
        if let Some(asked) = self.lock().asked.as_mut().filter(|asked| asked.number == number) {
            asked.is_late = true;
        }
        self.0.1.notify_all();
    }
}

/// Ends its question when it goes: also one that was never put, or that panicked.
struct Answer {
    altnames: Altnames,
    number: u64,
}

impl Answer {
    fn is(self, altnames: BTreeMap<String, Vec<String>>) {
        self.altnames.lock().altnames = altnames;
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.altnames.lock().asked = None;
        self.altnames.0.1.notify_all();
    }
}

impl Vfs {
    /// The address of a PF by its address, also without the domain, or by a name of its interface.
    pub fn find_pf(&self, name: &str) -> Result<PciAddress, VfError> {
        let found = self.find(|inventory| inventory.find_pf(name).map(|pf| pf.address));
        found.ok_or_else(|| VfError::NoSuchPf { pf: name.to_owned() })
    }

    /// The address of a VF by its address, also without the domain, or by a name of its interface.
    pub fn find_vf(&self, name: &str) -> Result<PciAddress, VfError> {
        let found = self.find(|inventory| inventory.find_vf(name).map(|vf| vf.address));
        found.ok_or_else(|| VfError::NoSuchVf { vf: name.to_owned() })
    }

    fn find(&self, find: impl Fn(&Inventory) -> Option<PciAddress>) -> Option<PciAddress> {
        let mut inventory = {
            let state = self.lock();
            if let Some(found) = find(&state.inventory) {
                return Some(found);
            }
            Inventory::clone(&state.inventory)
        };
        inventory.set_altnames(&self.altnames());
        find(&inventory)
    }

    /// Puts other names into a look at the node, which waits for nobody else's question.
    pub(super) fn add_altnames_to_look(&self, inventory: &mut Inventory) {
        inventory.set_altnames(&self.altnames_within(Duration::ZERO));
    }

    /// Other names of interfaces, by their own names, as far as the kernel tells them in time: while an answer is late, as they were
    /// known before.
    pub fn altnames(&self) -> BTreeMap<String, Vec<String>> {
        self.altnames_within(self.executor().timeouts.call)
    }

    /// The same; somebody else's question is waited for so long.
    fn altnames_within(&self, wait: Duration) -> BTreeMap<String, Vec<String>> {
        let (altnames, executor) = (&self.0.altnames, self.executor());
        if let Some(answer) = altnames.ask(wait, || executor.watchdog.is_stopping()) {
            let number = answer.number;
            let asked = executor.watchdog.call(&"ask for other names", &[], executor.timeouts.call, move |kernel| {
                answer.is(kernel.altnames()?);
                Ok(())
            });
            if let Err(error) = asked {
                warn!(%error, "other names of interfaces stay as they were known");
                altnames.give_up(number);
            }
        }
        altnames.lock().altnames.clone()
    }
}

/// How often somebody who waits looks whether a stop is due.
const STOP_POLL: Duration = Duration::from_millis(100);
