//! PFs and VFs by the names that people and policies have for them. Other names of an interface than its own are not in sysfs:
//! the kernel is asked for them where a name is nobody's own.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::{VfError, Vfs};
use crate::address::PciAddress;
use crate::inventory::Inventory;
use crate::watchdog::CallError;

/// Other names of interfaces, by their own names.
#[derive(Clone, Default)]
pub(super) struct Altnames(Arc<(Mutex<Known>, Condvar)>);

#[derive(Default)]
struct Known {
    altnames: BTreeMap<String, Vec<String>>,
    /// The kernel was asked, and has not answered yet: it is not asked again before it has.
    is_asked: bool,
}

impl Altnames {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel has answered, or will not.
    fn answer(&self, altnames: Option<BTreeMap<String, Vec<String>>>) {
        let mut known = self.lock();
        known.is_asked = false;
        if let Some(altnames) = altnames {
            known.altnames = altnames;
        }
        self.0.1.notify_all();
    }

    /// Waits for the answer to somebody else's question, which is as good.
    fn wait(&self, known: MutexGuard<'_, Known>, timeout: Duration) {
        let waited = self.0.1.wait_timeout_while(known, timeout, |known| known.is_asked);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
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
        self.add_altnames(&mut inventory);
        find(&inventory)
    }

    /// Puts other names into a look at the node.
    pub(super) fn add_altnames(&self, inventory: &mut Inventory) {
        inventory.set_altnames(&self.altnames());
    }

    /// Other names of interfaces, by their own names, as far as the kernel tells them in time.
    pub fn altnames(&self) -> BTreeMap<String, Vec<String>> {
        let (altnames, executor) = (&self.0.altnames, self.executor());
        let mut known = altnames.lock();
        if known.is_asked {
            altnames.wait(known, executor.timeouts.call);
        } else {
            known.is_asked = true;
            drop(known);
            let answered = altnames.clone();
            let asked = executor.watchdog.call(&"ask for other names", &[], executor.timeouts.call, move |kernel| {
                let told = kernel.altnames();
                answered.answer(told.as_ref().ok().cloned());
                told.map(drop)
            });
            if let Err(error) = asked {
                warn!(%error, "other names of interfaces stay as they were known");
                // One that is late answers yet; one that was not begun does not.
                if matches!(error, CallError::Refused(_)) {
                    altnames.answer(None);
                }
            }
        }
        altnames.lock().altnames.clone()
    }
}
