//! What happens to a node while VFs are lent: the host uses some itself, PFs move and are renamed, the disk fills up.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sriov_manager_client::v1::{Attributes, Vlan};
use tonic::{Code, Status};

use crate::eventually;
use crate::lab::manager::{Manager, ManagerOptions};
use crate::lab::pci::{Function, VFS_MAX};
use crate::lab::scenario::Lab;
use crate::lab::xdp;

use super::{ip, vf_states};

/// An address with the default route, a bond, a bridge, a VLAN, a macvlan, an XDP program: each is named, and its VF neither
/// lent nor removed.
pub fn used_by_host(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    // Its VFs have an address only while it is up.
    ip(&["link", "set", &pf.interface().context("a PF has an interface")?, "up"])?;
    pf.set_vfs(VFS_MAX)?;
    let vfs = pf.vfs();
    let names: Vec<_> = vfs.iter().map(Function::wait_for_interface).collect();
    let [addressed, slave, port, tagged, lower, filtered, _] = &names[..] else { bail!("not 7: {names:?}") };
    for name in [addressed, tagged, lower, filtered] {
        ip(&["link", "set", name, "up"])?;
    }
    ip(&["address", "add", "192.0.2.7/24", "dev", addressed])?;
    ip(&["route", "add", "default", "via", "192.0.2.1", "dev", addressed])?;
    ip(&["link", "add", "bond7", "type", "bond"])?;
    ip(&["link", "set", slave, "master", "bond7"])?;
    ip(&["link", "add", "bridge7", "type", "bridge"])?;
    ip(&["link", "set", port, "master", "bridge7"])?;
    ip(&["link", "add", "link", tagged, "name", "vlan7", "type", "vlan", "id", "7"])?;
    ip(&["link", "add", "link", lower, "name", "macvlan7", "type", "macvlan"])?;
    xdp::attach(&lab.state(), filtered)?;

    let manager = Manager::start(lab, &ManagerOptions::default())?;
    let uses = [
        "it has the address 192.0.2.7/24, the default route goes over it",
        "bond7 is made of it",
        "bridge7 is made of it",
        "vlan7 is made of it",
        "macvlan7 is made of it",
        "an XDP program is attached to it",
    ];
    for ((vf, name), told) in vfs.iter().zip(&names).zip(uses) {
        let refused = manager.acquire("pod", vf, "vfio-pci", None).expect_err("the host uses it");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let told = format!("the host uses its interface {name}: {told}");
        assert!(refused.message().contains(&told), "{told} in {refused}");
        let reasons = manager.explain(vf)?;
        assert!(reasons.iter().any(|reason| reason.contains(&told)), "{told} in {reasons:?}");
        assert_eq!(vf.driver().as_deref(), Some("igbvf"), "it is left alone");
    }
    let created = manager.create(&lab.pfs[..1], 0)?;
    assert!(created[0].error.contains("the host uses its interface"), "{created:?}");
    assert_eq!(pf.vfs().len(), VFS_MAX);
    manager.acquire("pod", &vfs[6], "vfio-pci", None)?;
    manager.release("pod", Duration::ZERO)?;

    // Whoever means it gets it, and what it was made of loses it.
    manager.ferrule(&["acquire", "pod", "--vf", &vfs[2].address, "--driver", "vfio-pci", "--force"])?;
    assert_eq!(vfs[2].driver().as_deref(), Some("vfio-pci"));
    manager.release("pod", Duration::ZERO)?;
    for upper in ["bond7", "bridge7", "vlan7", "macvlan7"] {
        ip(&["link", "delete", upper])?;
    }
    Ok(())
}

