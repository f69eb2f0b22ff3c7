//! Leases of wires, of a real manager on a node made of files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrule_daemon::ApiSocket;
use ferrule_ethdev::vf::leases::{Lease, LeaseError, Leases};
use ferrule_ethdev::{LeaseSettings, VfAttributes, VfSpec, lease_name};
use sriov_manager::daemon::{Daemon, DaemonOptions};
use sriov_manager::fake::{FakeNode, FakePf};
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use sriov_manager_client::{connect, v1};
use tokio::task::spawn_blocking;

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_the_forwarder_and_ends_with_its_wire() {
    let site = Site::start().await;
    let first = site.leases("us");
    let (lease, vf) = borrow(&first, "w", &fast()).await.unwrap();
    assert_eq!((lease.name(), vf.driver.as_str()), ("wire/w/A", "vfio-pci"));
    let again = borrow(&first, "w", &fast()).await.err().unwrap();
    assert!(matches!(again, LeaseError::InUse(_)), "{again}");
    give_back(&first, &[]).await;
    assert_eq!(site.lent().await, ["wire/w/A of us"], "its device is there");
    // Killed, and started again: what no wire wants any more is given back, and what is another forwarder's stays.
    let (others, _) = borrow(&site.leases("them"), "theirs", &fast()).await.unwrap();
    let (gone, _) = borrow(&first, "gone", &fast()).await.unwrap();
    std::mem::forget([lease, others, gone]);
    let second = site.leases("us");
    give_back(&second, &["w"]).await;
    assert_eq!(site.lent().await, ["wire/theirs/A of them", "wire/w/A of us"]);
    let (lease, same) = borrow(&second, "w", &fast()).await.unwrap();
    assert_eq!(same.address, vf.address);
    drop(lease);
    give_back(&second, &["w"]).await;
    assert_eq!(site.lent().await.len(), 2, "a device that is lost comes back");
    give_back(&second, &[]).await;
    assert_eq!(site.lent().await, ["wire/theirs/A of them"]);
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_wants_another_vf_has_it_by_the_same_name() {
    let site = Site::start().await;
    let leases = site.leases("us");
    let (lease, of_pool) = borrow(&leases, "w", &fast()).await.unwrap();
    drop(lease);
    let other = site.node.vf(0, 3).to_string();
    assert_ne!(of_pool.address, other);
    let attributes = VfAttributes { vlan: Some(7), mac: Some("02:00:00:00:00:09".parse().unwrap()), ..<_>::default() };
    let (_lease, vf) = borrow(&leases, "w", &VfSpec { attributes, ..VfSpec::at(&*other) }).await.unwrap();
    assert_eq!(vf.address, other);
    let told = vf.lease.unwrap().attributes.unwrap();
    assert_eq!((told.vlan.unwrap().id, told.mac.as_deref()), (7, Some("02:00:00:00:00:09")));
    assert_eq!(site.lent().await, ["wire/w/A of us"]);
    let error = borrow(&site.leases("them"), "w", &fast()).await.err().unwrap();
    assert_eq!(error.to_string(), "the lease `wire/w/A` is of us");
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_of_a_wire_that_is_gone_is_free_for_the_next_one_at_once() {
    let site = Site::start().await;
    let leases = site.leases("us");
    let wanted = Arc::new(Mutex::new(BTreeSet::from([lease_name("old", 0)])));
    leases.keep_what(Arc::new({
        let wanted = Arc::clone(&wanted);
        move || Some(wanted.lock().unwrap().clone())
    }));
    let (lease, vf) = borrow(&leases, "old", &fast()).await.unwrap();
    drop(lease);
    let error = borrow(&leases, "new", &VfSpec::at(&*vf.address)).await.err().unwrap().to_string();
    assert!(error.contains("wire/old/A"), "it is still wanted: {error}");
    *wanted.lock().unwrap() = BTreeSet::from([lease_name("new", 0)]);
    let (_lease, same) = borrow(&leases, "new", &VfSpec::at(&*vf.address)).await.unwrap();
    assert_eq!(same.address, vf.address);
    assert_eq!(site.lent().await, ["wire/new/A of us"]);
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_another_forwarder_has_taken_or_that_is_given_back_is_noticed_once_its_vf_is_open() {
    let site = Site::start().await;
    let us = site.leases("us");
    let (lease, vf) = borrow(&us, "w", &fast()).await.unwrap();
    let check = |lease: Lease, address: &str| {
        let address = address.to_owned();
        spawn_blocking(move || {
            let outcome = lease.check(&address).map_err(|error| error.to_string());
            (lease, outcome)
        })
    };
    let (lease, outcome) = check(lease, &vf.address).await.unwrap();
    assert_eq!(outcome, Ok(()));
    let mut client = connect(&site.socket).await.unwrap();
    // Both have found the name free.
    let request = v1::AcquireRequest {
        id: "wire/w/A".to_owned(),
        tenant: "them".to_owned(),
        pools: vec!["fast".to_owned()],
        driver: v1::Driver::VfioPci.into(),
        attributes: Some(v1::Attributes::default()),
        ..v1::AcquireRequest::default()
    };
    client.acquire(request).await.unwrap();
    let (lease, outcome) = check(lease, &vf.address).await.unwrap();
    assert_eq!(outcome, Err("the lease `wire/w/A` is of them".to_owned()));
    let id = "wire/w/A".to_owned();
    client.release(v1::ReleaseRequest { lease: id, ..v1::ReleaseRequest::default() }).await.unwrap();
    let (_lease, outcome) = check(lease, &vf.address).await.unwrap();
    assert_eq!(outcome, Err(format!("the lease `wire/w/A` is not of {} any more", vf.address)));
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_of_mellanox_is_not_borrowed_and_one_of_another_vendor_is_chosen_in_its_place() {
    let pf = |address: &str, name, vendor| FakePf {
        address: address.parse().unwrap(),
        name,
        vendor,
        device: 0x10c9,
        driver: "igb",
        total_vfs: 7,
    };
    let pfs = [pf("0000:3b:00.0", "ens1", 0x15b3), pf("0000:3c:00.0", "ens2", 0x8086)];
    let pool = |name: &str, vendors: &[u32]| Pool {
        name: name.into(),
        pfs: vendors.iter().map(|&vendor| PfSelector { vendor: Some(vendor), ..PfSelector::default() }).collect(),
        num_vfs: Some(NumVfs::Exactly(2)),
        ..Pool::default()
    };
    let pools = vec![pool("mellanox", &[0x15b3]), pool("mixed", &[0x15b3, 0x8086])];
    let site = Site::of(FakeNode::with_pfs(&pfs), pools).await;
    let leases = site.leases("us");
    let error = borrow(&leases, "w", &VfSpec::of_pool("mellanox")).await.err().unwrap();
    assert!(matches!(error, LeaseError::Mellanox(_)), "{error}");
    assert!(site.lent().await.is_empty());
    let mut lent = Vec::new();
    for wire in ["a", "b"] {
        let (lease, vf) = borrow(&leases, wire, &VfSpec::of_pool("mixed")).await.unwrap();
        assert_eq!((vf.vendor, vf.pf_name.as_str()), (0x8086, "ens2"));
        lent.push((lease, vf.address));
    }
    assert_ne!(lent[0].1, lent[1].1);
    // The same again after a restart.
    let (lease, address) = lent.remove(1);
    drop(lease);
    assert_eq!(borrow(&leases, "b", &VfSpec::of_pool("mixed")).await.unwrap().1.address, address);
    let error = borrow(&leases, "c", &VfSpec::of_pool("mixed")).await.err().unwrap();
    assert!(matches!(error, LeaseError::Refused(_)), "{error}");
    assert_eq!(site.lent().await, ["wire/a/A of us", "wire/b/A of us"]);
    site.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_manager_or_a_vf_it_is_said_what_is_missing_and_nothing_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let manager = directory.path().join("vf.sock");
    let leases = Leases::new(LeaseSettings { manager, forwarder: "us".to_owned() });
    let error = borrow(&leases, "w", &fast()).await.err().unwrap();
    assert!(error.to_string().contains("vf.sock (no such file): start one with `sriov-manager`"), "{error}");
    give_back(&leases, &[]).await;

    let site = Site::start().await;
    let leases = site.leases("us");
    let error = borrow(&leases, "w", &VfSpec::of_pool("slow")).await.err().unwrap().to_string();
    assert!(error.contains("slow"), "{error}");
    give_back(&leases, &[]).await;
    let (_lease, _vf) = borrow(&leases, "w", &fast()).await.unwrap();
    site.manager.stop().await;
}

/// A node, and its manager.
struct Site {
    node: FakeNode,
    socket: std::path::PathBuf,
    _directory: tempfile::TempDir,
    manager: Daemon,
}

impl Site {
    /// One PF with four VFs in the pool `fast`.
    async fn start() -> Self {
        let pfs = vec![PfSelector { vendor: Some(0x8086), ..PfSelector::default() }];
        let pool = Pool { name: "fast".into(), pfs, num_vfs: Some(NumVfs::Exactly(4)), ..Pool::default() };
        Self::of(FakeNode::new(1, 7), vec![pool]).await
    }

    async fn of(node: FakeNode, pools: Vec<Pool>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vf.sock");
        let parts = node.options();
        let options = DaemonOptions {
            sysfs: parts.sysfs,
            kernel: parts.kernel,
            state: parts.state,
            socket: ApiSocket::at(&socket),
            metrics: None,
            rescan: Duration::from_millis(50),
            policies: Policies { pools },
            file: None,
            timeouts: parts.timeouts,
            observer: None,
        };
        let manager = Daemon::start(options).await.unwrap();
        Self { node, socket, _directory: directory, manager }
    }

    fn leases(&self, forwarder: &str) -> Arc<Leases> {
        Leases::new(LeaseSettings { manager: self.socket.clone(), forwarder: forwarder.to_owned() })
    }

    /// Every lease, and whose it is.
    async fn lent(&self) -> Vec<String> {
        let mut client = connect(&self.socket).await.unwrap();
        let list = client.list(v1::ListRequest::default()).await.unwrap().into_inner();
        let leases = list.vfs.into_iter().filter_map(|vf| vf.lease);
        let mut lent: Vec<_> = leases.map(|lease| format!("{} of {}", lease.id, lease.tenant)).collect();
        lent.sort();
        lent
    }
}

async fn borrow(leases: &Arc<Leases>, wire: &str, spec: &VfSpec) -> Result<(Lease, v1::Vf), LeaseError> {
    let (leases, name, spec) = (Arc::clone(leases), lease_name(wire, 0), spec.clone());
    spawn_blocking(move || leases.borrow(&name, &spec)).await.unwrap()
}

async fn give_back(leases: &Arc<Leases>, wanted: &[&str]) {
    let leases = Arc::clone(leases);
    let wanted: BTreeSet<_> = wanted.iter().map(|wire| lease_name(wire, 0)).collect();
    spawn_blocking(move || {
        leases.keep_what(Arc::new(move || Some(wanted.clone())));
        leases.give_back();
    })
    .await
    .unwrap();
}

fn fast() -> VfSpec {
    VfSpec::of_pool("fast")
}
