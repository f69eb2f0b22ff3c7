//! Several VFs at once, handing over, and leases that end by themselves.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sriov_manager::attributes::{Attributes, LinkState, Mac, Vlan};
use sriov_manager::executor::{Observer, Point};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::{Stage, Until};
use sriov_manager::vfs::{Caller, Choice, Order, Place, Reason, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

use crate::owned::{ROOT, USER, node, of_pool, owner_of, release, request};

fn vlan(id: u16) -> Attributes {
    Attributes { vlan: Some(Vlan { id, ..Vlan::default() }), ..Attributes::default() }
}

fn acquire_all(vfs: &Vfs, requests: &[Request]) -> Result<Vec<PciAddress>, VfError> {
    let acquired = vfs.acquire_all(requests, false, Caller::PATIENT)?;
    Ok(acquired.iter().map(|acquired| acquired.vf).collect())
}

// This one, and several at once.

#[test]
fn a_vf_of_a_pool_is_lent_by_the_pools_rules_and_no_other_is() {
    let (node, vfs) = node(2, 1);
    let of_first = |vf| request("x", Choice::VfOfPools { vf, pools: vec!["first".into()] }, Driver::None);
    let error = vfs.acquire(&of_first(node.vf(1, 0))).unwrap_err();
    assert!(matches!(error, VfError::NotOfPool { .. }), "{error}");
    assert_eq!(vfs.acquire(&of_first(node.vf(0, 0))).unwrap().vf, node.vf(0, 0));
    assert_eq!(vfs.acquire(&of_first(node.vf(0, 0))).unwrap().steps, [], "the same again is the same");
}

#[test]
fn several_are_lent_or_none() {
    let (node, vfs) = node(1, 3);
    let before = node.fingerprint();
    let four: Vec<_> = ["a", "b", "c", "d"].map(of_pool).into();
    assert!(matches!(acquire_all(&vfs, &four), Err(VfError::NoneFree { .. })));
    assert_eq!((node.fingerprint(), vfs.facts().leases.len()), (before.clone(), 0));
    // The last one is refused by the kernel, after the others were made.
    let mut three = four[..3].to_vec();
    three[2].attributes = Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..Attributes::default() };
    node.set(Scenario::MacRefused);
    for request in &mut three[..2] {
        request.driver = Some(Driver::None);
    }
    assert!(matches!(acquire_all(&vfs, &three), Err(VfError::Step(_))));
    assert_eq!((node.fingerprint(), vfs.facts().leases.len()), (before.clone(), 0));
    node.heal();
    let got = acquire_all(&vfs, &three).unwrap();
    assert_eq!(vfs.facts().leases.len(), 3);
    assert_eq!(acquire_all(&vfs, &three).unwrap(), got, "the same again is the same");
    for id in ["a", "b", "c"] {
        release(&vfs, id);
    }
    assert_eq!(node.fingerprint(), before);
    assert!(matches!(acquire_all(&vfs, &[of_pool("a"), of_pool("a")]), Err(VfError::Wrong(_))));
}

#[test]
fn several_of_which_one_is_there_leave_that_one_as_it_was_when_another_fails() {
    let (node, vfs) = node(1, 2);
    vfs.acquire(&of_pool("a")).unwrap();
    let kept = vfs.facts();
    let mut changed = of_pool("a");
    changed.attributes = vlan(7);
    changed.tenant = "another".into();
    let mut refused = of_pool("b");
    refused.attributes = Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..Attributes::default() };
    node.set(Scenario::MacRefused);
    acquire_all(&vfs, &[changed, refused]).unwrap_err();
    let now = vfs.facts();
    assert_eq!(now.leases.len(), 1);
    let (old, new) = (&kept.leases[&node.vf(0, 0)], &now.leases[&node.vf(0, 0)]);
    assert_eq!((&new.wanted, &new.stage), (&old.wanted, &Stage::Lent));
    assert!(!node.fingerprint().contains("id: 7"));
}

