//! VFs made, lent and taken back on a made-up node.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use sriov_manager::attributes::{Attributes, LinkState, Mac, Rate, Vlan, VlanProtocol};
use sriov_manager::executor::Timeouts;
use sriov_manager::fake::{FakeNode, FakePf, Scenario};
use sriov_manager::kernel::Kernel;
use sriov_manager::lease::Stage;
use sriov_manager::plan::Step;
use sriov_manager::policy::{NumVfs, PeerCredentials, PfSelector, Policies, Pool, Principal};
use sriov_manager::vfs::{Again, Caller, Choice, Counts, HostVfs, Options, Place, Reason, Request};
use sriov_manager::{Driver, PciAddress, VfError, Vfs};

const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };
const NOBODY: PeerCredentials = PeerCredentials { uid: 65534, gid: 65534 };

fn request(vf: PciAddress, driver: Driver) -> Request {
    Request {
        id: format!("lease-{vf}"),
        tenant: "a test".to_owned(),
        choice: Choice::Vf(vf),
        driver: Some(driver),
        attributes: Attributes::default(),
        peer: ROOT,
        force: false,
        again: None,
        place: Place::default(),
        owner: None,
        until: None,
    }
}

fn all_attributes() -> Attributes {
    Attributes {
        mac: Some(Mac([2, 0, 0, 0, 0, 0x42])),
        vlan: Some(Vlan { id: 100, qos: 3, protocol: VlanProtocol::Dot1Ad }),
        rate: Some(Rate { min: 10, max: 500 }),
        spoof_check: Some(false),
        trust: Some(true),
        link_state: Some(LinkState::Enable),
        mtu: None,
    }
}

fn node(vfs: u32) -> (FakeNode, Vfs) {
    let node = FakeNode::new(1, 63);
    let owner = node.open();
    owner.create(node.pf(0), vfs).expect("a node that is healthy does it");
    (node, owner)
}

#[test]
fn vfs_of_two_pfs_are_made_at_the_same_time_and_drivers_stay_away() {
    let node = FakeNode::new(2, 7);
    let vfs = node.open();
    for (_, created) in vfs.create_all(&[(node.pf(0), 7), (node.pf(1), 7)], HostVfs::Kept) {
        assert_eq!(created.unwrap().from, 0);
    }
    let view = vfs.view();
    assert_eq!(view.vfs.len(), 14);
    assert!(view.vfs.iter().all(|vf| vf.vf.function.driver.is_none()), "{view:?}");
    let autoprobe = node.sysfs().text(node.pf(0), "sriov_drivers_autoprobe");
    assert_eq!(autoprobe.as_deref(), Some("1"), "as it was before");
}

#[test]
fn an_equal_number_is_left_alone_and_another_goes_through_zero() {
    let (node, vfs) = node(4);
    let before = node.log().len();
    assert_eq!(vfs.create(node.pf(0), 4).unwrap().steps, []);
    assert_eq!(node.log().len(), before, "nothing was written");
    let steps = vfs.create(node.pf(0), 6).unwrap().steps;
    let told: Vec<_> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "keep drivers away from new VFs of 0000:02:00.0",
            "set the number of VFs of 0000:02:00.0 to 0",
            "set the number of VFs of 0000:02:00.0 to 6"
        ]
    );
    assert_eq!(vfs.view().vfs.len(), 6);
}

#[test]
fn more_than_ten_vfs_are_in_the_order_of_their_numbers() {
    let (_node, vfs) = node(24);
    let numbers: Vec<_> = vfs.view().vfs.iter().map(|vf| vf.vf.index).collect();
    assert_eq!(numbers, (0..24).collect::<Vec<_>>());
    // The attributes of VF 10 must go to VF 10, not to the third in the order of text.
    let vf = vfs.view().vfs[10].vf.address;
    let mut asked = request(vf, Driver::None);
    asked.attributes = all_attributes();
    let steps = vfs.acquire(&asked).unwrap().steps;
    assert!(steps[0].to_string().contains("(VF 10 of 0000:02:00.0)"), "{steps:?}");
}

#[test]
fn a_vf_goes_to_vfio_and_comes_back_as_it_was() {
    let (node, vfs) = node(2);
    let before = node.fingerprint();
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::VfioPci)).unwrap();
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"));
    assert_ne!(node.fingerprint(), before);
    vfs.release(&vf.to_string(), Duration::ZERO, ROOT).unwrap();
    assert_eq!(node.fingerprint(), before);
    assert!(node.log().iter().any(|line| line.ends_with("/reset 1") && line.contains(&vf.to_string())), "FLR");
}

