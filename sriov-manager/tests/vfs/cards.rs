//! Leases and the cards that they are of: PCI addresses may be others' after a reboot.

use std::fs;
use std::time::Duration;

use sriov_manager::attributes::{Attributes, Vlan};
use sriov_manager::fake::FakeNode;
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::{Cordon, Stage};
use sriov_manager::policy::PeerCredentials;
use sriov_manager::vfs::{Choice, Place, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };
const CARDS: [&str; 2] = ["00:00:00:00:01:00", "00:00:00:00:01:01"];

fn lend(vfs: &Vfs, id: &str, vf: PciAddress, vlan: u16) -> Result<(), VfError> {
    let attributes = Attributes { vlan: Some(Vlan { id: vlan, ..Vlan::default() }), ..Attributes::default() };
    let request = Request {
        id: id.into(),
        tenant: "a test".into(),
        choice: Choice::Vf(vf),
        place: Place::default(),
        owner: None,
        until: None,
        driver: Some(Driver::VfioPci),
        attributes,
        peer: ROOT,
        force: false,
        again: None,
    };
    vfs.acquire(&request).map(drop)
}

fn vlan_of(node: &FakeNode, pf: u8) -> u16 {
    let (_, interface) = node.sysfs().interface(node.pf(pf)).expect("the PF has an interface");
    node.kernel().pf_report(interface).expect("a node that is healthy does it").vfs[&0].vlan.id
}

/// As if cards had been other ones when the journal was written.
fn edit_journal(node: &FakeNode, edit: impl Fn(String) -> String) {
    let journal = node.state().join("journal");
    let text = fs::read_to_string(&journal).expect("the journal is there");
    // Behind its lines there is room.
    let text = text.trim_end_matches('\0').to_owned();
    assert!(text.contains(&format!("\"card\":\"{}\"", CARDS[0])), "a lease knows its card: {text}");
    fs::write(&journal, edit(text)).expect("the journal can be written");
}

#[test]
fn another_card_at_the_address_of_a_lease_is_not_touched_and_can_be_lent_when_the_lease_is_released() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 1).unwrap();
    let vf = node.vf(0, 0);
    lend(&vfs, "pod", vf, 7).unwrap();
    drop(vfs);
    edit_journal(&node, |text| text.replace(CARDS[0], "00:00:00:00:09:09"));
    node.reboot("second");
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_numvfs"), "1").unwrap();
    let (before, log) = (node.fingerprint(), node.log().len());
    let vfs = node.open();
    assert_eq!((node.fingerprint(), node.log().len()), (before.clone(), log), "nothing was written");
    assert_eq!(vfs.view().lost.len(), 1);
    assert!(vfs.facts().leases[&vf].fault.is_some());
    let refused = lend(&vfs, "other", vf, 9).unwrap_err();
    assert!(matches!(refused, VfError::Unavailable { .. }), "{refused}");
    vfs.release("pod", Duration::ZERO, ROOT).unwrap();
    assert_eq!(node.fingerprint(), before, "there is nothing of the lease to be cleaned");
    lend(&vfs, "other", vf, 9).unwrap();
}

#[test]
fn leases_follow_their_cards_to_other_addresses_even_to_each_others() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    for (pf, id, vlan) in [(0, "a", 7), (1, "b", 9)] {
        vfs.create(node.pf(pf), 1).unwrap();
        lend(&vfs, id, node.vf(pf, 0), vlan).unwrap();
    }
    drop(vfs);
    edit_journal(&node, |text| text.replace(CARDS[0], "first").replace(CARDS[1], CARDS[0]).replace("first", CARDS[1]));
    node.reboot("second");
    for pf in [0, 1] {
        node.kernel().write(&node.sysfs().file(node.pf(pf), "sriov_numvfs"), "1").unwrap();
    }
    let vfs = node.open();
    let leases = vfs.facts().leases;
    let id = |pf| leases[&node.vf(pf, 0)].id.as_str();
    assert_eq!((id(0), id(1)), ("b", "a"));
    assert!(leases.values().all(|lease| lease.stage == Stage::Lent && lease.fault.is_none()), "{leases:?}");
    assert_eq!((vlan_of(&node, 0), vlan_of(&node, 1)), (9, 7));
    assert_eq!(vfs.view().lost, []);
    vfs.release("a", Duration::ZERO, ROOT).unwrap();
    assert_eq!((vlan_of(&node, 0), vlan_of(&node, 1)), (9, 0));
    drop(vfs);
    // And a second start finds them where they are.
    assert_eq!(node.open().facts().leases[&node.vf(0, 0)].id, "b");
}

