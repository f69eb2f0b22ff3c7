//! What was interrupted is gone on with, however late the kernel is and whoever works beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use sriov_manager::attributes::{Attributes, Vlan};
use sriov_manager::executor::{Observer, Point, Timeouts};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::journal::FakeDisk;
use sriov_manager::kernel::Kernel;
use sriov_manager::plan::Step;
use sriov_manager::policy::{NumVfs, PeerCredentials, PfSelector, Policies, Pool};
use sriov_manager::vfs::{Caller, Choice, Counts, HostVfs, Options, Place, Recovery, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };

/// A manager that does not wait long for a number of VFs.
fn hasty(node: &FakeNode) -> Options {
    let timeouts = Timeouts { count: Duration::from_millis(150), ..node.options().timeouts };
    Options { timeouts, ..node.options() }
}

fn autoprobe(node: &FakeNode) -> String {
    node.sysfs().text(node.pf(0), "sriov_drivers_autoprobe").expect("a PF has it")
}

/// Looks again until every change of a number is over.
fn rescan_until_finished(vfs: &Vfs) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !vfs.facts().resizes.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", vfs.facts());
        vfs.rescan();
        thread::sleep(Duration::from_millis(5));
    }
}

fn count(vfs: &Vfs) -> usize {
    vfs.view().vfs.len()
}

/// By hand, as a script at boot does it.
fn set_count(node: &FakeNode, count: &str) {
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_numvfs"), count).expect("a healthy node does it");
}

// Numbers of VFs.

#[test]
fn a_change_of_a_number_that_is_late_for_the_next_manager_as_well_is_finished_by_it() {
    let node = FakeNode::new(1, 7);
    let vfs = Vfs::open(hasty(&node)).unwrap();
    node.set(Scenario::CountHangs);
    vfs.create(node.pf(0), 3).unwrap_err();
    drop(vfs);
    let vfs = Vfs::open(hasty(&node)).unwrap();
    assert_eq!(vfs.facts().resizes.len(), 1, "it is still to be finished");
    node.heal();
    rescan_until_finished(&vfs);
    assert_eq!((count(&vfs), autoprobe(&node).as_str()), (3, "1"));
}

#[test]
fn while_a_change_of_a_number_is_late_nobody_begins_another_one() {
    let node = FakeNode::new(1, 7);
    let pfs = vec![PfSelector { name: Some("ens1f0".into()), ..PfSelector::default() }];
    let pool =
        |count| Pool { name: "all".into(), pfs: pfs.clone(), num_vfs: Some(NumVfs::Exactly(count)), ..Pool::default() };
    let policies = |count| Policies { pools: vec![pool(count)] };
    let vfs = Vfs::open(Options { policies: policies(0), ..hasty(&node) }).unwrap();
    node.set(Scenario::CountHangs);
    vfs.create(node.pf(0), 3).unwrap_err();
    for retried in [vfs.create(node.pf(0), 3), vfs.plan_create(node.pf(0), 5, HostVfs::Kept)] {
        let busy = retried.unwrap_err();
        assert!(matches!(busy, VfError::Busy { .. }), "{busy}");
        assert!(busy.to_string().contains("the number of VFs of ens1f0"), "{busy}");
    }
    // Nor do other policies.
    let short = vfs.adopt_policies(policies(4), Counts::Changed).unwrap().short;
    assert!(short[0].1.contains("another operation works on it"), "{short:?}");
    node.heal();
    rescan_until_finished(&vfs);
    vfs.rescan();
    assert_eq!((count(&vfs), autoprobe(&node).as_str()), (4, "1"), "what the policies want is made when that is over");
}

/// Policies that want this number of VFs of each PF.
fn policies(pfs: u8, count: u32) -> Policies {
    let selector = |number| PfSelector { name: Some(format!("ens1f{number}")), ..PfSelector::default() };
    let pfs = (0..pfs).map(selector).collect();
    Policies { pools: vec![Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(count)), ..Pool::default() }] }
}

#[test]
fn a_number_that_somebody_sets_while_the_policies_numbers_are_made_elsewhere_stays() {
    let node = FakeNode::new(2, 7);
    let (slow, quick) = (node.pf(0), node.pf(1));
    let gate = Arc::new(Mutex::new(()));
    let waiting = Arc::new(AtomicBool::new(false));
    let (at_gate, waits) = (Arc::clone(&gate), Arc::clone(&waiting));
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if matches!(point, Point::Before(Step::Count { pf, count: 2 }) if *pf == slow) {
            waits.store(true, Ordering::Release);
            drop(at_gate.lock());
        }
    });
    let vfs = Vfs::open(Options { observer: Some(observer), ..node.options() }).unwrap();
    let shut = gate.lock().unwrap();
    thread::scope(|scope| {
        let making = scope.spawn(|| vfs.adopt_policies(policies(2, 2), Counts::Changed).unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !waiting.load(Ordering::Acquire)
            || vfs.facts().resizes.contains_key(&quick)
            || node.sysfs().virtfns(quick).is_empty()
        {
            assert!(Instant::now() < deadline, "the quick one is made, the slow one is not");
            thread::sleep(Duration::from_millis(1));
        }
        vfs.create(quick, 0).unwrap();
        drop(shut);
        making.join().unwrap();
    });
    vfs.rescan();
    let counts = [slow, quick].map(|pf| node.sysfs().virtfns(pf).len());
    assert_eq!(counts, [2, 0], "what somebody wanted stays");
}