#[test]
fn several_are_of_one_pf_if_that_is_wanted() {
    let (node, vfs) = node(2, 2);
    vfs.acquire(&request("x", Choice::Vf(node.vf(0, 0)), Driver::None)).unwrap();
    let two = [of_pool("a"), of_pool("b")];
    let together = vfs.acquire_all(&two, true, Caller::PATIENT).unwrap();
    let pf = |vf: PciAddress| vfs.facts().leases[&vf].pf;
    assert_eq!(together.iter().map(|acquired| pf(acquired.vf)).collect::<Vec<_>>(), [node.pf(1); 2]);
    let error = vfs.acquire_all(&[of_pool("c"), of_pool("d")], true, Caller::PATIENT).unwrap_err();
    assert!(matches!(error, VfError::NoPfHasAll { count: 2, .. }), "{error}");
}

#[test]
fn a_place_prefers_its_node_and_fills_pfs_or_spreads_over_them() {
    let (node, vfs) = node(2, 3);
    drop(vfs);
    fs::write(node.sysfs().file(node.vf(1, 2), "numa_node"), "1\n").unwrap();
    let vfs = owner_of(&node, None);
    let placed = |id: &str, place| vfs.acquire(&Request { place, ..of_pool(id) }).unwrap().vf;
    let near = Place { numa: Some(1), ..Place::default() };
    assert_eq!(placed("near", near), node.vf(1, 2));
    assert!(node.vf(1, 2) != placed("also", near), "another one if there is none left there");
    // The first PF has two left, the second two; one more makes the difference.
    let only = Place { pf: Some(node.pf(0)), ..Place::default() };
    let packed = Place { order: Order::Pack, ..Place::default() };
    let first = placed("only", only);
    assert_eq!(vfs.facts().leases[&first].pf, node.pf(0));
    let of = |vf| vfs.facts().leases[&vf].pf;
    assert_eq!(of(placed("packed", packed)), node.pf(0));
    assert_eq!(of(placed("spread", Place::default())), node.pf(1));
}

#[test]
fn a_place_names_an_iommu_group_or_what_a_vf_is_bound_to() {
    let (node, vfs) = node(2, 3);
    for (vf, driver) in [(node.vf(0, 1), "vfio-pci"), (node.vf(1, 1), "igbvf")] {
        node.kernel().write(&node.sysfs().file(vf, "driver_override"), driver).unwrap();
        node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
    }
    vfs.rescan();
    let ask = |id: &str, place| vfs.acquire(&Request { place, ..of_pool(id) });
    let bound = |driver| Place { bound_to: Some(driver), ..Place::default() };
    // Without that one it would be the first, or one that needs no other driver.
    assert_eq!(ask("kernel", bound(Driver::Kernel)).unwrap().vf, node.vf(1, 1));
    assert_eq!(ask("vfio", bound(Driver::VfioPci)).unwrap().vf, node.vf(0, 1));
    let group = node.sysfs().iommu_group(node.vf(1, 2));
    let of_group = Place { iommu_group: group, ..Place::default() };
    assert_eq!(ask("group", of_group).unwrap().vf, node.vf(1, 2));
    let error = ask("none", Place { iommu_group: Some(1), ..Place::default() }).unwrap_err();
    assert!(matches!(error, VfError::NoneFree { .. }), "{error}");
    assert!(error.to_string().contains("it is not of the IOMMU group 1"), "{error}");
    // As after a start of the machine.
    node.renumber_group(node.vf(1, 2), 99);
    vfs.rescan();
    assert_eq!(ask("group", of_group).unwrap().steps, [], "the same again");
    // What a VF is bound to says which one is chosen: the same again is the same, though it is on vfio-pci by now.
    assert_eq!(ask("kernel", bound(Driver::Kernel)).unwrap().steps, []);
    let named = |place| Request { place, ..request("x", Choice::Vf(node.vf(0, 0)), Driver::VfioPci) };
    for (place, reason) in [
        (of_group, Reason::OtherGroup { group: group.unwrap() }),
        (bound(Driver::VfioPci), Reason::NotBoundTo { wanted: Driver::VfioPci }),
    ] {
        let error = vfs.acquire(&named(place)).unwrap_err();
        assert!(matches!(&error, VfError::Unavailable { reasons, .. } if *reasons == [reason.clone()]), "{error}");
    }
    vfs.acquire(&named(bound(Driver::None))).unwrap();
    // Somebody bound it this moment.
    let vf = node.vf(0, 2);
    node.kernel().write(&node.sysfs().file(vf, "driver_override"), "vfio-pci").unwrap();
    node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
    let late = Request { place: bound(Driver::None), ..request("late", Choice::Vf(vf), Driver::VfioPci) };
    let error = vfs.acquire(&late).unwrap_err();
    assert!(
        matches!(&error, VfError::Unavailable { reasons, .. }
        if matches!(reasons[..], [Reason::NotBoundTo { wanted: Driver::None }])),
        "{error}"
    );
}

