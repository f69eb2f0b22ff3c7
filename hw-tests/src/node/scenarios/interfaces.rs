//! Interfaces of pods' devices by the CNI plugin: without Multus, and as Multus would hand devices over.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::product::ping;
use crate::node::hardware::VFS;
use crate::node::machine::{CONFIG, DPDK, Node};
use crate::node::pod::{CONTAINER, Pod, variable};
use crate::node::product::{NAMESPACE, Overlay};
use crate::node::until;

/// As a user brings it: the overlay, the example, an update of everything, pods that end while the forwarder is away, and uninstall.
pub fn join_two_pods_without_multus(node: &mut Node) -> Result<()> {
    node.stop_plugin()?;
    // No uninstall goes on beside one.
    node.hardware.stop_manager();
    let network = fs::read_to_string(NETWORK).context("read the node's network")?;
    node.import_images()?;
    node.apply_overlay(Overlay::Interfaces)?;
    node.until_counts(PORT, PORTS, PORTS)?;
    node.apply_example(INTERFACE_PODS)?;
    let one = address_of(node, "port-one")?;
    let two = address_of(node, "port-two")?;
    ping(node, "port-one", CONTAINER, &two)?;
    ping(node, "port-two", CONTAINER, &one)?;
    for daemon_set in Overlay::Interfaces.daemon_sets() {
        node.update(Overlay::Interfaces, daemon_set)?;
        ping(node, "port-one", CONTAINER, &two).with_context(|| format!("after an update of {daemon_set}"))?;
    }
    // A pod without devices has what the network before gives it, and nothing more.
    node.run_until_started(&Pod::new("plain").doing("ip -o link; echo started; sleep 100000"))?;
    ensure!(!node.said("plain")?.contains("net1"), "{}", node.said("plain")?);

    node.send_away("dpdk-forwarder")?;
    node.delete("port-one").context("its wire stays recorded, and the pod ends")?;
    node.bring_back(Overlay::Interfaces, "dpdk-forwarder")?;
    node.apply_example(INTERFACE_PODS)?;
    let again = address_of(node, "port-one")?;
    ping(node, "port-two", CONTAINER, &again).context("the next pod at the other end")?;
    until("only the wires of these two pods are there", || {
        let wires =
            node.kubectl.run(&["--namespace", NAMESPACE, "exec", FORWARDER, "--", "ferrule", "wires", "--json"])?;
        let wires: Value = serde_json::from_str(&wires).context("understand the wires")?;
        let owners = wires["wires"].as_array().into_iter().flatten().map(|wire| &wire["owner"]);
        let ours = owners.filter(|owner| **owner == "cni").count();
        ensure!(ours == 2, "{ours} wires of pods are there: {wires}");
        Ok(Some(()))
    })?;

    node.delete_example(INTERFACE_PODS)?;
    node.delete("plain")?;
    node.delete_overlay(Overlay::Interfaces)?;
    node.until_product_is_gone()?;
    node.run_until_started(&Pod::new("after")).context("the plugin is there still, and in nobody's way")?;
    node.delete("after")?;
    node.uninstall()?;
    let left = fs::read_to_string(NETWORK).context("read the node's network")?;
    let [is, was]: [Value; 2] = [serde_json::from_str(&left)?, serde_json::from_str(&network)?];
    ensure!(is == was && !Path::new(PROGRAM).exists(), "left behind: {left}");
    node.hardware.start_manager()?;
    node.start_plugin(&[])
}

