//! Devices of pods without Multus: a kubelet's device manager with the device plugin itself, a manager on a made-up node, a whole
//! forwarder, and the plugin chained behind another one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use device_plugin::allocate::{CdiMode, DeviceFiles};
use device_plugin::config::ConfigFile;
use device_plugin::daemon::{Daemon as Plugin, DaemonOptions as PluginOptions};
use device_plugin::pod_resources::Witness;
use dpdk_forwarder::config::WiresFile;
use dpdk_forwarder::{Forwarder, Options};
use dpdk_forwarder_client::v1 as admin;
use ferrule_cni::plugin::{Answer, serve_observed};
use ferrule_kubelet::stand_in::{Kubelet, Options as KubeletOptions, Release, Scenario};
use serde_json::{Value, json};

use common::{Pod, Site, has, ip, run_killed};

/// A node with everything that runs on it.
struct Node {
    forwarder: Option<Forwarder>,
    plugin: Option<Plugin>,
    kubelet: Option<Kubelet>,
    site: Site,
}

const KERNEL: &str = "intel.com/kernel";
const PORT: &str = "intel.com/port";

impl Node {
    fn start(test: &str) -> Option<Self> {
        let site = Site::start(test, 2)?;
        let ipam = site.with_ipam();
        said_by_the_runtime(&site.bin());
        let blue = json!({ "name": "blue", "vlan": 100, "ipam": ipam });
        let broken = json!({ "name": "broken", "ipam": { "type": "nobody" } });
        let wire = json!({ "name": "wire", "ipam": { "type": "said" }, "capabilities": { "ips": true, "mac": true } });
        let selectors = json!({ "vendors": ["8086"] });
        let config = json!({ "resourceList": [
            { "resourceName": "kernel", "driver": "kernel", "selectors": selectors, "networks": [blue, broken] },
            { "resourceName": "port", "software": 4, "networks": [wire, broken] },
            { "resourceName": "plain", "software": 2 },
        ]});
        fs::write(site.at("config.json"), config.to_string()).unwrap();
        let mut node = Self { forwarder: None, plugin: None, kubelet: None, site };
        node.start_forwarder();
        node.start_kubelet();
        let options = PluginOptions {
            file: ConfigFile::load(&node.site.at("config.json"), "intel.com").unwrap(),
            presets: "intel.com".into(),
            root: node.site.node.sysfs().path(""),
            manager: node.site.socket(),
            socket: node.site.at("device-plugin.sock"),
            forwarder: node.site.at("admin.sock"),
            software: node.site.at("software"),
            networks: node.site.at("networks.json"),
            plugins: node.site.at("device-plugins"),
            pod_resources: node.site.at("pod-resources/kubelet.sock"),
            witness: Witness { own_pod: Some("pod default/device-plugin".into()), settle: Duration::ZERO },
            state: node.site.at("state"),
            files: DeviceFiles { cdi: node.site.at("cdi"), device_info: node.site.at("devinfo/dp") },
            nsm_tokens: node.site.at("tokens"),
            cdi: CdiMode::Off,
            metrics: None,
        };
        node.plugin = Some(node.site.runtime.block_on(Plugin::start(options)).unwrap());
        let healthy = |resource, count| move |kubelet: &Kubelet| kubelet.healthy(resource).len() == count;
        let kubelet = node.kubelet.as_ref().unwrap();
        node.site.runtime.block_on(async {
            kubelet.until("VFs are there", healthy(KERNEL, 2)).await;
            kubelet.until("endpoints are there", healthy(PORT, 4)).await;
        });
        Some(node)
    }