#[test]
fn every_attribute_is_set_read_back_and_restored() {
    let (node, vfs) = node(2);
    let before = node.fingerprint();
    let vf = node.vf(0, 1);
    let mut asked = request(vf, Driver::Kernel);
    asked.attributes = Attributes { mtu: Some(9000), ..all_attributes() };
    vfs.acquire(&asked).unwrap();
    let set = node.fingerprint();
    for part in ["Mac([2, 0, 0, 0, 0, 66])", "id: 100", "Dot1Ad", "max: 500", "trust: Some(true)", "Enable"] {
        assert!(set.contains(part), "{part} in {set}");
    }
    let netdev = node.sysfs().netdevs(vf).pop().unwrap();
    assert_eq!(node.sysfs().mtu(vf, &netdev), Some(9000));
    vfs.release(&asked.id, Duration::ZERO, ROOT).unwrap();
    // What the driver never told cannot be restored to nothing: rate and link state stay in the PF, as set back as
    // they can be. This node tells neither before they are set.
    let vlan_and_trust = |text: &str| text.contains("Vlan { id: 0") && text.contains("trust: Some(false)");
    assert!(vlan_and_trust(&node.fingerprint()) && vlan_and_trust(&before));
}

#[test]
fn the_same_request_twice_changes_nothing_and_another_changes_only_what_differs() {
    let (node, vfs) = node(1);
    let before = node.fingerprint();
    let mut asked = request(node.vf(0, 0), Driver::VfioPci);
    vfs.acquire(&asked).unwrap();
    let (log, facts) = (node.log().len(), vfs.facts());
    assert_eq!(vfs.acquire(&asked).unwrap().steps, []);
    assert_eq!((node.log().len(), vfs.facts()), (log, facts));

    asked.attributes.vlan = Some(Vlan { id: 7, ..Vlan::default() });
    let steps = vfs.acquire(&asked).unwrap().steps;
    assert_eq!(steps.len(), 1, "only the VLAN: {steps:?}");
    asked.attributes.vlan = None;
    let steps = vfs.acquire(&asked).unwrap().steps;
    assert_eq!(steps.len(), 1, "and back to what it was: {steps:?}");
    vfs.release(&asked.id, Duration::ZERO, ROOT).unwrap();
    assert_eq!(node.fingerprint(), before);
}

/// A device plugin and a CNI plugin see to one lease, and neither knows what the other has done a moment ago.
#[test]
fn two_who_change_some_attributes_of_a_lease_undo_nothing_of_each_other() {
    let (node, vfs) = node(2);
    let plain = request(node.vf(0, 0), Driver::Kernel);
    let vlan = |id| Some(Vlan { id, ..Vlan::default() });
    let own = Attributes { vlan: vlan(7), spoof_check: Some(true), ..Attributes::default() };
    let ask = |from: &Attributes, to: &Attributes, since| {
        let again = Some(Again { from: from.clone(), since });
        vfs.acquire(&Request { attributes: to.clone(), again, ..plain.clone() })
    };
    let lease = || vfs.facts().leases.get(&node.vf(0, 0)).cloned();
    let wanted = || lease().unwrap().wanted.attributes;
    let gone = ask(&own, &own, Some(1)).unwrap_err();
    assert!(matches!(gone, VfError::NoSuchLease { .. }), "{gone}");
    ask(&own, &own, None).unwrap();
    assert_eq!(wanted(), own, "a new one is as it is asked for");
    let since = Some(lease().unwrap().since);

    let with_network = Attributes { vlan: vlan(100), trust: Some(true), ..own.clone() };
    ask(&own, &with_network, since).unwrap();
    assert_eq!(wanted(), with_network);
    assert_eq!(ask(&own, &own, None).unwrap().steps, [], "who has not heard of it changes nothing");
    assert_eq!(wanted(), with_network);
    let more = Attributes { rate: Some(Rate { min: 0, max: 100 }), ..own.clone() };
    ask(&own, &more, None).unwrap();
    assert_eq!((wanted().vlan, wanted().rate), (vlan(100), more.rate), "and what it changes is changed");
    ask(&with_network, &own, since).unwrap();
    assert_eq!(wanted(), more);
    ask(&with_network, &own, since).unwrap();
    assert_eq!(wanted(), more, "what is not as it was taken for stays");

    let another = since.map(|since| since + 1);
    assert!(matches!(ask(&own, &with_network, another), Err(VfError::NoSuchLease { .. })));
    assert_eq!(wanted(), more);
}

#[test]
fn a_dry_run_tells_the_steps_and_does_none() {
    let (node, vfs) = node(1);
    let (before, log) = (node.fingerprint(), node.log().len());
    let asked = request(node.vf(0, 0), Driver::VfioPci);
    assert!(vfs.plan_acquire(&asked).unwrap().steps.len() >= 2);
    assert_eq!(vfs.plan_create(node.pf(0), 3, HostVfs::Kept).unwrap().steps.len(), 3);
    assert_eq!((node.fingerprint(), node.log().len()), (before, log));
    assert!(vfs.facts().leases.is_empty());
    vfs.acquire(&asked).unwrap();
    assert!(
        vfs.plan_release(&asked.id, ROOT, Caller::PATIENT)
            .unwrap()
            .iter()
            .any(|step| step.to_string().starts_with("reset"))
    );
    assert_eq!(vfs.facts().leases.len(), 1);
}

