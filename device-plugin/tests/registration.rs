//! The plugin and kubelets of both releases: registered, cut, restarted, replaced.

use std::time::{Duration, Instant};

use device_plugin::daemon::Daemon;
use device_plugin_client::Report;
use ferrule_kubelet::stand_in::{Release, Scenario};
use sriov_manager::fake::{FakeNode, Scenario as Fault};

mod common;

use common::{DPDK, KERNEL, SHARED, Site};

const RELEASES: [Release; 2] = [Release::V1_36, Release::V1_37];

async fn site(release: Release) -> Site {
    let mut site = Site::new(FakeNode::new(1, 7), SHARED);
    site.start_manager(3).await;
    site.start_kubelet(release);
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_there_soon_and_again_after_streams_and_kubelets_broke() {
    for release in RELEASES {
        let mut site = site(release).await;
        site.start_plugin().await;
        site.until_healthy(DPDK, 3).await;
        site.until_healthy(KERNEL, 3).await;
        site.until_page("/readyz", "200 OK").await;
        assert_eq!(site.plugin_sockets().len(), 2, "one for each resource");

        site.kubelet().drop_stream(DPDK);
        site.until_healthy(DPDK, 3).await;
        site.kubelet().admit("crashing", "main", DPDK, 1).await.unwrap();

        let began = Instant::now();
        site.restart_kubelet(release);
        site.until_healthy(DPDK, 3).await;
        println!("{release:?}: {:?} from the start of a kubelet to its first list", began.elapsed());
        site.kubelet().admit_again("crashing").unwrap();
        site.until_healthy(KERNEL, 2).await;
        assert_eq!(site.kubelet().most_open_lists(), 1, "never two lists of a resource");

        // Upgraded in place.
        site.restart_kubelet(Release::V1_37);
        site.until_healthy(DPDK, 3).await;
        site.kubelet().admit_again("crashing").unwrap();
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_away_for_a_while_is_waited_for() {
    let mut site = site(Release::V1_36).await;
    site.start_plugin().await;
    site.until_healthy(DPDK, 3).await;
    let stopped = site.kubelet.take().unwrap().stop();
    site.until_page("/readyz", "the kubelet has not opened the list of").await;
    assert!(site.page("/livez").await.contains("200 OK"), "it lives all the same");
    site.kubelet = Some(stopped.start().unwrap());
    site.until_healthy(DPDK, 3).await;
    // And one that was never there, nor its directory.
    site.stop_plugin().await;
    site.kubelet = None;
    std::fs::remove_dir_all(&site.options.plugins).unwrap();
    site.start_plugin().await;
    site.until_page("/readyz", "the kubelet has not opened the list of").await;
    site.start_kubelet(Release::V1_37);
    site.until_healthy(DPDK, 3).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_hangs_are_tried_again_under_new_names() {
    for release in RELEASES {
        let mut site = site(release).await;
        site.kubelet().set(Scenario::Refuses(5));
        site.start_plugin().await;
        site.until_healthy(DPDK, 3).await;
        site.until_healthy(KERNEL, 3).await;
        site.until_page("/metrics", "ferrule_registration_failures_total").await;

        // One that hangs is restarted: nobody waits for its answer.
        site.kubelet().set(Scenario::HangsInRegister);
        site.kubelet().drop_stream(DPDK);
        site.kubelet().until("nobody has the list", |kubelet| kubelet.healthy(DPDK).is_empty()).await;
        site.restart_kubelet(release);
        site.until_healthy(DPDK, 3).await;

        // One that takes it and asks for nothing is not believed.
        site.kubelet().set(Scenario::OpensNoList);
        site.kubelet().drop_stream(KERNEL);
        let registered = site.kubelet().registrations();
        site.kubelet().until("it is registered twice", |kubelet| kubelet.registrations() >= registered + 2).await;
        site.kubelet().heal();
        site.until_healthy(KERNEL, 3).await;
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_hangs_in_register_holds_up_nothing_else_and_is_asked_again() {
    let mut site = site(Release::V1_37).await;
    site.start_plugin().await;
    site.until_healthy(DPDK, 3).await;
    site.until_healthy(KERNEL, 3).await;
    site.kubelet().set(Scenario::HangsInRegister);
    site.kubelet().drop_stream(DPDK);
    site.until_page("/readyz", "the kubelet has not opened the list of intel.com/dpdk").await;
    site.until_page("/metrics", "ferrule_registration_failures_total{resource=\"intel.com/dpdk\"} 1").await;
    assert!(site.page("/livez").await.contains("200 OK"));
    // The other resource is served meanwhile.
    site.kubelet().admit("one", "main", KERNEL, 1).await.unwrap();
    site.kubelet().start_container("one", "main").await.unwrap();
    site.kubelet().heal();
    // The other resource's pod has the third.
    site.until_healthy(DPDK, 2).await;
    site.until_page("/readyz", "200 OK").await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_stops_answers_the_pod_that_is_being_admitted() {
    let mut site = site(Release::V1_36).await;
    site.start_plugin().await;
    site.until_healthy(DPDK, 3).await;
    site.node.set(Fault::ReportHangs);
    let plugin = site.plugin.take().unwrap();
    let stopped = async {
        let is_asked = |report: &Report| report.resource(DPDK).is_some_and(|dpdk| dpdk.held().count() == 1);
        let asked = async {
            while !Report::read(&site.options.socket).await.is_ok_and(|report| is_asked(&report)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(common::DEADLINE, asked).await.expect("it is given to a pod");
        tokio::join!(plugin.stop(), async {
            // Long enough for a plugin that does not wait.
            let closed = site.kubelet().until("the list is closed", |kubelet| kubelet.open_lists(DPDK) == 0);
            let is_closed = tokio::time::timeout(Duration::from_millis(500), closed).await.is_ok();
            site.node.heal();
            assert!(!is_closed, "a pod that is being admitted is lost with the list");
        });
    };
    let (answer, ()) = tokio::join!(site.kubelet().admit("one", "main", DPDK, 1), stopped);
    assert_eq!(answer.unwrap().envs.len(), 3);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_plugin_takes_over_when_the_first_has_closed_its_lists() {
    for release in RELEASES {
        let mut site = site(release).await;
        site.start_plugin().await;
        site.until_healthy(DPDK, 3).await;
        site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
        for _ in 0..5 {
            let first = site.plugin.take().unwrap();
            site.start_plugin().await;
            // Ready to take over, and so ready for a rolling update that waits for it.
            site.until_page("/readyz", "200 OK").await;
            site.until_page("/metrics", "ferrule_device_plugin_on_duty 0").await;
            let registered = site.kubelet().registrations();
            first.stop().await;
            site.kubelet().until("both are registered", |kubelet| kubelet.registrations() >= registered + 2).await;
            site.until_healthy(DPDK, 3).await;
            site.until_healthy(KERNEL, 2).await;
            site.kubelet().admit_again("one").unwrap();
        }
        assert_eq!(site.kubelet().most_open_lists(), 1);
        assert_eq!(site.plugin_sockets().len(), 2);
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_is_replaced_twenty_times_loses_nothing() {
    for release in RELEASES {
        let mut site = site(release).await;
        site.start_plugin().await;
        site.until_healthy(DPDK, 3).await;
        site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
        for _ in 0..20 {
            site.stop_plugin().await;
            site.kubelet().until("the old list is closed", |kubelet| kubelet.healthy(DPDK).is_empty()).await;
            site.start_plugin().await;
            site.until_healthy(DPDK, 3).await;
            site.kubelet().admit_again("one").unwrap();
            site.kubelet().start_container("one", "main").await.unwrap();
        }
        assert_eq!(site.kubelet().most_open_lists(), 1);
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_is_killed_twenty_times_loses_nothing() {
    let mut site = site(Release::V1_36).await;
    let start = |site: &Site| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_device-plugin"));
        let options = &site.options;
        for (flag, path) in [
            ("--config-file", &options.file.path),
            ("--root", &options.root),
            ("--manager", &options.manager),
            ("--socket", &options.socket),
            ("--plugins", &options.plugins),
            ("--pod-resources", &options.pod_resources),
            ("--state", &options.state),
            ("--cdi-dir", &options.files.cdi),
            ("--device-info-dir", &options.files.device_info),
        ] {
            command.arg(flag).arg(path);
        }
        command.args(["--log-level", "error", "--kubelet-settle", "0s"]).spawn().unwrap()
    };
    let mut plugin = start(&site);
    site.until_healthy(DPDK, 3).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    for _ in 0..20 {
        let registered = site.kubelet().registrations();
        plugin.kill().unwrap();
        plugin.wait().unwrap();
        plugin = start(&site);
        site.kubelet().until("both are registered", |kubelet| kubelet.registrations() >= registered + 2).await;
        site.until_healthy(DPDK, 3).await;
        site.until_healthy(KERNEL, 2).await;
        site.kubelet().admit_again("one").unwrap();
        site.kubelet().start_container("one", "main").await.unwrap();
    }
    assert_eq!(site.kubelet().most_open_lists(), 1);
    assert_eq!(site.plugin_sockets().len(), 2, "those of the killed are gone");
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    site.stop_manager().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_answers_nonsense_is_tried_again_until_it_does_not() {
    let mut site = site(Release::V1_37).await;
    let kubelet = site.kubelet.take().unwrap().stop();
    let socket = site.options.plugins.join(ferrule_kubelet::KUBELET_SOCKET);
    std::fs::remove_file(&socket).unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    site.start_plugin().await;
    // Text, bytes that look like HTTP/2, and an end at once.
    for nonsense in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0, 0, 4, 4, 0, 0, 0, 0, 0, 0xff, 0xff], &[]] {
        for _ in 0..2 {
            let (mut client, _) = tokio::time::timeout(common::DEADLINE, listener.accept()).await.unwrap().unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client, nonsense).await;
        }
    }
    site.until_page("/metrics", "ferrule_registration_failures_total{resource=\"intel.com/dpdk\"}").await;
    assert!(site.page("/livez").await.contains("200 OK"));
    drop(listener);
    site.kubelet = Some(kubelet.start().unwrap());
    site.until_healthy(DPDK, 3).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_renamed_while_the_plugin_runs_and_a_wrong_file_changes_nothing() {
    let mut site = site(Release::V1_36).await;
    site.start_plugin().await;
    site.until_healthy(DPDK, 3).await;
    site.kubelet().admit("one", "main", DPDK, 1).await.unwrap();
    site.write_config("{\"resourceList\": [{\"resourceName\": \"a b\"}]}");
    site.write_config(&SHARED.replace("\"dpdk\"", "\"fast\""));
    site.until_healthy("intel.com/fast", 2).await;
    // What a pod has by the old name is its until it ends, and its containers start again.
    let held = site.kubelet().devices_of("one");
    site.kubelet().until("the old name has only that", |kubelet| kubelet.healthy(DPDK) == held).await;
    site.kubelet().start_container("one", "main").await.unwrap();
    assert!(site.kubelet().healthy("intel.com/fast").is_disjoint(&held));
    // Also if the plugin that knew it is gone.
    site.stop_plugin().await;
    site.options.file = device_plugin::config::ConfigFile::load(&site.options.file.path, "intel.com").unwrap();
    site.start_plugin().await;
    site.until_healthy("intel.com/fast", 2).await;
    site.kubelet().until("the old name is there", |kubelet| kubelet.healthy(DPDK) == held).await;
    site.kubelet().start_container("one", "main").await.unwrap();
    site.until_list("the pod is known", |list| {
        list.vfs.iter().any(|vf| vf.lease.as_ref().is_some_and(|lease| lease.tenant.contains("one")))
    })
    .await;
    site.kubelet().end_pod("one");
    site.until_healthy("intel.com/fast", 3).await;
    site.until_healthy(KERNEL, 3).await;
    site.kubelet().until("the old name is closed", |kubelet| kubelet.open_lists(DPDK) == 0).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_a_killed_plugin_left_are_removed_and_those_of_others_are_not() {
    let mut site = site(Release::V1_36).await;
    let at = |name: &str| site.options.plugins.join(name);
    drop(std::os::unix::net::UnixListener::bind(at("ferrule-intel.com_dpdk-1-1.sock")).unwrap());
    let _other = std::os::unix::net::UnixListener::bind(at("nvidia.sock")).unwrap();
    let other = at("nvidia.sock");
    site.start_plugin().await;
    site.until_healthy(DPDK, 3).await;
    site.until_healthy(KERNEL, 3).await;
    assert_eq!(site.plugin_sockets().len(), 3);
    assert!(other.exists());
    let Site { plugin, .. } = &mut site;
    let plugin: Daemon = plugin.take().unwrap();
    plugin.stop().await;
    assert_eq!(site.plugin_sockets(), [other], "ours are gone");
    tokio::time::timeout(Duration::from_secs(10), site.stop()).await.unwrap();
}
