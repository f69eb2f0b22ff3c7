//! The product comes onto the node as a user brings it, is updated, and goes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::restarts::{crashing, until_restarted};
use crate::node::hardware::VFS;
use crate::node::machine::{CONFIG, DPDK, KERNEL, Node};
use crate::node::pod::{CONTAINER, Pod, variable};
use crate::node::product::{NAMESPACE, Overlay, SOFTWARE};
use crate::node::runtime::IMAGE;
use crate::node::until;

pub fn comes_is_updated_and_goes(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    node.import_images()?;
    node.apply_overlay(Overlay::Sriov)?;
    node.until_counts(DPDK, VFS, VFS)?;
    has_seccomp("device-plugin", FILTERED)?;
    let said = node.run_until_started(&Pod::new("running").with(DPDK, 1))?;
    let vf = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?.to_owned();
    node.run_until_started(&crashing("crashing"))?;
    for number in 0..3 {
        node.update(Overlay::Sriov, "device-plugin")?;
        node.until_counts(DPDK, VFS, VFS)?;
        let next = format!("next-{number}");
        node.run_until_started(&Pod::new(&next).with(KERNEL, 1))?;
        node.delete(&next)?;
    }
    ensure!(node.restarts("running")? == 0, "the running pod was started again");
    ensure!(node.hardware.vf(&vf)?.driver == "vfio-pci", "{vf} was taken from a running pod");
    until_restarted(node, "crashing", 2)?;
    node.until_phase("crashing", "Running")?;
    node.delete_overlay(Overlay::Sriov)?;
    node.until_product_is_gone()?;
    node.until_counts(DPDK, VFS, 0)?;
    // Nobody takes a VF from a pod because the plugin was removed.
    node.until_phase("running", "Running")?;
    ensure!(node.hardware.vf(&vf)?.driver == "vfio-pci", "{vf} was taken from a running pod");
    leaves_nothing_with_the_kubelet()?;
    node.start_plugin(&[])
}

pub fn comes_by_helm(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    node.import_images()?;
    node.install_chart(&node.values_with(CONFIG)?)?;
    node.until_counts(DPDK, VFS, VFS)?;
    node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    node.delete("one")?;
    node.uninstall_chart()?;
    node.until_product_is_gone()?;
    leaves_nothing_with_the_kubelet()?;
    node.start_plugin(&[])
}

pub fn joins_two_pods_without_a_nic(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    node.import_images()?;
    node.apply_overlay(Overlay::Software)?;
    node.until_counts(DPDK, SOFTWARE, SOFTWARE)?;
    has_seccomp("device-plugin", FILTERED)?;
    has_seccomp("dpdk-forwarder", NOT_FILTERED)?;
    for (name, address) in [("left", "10.77.0.1"), ("right", "10.77.0.2")] {
        node.kubectl.apply(&joined_pod(name, address))?;
    }
    node.until_phase("left", "Running")?;
    node.until_phase("right", "Running")?;
    ping(node, "left", CONTAINER, "10.77.0.2")?;
    // The plugin has no part in the traffic, and the forwarder finds its peers again.
    for daemon_set in ["device-plugin", "dpdk-forwarder"] {
        node.update(Overlay::Software, daemon_set)?;
        ping(node, "left", CONTAINER, "10.77.0.2").with_context(|| format!("after an update of {daemon_set}"))?;
    }
    node.delete("left")?;
    node.delete("right")?;
    node.delete_overlay(Overlay::Software)?;
    node.until_product_is_gone()?;
    node.start_plugin(&[])
}

pub fn sidecars_join_two_pods(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    node.import_images()?;
    node.apply_overlay(Overlay::Software)?;
    node.until_counts(DPDK, SOFTWARE, SOFTWARE)?;
    node.apply_example(SIDECAR_PODS)?;
    for (pod, other) in [("interface-one", "10.99.9.2"), ("interface-two", "10.99.9.1")] {
        node.until_phase(pod, "Running")?;
        ping(node, pod, "ping", other)?;
    }
    node.delete_example(SIDECAR_PODS)?;
    node.delete_overlay(Overlay::Software)?;
    node.until_product_is_gone()?;
    node.start_plugin(&[])
}