    fn start_forwarder(&mut self) {
        let path = self.site.at("wires.yaml");
        fs::write(&path, format!("admin: {}\nwires: []\n", self.site.at("admin.sock").display())).unwrap();
        let file = WiresFile::load(&path).unwrap();
        let drain_grace = Duration::from_millis(100);
        let options = Options { config: file.config.clone(), file: Some(file), by_flag: Vec::new(), drain_grace };
        // A program that another test starts at this moment keeps the lock of the forwarder before until it runs.
        let deadline = Instant::now() + Duration::from_secs(10);
        self.forwarder = loop {
            match self.site.runtime.block_on(Forwarder::start(options.clone())) {
                Ok(forwarder) => break Some(forwarder),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
    }

    fn stop_forwarder(&mut self) {
        let forwarder = self.forwarder.take().unwrap();
        self.site.runtime.block_on(forwarder.stop());
    }

    fn start_kubelet(&mut self) {
        let (plugins, pod_resources) = (self.site.at("device-plugins"), self.site.at("pod-resources/kubelet.sock"));
        let _runtime = self.site.runtime.enter();
        let kubelet = Kubelet::start(KubeletOptions { plugins, pod_resources, release: Release::V1_37 }).unwrap();
        kubelet.run_pod("device-plugin");
        self.kubelet = Some(kubelet);
    }

    fn kubelet(&self) -> &Kubelet {
        self.kubelet.as_ref().unwrap()
    }

    /// The kubelet gives a pod one device of each of these resources, once it knows of them.
    fn admit(&self, pod: &str, resources: &[&str]) {
        for resource in resources {
            let container = resource.replace('/', "-");
            let admitted = async {
                let is_there =
                    |kubelet: &Kubelet| kubelet.counts(resource).is_some_and(|counts| counts.allocatable > 0);
                self.kubelet().until("the resource has devices", is_there).await;
                self.kubelet().admit(pod, &container, resource, 1).await
            };
            self.site.runtime.block_on(admitted).unwrap();
        }
    }

    /// Asks the plugin of a pod, as a runtime does behind the pod's own network.
    fn ask(&self, command: &str, pod: &str, netns: &Pod, annotation: Option<&Value>) -> Answer {
        self.ask_observed(command, pod, netns, annotation, &|_| ())
    }

    fn ask_observed(
        &self,
        command: &str,
        pod: &str,
        netns: &Pod,
        annotation: Option<&Value>,
        observer: &(dyn Fn(&str) + Sync),
    ) -> Answer {
        self.ask_with(command, pod, netns, &self.config_with(annotation), observer)
    }

    fn config_with(&self, annotation: Option<&Value>) -> Value {
        let mut config = self.config();
        if let Some(annotation) = annotation {
            let annotations = json!({ "ferrule/networks": annotation.to_string(), "other": "x" });
            config["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": annotations });
        }
        config
    }

    fn config(&self) -> Value {
        let eth0 = json!({ "name": "eth0", "sandbox": "/run/netns/x" });
        let ips = json!([{ "address": "10.1.0.2/16", "interface": 0 }]);
        json!({
            "cniVersion": "1.1.0",
            "name": "k8s",
            "type": "ferrule-cni",
            "devices": "pod",
            "prevResult": { "cniVersion": "1.1.0", "interfaces": [eth0], "ips": ips },
            "ferrule": {
                "manager": self.site.socket(), "forwarder": self.site.at("admin.sock"), "state": self.site.at("cni"),
                "root": self.site.node.sysfs().path(""), "networks": self.site.at("networks.json"),
                "kubelet": self.site.at("pod-resources/kubelet.sock"),
            },
        })
    }

    fn ask_with(
        &self,
        command: &str,
        pod: &str,
        netns: &Pod,
        config: &Value,
        observer: &(dyn Fn(&str) + Sync),
    ) -> Answer {
        let variables = self.variables(command, pod, netns);
        let input = config.to_string();
        let serve = || serve_observed(|name| variables.get(name).cloned(), input.as_bytes(), observer);
        self.site.host.run(serve).unwrap()
    }

    fn variables(&self, command: &str, pod: &str, netns: &Pod) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", format!("sandbox-of-{pod}")),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_NETNS", netns.path.display().to_string()),
            ("CNI_PATH", self.site.bin().display().to_string()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};MAC=02:00:00:00:00:99")),
        ])
    }

    fn must(&self, command: &str, pod: &str, netns: &Pod, annotation: Option<&Value>) -> Value {
        let answer = self.ask(command, pod, netns, annotation);
        assert!(answer.is_done, "{command} {pod}: {answer:?}");
        answer.document.unwrap_or_default()
    }

    fn wires(&self) -> Vec<String> {
        let wires = self.site.runtime.block_on(async {
            let mut client = dpdk_forwarder_client::connect(&self.site.at("admin.sock")).await.unwrap();
            let ours = admin::ListWiresRequest { owner: Some("cni".into()), ..Default::default() };
            client.list_wires(ours).await.unwrap().into_inner().wires
        });
        wires.into_iter().map(|wire| wire.name).collect()
    }

    /// What is left of any pod.
    fn leftovers(&self) -> Vec<String> {
        let records = ["pod", "endpoint"].into_iter().flat_map(|kind| fs::read_dir(self.site.at("cni").join(kind)));
        let records = records.flatten().map(|entry| entry.unwrap().path().display().to_string());
        let vlans = (0..2).filter_map(|index| self.site.vf(index).lease?.attributes?.vlan);
        let vlans = vlans.map(|vlan| format!("vlan {}", vlan.id));
        records.chain(vlans).chain(self.site.leftovers()).chain(self.wires()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let (plugin, forwarder) = (self.plugin.take(), self.forwarder.take());
        self.site.runtime.block_on(async {
            if let Some(plugin) = plugin {
                plugin.stop().await;
            }
            if let Some(forwarder) = forwarder {
                forwarder.stop().await;
            }
        });
        let _runtime = self.site.runtime.enter();
        drop(self.kubelet.take());
    }
}

