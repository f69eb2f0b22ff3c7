//! VFs that have an owner, PFs that are cordoned, and policies without which nobody has anything.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use sriov_manager::attributes::{Attributes, Vlan};
use sriov_manager::executor::{Observer, Point};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::journal::Record;
use sriov_manager::lease::{Claim, Cordon, Stage};
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool, Principal};
use sriov_manager::vfs::{Caller, Choice, Counts, Options, Reason, Remains, Request};
use sriov_manager::{Driver, VfError, Vfs};

use crate::owned::{ROOT, USER, node, of_pool, owner_of, release, request};

fn by_plugin(request: Request) -> Request {
    Request { owner: Some("plugin".into()), ..request }
}

fn claim_pool(pool: &str) -> Claim {
    Claim { pools: [pool.into()].into(), ..Claim::default() }
}

#[test]
fn nobody_else_is_lent_what_an_owner_has_claimed_not_even_root() {
    let (node, vfs) = node(2, 2);
    let claimed = vfs.claim("plugin", claim_pool("first"), ROOT).unwrap();
    assert_eq!((claimed.vfs.len(), claimed.lent_to_others.len()), (2, 0));
    let advertised = node.vf(0, 0);
    let error = vfs.acquire(&request("x", Choice::Vf(advertised), Driver::None)).unwrap_err();
    assert!(matches!(&error, VfError::Unavailable { reasons, .. } if matches!(&reasons[..], [Reason::Claimed { .. }])));
    // The pool still has those of the other PF.
    for id in ["a", "b"] {
        assert_ne!(vfs.acquire(&of_pool(id)).unwrap().vf.to_string()[..8], advertised.to_string()[..8]);
    }
    assert!(matches!(vfs.acquire(&of_pool("c")), Err(VfError::NoneFree { .. })));
    assert!(matches!(&vfs.explain(advertised, Driver::None).unwrap()[..], [Reason::Claimed { .. }]));
    assert_eq!(vfs.explain_to(advertised, Some(Driver::None), Some("plugin")).unwrap(), []);

    // Another user does not become the owner by saying so.
    let chosen = Choice::VfOfPools { vf: advertised, pools: vec!["first".into()] };
    let asked = by_plugin(request("pod", chosen, Driver::VfioPci));
    assert!(matches!(vfs.acquire(&Request { peer: USER, ..asked.clone() }), Err(VfError::Unavailable { .. })));
    assert!(matches!(vfs.claim("plugin", claim_pool("all"), USER), Err(VfError::OwnerOfAnother { .. })));
    assert_eq!(vfs.acquire(&asked).unwrap().vf, advertised);
    let lease = vfs.facts().leases[&advertised].clone();
    assert_eq!((lease.owner.as_deref(), lease.pool.as_deref()), (Some("plugin"), Some("first")));
}

#[test]
fn a_claim_outlives_both_processes_and_covers_vfs_that_come_later() {
    let (node, vfs) = node(1, 2);
    vfs.claim("plugin", claim_pool("first"), ROOT).unwrap();
    drop(vfs);
    let vfs = owner_of(&node, None);
    vfs.create(node.pf(0), 4).unwrap();
    assert!(vfs.view().vfs.iter().all(|vf| vf.owner.as_deref() == Some("plugin")));
    assert!(matches!(vfs.acquire(&of_pool("x")), Err(VfError::NoneFree { .. })));
    vfs.acquire(&by_plugin(of_pool("pod"))).unwrap();
    // What he does not name any more is anybody's; so is everything when he is gone.
    let one = Claim { vfs: [node.vf(0, 0)].into(), ..Claim::default() };
    assert_eq!(vfs.claim("plugin", one, ROOT).unwrap().vfs, [node.vf(0, 0)]);
    assert_ne!(vfs.acquire(&of_pool("x")).unwrap().vf, node.vf(0, 0));
    assert!(matches!(vfs.unclaim("plugin", USER), Err(VfError::OwnerOfAnother { .. })));
    vfs.unclaim("plugin", ROOT).unwrap();
    assert!(matches!(vfs.unclaim("plugin", ROOT), Err(VfError::NoSuchOwner { .. })));
    assert!(vfs.view().vfs.iter().all(|vf| vf.owner.is_none()));
    assert!(matches!(vfs.acquire(&by_plugin(of_pool("y"))), Err(VfError::NoneFree { .. })), "he owns none");
}