/// What a kill looks like from inside.
struct Killed;

#[test]
fn a_kill_while_several_are_lent_leaves_all_of_them_or_none() {
    let mut outcomes = [0, 0];
    for point in 1.. {
        let (node, vfs) = node(1, 2);
        let before = node.fingerprint();
        drop(vfs);
        let passed = Arc::new(AtomicU64::new(0));
        let armed = Arc::new(AtomicU64::new(u64::MAX));
        let (count, at) = (Arc::clone(&passed), Arc::clone(&armed));
        let observer: Observer = Arc::new(move |_: &Point<'_>| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == at.load(Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new(Killed));
            }
        });
        let vfs = owner_of(&node, Some(observer));
        armed.store(passed.load(Ordering::Relaxed) + point, Ordering::Relaxed);
        let work = std::panic::AssertUnwindSafe(|| acquire_all(&vfs, &[of_pool("a"), of_pool("b")]));
        let survived = std::panic::catch_unwind(work).is_ok();
        drop(vfs);
        let vfs = owner_of(&node, None);
        let leases = vfs.facts().leases;
        assert!(
            leases.values().all(|lease| lease.stage == Stage::Lent && lease.fault.is_none()),
            "{point}: {leases:?}"
        );
        match leases.len() {
            0 => assert_eq!(node.fingerprint(), before, "killed at {point}"),
            2 => outcomes[1] += 1,
            other => panic!("{other} of two are lent after a kill at {point}"),
        }
        outcomes[0] += u32::from(leases.is_empty());
        if survived {
            break;
        }
    }
    assert!(outcomes[0] >= 6 && outcomes[1] >= 1, "{outcomes:?}");
}

// Handing over.

#[test]
fn a_vf_goes_to_the_next_lease_reset_and_without_anything_of_the_last() {
    let (node, vfs) = node(1, 1);
    let before = node.fingerprint();
    let vf = node.vf(0, 0);
    let mut first = of_pool("a");
    first.attributes = Attributes { trust: Some(true), mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..vlan(7) };
    vfs.acquire(&first).unwrap();
    let resets = || node.log().iter().filter(|line| line.ends_with("/reset 1")).count();
    let already = resets();
    let file = node.open_vfio(vf, 9, "testpmd");
    let error = vfs.hand_over("a", &of_pool("b"), Caller::PATIENT).unwrap_err();
    assert!(matches!(error, VfError::Held { .. }), "{error}");
    assert_eq!(vfs.facts().leases[&vf].id, "a", "who holds it keeps it");
    drop(file);
    assert_eq!(vfs.hand_over("a", &of_pool("b"), Caller::PATIENT).unwrap().vf, vf);
    assert_eq!(resets(), already + 1);
    let lease = vfs.facts().leases[&vf].clone();
    assert_eq!((lease.id.as_str(), &lease.stage, lease.pool.as_deref()), ("b", &Stage::Lent, Some("all")));
    let shown = node.fingerprint();
    assert!(!shown.contains("id: 7") && !shown.contains("trust: Some(true)") && !shown.contains("0, 0, 9]"), "{shown}");
    assert_eq!(
        vfs.hand_over("a", &of_pool("b"), Caller::PATIENT).unwrap().steps,
        [],
        "once it was done it is an acquire"
    );
    release(&vfs, "b");
    assert_eq!(node.fingerprint(), before, "what it was before the first lease");
}

