//! VFs whose interface is not where the manager is, and what cannot be asked: that is not "no".

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use sriov_manager::attributes::Attributes;
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::look;
use sriov_manager::policy::PeerCredentials;
use sriov_manager::vfs::{Choice, Place, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };
const UNSEEN: &str = "its interface is in a network namespace that no process, file or mount here leads to";

/// With two VFs, of which the first is bound to the kernel's driver.
fn node() -> (FakeNode, Vfs, PciAddress) {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    let vf = node.vf(0, 0);
    let (kernel, sysfs) = (node.kernel(), node.sysfs());
    kernel.write(&sysfs.file(vf, "driver_override"), "igbvf").unwrap();
    kernel.write(&sysfs.probe_file(), &vf.to_string()).unwrap();
    vfs.rescan();
    (node, vfs, vf)
}

fn request(vf: PciAddress) -> Request {
    Request {
        id: "pod".into(),
        tenant: "a test".into(),
        choice: Choice::Vf(vf),
        place: Place::default(),
        owner: None,
        until: None,
        driver: Some(Driver::VfioPci),
        attributes: Attributes::default(),
        peer: ROOT,
        force: false,
        again: None,
    }
}

#[test]
fn a_vf_whose_interface_is_in_a_namespace_that_nothing_leads_to_is_in_use() {
    let (node, vfs, vf) = node();
    node.hide_netdev(vf);
    let refused = [
        vfs.acquire(&request(vf)).unwrap_err().to_string(),
        vfs.create(node.pf(0), 0).unwrap_err().to_string(),
        vfs.explain(vf, Driver::VfioPci).unwrap()[0].to_string(),
    ];
    for refused in refused {
        assert!(refused.contains(UNSEEN), "{refused}");
    }
    let shown = look::explain(&node.sysfs(), Some(&*node.kernel()), &vf.to_string(), Driver::VfioPci).unwrap();
    assert!(shown.reasons.iter().any(|reason| reason.text.contains(UNSEEN)), "{shown:?}");
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("igbvf"), "it is left alone");
}

#[test]
fn a_lease_whose_interface_is_in_a_namespace_that_nothing_leads_to_is_not_given_back() {
    let (node, vfs, vf) = node();
    vfs.acquire(&Request { driver: Some(Driver::Kernel), ..request(vf) }).unwrap();
    let netdev = node.hide_netdev(vf);
    let refused = vfs.release("pod", Duration::ZERO, ROOT).unwrap_err().to_string();
    assert!(refused.contains(UNSEEN), "{refused}");
    assert_eq!(vfs.facts().leases.len(), 1);
    fs::create_dir(node.sysfs().file(vf, "net").join(netdev)).unwrap();
    vfs.release("pod", Duration::ZERO, ROOT).unwrap();
    assert!(vfs.facts().leases.is_empty());
}

#[test]
fn a_vf_that_has_lost_its_driver_while_somebody_has_it_open_is_in_use() {
    let (node, vfs, vf) = node();
    vfs.acquire(&request(vf)).unwrap();
    drop(vfs);
    let group = node.sysfs().iommu_group(vf).unwrap();
    let nodes = node.sysfs().path("dev/vfio");
    fs::create_dir_all(&nodes).unwrap();
    fs::write(nodes.join(group.to_string()), "").unwrap();
    // As the kernel leaves it while an unbind hangs, whoever called it being dead by now.
    let holder = node.open_vfio(vf, 4242, "testpmd");
    fs::remove_file(node.sysfs().file(vf, "driver")).unwrap();
    let resets = |node: &FakeNode| node.log().iter().filter(|line| line.contains("/reset ")).count();
    let before = resets(&node);
    let vfs = node.open();
    let refused = vfs.release("pod", Duration::ZERO, ROOT).unwrap_err().to_string();
    assert!(refused.contains("(testpmd)"), "{refused}");
    assert_eq!(resets(&node), before, "it is not reset under its holder");
    drop(holder);
    vfs.release("pod", Duration::ZERO, ROOT).unwrap();
    assert!(resets(&node) > before);
}

