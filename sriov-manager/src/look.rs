//! What the tree alone shows, without a manager: for `ferrule vf --root`. Who borrowed what is not in it.

use std::io;

use sriov_manager_client::v1;
use thiserror::Error;

use crate::address::Driver;
use crate::api;
use crate::holders;
use crate::inventory::Inventory;
use crate::kernel::{Kernel, LiveKernel};
use crate::sysfs::Sysfs;
use crate::vfs::{Reason, View, obstacles};

/// Every PF and VF.
pub fn list(sysfs: &Sysfs) -> Result<v1::ListResponse, LookError> {
    Ok(api::response(&View::without_manager(sysfs, &read(sysfs)?), None))
}

/// Why a VF cannot be borrowed for a driver, by its address or a name of its interface.
pub fn explain(sysfs: &Sysfs, vf: &str, driver: Driver) -> Result<v1::ExplainResponse, LookError> {
    let mut inventory = read(sysfs)?;
    if inventory.find_vf(vf).is_none() && sysfs.is_live() {
        // Without other names, if the kernel does not tell them.
        inventory.set_altnames(&LiveKernel.altnames().unwrap_or_default());
    }
    let Some(vf) = inventory.find_vf(vf) else { return Err(LookError::NoSuchVf(vf.to_owned())) };
    let blocked = obstacles(sysfs, &inventory, vf, driver);
    let held = match holders::processes(sysfs, &holders::nodes(sysfs, vf)) {
        Ok(held) => held.into_iter().map(Reason::Held).collect(),
        Err(error) => vec![Reason::Unknown(format!("who has it open is not known: look through /proc: {error}"))],
    };
    Ok(v1::ExplainResponse { reasons: blocked.into_iter().chain(held).map(|reason| api::reason(&reason)).collect() })
}

/// Why nothing can be said.
#[derive(Debug, Error)]
pub enum LookError {
    /// The tree cannot be read.
    #[error("read the PCI devices below {root}: {source}; --root names the directory that holds `sys`")]
    Tree {
        /// The root.
        root: String,
        /// Why not.
        source: io::Error,
    },
    /// There is none.
    #[error("there is no VF {0}; `ferrule vf list` shows those that are there")]
    NoSuchVf(String),
}

fn read(sysfs: &Sysfs) -> Result<Inventory, LookError> {
    Inventory::read(sysfs).map_err(|source| LookError::Tree { root: sysfs.path("").display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeNode;

    #[test]
    fn a_tree_is_shown_as_it_is_and_without_leases() {
        let node = FakeNode::new(1, 7);
        let vfs = node.open();
        vfs.create(node.pf(0), 2).unwrap();
        drop(vfs);
        let shown = list(&node.sysfs()).unwrap();
        assert_eq!((shown.pfs.len(), shown.vfs.len()), (1, 2));
        assert!(shown.vfs.iter().all(|vf| vf.lease.is_none() && vf.state() == v1::VfState::Free));
        let vf = node.vf(0, 1);
        let _file = node.open_vfio(vf, 4242, "testpmd");
        let reasons = explain(&node.sysfs(), &vf.to_string(), Driver::VfioPci).unwrap().reasons;
        assert_eq!(reasons.len(), 1);
        assert_eq!(reasons[0].user.as_ref().unwrap().pid, 4242);
    }

    #[test]
    fn what_is_not_there_is_told_with_the_cure() {
        let node = FakeNode::new(1, 7);
        let error = explain(&node.sysfs(), "ens1f0v9", Driver::Kernel).unwrap_err().to_string();
        assert!(error.contains("there is no VF ens1f0v9"), "{error}");
        let error = list(&Sysfs::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("read the PCI devices below /nowhere/: ") && error.contains("--root"), "{error}");
    }
}