pub fn uninstall_leaves_nothing(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    node.hardware.stop_manager();
    node.import_images()?;
    let before = files_for_others();
    node.apply_overlay(Overlay::Dpdk)?;
    node.until_counts(DPDK, SOFTWARE, SOFTWARE)?;
    // Kubernetes gives a privileged container no profile.
    has_seccomp("sriov-manager", NOT_FILTERED)?;
    node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    for daemon_set in Overlay::Dpdk.daemon_sets() {
        node.update(Overlay::Dpdk, daemon_set)?;
    }
    node.kubectl.run(&["--namespace", NAMESPACE, "exec", "daemonset/sriov-manager", "--", "ferrule", "vf", "list"])?;
    node.until_phase("one", "Running")?;
    ensure!(node.restarts("one")? == 0, "the running pod was started again");
    node.delete("one")?;
    // The first step of the page: only a plugin that runs takes back what a pod had.
    until("the plugin has taken back what the pod had", || {
        let files = files_for_others();
        // What a plugin that was stopped left is removed by this one.
        ensure!(files.is_subset(&before), "CDI specs and device-info files: {files:?}, and before {before:?}");
        Ok(Some(()))
    })?;
    node.delete_overlay(Overlay::Dpdk)?;
    node.until_product_is_gone()?;
    node.uninstall()?;
    leaves_nothing_with_the_kubelet()?;
    let left: Vec<_> = OF_PRODUCT.iter().filter(|path| Path::new(path).exists()).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    node.hardware.start_manager()?;
    node.start_plugin(&[])
}

/// What the plugin writes for runtimes and CNI plugins.
fn files_for_others() -> BTreeSet<PathBuf> {
    let files = FOR_OTHERS.iter().filter_map(|folder| fs::read_dir(folder).ok());
    files.flat_map(Iterator::flatten).map(|entry| entry.path()).collect()
}

/// Until a pod reaches another one.
pub fn ping(node: &Node, from: &str, container: &str, to: &str) -> Result<()> {
    until("the pods reach each other", || {
        let ping = ["exec", from, "--container", container, "--", "ping", "-c", "5", "-W", "2", to];
        let said = node.kubectl.run(&ping)?;
        ensure!(said.contains("5 packets received"), "{said}");
        Ok(Some(()))
    })
}

/// A pod whose interface `net1` is the other end of its memif endpoint: a forwarder of its own joins them.
pub fn joined_pod(name: &str, address: &str) -> Value {
    let wires = format!(
        "workers: [0]
socket: /wires/admin.sock
wires:
  - name: net1
    ends:
      - memif: {{ socket: /run/ferrule/$PCIDEVICE_INTEL_COM_DPDK/memif.sock, role: client }}
      - kernel: {{ name: net1, addresses: [{address}/24] }}
"
    );
    let limits = json!({"limits": {DPDK: "1"}});
    let mounts = json!([{"name": "wires", "mountPath": "/wires"}, {"name": "tun", "mountPath": "/dev/net/tun"}]);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "volumes": [{"name": "wires", "emptyDir": {}}, {"name": "tun", "hostPath": {"path": "/dev/net/tun"}}],
            // It has the same endpoint as the container after it.
            "initContainers": [{
                "name": "prepare",
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", format!("cat > /wires/wires.yaml <<END\n{wires}END\n")],
                "resources": limits,
                "volumeMounts": mounts,
            }],
            "containers": [
                {
                    "name": "forwarder",
                    "image": "localhost/ferrule/dpdk-forwarder:0.1.0",
                    "imagePullPolicy": "Never",
                    "args": ["--config=/wires/wires.yaml"],
                    "resources": limits,
                    "securityContext": {"privileged": true},
                    "volumeMounts": mounts,
                },
                {"name": CONTAINER, "image": IMAGE, "imagePullPolicy": "Never"},
            ],
        },
    })
}

/// Whether the system calls of a daemon's container are filtered, as its manifest says: the kernel tells.
fn has_seccomp(program: &str, wanted: &str) -> Result<()> {
    let mut found = 0;
    for process in fs::read_dir("/proc")?.flatten().map(|entry| entry.path()) {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if name.trim_end() == program {
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap_or_default().trim();
            ensure!(mode == wanted, "{program} has seccomp mode {mode}, not {wanted}");
            found += 1;
        }
    }
    ensure!(found > 0, "no {program} runs");
    Ok(())
}

/// No socket of a plugin.
fn leaves_nothing_with_the_kubelet() -> Result<()> {
    let entries =
        fs::read_dir(Path::new(ferrule_kubelet::PLUGINS_DIRECTORY)).context("read the kubelet's directory")?;
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let others: Vec<_> = names.iter().filter(|name| !OF_KUBELET.contains(&name.as_str())).collect();
    ensure!(others.is_empty(), "in the kubelet's directory are {others:?}");
    Ok(())
}

const SIDECAR_PODS: &str = "sidecar-pods.yaml";

/// What the daemons make on a host.
const OF_PRODUCT: [&str; 2] = ["/run/ferrule", "/var/lib/ferrule"];
/// Its folders in what is others'.
const FOR_OTHERS: [&str; 2] = ["/var/run/cdi", "/var/run/k8s.cni.cncf.io/devinfo/dp"];

/// Modes of seccomp, as `/proc/PID/status` has them.
const FILTERED: &str = "2";
const NOT_FILTERED: &str = "0";

const OF_KUBELET: [&str; 2] = ["kubelet.sock", "kubelet_internal_checkpoint"];
