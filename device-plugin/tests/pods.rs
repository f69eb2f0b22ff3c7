//! Pods get VFs and give them back: a manager on a made-up node, a kubelet stand-in, and the plugin between them.

use std::fs;
use std::time::Duration;

use device_plugin::allocate::CdiMode;
use device_plugin::config::ConfigFile;
use device_plugin_client::Report;
use ferrule_kubelet::stand_in::{Refusal, Release, Scenario};
use sriov_manager::fake::FakeNode;
use sriov_manager::kernel::Kernel as _;
use sriov_manager_client::tokens::Tokens;
use sriov_manager_client::v1;
use tokio::time::sleep;

mod common;

use common::{DPDK, KERNEL, SHARED, Site, is_there, only_device};

#[tokio::test(flavor = "multi_thread")]
async fn one_pool_serves_both_drivers_and_every_vf_comes_back_clean() {
    let site = Site::start(2, SHARED).await;
    site.until_healthy(DPDK, 2).await;
    site.until_healthy(KERNEL, 2).await;
    assert_eq!(site.kubelet().numa_nodes(DPDK, &site.node.vf(0, 0).to_string()), [0]);
    let before = site.node.fingerprint();

    let answer = site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let device = only_device(&answer, "PCIDEVICE_INTEL_COM_DPDK");
    let group = site.vf(&device).await;
    assert_eq!((group.driver.as_str(), group.state()), ("vfio-pci", v1::VfState::Lent));
    let nodes: Vec<_> = answer.devices.iter().map(|node| node.host_path.clone()).collect();
    assert_eq!(nodes, ["/dev/vfio/vfio".to_owned(), group.vfio_group.clone()]);
    assert!(answer.devices.iter().all(|node| node.permissions == "rw") && answer.mounts.is_empty());
    let info = site.options.files.device_info.join(format!("intel.com-dpdk-{device}-device.json"));
    assert!(is_there(&info), "{}", info.display());
    site.kubelet().start_container("one", "main").await.unwrap();

    // The other resource cannot give it away, and this one still has it.
    site.until_healthy(KERNEL, 1).await;
    assert!(!site.kubelet().healthy(KERNEL).contains(&device));
    assert!(site.kubelet().healthy(DPDK).contains(&device));
    site.kubelet().admit("two", "main", KERNEL, 1).await.unwrap();
    // From then on it is known to be a pod's, however soon that ends.
    site.kubelet().start_container("two", "main").await.unwrap();
    let refused = site.kubelet().admit("three", "main", DPDK, 1).await.unwrap_err();
    assert!(matches!(refused, Refusal::TooFew { .. } | Refusal::Allocate(_)), "{refused}");
    site.until_list("the manager tells which pod has it", |list| {
        let of = |vf: &v1::Vf| vf.lease.as_ref().is_some_and(|lease| lease.tenant == "pod default/one");
        list.vfs.iter().any(of)
    })
    .await;
    site.until_page("/metrics", "ferrule_resource_held{resource=\"intel.com/dpdk\"} 1").await;

    site.kubelet().end_pod("one");
    site.kubelet().end_pod("two");
    site.until_healthy(KERNEL, 2).await;
    site.until_healthy(DPDK, 2).await;
    site.until_list("all are free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    assert_eq!(site.node.fingerprint(), before, "drivers and settings are as they were");
    assert!(!is_there(&info), "its device-info file goes with it");

    let answer = site.kubelet().admit("four", "main", KERNEL, 2).await.unwrap();
    assert!(answer.devices.is_empty(), "an interface has no node");
    assert!(only_device(&answer, "PCIDEVICE_INTEL_COM_KERNEL").contains(&device));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_a_vf_and_the_next_pod_gets_it_cleaned() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    let vf = site.node.vf(0, 0);
    let resets = || site.node.log().iter().filter(|line| line.contains("reset")).count();
    site.kubelet().admit_init("one", "init", DPDK, 1).await.unwrap();
    let after_first = resets();
    let answer = site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    assert_eq!(only_device(&answer, "PCIDEVICE_INTEL_COM_DPDK"), vf.to_string(), "that of the init container");
    site.kubelet().start_container("one", "init").await.unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();
    assert_eq!(resets(), after_first, "it is the same pod's");
    site.until_list("the pod is known", |list| {
        list.vfs.iter().any(|vf| vf.lease.as_ref().is_some_and(|lease| lease.tenant.contains("one")))
    })
    .await;

    // The kubelet gives it to the next pod before anybody has given it back, and later than one pod's containers are asked for.
    site.kubelet().end_pod("one");
    sleep(Duration::from_millis(1100)).await;
    site.kubelet().admit("two", "main", DPDK, 1).await.unwrap();
    assert!(resets() > after_first, "{:?}", site.node.log());
    assert_eq!(site.vf(&vf.to_string()).await.driver, "vfio-pci");
    site.kubelet().start_container("two", "main").await.unwrap();
    let after_second = resets();
    site.kubelet().end_pod("two");
    sleep(Duration::from_millis(1100)).await;
    site.kubelet().admit("three", "main", DPDK, 1).await.unwrap();
    assert!(resets() > after_second, "each next pod gets it clean");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_still_holds_is_not_taken_from_him() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let held = site.node.open_vfio(site.node.vf(0, 0), 4711, "testpmd");
    site.until_list("the pod is known", |list| {
        list.vfs.iter().any(|vf| vf.lease.as_ref().is_some_and(|lease| lease.tenant.contains("one")))
    })
    .await;
    site.kubelet().end_pod("one");
    // It is off the list, and its process is there: the plugin asks, and the manager refuses.
    site.until_page("/metrics", "ferrule_release_failures_total{resource=\"intel.com/dpdk\"} 1").await;
    let vf = site.vf(&site.node.vf(0, 0).to_string()).await;
    assert_eq!((vf.driver.as_str(), vf.state()), ("vfio-pci", v1::VfState::Lent));
    drop(held);
    site.until_list("it is free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_knows_no_pods_yet_takes_nothing_from_them() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    site.until_list("the pod is known", |list| {
        list.vfs.iter().any(|vf| vf.lease.as_ref().is_some_and(|lease| lease.tenant.contains("one")))
    })
    .await;
    site.kubelet().set(Scenario::ListsNobody);
    // As long as it takes to give back what is off the list, and as long again.
    let listed = site.kubelet().listings();
    site.kubelet().until("it was asked often", |kubelet| kubelet.listings() >= listed + 6).await;
    assert_eq!(site.list().await.vfs[0].state(), v1::VfState::Lent);
    site.kubelet().heal();
    site.kubelet().end_pod("one");
    site.until_list("it is free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_that_a_pod_was_refused_is_not_given_to_the_next() {
    let site = Site::start(2, SHARED).await;
    site.until_healthy(KERNEL, 2).await;
    let first = site.node.vf(0, 0).to_string();
    // Somebody binds it, and it gets an address by DHCP: no list tells of that.
    let (sysfs, vf) = (site.node.sysfs(), site.node.vf(0, 0));
    fs::write(sysfs.file(vf, "driver_override"), "igbvf\n").unwrap();
    site.node.kernel().write(&sysfs.probe_file(), &first).unwrap();
    site.until_list("it is bound", |list| list.vfs[0].driver == "igbvf").await;
    site.node.use_by_host(vf, &["the address 10.0.0.7/24"]);
    let refused = site.kubelet().admit("one", "main", KERNEL, 1).await.unwrap_err();
    assert!(refused.to_string().contains("10.0.0.7"), "{refused}");
    site.until_healthy(KERNEL, 1).await;
    assert!(!site.kubelet().healthy(KERNEL).contains(&first));
    site.kubelet().admit("two", "main", KERNEL, 1).await.unwrap();
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_lease_starts_its_containers_again_while_it_holds_its_vf() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    // As a pod that another plugin gave a VF: it has it, on its driver, and the manager knows no lease.
    let release =
        v1::ReleaseRequest { lease: site.list().await.vfs[0].lease.clone().unwrap().id, ..Default::default() };
    site.client().await.release(release).await.unwrap();
    let (sysfs, vf) = (site.node.sysfs(), site.node.vf(0, 0));
    fs::write(sysfs.file(vf, "driver_override"), "vfio-pci\n").unwrap();
    site.node.kernel().write(&sysfs.probe_file(), &vf.to_string()).unwrap();
    let held = site.node.open_vfio(vf, 4711, "testpmd");
    site.kubelet().start_container("one", "main").await.unwrap();
    // When nobody holds it, it is lent as it should be.
    drop(held);
    site.kubelet().start_container("one", "main").await.unwrap();
    assert_eq!(site.vf(&vf.to_string()).await.state(), v1::VfState::Lent);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_of_a_kubelet_is_refused_with_words_and_its_advice_never() {
    let site = Site::start(2, SHARED).await;
    site.until_healthy(DPDK, 2).await;
    let kubelet = site.kubelet();
    for ids in [["0000:ff:00.0"], [""], ["../../etc"]] {
        let error = kubelet.allocate_ids(DPDK, &ids).await.unwrap_err().to_string();
        assert!(error.contains("has no device"), "{error}");
        let error = kubelet.start_ids(DPDK, &ids).await.unwrap_err().to_string();
        assert!(error.contains("has no device"), "{error}");
    }
    kubelet.allocate_ids(DPDK, &[]).await.unwrap();
    kubelet.start_ids(DPDK, &[]).await.unwrap();
    let (a, b) = (site.node.vf(0, 0).to_string(), site.node.vf(0, 1).to_string());
    assert_eq!(kubelet.prefer(DPDK, &[&a, &b], &[], 1).await.unwrap().len(), 1);
    assert_eq!(kubelet.prefer(DPDK, &["x", "y"], &["z"], 1).await.unwrap(), Vec::<String>::new());
    assert_eq!(kubelet.prefer(DPDK, &[&a], &[&a], -5).await.unwrap(), Vec::<String>::new());
    assert_eq!(kubelet.prefer(DPDK, &[&a], &[&b], i32::MAX).await.unwrap(), std::slice::from_ref(&a));
    // The same id twice in one call is one device.
    let answer = kubelet.allocate_ids(DPDK, &[&a, &a]).await.unwrap();
    assert_eq!(only_device(&answer, "PCIDEVICE_INTEL_COM_DPDK"), a);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_and_a_flag_of_the_go_plugin_say_is_what_the_kubelet_and_a_pod_see() {
    let config = r#"{"resourceList": [
        {"resourceName": "near", "driver": "kernel", "selectors": {"pfNames": ["ens1f0#0"]},
         "additionalInfo": {"*": {"rack": "7", "token": "all"}, "DEVICE": {"token": "its own"}}},
        {"resourceName": "far", "resourcePrefix": "other.io", "excludeTopology": true, "driver": "kernel",
         "selectors": [{"pfNames": ["ens9"]}, {"pfNames": ["ens1f0#1-2"]}]}]}"#;
    let fake = FakeNode::new(1, 7);
    let vf = |index| fake.vf(0, index).to_string();
    let [first, second, third] = [vf(0), vf(1), vf(2)];
    let mut site = Site::new(fake, &config.replace("DEVICE", &first));
    // `--resource-prefix`, for entries that say none.
    site.options.file = ConfigFile::load(&site.options.file.path, "openshift.io").unwrap();
    site.start_manager(3).await;
    site.start_kubelet(Release::V1_37);
    site.start_plugin().await;
    let (near, far) = ("openshift.io/near", "other.io/far");
    site.until_healthy(near, 1).await;
    site.until_healthy(far, 2).await;
    let kubelet = site.kubelet();
    assert_eq!((kubelet.numa_nodes(near, &first), kubelet.numa_nodes(far, &second)), (vec![0], vec![]));
    // It was told of both, and never of one by the name of the other.
    let error = kubelet.allocate_ids(near, &[&second]).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{near} has no device {second}")), "{error}");
    let answer = kubelet.admit("one", "main", near, 1).await.unwrap();
    let info = &answer.envs["PCIDEVICE_OPENSHIFT_IO_NEAR_INFO"];
    assert!(info.contains(r#""extra":{"rack":"7","token":"its own"}"#), "{info}");
    let answer = kubelet.admit("two", "main", far, 2).await.unwrap();
    assert_eq!(answer.envs["PCIDEVICE_OTHER_IO_FAR"], format!("{second},{third}"));
    assert!(!answer.envs["PCIDEVICE_OTHER_IO_FAR_INFO"].contains("extra"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_is_not_given_away_and_what_is_claimed_is_not_lent_to_them() {
    let mut site = Site::new(FakeNode::new(1, 7), SHARED);
    site.start_manager(3).await;
    let address = |index| site.node.vf(0, index).to_string();
    let acquire = |id: &str, vf: String| v1::AcquireRequest {
        id: id.into(),
        tenant: "a person".into(),
        vf,
        ..Default::default()
    };
    site.client().await.acquire(acquire("mine", address(0))).await.unwrap();
    let (first, second) = (address(0), address(1));
    site.start_kubelet(Release::V1_36);
    site.start_plugin().await;
    site.until_healthy(DPDK, 2).await;
    assert!(!site.kubelet().healthy(DPDK).contains(&first), "somebody has it");
    site.until_list("the plugin has its claim", |list| list.node.as_ref().is_some_and(|node| !node.owners.is_empty()))
        .await;
    let refused = site.client().await.acquire(acquire("more", second.clone())).await.unwrap_err();
    assert!(refused.message().contains("device-plugin"), "{}", refused.message());
    let release = v1::ReleaseRequest { lease: "mine".into(), ..Default::default() };
    site.client().await.release(release).await.unwrap();
    site.until_healthy(DPDK, 3).await;

    // A PF that is being emptied: what a pod has stays healthy, what is free is not given away.
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let held = site.kubelet().devices_of("one");
    let cordon = v1::CordonRequest { pf: "ens1f0".into(), why: "a new cable".into() };
    site.client().await.cordon(cordon).await.unwrap();
    site.until_healthy(DPDK, 1).await;
    assert_eq!(site.kubelet().healthy(DPDK), held);
    assert!(site.page("/metrics").await.contains("why=\"blocked\""));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_away_costs_no_pod() {
    let mut site = Site::start(2, SHARED).await;
    site.until_healthy(DPDK, 2).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();
    site.until_healthy(KERNEL, 1).await;
    site.until_checkpoint("intel.com/dpdk@").await;
    site.stop_manager().await;

    // A container that crashed comes back: what it has is as it shall be.
    site.kubelet().start_container("one", "main").await.unwrap();
    // A new pod is admitted, with the nodes that it will have, and starts when the manager is back.
    let answer = site.kubelet().admit("two", "main", DPDK, 1).await.unwrap();
    let device = only_device(&answer, "PCIDEVICE_INTEL_COM_DPDK");
    assert_eq!(answer.devices.len(), 2);
    let error = site.kubelet().start_container("two", "main").await.unwrap_err();
    assert!(matches!(error, Refusal::PreStart(_)) && error.to_string().contains("sriov-manager"), "{error}");

    // So does a plugin that is started meanwhile: it tells what was known last.
    site.stop_plugin().await;
    site.start_plugin().await;
    site.until_healthy(DPDK, 2).await;
    site.kubelet().admit_again("one").unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();

    site.start_manager(2).await;
    site.until_healthy(DPDK, 2).await;
    let started = async {
        while site.kubelet().start_container("two", "main").await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(common::DEADLINE, started).await.expect("the kubelet's next try is good");
    let vf = site.vf(&device).await;
    assert_eq!(
        (vf.driver.clone(), Some(vf.vfio_group)),
        ("vfio-pci".to_owned(), answer.devices.last().map(|node| node.host_path.clone()))
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_an_interface_is_admitted_when_it_is_lent_and_not_before() {
    for had_one_before in [false, true] {
        let mut site = Site::start(1, SHARED).await;
        site.until_healthy(KERNEL, 1).await;
        if had_one_before {
            // And nobody can give it back once the manager has gone.
            site.kubelet().admit("before", "main", KERNEL, 1).await.unwrap();
            // Whoever is admitted within a second is the same pod's next container.
            sleep(Duration::from_millis(1100)).await;
        }
        site.stop_manager().await;
        site.kubelet().end_pod("before");
        let vf = site.node.vf(0, 0);
        let admitted = async {
            site.kubelet().admit("one", "main", KERNEL, 1).await.unwrap();
            // As a CNI plugin does, before the container starts.
            site.node.move_netdev(vf, 4711, "one");
        };
        let seen = async {
            let is_given =
                |report: &Report| report.resource(KERNEL).unwrap().held().any(|(_, holder)| !holder.is_ready);
            let given = async {
                while !Report::read(&site.options.socket).await.is_ok_and(|report| is_given(&report)) {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(common::DEADLINE, given).await.expect("it is given to a pod");
            site.made_manager(1).await
        };
        let ((), manager) = tokio::join!(admitted, seen);
        let lease = site.vf(&vf.to_string()).await.lease.map(|lease| lease.id);
        assert_eq!(lease, Some(format!("{KERNEL}@{vf}")));
        // And once more, after a crash.
        for _ in 0..2 {
            site.kubelet().start_container("one", "main").await.unwrap();
        }
        site.manager = Some(manager);
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_an_interface_that_the_last_one_has_not_let_go_of() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(KERNEL, 1).await;
    let vf = site.node.vf(0, 0);
    site.kubelet().admit("before", "main", KERNEL, 1).await.unwrap();
    site.kubelet().start_container("before", "main").await.unwrap();
    site.node.move_netdev(vf, 4711, "before");
    let tenant = |list: &v1::ListResponse| {
        let lease = list.vfs.iter().find(|listed| listed.address == vf.to_string())?.lease.clone()?;
        Some(lease.tenant)
    };
    let before = Some("pod default/before".to_owned());
    site.until_list("its pod is told", |list| tenant(list) == before).await;
    // Whoever is admitted within a second is the same pod's next container.
    sleep(Duration::from_millis(1100)).await;
    site.kubelet().end_pod("before");
    let admitted = async {
        site.kubelet().admit("one", "main", KERNEL, 1).await.unwrap();
        // A CNI plugin would take it now: it is lent to this pod by then.
        tenant(&site.list().await)
    };
    let let_go = async {
        let is_given = |report: &Report| report.resource(KERNEL).unwrap().held().any(|(_, holder)| !holder.is_ready);
        let given = async {
            while !Report::read(&site.options.socket).await.is_ok_and(|report| is_given(&report)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(common::DEADLINE, given).await.expect("it is given to a pod");
        site.node.return_netdev(vf);
    };
    let (lent_to, ()) = tokio::join!(admitted, let_go);
    assert!(lent_to.is_some() && lent_to != before, "{lent_to:?}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pf_was_told_for_a_pod_stays_whatever_the_configuration_says_by_then() {
    let config = r#"{"resourceList": [{"resourceName": "net", "driver": "kernel", "selectors": {"pfNames": ["ens1f0"]},
        "attributes": {"vlan": 100, "spoofChk": "off", "mtu": 9000}}]}"#;
    let mut site = Site::start(1, config).await;
    let net = "intel.com/net";
    site.until_healthy(net, 1).await;
    site.kubelet().admit("one", "main", net, 1).await.unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();
    let vf = site.node.vf(0, 0);
    site.node.move_netdev(vf, 4711, "one");
    let told = async |site: &Site| {
        let lease = site.vf(&vf.to_string()).await.lease.unwrap();
        let attributes = lease.attributes.unwrap_or_default();
        (attributes.vlan.map(|vlan| vlan.id), attributes.spoof_check, attributes.mtu, lease.fault)
    };
    let wanted = (Some(100), Some(false), Some(9000), String::new());
    assert_eq!(told(&site).await, wanted);
    site.until_checkpoint("intel.com/net@").await;
    // Its interface is in the pod, and its container crashes.
    site.kubelet().start_container("one", "main").await.unwrap();
    assert_eq!(told(&site).await, wanted);
    // Other attributes are the next pod's.
    let extra = r#"{"resourceList": [{"resourceName": "extra", "selectors": {"vendors": ["ffff"]}},"#;
    site.write_config(&config.replace("100", "200").replace(r#"{"resourceList": ["#, extra));
    site.kubelet().until("the file is read", |kubelet| kubelet.open_lists("intel.com/extra") == 1).await;
    site.kubelet().start_container("one", "main").await.unwrap();
    assert_eq!(told(&site).await, wanted);
    // So are those of nobody, after the resource has gone.
    site.stop_plugin().await;
    site.write_config(r#"{"resourceList": []}"#);
    site.options.file = ConfigFile::load(&site.options.file.path, "intel.com").unwrap();
    site.start_plugin().await;
    site.until_healthy(net, 1).await;
    site.kubelet().start_container("one", "main").await.unwrap();
    assert_eq!(told(&site).await, wanted);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_repairs_what_somebody_did_to_a_held_vf() {
    let site = Site::start(1, SHARED).await;
    site.until_healthy(DPDK, 1).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let vf = site.node.vf(0, 0);
    fs::remove_file(site.node.sysfs().file(vf, "driver")).unwrap();
    assert_eq!(site.kubelet().healthy(DPDK).len(), 1, "a held device is not broken by what can be repaired");
    site.kubelet().start_container("one", "main").await.unwrap();
    assert_eq!(site.vf(&vf.to_string()).await.driver, "vfio-pci");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vfs_that_go_leave_the_list_unless_a_pod_has_them() {
    let site = Site::start(3, SHARED).await;
    site.until_healthy(DPDK, 3).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    // The first, which the pod has, and the last. A PF that lost all of its VFs would get them back.
    let held = site.kubelet().devices_of("one");
    let gone = [site.node.vf(0, 0), site.node.vf(0, 2)];
    assert!(held.contains(&gone[0].to_string()), "{held:?}");
    for vf in gone {
        site.node.remove_vf(vf);
    }
    site.kubelet()
        .until("the held one is told of, as ill, and the other is not", |kubelet| {
            kubelet.counts(DPDK).is_some_and(|counts| (counts.capacity, counts.allocatable) == (2, 1))
        })
        .await;
    assert!(site.kubelet().admit_again("one").is_err(), "it is lost, and its pod is told");
    site.kubelet()
        .until("the other resource has what is left", |kubelet| {
            kubelet.counts(KERNEL).is_some_and(|counts| (counts.capacity, counts.allocatable) == (1, 1))
        })
        .await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pf_without_a_link_gives_nothing_away_and_takes_nothing_back() {
    let config = SHARED.replace("\"kernel\", \"selectors\"", "\"kernel\", \"needsLink\": false, \"selectors\"");
    let site = Site::start(3, &config).await;
    site.until_healthy(DPDK, 3).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let net = site.node.sysfs().file(site.node.pf(0), "net/ens1f0");
    fs::write(net.join("operstate"), "down\n").unwrap();
    site.until_healthy(DPDK, 1).await;
    assert_eq!(site.kubelet().healthy(DPDK), site.kubelet().devices_of("one"));
    assert_eq!(site.kubelet().healthy(KERNEL).len(), 2, "who needs no link has what is free");
    site.until_page("/metrics", "why=\"no-link\"").await;
    fs::write(net.join("operstate"), "up\n").unwrap();
    site.until_healthy(DPDK, 3).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_no_pod_and_cdi_specs_are_there_before_a_container_starts() {
    let mut site = Site::new(FakeNode::new(1, 7), SHARED);
    site.options.cdi = CdiMode::Field;
    // Directories below a file cannot be made: every write fails.
    fs::write(site.directory.path().join("full"), "").unwrap();
    let full = site.directory.path().join("full");
    site.options.files.cdi = full.join("cdi");
    site.options.files.device_info = full.join("devinfo");
    site.start_manager(1).await;
    site.start_kubelet(Release::V1_37);
    site.start_plugin().await;
    site.until_healthy(DPDK, 1).await;
    let answer = site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let device = only_device(&answer, "PCIDEVICE_INTEL_COM_DPDK");
    let names: Vec<_> = answer.cdi_devices.iter().map(|device| device.name.clone()).collect();
    assert_eq!(names, [format!("intel.com/net-pci={device}")]);
    assert!(answer.devices.is_empty());
    let error = site.kubelet().start_container("one", "main").await.unwrap_err().to_string();
    assert!(error.contains("write the CDI spec"), "{error}");
    // There is room again.
    fs::remove_file(&full).unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();
    let spec = full.join("cdi").join(format!("sriov-dp-intel.com_dpdk_{device}.json"));
    assert!(fs::read_to_string(&spec).unwrap().contains("/dev/vfio/"));
    // A plugin that starts writes it anew: the machine may have lost it.
    site.stop_plugin().await;
    fs::remove_dir_all(full.join("cdi")).unwrap();
    site.start_plugin().await;
    site.until_healthy(DPDK, 1).await;
    assert!(is_there(&spec));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_the_pfs_while_a_pod_has_the_vf() {
    let config = r#"{"resourceList": [{"resourceName": "dpdk", "driver": "vfio-pci", "policy": "same-pf",
        "attributes": {"vlan": 100, "vlanQoS": 3, "trust": "on", "spoofChk": "off"},
        "selectors": {"pfNames": ["ens1f0#0-1"]}}]}"#;
    let site = Site::start(3, config).await;
    site.until_healthy(DPDK, 2).await;
    let before = site.node.fingerprint();
    site.kubelet().admit("one", "main", DPDK, 2).await.unwrap();
    let set = site.node.fingerprint();
    assert!(set.contains("100") && set != before, "{set}");
    site.until_list("the pod is known", |list| {
        list.vfs.iter().filter(|vf| vf.lease.as_ref().is_some_and(|lease| lease.tenant.contains("one"))).count() == 2
    })
    .await;
    site.kubelet().end_pod("one");
    site.until_list("both are free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    assert_eq!(site.node.fingerprint(), before);
    site.stop().await;
}

/// With the file of the mesh's SR-IOV forwarder, as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_a_token_of_the_mesh_for_each_vf_which_is_void_when_it_ends() {
    let node = FakeNode::new(1, 7);
    let config = format!(
        "physicalFunctions:\n  \"{}\":\n    pfKernelDriver: i40e\n    vfKernelDriver: iavf\n    capabilities: [10G, any]\n    \
         serviceDomains: [worker.domain]\n",
        node.pf(0)
    );
    let resource = "worker.domain/10G";
    let site = Site::start_on(node, 2, &config).await;
    site.until_healthy(resource, 2).await;
    site.until_healthy("worker.domain/any", 2).await;
    let init = site.kubelet().admit_init("one", "init", resource, 2).await.unwrap();
    let answer = site.kubelet().admit("one", "main", resource, 2).await.unwrap();
    assert_eq!(init.envs, answer.envs, "both have the same VFs, and are admitted before either runs");
    let tokens = Tokens::at(&site.options.nsm_tokens);
    let told = &answer.envs["NSM_SRIOV_TOKENS_worker.domain/10G"];
    let told: Vec<_> = told.split(',').map(ToOwned::to_owned).collect();
    let leases: Vec<_> = told.iter().map(|token| tokens.lease_of(token).unwrap().unwrap()).collect();
    let devices: Vec<_> = site.kubelet().devices_of("one").into_iter().collect();
    assert_eq!(leases, devices.iter().map(|device| format!("{resource}@{device}")).collect::<Vec<_>>());
    assert_eq!(answer.devices.len(), 3, "the nodes of two groups, and that of VFIO");
    // A VF that has gone to a pod by one name is not there by the other.
    site.until_healthy("worker.domain/any", 0).await;
    site.kubelet().start_container("one", "main").await.unwrap();
    site.kubelet().end_pod("one");
    site.until_list("all are free", |list| list.vfs.iter().all(|vf| vf.lease.is_none())).await;
    site.until_healthy("worker.domain/any", 2).await;
    let answer = site.kubelet().admit("two", "main", resource, 1).await.unwrap();
    let again = answer.envs["NSM_SRIOV_TOKENS_worker.domain/10G"].clone();
    assert!(tokens.lease_of(&again).unwrap().is_some() && !told.contains(&again));
    assert!(
        told.iter().all(|token| tokens.lease_of(token).unwrap().is_none()),
        "that of a pod that ended means nothing"
    );
    site.stop().await;
}