#[test]
fn what_is_handed_over_is_named_by_its_lease_and_what_was_not_is_never_changed() {
    let (node, vfs) = node(1, 3);
    let [first, other] = ["a", "other"].map(|id| vfs.acquire(&of_pool(id)).unwrap().vf);
    let kept = vfs.facts();
    let mut changed = of_pool("other");
    changed.attributes = vlan(7);
    // Neither the address of the first lease's VF, nor a name that nobody has, makes it a change of the other lease.
    let by_address = vfs.hand_over(&first.to_string(), &changed, Caller::PATIENT).unwrap_err().to_string();
    assert!(by_address.contains("name the lease that ends"), "{by_address}");
    let by_address = vfs.hand_over(&first.to_string(), &of_pool("b"), Caller::PATIENT).unwrap_err();
    assert!(matches!(by_address, VfError::Wrong(_)), "{by_address}");
    let misspelt = vfs.hand_over("aa", &changed, Caller::PATIENT).unwrap_err();
    assert!(matches!(misspelt, VfError::NoSuchLease { .. }), "{misspelt}");
    assert_eq!(vfs.facts(), kept);
    vfs.hand_over("a", &of_pool("b"), Caller::PATIENT).unwrap();
    assert_eq!(vfs.hand_over("a", &of_pool("b"), Caller::PATIENT).unwrap().vf, first, "the same again is the same");
    let another = vfs.hand_over("a", &changed, Caller::PATIENT).unwrap_err();
    assert!(matches!(another, VfError::NoSuchLease { .. }), "{another}");
    assert_eq!(vfs.facts().leases[&other], kept.leases[&other]);
    // A lease may have its VF's address for a name.
    let vf = node.vf(0, 2);
    vfs.acquire(&request(&vf.to_string(), Choice::Vf(vf), Driver::VfioPci)).unwrap();
    assert_eq!(vfs.hand_over(&vf.to_string(), &of_pool("c"), Caller::PATIENT).unwrap().vf, vf);
}

#[test]
fn a_handing_over_that_fails_leaves_the_vf_with_the_lease_that_had_it() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    let mut first = of_pool("a");
    first.attributes = vlan(7);
    vfs.acquire(&first).unwrap();
    let mut second = request("b", Choice::Vf(vf), Driver::Kernel);
    second.attributes = vlan(9);
    node.set(Scenario::NobodyProbes);
    vfs.hand_over("a", &second, Caller::PATIENT).unwrap_err();
    node.heal();
    vfs.rescan();
    let lease = vfs.facts().leases[&vf].clone();
    assert_eq!((lease.id.as_str(), &lease.stage, &lease.fault), ("a", &Stage::Lent, &None));
    assert!(node.fingerprint().contains("id: 7"));
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"));
    vfs.hand_over("a", &second, Caller::PATIENT).unwrap();
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("igbvf"));
    let other = vfs.hand_over("nobody", &of_pool("c"), Caller::PATIENT).unwrap_err();
    assert!(matches!(other, VfError::NoSuchLease { .. }), "{other}");
}

#[test]
fn a_kill_during_a_handing_over_leaves_one_of_both_leases_and_never_a_free_vf() {
    for point in 1.. {
        let (node, vfs) = node(1, 1);
        let vf = node.vf(0, 0);
        let mut first = of_pool("a");
        first.attributes = vlan(7);
        vfs.acquire(&first).unwrap();
        drop(vfs);
        let passed = Arc::new(AtomicU64::new(0));
        let armed = Arc::new(AtomicU64::new(u64::MAX));
        let (count, at) = (Arc::clone(&passed), Arc::clone(&armed));
        let observer: Observer = Arc::new(move |_: &Point<'_>| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == at.load(Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new(Killed));
            }
        });
        let vfs = owner_of(&node, Some(observer));
        armed.store(passed.load(Ordering::Relaxed) + point, Ordering::Relaxed);
        let work = std::panic::AssertUnwindSafe(|| vfs.hand_over("a", &of_pool("b"), Caller::PATIENT));
        let survived = std::panic::catch_unwind(work).is_ok();
        drop(vfs);
        let vfs = owner_of(&node, None);
        let lease = vfs.facts().leases[&vf].clone();
        assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{point}");
        let has_vlan = node.fingerprint().contains("id: 7");
        assert_eq!(has_vlan, lease.id == "a", "{point}: {}", node.fingerprint());
        if survived {
            assert_eq!(lease.id, "b");
            return;
        }
    }
}

