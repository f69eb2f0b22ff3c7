//! Handing over that did not end, and the others of an IOMMU group: who has a VF keeps it, whatever it is asked by.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::owned::{ROOT, USER, node, of_pool, owner_of, release, request};
use sriov_manager::attributes::{Attributes, Vlan};
use sriov_manager::executor::{Observer, Point};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::{Claim, Stage};
use sriov_manager::plan::Step;
use sriov_manager::policy::{PfSelector, Policies, Pool};
use sriov_manager::vfs::{Caller, Choice, Counts, Reason, Remains, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

fn vlan(id: u16) -> Attributes {
    Attributes { vlan: Some(Vlan { id, ..Vlan::default() }), ..Attributes::default() }
}

/// A VF of two that was to go from `a`, in VLAN 7, to `b`, and cannot even go back now: the PF left in the middle.
fn stranded() -> (FakeNode, Vfs) {
    let node = Arc::new(FakeNode::new(1, 7));
    let (beside, is_away) = (Arc::clone(&node), AtomicBool::new(false));
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if matches!(point, Point::Before(Step::Reset { .. })) && !is_away.swap(true, Ordering::Relaxed) {
            beside.move_pf_away(beside.pf(0));
        }
    });
    let vfs = owner_of(&node, Some(observer));
    vfs.create(node.pf(0), 2).expect("a node that is healthy does it");
    vfs.acquire(&Request { attributes: vlan(7), ..of_pool("a") }).expect("a node that is healthy does it");
    let heir = Request { attributes: vlan(9), driver: Some(Driver::Kernel), ..of_pool("b") };
    let error = vfs.hand_over("a", &heir, Caller::PATIENT).expect_err("the PF is away");
    assert!(matches!(error, VfError::NotUndone { .. }), "{error}");
    assert!(matches!(vfs.facts().leases[&node.vf(0, 0)].stage, Stage::HandingOver { .. }));
    drop(vfs);
    let vfs = owner_of(&node, None);
    (Arc::into_inner(node).expect("nobody observes any more"), vfs)
}

fn ids(vfs: &Vfs) -> Vec<String> {
    vfs.facts().leases.into_values().map(|lease| lease.id).collect()
}

#[test]
fn a_lease_whose_handing_over_did_not_end_can_be_released_and_the_one_that_did_not_begin_cannot() {
    let (node, vfs) = stranded();
    let error = vfs.release("b", Duration::ZERO, ROOT).unwrap_err();
    assert!(matches!(error, VfError::NoSuchLease { .. }), "it has no VF: {error}");
    // Not now, but it is not forgotten either.
    let error = vfs.release("a", Duration::ZERO, ROOT).unwrap_err();
    assert!(matches!(error, VfError::Untold { .. }), "{error}");
    assert_eq!((ids(&vfs), &vfs.facts().leases[&node.vf(0, 0)].stage), (vec!["a".to_owned()], &Stage::Releasing));
    let error = vfs.hand_over("a", &of_pool("c"), Caller::PATIENT).unwrap_err();
    assert!(matches!(error, VfError::IdTaken { is_ending: true, .. }), "its VF is there: {error}");
    node.return_pf(node.pf(0));
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
    assert!(!node.fingerprint().contains("id: 7") && !node.fingerprint().contains("id: 9"), "{}", node.fingerprint());
}

#[test]
fn asked_for_again_a_lease_whose_handing_over_did_not_end_is_the_one_that_it_was() {
    let (node, vfs) = stranded();
    let asked = Request { attributes: vlan(7), ..of_pool("a") };
    let error = vfs.acquire(&asked).unwrap_err();
    assert!(matches!(error, VfError::Untold { .. }), "{error}");
    let error = vfs.acquire(&Request { peer: USER, ..asked.clone() }).unwrap_err();
    assert!(matches!(error, VfError::IdOfAnother { .. }), "{error}");
    assert_eq!(vfs.facts().leases.len(), 1, "no second VF is lent under its name");
    node.return_pf(node.pf(0));
    assert_eq!(vfs.acquire(&asked).unwrap().vf, node.vf(0, 0));
    assert_eq!(ids(&vfs), ["a"]);
    assert!(node.fingerprint().contains("id: 7"), "{}", node.fingerprint());
}

