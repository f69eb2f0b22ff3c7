//! The node that scenarios have: what runs on it, and what they do to it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::control_plane::ControlPlane;
use super::hardware::{Hardware, VFS};
use super::kubectl::Kubectl;
use super::kubelet::{Kubelet, NODE};
use super::pieces::{NodePieces, PLUGIN};
use super::pod::Pod;
use super::runtime::{Runtime, logged, write_config};
use super::stand::Stand;
use super::{TIMEOUT, until};
use crate::lab::scenario::Figure;
use crate::process::Process;

/// A running node, inside its namespaces. It is gone with this value.
pub struct Node {
    /// Its programs and files.
    pub pieces: NodePieces,
    /// Its NIC.
    pub hardware: Hardware,
    /// How its API server is asked. Nobody answers where there is none.
    pub kubectl: Kubectl,
    /// What scenarios measured.
    pub figures: Vec<Figure>,
    stand: Stand,
    kubelet: Option<Kubelet>,
    plugin: Option<Process>,
    _control_plane: Option<ControlPlane>,
    _runtime: Runtime,
}

impl Node {
    /// Starts everything but the plugin.
    pub fn start(pieces: NodePieces, stand: Stand) -> Result<Self> {
        let manifests = pieces.run().join("manifests");
        for folder in ["logs", "manifests", "volume-plugins"] {
            fs::create_dir_all(pieces.run().join(folder)).context("make the node's folders")?;
        }
        let is_alone = stand == Stand::Standalone;
        let statics = format!("staticPodPath: {}\nfileCheckFrequency: 1s\n", manifests.display());
        write_config(&pieces, if is_alone { &statics } else { "" })?;
        let kubectl = Kubectl::new(&pieces);
        let runtime = Runtime::start(&pieces)?;
        let control_plane = if is_alone { None } else { Some(ControlPlane::start(&pieces, &kubectl)?) };
        let kubelet = Some(Kubelet::start(&pieces, stand)?);
        let node = Self {
            hardware: Hardware::start()?,
            pieces,
            kubectl,
            figures: Vec::new(),
            stand,
            kubelet,
            plugin: None,
            _control_plane: control_plane,
            _runtime: runtime,
        };
        if !is_alone {
            node.wait_until_ready()?;
        }
        node.write_plugin_config(CONFIG)?;
        // The plugin takes nothing back while it does not see its own pod on the list. As a process it has none, so this is it.
        let witness = Pod::new(WITNESS).inside(WITNESS_NAMESPACE);
        if is_alone {
            node.write_static(&witness)?;
        } else {
            node.run(&witness)?;
        }
        Ok(node)
    }

    /// As every scenario finds it: no pods, a plugin with [`CONFIG`], and every VF to be had.
    pub fn make_fresh(&mut self) -> Result<()> {
        self.hardware.nic.heal();
        if !self.hardware.is_managed() {
            self.hardware.start_manager()?;
        }
        if self.kubelet.is_none() {
            self.start_kubelet()?;
        }
        self.delete_all_pods()?;
        self.write_plugin_config(CONFIG)?;
        if self.plugin.is_none() {
            self.start_plugin(&[])?;
        }
        self.until_counts(DPDK, VFS, VFS)?;
        self.until_counts(KERNEL, VFS, VFS)
    }

    fn wait_until_ready(&self) -> Result<()> {
        until("the node is ready", || {
            let node = self.kubectl.get(&["node", NODE])?;
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is_ready =
                conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            let is_tainted = node["spec"]["taints"].as_array().is_some_and(|taints| !taints.is_empty());
            ensure!(is_ready && !is_tainted, "conditions {conditions:?}, taints {}", node["spec"]["taints"]);
            Ok(Some(()))
        })
    }

    // The plugin.

    /// Starts it as a process of the node, with these flags besides the usual ones.
    pub fn start_plugin(&mut self, flags: &[&str]) -> Result<()> {
        ensure!(self.plugin.is_none(), "a plugin runs already");
        self.plugin = Some(self.spawn_plugin(flags)?);
        Ok(())
    }