// Leases that end by themselves.

fn process(node: &FakeNode, pid: u32, started: u64) -> PathBuf {
    let directory = node.sysfs().path(&format!("proc/{pid}"));
    fs::create_dir_all(&directory).expect("a directory below a temporary one can be made");
    let zeros = "0 ".repeat(18);
    fs::write(directory.join("stat"), format!("{pid} (odd) name) S {zeros}{started} 0\n"))
        .expect("a file below a temporary directory can be written");
    directory
}

#[test]
fn a_lease_ends_with_its_process_and_not_with_another_of_that_number() {
    let (node, vfs) = node(1, 2);
    let before = node.fingerprint();
    let directory = process(&node, 77, 1234);
    let until = vfs.this_process(77).unwrap();
    assert_eq!(until, Until::Process { pid: 77, start_time: 1234, boot: Some("first".into()) });
    vfs.acquire(&Request { until: Some(until.clone()), ..of_pool("pod") }).unwrap();
    vfs.rescan();
    assert_eq!(vfs.facts().leases.len(), 1, "it lives");
    drop(vfs);
    // It ends while no manager runs, and another process gets its number.
    fs::remove_dir_all(&directory).unwrap();
    process(&node, 77, 9999);
    let vfs = owner_of(&node, None);
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
    assert_eq!(node.fingerprint(), before);
    let error = vfs.acquire(&Request { until: Some(until), ..of_pool("pod") }).unwrap_err();
    assert!(matches!(error, VfError::Ended { .. }), "{error}");
}

#[test]
fn a_lease_ends_with_the_boot_of_its_process_or_namespace_whatever_has_their_numbers_then() {
    let (node, vfs) = node(1, 2);
    process(&node, 77, 1234);
    let namespace = node.sysfs().path("run/netns/pod");
    fs::create_dir_all(namespace.parent().unwrap()).unwrap();
    fs::write(&namespace, "").unwrap();
    vfs.acquire(&Request { until: vfs.this_process(77), ..of_pool("a") }).unwrap();
    let until = vfs.this_namespace("/run/netns/pod".into(), 0).unwrap();
    vfs.acquire(&Request { until, ..of_pool("b") }).unwrap();
    drop(vfs);
    let vfs = owner_of(&node, None);
    vfs.rescan();
    assert_eq!(vfs.facts().leases.len(), 2, "another start of the manager alone ends none");
    drop(vfs);
    node.reboot("second");
    let vfs = owner_of(&node, None);
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty(), "{:?}", vfs.facts().leases);
}

#[test]
fn no_lease_ends_because_names_of_namespaces_are_not_to_be_seen() {
    let (node, vfs) = node(1, 1);
    let names = node.sysfs().path("run/netns");
    fs::create_dir_all(&names).unwrap();
    fs::write(names.join("pod"), "").unwrap();
    let until = vfs.this_namespace("/run/netns/pod".into(), 0).unwrap();
    vfs.acquire(&Request { until, ..of_pool("pod") }).unwrap();
    drop(vfs);
    // As in a container without that mount.
    fs::rename(&names, node.sysfs().path("run/elsewhere")).unwrap();
    let vfs = owner_of(&node, None);
    vfs.rescan();
    assert_eq!(vfs.facts().leases.len(), 1);
    fs::create_dir(&names).unwrap();
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty(), "there are names, and it is none of them");
}

