//! What an operator fills its object of a node from: one list, with details.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use sriov_manager::PciAddress;
use sriov_manager::attributes::Guid;
use sriov_manager::daemon::{Daemon, DaemonOptions};
use sriov_manager::fake::{FakeNode, Scenario};
use sriov_manager::kernel::EswitchMode;
use sriov_manager::policy::{NumVfs, OperatorPolicy, PfSelector, Policies, Pool, Source};
use sriov_manager_client::{Client, v1};
use tokio::time::timeout;

#[allow(dead_code, reason = "what waits for news is for other tests")]
mod common;

use common::{acquire, client, options};

async fn list(client: &mut Client, details: bool) -> v1::ListResponse {
    client.list(v1::ListRequest { details, ..Default::default() }).await.unwrap().into_inner()
}

async fn start(node: &FakeNode, directory: &tempfile::TempDir) -> (Daemon, Client) {
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(options(node, socket.clone())).await.unwrap();
    (daemon, client(&socket).await)
}

fn vf(list: &v1::ListResponse, address: PciAddress) -> v1::Vf {
    list.vfs.iter().find(|vf| vf.address == address.to_string()).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_driver_says_of_a_pf_and_its_vfs_is_in_the_list_if_details_are_wanted() {
    let (node, directory) = (FakeNode::new(2, 7), tempfile::tempdir().unwrap());
    node.add_altname(node.pf(0), "storage0");
    let (daemon, mut client) = start(&node, &directory).await;
    node.put_netdev_file(node.pf(0), "speed", "25000");
    node.put_netdev_file(node.pf(1), "speed", "-1");
    node.set_eswitch_mode(node.pf(0), EswitchMode::Switchdev);
    node.set_guid(node.vf(0, 2), Guid(0x0002_c903_0012_3456));
    let vlan = v1::Vlan { id: 100, qos: 3, protocol: v1::VlanProtocol::Dot1ad.into() };
    let attributes = v1::Attributes { vlan: Some(vlan), trust: Some(true), ..Default::default() };
    let wanted = v1::AcquireRequest {
        vf: node.vf(0, 1).to_string(),
        attributes: Some(attributes),
        ..acquire("pod", v1::Driver::None)
    };
    client.acquire(wanted).await.unwrap();

    let plain = list(&mut client, false).await;
    assert_eq!((plain.pfs[0].link_speed, plain.pfs[0].eswitch_mode()), (None, v1::EswitchMode::Unspecified));
    assert!(plain.vfs.iter().all(|vf| vf.told.is_none() && vf.guid.is_empty()));

    let told = list(&mut client, true).await;
    assert_eq!((told.pfs[0].link_speed, told.pfs[1].link_speed), (Some(25000), None));
    assert_eq!(told.pfs[0].eswitch_mode(), v1::EswitchMode::Switchdev);
    assert_eq!(told.pfs[1].eswitch_mode(), v1::EswitchMode::Unspecified, "this one has no switch");
    assert_eq!(told.pfs[0].alt_names, ["storage0"]);
    assert_eq!(told.pfs[1].permanent_mac, "00:00:00:00:01:01");
    let said = vf(&told, node.vf(0, 1)).told.unwrap();
    assert_eq!((said.vlan, said.trust, said.spoof_check), (Some(vlan), Some(true), Some(true)));
    assert_eq!((said.rate, said.link_state), (None, None), "the driver tells nothing of these");
    assert_eq!(vf(&told, node.vf(0, 2)).guid, "00:02:c9:03:00:12:34:56");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sysfs_shows_is_in_every_list() {
    let (node, directory) = (FakeNode::new(1, 7), tempfile::tempdir().unwrap());
    let (daemon, mut client) = start(&node, &directory).await;
    let (pf, first, second) = (node.pf(0), node.vf(0, 0), node.vf(0, 1));
    for (file, text) in [("flags", "0x1003"), ("operstate", "down"), ("mtu", "9000")] {
        node.put_netdev_file(pf, file, text);
    }
    node.make_representor(pf, 1, "ens1f0_1");
    client.acquire(v1::AcquireRequest { vf: first.to_string(), ..acquire("pod", v1::Driver::Kernel) }).await.unwrap();
    node.put_netdev_file(first, "mtu", "1400");
    let device = node.sysfs().file(second, "infiniband/mlx5_3");
    std::fs::create_dir_all(&device).unwrap();
    std::fs::write(device.join("node_guid"), "0002:c903:00ab:cdef\n").unwrap();
    daemon.vfs().rescan();

    let seen = list(&mut client, false).await;
    let told = &seen.pfs[0];
    assert_eq!((told.netdev.as_str(), told.mtu), ("ens1f0", Some(9000)));
    assert_eq!((told.admin_up, told.link_up), (Some(true), Some(false)));
    assert_eq!((told.num_vfs, told.total_vfs, told.externally_managed), (3, 7, false));
    let (first, second) = (vf(&seen, first), vf(&seen, second));
    assert_eq!((first.mtu, first.representor.as_str()), (Some(1400), ""));
    assert_eq!((second.mtu, second.representor.as_str()), (None, "ens1f0_1"));
    assert_eq!(second.guid, "00:02:c9:03:00:ab:cd:ef");

    node.put_netdev_file(pf, "flags", "0x1002");
    node.put_netdev_file(pf, "operstate", "unknown");
    daemon.vfs().rescan();
    let seen = list(&mut client, false).await;
    assert_eq!((seen.pfs[0].admin_up, seen.pfs[0].link_up), (Some(false), None));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_loaded_makes_vfs_available_at_the_next_look() {
    let (node, directory) = (FakeNode::new(1, 7), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    let rescan = Duration::from_hours(1);
    let daemon = Daemon::start(DaemonOptions { rescan, ..options(&node, socket.clone()) }).await.unwrap();
    let mut client = client(&socket).await;
    let request = || v1::ListRequest { driver: v1::Driver::VfioPci.into(), ..Default::default() };
    let mut states = async || -> Vec<_> {
        let list = client.list(request()).await.unwrap().into_inner();
        list.vfs.iter().map(v1::Vf::state).collect()
    };
    assert_eq!(states().await, [v1::VfState::Free; 3]);
    let (driver, unloaded) = (node.sysfs().path("sys/bus/pci/drivers/vfio-pci"), node.sysfs().path("unloaded"));
    std::fs::rename(&driver, &unloaded).unwrap();
    daemon.vfs().rescan();
    assert_eq!(states().await, [v1::VfState::Blocked; 3]);
    std::fs::rename(&unloaded, &driver).unwrap();
    daemon.vfs().rescan();
    assert_eq!(states().await, [v1::VfState::Free; 3]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_is_explained_for_the_driver_of_its_pool_unless_one_is_named() {
    let (node, directory) = (FakeNode::new(1, 7), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    let mut options = options(&node, socket.clone());
    options.policies.pools[0].driver = Some(sriov_manager::Driver::VfioPci);
    let daemon = Daemon::start(options).await.unwrap();
    std::fs::remove_dir_all(node.sysfs().path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let mut client = client(&socket).await;
    let vf = node.vf(0, 0).to_string();
    let mut explain = async |driver: v1::Driver| {
        let request = v1::ExplainRequest { vf: vf.clone(), driver: driver.into(), ..Default::default() };
        client.explain(request).await.unwrap().into_inner().reasons.len()
    };
    assert_eq!((explain(v1::Driver::Unspecified).await, explain(v1::Driver::Kernel).await), (1, 0));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_is_listed_for_the_driver_that_an_acquire_from_its_pool_takes() {
    let (node, directory) = (FakeNode::new(2, 7), tempfile::tempdir().unwrap());
    let socket = directory.path().join("vf.sock");
    let mut options = options(&node, socket.clone());
    let pool = |name: &str, pf: &str, driver| Pool {
        name: name.into(),
        pfs: vec![PfSelector { name: Some(pf.into()), ..PfSelector::default() }],
        num_vfs: Some(NumVfs::Exactly(1)),
        driver,
        ..Pool::default()
    };
    let dpdk = pool("dpdk", "ens1f1", Some(sriov_manager::Driver::VfioPci));
    options.policies.pools = vec![pool("kernel", "ens1f0", None), dpdk];
    let daemon = Daemon::start(options).await.unwrap();
    let mut client = client(&socket).await;
    for (missing, states) in
        [("igbvf", [v1::VfState::Blocked, v1::VfState::Free]), ("vfio-pci", [v1::VfState::Free, v1::VfState::Blocked])]
    {
        let driver = node.sysfs().path("sys/bus/pci/drivers").join(missing);
        let unloaded = node.sysfs().path("unloaded");
        std::fs::rename(&driver, &unloaded).unwrap();
        daemon.vfs().rescan();
        let list = client.list(v1::ListRequest::default()).await.unwrap().into_inner();
        assert_eq!(list.vfs.iter().map(v1::Vf::state).collect::<Vec<_>>(), states, "without {missing}");
        for (vf, state) in list.vfs.iter().zip(states) {
            let request = v1::AcquireRequest { pools: vf.pools.clone(), ..acquire("x", v1::Driver::Unspecified) };
            let acquired = client.acquire(v1::AcquireRequest { dry_run: true, ..request }).await;
            assert_eq!(acquired.is_ok(), state == v1::VfState::Free, "without {missing}: {acquired:?}");
        }
        std::fs::rename(&unloaded, &driver).unwrap();
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pf_that_does_not_answer_holds_up_neither_the_list_nor_leases() {
    let (node, directory) = (FakeNode::new(1, 7), tempfile::tempdir().unwrap());
    let (daemon, mut client) = start(&node, &directory).await;
    node.put_netdev_file(node.pf(0), "speed", "25000");
    node.set(Scenario::ReportHangs);
    for _ in 0..2 {
        let told = timeout(Duration::from_secs(30), list(&mut client, true)).await.unwrap();
        assert_eq!((told.pfs[0].link_speed, told.vfs.len()), (None, 3));
        assert_eq!(told.pfs[0].stuck, "");
        assert!(told.vfs.iter().all(|vf| vf.state() == v1::VfState::Free), "{:?}", told.vfs);
    }
    node.heal();
    let healed = async {
        while list(&mut client, true).await.pfs[0].link_speed.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), healed).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pf_whose_vfs_somebody_else_makes_says_so() {
    let (node, directory) = (FakeNode::new(2, 7), tempfile::tempdir().unwrap());
    let policy = OperatorPolicy {
        name: "outside".into(),
        priority: 99,
        num_vfs: 2,
        driver: sriov_manager::Driver::Kernel,
        mtu: None,
        is_externally_managed: true,
        source: Source::default(),
    };
    let selector = PfSelector { name: Some("ens1f1".into()), policy: Some(policy), ..PfSelector::default() };
    let policies = Policies { pools: vec![Pool { name: "outside".into(), pfs: vec![selector], ..Pool::default() }] };
    let socket = directory.path().join("vf.sock");
    let daemon = Daemon::start(DaemonOptions { policies, ..options(&node, socket.clone()) }).await.unwrap();
    let told = list(&mut client(&socket).await, false).await;
    assert_eq!(told.pfs.iter().map(|pf| pf.externally_managed).collect::<Vec<_>>(), [false, true]);
    daemon.stop().await;
}