#[test]
fn two_owners_never_have_the_same_vf_and_leases_of_others_are_told() {
    let (node, vfs) = node(1, 3);
    let before = vfs.acquire(&request("old", Choice::Vf(node.vf(0, 1)), Driver::None)).unwrap().vf;
    let claimed = vfs.claim("plugin", claim_pool("first"), ROOT).unwrap();
    assert_eq!(claimed.lent_to_others, [(before, "old".to_owned())]);
    let error = vfs.claim("other", Claim { vfs: [node.vf(0, 2)].into(), ..Claim::default() }, ROOT).unwrap_err();
    assert!(error.to_string().contains("is claimed by plugin"), "{error}");
    release(&vfs, "old");
    assert!(vfs.acquire(&request("old", Choice::Vf(before), Driver::None)).is_err(), "it is the owner's now");
}

#[test]
fn a_claimed_member_of_a_group_is_not_taken_along_to_vfio() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = owner_of(&node, None);
    vfs.create(node.pf(0), 2).unwrap();
    vfs.claim("plugin", Claim { vfs: [node.vf(0, 1)].into(), ..Claim::default() }, ROOT).unwrap();
    let error = vfs.acquire(&request("x", Choice::Vf(node.vf(0, 0)), Driver::VfioPci)).unwrap_err().to_string();
    assert!(error.contains("0000:02:10.2 is claimed by plugin"), "{error}");
    vfs.acquire(&request("x", Choice::Vf(node.vf(0, 0)), Driver::None)).unwrap();
}

#[test]
fn who_may_not_have_a_pool_may_not_claim_it() {
    let node = FakeNode::new(1, 7);
    let pfs = vec![PfSelector { driver: Some("igb".into()), ..PfSelector::default() }];
    let who = Some(vec![Principal::User(7)]);
    let pools = vec![Pool { name: "ours".into(), pfs, who, ..Pool::default() }];
    let vfs = Vfs::open(Options { policies: Policies { pools }, ..node.options() }).unwrap();
    vfs.create(node.pf(0), 1).unwrap();
    assert!(matches!(vfs.claim("plugin", claim_pool("ours"), USER), Err(VfError::NotAllowed { .. })));
    let one = Claim { vfs: [node.vf(0, 0)].into(), ..Claim::default() };
    assert!(matches!(vfs.claim("plugin", one, USER), Err(VfError::NotAllowed { .. })));
    assert!(matches!(vfs.claim("plugin", claim_pool("none"), ROOT), Err(VfError::NoSuchPool { .. })));
}

#[test]
fn a_cordoned_pf_lends_to_nobody_new_and_says_what_it_waits_for() {
    let (node, vfs) = node(2, 2);
    let kept = vfs.acquire(&request("kept", Choice::Vf(node.vf(0, 0)), Driver::VfioPci)).unwrap().vf;
    vfs.cordon(node.pf(0), Some(Cordon { uid: 0, why: "new firmware".into(), card: None })).unwrap();
    drop(vfs);
    let vfs = owner_of(&node, None);
    for id in ["a", "b"] {
        let vf = vfs.acquire(&of_pool(id)).unwrap().vf;
        assert!([node.vf(1, 0), node.vf(1, 1)].contains(&vf), "{vf}");
    }
    assert!(matches!(vfs.acquire(&of_pool("c")), Err(VfError::NoneFree { .. })));
    let error = vfs.acquire(&request("c", Choice::Vf(node.vf(0, 1)), Driver::None)).unwrap_err().to_string();
    assert!(error.contains("new firmware"), "{error}");
    let mut changed = request("kept", Choice::Vf(kept), Driver::VfioPci);
    changed.attributes = Attributes { vlan: Some(Vlan { id: 7, ..Vlan::default() }), ..Attributes::default() };
    vfs.acquire(&changed).expect("who has a VF keeps it, and may change it");
    let _file = node.open_vfio(kept, 9, "testpmd");
    let blockers = vfs.blockers(node.pf(0), ROOT).unwrap();
    assert!(matches!(&blockers[..], [(a, Reason::Lent { .. }), (b, Reason::Held(_))] if *a == kept && *b == kept));
    vfs.cordon(node.pf(0), None).unwrap();
    vfs.acquire(&of_pool("c")).unwrap();
}

