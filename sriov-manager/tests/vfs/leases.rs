//! What a lease keeps through drift, failures, PFs that do not tell, strangers and odd names.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use sriov_manager::attributes::{Attributes, LinkState, Mac, VfChange, Vlan};
use sriov_manager::executor::{Observer, Point};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::Stage;
use sriov_manager::plan::Step;
use sriov_manager::policy::{PeerCredentials, PfSelector, Policies, Pool};
use sriov_manager::vfs::{Caller, Choice, HostVfs, Options, Place, Reason, Remains, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };
const USER: PeerCredentials = PeerCredentials { uid: 1000, gid: 1000 };

fn request(vf: PciAddress, driver: Driver, attributes: Attributes) -> Request {
    Request {
        id: "pod".to_owned(),
        tenant: "a test".to_owned(),
        choice: Choice::Vf(vf),
        driver: Some(driver),
        attributes,
        peer: ROOT,
        force: false,
        again: None,
        place: Place::default(),
        owner: None,
        until: None,
    }
}

fn vlan(id: u16) -> Attributes {
    Attributes { vlan: Some(Vlan { id, ..Vlan::default() }), ..Attributes::default() }
}

fn node(pfs: u8, vfs: u32) -> (FakeNode, Vfs) {
    let node = FakeNode::new(pfs, 7);
    let owner = owner(&node);
    for pf in 0..pfs {
        owner.create(node.pf(pf), vfs).expect("a node that is healthy does it");
    }
    (node, owner)
}

/// With a pool of all VFs.
fn owner(node: &FakeNode) -> Vfs {
    let pfs = vec![PfSelector { driver: Some("igb".into()), ..PfSelector::default() }];
    let policies = Policies { pools: vec![Pool { name: "all".into(), pfs, ..Pool::default() }] };
    Vfs::open(Options { policies, ..node.options() }).expect("a made-up node can be owned")
}

fn of_pool(id: &str, driver: Driver) -> Request {
    let any = PciAddress::new(0, 0, 0, 0);
    Request { id: id.into(), choice: Choice::pool("all"), ..request(any, driver, Attributes::default()) }
}

fn release(vfs: &Vfs, lease: &str) -> Result<(), VfError> {
    vfs.release(lease, Duration::ZERO, ROOT).map(drop)
}

/// Something else than the manager tells a PF about a VF.
fn drift(node: &FakeNode, pf: u8, index: u32, change: VfChange) {
    let (_, interface) = node.sysfs().interface(node.pf(pf)).expect("the PF has an interface");
    node.kernel().set_vf(interface, index, change).expect("a node that is healthy does it");
}

fn vlan_of(node: &FakeNode, pf: u8, index: u32) -> u16 {
    let (_, interface) = node.sysfs().interface(node.pf(pf)).expect("the PF has an interface");
    node.kernel().pf_report(interface).expect("a node that is healthy does it").vfs[&index].vlan.id
}

// Drift, and tries that did not end.

#[test]
fn a_repeat_after_drift_that_the_pf_refuses_leaves_the_lease_lent() {
    let (node, vfs) = node(1, 2);
    let vf = node.vf(0, 0);
    let mac = Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..Attributes::default() };
    let asked = request(vf, Driver::VfioPci, mac);
    vfs.acquire(&asked).unwrap();
    let file = node.open_vfio(vf, 11, "qemu");
    drift(&node, 0, 0, VfChange::Mac(Mac([2, 0, 0, 0, 0, 66])));
    node.set(Scenario::MacRefused);
    vfs.acquire(&asked).unwrap_err();
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"), "the VF was not taken from under its holder");
    let lease = vfs.facts().leases[&vf].clone();
    assert_eq!((lease.wanted.attributes, lease.id.as_str()), (asked.attributes.clone(), "pod"));
    node.heal();
    vfs.acquire(&asked).unwrap();
    assert!(node.fingerprint().contains("Mac([2, 0, 0, 0, 0, 9])"), "and is made good when the PF lets us");
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Lent);
    drop(file);
    release(&vfs, "pod").unwrap();
}

