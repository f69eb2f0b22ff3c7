//! What the tree alone shows, without a manager: for `ferrule vf --root`. Who borrowed what is not in it.

use std::io;

use ferrule_ffi::netlink::NetlinkError;
use sriov_manager_client::v1;
use thiserror::Error;

use crate::address::{Driver, is_userspace_driver};
use crate::api;
use crate::holders::{self, Holder, HostUse};
use crate::inventory::{Inventory, VirtualFunction};
use crate::kernel::Kernel;
use crate::sysfs::Sysfs;
use crate::vfs::{Reason, View, obstacles};

/// Every PF and VF.
pub fn list(sysfs: &Sysfs) -> Result<v1::ListResponse, LookError> {
    Ok(api::response(&View::without_manager(sysfs, &read(sysfs)?), None))
}

/// Why a VF cannot be borrowed for a driver, by its address or a name of its interface. `kernel`: that of the tree, which is asked
/// for other names, for interfaces in other namespaces, and for what the host does with this one.
pub fn explain(
    sysfs: &Sysfs,
    kernel: Option<&dyn Kernel>,
    vf: &str,
    driver: Driver,
) -> Result<v1::ExplainResponse, LookError> {
    let mut inventory = read(sysfs)?;
    if let (None, Some(kernel)) = (inventory.find_vf(vf), kernel) {
        // Without other names, if the kernel does not tell them.
        inventory.set_altnames(&kernel.altnames().unwrap_or_default());
    }
    let Some(vf) = inventory.find_vf(vf) else { return Err(LookError::NoSuchVf(vf.to_owned())) };
    let blocked = obstacles(sysfs, &inventory, vf, driver);
    let mut used = match holders::nodes(sysfs, vf).and_then(|nodes| holders::processes(sysfs, &nodes)) {
        Ok(held) => held.into_iter().map(Reason::Held).collect(),
        Err(error) => {
            vec![Reason::Unknown(format!("who has it open is not known: look through /sys and /proc: {error}"))]
        }
    };
    if let Some(kernel) = kernel {
        used.extend(use_of_interface(sysfs, kernel, vf));
    }
    Ok(v1::ExplainResponse { reasons: blocked.into_iter().chain(used).map(|reason| api::reason(&reason)).collect() })
}

/// Who has the interface of a VF in another namespace, or what the host does with it here.
fn use_of_interface(sysfs: &Sysfs, kernel: &dyn Kernel, vf: &VirtualFunction) -> Option<Reason> {
    let unknown = |error: NetlinkError| Some(Reason::Unknown(format!("who uses its interface is not known: {error}")));
    let makes_interface = vf.function.driver.as_deref().is_some_and(|driver| !is_userspace_driver(driver));
    if makes_interface && sysfs.netdevs(vf.address).is_empty() {
        if !sysfs.has_netdev_elsewhere(vf.address) {
            return None;
        }
        return match kernel.foreign_netdev(vf.address) {
            Ok(Some(foreign)) => Some(Reason::Held(Holder::of_namespace(sysfs, foreign))),
            // It may have ended meanwhile.
            Ok(None) => sysfs.has_netdev_elsewhere(vf.address).then_some(Reason::Held(Holder::UnseenNamespace)),
            Err(error) => unknown(error),
        };
    }
    let (netdev, interface) = match sysfs.read_interface(vf.address) {
        Ok(found) => found?,
        Err(error) => return unknown(error.into()),
    };
    let uppers = match sysfs.upper_netdevs(vf.address, &netdev) {
        Ok(uppers) => uppers,
        Err(error) => return unknown(error.into()),
    };
    let mut uses: Vec<_> = uppers.iter().map(|upper| format!("{upper} is made of it")).collect();
    match kernel.host_uses(interface) {
        Ok(more) => uses.extend(more),
        Err(error) => return unknown(error),
    }
    (!uses.is_empty()).then_some(Reason::UsedByHost(HostUse { netdev, uses }))
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
        let (vf, kernel) = (node.vf(0, 1), node.kernel());
        kernel.write(&node.sysfs().file(vf, "driver_override"), "vfio-pci").unwrap();
        kernel.write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
        let _file = node.open_vfio(vf, 4242, "testpmd");
        let reasons = explain(&node.sysfs(), None, &vf.to_string(), Driver::VfioPci).unwrap().reasons;
        assert_eq!(reasons.len(), 1);
        assert_eq!(reasons[0].user.as_ref().unwrap().pid, 4242);
    }

    #[test]
    fn a_vf_in_a_pod_or_that_the_host_uses_cannot_be_borrowed() {
        let node = FakeNode::new(1, 7);
        let vfs = node.open();
        vfs.create(node.pf(0), 2).unwrap();
        drop(vfs);
        let (in_pod, of_host) = (node.vf(0, 0), node.vf(0, 1));
        let kernel = node.kernel();
        for vf in [in_pod, of_host] {
            kernel.write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
        }
        node.move_netdev(in_pod, 4242, "pause");
        node.use_by_host(of_host, &["it has the address 10.0.0.7/24"]);
        let kinds = |vf: crate::PciAddress| -> Vec<_> {
            let told = explain(&node.sysfs(), Some(&*kernel), &vf.to_string(), Driver::Kernel).unwrap().reasons;
            told.iter().map(v1::Reason::kind).collect()
        };
        assert_eq!(kinds(in_pod), [v1::ReasonKind::Held]);
        assert_eq!(kinds(of_host), [v1::ReasonKind::UsedByHost]);
    }

    #[test]
    fn what_is_not_there_is_told_with_the_cure() {
        let node = FakeNode::new(1, 7);
        let error = explain(&node.sysfs(), None, "ens1f0v9", Driver::Kernel).unwrap_err().to_string();
        assert!(error.contains("there is no VF ens1f0v9"), "{error}");
        let error = list(&Sysfs::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("read the PCI devices below /nowhere/: ") && error.contains("--root"), "{error}");
    }
}