#[test]
fn a_number_by_hand_that_was_late_counts_as_such_only_if_it_was_made() {
    for (is_refused, left) in [(true, 2), (false, 0)] {
        let node = FakeNode::new(1, 7);
        let vfs = Vfs::open(Options { policies: policies(1, 2), ..hasty(&node) }).unwrap();
        node.set(Scenario::CountHangs);
        vfs.create(node.pf(0), 5).unwrap_err();
        if is_refused {
            node.set(Scenario::CountRefused(2, libc::ENOMEM));
        }
        node.heal_from(Scenario::CountHangs);
        rescan_until_finished(&vfs);
        assert_eq!(count(&vfs), if is_refused { 2 } else { 5 });
        // The PF's driver is loaded anew.
        set_count(&node, "0");
        vfs.rescan();
        assert_eq!(count(&vfs), left, "refused: {is_refused}");
    }
}

#[test]
fn a_way_back_that_is_late_is_gone_on_with() {
    let node = Arc::new(FakeNode::new(1, 7));
    let vfs = Vfs::open(hasty(&node)).unwrap();
    vfs.create(node.pf(0), 2).unwrap();
    drop(vfs);
    node.set(Scenario::CountRefused(2, libc::ENOMEM));
    // The kernel hangs from the refusal on.
    let (beside, done) = (Arc::clone(&node), AtomicBool::new(false));
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if matches!(point, Point::After(Step::Count { count: 5, .. })) && !done.swap(true, Ordering::Relaxed) {
            beside.set(Scenario::CountHangs);
        }
    });
    let vfs = Vfs::open(Options { observer: Some(observer), ..hasty(&node) }).unwrap();
    let error = vfs.create(node.pf(0), 5).unwrap_err();
    assert!(matches!(error, VfError::NotUndone { .. }), "{error}");
    node.heal();
    node.set(Scenario::CountRefused(2, libc::ENOMEM));
    rescan_until_finished(&vfs);
    assert_eq!((count(&vfs), autoprobe(&node).as_str()), (2, "1"));
}

#[test]
fn no_vf_is_lent_while_a_change_of_its_pfs_number_is_late() {
    let node = FakeNode::new(1, 7);
    let vfs = Vfs::open(hasty(&node)).unwrap();
    vfs.create(node.pf(0), 2).unwrap();
    node.set(Scenario::CountHangs);
    vfs.create(node.pf(0), 5).unwrap_err();
    let vf = node.vf(0, 0);
    let refused = vfs.acquire(&request(vf)).unwrap_err();
    assert!(matches!(&refused, VfError::Unavailable { vf: of, .. } if *of == vf), "{refused}");
    assert_eq!(vfs.facts().leases.len(), 0);
    node.heal();
    rescan_until_finished(&vfs);
    vfs.acquire(&request(vf)).unwrap();
}

/// Cuts the power in a change of the number of VFs from 2 to 4, before its first VF goes.
fn cut_power_in_a_create(node: &FakeNode, host: HostVfs) {
    let observer: Observer = Arc::new(|point: &Point<'_>| {
        if matches!(point, Point::Before(Step::Autoprobe { .. })) {
            std::panic::resume_unwind(Box::new(()));
        }
    });
    node.open().create(node.pf(0), 2).expect("a node that is healthy does it");
    let vfs =
        Vfs::open(Options { observer: Some(observer), ..node.options() }).expect("a node that is healthy does it");
    let killed = std::panic::AssertUnwindSafe(|| vfs.create_with(node.pf(0), 4, host));
    std::panic::catch_unwind(killed).expect_err("it is killed");
    drop(vfs);
    node.reboot("second");
    assert_eq!(autoprobe(node), "1");
    // A script at boot makes VFs, and gives one of them an address.
    set_count(node, "3");
    node.use_by_host(node.vf(0, 1), &["it has the address 10.0.0.7/24"]);
}

#[test]
fn vfs_that_the_host_came_to_use_are_not_removed_by_the_end_of_an_earlier_change() {
    for (host, left) in [(HostVfs::Kept, 3), (HostVfs::Taken, 4)] {
        let node = FakeNode::new(1, 7);
        cut_power_in_a_create(&node, host);
        let vfs = node.open();
        assert_eq!((count(&vfs), autoprobe(&node).as_str()), (left, "1"), "{host:?}");
        assert!(vfs.facts().resizes.is_empty());
    }
}