#[test]
fn what_was_not_recorded_in_the_end_is_not_told_as_done() {
    let (node, vfs) = node(1, 2);
    let before = node.fingerprint();
    let asked = request(node.vf(0, 0), Driver::VfioPci, vlan(7));
    // The first record, and the undoing of what followed it, are on the disk; the last one is not.
    let fails_at = |number: usize| {
        let limited = node.open_with_journal_that_fails_at(number);
        let error = limited.acquire(&asked).unwrap_err();
        assert!(matches!(error, VfError::Journal(_)), "{error}");
        limited
    };
    drop(vfs);
    let vfs = fails_at(2);
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].stage, Stage::New);
    // A retry is a new try, and not told that all was well.
    let steps = vfs.acquire(&asked).unwrap().steps;
    assert!(!steps.is_empty());
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].stage, Stage::Lent);
    vfs.rescan();
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].stage, Stage::Lent, "and nothing takes it away later");
    release(&vfs, "pod").unwrap();
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn a_worker_that_dies_in_a_try_leaves_one_that_did_not_end_to_the_same_manager() {
    let node = FakeNode::new(1, 7);
    let has_died = AtomicBool::new(false);
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if matches!(point, Point::After(Step::Probe { .. })) && !has_died.swap(true, Ordering::Relaxed) {
            // Without the message of a panic: this one is meant.
            resume_unwind(Box::new("a made-up defect"));
        }
    });
    let vfs = Vfs::open(Options { observer: Some(observer), ..node.options() }).unwrap();
    vfs.create(node.pf(0), 1).unwrap();
    let (vf, before) = (node.vf(0, 0), node.fingerprint());
    let asked = request(vf, Driver::VfioPci, vlan(7));
    catch_unwind(AssertUnwindSafe(|| vfs.acquire(&asked))).unwrap_err();
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::New);
    // It was bound when the worker died: told as done without a try of its own, the VLAN would be missing and the lease undone later.
    assert!(!vfs.acquire(&asked).unwrap().steps.is_empty());
    vfs.rescan();
    assert_eq!((&vfs.facts().leases[&vf].stage, vlan_of(&node, 0, 0)), (&Stage::Lent, 7));
    release(&vfs, "pod").unwrap();
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn a_way_back_waits_for_whoever_came_to_hold_the_vf() {
    let (node, vfs) = node(1, 2);
    let vf = node.vf(0, 0);
    drop(vfs);
    let vfs = node.open_with_journal_that_fails_at(2);
    vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap_err();
    let file = node.open_vfio(vf, 11, "qemu");
    vfs.rescan();
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"));
    let lease = vfs.facts().leases[&vf].clone();
    assert!(lease.fault.clone().unwrap().contains("process 11 (qemu)"), "{lease:?}");
    drop(file);
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
}

// PFs that do not tell.

#[test]
fn a_release_while_the_pf_is_away_keeps_the_vf_until_it_can_be_cleaned() {
    let (node, vfs) = node(1, 1);
    let before = node.fingerprint();
    vfs.acquire(&request(node.vf(0, 0), Driver::None, vlan(7))).unwrap();
    node.move_pf_away(node.pf(0));
    let error = release(&vfs, "pod").unwrap_err();
    assert!(error.to_string().contains("bring its interface back"), "{error}");
    let refused = vfs.acquire(&of_pool("next", Driver::None)).unwrap_err();
    assert!(matches!(refused, VfError::NoneFree { .. }), "the next one must not be in the VLAN: {refused}");
    node.return_pf(node.pf(0));
    assert_eq!(vlan_of(&node, 0, 0), 7);
    vfs.rescan();
    assert_eq!((vlan_of(&node, 0, 0), vfs.facts().leases.len()), (0, 0));
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn a_start_while_the_pf_is_away_does_not_call_a_lease_good() {
    let (node, vfs) = node(1, 1);
    vfs.acquire(&request(node.vf(0, 0), Driver::None, vlan(7))).unwrap();
    drop(vfs);
    drift(&node, 0, 0, VfChange::Vlan(Vlan::default()));
    node.move_pf_away(node.pf(0));
    let vfs = owner(&node);
    let fault = vfs.facts().leases[&node.vf(0, 0)].fault.clone().unwrap();
    assert!(fault.contains("has no interface here"), "{fault}");
    node.return_pf(node.pf(0));
    vfs.rescan();
    assert_eq!((vlan_of(&node, 0, 0), &vfs.facts().leases[&node.vf(0, 0)].fault), (7, &None));
}

#[test]
fn a_vf_that_the_pf_leaves_out_is_not_lent_and_not_freed() {
    let (node, vfs) = node(1, 2);
    let before = node.fingerprint();
    node.set(Scenario::LeftOut(0));
    let refused = vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, vlan(7))).unwrap_err();
    assert!(matches!(refused, VfError::Untold { .. }), "{refused}");
    assert!(refused.to_string().contains("left it out"), "{refused}");
    assert!(vfs.facts().leases.is_empty());
    node.heal();
    vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, vlan(7))).unwrap();
    node.set(Scenario::LeftOut(0));
    release(&vfs, "pod").unwrap_err();
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].stage, Stage::Releasing);
    node.heal();
    vfs.rescan();
    assert_eq!(node.fingerprint(), before);
    assert!(vfs.facts().leases.is_empty());
}