#[test]
fn leases_follow_cards_that_tell_which_they_are_only_later() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    for (pf, id, vlan) in [(0, "a", 7), (1, "b", 9)] {
        vfs.create(node.pf(pf), 1).unwrap();
        lend(&vfs, id, node.vf(pf, 0), vlan).unwrap();
    }
    drop(vfs);
    edit_journal(&node, |text| text.replace(CARDS[0], "first").replace(CARDS[1], CARDS[0]).replace("first", CARDS[1]));
    node.reboot("second");
    for pf in [0, 1] {
        node.kernel().write(&node.sysfs().file(node.pf(pf), "sriov_numvfs"), "1").unwrap();
        node.move_pf_away(node.pf(pf));
    }
    let vfs = node.open();
    assert_eq!(vfs.facts().leases[&node.vf(0, 0)].id, "a", "nobody can know");
    node.return_pf(node.pf(0));
    node.return_pf(node.pf(1));
    vfs.rescan();
    vfs.rescan();
    let leases = vfs.facts().leases;
    let id = |pf| leases[&node.vf(pf, 0)].id.as_str();
    assert_eq!((id(0), id(1)), ("b", "a"));
    assert!(leases.values().all(|lease| lease.stage == Stage::Lent && lease.fault.is_none()), "{leases:?}");
    assert_eq!((vlan_of(&node, 0), vlan_of(&node, 1)), (9, 7));
}

#[test]
fn a_lease_at_whose_cards_place_another_one_stays_keeps_no_other_from_following() {
    let node = FakeNode::new(3, 7);
    let vfs = node.open();
    for (pf, id, vlan) in [(0, "a", 7), (1, "b", 9), (2, "c", 11)] {
        vfs.create(node.pf(pf), 2).unwrap();
        lend(&vfs, id, node.vf(pf, 0), vlan).unwrap();
    }
    lend(&vfs, "d", node.vf(1, 1), 13).unwrap();
    drop(vfs);
    // The card of `d` is now where `a` is of VF 0, and that of `c` where `b` is of VF 0.
    let lines = |text: String| -> String {
        let edit = |line: &str| match () {
            () if line.contains(r#""id":"d""#) => line.replace(CARDS[1], CARDS[0]),
            () if line.contains(r#""id":"c""#) => line.replace("00:00:00:00:01:02", CARDS[1]),
            () => line.to_owned(),
        };
        text.lines().map(|line| edit(line) + "\n").collect()
    };
    edit_journal(&node, lines);
    let vfs = node.open();
    let leases = vfs.facts().leases;
    assert_eq!(leases[&node.vf(0, 1)].id, "d", "it goes with its card");
    assert_eq!(leases[&node.vf(2, 0)].id, "c", "where its card is another lease stays");
    assert_eq!((vlan_of(&node, 0), vlan_of(&node, 1)), (7, 9));
}

#[test]
fn of_two_leases_of_one_vf_of_a_card_that_was_moved_one_goes_with_it_and_the_other_is_not_forgotten() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 1).unwrap();
    lend(&vfs, "pod", node.vf(0, 0), 7).unwrap();
    drop(vfs);
    edit_journal(&node, |text| {
        let lease = text.lines().rfind(|line| line.contains("\"pod\"")).expect("it is lent").to_owned();
        let others = ["41", "42"].map(|bus| lease.replace("0000:02:", &format!("0000:{bus}:")));
        let other = others[1].replace("\"pod\"", "\"later\"");
        let kept = text.lines().filter(|line| !line.contains("\"pod\"")).map(|line| format!("{line}\n"));
        format!("{}{}\n{other}\n", kept.collect::<String>(), others[0])
    });
    let vfs = node.open();
    let leases = vfs.facts().leases;
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert!(leases.contains_key(&node.vf(0, 0)), "one has gone with the card");
    assert_eq!(vfs.view().lost.len(), 1);
}

#[test]
fn a_cordon_goes_with_its_card() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    vfs.cordon(node.pf(0), Some(Cordon { uid: 0, why: "new firmware".into(), card: None })).unwrap();
    // Its card is asked then.
    vfs.rescan();
    drop(vfs);
    edit_journal(&node, |text| text.replace(CARDS[0], CARDS[1]));
    node.reboot("second");
    let vfs = node.open();
    let cordoned = |vfs: &Vfs| vfs.facts().cordons.into_keys().collect::<Vec<_>>();
    assert_eq!(cordoned(&vfs), [node.pf(1)]);
    drop(vfs);
    assert_eq!(cordoned(&node.open()), [node.pf(1)], "it stays there");
}