/// VFs on `vfio-pci` get the VLAN of their network, and give it back; also when the manager is away at their end.
pub fn vfs_get_the_network_of_their_resource(node: &mut Node) -> Result<()> {
    with_plugin(node, |node| {
        let networks = json!([{ "name": "blue", "vlan": 100 }, { "name": "red", "vlan": 200 }]);
        node.write_plugin_config(&CONFIG.replacen(
            r#""vfio-pci","#,
            &format!(r#""vfio-pci", "networks": {networks},"#),
            1,
        ))?;
        let entry = json!({ "type": "ferrule-cni", "devices": "pod", "capabilities": { "io.kubernetes.cri.pod-annotations": true } });
        node.chain(entry)?;
        until("the networks are known", || Ok(fs::read_to_string(NETWORKS)?.contains("red").then_some(())))?;
        let two = Pod::new("two").with(DPDK, 2);
        let two =
            two.annotated("ferrule/networks", &json!([{ "resource": DPDK }, { "resource": DPDK, "network": "red" }]));
        let said = node.run_until_started(&two)?;
        let vfs: Vec<_> = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?.split(',').map(str::to_owned).collect();
        ensure!(vlans(node, &vfs)? == [Some(100), Some(200)], "{:?}", vlans(node, &vfs));
        node.hardware.stop_manager();
        node.delete("two").context("the manager is away")?;
        node.hardware.start_manager()?;
        node.until_counts(DPDK, VFS, VFS)?;
        until("the VFs are given back", || Ok((vlans(node, &vfs)? == [None, None]).then_some(())))?;
        node.run_until_started(&Pod::new("next").with(DPDK, 1))?;
        node.delete("next")
    })
}

/// The stand-in for Multus hands the pod's devices to the plugin, one for each network.
pub fn devices_are_handed_over_in_order(node: &mut Node) -> Result<()> {
    with_plugin(node, |node| {
        let network = |name: &str, vlan: u32| json!({ "resource": DPDK, "config": { "name": name, "type": "ferrule-cni", "vlan": vlan } });
        let networks = [network("first", 11), network("second", 12)];
        fs::copy(node.pieces.our_program(STAND_IN), Path::new(BIN).join(STAND_IN)).context("install the stand-in")?;
        node.chain(json!({ "type": STAND_IN, "networks": networks }))?;
        let said = node.run_until_started(&Pod::new("two").with(DPDK, 2))?;
        let vfs: Vec<_> = variable(&said, "PCIDEVICE_INTEL_COM_DPDK")?.split(',').map(str::to_owned).collect();
        ensure!(vlans(node, &vfs)? == [Some(11), Some(12)], "{:?}", vlans(node, &vfs));
        node.delete("two")?;
        node.until_counts(DPDK, VFS, VFS)?;
        until("the VFs are given back", || Ok((vlans(node, &vfs)? == [None, None]).then_some(())))?;
        Ok(())
    })
}

/// With the plugin's program on the node; afterwards the node is as it was.
fn with_plugin(node: &mut Node, work: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
    let network = fs::read(NETWORK).context("read the node's network")?;
    fs::create_dir_all(BIN).context("make the folder of plugins")?;
    fs::copy(node.pieces.our_program("ferrule-cni"), PROGRAM).context("install the plugin")?;
    let done = work(node);
    fs::write(NETWORK, network).context("give the node its network back")?;
    done
}

impl Node {
    /// Chains a plugin behind the node's network. It finds VFs where the made-up NIC is.
    fn chain(&self, mut plugin: Value) -> Result<()> {
        plugin["ferrule"] = json!({ "root": self.hardware.root() });
        let mut list: Value = serde_json::from_slice(&fs::read(NETWORK)?).context("understand the node's network")?;
        list["plugins"].as_array_mut().context("a list of plugins")?.push(plugin);
        let new = Path::new(NETWORK).with_extension("new");
        fs::write(&new, list.to_string()).and_then(|()| fs::rename(&new, NETWORK)).context("write the node's network")
    }

    /// The pods of a DaemonSet leave the node.
    fn send_away(&self, daemon_set: &str) -> Result<()> {
        self.select_nodes(daemon_set, &json!("yes"))?;
        let selector = format!("app.kubernetes.io/name={daemon_set}");
        until("it has left", || {
            let left = self.kubectl.get(&["pods", "--namespace", NAMESPACE, "--selector", &selector])?;
            ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "{left}");
            Ok(Some(()))
        })
    }

    fn bring_back(&self, overlay: Overlay, daemon_set: &str) -> Result<()> {
        self.select_nodes(daemon_set, &Value::Null)?;
        self.until_rolled_out(overlay)
    }

    fn select_nodes(&self, daemon_set: &str, away: &Value) -> Result<()> {
        let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": { "away": away } } } } }).to_string();
        self.kubectl.run(&["--namespace", NAMESPACE, "patch", "daemonset", daemon_set, "--patch", &patch]).map(drop)
    }
}

/// Of the interface that the plugin brought a pod.
fn address_of(node: &Node, pod: &str) -> Result<String> {
    node.until_phase(pod, "Running")?;
    let said = node.kubectl.run(&["exec", pod, "--", "ip", "-4", "-o", "addr", "show", "net1"])?;
    let address = said.split_once("inet ").and_then(|(_, rest)| rest.split_once('/'));
    address.map(|(address, _)| address.to_owned()).with_context(|| format!("{pod} has no address: {said}"))
}

/// What the manager lends VFs with.
fn vlans(node: &Node, vfs: &[String]) -> Result<Vec<Option<u32>>> {
    let vlan = |vf: &String| Ok(node.hardware.vf(vf)?.lease.and_then(|lease| Some(lease.attributes?.vlan?.id)));
    vfs.iter().map(vlan).collect()
}

const INTERFACE_PODS: &str = "interface-pods.yaml";
const FORWARDER: &str = "daemonset/dpdk-forwarder";
const PORT: &str = "intel.com/port";
/// As the overlay has them.
const PORTS: u32 = 8;
const STAND_IN: &str = "multus-stand-in";
const BIN: &str = "/opt/cni/bin";
const PROGRAM: &str = "/opt/cni/bin/ferrule-cni";
const NETWORK: &str = "/etc/cni/net.d/10-node.conflist";
const NETWORKS: &str = device_plugin_client::networks::NETWORKS_DEFAULT;
