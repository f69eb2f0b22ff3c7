//! An IOMMU group that holds more than a VF: no ACS between the functions below one port.

use anyhow::{Context, Result};

use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::Function;
use crate::lab::scenario::Lab;

/// `vfio-pci` would take the whole group, and the PF and a NIC of the kernel's are in it.
pub fn crowded(lab: &Lab) -> Result<()> {
    let pf = &lab.crowded;
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    let created = manager.create(std::slice::from_ref(pf), 2)?;
    assert!(created[0].error.is_empty(), "{created:?}");
    let vfs = pf.vfs();
    let vf = &vfs[0];
    assert_eq!(vf.iommu_group(), pf.iommu_group(), "the kernel sees one group");
    let beside = vf.group_with()?;
    let is_other = |function: &&Function| **function != *pf && !vfs.contains(function);
    let other = beside.iter().find(is_other).context("another NIC is in the group")?;
    assert_eq!(other.driver().as_deref(), Some("e1000e"));
    assert_eq!(beside.len(), 3, "the PF, its other VF and that NIC: {beside:?}");

    let refused = manager.acquire("dpdk", vf, "vfio-pci", None).expect_err("the group is not to be had");
    let why = manager.ferrule(&["explain", &vf.address, "--driver", "vfio-pci"])?;
    let group = vf.iommu_group().context("it has a group")?;
    for told in [
        format!("its IOMMU group {group} also holds the PF {}, which is never taken", pf.address),
        format!("its IOMMU group {group} also holds {}, which is no VF and is bound to e1000e", other.address),
    ] {
        assert!(refused.message().contains(&told), "{told} in {refused}");
        assert!(why.contains(&told), "{told} in {why}");
    }
    let drivers = [pf, other, vf].map(Function::driver);
    assert_eq!(drivers, [Some("igb".to_owned()), Some("e1000e".to_owned()), None], "nothing was touched");
    assert!(manager.list()?.vfs.iter().all(|vf| vf.state().word() == "free"), "and nothing is lent");

    // A driver of the kernel takes one function of a group and leaves the others.
    manager.acquire("pod", vf, "kernel", None)?;
    assert_eq!(vf.driver().as_deref(), Some("igbvf"));
    manager.release("pod", std::time::Duration::ZERO)?;
    assert_eq!(vf.driver(), None);
    Ok(())
}
