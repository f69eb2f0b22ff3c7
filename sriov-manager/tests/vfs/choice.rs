//! Which VFs are lent where some of a pool fail, and where several are asked for at once.

use std::cell::Cell;
use std::time::Duration;

use crate::owned::{ROOT, USER, node, of_pool, owner_of, release, request};
use nix::libc;
use sriov_manager::attributes::{Attributes, Mac, Vlan};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::lease::Stage;
use sriov_manager::vfs::{Caller, Choice, Place, Reason, Request, WhenBusy};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

fn vlan(id: u16) -> Attributes {
    Attributes { vlan: Some(Vlan { id, ..Vlan::default() }), ..Attributes::default() }
}

fn acquire_all(vfs: &Vfs, requests: &[Request], same_pf: bool) -> Result<Vec<PciAddress>, VfError> {
    let acquired = vfs.acquire_all(requests, same_pf, Caller::PATIENT)?;
    Ok(acquired.iter().map(|acquired| acquired.vf).collect())
}

// One that fails does not block a pool.

#[test]
fn a_vf_that_its_pf_leaves_out_is_passed_over_and_is_the_last_choice_for_a_while() {
    let (node, vfs) = node(1, 3);
    node.set(Scenario::LeftOut(0));
    assert_eq!(vfs.plan_acquire(&of_pool("a")).unwrap().vf, node.vf(0, 1));
    assert_eq!(vfs.acquire(&of_pool("a")).unwrap().vf, node.vf(0, 1));
    node.heal();
    assert_eq!(vfs.acquire(&of_pool("b")).unwrap().vf, node.vf(0, 2), "the next call does not wait for it again");
    assert_eq!(vfs.acquire(&of_pool("c")).unwrap().vf, node.vf(0, 0), "it is still a choice");
}

#[test]
fn a_pf_that_is_away_does_not_block_a_pool_with_others() {
    let (node, vfs) = node(2, 2);
    node.move_pf_away(node.pf(0));
    let asked = |id: &str| Request { attributes: vlan(7), ..of_pool(id) };
    assert_eq!(vfs.acquire(&asked("a")).unwrap().vf, node.vf(1, 0));
    assert_eq!(vfs.acquire(&asked("b")).unwrap().vf, node.vf(1, 1));
    // Where there is no other one, what is wrong is told, and not only that none is left.
    let error = vfs.acquire(&asked("c")).unwrap_err();
    assert!(matches!(error, VfError::Untold { .. }), "{error}");
    assert_eq!(vfs.facts().leases.len(), 2);
}

#[test]
fn a_vf_that_no_driver_takes_does_not_block_its_pool_and_is_as_it_was() {
    let (node, vfs) = node(1, 3);
    let before = node.fingerprint();
    node.set(Scenario::ProbeRefused(node.vf(0, 0), libc::EIO));
    assert_eq!(vfs.acquire(&of_pool("a")).unwrap().vf, node.vf(0, 1));
    assert_eq!(vfs.facts().leases.len(), 1);
    release(&vfs, "a");
    assert_eq!(node.fingerprint(), before);
    // One that is named is that one or none.
    let named = request("b", Choice::Vf(node.vf(0, 0)), Driver::VfioPci);
    assert!(matches!(vfs.acquire(&named).unwrap_err(), VfError::Step(_)));
}

#[test]
fn what_no_vf_can_do_is_not_tried_on_every_one_of_a_pool() {
    let (node, vfs) = node(1, 7);
    let before = node.fingerprint();
    node.set(Scenario::MacRefused);
    let mac = Some(Mac([2, 0, 0, 0, 0, 9]));
    let asked = Request { attributes: Attributes { mac, ..Attributes::default() }, ..of_pool("a") };
    let error = vfs.acquire(&asked).unwrap_err();
    assert!(matches!(error, VfError::Step(_)), "{error}");
    node.heal();
    assert_eq!(node.fingerprint(), before);
    let tried: Vec<_> =
        (0..7).filter(|&vf| node.log().iter().any(|line| line.contains(&node.vf(0, vf).to_string()))).collect();
    assert!(tried.len() < 6, "{tried:?}");
}

// Several at once.