#[test]
fn a_claim_is_not_made_wider_over_a_pool_that_another_has_claimed_before_it_has_a_vf() {
    let (node, vfs) = node(2, 0);
    vfs.create(node.pf(1), 2).unwrap();
    let one = |index| Claim { vfs: [node.vf(1, index)].into(), ..Claim::default() };
    vfs.claim("old", one(0), ROOT).unwrap();
    assert!(vfs.claim("plugin", claim_pool("first"), ROOT).unwrap().vfs.is_empty());
    let wider = Claim { pools: ["first".into()].into(), ..one(0) };
    let error = vfs.claim("old", wider, ROOT).unwrap_err();
    assert!(error.to_string().contains("the pool first is claimed by plugin"), "{error}");
    vfs.create(node.pf(0), 2).unwrap();
    assert!(vfs.view().vfs.iter().filter(|vf| vf.vf.pf == node.pf(0)).all(|vf| vf.owner.as_deref() == Some("plugin")));
}

#[test]
fn a_claim_is_as_old_as_the_widest_that_it_was() {
    let (node, vfs) = node(1, 2);
    drop(vfs);
    let vf = |index: u32| node.vf(0, index);
    let line = format!(
        r#"{{"claim":{{"owner":"plugin","claim":{{"uid":0,"pools":[],"vfs":["{}"],"since":5}}}}}}"#,
        [vf(0), vf(1)].map(|vf| vf.to_string()).join("\",\"")
    );
    std::fs::write(node.state().join("journal"), format!("{line}\n")).unwrap();
    let vfs = owner_of(&node, None);
    let since = |vfs: &Vfs| vfs.facts().claims["plugin"].since;
    vfs.claim("plugin", Claim { vfs: [vf(0)].into(), ..Claim::default() }, ROOT).unwrap();
    assert_eq!(since(&vfs), 5, "it is narrower");
    vfs.claim("plugin", Claim { vfs: [vf(0), vf(1)].into(), ..Claim::default() }, ROOT).unwrap();
    assert!(since(&vfs) > 5, "it is wider than before");
}

#[test]
fn one_user_is_not_any_number_of_owners() {
    let node = FakeNode::new(1, 7);
    let none = vec![PfSelector { driver: Some("ice".into()), ..PfSelector::default() }];
    let pool = |number| Pool { name: format!("pool-{number}"), pfs: none.clone(), ..Pool::default() };
    let policies = Policies { pools: (0..66).map(pool).collect() };
    let vfs = Vfs::open(Options { policies, ..node.options() }).unwrap();
    let claim =
        |number: usize, peer| vfs.claim(&format!("owner-{number}"), claim_pool(&format!("pool-{number}")), peer);
    for number in 0..64 {
        claim(number, USER).unwrap();
    }
    let error = claim(64, USER).unwrap_err().to_string();
    assert!(error.contains("is 64 owners already"), "{error}");
    claim(65, ROOT).expect("another user is another one");
    claim(0, USER).expect("he has that one");
    vfs.unclaim("owner-0", USER).unwrap();
    claim(64, USER).unwrap();
}

