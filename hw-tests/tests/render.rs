//! What `kubectl apply -k` and `helm install` send is the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use dpdk_forwarder::config::WiresFile;
use dpdk_forwarder::nsm::Environment;
use ferrule_dataplane::spec::{EndSpec, Role};
use ferrule_hw_tests::need::skip;
use serde_json::{Value, json};

#[test]
fn overlays_are_whole() {
    let Some(kubectl) = Kubectl::find("overlays_are_whole") else { return };
    for (overlay, daemons) in OVERLAYS {
        let objects = kubectl.kustomize(overlay);
        let names: Vec<_> = objects.keys().map(String::as_str).collect();
        let expected: Vec<_> = ["ConfigMap", "DaemonSet", "ServiceAccount"]
            .iter()
            .flat_map(|kind| daemons.iter().map(move |(daemon, ..)| format!("{kind}/{daemon}")))
            .collect();
        assert_eq!(names, expected, "{overlay}");
        for (name, object) in &objects {
            assert_eq!(object["metadata"]["namespace"], "ferrule", "{overlay}: {name}");
        }
    }
}

#[test]
fn the_chart_sends_what_the_overlays_send() {
    let test = "the_chart_sends_what_the_overlays_send";
    let Some(kubectl) = Kubectl::find(test) else { return };
    let Some(helm) = Helm::find(test) else { return };
    for (overlay, daemons) in OVERLAYS {
        let mut values = json!({"devicePlugin": {"enabled": false}, "sriovManager": {"enabled": false}, "dpdkForwarder": {"enabled": false}});
        for (_, key, file) in daemons {
            values[key] = json!({"enabled": true});
            let path = deploy().join("kustomize").join(overlay).join(file);
            if let Ok(text) = fs::read_to_string(path) {
                values[key]["config"] = serde_saphyr::from_str(&text).unwrap();
            }
        }
        match overlay {
            "nsm" => values["dpdkForwarder"]["nsm"] = json!(true),
            "interfaces" => {
                values["dpdkForwarder"]["kernelEnds"] = json!(true);
                values["devicePlugin"]["cni"] = json!(true);
            }
            _ => {}
        }
        assert_eq!(helm.template(&values), kubectl.kustomize(overlay), "{overlay}");
    }
}

/// In what order volumes are means nothing.
#[test]
fn the_overlay_with_vfs_at_wires_is_what_the_chart_s_value_makes() {
    let test = "the_overlay_with_vfs_at_wires_is_what_the_chart_s_value_makes";
    let Some(kubectl) = Kubectl::find(test) else { return };
    let Some(helm) = Helm::find(test) else { return };
    let forwarder = |mut objects: BTreeMap<String, Value>| {
        let mut pod = objects.remove("DaemonSet/dpdk-forwarder").unwrap()["spec"]["template"]["spec"].take();
        for list in ["/volumes", "/containers/0/volumeMounts"] {
            let list = pod.pointer_mut(list).and_then(Value::as_array_mut).unwrap();
            list.sort_by_key(|entry| entry["name"].to_string());
        }
        pod
    };
    let overlay = forwarder(kubectl.kustomize("dpdk-vfs"));
    assert_eq!(overlay, forwarder(helm.template(&json!({"dpdkForwarder": {"enabled": true, "vfEnds": true}}))));
    let container = &overlay["containers"][0];
    assert_eq!(container["securityContext"]["privileged"], true);
    assert_eq!(container["resources"]["requests"], json!({"cpu": "250m", "memory": "1152Mi"}));
    assert!(overlay["volumes"].as_array().unwrap().iter().any(|volume| volume["hostPath"]["path"] == "/dev/vfio"));
}

#[test]
fn values_change_what_they_name() {
    let Some(helm) = Helm::find("values_change_what_they_name") else { return };
    let objects = helm.template(&json!({
        "image": {"prefix": "registry.example/x", "tag": "2", "pullSecrets": [{"name": "secret"}]},
        "devicePlugin": {
            "args": ["--cdi=field"],
            "pod": {"nodeSelector": {"nic": "yes"}},
            "container": {"resources": {"limits": {"memory": "1Gi"}}},
        },
        "dpdkForwarder": {"enabled": true, "kernelEnds": true},
        "monitoring": {"enabled": true},
    }));
    let pod = &objects["DaemonSet/device-plugin"]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example/x/device-plugin:2");
    assert_eq!(container["args"].as_array().unwrap().last().unwrap(), "--cdi=field");
    assert_eq!(
        container["resources"],
        json!({"requests": {"cpu": "20m", "memory": "24Mi"}, "limits": {"memory": "1Gi"}})
    );
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "nic": "yes"}));
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "secret"}]));
    let pod = &objects["DaemonSet/dpdk-forwarder"]["spec"]["template"]["spec"];
    let capabilities = &pod["containers"][0]["securityContext"]["capabilities"];
    assert_eq!(capabilities, &json!({"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN"]}));
    assert!(pod["volumes"].as_array().unwrap().iter().any(|volume| volume["name"] == "tun"));
    for monitoring in ["PodMonitor/ferrule", "PrometheusRule/ferrule"] {
        assert_eq!(objects[monitoring]["metadata"]["namespace"], "ferrule", "{monitoring}");
    }
}

