//! What the Grafana dashboard shows of a node on which pods come and go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::product::{joined_pod, ping};
use super::restarts::is_ready;
use crate::node::hardware::{MANAGER_METRICS, VFS};
use crate::node::kubelet::NODE;
use crate::node::machine::{KERNEL, Node};
use crate::node::pieces::script;
use crate::node::pod::{CONTAINER, Pod};
use crate::node::runtime::{logged, program, run};
use crate::node::until;
use crate::process::Process;

pub fn shows_what_happens(node: &mut Node) -> Result<()> {
    node.import_images()?;
    node.stop_plugin()?;
    let forwarder = start_forwarder(node)?;
    let prometheus = start_prometheus(node)?;
    let began = Instant::now();
    node.write_plugin_config(&with_endpoints())?;
    node.start_plugin(&["--metrics", PLUGIN_METRICS])?;
    node.until_counts(VFIO, VFS, VFS)?;
    node.kubectl.apply(&joined_pod("left", "10.77.0.1"))?;
    node.kubectl.apply(&joined_pod("right", "10.77.0.2"))?;
    for number in 0..3 {
        for resource in [VFIO, KERNEL] {
            let name = format!("pod-{number}-{}", resource.rsplit('/').next().unwrap_or_default());
            node.run_until_started(&Pod::new(&name).with(resource, 2))?;
            ping(node, "left", CONTAINER, "10.77.0.2")?;
            node.delete(&name)?;
        }
    }
    node.run_until_started(&Pod::new("stays").with(VFIO, 1))?;
    node.hardware.nic.put_netdev_file(node.hardware.nic.pf(0), "operstate", "down");
    node.until_counts(KERNEL, VFS, 0)?;
    let empty = until("Prometheus knows of the devices without a link", || {
        let empty = draw(node, began)?;
        ensure!(!empty.iter().any(|title| title == "Unhealthy, and why"), "nothing in {empty:?}");
        Ok(Some(empty))
    })?;
    let missing: Vec<_> = empty.iter().filter(|title| !MAY_BE_EMPTY.contains(&title.as_str())).collect();
    ensure!(missing.is_empty(), "panels without anything: {missing:?}");
    node.stop_plugin()?;
    drop((prometheus, forwarder));
    node.write_plugin_config(crate::node::machine::CONFIG)?;
    node.start_plugin(&[])
}

/// That of the node with endpoints of the forwarder besides.
fn with_endpoints() -> String {
    crate::node::machine::CONFIG
        .replace("\"dpdk\"", "\"vfio\"")
        .replace("[\n", "[\n    {\"resourceName\": \"dpdk\", \"software\": 2},\n")
}

fn start_forwarder(node: &Node) -> Result<Process> {
    let file = node.pieces.run().join("config/forwarder.yaml");
    fs::write(&file, format!("workers: [0]\nmetrics: {FORWARDER_METRICS}\n")).context("configure the forwarder")?;
    let mut command = logged(&node.pieces, &node.pieces.our_program("dpdk-forwarder"));
    Ok(Process::start(command.arg("--config").arg(file)))
}

/// One that asks the three daemons each second. The labels are those that the `PodMonitor` gives.
fn start_prometheus(node: &Node) -> Result<Process> {
    let daemons = [
        ("device-plugin", PLUGIN_METRICS.to_owned()),
        ("dpdk-forwarder", FORWARDER_METRICS.to_owned()),
        ("sriov-manager", MANAGER_METRICS.to_string()),
    ];
    let targets = daemons.map(|(name, address)| {
        format!("  - {{targets: [\"{address}\"], labels: {{node: {NODE}, container: {name}, pod: {name}}}}}\n")
    });
    let text = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: ferrule\n  static_configs:\n{}",
        targets.concat()
    );
    let file = node.pieces.run().join("config/prometheus.yaml");
    fs::write(&file, text).context("configure Prometheus")?;
    let mut command = logged(&node.pieces, &program("prometheus")?);
    command.arg("--config.file").arg(file).arg("--storage.tsdb.path").arg(node.pieces.run().join("prometheus"));
    let prometheus = Process::start(command.arg(format!("--web.listen-address={PROMETHEUS}")));
    until("Prometheus is ready", || Ok(is_ready(PROMETHEUS, "/-/ready")?.then_some(())))?;
    Ok(prometheus)
}

/// Draws the dashboard of the time since then (`target/node/dashboard.svg`); returns which panels have nothing to show.
fn draw(node: &Node, since: Instant) -> Result<Vec<String>> {
    let said = run(Command::new(script("dashboard"))
        .arg(dashboard())
        .arg(format!("http://{PROMETHEUS}"))
        .arg(since.elapsed().as_secs().to_string())
        .arg(node.pieces.folder.join("dashboard.svg")))?;
    Ok(said.lines().filter_map(|line| line.strip_suffix(": 0")).map(str::to_owned).collect())
}

fn dashboard() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana/ferrule.json")
}

const VFIO: &str = "intel.com/vfio";
const FORWARDER_METRICS: &str = "127.0.0.1:9090";
const PLUGIN_METRICS: &str = "127.0.0.1:9092";
const PROMETHEUS: &str = "127.0.0.1:19090";

/// What there is nothing to say of while nothing is broken but a link: and titles of rows.
const MAY_BE_EMPTY: [&str; 12] = [
    "Pods and their devices (device-plugin)",
    "VFs (sriov-manager)",
    "Wires (dpdk-forwarder)",
    "Daemons",
    "Resources without a list",
    "Faulty",
    "Cannot be borrowed",
    "Wires down",
    "Ends that failed",
    "Drops",
    // Only devices that DPDK drives have one.
    "Links of devices",
    "Held back",
];