#[test]
fn nobody_gets_along_with_an_iommu_group_what_he_may_not_have() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let pfs = vec![PfSelector { vfs: Some([1].into()), ..PfSelector::default() }];
    let roots = Pool { name: "roots".into(), pfs, who: Some(vec![Principal::User(0)]), ..Pool::default() };
    let vfs = Vfs::open(Options { policies: Policies { pools: vec![roots] }, ..node.options() }).unwrap();
    vfs.create(node.pf(0), 2).unwrap();
    let asked = |driver, peer| Request { peer, ..request("pod", Choice::Vf(node.vf(0, 0)), driver) };
    let refused = vfs.acquire(&asked(Driver::VfioPci, USER)).unwrap_err().to_string();
    assert!(refused.contains(&format!("have {}", node.vf(0, 1))), "{refused}");
    // Neither in two steps.
    vfs.acquire(&asked(Driver::None, USER)).unwrap();
    vfs.acquire(&asked(Driver::VfioPci, USER)).unwrap_err();
    vfs.release("pod", Duration::ZERO, USER).unwrap();
    vfs.acquire(&asked(Driver::VfioPci, ROOT)).unwrap();
}

#[test]
fn an_acquire_under_way_has_a_lease_that_a_claim_or_a_cordon_tells_of_or_none() {
    for cordon in [false, true] {
        let (node, vfs) = node(1, 1);
        node.set(Scenario::ReportHangs);
        let asking = vfs.clone();
        let acquire = thread::spawn(move || asking.acquire(&of_pool("x")).map(drop));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !vfs.view().vfs[0].busy {
            assert!(Instant::now() < deadline, "the VF was chosen");
            thread::sleep(Duration::from_millis(1));
        }
        if cordon {
            vfs.cordon(node.pf(0), Some(Cordon { uid: 0, why: "new firmware".into(), card: None })).unwrap();
        } else {
            assert_eq!(vfs.claim("plugin", claim_pool("all"), ROOT).unwrap().lent_to_others, []);
        }
        node.heal();
        let refused = acquire.join().unwrap().expect_err("it was not lent before");
        assert!(matches!(refused, VfError::NoneFree { .. }), "{refused}");
        assert!(vfs.facts().leases.is_empty());
    }
}

// Policies that were given over the API.

const RESTRICTED: &str = "pools:
  - { name: fast, pfs: [{ name: ens1f0 }], num_vfs: 2, who: [root] }
  - { name: slow, pfs: [{ address: 0000:03:00.0 }], num_vfs: 3 }
";

#[test]
fn policies_that_cannot_be_used_any_more_let_nobody_have_what_they_kept() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    vfs.apply_policies(RESTRICTED).unwrap();
    vfs.acquire(&request("kept", Choice::pool("fast"), Driver::VfioPci)).unwrap();
    vfs.claim("plugin", claim_pool("slow"), ROOT).unwrap();
    drop(vfs);
    // Both pools mean the same PF now, and want different numbers of VFs.
    node.swap_pf_names(node.pf(0), node.pf(1));
    let vfs = Vfs::load(node.options()).unwrap();
    vfs.take_policies_from(None);
    vfs.recover();
    vfs.rescan();
    assert!(vfs.view().policies_refused.as_ref().unwrap().contains("different numbers of VFs"));
    assert_eq!((vfs.view().policies.wanted, vfs.view().policies.reached), (1, 0), "nothing was made what they want");
    for vf in [node.vf(0, 1), node.vf(1, 0)] {
        for peer in [ROOT, USER] {
            let asked = Request { peer, ..request("x", Choice::Vf(vf), Driver::VfioPci) };
            let refused = vfs.acquire(&asked).unwrap_err();
            assert!(refused.to_string().contains("no VF is lent: the policies"), "{refused}");
            let claim = Claim { vfs: [vf].into(), ..Claim::default() };
            assert!(matches!(vfs.claim("other", claim, peer), Err(VfError::NoPolicies { .. })));
        }
        let shown = vfs.explain(vf, Driver::VfioPci).unwrap();
        assert!(shown.iter().any(|reason| matches!(reason, Reason::NoPolicies { .. })), "{shown:?}");
    }
    let mut again = request("kept", Choice::pool("fast"), Driver::VfioPci);
    assert_eq!(vfs.acquire(&again).unwrap().steps, [], "who has a VF keeps it");
    again.driver = Some(Driver::None);
    assert!(matches!(vfs.acquire(&again), Err(VfError::Unavailable { .. })));
    let next = request("next", Choice::Vf(node.vf(0, 0)), Driver::VfioPci);
    assert!(matches!(vfs.hand_over("kept", &next, Caller::PATIENT), Err(VfError::NoPolicies { .. })));
    release(&vfs, "kept");
    vfs.apply_policies("pools: [{ name: fast, pfs: [{ driver: igb }] }]").unwrap();
    vfs.acquire(&request("x", Choice::pool("fast"), Driver::VfioPci)).unwrap();
}