#[test]
fn a_handing_over_that_did_not_end_can_be_asked_for_again_and_is_shown_as_the_lease_that_has_the_vf() {
    let (node, vfs) = stranded();
    let heir = Request { attributes: vlan(9), driver: Some(Driver::Kernel), ..of_pool("b") };
    let error = vfs.hand_over("a", &heir, Caller::PATIENT).unwrap_err();
    assert!(matches!(error, VfError::Untold { .. }), "{error}");
    let reasons = vfs.explain(node.vf(0, 0), Driver::None).unwrap();
    assert!(reasons[0].to_string().starts_with("it is lent as a to a test"), "{reasons:?}");
    let error = vfs.update("a", Some("somebody else".into()), None, ROOT, Caller::PATIENT).unwrap_err();
    assert!(matches!(error, VfError::Untold { .. }), "{error}");
    node.return_pf(node.pf(0));
    vfs.hand_over("a", &heir, Caller::PATIENT).unwrap();
    assert_eq!(ids(&vfs), ["b"]);
    assert!(node.fingerprint().contains("id: 9"), "{}", node.fingerprint());
    release(&vfs, "b");
}

#[test]
fn a_lease_whose_vf_went_during_its_handing_over_comes_back_with_the_vf() {
    let (node, vfs) = stranded();
    let numvfs = node.sysfs().file(node.pf(0), "sriov_numvfs");
    node.kernel().write(&numvfs, "0").unwrap();
    node.return_pf(node.pf(0));
    vfs.rescan();
    assert_eq!(ids(&vfs), ["a"]);
    assert_eq!(vfs.view().lost.len(), 1);
    node.kernel().write(&numvfs, "2").unwrap();
    vfs.rescan();
    assert_eq!((ids(&vfs), &vfs.facts().leases[&node.vf(0, 0)].fault), (vec!["a".to_owned()], &None));
    assert!(node.fingerprint().contains("id: 7"), "{}", node.fingerprint());
}

#[test]
fn whoever_asks_for_either_lease_during_a_handing_over_waits_for_what_becomes_of_it() {
    let node = Arc::new(FakeNode::new(1, 7));
    let is_inside = Arc::new(AtomicBool::new(false));
    let (beside, inside) = (Arc::clone(&node), Arc::clone(&is_inside));
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if matches!(point, Point::Before(Step::Reset { .. })) && !inside.load(Ordering::Relaxed) {
            beside.set(Scenario::ReportHangs);
            inside.store(true, Ordering::Relaxed);
        }
    });
    let vfs = owner_of(&node, Some(observer));
    vfs.create(node.pf(0), 2).unwrap();
    vfs.acquire(&of_pool("a")).unwrap();
    thread::scope(|scope| {
        let handing = scope.spawn(|| vfs.hand_over("a", &of_pool("b"), Caller::PATIENT));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_inside.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "it begins");
            thread::yield_now();
        }
        let acquires = scope.spawn(|| vfs.acquire(&of_pool("b")));
        let releases = scope.spawn(|| vfs.release_once("a", Remains::Refused, ROOT, Caller::PATIENT));
        thread::sleep(Duration::from_millis(30));
        assert!(!acquires.is_finished() && !releases.is_finished(), "both wait");
        node.heal();
        handing.join().unwrap().unwrap();
        assert_eq!(acquires.join().unwrap().unwrap().vf, node.vf(0, 0), "it has that VF, and no second one");
        let error = releases.join().unwrap().unwrap_err();
        assert!(matches!(error, VfError::NoSuchLease { .. }), "{error}");
    });
    assert_eq!(ids(&vfs), ["b"]);
}

// The others of an IOMMU group.

/// Two VFs of one group; the second is bound to the kernel's driver.
fn group() -> (FakeNode, Vfs, [PciAddress; 2]) {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = owner_of(&node, None);
    vfs.create(node.pf(0), 2).expect("a node that is healthy does it");
    let pair = [node.vf(0, 0), node.vf(0, 1)];
    node.kernel().write(&node.sysfs().probe_file(), &pair[1].to_string()).expect("a node that is healthy does it");
    vfs.rescan();
    (node, vfs, pair)
}

const DEFAULT_ROUTE: &[&str] = &["the default route goes over it"];