#[test]
fn of_one_group_two_are_lent_at_once_only_if_both_stay_with_the_kernel() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = owner_of(&node, None);
    vfs.create(node.pf(0), 2).unwrap();
    let before = node.fingerprint();
    let ask = |id: &str, vf, driver| request(id, Choice::Vf(node.vf(0, vf)), driver);
    for drivers in
        [[Driver::Kernel, Driver::VfioPci], [Driver::VfioPci, Driver::Kernel], [Driver::None, Driver::VfioPci]]
    {
        let both = [ask("a", 0, drivers[0]), ask("b", 1, drivers[1])];
        let error = acquire_all(&vfs, &both, false).unwrap_err();
        let is_same_call = |reasons: &[Reason]| reasons.contains(&Reason::SameCall);
        assert!(
            matches!(&error, VfError::Unavailable { reasons, .. } if is_same_call(reasons)),
            "{drivers:?}: {error}"
        );
        assert_eq!(node.fingerprint(), before);
    }
    // Nor does one that is there take a new one along.
    vfs.acquire(&ask("a", 0, Driver::Kernel)).unwrap();
    let both = [ask("b", 1, Driver::Kernel), ask("a", 0, Driver::VfioPci)];
    assert!(matches!(acquire_all(&vfs, &both, false).unwrap_err(), VfError::Unavailable { .. }));
    acquire_all(&vfs, &[ask("a", 0, Driver::Kernel), ask("b", 1, Driver::Kernel)], false).unwrap();
}

#[test]
fn one_pf_for_all_is_also_that_of_those_that_are_there_and_of_those_that_name_theirs() {
    let (node, vfs) = node(2, 2);
    let on = |id: &str, pf| Request { place: Place { pf: Some(node.pf(pf)), ..Place::default() }, ..of_pool(id) };
    vfs.acquire(&on("a", 1)).unwrap();
    let got = acquire_all(&vfs, &[of_pool("a"), of_pool("b")], true).unwrap();
    assert_eq!(got, [node.vf(1, 0), node.vf(1, 1)]);
    // No room is left beside the one that is there.
    let error = acquire_all(&vfs, &[of_pool("a"), of_pool("c")], true).unwrap_err();
    assert!(matches!(error, VfError::NoPfHasAll { .. }), "{error}");
    assert!(error.to_string().contains("it has 2 VFs"), "what its PF lacks, and not that others are others: {error}");
    let error = acquire_all(&vfs, &[on("d", 0), on("e", 1)], true).unwrap_err();
    assert!(matches!(error, VfError::NoPfHasAll { .. }), "{error}");
    assert_eq!(acquire_all(&vfs, &[on("d", 0), of_pool("e")], true).unwrap(), [node.vf(0, 0), node.vf(0, 1)]);
    // A lease that is there is not one of another PF.
    assert!(matches!(vfs.acquire(&on("a", 0)).unwrap_err(), VfError::Unavailable { .. }));
}

#[test]
fn what_is_wrong_on_every_pf_is_told_as_it_is() {
    let (node, vfs) = node(2, 1);
    let ask = |choice| acquire_all(&vfs, &[request("a", choice, Driver::None), of_pool("b")], true).unwrap_err();
    let error = ask(Choice::pool("slow"));
    assert!(matches!(error, VfError::NoSuchPool { .. }), "{error}");
    let error = ask(Choice::Vf(PciAddress::new(0, 9, 0, 0)));
    assert!(matches!(error, VfError::NoSuchVf { .. }), "{error}");
    vfs.acquire(&Request { peer: USER, ..of_pool("a") }).unwrap();
    let error = ask(Choice::Vf(node.vf(0, 0)));
    assert!(matches!(error, VfError::IdOfAnother { .. }), "{error}");
}

#[test]
fn of_several_whose_client_has_gone_none_stays_lent_though_one_cannot_be_cleaned() {
    let (node, vfs) = node(1, 2);
    let (asked, left) = (Cell::new(0), Mac([2, 0, 0, 0, 0, 9]));
    let has_left = || {
        // He is there when the VFs are chosen, and not any more when they are lent.
        asked.set(asked.get() + 1);
        if asked.get() > 1 {
            node.set(Scenario::MacRefused);
        }
        asked.get() > 1
    };
    let attributes = Attributes { mac: Some(left), ..Attributes::default() };
    let both = [Request { attributes, ..of_pool("a") }, request("b", Choice::pool("all"), Driver::None)];
    let caller = Caller { has_left: &has_left, when_busy: WhenBusy::Wait };
    vfs.acquire_all(&both, false, caller).unwrap_err();
    let leases = vfs.facts().leases;
    let stages: Vec<_> = leases.values().map(|lease| (lease.id.as_str(), &lease.stage)).collect();
    assert_eq!(stages, [("a", &Stage::Dirty)], "the other one is free");
    node.heal();
    vfs.rescan();
    assert!(vfs.facts().leases.is_empty());
    assert!(vfs.release("a", Duration::ZERO, ROOT).is_err());
}
