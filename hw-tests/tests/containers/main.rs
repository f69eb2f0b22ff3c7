//! The images and the manifests, tried without a cluster: each daemon runs with nothing but the files of its image, and with the
//! mounts, the rights and the command line of its manifest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ferrule_deploy::layer::sha256;
use ferrule_hw_tests::eventually;
use ferrule_hw_tests::need::{lacks, skip};
use ferrule_hw_tests::netns::TestNetNs;
use ferrule_kubelet::stand_in::{Kubelet, Options, Release};

use container::{Container, Node};

mod container;

#[test]
fn the_same_programs_are_the_same_images() {
    let test = "the_same_programs_are_the_same_images";
    if lacks(test, &[container::STRIP]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (Some(first), Some(product)) = (container::images(test), container::product(test)) else { return };
    let again = product.write(folder.path()).unwrap();
    for image in &again {
        let bytes = |path: &Path| sha256(&fs::read(path).unwrap());
        assert_eq!(bytes(&first.join(image.path.file_name().unwrap())), bytes(&image.path), "{}", image.reference);
    }
    assert_eq!(again.len(), 4);
}

#[test]
fn programs_run_with_the_files_of_their_image() {
    let Some(node) = Node::new("programs_run_with_the_files_of_their_image") else { return };
    for image in ["device-plugin", "dpdk-forwarder", "network-function", "sriov-manager"] {
        let version = node.run(image, image, &["--version"]);
        assert_eq!(version, (Some(0), format!("{image} {}\n", env!("CARGO_PKG_VERSION"))));
        let (code, help) = node.run(image, "ferrule", &["--help"]);
        assert!(code == Some(0) && help.contains("Virtual wires"), "{help}");
    }
    // By its name: who is called what is in the image too.
    let files = node.folder("etc");
    fs::write(files.join("wires.yaml"), "{socket_group: root, wires: []}").unwrap();
    let (code, said) = node.run_with(&files, "dpdk-forwarder", &["--config=/etc/ferrule/wires.yaml", "--check"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn every_overlay_s_configuration_is_good_for_the_command_line_of_the_manifest() {
    let test = "every_overlay_s_configuration_is_good_for_the_command_line_of_the_manifest";
    let Some(node) = Node::new(test) else { return };
    let mut tried = 0;
    for (daemon, file) in
        [("device-plugin", "config.json"), ("sriov-manager", "policies.yaml"), ("dpdk-forwarder", "wires.yaml")]
    {
        let container = Container::of(daemon);
        for overlay in ["software", "sriov", "dpdk"] {
            let configured = container::deploy().join("kustomize").join(overlay).join(file);
            let config = fs::read_to_string(configured).unwrap_or_else(|_| container.config(file));
            let (code, said) = node.check(&container, file, &config);
            assert_eq!(code, Some(0), "{overlay}: {daemon}: {said}");
            tried += 1;
        }
        let (code, said) = node.check(&container, file, "[");
        assert_eq!(code, Some(64), "{daemon} reads another file than its ConfigMap's: {said}");
    }
    assert_eq!(tried, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_daemon_gets_ready_with_the_rights_of_its_manifest_and_the_dashboard_shows_what_there_is() {
    let test = "each_daemon_gets_ready_with_the_rights_of_its_manifest_and_the_dashboard_shows_what_there_is";
    let Some(node) = Node::new(test) else { return };
    let kubelet = Kubelet::start(Options {
        plugins: node.host("/var/lib/kubelet/device-plugins"),
        pod_resources: node.host("/var/lib/kubelet/pod-resources").join("kubelet.sock"),
        release: Release::V1_36,
    })
    .unwrap();
    let (manager, forwarder) = (Container::of("sriov-manager"), Container::of("dpdk-forwarder").with("kernel-ends"));
    let pod = TestNetNs::new();
    let wires = format!(
        "wires: [{{name: w, ends: [{{memif: {{socket: /run/ferrule/m.sock, role: server}}}}, \
         {{kernel: {{name: net1, netns: {}}}}}]}}]",
        pod.path().display()
    );
    let manager = node.start(&manager, &[("policies.yaml", &manager.config("policies.yaml"))]);
    let forwarder = node.start(&forwarder, &[("wires.yaml", &wires)]);
    manager.until_ready();
    forwarder.until_ready();
    assert_eq!(pod.interfaces(), ["net1"]);
    let (code, shown) = node.exec(&forwarder, "ferrule", &["wires"]);
    assert!(code == Some(0) && shown.contains("net1"), "{shown}");
    let (code, shown) = node.exec(&manager, "ferrule", &["vf", "list"]);
    assert_eq!(code, Some(0), "{shown}");

    let plugin = Container::of("device-plugin");
    let config = r#"{"resourceList": [{"resourceName": "none", "selectors": {"pfNames": ["no-such-pf"]}}]}"#;
    let plugin = node.start(&plugin, &[("config.json", config)]);
    plugin.until_ready();
    kubelet.until("the list is there", |kubelet| kubelet.counts("intel.com/none").is_some()).await;

    let pages = [&manager, &forwarder, &plugin].map(|daemon| daemon.page("/metrics"));
    let there: BTreeSet<&str> = pages
        .iter()
        .flat_map(|page| page.lines())
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let dashboard = fs::read_to_string(container::deploy().join("grafana/ferrule.json")).unwrap();
    let used = metrics(&dashboard);
    assert!(used.len() > 30, "{used:?}");
    let of_family = |name: &str| {
        let ends = ["", "_total", "_bucket", "_sum", "_count"];
        ends.iter().any(|end| name.strip_suffix(end).is_some_and(|family| there.contains(family)))
    };
    let missing: Vec<_> = used.iter().filter(|name| !of_family(name)).collect();
    assert!(missing.is_empty(), "the dashboard shows what nobody tells: {missing:?}\nthere is: {there:?}");
    let rules = container::deploy().join("chart/manifests/monitoring/prometheusrule.yaml");
    let rules = fs::read_to_string(rules).unwrap();
    let asked: Vec<_> = rules.split(|c: char| !(c.is_ascii_lowercase() || c == '_')).collect();
    let asked: Vec<_> = asked.into_iter().filter(|word| word.starts_with("ferrule_")).collect();
    assert!(asked.len() > 12, "{asked:?}");
    let missing: Vec<_> = asked.iter().filter(|name| !of_family(name)).collect();
    assert!(missing.is_empty(), "alerts ask for what nobody tells: {missing:?}\nthere is: {there:?}");
    let (code, said) = node.uninstall();
    assert!(code == Some(1) && said.contains("device-plugin still runs on this node"), "{said}");
    for daemon in [plugin, forwarder, manager] {
        daemon.stop();
    }
    assert!(node.host("/var/lib/ferrule/vf").join("journal").exists());
    let (code, said) = node.uninstall();
    assert_eq!(code, Some(0), "{said}");
    let left = node.left();
    assert!(left.is_empty(), "an uninstall leaves {left:?}");
}

/// Frames that nobody takes are dropped by `net_null`: a wire of its ends needs nobody else.
#[test]
fn the_forwarder_s_image_has_what_a_wire_of_dpdk_s_needs() {
    let test = "the_forwarder_s_image_has_what_a_wire_of_dpdk_s_needs";
    let Some(node) = Node::new(test) else { return };
    // Where its drivers are.
    if !container::images(test).is_some_and(|images| images.join("dpdk-forwarder/usr/lib").is_dir()) {
        skip(test, "a dpdk-forwarder that was built with DPDK (dpdk-dev, libclang-dev)");
        return;
    }
    // Privileged it could do all the more.
    let container = Container::of("dpdk-forwarder").with("vf-ends").unprivileged(&["IPC_LOCK"]);
    let wires = "{dpdk: {memory: 64MiB}, wires: [\
        {name: w, ends: [{ethdev: {device: net_null0}}, {ethdev: {device: net_ring0}}]}, \
        {name: nic, ends: [{ethdev: {device: '0000:ff:1f.7'}}, {ethdev: {device: net_null1}}]}]}";
    let forwarder = node.start(&container, &[("wires.yaml", wires)]);
    forwarder.until_ready();
    let shown = || node.exec(&forwarder, "ferrule", &["wires"]).1;
    let is_up = |line: &str| line.split_whitespace().take(2).eq(["w", "up"]);
    eventually("the wire of software devices is up", || shown().lines().any(is_up));
    // That one DPDK has looked for on the PCI bus.
    let shown = shown();
    let said = shown.lines().find(|line| line.starts_with("nic: end A")).unwrap_or_else(|| panic!("{shown}"));
    assert!(said.contains("0000:ff:1f.7") && !said.contains("libdpdk"), "{shown}");
    forwarder.stop();
}

/// Names of metrics in the expressions of a dashboard.
fn metrics(dashboard: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words =
        dashboard.lines().filter(|line| line.contains("\"expr\":")).flat_map(|line| line.split(|c| !is_name(c)));
    words.filter(|word| word.starts_with("ferrule_") || word.starts_with("process_")).collect()
}