#[test]
fn what_an_heir_sets_through_a_pf_that_was_away_at_first_goes_with_it() {
    let (node, vfs) = node(1, 1);
    let before = node.fingerprint();
    node.move_pf_away(node.pf(0));
    vfs.acquire(&of_pool("a")).unwrap();
    node.return_pf(node.pf(0));
    let attributes = Attributes { trust: Some(true), ..vlan(100) };
    vfs.hand_over("a", &Request { attributes, ..of_pool("b") }, Caller::PATIENT).unwrap();
    release(&vfs, "b");
    assert_eq!(node.fingerprint(), before, "the next one is not in its VLAN");
}

#[test]
fn another_vf_of_the_group_that_the_host_uses_is_not_taken_along_unless_forced() {
    let (node, vfs, [asked, neighbour]) = group();
    node.use_by_host(neighbour, DEFAULT_ROUTE);
    let before = node.fingerprint();
    let lease = request("a", Choice::Vf(asked), Driver::VfioPci);
    let told = vfs.acquire(&lease).unwrap_err().to_string();
    assert!(told.contains(&neighbour.to_string()) && told.contains("the default route goes over it"), "{told}");
    let reasons = vfs.explain(asked, Driver::VfioPci).unwrap();
    assert!(matches!(&reasons[..], [Reason::GroupUsedByHost { .. }]), "{reasons:?}");
    // Nor by another wish.
    vfs.acquire(&request("a", Choice::Vf(asked), Driver::None)).unwrap();
    assert!(matches!(vfs.acquire(&lease).unwrap_err(), VfError::Unavailable { .. }));
    assert_eq!(node.fingerprint(), before);
    vfs.acquire(&Request { force: true, ..lease }).unwrap();
    assert_eq!(node.sysfs().driver(neighbour).as_deref(), Some("vfio-pci"));
}

#[test]
fn another_vf_of_the_group_that_is_in_use_after_a_reboot_is_not_taken_by_what_brings_a_lease_back() {
    for in_pod in [true, false] {
        let (node, vfs, [lent, neighbour]) = group();
        vfs.acquire(&request("a", Choice::Vf(lent), Driver::VfioPci)).unwrap();
        drop(vfs);
        node.reboot("second");
        node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_numvfs"), "2").unwrap();
        let let_go = if in_pod {
            node.move_netdev(neighbour, 77, "nginx");
            "process 77 (nginx)"
        } else {
            node.use_by_host(neighbour, DEFAULT_ROUTE);
            "the default route goes over it"
        };
        let vfs = owner_of(&node, None);
        assert_eq!(node.sysfs().driver(neighbour).as_deref(), Some("igbvf"), "{let_go}");
        let fault = vfs.facts().leases[&lent].fault.clone().unwrap();
        assert!(fault.contains(&neighbour.to_string()) && fault.contains(let_go), "{fault}");
        assert!(!fault.contains("--force"), "nobody could say that here: {fault}");
        if in_pod {
            node.return_netdev(neighbour);
        } else {
            node.use_by_host(neighbour, &[]);
        }
        vfs.rescan();
        assert_eq!(vfs.facts().leases[&lent].fault, None);
        assert_eq!(node.sysfs().driver(neighbour).as_deref(), Some("vfio-pci"));
    }
}

#[test]
fn another_vf_of_the_group_that_is_in_use_is_not_taken_by_a_handing_over_to_vfio_pci() {
    let (node, vfs, [lent, neighbour]) = group();
    vfs.acquire(&request("a", Choice::Vf(lent), Driver::Kernel)).unwrap();
    node.move_netdev(neighbour, 77, "nginx");
    let heir = request("b", Choice::Vf(lent), Driver::VfioPci);
    let error = vfs.hand_over("a", &heir, Caller::PATIENT).unwrap_err();
    assert!(matches!(&error, VfError::Held { vf, .. } if *vf == neighbour), "{error}");
    node.return_netdev(neighbour);
    node.use_by_host(neighbour, DEFAULT_ROUTE);
    let error = vfs.hand_over("a", &heir, Caller::PATIENT).unwrap_err();
    assert!(matches!(&error, VfError::UsedByHost { vf, .. } if *vf == neighbour), "{error}");
    assert_eq!(ids(&vfs), ["a"]);
    assert_eq!([lent, neighbour].map(|vf| node.sysfs().driver(vf)), ["igbvf"; 2].map(|driver| Some(driver.to_owned())));
    node.use_by_host(neighbour, &[]);
    vfs.hand_over("a", &heir, Caller::PATIENT).unwrap();
    assert_eq!(node.sysfs().driver(neighbour).as_deref(), Some("vfio-pci"));
}