/// A plugin of ipam that gives what the runtime says, as `static` does.
fn said_by_the_runtime(bin: &Path) {
    let script = r#"#!/bin/sh
[ $CNI_COMMAND = ADD ] || exit 0
address=$(sed -n 's/.*"ips":\["\([^"]*\)"\].*/\1/p')
echo '{"cniVersion": "1.1.0", "ips": [{"address": "'$address'"}]}'
"#;
    let path = bin.join("said");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn at(address: &str) -> Value {
    json!([{ "resource": PORT, "interface": "left", "ips": [address] }])
}

#[test]
fn a_pod_has_an_interface_for_each_of_its_devices_and_then_all_is_as_it_was() {
    let Some(node) = Node::start("a_pod_has_an_interface_for_each_device") else { return };
    node.admit("one", &[KERNEL, PORT, "intel.com/plain"]);
    node.admit("two", &[PORT]);
    let (one, two) = (Pod::new(), Pod::new());
    let result = node.must("ADD", "one", &one, Some(&at("10.8.0.1/24")));
    let names: Vec<_> = result["interfaces"].as_array().unwrap().iter().map(|interface| &interface["name"]).collect();
    assert_eq!(names, ["eth0", "net1", "left"]);
    let ips: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| (&ip["address"], &ip["interface"])).collect();
    let wanted = [("10.1.0.2/16", 0), ("10.9.0.5/24", 1), ("2001:db8::5/64", 1), ("10.8.0.1/24", 2)];
    assert_eq!(ips, wanted.map(|(address, index)| (json!(address), json!(index))).each_ref().map(|(a, b)| (a, b)));
    let vf = (0..2).find(|&index| node.site.vf(index).lease.is_some()).unwrap();
    assert_eq!(result["interfaces"][1]["pciID"], json!(node.site.address(vf)));
    assert_eq!(node.site.asked_of(vf).vlan.unwrap().id, 100);
    // The container starts, and the device plugin asks for the lease once more, whether it has heard of the VLAN or not.
    node.site.runtime.block_on(node.kubelet().start_container("one", "intel.com-kernel")).unwrap();
    assert_eq!(node.site.asked_of(vf).vlan.unwrap().id, 100);
    assert_ne!(result["interfaces"][2]["mac"], json!("02:00:00:00:00:99"), "that is for the pod's own interface");
    assert!(ip(&one.netns, "addr show net1").contains("10.9.0.5/24"));

    node.must("ADD", "two", &two, Some(&at("10.8.0.2/24")));
    // One answer is enough: the ends find each other in a moment.
    let ping = || Command::new("ping").args(["-c", "1", "-w", "20", "-i", "0.2", "10.8.0.2"]).output();
    let ping = one.netns.run(ping).unwrap().expect("ping is there");
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));

    let mut checked = node.config();
    checked["prevResult"] = result;
    assert!(node.ask_with("CHECK", "one", &one, &checked, &|_| ()).is_done);
    ip(&one.netns, "addr del 10.8.0.1/24 dev left");
    let answer = node.ask_with("CHECK", "one", &one, &checked, &|_| ()).document.unwrap();
    let said = answer["msg"].as_str().unwrap();
    assert!(said.contains("network `wire` of intel.com/port") && said.contains("left has lost 10.8.0.1/24"), "{said}");

    for pod in [("one", &one), ("two", &two), ("one", &one)] {
        node.must("DEL", pod.0, pod.1, None);
    }
    assert!(has(&node.site.host, &node.site.netdev(vf)) && !has(&one.netns, "left"));
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn a_pod_without_devices_costs_one_look_and_a_crowded_or_old_kubelet_is_asked_again() {
    let Some(node) = Node::start("a_pod_without_devices_costs_one_look") else { return };
    node.kubelet().run_pod("plain");
    node.admit("user", &["intel.com/plain"]);
    let netns = Pod::new();
    for pod in ["plain", "user", "unknown"] {
        let result = node.must("ADD", pod, &netns, None);
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 1, "{result}");
        node.must("DEL", pod, &netns, None);
    }
    assert_eq!(node.leftovers(), [""; 0]);
    let mut looks: Vec<_> = (0..50).map(|_| timed(|| drop(node.must("ADD", "plain", &netns, None)))).collect();
    looks.sort_unstable();
    println!("ADD of a pod without devices: median {:?} of {}, most {:?}", looks[25], looks.len(), looks[49]);
    // Whatever it is in the way of devices.
    assert!(node.ask("STATUS", "plain", &netns, None).is_done);
    node.admit("one", &[KERNEL]);
    node.kubelet().set(Scenario::TellsNoSinglePod);
    node.kubelet().set(Scenario::IsCrowded(3));
    let result = node.must("ADD", "one", &netns, None);
    assert_eq!(result["interfaces"][1]["name"], json!("net1"));
    node.must("DEL", "one", &netns, None);
    // No network: nobody is asked.
    fs::remove_file(node.site.at("networks.json")).unwrap();
    let mut nobody = node.config();
    nobody["ferrule"]["kubelet"] = json!("/run/nobody.sock");
    assert!(node.ask_with("ADD", "plain", &netns, &nobody, &|_| ()).is_done);
}

