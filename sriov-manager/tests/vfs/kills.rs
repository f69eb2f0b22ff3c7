//! Killed at every point of every operation, and started again: everything known, nothing leaked.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use sriov_manager::attributes::{Attributes, Mac, VfChange, Vlan};
use sriov_manager::executor::{Observer, Point};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::{Stage, Wanted};
use sriov_manager::plan::Step;
use sriov_manager::policy::PeerCredentials;
use sriov_manager::vfs::{Caller, Choice, Options, Place, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };

/// What a kill looks like from inside: nothing after it runs, not even what was to be undone.
struct Killed;

fn dying_at(point: u64, passed: &Arc<AtomicU64>) -> Observer {
    let passed = Arc::clone(passed);
    Arc::new(move |_: &Point<'_>| {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == point {
            // Without the message of a panic: this one is meant.
            resume_unwind(Box::new(Killed));
        }
    })
}

fn request(vf: PciAddress, driver: Driver, vlan: Option<u16>) -> Request {
    let attributes = Attributes {
        vlan: vlan.map(|id| Vlan { id, ..Vlan::default() }),
        mac: vlan.map(|id| Mac([2, 0, 0, 0, 0, id as u8])),
        ..Attributes::default()
    };
    Request {
        id: format!("lease-{vf}"),
        tenant: "a test".into(),
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

/// Does `prepare` in peace, then kills `work` at every point in turn and lets `judge` look at what the next start
/// made of it. Returns the number of points.
fn at_every_point(
    prepare: impl Fn(&FakeNode, &Vfs),
    work: impl Fn(&FakeNode, &Vfs) -> Result<(), VfError>,
    judge: impl Fn(&FakeNode, &Vfs, u64),
) -> u64 {
    at_every_point_then(prepare, work, |_| {}, judge)
}

/// [`at_every_point`], with something that happens to the node while no manager runs.
fn at_every_point_then(
    prepare: impl Fn(&FakeNode, &Vfs),
    work: impl Fn(&FakeNode, &Vfs) -> Result<(), VfError>,
    meanwhile: impl Fn(&FakeNode),
    judge: impl Fn(&FakeNode, &Vfs, u64),
) -> u64 {
    for point in 1.. {
        let node = FakeNode::new(1, 7);
        node.share_groups(2);
        let vfs = node.open();
        vfs.create(node.pf(0), 4).expect("a node that is healthy does it");
        prepare(&node, &vfs);
        drop(vfs);
        let passed = Arc::default();
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let vfs = Vfs::open(Options { observer: Some(dying_at(u64::MAX, &passed)), ..node.options() })
                .expect("a node that is healthy does it");
            drop(vfs);
        }));
        assert!(opened.is_ok());
        let start = passed.swap(0, Ordering::Relaxed);
        let survived = catch_unwind(AssertUnwindSafe(|| {
            // The start itself passes points too; those are not the ones that are counted here.
            let observer = dying_at(start + point, &passed);
            let vfs = Vfs::open(Options { observer: Some(observer), ..node.options() })
                .expect("a node that is healthy does it");
            work(&node, &vfs).expect("a node that is healthy does it");
        }));
        let killed = match survived {
            Err(panic) if !panic.is::<Killed>() => resume_unwind(panic),
            survived => survived.is_err(),
        };
        meanwhile(&node);
        let vfs = node.open();
        judge(&node, &vfs, point);
        drop(vfs);
        // The start after a kill may be killed as well.
        let vfs = node.open();
        judge(&node, &vfs, point);
        if !killed {
            return point;
        }
    }
    unreachable!("an operation has an end")
}

