//! What a pod that is refused leaves behind, and what a container must not start with.

#![allow(clippy::unwrap_used, reason = "it is a test")]

use std::fs;
use std::time::Duration;

use device_plugin::allocate::CdiMode;
use ferrule_kubelet::stand_in::{Refusal, Release};
use sriov_manager::fake::FakeNode;
use sriov_manager::kernel::Kernel as _;
use sriov_manager_client::v1;
use tokio::time::sleep;

mod common;

use common::{DPDK, KERNEL, SHARED, Site};

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_of_a_pod_that_ended_is_given_back_when_the_next_pod_is_refused() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let held = site.node.open_vfio(site.node.vf(0, 0), 4711, "testpmd");
    site.until_list("the pod is known", |list| {
        list.vfs.iter().any(|vf| vf.lease.as_ref().is_some_and(|lease| lease.tenant.contains("one")))
    })
    .await;
    site.kubelet().end_pod("one");
    sleep(Duration::from_millis(1100)).await;
    let cordon = v1::CordonRequest { pf: "ens1f0".into(), why: "a new cable".into() };
    site.client().await.cordon(cordon).await.unwrap();
    let refused = site.kubelet().admit("two", "main", DPDK, 1).await.unwrap_err();
    assert!(refused.to_string().contains("a new cable"), "{refused}");
    drop(held);
    site.until_list("it is free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    site.stop().await;
}

/// The plugin looks at the kubelet's list a second after something changed: this pod is not on it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ends_as_soon_as_it_runs_gives_its_vf_back() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();
    site.kubelet().end_pod("one");
    site.until_list("it is free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    site.until_healthy(KERNEL, 1).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_get_all_of_many_vfs_keeps_none() {
    let site = Site::start_on(FakeNode::new(1, 70), 70, SHARED).await;
    site.until_healthy(KERNEL, 70).await;
    // The last, in the order in which they are asked for, is used by the host, which no list tells.
    let last = site.kubelet().healthy(KERNEL).pop_last().unwrap();
    let vf = (0..70).map(|index| site.node.vf(0, index)).find(|vf| vf.to_string() == last).unwrap();
    let sysfs = site.node.sysfs();
    fs::write(sysfs.file(vf, "driver_override"), "igbvf\n").unwrap();
    site.node.kernel().write(&sysfs.probe_file(), &last).unwrap();
    site.until_list("it is bound", |list| list.vfs.iter().any(|vf| vf.address == last && vf.driver == "igbvf")).await;
    site.node.use_by_host(vf, &["the address 10.0.0.7/24"]);
    let refused = site.kubelet().admit("one", "main", KERNEL, 70).await.unwrap_err();
    assert!(refused.to_string().contains("10.0.0.7"), "{refused}");
    site.until_list("none is kept", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    site.until_healthy(DPDK, 69).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_iommu_a_pod_waits_for_its_node_and_cdi_waits_for_it_later() {
    let mut site = Site::new(FakeNode::new(1, 7), SHARED);
    site.start_manager(2).await;
    site.stop_manager().await;
    site.node.take_iommu_away();
    site.start_manager(2).await;
    site.start_kubelet(Release::V1_37);
    site.start_plugin().await;
    site.until_healthy(DPDK, 2).await;

    // Whoever names nodes waits for a manager that is updated.
    site.stop_manager().await;
    let (answer, manager) = tokio::join!(site.kubelet().admit("one", "main", DPDK, 1), async {
        sleep(Duration::from_millis(300)).await;
        site.made_manager(2).await
    });
    site.manager = Some(manager);
    let nodes: Vec<_> = answer.unwrap().devices.into_iter().map(|node| (node.host_path, node.container_path)).collect();
    assert_eq!(nodes[1], ("/dev/vfio/noiommu-0".to_owned(), "/dev/vfio/0".to_owned()));
    site.kubelet().start_container("one", "main").await.unwrap();

    // CDI names what is found at the start.
    site.stop_plugin().await;
    site.options.cdi = CdiMode::Field;
    site.start_plugin().await;
    site.until_healthy(DPDK, 2).await;
    site.stop_manager().await;
    let answer = site.kubelet().admit("two", "main", DPDK, 1).await.unwrap();
    assert_eq!(answer.cdi_devices.len(), 1);
    assert!(matches!(site.kubelet().start_container("two", "main").await, Err(Refusal::PreStart(_))));
    site.start_manager(2).await;
    let started = async {
        while site.kubelet().start_container("two", "main").await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(common::DEADLINE, started).await.expect("the kubelet's next try is good");
    let device = site.kubelet().devices_of("two").pop_first().unwrap();
    let spec = fs::read_to_string(site.options.files.cdi.join(format!("sriov-dp-intel.com_dpdk_{device}.json")));
    assert!(spec.unwrap().contains("/dev/vfio/noiommu-1"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_does_not_start_with_the_node_of_another_group() {
    let mut site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    let vf = site.node.vf(0, 0);
    let answer = site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let told = answer.devices[1].host_path.clone();
    let group: u32 = told.rsplit('/').next().unwrap().parse().unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();
    // The machine starts again, and gives groups other numbers.
    site.stop_plugin().await;
    site.stop_manager().await;
    site.node.renumber_group(vf, group + 1);
    site.start_manager(1).await;
    site.start_plugin().await;
    site.until_healthy(DPDK, 1).await;
    let error = site.kubelet().start_container("one", "main").await.unwrap_err().to_string();
    assert!(error.contains(&format!("/dev/vfio/{}, and its container was told of {told}", group + 1)), "{error}");
    site.kubelet().end_pod("one");
    site.until_list("it is free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    site.kubelet().admit("two", "main", DPDK, 1).await.unwrap();
    site.kubelet().start_container("two", "main").await.unwrap();
    site.stop().await;
}