#[test]
fn a_pf_that_answers_with_an_error_tells_of_no_vf_and_nothing_is_guessed() {
    let (node, vfs) = node(1, 2);
    let before = node.fingerprint();
    for errno in [Errno::EBUSY, Errno::EIO] {
        node.set(Scenario::ReportRefused(errno as i32));
        for attributes in [vlan(7), Attributes::default()] {
            let refused = vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, attributes)).unwrap_err();
            assert!(matches!(refused, VfError::Untold { of_any: true, .. }), "{refused}");
            assert!(refused.to_string().contains("ask ens1f0 about its VFs: "), "{refused}");
        }
        assert_eq!((node.fingerprint(), vfs.facts().leases.len()), (before.clone(), 0));
        node.heal();
        vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, vlan(7))).unwrap();
        node.set(Scenario::ReportRefused(errno as i32));
        let refused = release(&vfs, "pod").unwrap_err();
        assert!(matches!(refused, VfError::Untold { .. }), "{refused}");
        assert_eq!(vfs.facts().leases[&node.vf(0, 0)].stage, Stage::Releasing, "nobody gets it with that VLAN");
        node.heal();
        vfs.rescan();
        assert_eq!((node.fingerprint(), vfs.facts().leases.len()), (before.clone(), 0));
    }
}

#[test]
fn a_pf_that_has_anothers_name_is_still_the_one_that_is_told() {
    let (node, vfs) = node(2, 1);
    let other = request(node.vf(1, 0), Driver::None, vlan(9));
    vfs.acquire(&Request { id: "other".into(), ..other }).unwrap();
    node.swap_pf_names(node.pf(0), node.pf(1));
    // Nobody has looked at the tree since.
    vfs.acquire(&request(node.vf(0, 0), Driver::None, vlan(7))).unwrap();
    assert_eq!((vlan_of(&node, 0, 0), vlan_of(&node, 1, 0)), (7, 9));
    release(&vfs, "pod").unwrap();
    assert_eq!((vlan_of(&node, 0, 0), vlan_of(&node, 1, 0)), (0, 9));
}

#[test]
fn attributes_of_a_pf_that_is_away_are_a_matter_of_the_node_and_not_of_the_request() {
    let (node, vfs) = node(1, 1);
    node.move_pf_away(node.pf(0));
    let refused = vfs.acquire(&request(node.vf(0, 0), Driver::None, vlan(7))).unwrap_err();
    assert!(matches!(refused, VfError::Untold { .. }), "{refused}");
    // Without them the PF need not be asked.
    vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, Attributes::default())).unwrap();
    node.return_pf(node.pf(0));
    vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, vlan(7))).unwrap();
    release(&vfs, "pod").unwrap();
    assert_eq!(vlan_of(&node, 0, 0), 0, "what the VF was before is known since the PF could be asked");
}

#[test]
fn the_first_interface_of_a_pf_in_the_alphabet_may_be_a_representor() {
    let (node, vfs) = node(1, 1);
    let net = node.sysfs().file(node.pf(0), "net");
    fs::create_dir(net.join("a0")).unwrap();
    fs::write(net.join("a0/phys_port_name"), "pf0vf0\n").unwrap();
    fs::write(net.join("a0/ifindex"), "99\n").unwrap();
    fs::write(net.join("ens1f0/phys_port_name"), "p0\n").unwrap();
    vfs.acquire(&request(node.vf(0, 0), Driver::None, vlan(7))).unwrap();
    assert_eq!(vlan_of(&node, 0, 0), 7);
}

// Strangers, and the host itself.

#[test]
fn one_vf_held_by_a_stranger_does_not_keep_its_pool_from_lending_the_others() {
    let (node, vfs) = node(1, 3);
    let by_hand = node.vf(0, 2);
    let kernel = node.kernel();
    kernel.write(&node.sysfs().file(by_hand, "driver_override"), "vfio-pci").unwrap();
    kernel.write(&node.sysfs().probe_file(), &by_hand.to_string()).unwrap();
    vfs.rescan();
    let _file = node.open_vfio(by_hand, 9, "testpmd");
    // It would be preferred: it is on the driver already.
    assert_ne!(vfs.plan_acquire(&of_pool("a", Driver::VfioPci)).unwrap().vf, by_hand);
    for id in ["a", "b"] {
        assert_ne!(vfs.acquire(&of_pool(id, Driver::VfioPci)).unwrap().vf, by_hand);
    }
    let error = vfs.acquire(&of_pool("c", Driver::VfioPci)).unwrap_err().to_string();
    assert!(error.contains("it has 3 VFs"), "{error}");
}