fn all_usable(node: &FakeNode, vfs: &Vfs) {
    for shown in &vfs.view().vfs {
        assert_eq!(shown.vf.function.driver, node.sysfs().driver(shown.vf.address), "the list shows what is there");
    }
    for index in [0, 2] {
        let vf = node.vf(0, index);
        if vfs.facts().leases.contains_key(&vf) {
            continue;
        }
        let asked = Request { id: "probe".to_owned(), ..request(vf, Driver::VfioPci, None) };
        vfs.acquire(&asked).expect("a node that is healthy does it");
        vfs.release("probe", Duration::ZERO, ROOT).expect("a node that is healthy does it");
    }
}

#[test]
fn a_kill_during_an_acquire_leaves_the_vf_lent_or_as_it_was() {
    let untouched = {
        let node = FakeNode::new(1, 7);
        node.share_groups(2);
        node.open().create(node.pf(0), 4).unwrap();
        node.fingerprint()
    };
    for driver in [Driver::VfioPci, Driver::Kernel, Driver::None] {
        let points = at_every_point(
            |_, _| {},
            |node, vfs| vfs.acquire(&request(node.vf(0, 0), driver, Some(7))).map(drop),
            |node, vfs, point| {
                match vfs.facts().leases.get(&node.vf(0, 0)) {
                    None => assert_eq!(node.fingerprint(), untouched, "{driver} killed at {point}"),
                    Some(lease) => {
                        assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{driver} killed at {point}");
                    }
                }
                all_usable(node, vfs);
            },
        );
        assert!(points >= 6, "{driver}: {points} points");
    }
}

#[test]
fn a_kill_during_a_release_ends_with_the_vf_free_and_as_it_was_or_still_lent() {
    let before = RefCell::new(String::new());
    for driver in [Driver::VfioPci, Driver::Kernel] {
        let points = at_every_point(
            |node, vfs| {
                before.replace(node.fingerprint());
                vfs.acquire(&request(node.vf(0, 0), driver, Some(7))).unwrap();
            },
            |node, vfs| vfs.release(&node.vf(0, 0).to_string(), Duration::ZERO, ROOT).map(drop),
            |node, vfs, point| {
                if vfs.facts().leases.is_empty() {
                    assert_eq!(node.fingerprint(), *before.borrow(), "{driver} killed at {point}");
                } else {
                    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].stage, Stage::Lent, "{driver} killed at {point}");
                }
                all_usable(node, vfs);
            },
        );
        assert!(points >= 10, "{driver}: {points} points");
    }
}

#[test]
fn a_kill_during_a_change_leaves_the_lease_as_it_was_or_as_it_was_to_be() {
    at_every_point(
        |node, vfs| drop(vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, Some(7))).unwrap()),
        |node, vfs| vfs.acquire(&request(node.vf(0, 0), Driver::Kernel, Some(9))).map(drop),
        |node, vfs, point| {
            let lease = &vfs.facts().leases[&node.vf(0, 0)];
            assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{point}");
            let driver = node.sysfs().driver(node.vf(0, 0));
            match lease.wanted.attributes.vlan.map(|vlan| vlan.id) {
                Some(7) => assert_eq!(driver.as_deref(), Some("vfio-pci"), "{point}"),
                Some(9) => assert_eq!(driver.as_deref(), Some("igbvf"), "{point}"),
                other => panic!("{point}: {other:?}"),
            }
            let Wanted { driver, attributes } = lease.wanted.clone();
            let again = Request { attributes, ..request(node.vf(0, 0), driver, None) };
            assert_eq!(vfs.acquire(&again).unwrap().steps, [], "{point}");
        },
    );
}

/// Somebody sets another VLAN of the first VF behind the manager's back.
fn drift(node: &FakeNode) {
    let (_, pf) = node.sysfs().interface(node.pf(0)).expect("the PF is here");
    let other = VfChange::Vlan(Vlan { id: 9, ..Vlan::default() });
    node.kernel().set_vf(pf, 0, other).expect("the made-up PF takes it");
}

