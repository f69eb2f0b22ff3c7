//! One request that several pools can serve.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use sriov_manager::attributes::Attributes;
use sriov_manager::fake::FakeNode;
use sriov_manager::kernel::Kernel;
use sriov_manager::policy::{PeerCredentials, PfSelector, Policies, Pool, Principal};
use sriov_manager::vfs::{Caller, Choice, Options, Place, Request};
use sriov_manager::{Driver, VfError, Vfs};

const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };

/// With the pool `user-space`, the VFs of the first PF, and `kernel`, those of the others, each with what it lends by itself.
fn node(pfs: u8, vfs_of_pf: u32) -> (FakeNode, Vfs) {
    let node = FakeNode::new(pfs, 8);
    let selector = |name: String| PfSelector { name: Some(name), ..PfSelector::default() };
    let pool = |name: &str, pfs, driver, mtu| Pool { name: name.into(), pfs, driver, mtu, ..Pool::default() };
    let first = vec![selector("ens1f0".into())];
    let others = (1..pfs).map(|number| selector(format!("ens1f{number}"))).collect();
    let pools = vec![
        pool("user-space", first, Some(Driver::VfioPci), None),
        pool("kernel", others, Some(Driver::Kernel), Some(1400)),
    ];
    let vfs = Vfs::open(Options { policies: Policies { pools }, ..node.options() }).unwrap();
    for number in 0..pfs {
        vfs.create(node.pf(number), vfs_of_pf).unwrap();
    }
    (node, vfs)
}

fn request(id: &str, pools: &[&str]) -> Request {
    Request {
        id: id.into(),
        tenant: "a test".into(),
        choice: Choice::Pools(pools.iter().map(ToString::to_string).collect()),
        place: Place::default(),
        owner: None,
        until: None,
        driver: None,
        attributes: Attributes::default(),
        peer: ROOT,
        force: false,
        again: None,
    }
}

fn either(id: &str) -> Request {
    request(id, &["user-space", "kernel"])
}