/// The interface of the PF goes to another network namespace during a lease: a release keeps the VF until it can be told what
/// to clean.
pub fn pf_away(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs[..1], 2)?;
    let [vf, other] = &pf.vfs()[..] else { bail!("the PF has two VFs") };
    let interface = pf.interface().context("a PF has an interface")?;
    let before = vf_states(&interface)?;
    manager.acquire("pod", vf, "vfio-pci", Some(vlan(7)))?;
    ip(&["netns", "add", "away"])?;
    ip(&["link", "set", &interface, "netns", "away"])?;

    let refused = manager.release("pod", Duration::ZERO).expect_err("the PF cannot be asked");
    assert!(refused.message().contains("not known now"), "{refused}");
    let shown = manager.vf(vf)?;
    assert_eq!(
        shown.lease.map(|lease| lease.id),
        Some("pod".to_owned()),
        "nobody gets it with the VLAN of its last user"
    );
    let refused = manager.acquire("next", vf, "vfio-pci", None).expect_err("it is not free");
    assert!(refused.message().contains("pod"), "{refused}");
    let refused = manager.acquire("other", other, "vfio-pci", Some(vlan(9))).expect_err("the PF cannot be told");
    assert_eq!(refused.code(), Code::FailedPrecondition, "it is a matter of the node: {refused}");
    assert_eq!(other.driver(), None);

    ip(&["-n", "away", "link", "set", &interface, "netns", "1"])?;
    ip(&["netns", "delete", "away"])?;
    eventually("the VF can be cleaned now", || match manager.vf(vf) {
        Ok(vf) if vf.lease.is_some() => manager.release("pod", Duration::ZERO).is_ok(),
        vf => vf.is_ok(),
    });
    assert_eq!(vf_states(&interface)?, before, "the VLAN went with its user");
    manager.acquire("next", vf, "vfio-pci", None)?;
    manager.release("next", Duration::ZERO)?;
    Ok(())
}

/// Two PFs get each other's names while a manager runs: what is asked of a VF is told to its own PF.
pub fn names_swapped(lab: &Lab) -> Result<()> {
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs, 1)?;
    let vfs = lab.pfs.iter().map(|pf| pf.vfs()[0].clone()).collect::<Vec<_>>();
    manager.acquire("pod", &vfs[0], "vfio-pci", Some(vlan(7)))?;
    let names = || lab.pfs.iter().map(|pf| pf.interface().context("a PF has an interface")).collect::<Result<Vec<_>>>();
    let before = names()?;
    let [first, second] = &before[..] else { bail!("two PFs: {before:?}") };
    let swap = || -> Result<()> {
        for name in [first, second] {
            ip(&["link", "set", name, "down"])?;
        }
        for (from, to) in [(first.as_str(), "swapped"), (second, first), ("swapped", second)] {
            ip(&["link", "set", from, "name", to])?;
        }
        Ok(())
    };
    swap()?;
    assert_eq!(names()?, [second.clone(), first.clone()]);
    // A change of the lease, a lease of the other PF, a restart, and the way back: all with the names swapped.
    manager.acquire("pod", &vfs[0], "vfio-pci", Some(vlan(8)))?;
    manager.acquire("other", &vfs[1], "vfio-pci", Some(vlan(9)))?;
    let vlans = || -> Result<Vec<Value>> {
        let of = |name: &String| Ok(vf_states(name)?[0]["vlan_list"][0]["vlan"].clone());
        names()?.iter().map(of).collect()
    };
    assert_eq!(vlans()?, [8, 9]);
    manager.kill();
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    for (vf, id) in vfs.iter().zip(["pod", "other"]) {
        let lease = manager.vf(vf)?.lease.with_context(|| format!("{} is lent", vf.address))?;
        assert_eq!((lease.id.as_str(), lease.fault.as_str()), (id, ""));
        assert_eq!(manager.vf(vf)?.pf_name, names()?[usize::from(id == "other")]);
    }
    manager.release("pod", Duration::ZERO)?;
    assert_eq!(vlans()?[1], 9, "the other one keeps its own");
    manager.release("other", Duration::ZERO)?;
    swap()
}