#[test]
fn a_kill_during_a_repeat_that_makes_drift_good_never_takes_the_lease_away() {
    for driver in [Driver::VfioPci, Driver::Kernel] {
        let points = at_every_point(
            |node, vfs| drop(vfs.acquire(&request(node.vf(0, 0), driver, Some(7))).unwrap()),
            |node, vfs| {
                drift(node);
                vfs.acquire(&request(node.vf(0, 0), driver, Some(7))).map(drop)
            },
            |node, vfs, point| {
                let lease = &vfs.facts().leases[&node.vf(0, 0)];
                assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{driver} killed at {point}");
                assert!(node.fingerprint().contains("id: 7"), "{driver} killed at {point}: {}", node.fingerprint());
                assert!(!node.fingerprint().contains("id: 9"), "{driver} killed at {point}: {}", node.fingerprint());
                all_usable(node, vfs);
            },
        );
        assert!(points >= 3, "{driver}: {points} points");
    }
}

/// What is killed.
type Work<'a> = &'a dyn Fn(&FakeNode, &Vfs) -> Result<(), VfError>;

/// Somebody gives the first VF another driver, or its interface another address, behind the manager's back: to make that good it is
/// bound anew.
fn drift_from_driver(node: &FakeNode, driver: Driver) {
    let (vf, kernel) = (node.vf(0, 0), node.kernel());
    let write = |file: PathBuf, value: &str| kernel.write(&file, value).expect("the made-up kernel takes it");
    match driver {
        Driver::VfioPci => write(node.sysfs().unbind_file("vfio-pci"), &vf.to_string()),
        Driver::None => {
            write(node.sysfs().file(vf, "driver_override"), "igbvf");
            write(node.sysfs().probe_file(), &vf.to_string());
        }
        Driver::Kernel => {
            let (_, pf) = node.sysfs().interface(node.pf(0)).expect("the PF is here");
            kernel.set_vf(pf, 0, VfChange::Mac(Mac([2, 0, 0, 0, 0, 66]))).expect("the made-up PF takes it");
        }
    }
}

#[test]
fn a_kill_during_a_repeat_that_binds_the_vf_anew_never_takes_the_lease_away() {
    for (driver, wanted) in [(Driver::VfioPci, Some("vfio-pci")), (Driver::Kernel, Some("igbvf")), (Driver::None, None)]
    {
        let points = at_every_point(
            |node, vfs| drop(vfs.acquire(&request(node.vf(0, 0), driver, Some(7))).unwrap()),
            |node, vfs| {
                drift_from_driver(node, driver);
                let repeated = vfs.acquire(&request(node.vf(0, 0), driver, Some(7)))?;
                assert!(!repeated.steps.iter().all(Step::is_setting), "{driver}: {:?}", repeated.steps);
                Ok(())
            },
            |node, vfs, point| {
                let lease = &vfs.facts().leases[&node.vf(0, 0)];
                assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{driver} killed at {point}");
                assert_eq!(node.sysfs().driver(node.vf(0, 0)).as_deref(), wanted, "{driver} killed at {point}");
                let shown = node.fingerprint();
                assert!(shown.contains("Mac([2, 0, 0, 0, 0, 7])"), "{driver} killed at {point}: {shown}");
                assert!(!shown.contains("Mac([2, 0, 0, 0, 0, 66])"), "{driver} killed at {point}: {shown}");
                all_usable(node, vfs);
            },
        );
        assert!(points >= 4, "{driver}: {points} points");
    }
}