    /// Starts one, which may be one too many.
    pub fn spawn_plugin(&self, flags: &[&str]) -> Result<Process> {
        let mut command = logged(&self.pieces, &self.pieces.our_program(PLUGIN));
        command.arg("--config-file").arg(self.plugin_config()).arg("--root").arg(self.hardware.root());
        // What is tested begins after it: a kubelet is believed sooner.
        command.args(["--kubelet-settle", "5s", "--pod-namespace", WITNESS_NAMESPACE, "--pod-name"]);
        let is_static = self.stand == Stand::Standalone;
        command.arg(if is_static { format!("{WITNESS}-{NODE}") } else { WITNESS.to_owned() }).args(flags);
        Ok(Process::start(&mut command))
    }

    /// Kills the plugin, so that it can tell nobody.
    pub fn kill_plugin(&mut self) -> Result<()> {
        self.plugin.take().context("no plugin runs")?.kill();
        Ok(())
    }

    /// Stops the plugin, as systemd and Kubernetes do.
    pub fn stop_plugin(&mut self) -> Result<()> {
        let plugin = self.plugin.take().context("no plugin runs")?;
        plugin.signal(Signal::SIGTERM);
        plugin.wait();
        Ok(())
    }

    /// Takes the plugin out of the node's hands, or gives it another.
    pub fn swap_plugin(&mut self, plugin: Option<Process>) -> Option<Process> {
        std::mem::replace(&mut self.plugin, plugin)
    }