#[test]
fn a_holder_that_proc_does_not_show_is_a_holder() {
    let (node, vfs) = node(1, 2);
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap();
    node.open_vfio_unseen(vf, true);
    let error = release(&vfs, "pod").unwrap_err().to_string();
    assert!(error.contains("a process that /proc does not show has /dev/vfio/200 open"), "{error}");
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Lent);
    node.open_vfio_unseen(vf, false);
    release(&vfs, "pod").unwrap();
}

#[test]
fn what_the_host_uses_is_named_and_not_lent_and_not_removed_unless_forced() {
    let (node, vfs) = node(1, 2);
    let (used, bonded) = (node.vf(0, 0), node.vf(0, 1));
    for vf in [used, bonded] {
        node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
    }
    vfs.rescan();
    node.use_by_host(used, &["it has the address 10.0.0.7/24", "the default route goes over it"]);
    node.make_upper(bonded, "bond0");
    let before = node.fingerprint();
    for (vf, told) in [(used, "the default route goes over it"), (bonded, "bond0 is made of it")] {
        let error = vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("--force"), "{error}");
        let reasons = vfs.explain(vf, Driver::Kernel).unwrap();
        assert!(matches!(&reasons[..], [Reason::UsedByHost(_)]), "{reasons:?}");
    }
    let error = vfs.acquire(&of_pool("any", Driver::VfioPci)).unwrap_err().to_string();
    assert!(error.contains("the host uses its interface"), "{error}");
    let error = vfs.create(node.pf(0), 0).unwrap_err();
    assert!(matches!(error, VfError::UsedByHost { .. }), "{error}");
    assert_eq!(node.fingerprint(), before);
    vfs.acquire(&Request { force: true, ..request(used, Driver::VfioPci, Attributes::default()) }).unwrap();
    release(&vfs, "pod").unwrap();
    vfs.create_with(node.pf(0), 0, HostVfs::Taken).unwrap();
    assert!(vfs.view().vfs.is_empty());
}

#[test]
fn vfs_on_drivers_beside_vfio_pci_are_looked_at_as_well() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    for driver in ["mlx5_vfio_pci", "igb_uio"] {
        fs::create_dir_all(node.sysfs().path(&format!("sys/bus/pci/drivers/{driver}"))).unwrap();
        node.kernel().write(&node.sysfs().file(vf, "driver_override"), driver).unwrap();
        node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
        if driver == "igb_uio" {
            fs::create_dir_all(node.sysfs().file(vf, "uio/uio3")).unwrap();
        }
        vfs.rescan();
        let file = if driver == "igb_uio" {
            node.open_file("/dev/uio3", 8, "testpmd")
        } else {
            node.open_vfio(vf, 8, "testpmd")
        };
        let error = vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap_err().to_string();
        assert!(error.contains("process 8 (testpmd)"), "{driver}: {error}");
        drop(file);
        node.kernel().write(&node.sysfs().unbind_file(driver), &vf.to_string()).unwrap();
    }
}

#[test]
fn who_has_a_vf_by_rdma_or_vdpa_while_the_kernel_drives_it_is_named() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    node.kernel().write(&node.sysfs().file(vf, "driver_override"), "igbvf").unwrap();
    node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
    for folder in ["infiniband/mlx5_2", "infiniband_verbs/uverbs2", "infiniband_mad/umad2", "vdpa0/vhost-vdpa-0"] {
        fs::create_dir_all(node.sysfs().file(vf, folder)).unwrap();
    }
    vfs.rescan();
    for node_file in ["/dev/infiniband/uverbs2", "/dev/vhost-vdpa-0"] {
        let file = node.open_file(node_file, 8, "testpmd");
        let lent = vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).map(drop);
        for refused in [lent, vfs.create(node.pf(0), 0).map(drop)] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(&format!("process 8 (testpmd) has {node_file} open")), "{refused}");
        }
        drop(file);
    }
    // A daemon that manages all ports has no VF.
    let _file = node.open_file("/dev/infiniband/umad2", 8, "opensm");
    vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap();
}

#[test]
fn a_start_leaves_an_interface_that_was_lent_to_the_host_with_it() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    let mac = Some(Mac([2, 0, 0, 0, 0, 9]));
    vfs.acquire(&request(vf, Driver::Kernel, Attributes { mac, ..Attributes::default() })).unwrap();
    drop(vfs);
    // A bond gives its members its own address, and drivers tell the PF.
    let (_, interface) = node.sysfs().interface(node.pf(0)).unwrap();
    node.kernel().set_vf(interface, 0, VfChange::Mac(Mac([2, 0, 0, 0, 0, 7]))).unwrap();
    node.use_by_host(vf, &["it has the address 10.0.0.7/24"]);
    let log = node.log().len();
    let vfs = node.open();
    let fault = vfs.facts().leases[&vf].fault.clone().unwrap();
    assert!(fault.contains("10.0.0.7"), "{fault}");
    assert_eq!(node.log().len(), log, "nothing was done: {:?}", node.log());
}