#[test]
fn a_vf_that_is_lent_forbids_another_number_and_names_who_has_it() {
    let (node, vfs) = node(3);
    vfs.acquire(&request(node.vf(0, 1), Driver::None)).unwrap();
    let error = vfs.create(node.pf(0), 5).unwrap_err();
    assert!(matches!(error, VfError::Lent { .. }), "{error}");
    assert!(error.to_string().contains("lent as lease-0000:02:10.2 to a test"), "{error}");
    assert_eq!(vfs.view().vfs.len(), 3);
    assert_eq!(vfs.create(node.pf(0), 3).unwrap().steps, [], "the number that it has is no change");
}

#[test]
fn a_process_with_the_vfio_group_open_forbids_removal_and_is_named() {
    let (node, vfs) = node(2);
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::VfioPci)).unwrap();
    let file = node.open_vfio(vf, 4242, "testpmd");
    let error = vfs.release(&vf.to_string(), Duration::from_millis(60), ROOT).unwrap_err();
    assert!(error.to_string().contains("process 4242 (testpmd) has /dev/vfio/200 open"), "{error}");
    assert_eq!(vfs.facts().leases[&vf].stage, Stage::Lent, "the lease stays");
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"));
    drop(file);
    vfs.release(&vf.to_string(), Duration::ZERO, ROOT).unwrap();
    assert!(vfs.facts().leases.is_empty());
}

#[test]
fn a_release_waits_for_its_holder() {
    let (node, vfs) = node(1);
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::VfioPci)).unwrap();
    let file = node.open_vfio(vf, 4242, "qemu");
    thread::scope(|scope| {
        let release = scope.spawn(|| vfs.release(&vf.to_string(), Duration::from_secs(10), ROOT));
        thread::sleep(Duration::from_millis(80));
        assert!(!release.is_finished());
        drop(file);
        release.join().unwrap().unwrap();
    });
}

#[test]
fn an_interface_in_another_namespace_forbids_removal_and_its_process_is_named() {
    let (node, vfs) = node(1);
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::Kernel)).unwrap();
    node.move_netdev(vf, 77, "nginx");
    let error = vfs.release(&vf.to_string(), Duration::ZERO, ROOT).unwrap_err();
    assert!(error.to_string().contains("in the network namespace of process 77 (nginx)"), "{error}");
    node.return_netdev(vf);
    vfs.release(&vf.to_string(), Duration::ZERO, ROOT).unwrap();
}

#[test]
fn a_vf_that_somebody_took_without_asking_is_not_lent_and_not_removed() {
    let (node, vfs) = node(2);
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::VfioPci)).unwrap();
    vfs.release(&vf.to_string(), Duration::ZERO, ROOT).unwrap();
    // By hand, behind the manager's back.
    let kernel = node.kernel();
    let write = |file: std::path::PathBuf, value: &str| {
        kernel.write(&file, value).unwrap();
    };
    write(node.sysfs().file(vf, "driver_override"), "vfio-pci");
    write(node.sysfs().probe_file(), &vf.to_string());
    vfs.rescan();
    let _file = node.open_vfio(vf, 9, "testpmd");
    let error = vfs.acquire(&request(vf, Driver::VfioPci)).unwrap_err();
    assert!(error.to_string().contains("has not borrowed it: process 9 (testpmd)"), "{error}");
    let error = vfs.create(node.pf(0), 0).unwrap_err();
    assert!(matches!(error, VfError::Held { .. }), "{error}");
    let reasons = vfs.explain(vf, Driver::VfioPci).unwrap();
    assert!(matches!(&reasons[..], [Reason::Held(_)]), "{reasons:?}");
}

#[test]
fn a_group_of_two_goes_to_vfio_as_a_whole_and_comes_back_as_a_whole() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = node.open();
    vfs.create(node.pf(0), 4).unwrap();
    let before = node.fingerprint();
    let (first, second) = (node.vf(0, 0), node.vf(0, 1));
    vfs.acquire(&request(first, Driver::VfioPci)).unwrap();
    assert_eq!(node.sysfs().driver(second).as_deref(), Some("vfio-pci"));
    let error = vfs.acquire(&request(second, Driver::VfioPci)).unwrap_err();
    assert!(error.to_string().contains("its IOMMU group 200 goes as a whole"), "{error}");
    vfs.release(&first.to_string(), Duration::ZERO, ROOT).unwrap();
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn a_group_of_which_a_vf_is_in_use_is_not_taken_and_its_user_is_named() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    let (asked, neighbour) = (node.vf(0, 0), node.vf(0, 1));
    // Bound by hand, and given to a pod.
    let kernel = node.kernel();
    kernel.write(&node.sysfs().probe_file(), &neighbour.to_string()).unwrap();
    vfs.rescan();
    node.move_netdev(neighbour, 77, "nginx");
    let before = node.fingerprint();
    let error = vfs.acquire(&request(asked, Driver::VfioPci)).unwrap_err().to_string();
    assert!(error.contains("0000:02:10.2 of it is in use"), "{error}");
    assert!(error.contains("process 77 (nginx)"), "{error}");
    assert_eq!(node.fingerprint(), before);
    let reasons = vfs.explain(asked, Driver::VfioPci).unwrap();
    assert!(matches!(&reasons[..], [Reason::GroupHeld { .. }]), "{reasons:?}");
    assert_eq!(vfs.explain(asked, Driver::None).unwrap(), []);
    vfs.acquire(&request(asked, Driver::None)).unwrap();
}