#[test]
fn what_fails_leaves_nothing_and_names_network_device_cause_and_cure() {
    let Some(node) = Node::start("what_fails_leaves_nothing") else { return };
    node.admit("one", &[KERNEL, PORT]);
    let netns = Pod::new();
    let cases = [
        (json!([{ "resource": PORT, "network": "broken" }]), "network `broken` of intel.com/port: endpoint soft-port-"),
        (json!([{ "resource": PORT, "network": "green" }]), "network `green`, where intel.com/port has wire, broken"),
        (json!([{ "resource": KERNEL, "mac": "02:00:00:00:00:01" }]), "network `blue` does not let its pods say so"),
    ];
    for (annotation, part) in cases {
        let answer = node.ask("ADD", "one", &netns, Some(&annotation));
        let said = answer.document.unwrap()["msg"].to_string();
        assert!(!answer.is_done && said.contains("network `k8s`") && said.contains(part), "{said}");
        assert!(!has(&netns.netns, "net1") && node.leftovers().is_empty(), "{said}: {:?}", node.leftovers());
    }
    let mut away = node.config();
    away["ferrule"]["kubelet"] = json!("/run/nobody.sock");
    let answer = node.ask_with("ADD", "one", &netns, &away, &|_| ()).document.unwrap();
    let said = answer["msg"].as_str().unwrap();
    assert!(answer["code"] == 11 && said.contains("ask the kubelet for the devices of pod default/one"), "{said}");
    // A network of VFs whose device nobody has filled in is none of whatever the pod has.
    let mut network = node.config();
    network.as_object_mut().unwrap().remove("devices");
    network["vlan"] = json!(5);
    let answer = node.ask_with("ADD", "one", &netns, &network, &|_| ()).document.unwrap();
    assert!(answer["msg"].as_str().unwrap().contains("deviceID: ``"), "{answer}");
}

