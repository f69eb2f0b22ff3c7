//! What the plugin says to people who ask why, and what makes a VF unhealthy that nothing else tells.

#![allow(clippy::unwrap_used, reason = "it is a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use device_plugin_client::Report;
use sriov_manager::kernel::Kernel as _;
use tokio::time::{sleep, timeout};

mod common;

use common::{DPDK, KERNEL, SHARED, Site};

/// Waits until the plugin says so.
async fn until_told(site: &Site, what: &str, holds: impl Fn(&Report) -> bool) -> Report {
    let told = async {
        loop {
            match Report::read(&site.options.socket).await {
                Ok(report) if holds(&report) => return report,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(common::DEADLINE, told).await.unwrap_or_else(|_| panic!("not told: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_who_has_a_vf_why_it_is_unhealthy_and_why_a_resource_does_not_have_it() {
    let config = SHARED.replace(
        "\"resourceList\": [",
        "\"resourceList\": [{\"resourceName\": \"other\", \"selectors\": [{\"vendors\": [\"15b3\"]}, {\"pfNames\": [\"ens1f0#5\"], \"drivers\": [\"igbvf\"]}]},",
    );
    let mut site = Site::start(2, &config).await;
    site.until_healthy(DPDK, 2).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    let held = site.kubelet().devices_of("one").pop_first().unwrap();
    let is_known = |report: &Report| {
        let resource = report.resource(DPDK).unwrap();
        resource.held().any(|(_, holder)| holder.pod.as_deref() == Some("pod default/one") && holder.is_ready)
    };
    let report = until_told(&site, "the pod", is_known).await;
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.resources.iter().all(|resource| resource.is_registered));
    assert_eq!(
        (report.resource(DPDK).unwrap().free().count(), report.resource(KERNEL).unwrap().free().count()),
        (1, 1)
    );
    let withheld: Vec<_> = report.resource(KERNEL).unwrap().withheld().collect();
    assert_eq!((withheld[0].0.device.as_str(), withheld[0].1.word.as_str()), (held.as_str(), "other-resource"));
    let device = report.device(&held).unwrap();
    assert_eq!(device.left_out.len(), 1, "{device:?}");
    let why = &device.left_out[0].why;
    assert!(why.starts_with("selector 1: `vendors` wants 15b3, and it has 8086; selector 2: `"), "{why}");
    let mode = fs::metadata(&site.options.socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "it names pods");

    site.stop_manager().await;
    let is_away = |report: &Report| report.problems.iter().any(|problem| problem.contains("sriov-manager is away"));
    until_told(&site, "the manager is away", is_away).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_that_had_a_fatal_error_or_lost_its_driver_is_given_to_nobody_until_it_is_well() {
    let config = r#"{"resourceList": [{"resourceName": "dpdk", "selectors": {"drivers": ["igbvf"]}}]}"#;
    let site = Site::start(2, config).await;
    let (sysfs, vfs) = (site.node.sysfs(), [site.node.vf(0, 0), site.node.vf(0, 1)]);
    for vf in vfs {
        fs::write(sysfs.file(vf, "driver_override"), "igbvf\n").unwrap();
        site.node.kernel().write(&sysfs.probe_file(), &vf.to_string()).unwrap();
        fs::write(sysfs.file(vf, "aer_dev_fatal"), "TOTAL_ERR_FATAL 0\n").unwrap();
    }
    site.until_healthy(DPDK, 2).await;
    let problem = |report: &Report, vf: &str| {
        let member = report.memberships(vf).next().map(|(_, member)| member.problem.clone());
        member.flatten().map(|problem| problem.word).unwrap_or_default()
    };
    // Somebody takes its driver: it stays, as ill, and is well with its driver.
    let first = vfs[0].to_string();
    fs::remove_file(sysfs.file(vfs[0], "driver")).unwrap();
    until_told(&site, "it has no driver", |report| problem(report, &first) == "driver-lost").await;
    site.kubelet()
        .until("it is there, and not to be had", |kubelet| {
            kubelet.counts(DPDK).is_some_and(|counts| (counts.capacity, counts.allocatable) == (2, 1))
        })
        .await;
    site.node.kernel().write(&sysfs.probe_file(), &first).unwrap();
    site.until_healthy(DPDK, 2).await;
    // One that is free is looked at every 10 s, one that a pod has every second.
    site.kubelet().admit("one", "main", DPDK, 2).await.unwrap();
    let (second, errors) = (vfs[1].to_string(), AtomicU32::new(0));
    // Those of before it was looked at are none, so there are more and more.
    let had_error = |report: &Report| {
        let total = errors.fetch_add(1, Ordering::Relaxed);
        fs::write(sysfs.file(vfs[1], "aer_dev_fatal"), format!("TOTAL_ERR_FATAL {total}\n")).unwrap();
        problem(report, &second) == "own-fatal-error"
    };
    until_told(&site, "it had an error", had_error).await;
    site.until_page("/metrics", "why=\"own-fatal-error\"").await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_refused_or_loses_an_entry_is_told_until_it_is_right() {
    let good =
        r#"{"resourceList": [{"resourceName": "dpdk", "driver": "vfio-pci", "selectors": {"pfNames": ["ens1f0"]}}]}"#;
    let site = Site::start(2, good).await;
    site.until_healthy(DPDK, 2).await;
    site.until_page("/metrics", "ferrule_config_refused 0").await;
    site.write_config(r#"{"resourceList": [{"resourceName": "a b", "selectors": {}}]}"#);
    site.until_page("/metrics", "ferrule_config_refused 1").await;
    let is_refused =
        |report: &Report| report.problems.iter().any(|problem| problem.contains("the configuration is refused"));
    let report = until_told(&site, "the refusal", is_refused).await;
    assert!(report.problems[0].contains("config.json:1:"), "{:?}", report.problems);
    assert_eq!(report.resource(DPDK).unwrap().free().count(), 2, "the one before it is in force");
    let lost =
        r#"{"resourceList": [{"resourceName": "dpdk", "driver": "vfio-pci", "selectors": {"pfNames": "ens1f0"}}]}"#;
    site.write_config(lost);
    let report = until_told(&site, "what is left out", |report| !report.left_out.is_empty()).await;
    assert_eq!((report.left_out[0].as_str(), report.problems.len()), ("dpdk (line 1)", 0));
    site.until_page("/metrics", "ferrule_config_refused 0").await;
    site.stop().await;
}