#[test]
fn a_lease_in_use_is_not_taken_from_its_driver_by_another_wish_and_its_user_is_named() {
    let (node, vfs) = node(1);
    let vf = node.vf(0, 0);
    let mut asked = request(vf, Driver::VfioPci);
    vfs.acquire(&asked).unwrap();
    let file = node.open_vfio(vf, 4242, "testpmd");
    let error = vfs.acquire(&request(vf, Driver::Kernel)).unwrap_err().to_string();
    assert!(error.starts_with("change the lease lease-0000:02:10.0: "), "{error}");
    assert!(error.contains("process 4242 (testpmd)"), "{error}");
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"));
    assert_eq!(vfs.facts().leases[&vf].wanted.attributes, asked.attributes, "the lease is what it was");
    // What the PF alone is told disturbs nobody.
    asked.attributes = all_attributes();
    let steps = vfs.acquire(&asked).unwrap().steps;
    assert!(steps.iter().all(|step| matches!(step, Step::Set { .. })), "{steps:?}");
    drop(file);
    vfs.acquire(&request(vf, Driver::Kernel)).unwrap();
}

#[test]
fn one_name_asked_for_by_many_at_once_is_one_lease() {
    let node = FakeNode::new(1, 7);
    let pfs = vec![PfSelector { name: Some("ens1f0".into()), ..PfSelector::default() }];
    let pools = vec![Pool { name: "fast".into(), pfs, ..Pool::default() }];
    let vfs = Vfs::open(Options { policies: Policies { pools }, ..node.options() }).unwrap();
    vfs.create(node.pf(0), 7).unwrap();
    let asked = Request { choice: Choice::pool("fast"), ..request(node.vf(0, 0), Driver::VfioPci) };
    for _ in 0..10 {
        let start = Barrier::new(4);
        let ask = || {
            start.wait();
            vfs.acquire(&asked).unwrap().vf
        };
        let got: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(got.iter().all(|vf| *vf == got[0]), "{got:?}");
        assert_eq!(vfs.facts().leases.len(), 1);
        vfs.release(&asked.id, Duration::ZERO, ROOT).unwrap();
    }
}

#[test]
fn new_policies_leave_leases_and_say_which_they_would_not_allow() {
    let node = FakeNode::new(2, 7);
    let pool = |name: &str, vfs: &[u32], who| Pool {
        name: name.to_owned(),
        pfs: vec![PfSelector {
            name: Some("ens1f0".into()),
            vfs: Some(vfs.iter().copied().collect()),
            ..PfSelector::default()
        }],
        num_vfs: Some(NumVfs::Exactly(4)),
        who,
        ..Pool::default()
    };
    let policies = |pools: Vec<Pool>| Policies { pools };
    let first = policies(vec![pool("fast", &[0, 1], None), pool("slow", &[2, 3], None)]);
    let vfs = Vfs::open(Options { policies: first.clone(), ..node.options() }).unwrap();
    let ask = |id: &str, pool: &str, peer| Request {
        id: id.into(),
        choice: Choice::pool(pool),
        peer,
        ..request(node.vf(0, 0), Driver::VfioPci)
    };
    let kept = vfs.acquire(&ask("a", "fast", NOBODY)).unwrap().vf;
    vfs.acquire(&ask("b", "slow", NOBODY)).unwrap();
    vfs.acquire(&ask("c", "slow", ROOT)).unwrap();
    let log = node.log().len();

    // `fast` is gone, and `slow` is for others.
    let other = policies(vec![pool("slow", &[2, 3], Some(vec![Principal::User(1000), Principal::Group(1000)]))]);
    let adopted = vfs.adopt_policies(other, Counts::Changed).unwrap();
    let told: Vec<_> = adopted.forbidden.iter().map(|(id, why)| format!("{id}: {why}")).collect();
    assert_eq!(
        told,
        ["a: there is no pool fast any more", "b: the pool slow does not allow the user 65534 any more"],
        "root always may"
    );
    assert_eq!(node.log().len(), log, "nothing was touched");
    assert_eq!(node.sysfs().driver(kept).as_deref(), Some("vfio-pci"));
    let view = vfs.view();
    let shown: Vec<_> = view.vfs.iter().filter(|vf| vf.forbidden.is_some()).map(|vf| vf.vf.index).collect();
    assert_eq!(shown, [0, 2]);
    assert_eq!(vfs.acquire(&ask("a", "fast", NOBODY)).unwrap().steps, [], "the same request is no news");
    let changed = Request { driver: Some(Driver::None), attributes: Attributes::default(), ..ask("a", "fast", NOBODY) };
    let error = vfs.acquire(&changed).unwrap_err().to_string();
    assert!(error.contains("there is no pool fast any more"), "{error}");
    vfs.release("a", Duration::ZERO, NOBODY).unwrap();
    vfs.adopt_policies(first, Counts::Changed).unwrap();
    assert!(vfs.view().vfs.iter().all(|vf| vf.forbidden.is_none()));
}