/// As those of Network Service Mesh have it: the manager's socket, SPIRE's, and who it is.
#[test]
fn the_forwarder_of_the_overlay_nsm_is_told_of_its_mesh() {
    let Some(kubectl) = Kubectl::find("the_forwarder_of_the_overlay_nsm_is_told_of_its_mesh") else { return };
    let pod = &kubectl.kustomize("nsm")["DaemonSet/dpdk-forwarder"]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let of_pod = |path: &Value| {
        path.as_str().unwrap().replace("metadata.name", "forwarder-x").replace("status.hostIP", "192.0.2.1")
    };
    let variables = container["env"].as_array().unwrap().iter().map(|variable| {
        let value = variable["value"].as_str().map(str::to_owned);
        (
            variable["name"].as_str().unwrap().to_owned(),
            value.unwrap_or_else(|| of_pod(&variable["valueFrom"]["fieldRef"]["fieldPath"])),
        )
    });
    let variables: BTreeMap<_, _> = variables.collect();
    let environment = Environment::read(None, variables.clone()).unwrap();
    assert!(environment.ignored.is_empty(), "{:?}", environment.ignored);
    let settings = environment.settings.unwrap();
    assert_eq!((settings.name.as_str(), settings.tunnel_ip), ("forwarder-x", Some([192, 0, 2, 1].into())));
    let is_mounted = |path: &str| {
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap()))
    };
    let urls = [&settings.connect_to, &settings.listen_on, &variables["SPIFFE_ENDPOINT_SOCKET"]];
    for path in urls.map(|url| url.strip_prefix("unix://").unwrap()) {
        assert!(is_mounted(path), "{path}");
    }
}

/// What the first container of each pod writes for its sidecar, with what the plugin tells it.
#[test]
fn the_sidecars_of_the_examples_make_an_interface_of_the_pods_socket() {
    let text = fs::read_to_string(deploy().join("examples/sidecar-pods.yaml")).unwrap();
    let pods: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut addresses = Vec::new();
    for pod in &pods {
        let script = pod.pointer("/spec/initContainers/0/command/2").and_then(Value::as_str).unwrap();
        let path = directory.path().join("wires.yaml");
        let script = script.replace("/wires/wires.yaml", path.to_str().unwrap());
        let wrote = Command::new("sh").args(["-ec", &script]).env("PCIDEVICE_INTEL_COM_DPDK", "soft-dpdk-3").status();
        assert!(wrote.unwrap().success());
        let [wire] = &WiresFile::load(&path).unwrap().config.wires[..] else { panic!("{script}") };
        let [EndSpec::Kernel(interface), EndSpec::Memif(memif)] = &wire.ends else { panic!("{wire:?}") };
        assert_eq!((interface.name.to_string().as_str(), memif.role), ("net1", Role::Client));
        assert_eq!(memif.socket.to_string(), "/run/ferrule/soft-dpdk-3/memif.sock");
        addresses.push(interface.addresses[0].to_string());
        let pinged = pod.pointer("/spec/containers/0/command/1").and_then(Value::as_str).unwrap();
        assert!(text.contains(&format!("addresses: [{pinged}/24]")), "{pinged}");
    }
    assert_eq!(addresses, ["10.99.9.1/24", "10.99.9.2/24"]);
}

/// A program of a variable, of `PATH`, or of what `make node` builds; none: that was said.
fn find(test: &str, name: &str, variable: &str, cure: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("node").join("bin");
    let folders: Vec<_> = std::env::split_paths(&path).chain([built]).collect();
    let named = std::env::var_os(variable).map(PathBuf::from);
    let found = named.into_iter().chain(folders.iter().map(|folder| folder.join(name))).find(|path| path.is_file());
    if found.is_none() {
        skip(test, &format!("{name} ({cure}, or {variable}=FILE)"));
    }
    found
}

struct Helm(PathBuf);

impl Helm {
    fn find(test: &str) -> Option<Self> {
        find(test, "helm", "HELM", "https://helm.sh").map(Self)
    }

    fn template(&self, values: &Value) -> BTreeMap<String, Value> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(values.to_string().as_bytes()).unwrap();
        let mut command = Command::new(&self.0);
        command.args(["template", "ferrule", "--namespace", "ferrule", "--kube-version", "1.33", "--values"]);
        rendered(command.arg(file.path()).arg(deploy().join("chart")))
    }
}

struct Kubectl(PathBuf);

impl Kubectl {
    fn find(test: &str) -> Option<Self> {
        find(test, "kubectl", "KUBECTL", "apt-get install kubernetes-client").map(Self)
    }

    fn kustomize(&self, overlay: &str) -> BTreeMap<String, Value> {
        let folder = deploy().join("kustomize").join(overlay);
        let mut objects = rendered(Command::new(&self.0).arg("kustomize").arg(folder));
        // Helm makes it itself.
        objects.remove("Namespace/ferrule").expect("an overlay makes its namespace");
        objects
    }
}

/// By kind and name; what a ConfigMap holds is compared by what it means.
fn rendered(command: &mut Command) -> BTreeMap<String, Value> {
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let objects: Vec<Value> = serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let with_name = |mut object: Value| {
        for text in
            object.get_mut("data").and_then(Value::as_object_mut).into_iter().flat_map(serde_json::Map::values_mut)
        {
            *text = serde_saphyr::from_str(text.as_str().unwrap()).unwrap();
        }
        let word = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
        (format!("{}/{}", word("/kind"), word("/metadata/name")), object)
    };
    objects.into_iter().map(with_name).collect()
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

type Daemon = (&'static str, &'static str, &'static str);
const PLUGIN: Daemon = ("device-plugin", "devicePlugin", "config.json");
const FORWARDER: Daemon = ("dpdk-forwarder", "dpdkForwarder", "wires.yaml");
const MANAGER: Daemon = ("sriov-manager", "sriovManager", "policies.yaml");
const OVERLAYS: [(&str, &[Daemon]); 5] = [
    ("interfaces", &[PLUGIN, FORWARDER]),
    ("software", &[PLUGIN, FORWARDER]),
    ("sriov", &[PLUGIN, MANAGER]),
    ("dpdk", &[PLUGIN, FORWARDER, MANAGER]),
    ("nsm", &[FORWARDER]),
];
