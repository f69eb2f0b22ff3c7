//! Every refusal of the kernel: a clear error, and everything as it was.

use std::time::Duration;

use nix::errno::Errno;
use sriov_manager::attributes::{Attributes, LinkState, Vlan};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::policy::PeerCredentials;
use sriov_manager::vfs::{Choice, Place, Request};
use sriov_manager::{Driver, PciAddress, Vfs};

fn request(vf: PciAddress, driver: Driver, attributes: Attributes) -> Request {
    let peer = PeerCredentials { uid: 0, gid: 0 };
    Request {
        id: "lease".into(),
        tenant: "a test".into(),
        choice: Choice::Vf(vf),
        place: Place::default(),
        owner: None,
        until: None,
        driver: Some(driver),
        attributes,
        peer,
        force: false,
        again: None,
    }
}

/// A node with VFs of which the first is the kernel's: something that a failure could change.
fn node() -> (FakeNode, Vfs, PciAddress) {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 3).expect("a node that is healthy does it");
    let vf = node.vf(0, 0);
    let kernel = node.kernel();
    kernel.write(&node.sysfs().file(vf, "driver_override"), "igbvf").expect("a node that is healthy does it");
    kernel.write(&node.sysfs().probe_file(), &vf.to_string()).expect("a node that is healthy does it");
    kernel.write(&node.sysfs().file(vf, "driver_override"), "\n").expect("a node that is healthy does it");
    vfs.rescan();
    (node, vfs, vf)
}

#[track_caller]
fn refused(node: &FakeNode, vfs: &Vfs, what: &str, work: impl FnOnce() -> String) {
    let before = node.fingerprint();
    let error = work();
    assert!(error.contains(what), "`{what}` in: {error}");
    assert_eq!(node.fingerprint(), before, "after: {error}");
    assert!(vfs.facts().leases.is_empty() && vfs.facts().resizes.is_empty(), "{:?}", vfs.facts());
    node.heal();
    let vf = node.vf(0, 1);
    vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).expect("a node that is healthy does it");
    vfs.release("lease", Duration::ZERO, PeerCredentials { uid: 0, gid: 0 }).expect("a node that is healthy does it");
}

#[test]
fn the_made_up_kernel_refuses_like_the_real_one() {
    let (node, _vfs, vf) = node();
    let kernel = node.kernel();
    let write =
        |file: &str, value: &str| kernel.write(&node.sysfs().path(file), value).err().map(|refusal| refusal.errno);
    let pf = format!("sys/bus/pci/devices/{}", node.pf(0));
    assert_eq!(write(&format!("{pf}/sriov_numvfs"), "x"), Some(Errno::EINVAL));
    assert_eq!(write(&format!("{pf}/sriov_numvfs"), "8"), Some(Errno::ERANGE));
    assert_eq!(write(&format!("{pf}/sriov_numvfs"), "5"), Some(Errno::EBUSY));
    assert_eq!(write(&format!("{pf}/sriov_numvfs"), "3"), None);
    assert_eq!(write("sys/bus/pci/drivers/vfio-pci/unbind", &vf.to_string()), Some(Errno::ENODEV));
    assert_eq!(write("sys/bus/pci/drivers_probe", "0000:ff:00.0"), Some(Errno::ENODEV));
    write(&format!("{pf}/sriov_drivers_autoprobe"), "0");
    assert_eq!(write("sys/bus/pci/drivers_probe", &node.vf(0, 1).to_string()), Some(Errno::ENODEV));
}

#[test]
fn a_number_that_the_driver_refuses_brings_the_old_vfs_back_on_their_drivers() {
    for (errno, cure) in [
        (Errno::EINVAL, "dmesg"),
        (Errno::EBUSY, "somebody else changed the number"),
        (Errno::ENOMEM, "pci=realloc"),
        (Errno::EPERM, "dmesg"),
    ] {
        let (node, vfs, vf) = node();
        assert_eq!(node.sysfs().driver(vf).as_deref(), Some("igbvf"));
        node.set(Scenario::CountRefused(3, errno as i32));
        refused(&node, &vfs, cure, || vfs.create(node.pf(0), 5).unwrap_err().to_string());
    }
}

#[test]
fn a_pf_that_refuses_its_old_number_too_is_told_as_not_undone() {
    let (node, vfs, _) = node();
    node.set(Scenario::CountRefused(0, Errno::EINVAL as i32));
    let error = vfs.create(node.pf(0), 5).unwrap_err().to_string();
    assert!(error.contains("could not be undone"), "{error}");
    node.heal();
    vfs.create(node.pf(0), 3).unwrap();
    assert_eq!(vfs.view().vfs.len(), 3);
}

#[test]
fn a_number_that_the_driver_refuses_from_zero_changes_nothing() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    let before = node.fingerprint();
    node.set(Scenario::CountRefused(0, Errno::ENOMEM as i32));
    let error = vfs.create(node.pf(0), 5).unwrap_err().to_string();
    assert!(error.starts_with("set the number of VFs of 0000:02:00.0 to 5: "), "{error}");
    assert!(error.contains("pci=realloc"), "{error}");
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn a_driver_that_makes_fewer_is_caught_and_the_old_vfs_come_back() {
    let (node, vfs, _) = node();
    node.set(Scenario::CountAtMost(4));
    refused(&node, &vfs, "to 5: there are 4", || vfs.create(node.pf(0), 5).unwrap_err().to_string());
}

#[test]
fn more_vfs_than_the_pf_offers_are_refused_before_anything_is_written() {
    let (node, vfs, _) = node();
    refused(&node, &vfs, "it offers at most 7", || vfs.create(node.pf(0), 8).unwrap_err().to_string());
}