#[test]
fn new_policies_change_the_numbers_that_they_speak_of_anew_and_show_those_that_they_cannot() {
    let node = FakeNode::new(2, 7);
    let pool = |pf: &str, count| Pool {
        name: pf.to_owned(),
        pfs: vec![PfSelector { name: Some(pf.to_owned()), ..PfSelector::default() }],
        num_vfs: Some(NumVfs::Exactly(count)),
        ..Pool::default()
    };
    let policies = |first, second| Policies { pools: vec![pool("ens1f0", first), pool("ens1f1", second)] };
    let vfs = Vfs::open(Options { policies: policies(2, 2), ..node.options() }).unwrap();
    vfs.create(node.pf(1), 5).unwrap();
    let counts = |vfs: &Vfs| vfs.view().pfs.iter().map(|pf| pf.pf.vfs.len()).collect::<Vec<_>>();
    assert_eq!(vfs.adopt_policies(policies(3, 2), Counts::Changed).unwrap().short, []);
    assert_eq!(counts(&vfs), [3, 5], "what was made by hand stays while nothing new is said of it");
    vfs.adopt_policies(policies(3, 2), Counts::All).unwrap();
    assert_eq!(counts(&vfs), [3, 2], "unless somebody asks");

    vfs.acquire(&request(node.vf(0, 0), Driver::None)).unwrap();
    let short = vfs.adopt_policies(policies(6, 2), Counts::Changed).unwrap().short;
    assert!(short[0].1.contains("is lent as lease-0000:02:10.0"), "{short:?}");
    assert_eq!(vfs.view().pfs[0].short.as_ref(), Some(&short[0].1), "and so does the list");
    vfs.release("lease-0000:02:10.0", Duration::ZERO, ROOT).unwrap();
    assert_eq!(vfs.adopt_policies(policies(6, 2), Counts::All).unwrap().short, []);
    assert_eq!((counts(&vfs), &vfs.view().pfs[0].short), (vec![6, 2], &None));

    vfs.adopt_policies(policies(9, 2), Counts::Changed).unwrap();
    assert!(vfs.view().pfs[0].short.as_ref().unwrap().contains("it offers at most 7"));
    vfs.adopt_policies(policies(6, 2), Counts::Changed).unwrap();
    assert_eq!(vfs.view().pfs[0].short, None, "it has what is wanted now");

    let contradiction = Policies { pools: vec![pool("ens1f0", 1), Pool { name: "x".into(), ..pool("ens1f0", 2) }] };
    let error = vfs.adopt_policies(contradiction, Counts::All).unwrap_err().to_string();
    assert!(error.contains("the pools ens1f0 and x want different numbers of VFs of ens1f0"), "{error}");
    assert_eq!(vfs.view().vfs[0].pools, ["ens1f0"], "those before hold on");
}

#[test]
fn two_vfs_of_a_group_may_both_be_interfaces_of_the_kernel() {
    let node = FakeNode::new(1, 7);
    node.share_groups(2);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    vfs.acquire(&request(node.vf(0, 0), Driver::Kernel)).unwrap();
    vfs.acquire(&request(node.vf(0, 1), Driver::Kernel)).unwrap();
}

#[test]
fn the_pf_is_never_taken_from_the_kernel() {
    let node = FakeNode::new(1, 7);
    node.put_pf_in_group();
    let vfs = node.open();
    vfs.create(node.pf(0), 1).unwrap();
    let before = node.fingerprint();
    let error = vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci)).unwrap_err();
    assert!(error.to_string().contains("also holds the PF 0000:02:00.0, which is never taken"), "{error}");
    assert_eq!(node.fingerprint(), before);
    vfs.acquire(&request(node.vf(0, 0), Driver::Kernel)).unwrap();
}

