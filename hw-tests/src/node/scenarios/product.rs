//! The product comes onto the node as a user brings it, is updated, and goes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::restarts::{crashing, until_restarted};
use crate::node::hardware::VFS;
use crate::node::machine::{CONFIG, DPDK, KERNEL, Node};
use crate::node::pod::{CONTAINER, Pod, variable};
use crate::node::product::{Overlay, SOFTWARE};
use crate::node::runtime::IMAGE;
use crate::node::until;

pub fn comes_is_updated_and_goes(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    node.import_images()?;
    node.apply_overlay(Overlay::Sriov)?;
    node.until_counts(DPDK, VFS, VFS)?;
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
    for (name, address) in [("left", "10.77.0.1"), ("right", "10.77.0.2")] {
        node.kubectl.apply(&joined_pod(name, address))?;
    }
    node.until_phase("left", "Running")?;
    node.until_phase("right", "Running")?;
    ping(node)?;
    // The plugin has no part in the traffic, and the forwarder finds its peers again.
    for daemon_set in ["device-plugin", "dpdk-forwarder"] {
        node.update(Overlay::Software, daemon_set)?;
        ping(node).with_context(|| format!("after an update of {daemon_set}"))?;
    }
    node.delete("left")?;
    node.delete("right")?;
    node.delete_overlay(Overlay::Software)?;
    node.until_product_is_gone()?;
    node.start_plugin(&[])
}

pub fn uninstall_leaves_nothing(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    node.hardware.stop_manager();
    node.import_images()?;
    node.apply_overlay(Overlay::Software)?;
    node.until_counts(DPDK, SOFTWARE, SOFTWARE)?;
    node.run_until_started(&Pod::new("one").with(DPDK, 1))?;
    node.delete("one")?;
    node.delete_overlay(Overlay::Software)?;
    node.until_product_is_gone()?;
    node.uninstall()?;
    leaves_nothing_with_the_kubelet()?;
    let left: Vec<_> = OF_PRODUCT.iter().filter(|path| Path::new(path).exists()).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    node.hardware.start_manager()?;
    node.start_plugin(&[])
}

fn ping(node: &Node) -> Result<()> {
    until("the pods reach each other", || {
        let ping = ["exec", "left", "--container", CONTAINER, "--", "ping", "-c", "5", "-W", "2", "10.77.0.2"];
        let said = node.kubectl.run(&ping)?;
        ensure!(said.contains("5 packets received"), "{said}");
        Ok(Some(()))
    })
}

/// A pod whose interface `net1` is the other end of its memif endpoint: a forwarder of its own joins them.
fn joined_pod(name: &str, address: &str) -> Value {
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

/// No socket of a plugin.
fn leaves_nothing_with_the_kubelet() -> Result<()> {
    let entries =
        fs::read_dir(Path::new(ferrule_kubelet::PLUGINS_DIRECTORY)).context("read the kubelet's directory")?;
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let others: Vec<_> = names.iter().filter(|name| !OF_KUBELET.contains(&name.as_str())).collect();
    ensure!(others.is_empty(), "in the kubelet's directory are {others:?}");
    Ok(())
}

/// What the software overlay makes on a host.
const OF_PRODUCT: [&str; 2] = ["/run/ferrule", "/var/lib/ferrule"];

const OF_KUBELET: [&str; 2] = ["kubelet.sock", "kubelet_internal_checkpoint"];
