//! Numbers of VFs while others change them as well.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use sriov_manager::executor::{Observer, Point};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::journal::{Journal, Record};
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::Resize;
use sriov_manager::plan::Step;
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use sriov_manager::vfs::{Counts, HostVfs, Options};
use sriov_manager::{VfError, Vfs};

/// Policies that want this number of VFs of the first PF.
fn policies(count: u32) -> Policies {
    let pfs = vec![PfSelector { name: Some("ens1f0".into()), ..PfSelector::default() }];
    Policies { pools: vec![Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(count)), ..Pool::default() }] }
}

/// Behind the manager's back, as a script at boot does it.
fn set_count(node: &FakeNode, count: u32) {
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_numvfs"), &count.to_string()).unwrap();
}

fn autoprobe(node: &FakeNode) -> Option<String> {
    node.sysfs().text(node.pf(0), "sriov_drivers_autoprobe")
}

#[test]
fn vfs_that_somebody_else_made_are_looked_at_before_they_are_removed() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    set_count(&node, 4);
    node.use_by_host(node.vf(0, 1), &["it has the address 10.0.0.7/24"]);
    let refused = vfs.create(node.pf(0), 6).unwrap_err();
    assert!(matches!(refused, VfError::UsedByHost { .. }), "{refused}");
    assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 4);
}

#[test]
fn a_change_that_somebody_else_is_quicker_than_leaves_what_that_one_made() {
    for from in [0, 2] {
        let node = Arc::new(FakeNode::new(1, 7));
        node.open().create(node.pf(0), from).unwrap();
        let beside = Arc::clone(&node);
        let observer: Observer = Arc::new(move |point: &Point<'_>| {
            if matches!(point, Point::Before(Step::Count { count: 6, .. })) {
                set_count(&beside, 4);
            }
        });
        let vfs = Vfs::open(Options { observer: Some(observer), ..node.options() }).unwrap();
        let refused = vfs.create(node.pf(0), 6).unwrap_err();
        assert!(matches!(refused, VfError::Step(_)), "{refused}");
        assert!(refused.to_string().contains("somebody else changed the number meanwhile"), "{refused}");
        assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 4, "from {from}: they are somebody's");
        assert_eq!(autoprobe(&node).as_deref(), Some("1"));
        assert!(vfs.facts().resizes.is_empty());
    }
}

#[test]
fn a_number_that_is_set_by_hand_stays_where_the_policies_number_could_not_be_made() {
    let node = FakeNode::new(1, 7);
    set_count(&node, 2);
    node.use_by_host(node.vf(0, 1), &["it has the address 10.0.0.7/24"]);
    let vfs = Vfs::open(Options { policies: policies(4), ..node.options() }).unwrap();
    let short = vfs.view().pfs[0].short.clone();
    assert!(short.is_some_and(|why| why.contains("10.0.0.7")));
    vfs.create_with(node.pf(0), 1, HostVfs::Taken).unwrap();
    vfs.rescan();
    assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 1);
    // What the policies want from now on is another matter.
    vfs.adopt_policies(policies(3), Counts::Changed).unwrap();
    assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 3);
}

#[test]
fn another_number_than_the_policies_want_is_told_for_as_long_as_that_is_so() {
    let node = FakeNode::new(1, 7);
    let vfs = Vfs::open(Options { policies: policies(4), ..node.options() }).unwrap();
    let short = |vfs: &Vfs| vfs.view().pfs[0].short.clone();
    assert_eq!((short(&vfs), node.sysfs().virtfns(node.pf(0)).len()), (None, 4));
    // Both behind the manager's back, and with no look in between.
    set_count(&node, 0);
    set_count(&node, 2);
    vfs.rescan();
    let why = short(&vfs).expect("it is told");
    assert!(why.contains("it has 2 VFs, and the policies want 4"), "{why}");
    set_count(&node, 0);
    set_count(&node, 4);
    vfs.rescan();
    assert_eq!(short(&vfs), None);
    // A number by hand is meant.
    vfs.create(node.pf(0), 3).unwrap();
    vfs.rescan();
    assert_eq!(short(&vfs), None);
}