#[test]
fn a_vf_whose_driver_makes_no_interface_or_has_not_made_it_yet_is_free() {
    let (node, vfs, vf) = node();
    fs::remove_dir_all(node.sysfs().file(vf, "net")).unwrap();
    assert_eq!(vfs.explain(vf, Driver::VfioPci).unwrap(), []);
    // The folder is there a moment before the interface.
    fs::create_dir(node.sysfs().file(vf, "net")).unwrap();
    node.set(Scenario::NetdevComesMeanwhile);
    assert_eq!(vfs.explain(vf, Driver::VfioPci).unwrap(), []);
    vfs.acquire(&request(vf)).unwrap();
}

/// What is there cannot be read from now on, as without a descriptor.
fn spoil(file: &Path) {
    let _ = fs::remove_dir_all(file);
    let _ = fs::remove_file(file);
    symlink(file, file).unwrap();
}

#[test]
fn what_the_host_does_with_an_interface_that_cannot_be_asked_about_may_be_anything() {
    let (node, vfs, vf) = node();
    node.use_by_host(vf, &["it has the address 10.0.0.7/24"]);
    let netdev = node.sysfs().file(vf, "net").join(&node.sysfs().netdevs(vf)[0]);
    spoil(&netdev.join("ifindex"));
    let refused = [vfs.acquire(&request(vf)).unwrap_err(), vfs.create(node.pf(0), 0).unwrap_err()];
    for refused in refused {
        assert!(refused.to_string().contains("look for the interface of 0000:02:10.0"), "{refused}");
    }
    let shown = look::explain(&node.sysfs(), Some(&*node.kernel()), &vf.to_string(), Driver::VfioPci).unwrap();
    assert!(shown.reasons[0].text.contains("is not known"), "{shown:?}");
    // It has another name at each look.
    fs::remove_file(netdev.join("ifindex")).unwrap();
    let refused = vfs.acquire(&request(vf)).unwrap_err().to_string();
    assert!(refused.contains("has another name at each look"), "{refused}");
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("igbvf"), "it is left alone");
}

#[test]
fn nodes_of_uio_that_cannot_be_looked_for_may_be_open() {
    let (node, vfs, vf) = node();
    let driver = node.sysfs().file(vf, "driver");
    fs::remove_file(&driver).unwrap();
    symlink("../../drivers/uio_pci_generic", driver).unwrap();
    vfs.rescan();
    assert_eq!(vfs.explain(vf, Driver::VfioPci).unwrap(), [], "nobody has one open");
    spoil(&node.sysfs().file(vf, "uio"));
    let refused = [vfs.acquire(&request(vf)).unwrap_err(), vfs.create(node.pf(0), 0).unwrap_err()];
    for refused in refused {
        assert!(refused.to_string().contains("look for the nodes of 0000:02:10.0"), "{refused}");
    }
}

#[test]
fn a_group_that_cannot_be_looked_at_is_as_it_was() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    let [vf, member] = [node.vf(0, 0), node.vf(0, 1)];
    let group = |vfs: &Vfs| vfs.vf_view(vf).unwrap().vf.group_with;
    assert_eq!(group(&vfs), [member]);
    spoil(&node.sysfs().file(vf, "iommu_group/devices"));
    vfs.rescan();
    assert_eq!(group(&vfs), [member]);
}

#[test]
fn a_pf_whose_interface_cannot_be_asked_about_is_not_one_without() {
    let (node, vfs, _) = node();
    let vf = node.vf(0, 1);
    spoil(&node.sysfs().file(node.pf(0), "net").join("ens1f0").join("ifindex"));
    let refused = vfs.acquire(&request(vf)).unwrap_err();
    assert!(matches!(refused, VfError::Untold { .. }), "{refused}");
}