/// Somebody else than the manager binds a VF.
fn bind(node: &FakeNode, vf: PciAddress, driver: &str) {
    node.kernel().write(&node.sysfs().file(vf, "driver_override"), driver).expect("a VF that is there takes it");
    node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).expect("a driver that is loaded takes it");
}

#[test]
fn what_cannot_be_asked_about_a_vf_is_not_taken_for_no() {
    for (driver, file) in [
        ("igbvf", "infiniband"),
        ("igbvf", "vdpa0"),
        ("vfio-pci", "vfio-dev"),
        ("igbvf", "net"),
        ("vfio-pci", "driver"),
    ] {
        let (node, vfs) = node(1, 1);
        let vf = node.vf(0, 0);
        bind(&node, vf, driver);
        vfs.rescan();
        let file = node.sysfs().file(vf, file);
        let beside = file.with_file_name("beside");
        let _ = fs::rename(&file, &beside);
        if file.ends_with("driver") {
            // No link can be read of it.
            fs::write(&file, "").unwrap();
        } else {
            symlink(&file, &file).unwrap();
        }
        vfs.rescan();
        let log = node.log().len();
        let refused = vfs.acquire(&request(vf, Driver::VfioPci, vlan(7))).unwrap_err();
        assert!(matches!(refused, VfError::Ask { .. }), "{}: {refused}", file.display());
        assert_eq!((node.log().len(), vfs.view().vfs.len()), (log, 1), "{}", file.display());
        fs::remove_file(&file).unwrap();
        let _ = fs::rename(&beside, &file);
        vfs.acquire(&request(vf, Driver::VfioPci, vlan(7))).unwrap();
    }
}

#[test]
fn a_vf_whose_driver_makes_no_interface_is_not_searched_for() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    bind(&node, vf, "igbvf");
    fs::remove_dir_all(node.sysfs().file(vf, "net")).unwrap();
    vfs.rescan();
    vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap();
    assert_eq!(node.searches(), 0);
}

#[test]
fn vfs_that_are_somewhere_where_namespaces_come_and_go_leave_another_of_the_pool_to_be_had() {
    let (node, vfs) = node(1, 6);
    for index in 0..5 {
        bind(&node, node.vf(0, index), "igbvf");
        node.hide_netdev(node.vf(0, index));
    }
    vfs.rescan();
    node.set(Scenario::NamespacesBusy);
    assert_eq!(vfs.acquire(&of_pool("pod", Driver::VfioPci)).unwrap().vf, node.vf(0, 5));
}

#[test]
fn a_pool_whose_vfs_are_all_in_pods_without_leases_is_searched_for_them_once() {
    let (node, vfs) = node(1, 6);
    for index in 0..6 {
        bind(&node, node.vf(0, index), "igbvf");
        node.move_netdev(node.vf(0, index), 100 + index, "pod");
    }
    vfs.rescan();
    let refused = vfs.acquire(&of_pool("pod", Driver::VfioPci)).unwrap_err();
    assert!(matches!(refused, VfError::NoneFree { .. }) && refused.to_string().contains("process 100"), "{refused}");
    assert!(node.searches() <= 2, "{}", node.searches());
    node.return_netdev(node.vf(0, 4));
    assert_eq!(vfs.acquire(&of_pool("pod", Driver::VfioPci)).unwrap().vf, node.vf(0, 4));
}

#[test]
fn a_node_that_cannot_be_opened_for_want_of_descriptors_may_be_open() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    bind(&node, vf, "vfio-pci");
    vfs.rescan();
    node.open_vfio_unseen(vf, true);
    let lend = || vfs.acquire(&request(vf, Driver::Kernel, Attributes::default()));
    node.set(Scenario::VfioOpenRefused(Errno::EMFILE as i32));
    let refused = lend().unwrap_err();
    assert!(matches!(refused, VfError::Ask { .. }), "{refused}");
    node.heal();
    assert!(matches!(lend().unwrap_err(), VfError::Unavailable { .. }), "it is");
    // Who may not open it cannot tell; `/proc` does then.
    node.open_vfio_unseen(vf, false);
    node.set(Scenario::VfioOpenRefused(Errno::EACCES as i32));
    lend().unwrap();
}

// Ways back that are refused.