#[test]
fn the_first_pool_that_has_a_vf_lends_it_as_it_lends_its_vfs() {
    let (node, vfs) = node(2, 1);
    let preferred = vfs.acquire(&either("a")).unwrap().vf;
    let other = vfs.acquire(&either("b")).unwrap().vf;
    assert_eq!((preferred, other), (node.vf(0, 0), node.vf(1, 0)));
    let lease = |vf| vfs.facts().leases[&vf].clone();
    let (a, b) = (lease(preferred), lease(other));
    assert_eq!(
        (a.pool.as_deref(), a.wanted.driver, a.wanted.attributes.mtu),
        (Some("user-space"), Driver::VfioPci, None)
    );
    assert_eq!((b.pool.as_deref(), b.wanted.driver), (Some("kernel"), Driver::Kernel));
    assert_eq!(b.wanted.attributes.mtu, Some(1400));

    let error = vfs.acquire(&either("c")).unwrap_err().to_string();
    for part in
        ["no VF of the pools user-space, kernel", "user-space has 1 VF, the first", "kernel has 1 VF, the first"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    vfs.acquire(&request("c", &["kernel"])).unwrap_err();
}

#[test]
fn the_same_again_is_the_same_lease_also_if_a_better_pool_has_a_vf_now() {
    let (_node, vfs) = node(2, 1);
    let first = vfs.acquire(&either("a")).unwrap().vf;
    let other = vfs.acquire(&either("b")).unwrap().vf;
    vfs.release(&first.to_string(), std::time::Duration::ZERO, ROOT).unwrap();
    let again = vfs.acquire(&either("b")).unwrap();
    assert_eq!((again.vf, &again.steps[..]), (other, &[][..]));
    assert!(vfs.acquire(&request("b", &["kernel"])).unwrap().steps.is_empty(), "it came from that pool");
    let error = vfs.acquire(&request("b", &["user-space"])).unwrap_err();
    assert!(matches!(error, VfError::IdTaken { .. }), "{error}");
}

#[test]
fn a_vf_that_somebody_holds_without_a_lease_leads_to_the_next_pool() {
    let (node, vfs) = node(2, 1);
    let (kernel, sysfs, taken) = (node.kernel(), node.sysfs(), node.vf(0, 0));
    kernel.write(&sysfs.file(taken, "driver_override"), "vfio-pci").unwrap();
    kernel.write(&sysfs.probe_file(), &taken.to_string()).unwrap();
    vfs.rescan();
    let _stranger = node.open_vfio(taken, 4242, "testpmd");
    assert_eq!(vfs.plan_acquire(&either("a")).unwrap().vf, node.vf(1, 0));
    assert_eq!(vfs.acquire(&either("a")).unwrap().vf, node.vf(1, 0));
}

#[test]
fn a_pool_that_is_not_there_or_not_for_this_user_is_told_wherever_it_stands() {
    let (node, vfs) = node(2, 1);
    let error = vfs.acquire(&request("a", &["user-space", "kernal"])).unwrap_err();
    assert!(matches!(&error, VfError::NoSuchPool { pool, .. } if pool == "kernal"), "{error}");
    drop(vfs);
    let selector = |name: &str| vec![PfSelector { name: Some(name.into()), ..PfSelector::default() }];
    let open = Pool { name: "open".into(), pfs: selector("ens1f0"), ..Pool::default() };
    let shut =
        Pool { name: "shut".into(), pfs: selector("ens1f1"), who: Some(vec![Principal::User(7)]), ..Pool::default() };
    let vfs = Vfs::open(Options { policies: Policies { pools: vec![open, shut] }, ..node.options() }).unwrap();
    let user = PeerCredentials { uid: 1000, gid: 1000 };
    let error = vfs.acquire(&Request { peer: user, ..request("a", &["open", "shut"]) }).unwrap_err();
    assert!(matches!(error, VfError::NotAllowed { .. }), "{error}");
    let none = vfs.acquire(&request("a", &[])).unwrap_err();
    assert!(matches!(none, VfError::Wrong(_)), "{none}");
    let many = vfs.acquire(&request("a", &["open"; 17])).unwrap_err();
    assert!(matches!(many, VfError::Wrong(_)), "{many}");
}

#[test]
fn a_named_vf_is_lent_by_the_first_pool_that_has_it() {
    let (node, vfs) = node(2, 1);
    let pools = || vec!["user-space".to_owned(), "kernel".to_owned()];
    let named = |id, vf| Request { choice: Choice::VfOfPools { vf, pools: pools() }, ..request(id, &[]) };
    vfs.acquire(&named("b", node.vf(1, 0))).unwrap();
    let lease = vfs.facts().leases[&node.vf(1, 0)].clone();
    assert_eq!((lease.pool.as_deref(), lease.wanted.driver), (Some("kernel"), Driver::Kernel));
    assert!(vfs.acquire(&named("b", node.vf(1, 0))).unwrap().steps.is_empty());
}

#[test]
fn of_several_that_are_lent_together_each_has_its_own_preference() {
    let (node, vfs) = node(2, 2);
    let three = [either("a"), request("b", &["kernel", "user-space"]), either("c")];
    let lent: Vec<_> = vfs.acquire_all(&three, false, Caller::PATIENT).unwrap().iter().map(|one| one.vf).collect();
    assert_eq!(lent, [node.vf(0, 0), node.vf(1, 0), node.vf(0, 1)]);
    let error = vfs.acquire_all(&[either("d"), either("e")], false, Caller::PATIENT).unwrap_err();
    assert!(matches!(error, VfError::NoneFree { .. }), "{error}");
    assert_eq!(vfs.facts().leases.len(), 3, "all or none");
}

#[test]
fn together_on_one_pf_means_the_pf_whose_pools_are_liked_best() {
    let (node, vfs) = node(3, 2);
    let two = [request("a", &["kernel", "user-space"]), request("b", &["kernel", "user-space"])];
    let lent = vfs.acquire_all(&two, true, Caller::PATIENT).unwrap();
    assert_eq!(lent.iter().map(|one| one.vf).collect::<Vec<_>>(), [node.vf(1, 0), node.vf(1, 1)]);
    vfs.acquire(&request("c", &["kernel"])).unwrap();
    let two = [request("d", &["kernel", "user-space"]), request("e", &["kernel", "user-space"])];
    let lent = vfs.acquire_all(&two, true, Caller::PATIENT).unwrap();
    assert_eq!(lent.iter().map(|one| one.vf).collect::<Vec<_>>(), [node.vf(0, 0), node.vf(0, 1)]);
}

#[test]
fn a_vf_of_two_pools_is_driven_as_the_one_says_that_it_is_lent_from() {
    let node = FakeNode::new(1, 8);
    for driver in ["driver-of-a", "driver-of-c"] {
        let folder = node.sysfs().path(&format!("sys/bus/pci/drivers/{driver}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("unbind"), "").unwrap();
    }
    let pool = |name: &str, kernel_driver: Option<&str>| Pool {
        name: name.into(),
        pfs: vec![PfSelector { name: Some("ens1f0".into()), ..PfSelector::default() }],
        kernel_driver: kernel_driver.map(ToOwned::to_owned),
        ..Pool::default()
    };
    let pools = vec![pool("a", Some("driver-of-a")), pool("b", None), pool("c", Some("driver-of-c"))];
    let vfs = Vfs::open(Options { policies: Policies { pools }, ..node.options() }).unwrap();
    vfs.create(node.pf(0), 1).unwrap();
    let vf = node.vf(0, 0);
    for (pool, driver) in [("b", "igbvf"), ("a", "driver-of-a"), ("c", "driver-of-c"), ("b", "igbvf")] {
        vfs.acquire(&Request { driver: Some(Driver::Kernel), ..request("one", &[pool]) }).unwrap();
        assert_eq!(node.sysfs().driver(vf).as_deref(), Some(driver), "{pool}");
        vfs.rescan();
        assert_eq!(node.sysfs().driver(vf).as_deref(), Some(driver), "{pool}");
        vfs.release("one", std::time::Duration::ZERO, ROOT).unwrap();
    }
}
