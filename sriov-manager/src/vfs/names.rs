//! PFs and VFs by the names that people and policies have for them. Other names of an interface than its own are not in sysfs:
//! the kernel is asked for them where a name is nobody's own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use super::{VfError, Vfs};
use crate::address::PciAddress;
use crate::inventory::Inventory;

/// Other names of interfaces, by their own names.
#[derive(Default)]
pub(super) struct Altnames {
    known: Mutex<BTreeMap<String, Vec<String>>>,
    /// The kernel was asked, and has not answered yet: it is not asked again before it has.
    asking: Arc<AtomicBool>,
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
        let Altnames { known, asking } = &self.0.altnames;
        let lock = || known.lock().unwrap_or_else(PoisonError::into_inner);
        if !asking.swap(true, Ordering::Relaxed) {
            let (executor, answered) = (self.executor(), Arc::clone(asking));
            let asked = executor.watchdog.call(&"ask for other names", &[], executor.timeouts.call, move |kernel| {
                let altnames = kernel.altnames();
                answered.store(false, Ordering::Relaxed);
                altnames
            });
            match asked {
                Ok(altnames) => *lock() = altnames,
                Err(error) => warn!(%error, "other names of interfaces stay as they were known"),
            }
        }
        lock().clone()
    }
}