#[test]
fn a_vf_that_no_driver_takes_goes_back_to_the_driver_that_it_had() {
    let (node, vfs, _) = node();
    let other = node.vf(0, 2);
    node.set(Scenario::NobodyProbes);
    refused(&node, &vfs, "bind 0000:02:10.4 to vfio-pci: no driver took it", || {
        vfs.acquire(&request(other, Driver::VfioPci, Attributes::default())).unwrap_err().to_string()
    });
}

#[test]
fn a_driver_that_nobody_names_is_not_found_while_autoprobe_is_off() {
    let (node, vfs, _) = node();
    node.give_pf_an_odd_driver(node.pf(0));
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_drivers_autoprobe"), "0").unwrap();
    vfs.rescan();
    let vf = node.vf(0, 1);
    refused(&node, &vfs, "(ENODEV); with `sriov_drivers_autoprobe` off only a named driver binds", || {
        vfs.acquire(&request(vf, Driver::Kernel, Attributes::default())).unwrap_err().to_string()
    });
}

#[test]
fn a_group_with_a_nic_of_the_kernel_in_it_is_refused_and_the_nic_is_named() {
    let (node, vfs, _) = node();
    let (vf, nic) = (node.vf(0, 1), PciAddress::new(0, 9, 0, 1));
    node.put_nic_in_group(vf, nic);
    vfs.rescan();
    let before = node.fingerprint();
    let error = vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap_err().to_string();
    assert!(error.contains("also holds 0000:09:00.1, which is no VF and is bound to e1000e"), "{error}");
    assert_eq!(node.fingerprint(), before);
    assert!(vfs.facts().leases.is_empty());
    vfs.acquire(&request(vf, Driver::Kernel, Attributes::default())).unwrap();
}

#[test]
fn a_driver_that_is_not_loaded_is_named_with_the_command_that_loads_it() {
    let (node, vfs, vf) = node();
    std::fs::remove_dir_all(node.sysfs().path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let before = node.fingerprint();
    let error = vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap_err().to_string();
    assert!(error.contains("`modprobe vfio-pci`"), "{error}");
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn a_machine_without_an_iommu_is_told_how_to_get_one() {
    let (node, vfs, vf) = node();
    std::fs::remove_file(node.sysfs().file(vf, "iommu_group")).unwrap();
    vfs.rescan();
    let before = node.fingerprint();
    let error = vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap_err().to_string();
    assert!(error.contains("intel_iommu=on"), "{error}");
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn an_attribute_that_the_pf_cannot_set_leaves_the_vf_on_its_driver() {
    let (node, vfs, vf) = node();
    node.set(Scenario::LinkStateUnsupported);
    let attributes = Attributes {
        vlan: Some(Vlan { id: 5, ..Vlan::default() }),
        link_state: Some(LinkState::Enable),
        ..Attributes::default()
    };
    refused(&node, &vfs, "set link state enable of 0000:02:10.0", || {
        vfs.acquire(&request(vf, Driver::VfioPci, attributes)).unwrap_err().to_string()
    });
}

#[test]
fn a_pf_that_ignores_a_setting_is_caught_by_reading_back() {
    let (node, vfs, _) = node();
    node.set(Scenario::SettingIgnored);
    let attributes = Attributes { vlan: Some(Vlan { id: 5, ..Vlan::default() }), ..Attributes::default() };
    refused(&node, &vfs, "there would still be to do: set vlan 5", || {
        vfs.acquire(&request(node.vf(0, 1), Driver::None, attributes)).unwrap_err().to_string()
    });
}

#[test]
fn a_vf_in_reset_is_asked_again() {
    let (node, vfs, vf) = node();
    node.set(Scenario::SettingAgain(3));
    let attributes = Attributes { vlan: Some(Vlan { id: 5, ..Vlan::default() }), ..Attributes::default() };
    vfs.acquire(&request(vf, Driver::VfioPci, attributes)).unwrap();
}

#[test]
fn a_vf_that_cannot_be_reset_is_taken_back_all_the_same() {
    let (node, vfs, vf) = node();
    let before = node.fingerprint();
    node.set(Scenario::ResetUnsupported);
    vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap();
    vfs.release("lease", Duration::ZERO, PeerCredentials { uid: 0, gid: 0 }).unwrap();
    let without_mac =
        |text: &str| text.lines().map(|l| l.split(" Some(VfState").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(without_mac(&node.fingerprint()), without_mac(&before));
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_written() {
    let (node, vfs, vf) = node();
    let log = node.log().len();
    for attributes in [
        Attributes { vlan: Some(Vlan { id: 4095, ..Vlan::default() }), ..Attributes::default() },
        Attributes { mtu: Some(9000), ..Attributes::default() },
    ] {
        vfs.acquire(&request(vf, Driver::VfioPci, attributes)).unwrap_err();
    }
    for id in ["", "a\nb"] {
        let bad = Request { id: id.into(), ..request(vf, Driver::None, Attributes::default()) };
        vfs.acquire(&bad).unwrap_err();
    }
    assert_eq!(node.log().len(), log);
}

#[test]
fn what_is_not_there_is_named() {
    let (node, vfs, _) = node();
    let vf = PciAddress::new(0, 0xff, 0, 0);
    let error = vfs.acquire(&request(vf, Driver::None, Attributes::default())).unwrap_err().to_string();
    assert!(error.contains("there is no VF 0000:ff:00.0"), "{error}");
    let error = vfs.create(vf, 1).unwrap_err().to_string();
    assert!(error.contains("there is no PF 0000:ff:00.0"), "{error}");
    let error = vfs.release("nobody", Duration::ZERO, PeerCredentials { uid: 0, gid: 0 }).unwrap_err().to_string();
    assert!(error.contains("there is no lease nobody"), "{error}");
    drop(node);
}