#[test]
fn policies_of_a_start_that_contradict_each_other_by_then_leave_leases_to_be_released() {
    let node = FakeNode::new(2, 7);
    let pool = |name: &str, pf: PfSelector, count| Pool {
        name: name.into(),
        pfs: vec![pf],
        num_vfs: Some(NumVfs::Exactly(count)),
        ..Pool::default()
    };
    let by_name = PfSelector { name: Some("ens1f0".into()), ..PfSelector::default() };
    let by_address = PfSelector { address: Some(node.pf(1)), ..PfSelector::default() };
    let policies = Policies { pools: vec![pool("fast", by_name, 2), pool("slow", by_address.clone(), 3)] };
    let options = || Options { policies: policies.clone(), ..node.options() };
    let vfs = Vfs::open(options()).unwrap();
    vfs.acquire(&request("kept", Choice::pool("fast"), Driver::VfioPci)).unwrap();
    drop(vfs);
    // As after a reboot that renamed them.
    node.swap_pf_names(node.pf(0), node.pf(1));
    let vfs = Vfs::open(options()).expect("it starts all the same");
    assert!(vfs.view().policies_refused.as_ref().unwrap().contains("different numbers of VFs"));
    let refused = vfs.acquire(&request("x", Choice::Vf(node.vf(0, 1)), Driver::VfioPci)).unwrap_err();
    assert!(matches!(refused, VfError::NoPolicies { .. }), "{refused}");
    release(&vfs, "kept");
    vfs.adopt_policies(Policies { pools: vec![pool("slow", by_address, 3)] }, Counts::Changed).unwrap();
    assert_eq!(vfs.view().policies_refused, None);
    vfs.acquire(&request("x", Choice::pool("slow"), Driver::VfioPci)).unwrap();
}

#[test]
fn policies_that_cannot_be_used_any_more_leave_tenants_on_the_drivers_that_they_named() {
    let node = FakeNode::new(2, 7);
    std::fs::create_dir_all(node.sysfs().path("sys/bus/pci/drivers/othervf")).unwrap();
    std::fs::write(node.sysfs().unbind_file("othervf"), "").unwrap();
    let vfs = node.open();
    vfs.apply_policies(&RESTRICTED.replace("name: fast", "name: fast, kernel_driver: othervf")).unwrap();
    let vf = vfs.acquire(&request("kept", Choice::pool("fast"), Driver::Kernel)).unwrap().vf;
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("othervf"));
    drop(vfs);
    node.swap_pf_names(node.pf(0), node.pf(1));
    let vfs = Vfs::load(node.options()).unwrap();
    vfs.take_policies_from(None);
    vfs.recover();
    assert!(vfs.view().policies_refused.is_some());
    assert_eq!((node.sysfs().driver(vf).as_deref(), &vfs.facts().leases[&vf].fault), (Some("othervf"), &None));
}