    /// Gives the plugin another configuration, as a `ConfigMap` does.
    pub fn write_plugin_config(&self, text: &str) -> Result<()> {
        let path = self.plugin_config();
        let new = path.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).context("write the plugin's configuration")
    }

    fn plugin_config(&self) -> PathBuf {
        self.pieces.run().join("config/plugin.json")
    }

    // The kubelet.

    /// Kills it, so that it can tell nobody. Containers run on.
    pub fn kill_kubelet(&mut self) -> Result<()> {
        self.kubelet.take().context("no kubelet runs")?.kill();
        Ok(())
    }

    /// Starts it again.
    pub fn start_kubelet(&mut self) -> Result<()> {
        ensure!(self.kubelet.is_none(), "a kubelet runs already");
        self.kubelet = Some(Kubelet::start(&self.pieces, self.stand)?);
        Ok(())
    }

    // What the API server says.

    /// How many of a resource the node has, and how many of those may be given away.
    pub fn counts(&self, resource: &str) -> Result<(String, String)> {
        let status = &self.kubectl.get(&["node", NODE])?["status"];
        let of = |what: &str| status[what][resource].as_str().unwrap_or("none").to_owned();
        Ok((of("capacity"), of("allocatable")))
    }

    /// Waits until it has and may give away so many.
    pub fn until_counts(&self, resource: &str, capacity: u32, allocatable: u32) -> Result<()> {
        if self.stand == Stand::Standalone {
            return self.until_devices(resource, allocatable);
        }
        until(&format!("the node has {capacity} of {resource}, {allocatable} of them allocatable"), || {
            let counts = self.counts(resource)?;
            ensure!(counts == (capacity.to_string(), allocatable.to_string()), "it has {counts:?}");
            Ok(Some(()))
        })
    }

    /// Waits until the kubelet may give away so many of a resource, as it says itself, which is before the node says so.
    pub fn until_devices(&self, resource: &str, count: u32) -> Result<()> {
        until(&format!("the kubelet has {count} healthy {resource}"), || {
            let devices = self.allocatable_devices(resource)?;
            ensure!(devices.len() == count as usize, "it has {devices:?}");
            Ok(Some(()))
        })
    }

    /// Runs a pod.
    pub fn run(&self, pod: &Pod) -> Result<()> {
        self.kubectl.apply(&pod.object())
    }

    /// Runs a pod; returns what it printed until it said `started`.
    pub fn run_until_started(&self, pod: &Pod) -> Result<String> {
        self.run(pod)?;
        self.until_said(&pod.name, "started")
    }

    /// Waits until a pod printed a line; returns all that it printed.
    pub fn until_said(&self, pod: &str, line: &str) -> Result<String> {
        until(&format!("pod {pod} says {line}"), || {
            let said = self.said(pod)?;
            ensure!(said.lines().any(|said| said == line), "it said:\n{said}");
            Ok(Some(said))
        })
    }

    /// What a pod has printed since it was last started.
    pub fn said(&self, pod: &str) -> Result<String> {
        self.kubectl.run(&["logs", pod]).map_err(|error| match self.why(pod) {
            Ok(why) => error.context(why),
            Err(_) => error,
        })
    }

    /// Waits until a pod is not scheduled for this reason.
    pub fn until_pending(&self, pod: &str, reason: &str) -> Result<()> {
        until(&format!("pod {pod} waits: {reason}"), || {
            let why = self.why(pod)?;
            ensure!(why.contains(reason) && why.contains("phase \"Pending\""), "{why}");
            Ok(Some(()))
        })
    }

    /// A pod as the API server knows it.
    pub fn pod(&self, name: &str) -> Result<Value> {
        self.kubectl.get(&["pod", name])
    }

    /// Waits until a pod is in this phase.
    pub fn until_phase(&self, pod: &str, phase: &str) -> Result<Value> {
        until(&format!("pod {pod} is {phase}"), || {
            let object = self.pod(pod)?;
            let is = &object["status"]["phase"];
            ensure!(is == phase, "{}", self.why(pod)?);
            Ok(Some(object))
        })
    }

    /// How often a pod's container was started again.
    pub fn restarts(&self, pod: &str) -> Result<u64> {
        Ok(self.pod(pod)?["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())
    }

    /// Deletes a pod; returns when it is gone.
    pub fn delete(&self, pod: &str) -> Result<()> {
        self.kubectl.run(&["delete", "pod", pod, TIMEOUT]).map(drop)
    }

    /// What is known about a pod's state: phase, reasons and messages.
    pub fn why(&self, pod: &str) -> Result<String> {
        let status = &self.pod(pod)?["status"];
        let words = ["phase", "reason", "message", "conditions", "containerStatuses"]
            .map(|word| format!("{word} {}", status[word]));
        Ok(format!("pod {pod}: {}", words.join(", ")))
    }

    fn delete_all_pods(&mut self) -> Result<()> {
        match self.stand {
            Stand::Cluster => self.kubectl.run(&["delete", "pod", "--all", "--namespace=default", TIMEOUT]).map(drop),
            Stand::Standalone => self.delete_static_pods(),
        }
    }

    /// Puts a time into the report, in milliseconds.
    pub fn time(&mut self, name: &str, time: std::time::Duration) {
        let value = time.as_secs_f64() * 1e3;
        self.figures.push(Figure { name: name.to_owned(), value, unit: "ms".to_owned() });
    }
}

/// Opens a shell on a node; returns when it ends.
pub fn shell(node: &mut Node) -> Result<()> {
    node.make_fresh()?;
    let path = format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", node.pieces.bin().display(), node.pieces.ours.display());
    let mut command = Command::new("bash");
    command.args(["--norc", "-i"]).env("PATH", path).env("PS1", "node# ");
    command.env("KUBECONFIG", super::kubectl::kubeconfig(&node.pieces)).current_dir(node.pieces.run());
    command.status().context("run bash").map(drop)
}

const WITNESS: &str = "witness";
const WITNESS_NAMESPACE: &str = "kube-system";

/// Two resources that share all VFs.
pub const CONFIG: &str = r#"{"resourceList": [
    {"resourceName": "dpdk", "driver": "vfio-pci", "selectors": {"vendors": ["8086"]}},
    {"resourceName": "kernel", "driver": "kernel", "selectors": {"vendors": ["8086"]}}
]}"#;
/// One of them.
pub const DPDK: &str = "intel.com/dpdk";
/// The other one.
pub const KERNEL: &str = "intel.com/kernel";