#[test]
fn another_vf_of_the_group_that_is_in_use_is_not_taken_when_the_leases_own_is_gone() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = owner_of(&node, None);
    vfs.create(node.pf(0), 2).unwrap();
    let [lent, neighbour] = [node.vf(0, 0), node.vf(0, 1)];
    vfs.acquire(&request("a", Choice::Vf(lent), Driver::VfioPci)).unwrap();
    node.remove_vf(lent);
    vfs.rescan();
    let file = node.open_vfio(neighbour, 11, "qemu");
    let error = vfs.release("a", Duration::ZERO, ROOT).unwrap_err();
    assert!(matches!(&error, VfError::Held { vf, .. } if *vf == neighbour), "{error}");
    assert_eq!(node.sysfs().driver(neighbour).as_deref(), Some("vfio-pci"));
    drop(file);
    vfs.rescan();
    assert_eq!((node.sysfs().driver(neighbour), ids(&vfs)), (None, vec![]));
}

#[test]
fn a_lease_that_wants_vfio_pci_later_takes_no_vf_along_that_somebody_has_claimed() {
    let (node, vfs, [lent, neighbour]) = group();
    vfs.acquire(&request("a", Choice::Vf(lent), Driver::Kernel)).unwrap();
    let claim = Claim { vfs: [neighbour].into(), ..Claim::default() };
    vfs.claim("plugin", claim, ROOT).unwrap();
    let error = vfs.acquire(&request("a", Choice::Vf(lent), Driver::VfioPci)).unwrap_err().to_string();
    assert!(error.contains("is claimed by plugin"), "{error}");
    assert_eq!(node.sysfs().driver(neighbour).as_deref(), Some("igbvf"));
    vfs.unclaim("plugin", ROOT).unwrap();
    vfs.acquire(&request("a", Choice::Vf(lent), Driver::VfioPci)).unwrap();
    // What went along before it was claimed is not taken back by a claim.
    vfs.claim("plugin", Claim { vfs: [neighbour].into(), ..Claim::default() }, ROOT).unwrap();
    let other = Request { attributes: vlan(7), ..request("a", Choice::Vf(lent), Driver::VfioPci) };
    vfs.acquire(&other).unwrap();
}

#[test]
fn a_lease_on_its_way_back_to_vfio_pci_keeps_its_group() {
    let (node, vfs, [lent, neighbour]) = group();
    vfs.acquire(&request("a", Choice::Vf(lent), Driver::VfioPci)).unwrap();
    node.set(Scenario::NobodyProbes);
    vfs.acquire(&request("a", Choice::Vf(lent), Driver::Kernel)).unwrap_err();
    assert!(matches!(vfs.facts().leases[&lent].stage, Stage::Changing { .. }));
    node.heal();
    let error = vfs.acquire(&request("b", Choice::Vf(neighbour), Driver::None)).unwrap_err().to_string();
    assert!(error.contains("goes as a whole"), "{error}");
    vfs.rescan();
    assert_eq!(node.sysfs().driver(neighbour).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_handing_over_that_was_done_is_told_so_also_with_the_driver_of_the_pool() {
    let (node, vfs) = node(1, 1);
    vfs.acquire(&of_pool("a")).unwrap();
    let heir = Request { driver: None, choice: Choice::Vf(PciAddress::new(0, 0, 0, 0)), ..of_pool("b") };
    let pfs = vec![PfSelector { driver: Some("igb".into()), ..PfSelector::default() }];
    let pool = Pool { name: "all".into(), pfs, driver: Some(Driver::VfioPci), ..Pool::default() };
    vfs.adopt_policies(Policies { pools: vec![pool] }, Counts::Changed).unwrap();
    vfs.hand_over("a", &heir, Caller::PATIENT).unwrap();
    assert_eq!(node.sysfs().driver(node.vf(0, 0)).as_deref(), Some("vfio-pci"));
    assert_eq!(vfs.hand_over("a", &heir, Caller::PATIENT).unwrap().steps, [], "the VF stays where it is");
    assert_eq!(node.sysfs().driver(node.vf(0, 0)).as_deref(), Some("vfio-pci"));
}