#[test]
fn a_pf_that_takes_no_zeros_for_an_address_does_not_lose_its_vfs() {
    let (node, vfs) = node(1, 1);
    node.set(Scenario::ZeroMacRefused);
    for _ in 0..3 {
        vfs.acquire(&of_pool("pod", Driver::VfioPci)).unwrap();
        release(&vfs, "pod").unwrap();
        assert!(vfs.facts().leases.is_empty());
    }
    // Nor does an address that a tenant chose stay.
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let asked = Attributes { mac: Some(mac), ..Attributes::default() };
    vfs.acquire(&request(node.vf(0, 0), Driver::None, asked)).unwrap();
    release(&vfs, "pod").unwrap();
    assert!(!node.fingerprint().contains(&format!("{mac:?}")), "{}", node.fingerprint());
}

#[test]
fn what_cannot_be_restored_keeps_the_vf_until_it_can_or_is_accepted() {
    let (node, vfs) = node(1, 2);
    let before = node.fingerprint();
    let vf = node.vf(0, 0);
    let asked = Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..vlan(7) };
    vfs.acquire(&request(vf, Driver::VfioPci, asked.clone())).unwrap();
    node.set(Scenario::MacRefused);
    let error = release(&vfs, "pod").unwrap_err();
    assert!(matches!(error, VfError::Dirty { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("address") && told.contains("release pod --accept") && !told.contains("rate"), "{told}");
    assert_eq!((vlan_of(&node, 0, 0), node.sysfs().driver(vf)), (0, None), "what can be done is done");
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Dirty);
    assert_eq!(vfs.acquire(&of_pool("other", Driver::None)).unwrap().vf, node.vf(0, 1), "it is not lent");
    release(&vfs, "other").unwrap();
    // The start goes on with it, as far as it can be told what is there.
    drop(vfs);
    let vfs = owner(&node);
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Dirty);
    node.heal();
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
    assert_eq!(node.fingerprint(), before);

    vfs.acquire(&request(vf, Driver::VfioPci, asked)).unwrap();
    node.set(Scenario::MacRefused);
    vfs.release_once("pod", Remains::Accepted, ROOT, Caller::PATIENT).unwrap();
    assert!(vfs.facts().leases.is_empty(), "somebody has looked at it");
}

#[test]
fn a_first_driver_that_is_gone_is_told_as_the_reason_and_nothing_else_stays_undone() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
    vfs.rescan();
    vfs.acquire(&request(vf, Driver::VfioPci, vlan(7))).unwrap();
    let directory = node.sysfs().path("sys/bus/pci/drivers/igbvf");
    fs::rename(&directory, directory.with_extension("gone")).unwrap();
    let error = release(&vfs, "pod").unwrap_err().to_string();
    assert!(error.contains("`modprobe igbvf`"), "{error}");
    assert_eq!(vlan_of(&node, 0, 0), 0);
    assert_eq!(
        node.sysfs().text(vf, "driver_override").as_deref(),
        Some(""),
        "it is not reserved for what is not there"
    );
    fs::rename(directory.with_extension("gone"), &directory).unwrap();
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("igbvf"));
}

#[test]
fn addresses_are_made_from_what_a_pf_was_made_with_and_differ_in_a_bond() {
    let (node, vfs) = node(2, 1);
    // A bond gives both the same.
    for pf in [0, 1] {
        node.set_pf_mac(node.pf(pf), Mac([0, 0, 0, 0, 9, 9]));
    }
    let mac = |pf: u8| {
        let asked =
            Request { id: format!("pod{pf}"), ..request(node.vf(pf, 0), Driver::VfioPci, Attributes::default()) };
        vfs.acquire(&asked).unwrap();
        let (_, interface) = node.sysfs().interface(node.pf(pf)).unwrap();
        node.kernel().pf_report(interface).unwrap().vfs[&0].mac
    };
    let (first, second) = (mac(0), mac(1));
    assert!(first != second && !first.is_zero() && !second.is_zero(), "{first} {second}");
    assert_eq!(first, Mac([0, 0, 0, 0, 1, 0]).derived(0));
}

// Names.

#[test]
fn a_name_is_its_users_also_for_root() {
    let (node, vfs) = node(1, 2);
    let asked = request(node.vf(0, 0), Driver::None, Attributes::default());
    vfs.acquire(&Request { peer: USER, ..asked.clone() }).unwrap();
    let error = vfs.acquire(&asked).unwrap_err();
    assert!(matches!(error, VfError::IdOfAnother { uid: 1000, .. }), "{error}");
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].uid, 1000);
    release(&vfs, "pod").expect("root may release it");
}

