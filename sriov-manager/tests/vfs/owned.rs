//! A made-up node that is owned, and requests for its VFs, for several tests.

use std::time::Duration;

use sriov_manager::attributes::Attributes;
use sriov_manager::executor::Observer;
use sriov_manager::fake::FakeNode;
use sriov_manager::policy::{PeerCredentials, PfSelector, Policies, Pool};
use sriov_manager::vfs::{Choice, Options, Place, Request};
use sriov_manager::{Driver, Vfs};

pub const ROOT: PeerCredentials = PeerCredentials { uid: 0, gid: 0 };
pub const USER: PeerCredentials = PeerCredentials { uid: 1000, gid: 1000 };

pub fn request(id: &str, choice: Choice, driver: Driver) -> Request {
    Request {
        id: id.into(),
        tenant: "a test".into(),
        choice,
        place: Place::default(),
        owner: None,
        until: None,
        driver: Some(driver),
        attributes: Attributes::default(),
        peer: ROOT,
        force: false,
        again: None,
    }
}

pub fn of_pool(id: &str) -> Request {
    request(id, Choice::pool("all"), Driver::VfioPci)
}

/// With the pools `all` and `first`, the VFs of the first PF.
pub fn owner_of(node: &FakeNode, observer: Option<Observer>) -> Vfs {
    let all = vec![PfSelector { driver: Some("igb".into()), ..PfSelector::default() }];
    let first = vec![PfSelector { name: Some("ens1f0".into()), ..PfSelector::default() }];
    let pool = |name: &str, pfs| Pool { name: name.into(), pfs, ..Pool::default() };
    let policies = Policies { pools: vec![pool("all", all), pool("first", first)] };
    Vfs::open(Options { policies, observer, ..node.options() }).expect("a made-up node can be owned")
}

pub fn node(pfs: u8, vfs: u32) -> (FakeNode, Vfs) {
    let node = FakeNode::new(pfs, 7);
    let owner = owner_of(&node, None);
    for pf in 0..pfs {
        owner.create(node.pf(pf), vfs).expect("a node that is healthy does it");
    }
    (node, owner)
}

pub fn release(vfs: &Vfs, lease: &str) {
    vfs.release(lease, Duration::ZERO, ROOT).expect("a node that is healthy does it");
}