#[test]
fn whoever_opens_the_vf_after_a_kill_keeps_it_on_every_way_back() {
    let lease = |node: &FakeNode| request(node.vf(0, 0), Driver::VfioPci, None).id;
    let change = |node: &FakeNode, vfs: &Vfs| vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, Some(9))).map(drop);
    let hand_over = |node: &FakeNode, vfs: &Vfs| {
        let heir = Request { id: "heir".to_owned(), ..request(node.vf(0, 0), Driver::VfioPci, Some(9)) };
        vfs.hand_over(&lease(node), &heir, Caller::PATIENT).map(drop)
    };
    let release = |node: &FakeNode, vfs: &Vfs| vfs.release(&lease(node), Duration::ZERO, ROOT).map(drop);
    let works: [(&str, Driver, Work<'_>); 3] = [
        ("Changing", Driver::Kernel, &change),
        ("HandingOver", Driver::Kernel, &hand_over),
        ("Releasing", Driver::VfioPci, &release),
    ];
    for (stage, before, work) in works {
        let (opened, kept) = (RefCell::new(None), RefCell::new(BTreeSet::new()));
        at_every_point_then(
            |node, vfs| drop(vfs.acquire(&request(node.vf(0, 0), before, Some(7))).unwrap()),
            work,
            |node| {
                let is_on_vfio = node.sysfs().driver(node.vf(0, 0)).as_deref() == Some("vfio-pci");
                let open = || (node.open_vfio(node.vf(0, 0), 11, "qemu"), node.log().len());
                opened.replace(is_on_vfio.then(open));
            },
            |node, vfs, point| {
                if let Some((file, log)) = opened.take() {
                    assert_eq!(node.sysfs().driver(node.vf(0, 0)).as_deref(), Some("vfio-pci"), "{stage}, {point}");
                    assert_eq!(node.log()[log..], [] as [String; 0], "{stage}, killed at {point}: nothing is written");
                    let lease = vfs.facts().leases[&node.vf(0, 0)].clone();
                    if let Some(fault) = lease.fault {
                        assert!(fault.contains("process 11 (qemu)"), "{stage}, killed at {point}: {fault}");
                        kept.borrow_mut().insert(format!("{:?}", lease.stage).split(' ').next().map(str::to_owned));
                    }
                    drop(file);
                    vfs.rescan();
                }
                if let Some(lease) = vfs.facts().leases.get(&node.vf(0, 0)) {
                    assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{stage}, killed at {point}");
                }
                all_usable(node, vfs);
            },
        );
        assert_eq!(kept.take(), BTreeSet::from([Some(stage.to_owned())]), "somebody was waited for in that stage");
    }
}

#[test]
fn a_kill_with_a_journal_that_fails_at_any_record_leaves_the_vf_lent_or_as_it_was() {
    let untouched = {
        let node = FakeNode::new(1, 7);
        node.share_groups(2);
        node.open().create(node.pf(0), 4).unwrap();
        node.fingerprint()
    };
    for failing in 1..=4 {
        at_every_point(
            |_, _| {},
            |node, vfs| {
                node.fill_disk_at_record(vfs, failing);
                // Both may be refused: what is left behind is what counts.
                let asked = vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, Some(7)));
                if asked.is_ok() {
                    let _ = vfs.release(&node.vf(0, 0).to_string(), Duration::ZERO, ROOT);
                }
                Ok(())
            },
            |node, vfs, point| {
                match vfs.facts().leases.get(&node.vf(0, 0)) {
                    None => assert_eq!(node.fingerprint(), untouched, "record {failing}, killed at {point}"),
                    Some(lease) => {
                        let how = (&lease.stage, &lease.fault);
                        assert_eq!(how, (&Stage::Lent, &None), "record {failing}, killed at {point}");
                    }
                }
                all_usable(node, vfs);
            },
        );
    }
}

#[test]
fn a_kill_before_the_pfs_interface_goes_away_gives_nobodys_settings_to_the_next() {
    let untouched = {
        let node = FakeNode::new(1, 7);
        node.share_groups(2);
        node.open().create(node.pf(0), 4).unwrap();
        node.fingerprint()
    };
    let lend = |node: &FakeNode, vfs: &Vfs| {
        vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci, Some(7)))?;
        vfs.release(&node.vf(0, 0).to_string(), Duration::ZERO, ROOT).map(drop)
    };
    let points = at_every_point_then(
        |_, _| {},
        lend,
        |node| node.move_pf_away(node.pf(0)),
        |node, vfs, point| {
            let vf = node.vf(0, 0);
            let has_settings = node.fingerprint().contains("id: 7");
            let is_kept = vfs.facts().leases.contains_key(&vf);
            assert!(is_kept || !has_settings, "killed at {point}: free, with the VLAN of its last user");
            node.return_pf(node.pf(0));
            vfs.rescan();
            match vfs.facts().leases.get(&vf) {
                None => assert_eq!(node.fingerprint(), untouched, "killed at {point}"),
                Some(lease) => assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "killed at {point}"),
            }
            all_usable(node, vfs);
            node.move_pf_away(node.pf(0));
        },
    );
    assert!(points >= 12, "{points} points");
}