#[test]
fn a_stuck_unbind_is_shown_and_hangs_nothing_else_and_heals_by_itself() {
    let node = FakeNode::new(1, 7);
    let short = Timeouts { call: Duration::from_millis(150), ..node.options().timeouts };
    let vfs = Vfs::open(Options { timeouts: short, ..node.options() }).unwrap();
    vfs.create(node.pf(0), 3).unwrap();
    let before = node.fingerprint();
    let (stuck, other) = (node.vf(0, 0), node.vf(0, 1));
    vfs.acquire(&request(stuck, Driver::VfioPci)).unwrap();
    node.set(Scenario::UnbindHangs);
    let error = vfs.release(&stuck.to_string(), Duration::ZERO, ROOT).unwrap_err();
    assert!(error.to_string().contains("has not come back after 0 s; a process may hold the device"), "{error}");

    let began = Instant::now();
    let reasons = vfs.explain(stuck, Driver::VfioPci).unwrap();
    assert!(reasons.iter().any(|reason| matches!(reason, Reason::Stuck { .. })), "{reasons:?}");
    vfs.acquire(&request(other, Driver::VfioPci)).unwrap();
    vfs.rescan();
    assert_eq!(vfs.view().vfs.len(), 3);
    assert!(began.elapsed() < Duration::from_secs(3), "nothing else waits");
    let error = vfs.release(&stuck.to_string(), Duration::ZERO, ROOT).unwrap_err();
    assert!(error.to_string().contains("is stuck"), "{error}");

    node.heal();
    let deadline = Instant::now() + Duration::from_secs(10);
    while vfs.facts().leases.contains_key(&stuck) {
        assert!(Instant::now() < deadline, "{:?}", vfs.facts());
        vfs.rescan();
        thread::sleep(Duration::from_millis(5));
    }
    vfs.release(&other.to_string(), Duration::ZERO, ROOT).unwrap();
    assert_eq!(node.fingerprint(), before);
}

#[test]
fn a_pool_gives_a_vf_that_needs_no_other_driver_and_says_when_there_is_none() {
    let node = FakeNode::new(2, 7);
    let pool = |name: &str, pf: &str, who| Pool {
        name: name.to_owned(),
        pfs: vec![PfSelector { name: Some(pf.to_owned()), vfs: Some([0, 1].into()), ..PfSelector::default() }],
        kernel_driver: Some("igbvf".to_owned()),
        who,
        ..Pool::default()
    };
    let pools = vec![pool("fast", "ens1f0", None), pool("ours", "ens1f1", Some(vec![Principal::User(1000)]))];
    let vfs = Vfs::open(Options { policies: Policies { pools }, ..node.options() }).unwrap();
    vfs.create_all(&[(node.pf(0), 4), (node.pf(1), 4)], HostVfs::Kept);
    let ask = |id: &str, pool: &str, driver, peer| {
        vfs.acquire(&Request {
            id: id.into(),
            tenant: "x".into(),
            choice: Choice::pool(pool),
            place: Place::default(),
            owner: None,
            until: None,
            driver: Some(driver),
            attributes: Attributes::default(),
            peer,
            force: false,
            again: None,
        })
    };
    let first = ask("a", "fast", Driver::Kernel, NOBODY).unwrap();
    assert_eq!(ask("a", "fast", Driver::Kernel, NOBODY).unwrap().vf, first.vf, "the same lease");
    let second = ask("b", "fast", Driver::VfioPci, ROOT).unwrap();
    assert_ne!(first.vf, second.vf);
    let error = ask("c", "fast", Driver::Kernel, ROOT).unwrap_err();
    assert!(error.to_string().contains("it has 2 VFs, the first is 0000:02:10.0: it is lent as a"), "{error}");
    let error = ask("d", "ours", Driver::Kernel, NOBODY).unwrap_err();
    assert!(matches!(error, VfError::NotAllowed { uid: 65534, .. }), "{error}");
    ask("d", "ours", Driver::Kernel, PeerCredentials { uid: 1000, gid: 1 }).unwrap();
    let error = ask("e", "slow", Driver::Kernel, ROOT).unwrap_err();
    assert!(error.to_string().contains("there are: fast, ours"), "{error}");
    let error = vfs.release("d", Duration::ZERO, NOBODY).unwrap_err();
    assert!(matches!(error, VfError::NotAllowed { .. }), "{error}");
}

#[test]
fn an_address_that_the_vf_invented_is_not_mistaken_for_a_setting() {
    let (node, vfs) = node(1);
    node.set(Scenario::OwnAddress);
    let before = node.fingerprint();
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::Kernel)).unwrap();
    vfs.release(&vf.to_string(), Duration::ZERO, ROOT).unwrap();
    assert_eq!(node.fingerprint(), before);
    assert!(vfs.facts().leases.is_empty());
}

#[test]
fn whoever_watches_is_told_of_every_change() {
    let (node, vfs) = node(1);
    let mut changes = vfs.watch();
    changes.mark_unchanged();
    vfs.acquire(&request(node.vf(0, 0), Driver::VfioPci)).unwrap();
    assert!(changes.has_changed().unwrap());
    let before = vfs.view().generation;
    // What is shown hangs on more than the inventory (loaded modules, say), so each look has it looked at again.
    vfs.rescan();
    assert_eq!(vfs.view().generation, before, "a look that finds nothing new is no news");
}