/// A PF and a VF are named by other names that their interfaces have.
pub fn other_name(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    let interface = pf.interface().context("a PF has an interface")?;
    ip(&["link", "property", "add", "dev", &interface, "altname", "storage-of-the-first-rack"])?;
    let policies =
        "pools:\n  - name: rack\n    pfs: [{ name: storage-of-the-first-rack }]\n    num_vfs: 2\n".to_owned();
    let manager = Manager::start(lab, &ManagerOptions { policies: Some(policies), ..ManagerOptions::default() })?;
    assert_eq!(pf.vfs().len(), 2, "the policy found its PF");
    let told = manager.ferrule(&["create", "storage-of-the-first-rack=1"])?;
    assert!(told.contains("1 VF, 2 before"), "{told}");
    let vf = &pf.vfs()[0];
    vf.bind("igbvf")?;
    ip(&["link", "property", "add", "dev", &vf.wait_for_interface(), "altname", "net1-of-the-first-rack"])?;
    let told = manager.ferrule(&["explain", "net1-of-the-first-rack"])?;
    assert!(told.contains("can be borrowed"), "{told}");
    ip(&["link", "property", "del", "dev", &interface, "altname", "storage-of-the-first-rack"])?;
    Ok(())
}

/// With a disk that is full everything is shown, nothing is lent, and nothing that was lent is lost.
pub fn full_disk(lab: &Lab) -> Result<()> {
    let pf = &lab.pfs[0];
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    manager.create(&lab.pfs[..1], 2)?;
    let [kept, other] = &pf.vfs()[..] else { bail!("the PF has two VFs") };
    manager.acquire("kept", kept, "vfio-pci", Some(vlan(7)))?;
    let filler = lab.state().join("filler");
    fill(&filler)?;

    // Some records have room in the last block of the file.
    let rounds = 0..50;
    let lend =
        || manager.acquire("other", other, "vfio-pci", None).and_then(|_| manager.release("other", Duration::ZERO));
    let refused = rounds.map(|_| lend()).find_map(Result::err).context("the journal is never full")?;
    assert!(refused.message().contains("No space left on device"), "{refused}");
    let whole = |manager: &Manager| -> Result<(), Status> {
        let lease = manager.vf(kept)?.lease.ok_or_else(|| Status::data_loss("the lease is gone"))?;
        assert_eq!((lease.id.as_str(), lease.stage().word()), ("kept", "lent"));
        assert_eq!(kept.driver().as_deref(), Some("vfio-pci"));
        let shown = manager.vf(other)?;
        let is_lent = shown.lease.is_some();
        assert!(is_lent || other.driver().is_none(), "not lent, and as it was: {shown:?}");
        manager.explain(other).map(drop)
    };
    whole(&manager)?;
    manager.kill();
    let manager = Manager::start(lab, &ManagerOptions::default())?;
    whole(&manager)?;
    let refused = manager.acquire("third", other, "vfio-pci", None).expect_err("there is still no room");
    assert!(!refused.message().is_empty(), "{refused}");
    whole(&manager)?;

    std::fs::remove_file(&filler).context("make room again")?;
    let left = manager.vf(other)?.lease.map(|lease| lease.id);
    for id in left.iter().map(String::as_str) {
        manager.release(id, Duration::ZERO)?;
    }
    manager.acquire("third", other, "vfio-pci", None)?;
    manager.release("third", Duration::ZERO)?;
    manager.release("kept", Duration::ZERO)?;
    assert!(manager.list()?.vfs.iter().all(|vf| vf.state().word() == "free"));
    Ok(())
}

/// Fills the file system that a file is on.
fn fill(path: &std::path::Path) -> Result<()> {
    let mut file = File::create(path).context("make a file that fills the disk")?;
    for size in [1 << 20, 4096, 1] {
        let bytes = vec![0; size];
        while file.write_all(&bytes).is_ok() {}
    }
    // What could not be written is not there; the rest is on the disk now, and its room is really taken.
    let _ = file.sync_all();
    Ok(())
}

fn vlan(id: u32) -> Attributes {
    Attributes { vlan: Some(Vlan { id, ..Vlan::default() }), ..Attributes::default() }
}