#[test]
fn policies_that_are_recorded_hold_also_if_a_pf_makes_them_contradict_each_other_meanwhile() {
    let node = Arc::new(FakeNode::new(2, 7));
    let vfs = Arc::new(Mutex::new(None::<Vfs>));
    let (seen, changed) = (Arc::clone(&vfs), Arc::clone(&node));
    let observer: Observer = Arc::new(move |point: &Point<'_>| {
        if let (Point::Recorded(Record::Policies { .. }), Some(vfs)) = (point, seen.lock().unwrap().take()) {
            changed.swap_pf_names(changed.pf(0), changed.pf(1));
            vfs.rescan();
        }
    });
    let owner = Vfs::open(Options { observer: Some(observer), ..node.options() }).unwrap();
    *vfs.lock().unwrap() = Some(owner.clone());
    let applied = owner.apply_policies(RESTRICTED).unwrap();
    assert_eq!(applied.generation, owner.facts().policies.unwrap().generation);
    let view = owner.view();
    assert!(view.vfs.iter().any(|vf| vf.pools.contains(&"slow".to_owned())), "they hold");
    assert!(view.warnings.iter().any(|warning| warning.contains("different numbers")), "{:?}", view.warnings);
}

// What cannot be asked is not free.

#[test]
fn a_vf_is_not_given_back_while_nobody_can_tell_who_has_it_open() {
    let (node, vfs) = node(1, 1);
    let vf = vfs.acquire(&of_pool("x")).unwrap().vf;
    let file = node.open_vfio(vf, 9, "testpmd");
    let [there, away] = ["proc", "away"].map(|name| node.sysfs().path(name));
    std::fs::rename(&there, &away).unwrap();
    let refused = vfs.release("x", Duration::ZERO, ROOT).unwrap_err();
    assert!(matches!(refused, VfError::Ask { .. }) && refused.to_string().contains("/proc"), "{refused}");
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Lent);
    std::fs::rename(&away, &there).unwrap();
    assert!(matches!(vfs.release("x", Duration::ZERO, ROOT), Err(VfError::Held { .. })));
    drop(file);
    release(&vfs, "x");
}

#[test]
fn a_vf_that_was_not_tried_to_be_cleaned_is_free_as_it_is_for_root_alone() {
    let (node, vfs) = node(1, 1);
    let vlan = Some(Vlan { id: 7, ..Vlan::default() });
    let mine = Request { peer: USER, ..of_pool("x") };
    vfs.acquire(&Request { attributes: Attributes { vlan, ..Attributes::default() }, ..mine }).unwrap();
    node.move_pf_away(node.pf(0));
    let accept = |peer| vfs.release_once("x", Remains::Accepted, peer, Caller::PATIENT).map(drop);
    for _ in 0..2 {
        assert!(matches!(accept(USER), Err(VfError::Untold { .. })), "its VLAN may be the next one's");
    }
    accept(ROOT).unwrap();
    node.return_pf(node.pf(0));
    // What was tried and refused, its user may accept.
    vfs.acquire(&Request { peer: USER, ..of_pool("x") }).unwrap();
    node.set(Scenario::MacRefused);
    let refused = vfs.release("x", Duration::ZERO, USER).unwrap_err();
    assert!(matches!(refused, VfError::Dirty { .. }), "{refused}");
    accept(USER).unwrap();
}

#[test]
fn who_is_not_root_opens_no_vf_that_another_has_been_lent() {
    let (node, vfs) = node(1, 2);
    let vf = vfs.acquire(&of_pool("x")).unwrap().vf;
    let _file = node.open_vfio(vf, 9, "qemu");
    let held = |peer| {
        let blockers = vfs.blockers(node.pf(0), peer).unwrap();
        blockers.iter().filter(|(_, reason)| matches!(reason, Reason::Held(_))).count()
    };
    assert_eq!((held(USER), held(ROOT)), (0, 1));
}

#[test]
fn another_user_does_not_keep_a_manager_from_the_node() {
    let node = FakeNode::new(1, 1);
    let devices = std::fs::File::open(node.sysfs().path("sys/bus/pci/devices")).unwrap();
    let _lock = Flock::lock(devices, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).unwrap();
    let vfs = node.open();
    let second = Vfs::load(Options { state: node.state().with_file_name("other"), ..node.options() });
    assert!(second.is_err(), "another manager does");
    drop(vfs);
}