#[test]
fn a_number_that_is_set_by_hand_is_not_undone_by_a_look_in_that_moment() {
    let node = FakeNode::new(1, 7);
    let (seen, looking) = (Arc::new(OnceLock::<Vfs>::new()), Arc::new(Mutex::new(Vec::new())));
    let (manager, looks) = (Arc::clone(&seen), Arc::clone(&looking));
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if let (Point::Recorded(Record::Resize { resize: None, .. }), Some(vfs)) = (point, manager.get()) {
            // The uevents of VFs that went lead to a look, on another thread.
            let vfs = vfs.clone();
            looks.lock().unwrap().push(thread::spawn(move || vfs.rescan()));
            let deadline = Instant::now() + Duration::from_millis(200);
            while Instant::now() < deadline {
                thread::yield_now();
            }
        }
    });
    let vfs = Vfs::open(Options { policies: policies(3), observer: Some(observer), ..node.options() }).unwrap();
    assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 3);
    seen.set(vfs.clone()).unwrap_or_else(|_| panic!("it is set once"));
    vfs.create(node.pf(0), 0).unwrap();
    let looks: Vec<_> = looking.lock().unwrap().drain(..).collect();
    assert_eq!(looks.len(), 1);
    for look in looks {
        look.join().unwrap();
    }
    vfs.rescan();
    assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 0);
}

#[test]
fn a_pf_that_cannot_be_asked_has_not_lost_its_vfs() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    let total = node.sysfs().file(node.pf(0), "sriov_totalvfs");
    let kept = std::fs::read_to_string(&total).unwrap();
    // Whoever has no descriptors left, or no memory, is told neither that it is there nor that it is gone.
    std::fs::remove_file(&total).unwrap();
    std::fs::create_dir(&total).unwrap();
    vfs.rescan();
    assert_eq!(vfs.view().pfs.len(), 2);
    assert_eq!(vfs.view().vfs.len(), 2);
    std::fs::remove_dir(&total).unwrap();
    std::fs::write(&total, kept).unwrap();
    vfs.rescan();
    assert_eq!(vfs.view().vfs.len(), 2);
}

#[test]
fn a_number_that_could_not_be_made_because_a_question_failed_is_made_later() {
    let node = FakeNode::new(1, 7);
    set_count(&node, 2);
    let (vf, kernel, sysfs) = (node.vf(0, 0), node.kernel(), node.sysfs());
    kernel.write(&sysfs.file(vf, "driver_override"), "igbvf").unwrap();
    if sysfs.driver(vf).is_none() {
        kernel.write(&sysfs.probe_file(), &vf.to_string()).unwrap();
    }
    node.move_netdev(vf, 4242, "pause");
    node.set(Scenario::NamespacesUnknown);
    let vfs = Vfs::open(Options { policies: policies(4), ..node.options() }).unwrap();
    let short = vfs.view().pfs[0].short.clone().unwrap();
    assert!(short.starts_with("change the number of VFs of ens1f0: "), "{short}");
    node.heal();
    node.return_netdev(vf);
    vfs.rescan();
    assert_eq!((node.sysfs().virtfns(node.pf(0)).len(), &vfs.view().pfs[0].short), (4, &None));
}

#[test]
fn a_driver_that_has_no_time_is_asked_for_a_number_again() {
    let node = FakeNode::new(1, 7);
    set_count(&node, 2);
    node.set(Scenario::CountRefused(2, nix::libc::EBUSY));
    let vfs = Vfs::open(Options { policies: policies(4), ..node.options() }).unwrap();
    assert!(vfs.view().pfs[0].short.is_some());
    node.heal();
    vfs.rescan();
    assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 4);
}

#[test]
fn a_number_that_is_set_by_hand_outlives_the_manager_until_the_policies_say_another_one_or_the_node_is_rebooted() {
    let node = FakeNode::new(1, 7);
    let open = |count: u32| Vfs::open(Options { policies: policies(count), ..node.options() }).unwrap();
    let there = || node.sysfs().virtfns(node.pf(0)).len();
    let vfs = open(4);
    assert_eq!(there(), 4);
    vfs.create(node.pf(0), 2).unwrap();
    drop(vfs);
    let vfs = open(4);
    assert_eq!(there(), 2);
    vfs.rescan();
    assert_eq!(there(), 2, "and it stays");
    drop(vfs);
    // The policies have the last word, which is remembered as well.
    drop(open(3));
    assert_eq!(there(), 3);
    drop(open(4));
    assert_eq!(there(), 4);
    let vfs = open(4);
    vfs.create(node.pf(0), 1).unwrap();
    vfs.adopt_policies(policies(4), Counts::All).unwrap();
    drop(vfs);
    drop(open(4));
    assert_eq!(there(), 4, "as after SIGHUP");
    let vfs = open(4);
    vfs.create(node.pf(0), 5).unwrap();
    drop(vfs);
    node.reboot("second");
    let vfs = open(4);
    assert_eq!(there(), 4);
    vfs.rescan();
    assert!(vfs.facts().by_hand.is_empty());
}

