//! Leases after a power cut, with another number of VFs in the policies each time, or with cards in other slots.

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
    is_kept(&lab.pfs[0], &list)?;
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
    is_kept(&lab.pfs[0], &list)?;
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

/// A lease of a VF of the first card.
pub fn on_its_card(lab: &Lab) -> Result<()> {
    let manager = start_on(lab, &lab.pfs, 4)?;
    let mac = Attributes { mac: Some(MAC.to_owned()), ..Attributes::default() };
    manager.acquire("kept", &lab.pfs[0].vfs()[1], "vfio-pci", Some(mac))?;
    Ok(())
}

/// The two cards are at each other's addresses: the lease goes with its card, and the VF that is now where it was is nobody's.
pub fn on_its_card_elsewhere(lab: &Lab) -> Result<()> {
    let manager = start_on(lab, &lab.pfs, 4)?;
    is_only_at(lab, &manager, [1, 0])
}

/// The two cards are where they were, and so is the lease.
pub fn on_its_card_again(lab: &Lab) -> Result<()> {
    let manager = start_on(lab, &lab.pfs, 4)?;
    is_only_at(lab, &manager, [0, 1])?;
    manager.release("kept", Duration::ZERO)?;
    assert!(manager.list()?.vfs.iter().all(|vf| vf.state().word() == "free"));
    Ok(())
}

/// The lease is whole on one PF, and the same VF of the other one is left alone.
fn is_only_at(lab: &Lab, manager: &Manager, [here, other]: [usize; 2]) -> Result<()> {
    let list = manager.list()?;
    assert!(list.lost.is_empty(), "{:?}", list.lost);
    is_kept(&lab.pfs[here], &list)?;
    let (pf, vf) = (&lab.pfs[other], &lab.pfs[other].vfs()[1]);
    assert_eq!(manager.vf(vf)?.lease, None);
    assert_eq!(vf.driver(), None);
    let interface = pf.interface().context("a PF has an interface")?;
    assert_ne!(vf_states(&interface)?[1]["address"], MAC);
    Ok(())
}

/// The lease of the second VF of a PF is as it was made.
fn is_kept(pf: &Function, list: &ListResponse) -> Result<()> {
    let vf = &pf.vfs()[1];
    let listed = list.vfs.iter().find(|listed| listed.address == vf.address).context("the VF is listed")?;
    let lease = listed.lease.as_ref().context("the VF is lent")?;
    assert_eq!((lease.id.as_str(), lease.stage().word(), lease.fault.as_str()), ("kept", "lent", ""));
    assert_eq!(vf.driver().as_deref(), Some("vfio-pci"));
    let interface = pf.interface().context("a PF has an interface")?;
    assert_eq!(vf_states(&interface)?[1]["address"], MAC);
    Ok(())
}

fn start(lab: &Lab, count: u32) -> Result<Manager> {
    start_on(lab, &lab.pfs[..1], count)
}

/// Starts one whose policies want so many VFs of each of these PFs.
fn start_on(lab: &Lab, pfs: &[Function], count: u32) -> Result<Manager> {
    let pfs: Vec<_> = pfs.iter().map(|pf| format!("{{ address: \"{}\" }}", pf.address)).collect();
    let policies = format!("pools:\n  - name: lab\n    pfs: [{}]\n    num_vfs: {count}\n", pfs.join(", "));
    Manager::start(lab, &ManagerOptions { policies: Some(policies), ..ManagerOptions::default() })
}

const MAC: &str = "02:00:00:00:03:01";