#[test]
fn a_kill_in_a_tree_without_the_pfs_interface_leaves_the_vf_lent_or_as_it_was() {
    let untouched = {
        let node = FakeNode::new(1, 7);
        node.share_groups(2);
        node.open().create(node.pf(0), 4).unwrap();
        node.move_pf_away(node.pf(0));
        node.fingerprint()
    };
    for driver in [Driver::VfioPci, Driver::None] {
        at_every_point(
            |node, _| node.move_pf_away(node.pf(0)),
            |node, vfs| {
                vfs.acquire(&request(node.vf(0, 0), driver, None))?;
                vfs.release(&node.vf(0, 0).to_string(), Duration::ZERO, ROOT).map(drop)
            },
            |node, vfs, point| {
                match vfs.facts().leases.get(&node.vf(0, 0)) {
                    None => assert_eq!(node.fingerprint(), untouched, "{driver} killed at {point}"),
                    Some(lease) => {
                        assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{driver} killed at {point}");
                    }
                }
                all_usable(node, vfs);
            },
        );
    }
}

#[test]
fn a_kill_during_a_change_of_the_number_ends_with_one_of_both_numbers() {
    let points = at_every_point(
        |_, _| {},
        |node, vfs| vfs.create(node.pf(0), 6).map(drop),
        |node, vfs, point| {
            let count = vfs.view().vfs.len();
            assert!(count == 4 || count == 6, "{count} after a kill at {point}");
            assert!(vfs.facts().resizes.is_empty());
            assert_eq!(node.sysfs().text(node.pf(0), "sriov_drivers_autoprobe").as_deref(), Some("1"), "{point}");
            assert!(vfs.view().vfs.iter().all(|vf| vf.vf.function.driver.is_none()), "{point}");
            all_usable(node, vfs);
        },
    );
    assert!(points >= 8, "{points} points");
}

#[test]
fn after_a_reboot_leases_come_back_and_those_of_vfs_that_are_gone_are_told() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 6).unwrap();
    let (kept, lost) = (node.vf(0, 1), node.vf(0, 5));
    vfs.acquire(&request(kept, Driver::VfioPci, Some(7))).unwrap();
    vfs.acquire(&request(lost, Driver::Kernel, None)).unwrap();
    drop(vfs);
    node.reboot("second");
    // Something else at boot makes fewer VFs than there were.
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_numvfs"), "3").unwrap();

    let vfs = node.open();
    assert_eq!(node.sysfs().driver(kept).as_deref(), Some("vfio-pci"), "brought back");
    assert_eq!(vfs.facts().leases[&kept].fault, None);
    let view = vfs.view();
    assert_eq!(view.lost.len(), 1);
    assert!(view.lost[0].fault.as_ref().unwrap().contains("its VF is gone"), "{view:?}");

    vfs.release(&kept.to_string(), Duration::ZERO, ROOT).unwrap();
    vfs.create(node.pf(0), 6).unwrap();
    vfs.rescan();
    assert_eq!(vfs.facts().leases[&lost].fault, None, "it came back with its VF");
    assert_eq!(node.sysfs().driver(lost).as_deref(), Some("igbvf"));
    vfs.release(&lost.to_string(), Duration::ZERO, ROOT).unwrap();
    assert!(vfs.facts().leases.is_empty());
}