#[test]
fn a_lease_at_its_end_stays_while_somebody_else_still_holds_its_vf() {
    let (node, vfs) = node(1, 1);
    let directory = process(&node, 77, 1);
    let until = vfs.this_process(77);
    let vf = vfs.acquire(&Request { until, ..of_pool("pod") }).unwrap().vf;
    let file = node.open_vfio(vf, 9, "testpmd");
    fs::remove_dir_all(&directory).unwrap();
    vfs.rescan();
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Lent);
    drop(file);
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
}

#[test]
fn a_lease_ends_with_its_namespace_or_control_group() {
    let (node, vfs) = node(1, 2);
    let namespace = node.sysfs().path("run/netns/pod");
    let group = node.sysfs().path("sys/fs/cgroup/pod");
    fs::create_dir_all(namespace.parent().unwrap()).unwrap();
    fs::create_dir_all(&group).unwrap();
    fs::write(&namespace, "").unwrap();
    fs::write(group.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
    let of_namespace = vfs.this_namespace("/run/netns/pod".into(), 0).unwrap();
    let of_group = Some(Until::Cgroup { path: "/sys/fs/cgroup/pod".into() });
    vfs.acquire(&Request { until: of_namespace, ..of_pool("a") }).unwrap();
    vfs.acquire(&Request { until: of_group, ..of_pool("b") }).unwrap();
    vfs.rescan();
    assert_eq!(vfs.facts().leases.len(), 2);
    fs::write(group.join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
    vfs.rescan();
    assert_eq!(vfs.facts().leases.values().map(|lease| lease.id.as_str()).collect::<Vec<_>>(), ["a"]);
    fs::remove_file(&namespace).unwrap();
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
}

#[test]
fn whom_a_lease_is_for_is_told_anew_without_touching_the_vf() {
    let (node, vfs) = node(1, 1);
    let vf = vfs.acquire(&of_pool("pod")).unwrap().vf;
    let log = node.log().len();
    process(&node, 77, 5);
    let until = vfs.this_process(77);
    let update = |tenant: Option<&str>, until, peer| {
        vfs.update("pod", tenant.map(ToOwned::to_owned), until, peer, Caller::PATIENT)
    };
    update(Some("container 2"), Some(until.clone()), ROOT).unwrap();
    let lease = vfs.facts().leases[&vf].clone();
    assert_eq!((lease.tenant.as_str(), &lease.until), ("container 2", &until));
    update(None, Some(None), ROOT).unwrap();
    let lease = vfs.facts().leases[&vf].clone();
    assert_eq!((lease.tenant.as_str(), &lease.until), ("container 2", &None));
    assert!(matches!(update(Some("x"), None, USER), Err(VfError::NotAllowed { .. })));
    assert_eq!(node.log().len(), log);
}

#[test]
fn a_vf_is_reserved_first_and_gets_its_address_and_vlan_later_without_a_rebind() {
    let (node, vfs) = node(1, 1);
    let vf = vfs.acquire(&of_pool("pod")).unwrap().vf;
    let mut later = of_pool("pod");
    later.attributes = Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..vlan(7) };
    let _file = node.open_vfio(vf, 9, "qemu");
    let steps: Vec<_> = vfs.acquire(&later).unwrap().steps.iter().map(ToString::to_string).collect();
    assert!(steps.iter().all(|step| step.starts_with("set ")), "{steps:?}");
}

// What an acquire costs.

/// Counts what is written to the disk.
fn counted() -> (Arc<AtomicU64>, Observer) {
    let records = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&records);
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if matches!(point, Point::Recorded(_)) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (records, observer)
}