fn with_count(pf: PfSelector, count: u32) -> Policies {
    let pool = Pool { name: "all".into(), pfs: vec![pf], num_vfs: Some(NumVfs::Exactly(count)), ..Pool::default() };
    Policies { pools: vec![pool] }
}

fn named(name: &str) -> PfSelector {
    PfSelector { name: Some(name.to_owned()), ..PfSelector::default() }
}

#[test]
fn a_pf_that_gets_its_name_or_loses_its_vfs_after_the_start_has_the_number_that_is_wanted() {
    let node = FakeNode::new(2, 7);
    node.move_pf_away(node.pf(0));
    let vfs = Vfs::open(Options { policies: with_count(named("ens1f0"), 3), ..node.options() }).unwrap();
    let count = |vfs: &Vfs| vfs.view().pfs[0].pf.vfs.len();
    assert_eq!(count(&vfs), 0);
    assert!(vfs.view().warnings[0].contains("the pool all fits no PF of this node"), "{:?}", vfs.view().warnings);
    node.return_pf(node.pf(0));
    vfs.rescan();
    assert_eq!((count(&vfs), vfs.view().warnings.clone()), (3, vec![]));
    // Its driver was loaded anew, say.
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_numvfs"), "0").unwrap();
    vfs.rescan();
    vfs.rescan();
    assert_eq!(count(&vfs), 3);
    // What somebody wants by hand stays.
    vfs.create(node.pf(0), 0).unwrap();
    vfs.rescan();
    assert_eq!(count(&vfs), 0);
}

#[test]
fn a_card_that_is_plugged_in_after_the_start_has_the_number_that_is_wanted() {
    let node = FakeNode::new(1, 7);
    let vfs = Vfs::open(Options { policies: with_count(named("ens9f0"), 3), ..node.options() }).unwrap();
    assert!(vfs.view().warnings[0].contains("the pool all fits no PF of this node"), "{:?}", vfs.view().warnings);
    let address = PciAddress::new(0, 9, 0, 0);
    node.add_pf(&FakePf { address, name: "ens9f0", vendor: 0x8086, device: 0x1572, driver: "i40e", total_vfs: 8 });
    vfs.rescan();
    let view = vfs.view();
    let counts: Vec<_> = view.pfs.iter().map(|pf| (pf.pf.address, pf.pf.vfs.len())).collect();
    assert_eq!((counts, view.warnings.clone()), (vec![(node.pf(0), 0), (address, 3)], vec![]));
    assert!(view.vfs.iter().all(|vf| vf.pools == ["all"]), "{view:?}");
}

#[test]
fn a_number_that_a_lease_forbade_is_made_when_the_lease_is_gone() {
    let node = FakeNode::new(1, 7);
    let vfs = Vfs::open(Options { policies: with_count(named("ens1f0"), 2), ..node.options() }).unwrap();
    vfs.acquire(&request(node.vf(0, 0), Driver::None)).unwrap();
    vfs.adopt_policies(with_count(named("ens1f0"), 4), Counts::Changed).unwrap();
    assert!(vfs.view().pfs[0].short.is_some());
    vfs.release("lease-0000:02:10.0", Duration::ZERO, ROOT).unwrap();
    vfs.rescan();
    assert_eq!((vfs.view().vfs.len(), &vfs.view().pfs[0].short), (4, &None));
}

#[test]
fn functions_that_are_no_nics_get_no_vfs_unless_they_are_named_by_address() {
    let node = FakeNode::new(2, 7);
    // A GPU of the same vendor.
    std::fs::write(node.sysfs().file(node.pf(1), "class"), "0x038000\n").unwrap();
    let intel = PfSelector { vendor: Some(0x8086), ..PfSelector::default() };
    let vfs = Vfs::open(Options { policies: with_count(intel, 3), ..node.options() }).unwrap();
    let counts = |vfs: &Vfs| vfs.view().pfs.iter().map(|pf| pf.pf.vfs.len()).collect::<Vec<_>>();
    assert_eq!(counts(&vfs), [3, 0]);
    let by_address = PfSelector { address: Some(node.pf(1)), ..PfSelector::default() };
    vfs.adopt_policies(with_count(by_address, 2), Counts::Changed).unwrap();
    assert_eq!(counts(&vfs), [3, 2]);
}

