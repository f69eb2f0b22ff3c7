//! Leases after a power cut, with another number of VFs in the policies each time.

use std::time::Duration;

use anyhow::{Context, Result};
use sriov_manager_client::v1::{Attributes, ListResponse};

use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::Function;
use crate::lab::scenario::Lab;

use super::vf_states;

pub fn four_vfs(lab: &Lab) -> Result<()> {
    let manager = start(lab, 4)?;
    let vfs = lab.pfs[0].vfs();
    assert_eq!(vfs.len(), 4, "the policies want them");
    let mac = Attributes { mac: Some(MAC.to_owned()), ..Attributes::default() };
    manager.acquire("kept", &vfs[1], "vfio-pci", Some(mac))?;
    manager.acquire("lost", &vfs[3], "kernel", None)?;
    Ok(())
}

pub fn only_two(lab: &Lab) -> Result<()> {
    assert!(lab.pfs[0].vfs().is_empty(), "the power cut took them");
    let manager = start(lab, 2)?;
    let vfs = lab.pfs[0].vfs();
    assert_eq!(vfs.len(), 2);
    let list = manager.list()?;
    is_kept(lab, &list, &vfs[1])?;
    assert_eq!(list.lost.len(), 1, "a lease without its VF is not forgotten");
    assert_eq!(list.lost[0].id, "lost");
    assert!(list.lost[0].fault.contains("gone"), "{:?}", list.lost);
    Ok(())
}

pub fn four_again(lab: &Lab) -> Result<()> {
    let manager = start(lab, 4)?;
    let vfs = lab.pfs[0].vfs();
    assert_eq!(vfs.len(), 4);
    let list = manager.list()?;
    is_kept(lab, &list, &vfs[1])?;
    assert!(list.lost.is_empty(), "{:?}", list.lost);
    assert_eq!(vfs[3].driver().as_deref(), Some("igbvf"));
    for (id, vf) in [("kept", &vfs[1]), ("lost", &vfs[3])] {
        let lease = manager.vf(vf)?.lease.with_context(|| format!("{} is lent", vf.address))?;
        assert_eq!((lease.id.as_str(), lease.stage().word(), lease.fault.as_str()), (id, "lent", ""));
        manager.release(id, Duration::ZERO)?;
    }
    assert!(manager.list()?.vfs.iter().all(|vf| vf.state().word() == "free"));
    Ok(())
}

fn is_kept(lab: &Lab, list: &ListResponse, vf: &Function) -> Result<()> {
    let listed = list.vfs.iter().find(|listed| listed.address == vf.address).context("the VF is listed")?;
    let lease = listed.lease.as_ref().context("the VF is lent")?;
    assert_eq!((lease.id.as_str(), lease.stage().word(), lease.fault.as_str()), ("kept", "lent", ""));
    assert_eq!(vf.driver().as_deref(), Some("vfio-pci"));
    let interface = lab.pfs[0].interface().context("a PF has an interface")?;
    assert_eq!(vf_states(&interface)?[1]["address"], MAC);
    Ok(())
}

fn start(lab: &Lab, count: u32) -> Result<Manager> {
    let pf = &lab.pfs[0].address;
    let policies = format!("pools:\n  - name: lab\n    pfs: [{{ address: \"{pf}\" }}]\n    num_vfs: {count}\n");
    Manager::start(lab, &ManagerOptions { policies: Some(policies), ..ManagerOptions::default() })
}

const MAC: &str = "02:00:00:00:03:01";