#[test]
fn an_acquire_that_leaves_the_vf_on_its_driver_is_one_record() {
    let (node, vfs) = node(1, 1);
    let vf = node.vf(0, 0);
    node.kernel().write(&node.sysfs().probe_file(), &vf.to_string()).unwrap();
    drop(vfs);
    let before = node.fingerprint();
    let (records, observer) = counted();
    let vfs = owner_of(&node, Some(observer));
    let acquire = |attributes: Attributes| {
        let start = records.load(Ordering::Relaxed);
        let mut request = request("pod", Choice::Vf(vf), Driver::Kernel);
        request.attributes = attributes;
        let steps = vfs.acquire(&request).map(|acquired| acquired.steps.len());
        (steps.map_err(|error| error.to_string()), records.load(Ordering::Relaxed) - start)
    };
    assert_eq!(acquire(Attributes::default()), (Ok(0), 1), "nothing has to be done");
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Lent);
    assert_eq!(acquire(vlan(7)), (Ok(1), 1), "a change of attributes");
    assert_eq!(acquire(vlan(7)), (Ok(0), 0), "the same again");
    // A start that finds the record alone could not know of the VLAN.
    assert_eq!(acquire(Attributes::default()), (Ok(1), 2), "what is not asked any more is remembered until it is done");
    release(&vfs, "pod");
    assert_eq!(acquire(vlan(9)), (Ok(1), 1), "a new lease with attributes");
    // What the driver of the PF ignores is found, and what it was is there again.
    node.set(Scenario::SettingIgnored);
    let (ignored, _) = acquire(vlan(8));
    assert!(ignored.unwrap_err().contains("is not as it was set"));
    node.heal();
    vfs.rescan();
    let lease = &vfs.facts().leases[&vf];
    assert_eq!((&lease.wanted.attributes, &lease.stage, &lease.fault), (&vlan(9), &Stage::Lent, &None));
    release(&vfs, "pod");
    node.set(Scenario::LinkStateUnsupported);
    let link = Attributes { link_state: Some(LinkState::Enable), ..vlan(7) };
    let (refused, _) = acquire(link);
    assert!(refused.unwrap_err().contains("cannot do that"));
    assert_eq!((node.fingerprint(), vfs.facts().leases.len()), (before, 0), "a new lease that fails is none");
}

#[test]
fn a_kill_while_attributes_are_set_leaves_those_before_or_those_that_were_asked() {
    for point in 1.. {
        let (node, vfs) = node(1, 1);
        let vf = vfs.acquire(&of_pool("pod")).unwrap().vf;
        drop(vfs);
        let passed = Arc::new(AtomicU64::new(0));
        let armed = Arc::new(AtomicU64::new(u64::MAX));
        let (count, at) = (Arc::clone(&passed), Arc::clone(&armed));
        let observer: Observer = Arc::new(move |_: &Point<'_>| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == at.load(Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new(Killed));
            }
        });
        let vfs = owner_of(&node, Some(observer));
        armed.store(passed.load(Ordering::Relaxed) + point, Ordering::Relaxed);
        let wanted = Attributes { trust: Some(true), ..vlan(7) };
        let mut changed = of_pool("pod");
        changed.attributes = wanted.clone();
        let survived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| vfs.acquire(&changed))).is_ok();
        drop(vfs);
        let vfs = owner_of(&node, None);
        let lease = vfs.facts().leases[&vf].clone();
        assert_eq!((&lease.stage, &lease.fault), (&Stage::Lent, &None), "{point}");
        let is_set = lease.wanted.attributes == wanted;
        assert!(is_set || lease.wanted.attributes == Attributes::default(), "{point}");
        let shown = node.fingerprint();
        assert_eq!(
            (shown.contains("id: 7"), shown.contains("trust: Some(true)")),
            (is_set, is_set),
            "{point}: {shown}"
        );
        if survived {
            assert!(is_set && point > 4, "{point}");
            return;
        }
    }
}

#[test]
fn a_control_group_that_is_a_pipe_or_has_no_end_holds_up_nobody() {
    let (node, vfs) = node(1, 2);
    let group = node.sysfs().path("home/client");
    fs::create_dir_all(&group).unwrap();
    let events = group.join("cgroup.events");
    fs::write(&events, "populated 1\n").unwrap();
    let until = Some(Until::Cgroup { path: "/home/client".into() });
    vfs.acquire(&Request { until, ..of_pool("a") }).unwrap();
    fs::remove_file(&events).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &events).unwrap();
    vfs.rescan();
    fs::remove_file(&events).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&events).status().unwrap();
    assert!(made.success());
    vfs.rescan();
    // What cannot be asked is not gone.
    assert_eq!(vfs.facts().leases.len(), 1);
}