#[test]
fn a_driver_that_somebody_changed_and_vfs_that_were_remade_are_seen_at_the_next_look() {
    let (node, vfs) = node(2);
    let vf = node.vf(0, 0);
    vfs.acquire(&request(vf, Driver::VfioPci)).unwrap();
    node.kernel().write(&node.sysfs().unbind_file("vfio-pci"), &vf.to_string()).unwrap();
    vfs.rescan();
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"), "nobody held it, so it is as it was lent");

    let mut vlan = request(node.vf(0, 1), Driver::None);
    vlan.attributes.vlan = Some(Vlan { id: 7, ..Vlan::default() });
    vfs.acquire(&vlan).unwrap();
    let numvfs = node.sysfs().file(node.pf(0), "sriov_numvfs");
    node.kernel().write(&node.sysfs().file(node.pf(0), "sriov_drivers_autoprobe"), "0").unwrap();
    for count in ["0", "2"] {
        node.kernel().write(&numvfs, count).unwrap();
    }
    vfs.rescan();
    assert!(node.fingerprint().contains("id: 7"), "{}", node.fingerprint());
    assert_eq!(node.sysfs().driver(vf).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_change_of_a_number_that_hung_is_finished_when_the_kernel_comes_back() {
    let node = FakeNode::new(1, 7);
    let short = Timeouts { count: Duration::from_millis(150), ..node.options().timeouts };
    let vfs = Vfs::open(Options { timeouts: short, ..node.options() }).unwrap();
    node.set(Scenario::CountHangs);
    vfs.create(node.pf(0), 3).unwrap_err();
    assert_eq!(vfs.facts().resizes.len(), 1);
    node.heal();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !vfs.facts().resizes.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", vfs.facts());
        vfs.rescan();
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(vfs.view().vfs.len(), 3);
    assert_eq!(node.sysfs().text(node.pf(0), "sriov_drivers_autoprobe").as_deref(), Some("1"), "as it was before");
}

#[test]
fn a_number_made_by_hand_that_is_late_is_not_undone_by_the_policies() {
    let node = FakeNode::new(1, 7);
    let timeouts = Timeouts { count: Duration::from_millis(150), ..node.options().timeouts };
    let policies = with_count(named("ens1f0"), 2);
    let vfs = Vfs::open(Options { policies, timeouts, ..node.options() }).unwrap();
    let is_finished = || {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !vfs.facts().resizes.is_empty() {
            assert!(Instant::now() < deadline, "{:?}", vfs.facts());
            vfs.rescan();
            thread::sleep(Duration::from_millis(5));
        }
        vfs.rescan();
    };
    // On a busy machine already this one may be late.
    is_finished();
    assert_eq!(vfs.view().vfs.len(), 2);
    node.set(Scenario::CountHangs);
    vfs.create(node.pf(0), 5).unwrap_err();
    vfs.rescan();
    node.heal();
    is_finished();
    assert_eq!(vfs.view().vfs.len(), 5, "what somebody wants by hand stays");
}

#[test]
fn two_managers_of_one_node_are_refused_whatever_their_state_directories() {
    let node = FakeNode::new(1, 7);
    let first = node.open();
    let other = Options { state: node.state().with_extension("other"), ..node.options() };
    let error = Vfs::open(other).err().expect("the node has a manager").to_string();
    assert!(error.contains("another sriov-manager does"), "{error}");
    drop(first);
    Vfs::open(Options { state: node.state().with_extension("other"), ..node.options() }).unwrap();
}

#[test]
fn a_full_disk_shows_everything_and_lends_nothing() {
    let node = FakeNode::new(1, 7);
    let vfs = node.open();
    vfs.create(node.pf(0), 2).unwrap();
    vfs.acquire(&request(node.vf(0, 0), Driver::None)).unwrap();
    drop(vfs);
    let in_the_way = node.state().join("journal.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let vfs = node.open();
    let view = vfs.view();
    assert_eq!((view.vfs.len(), view.vfs[0].lease.is_some()), (2, true));
    assert_eq!(vfs.explain(node.vf(0, 1), Driver::None).unwrap(), []);
    let before = node.fingerprint();
    let error = vfs.acquire(&request(node.vf(0, 1), Driver::VfioPci)).unwrap_err();
    assert!(matches!(error, VfError::Journal(_)), "{error}");
    assert_eq!(node.fingerprint(), before);
    std::fs::remove_dir(&in_the_way).unwrap();
    vfs.acquire(&request(node.vf(0, 1), Driver::VfioPci)).unwrap();
}

#[test]
fn pfs_of_255_vfs_each_are_listed_whole() {
    let node = FakeNode::new(2, 255);
    let vfs = Vfs::open(Options { policies: with_count(PfSelector::default(), 255), ..node.options() }).unwrap();
    let view = vfs.view();
    assert_eq!(view.vfs.len(), 510);
    assert!(view.vfs.iter().all(|vf| vf.pools == ["all"] && vf.reasons.is_empty()));
    let last = node.vf(1, 254);
    vfs.acquire(&request(last, Driver::VfioPci)).unwrap();
    assert_eq!(vfs.view().vfs.iter().filter(|vf| vf.lease.is_some()).count(), 1);
    vfs.release(&last.to_string(), Duration::ZERO, ROOT).unwrap();
}