#[test]
fn a_lease_is_not_named_like_the_address_of_another_vf() {
    let (node, vfs) = node(1, 2);
    let (first, second) = (node.vf(0, 0), node.vf(0, 1));
    let named = |id: PciAddress, vf: PciAddress| Request {
        id: id.to_string(),
        ..request(vf, Driver::None, Attributes::default())
    };
    assert!(matches!(vfs.acquire(&named(first, second)), Err(VfError::Wrong(_))));
    vfs.acquire(&named(second, second)).unwrap();
    vfs.acquire(&request(first, Driver::None, Attributes::default())).unwrap();
    assert_eq!(vfs.release(&second.to_string(), Duration::ZERO, ROOT).unwrap().vf, second);
}

#[test]
fn a_lost_lease_at_the_address_of_another_vf_is_told_and_can_be_released() {
    let (node, vfs) = node(1, 2);
    let vf = node.vf(0, 0);
    vfs.acquire(&of_pool("pod", Driver::None)).unwrap();
    drop(vfs);
    // As after a card was put into another slot: the address is that of another number.
    let journal = node.state().join("journal");
    let text = fs::read_to_string(&journal).unwrap().replace("\"index\":0", "\"index\":5");
    fs::write(&journal, text).unwrap();
    let vfs = owner(&node);
    let view = vfs.view();
    assert_eq!(view.lost.len(), 1);
    assert!(matches!(&view.vfs[0].reasons[..], [Reason::LostLease { .. }]), "{:?}", view.vfs[0].reasons);
    let error = vfs.acquire(&of_pool("pod", Driver::None)).unwrap_err();
    assert!(matches!(error, VfError::Lost { .. }), "{error}");
    release(&vfs, "pod").unwrap();
    assert_eq!(vfs.explain(vf, Driver::None).unwrap(), []);
}

#[test]
fn a_pool_lease_whose_vf_is_gone_says_so() {
    let (node, vfs) = node(1, 2);
    vfs.acquire(&of_pool("pod", Driver::None)).unwrap();
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_numvfs"), "0").unwrap();
    vfs.rescan();
    let error = vfs.acquire(&of_pool("pod", Driver::None)).unwrap_err();
    assert!(matches!(error, VfError::Lost { .. }), "{error}");
}

#[test]
fn a_new_holder_of_the_same_lease_is_recorded() {
    let (node, vfs) = node(1, 1);
    let asked = request(node.vf(0, 0), Driver::None, Attributes::default());
    vfs.acquire(&asked).unwrap();
    let log = node.log().len();
    assert_eq!(vfs.acquire(&Request { tenant: "another".into(), ..asked }).unwrap().steps, []);
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].tenant, "another");
    assert_eq!(node.log().len(), log);
}

#[test]
fn a_lost_lease_that_is_released_frees_the_others_of_its_group() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = owner(&node);
    vfs.create(node.pf(0), 2).unwrap();
    let before = node.fingerprint();
    let (vf, member) = (node.vf(0, 0), node.vf(0, 1));
    vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap();
    assert_eq!(node.sysfs().driver(member).as_deref(), Some("vfio-pci"));
    drop(vfs);
    let journal = node.state().join("journal");
    let text = fs::read_to_string(&journal).unwrap();
    // The lease is of a VF that is there no more; the other of its group is.
    fs::write(&journal, text.replace("\"index\":0", "\"index\":5")).unwrap();
    let vfs = owner(&node);
    assert_eq!(vfs.view().lost.len(), 1);
    release(&vfs, "pod").unwrap();
    let of = |text: &str| text.lines().find(|line| line.contains(&member.to_string())).map(ToOwned::to_owned);
    assert_eq!(of(&node.fingerprint()), of(&before), "neither bound nor reserved");
}

#[test]
fn a_lost_lease_that_is_released_leaves_others_of_its_group_to_whoever_has_them_by_then() {
    for is_of_another_card in [false, true] {
        let node = FakeNode::new(1, 7);
        node.share_groups(2);
        let vfs = owner(&node);
        vfs.create(node.pf(0), 2).unwrap();
        let (vf, member) = (node.vf(0, 0), node.vf(0, 1));
        vfs.acquire(&request(vf, Driver::VfioPci, Attributes::default())).unwrap();
        drop(vfs);
        let journal = node.state().join("journal");
        let text = fs::read_to_string(&journal).unwrap();
        let card = "\"card\":\"00:00:00:00:01:00\"";
        assert!(text.contains(card), "{text}");
        let text = if is_of_another_card {
            text.replace(card, "\"card\":\"00:00:00:00:99:99\"")
        } else {
            text.replace("\"index\":0", "\"index\":5")
        };
        fs::write(&journal, text).unwrap();
        // Each VF has a group of its own now.
        node.reboot("second");
        node.share_groups(1);
        let vfs = owner(&node);
        vfs.create(node.pf(0), 2).unwrap();
        vfs.rescan();
        assert_eq!(vfs.view().lost.len(), 1);
        if is_of_another_card {
            // Nobody's, and of a card that the lease knows nothing of.
            let kernel = node.kernel();
            kernel.write(&node.sysfs().file(member, "driver_override"), "vfio-pci").unwrap();
            kernel.write(&node.sysfs().probe_file(), &member.to_string()).unwrap();
        } else {
            let next = Request { id: "next".into(), ..request(member, Driver::VfioPci, Attributes::default()) };
            vfs.acquire(&next).unwrap();
        }
        let before = node.log().len();
        assert_eq!(vfs.plan_release("pod", ROOT, Caller::PATIENT).unwrap(), []);
        release(&vfs, "pod").unwrap();
        assert_eq!(node.log()[before..], [] as [String; 0], "another card: {is_of_another_card}");
    }
}