#[test]
fn vfs_that_somebody_made_or_took_right_behind_our_change_stay() {
    // More than were asked for are not ours.
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    node.set(Scenario::CountOvertaken(5));
    let refused = vfs.create(node.pf(0), 3).unwrap_err();
    assert!(refused.to_string().contains("somebody else changed the number meanwhile"), "{refused}");
    assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), 5);

    // Fewer are what a driver made of it, which is undone, unless somebody took one already.
    for is_taken in [false, true] {
        let node = Arc::new(FakeNode::new(1, 7));
        let (taken, beside) = (Arc::new(Mutex::new(None)), Arc::clone(&node));
        let of_observer = Arc::clone(&taken);
        let observer: Observer = Arc::new(move |point: &Point<'_>| {
            if is_taken && matches!(point, Point::After(Step::Count { count: 3, .. })) {
                let vf = beside.vf(0, 0);
                beside.kernel().write(&beside.sysfs().file(vf, "driver_override"), "vfio-pci").unwrap();
                beside.kernel().write(&beside.sysfs().probe_file(), &vf.to_string()).unwrap();
                *of_observer.lock().unwrap() = Some(beside.open_vfio(vf, 9, "qemu"));
            }
        });
        let vfs = Vfs::open(Options { observer: Some(observer), ..node.options() }).unwrap();
        node.set(Scenario::CountAtMost(2));
        vfs.create(node.pf(0), 3).unwrap_err();
        assert_eq!(node.sysfs().virtfns(node.pf(0)).len(), if is_taken { 2 } else { 0 });
        drop(taken);
    }
}

#[test]
fn a_pf_that_was_unplugged_is_short_of_nothing() {
    let node = FakeNode::new(2, 7);
    node.set(Scenario::CountRefused(3, 22));
    let vfs = node.open();
    let document = "pools: [{name: all, pfs: [{name: ens1f0}], num_vfs: 4}]";
    vfs.apply_policies(document).unwrap();
    let reached = || vfs.view().policies.reached;
    assert_eq!(reached(), 0, "it has not got them");
    std::fs::remove_dir_all(node.sysfs().file(node.pf(0), "")).unwrap();
    vfs.rescan();
    assert_eq!(reached(), vfs.view().policies.wanted, "there is nobody to have them");
}

#[test]
fn interrupted_changes_of_several_pfs_are_finished_at_the_same_time() {
    let node = FakeNode::new(2, 7);
    let (mut journal, facts) = Journal::open(&node.state()).unwrap();
    for pf in [node.pf(0), node.pf(1)] {
        let resize = Resize { from: 0, to: 2, autoprobe: true, drivers: BTreeMap::new(), force: false, by_hand: false };
        journal.write(&Record::Resize { pf, resize: Some(resize) }, || facts.clone()).unwrap();
    }
    drop(journal);
    // Each waits for the other one, and for a while only.
    let meeting = Arc::new((Mutex::new(0), Condvar::new()));
    let together = Arc::clone(&meeting);
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if matches!(point, Point::Before(Step::Count { count: 2, .. })) {
            let mut met = together.0.lock().unwrap();
            *met += 1;
            together.1.notify_all();
            let wait = |met| together.1.wait_timeout_while(met, Duration::from_secs(10), |met| *met < 2).unwrap();
            let (met, late) = wait(met);
            drop(met);
            assert!(!late.timed_out(), "one after the other");
        }
    });
    let vfs = Vfs::open(Options { observer: Some(observer), ..node.options() }).unwrap();
    assert!(vfs.facts().resizes.is_empty());
    assert!([0, 1].map(|pf| node.sysfs().virtfns(node.pf(pf)).len()) == [2, 2]);
}