#[test]
fn a_start_does_not_touch_a_vf_that_is_held() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::VfioPci, Some(7))).unwrap();
    drop(vfs);
    let file = node.open_vfio(vf, 11, "qemu");
    // Somebody changes it behind the manager's back while it is down.
    drift(&node);
    let log = node.log().len();
    let vfs = node.open();
    assert_eq!(node.log().len(), log, "nothing was written");
    let fault = vfs.facts().leases[&vf].fault.clone().unwrap();
    assert!(fault.contains("process 11 (qemu)"), "{fault}");
    drop(file);
    vfs.rescan();
    assert_eq!(vfs.facts().leases[&vf].fault, None);
    assert!(node.fingerprint().contains("id: 7"));
}

#[derive(Clone, Debug)]
enum Action {
    Acquire(u32, Driver, Option<u16>),
    Release(u32),
    Restart,
    /// The next operation is killed at this point.
    Kill(u64),
    /// The next operation meets a node in this mood.
    Misbehave(Scenario),
}

fn action() -> impl Strategy<Value = Action> {
    let driver = prop_oneof![Just(Driver::VfioPci), Just(Driver::Kernel), Just(Driver::None)];
    let vlan = proptest::option::of(1..100_u16);
    let mood =
        prop_oneof![Just(Scenario::NobodyProbes), Just(Scenario::SettingIgnored), Just(Scenario::SettingAgain(2))];
    prop_oneof![
        4 => (0..4_u32, driver, vlan).prop_map(|(vf, driver, vlan)| Action::Acquire(vf, driver, vlan)),
        3 => (0..4_u32).prop_map(Action::Release),
        1 => Just(Action::Restart),
        2 => (1..25_u64).prop_map(Action::Kill),
        1 => mood.prop_map(Action::Misbehave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_acquires_releases_and_kills_ends_with_what_it_began(
        actions in proptest::collection::vec(action(), 1..16),
        group in 1..3_u32,
    ) {
        let node = FakeNode::new(1, 7);
        node.share_groups(group);
        let mut vfs = node.open();
        vfs.create(node.pf(0), 4).unwrap();
        let before = node.fingerprint();
        for action in actions {
            let work = |node: &FakeNode, vfs: &Vfs| match &action {
                // Refusals are fine; what they leave behind is looked at in the end.
                Action::Acquire(vf, driver, vlan) => drop(vfs.acquire(&request(node.vf(0, *vf), *driver, *vlan))),
                Action::Release(vf) => drop(vfs.release(&node.vf(0, *vf).to_string(), Duration::ZERO, ROOT)),
                _ => {}
            };
            match &action {
                Action::Restart => {
                    drop(vfs);
                    vfs = node.open();
                }
                Action::Kill(point) => {
                    drop(vfs);
                    let passed = Arc::default();
                    let _ = catch_unwind(AssertUnwindSafe(|| {
                        let observer = Some(dying_at(*point, &passed));
                        let vfs = Vfs::open(Options { observer, ..node.options() }).unwrap();
                        let _ = vfs.acquire(&request(node.vf(0, 1), Driver::VfioPci, Some(3)));
                        let _ = vfs.release(&node.vf(0, 2).to_string(), Duration::ZERO, ROOT);
                    }));
                    vfs = node.open();
                }
                Action::Misbehave(scenario) => {
                    node.set(*scenario);
                    let _ = vfs.acquire(&request(node.vf(0, 3), Driver::Kernel, Some(5)));
                    node.heal();
                }
                _ => work(&node, &vfs),
            }
        }
        vfs.rescan();
        for lease in vfs.facts().leases.into_values() {
            vfs.release(&lease.id, Duration::ZERO, ROOT).unwrap();
        }
        prop_assert_eq!(node.fingerprint(), before);
        prop_assert!(vfs.facts().leases.is_empty() && vfs.facts().resizes.is_empty());
    }
}