#[test]
fn nobody_opens_the_group_of_a_tenant_to_tell_of_another_vf_of_it() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = owner(&node);
    vfs.create(node.pf(0), 2).unwrap();
    let [lent, beside] = [node.vf(0, 0), node.vf(0, 1)];
    vfs.acquire(&request(lent, Driver::VfioPci, Attributes::default())).unwrap();
    let _file = node.open_vfio(lent, 11, "qemu");
    let is_held = |reason: &Reason| matches!(reason, Reason::Held(_));
    for driver in [Driver::None, Driver::Kernel, Driver::VfioPci] {
        let reasons = vfs.explain(beside, driver).unwrap();
        assert!(reasons.iter().any(|reason| matches!(reason, Reason::GroupLent { .. })), "{reasons:?}");
        assert!(!reasons.iter().any(is_held), "to know it the group was opened: {reasons:?}");
    }
    let held = |peer| vfs.blockers(node.pf(0), peer).unwrap().iter().filter(|(_, reason)| is_held(reason)).count();
    assert_eq!((held(USER), held(ROOT)), (0, 2), "only root is told");
}

#[test]
fn a_name_whose_vf_cannot_be_cleaned_now_can_be_asked_for_later() {
    let (node, vfs) = node(1, 2);
    vfs.acquire(&of_pool("pod", Driver::VfioPci)).unwrap();
    node.set(Scenario::LeftOut(0));
    release(&vfs, "pod").unwrap_err();
    let error = vfs.acquire(&of_pool("pod", Driver::VfioPci)).unwrap_err();
    assert!(matches!(error, VfError::IdTaken { is_ending: true, .. }), "{error}");
    assert!(error.to_string().contains("which is being cleaned: ask again"), "{error}");
    node.heal();
    vfs.rescan();
    vfs.acquire(&of_pool("pod", Driver::VfioPci)).unwrap();
    let other = Request { owner: Some("plugin".into()), ..of_pool("pod", Driver::VfioPci) };
    let error = vfs.acquire(&other).unwrap_err();
    assert!(matches!(error, VfError::IdTaken { is_ending: false, .. }), "{error}");
}

#[test]
fn a_change_that_was_refused_and_whose_undoing_was_not_recorded_is_told() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::None, vlan(7))).unwrap();
    node.set(Scenario::LinkStateUnsupported);
    node.fill_disk_at_record(&vfs, 2);
    let wanted = Attributes { link_state: Some(LinkState::Enable), ..vlan(9) };
    vfs.acquire(&request(vf, Driver::None, wanted)).unwrap_err();
    vfs.rescan();
    let fault = vfs.facts().leases[&vf].fault.clone().expect("half of it is done");
    assert!(fault.contains("link state"), "{fault}");
    node.heal();
    vfs.rescan();
    assert_eq!((vfs.facts().leases[&vf].fault.clone(), vlan_of(&node, 0, 0)), (None, 9));
}

#[test]
fn a_lease_that_is_named_like_an_address_is_itself_also_where_it_is_not_any_more() {
    let (node, vfs) = node(1, 2);
    let [first, second] = [node.vf(0, 0), node.vf(0, 1)];
    for (vf, id) in [(first, "other"), (second, "named")] {
        vfs.acquire(&Request { id: id.into(), ..request(vf, Driver::None, vlan(7)) }).unwrap();
    }
    drop(vfs);
    let journal = node.state().join("journal");
    let text = fs::read_to_string(&journal).unwrap();
    // As if its card had been at the address where another one is now.
    fs::write(&journal, text.replace("\"named\"", &format!("\"{first}\""))).unwrap();
    let vfs = owner(&node);
    release(&vfs, &first.to_string()).unwrap();
    let left: Vec<_> = vfs.facts().leases.into_values().map(|lease| lease.id).collect();
    assert_eq!(left, ["other"]);
}