#[test]
fn a_number_that_is_refused_after_a_kill_brings_the_old_vfs_back_on_their_drivers() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    node.kernel().write(&node.sysfs().probe_file(), &node.vf(0, 1).to_string()).unwrap();
    vfs.rescan();
    drop(vfs);
    let observer: Observer = Arc::new(|point: &Point<'_>| {
        if matches!(point, Point::After(Step::Count { count: 0, .. })) {
            std::panic::resume_unwind(Box::new(()));
        }
    });
    let vfs = Vfs::open(Options { observer: Some(observer), ..node.options() }).unwrap();
    let killed = std::panic::AssertUnwindSafe(|| vfs.create(node.pf(0), 4));
    std::panic::catch_unwind(killed).expect_err("it is killed");
    drop(vfs);
    node.set(Scenario::CountRefused(2, libc::ENOMEM));
    let vfs = node.open();
    assert_eq!((count(&vfs), autoprobe(&node).as_str()), (2, "1"));
    assert_eq!([0, 1].map(|vf| node.sysfs().driver(node.vf(0, vf))), [None, Some("igbvf".to_owned())]);
    assert!(vfs.facts().resizes.is_empty());
}

// Leases beside other operations.

/// A lease whose VLAN alone shows whether its VF is as it was lent.
fn request(vf: PciAddress) -> Request {
    Request {
        id: "pod".into(),
        tenant: "a test".into(),
        choice: Choice::Vf(vf),
        place: Place::default(),
        owner: None,
        until: None,
        driver: Some(Driver::None),
        attributes: Attributes { vlan: Some(Vlan { id: 7, ..Vlan::default() }), ..Attributes::default() },
        peer: ROOT,
        force: false,
        again: None,
    }
}

fn lend(node: &FakeNode, vfs: &Vfs) {
    vfs.acquire(&request(node.vf(0, 0))).expect("a node that is healthy does it");
}

fn update(vfs: &Vfs) {
    vfs.update("pod", Some("somebody else".into()), None, ROOT, Caller::PATIENT)
        .expect("a node that is healthy does it");
}

fn has_its_vlan(node: &FakeNode) -> bool {
    node.fingerprint().contains("id: 7")
}

/// Runs `meanwhile` while another operation works on the VF of the lease: the disk keeps it waiting.
fn while_busy(node: &FakeNode, vfs: &Vfs, meanwhile: impl FnOnce()) {
    let frozen = Arc::new(Mutex::new(()));
    let is_frozen = frozen.lock().expect("nobody panics with it");
    vfs.set_disk(FakeDisk { frozen: Some(Arc::clone(&frozen)), ..FakeDisk::default() });
    thread::scope(|scope| {
        scope.spawn(|| update(vfs));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !vfs.view().vfs.iter().any(|shown| shown.vf.address == node.vf(0, 0) && shown.busy) {
            assert!(Instant::now() < deadline, "the update has begun");
            thread::yield_now();
        }
        meanwhile();
        drop(is_frozen);
    });
}

#[test]
fn a_lease_whose_words_change_during_a_start_is_brought_back_all_the_same() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 1).unwrap();
    lend(&node, &vfs);
    drop(vfs);
    node.reboot("second");
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_drivers_autoprobe"), "0").unwrap();
    set_count(&node, "1");
    let vfs = Vfs::load(node.options()).unwrap();
    thread::scope(|scope| {
        let start = std::cell::OnceCell::new();
        while_busy(&node, &vfs, || {
            let started = start.get_or_init(|| scope.spawn(|| vfs.recover()));
            let mut recovery = vfs.watch_recovery();
            while *recovery.borrow_and_update() < Recovery::Leases {
                assert!(!started.is_finished());
                thread::yield_now();
            }
            // The lease is not what it was when the start saw it.
            thread::sleep(Duration::from_millis(50));
        });
    });
    assert_eq!(*vfs.watch_recovery().borrow(), Recovery::Done);
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].tenant, "somebody else");
    assert!(has_its_vlan(&node), "{}", node.fingerprint());
}

#[test]
fn a_vf_that_was_remade_while_somebody_worked_on_its_lease_is_brought_back() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 1).unwrap();
    lend(&node, &vfs);
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_drivers_autoprobe"), "0").unwrap();
    let remade = |beside: &dyn Fn()| {
        set_count(&node, "0");
        beside();
        set_count(&node, "1");
        assert!(!has_its_vlan(&node));
    };
    // Seen while somebody else has it.
    while_busy(&node, &vfs, || {
        remade(&|| ());
        vfs.rescan();
    });
    vfs.rescan();
    assert!(has_its_vlan(&node), "{}", node.fingerprint());
    // Seen first by whoever worked on it.
    remade(&|| ());
    update(&vfs);
    vfs.rescan();
    assert!(has_its_vlan(&node), "{}", node.fingerprint());
    // Its absence was seen by somebody who did not look at leases.
    remade(&|| drop(vfs.create(node.pf(1), 1).unwrap()));
    vfs.rescan();
    assert!(has_its_vlan(&node), "{}", node.fingerprint());
}