#[test]
fn killed_at_any_step_it_is_taken_back_and_the_next_add_works() {
    let Some(node) = Node::start("killed_at_any_step") else { return };
    node.admit("one", &[KERNEL, PORT]);
    let netns = Pod::new();
    let said = at("10.8.0.1/24");
    let steps = AtomicUsize::new(0);
    let count = |_: &str| {
        steps.fetch_add(1, Ordering::Relaxed);
    };
    assert!(node.ask_observed("ADD", "one", &netns, Some(&said), &count).is_done);
    let in_add = steps.swap(0, Ordering::Relaxed);
    assert!(node.ask_observed("DEL", "one", &netns, None, &count).is_done);
    let in_del = steps.into_inner();
    assert!(in_add >= 10 && in_del >= 3, "{in_add} {in_del}");
    let die_at = |command, at: usize| {
        let (variables, input) = (node.variables(command, "one", &netns), node.config_with(Some(&said)).to_string());
        node.site.host.run(|| run_killed(&variables, &input, at)).unwrap();
    };
    for at in 0..in_add {
        die_at("ADD", at);
        node.must("DEL", "one", &netns, None);
        assert_eq!(node.leftovers(), [""; 0], "{at}");
        // The runtime knows nothing of it.
        die_at("ADD", at);
        node.must("ADD", "one", &netns, Some(&said));
        die_at("DEL", at % in_del);
        node.must("GC", "one", &netns, None);
        assert!(node.leftovers().is_empty() && !has(&netns.netns, "net1"), "{at}: {:?}", node.leftovers());
    }
}

#[test]
fn a_pod_ends_while_the_forwarder_is_away_and_what_is_left_goes_with_the_next() {
    let Some(mut node) = Node::start("a_pod_ends_while_the_forwarder_is_away") else { return };
    node.admit("one", &[PORT]);
    node.admit("two", &[PORT]);
    let (one, two) = (Pod::new(), Pod::new());
    let path = node.site.at("netns-of-one");
    symlink(&one.path, &path).unwrap();
    let one = Pod { netns: one.netns, path };
    node.must("ADD", "one", &one, Some(&at("10.8.0.1/24")));
    node.stop_forwarder();
    node.must("DEL", "one", &one, None);
    assert!(!has(&one.netns, "left"));
    let answer = node.ask("ADD", "two", &two, Some(&at("10.8.0.2/24")));
    assert_eq!(answer.document.unwrap()["code"], 11, "it is tried again");
    node.start_forwarder();
    fs::remove_file(&one.path).unwrap();
    node.must("ADD", "two", &two, Some(&at("10.8.0.2/24")));
    assert_eq!(node.wires().len(), 1);
    node.must("DEL", "two", &two, None);
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn gc_takes_back_the_pods_that_the_runtime_has_forgotten() {
    let Some(node) = Node::start("gc_takes_back_pods") else { return };
    node.admit("one", &[KERNEL, PORT]);
    node.admit("two", &[PORT]);
    let (one, two) = (Pod::new(), Pod::new());
    node.must("ADD", "one", &one, Some(&at("10.8.0.1/24")));
    node.must("ADD", "two", &two, Some(&at("10.8.0.2/24")));
    let mut gc = node.config();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "sandbox-of-two", "ifname": "eth0" }]);
    let answer = node.ask_with("GC", "one", &one, &gc, &|_| ());
    assert!(answer.is_done, "{answer:?}");
    assert!(!has(&one.netns, "net1") && !has(&one.netns, "left") && has(&two.netns, "left"));
    assert_eq!(node.wires(), ["cni/sandbox-of-two/left"]);
    // The node's state is lost, under a pod that lives and one that does not.
    node.must("ADD", "one", &one, Some(&at("10.8.0.1/24")));
    fs::remove_dir_all(node.site.at("cni/endpoint")).unwrap();
    assert!(node.ask_with("GC", "one", &one, &gc, &|_| ()).is_done);
    assert_eq!(node.wires(), ["cni/sandbox-of-two/left"]);
    fs::remove_dir_all(node.site.at("cni")).unwrap();
    node.must("GC", "one", &one, None);
    assert_eq!(node.wires(), [""; 0]);
    node.must("DEL", "two", &two, None);
    assert_eq!(node.leftovers(), [""; 0]);
}
