//! The manifests, the examples and the dashboard, held against Kubernetes' types and against each other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[test]
fn every_object_has_only_fields_that_kubernetes_knows() {
    let mut seen = BTreeSet::new();
    for (path, object) in objects() {
        let kind = text(&object, "/kind");
        let known = match kind {
            "DaemonSet" => known_as::<DaemonSet>(&object),
            "Deployment" => known_as::<Deployment>(&object),
            "ConfigMap" => known_as::<ConfigMap>(&object),
            "Namespace" => known_as::<Namespace>(&object),
            "Pod" => known_as::<Pod>(&object),
            "ServiceAccount" => known_as::<ServiceAccount>(&object),
            // Of other APIs: Kubernetes has no types of them.
            "PodMonitor"
            | "PrometheusRule"
            | "Kustomization"
            | "Component"
            | "NetworkAttachmentDefinition"
            | "NetworkService" => object.clone(),
            other => panic!("{}: a {other} is not expected", path.display()),
        };
        assert_eq!(known, object, "{}: a field is unknown, or not of the type that it should be", path.display());
        seen.insert(kind.to_owned());
    }
    for kind in ["DaemonSet", "ConfigMap", "Namespace", "Pod", "ServiceAccount"] {
        assert!(seen.contains(kind), "no {kind} was found");
    }
}

#[test]
fn only_the_manager_is_privileged_and_nobody_has_a_token() {
    for daemon in DAEMONS {
        let daemon_set = daemon_set(daemon);
        let pod = &daemon_set["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false, "{daemon}");
        assert_eq!(pod["priorityClassName"], "system-node-critical", "{daemon}");
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{daemon}");
        let is_manager = daemon == "sriov-manager";
        for (what, value) in [("hostNetwork", pod), ("hostPID", pod), ("privileged", context)] {
            assert_eq!(value[what] == true, is_manager, "{daemon}: {what}");
        }
        if !is_manager {
            assert_eq!(context["allowPrivilegeEscalation"], false, "{daemon}");
            assert_eq!(context["capabilities"], serde_json::json!({"drop": ["ALL"]}), "{daemon}");
            // The forwarder counts memory of its peers by a call that the profiles of runtimes forbid.
            let profile = if daemon == "dpdk-forwarder" { "Unconfined" } else { "RuntimeDefault" };
            assert_eq!(context["seccompProfile"]["type"], profile, "{daemon}");
        }
    }
}

#[test]
fn whatever_is_mounted_is_a_volume_and_every_volume_is_mounted() {
    for daemon in DAEMONS {
        let daemon_set = daemon_set(daemon);
        let pod = &daemon_set["spec"]["template"]["spec"];
        let names = |value: &Value| -> BTreeSet<String> {
            value.as_array().unwrap().iter().map(|entry| text(entry, "/name").to_owned()).collect()
        };
        assert_eq!(names(&pod["volumes"]), names(&pod["containers"][0]["volumeMounts"]), "{daemon}");
        let selector = &daemon_set["spec"]["selector"]["matchLabels"];
        assert_eq!(selector, &daemon_set["spec"]["template"]["metadata"]["labels"], "{daemon}");
    }
}

/// Whoever brings the CNI plugin may write two folders of the host, and nothing else.
#[test]
fn the_cni_plugin_is_brought_by_who_has_no_rights_but_its_folders() {
    let patch = parse(&root().join("chart/manifests/device-plugin/cni/patch.yaml")).remove(0);
    let pod = &patch["spec"]["template"]["spec"];
    let daemon_set = daemon_set("device-plugin");
    let daemon = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    let brings = &pod["initContainers"][0];
    assert_eq!((&brings["image"], &brings["securityContext"]), (&daemon["image"], &daemon["securityContext"]));
    let mounts = brings["volumeMounts"].as_array().unwrap().iter();
    let mounts: BTreeSet<_> = mounts.map(|mount| (text(mount, "/name"), text(mount, "/mountPath"))).collect();
    let volumes = pod["volumes"].as_array().unwrap().iter();
    let volumes: BTreeSet<_> =
        volumes.map(|volume| (text(volume, "/name"), format!("/host{}", text(volume, "/hostPath/path")))).collect();
    assert_eq!(mounts, volumes.iter().map(|(name, path)| (*name, path.as_str())).collect());
    assert_eq!(mounts.len(), 2);
}

/// A private copy of a mount keeps a volume busy that the host has let go of.
#[test]
fn mounts_below_what_is_mounted_come_and_go_with_the_host() {
    let mut seen = 0;
    for (path, object) in objects().into_iter().filter(|(_, object)| text(object, "/kind") == "DaemonSet") {
        let pod = &object["spec"]["template"]["spec"];
        let above = |volume: &&Value| {
            let path = volume.pointer("/hostPath/path").and_then(Value::as_str);
            path.is_some_and(|path| ["/", "/run", "/run/netns", "/var", "/var/lib"].contains(&path))
        };
        let names: Vec<_> =
            pod["volumes"].as_array().unwrap().iter().filter(above).map(|volume| &volume["name"]).collect();
        let containers = ["containers", "initContainers"].into_iter().filter_map(|kind| pod[kind].as_array()).flatten();
        for mount in containers.filter_map(|container| container["volumeMounts"].as_array()).flatten() {
            if names.contains(&&mount["name"]) {
                assert_eq!(mount["mountPropagation"], "HostToContainer", "{}: {mount}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 4, "{seen}");
}

#[test]
fn examples_ask_for_what_an_overlay_has() {
    let mut resources = BTreeSet::new();
    for overlay in ["software", "sriov", "dpdk", "interfaces"] {
        let file = root().join("kustomize").join(overlay).join("config.json");
        let config: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let list = config["resourceList"].as_array().unwrap();
        assert!(!list.is_empty(), "{overlay}");
        resources.extend(list.iter().map(|resource| format!("intel.com/{}", text(resource, "/resourceName"))));
    }
    let mut asked = 0;
    for (path, pod) in objects().into_iter().filter(|(_, object)| text(object, "/kind") == "Pod") {
        let kinds = ["initContainers", "containers"].into_iter();
        let containers = kinds.filter_map(|kind| pod["spec"][kind].as_array()).flatten();
        let limits = containers.filter_map(|container| container["resources"]["limits"].as_object());
        for name in limits.flat_map(serde_json::Map::keys).filter(|name| name.contains('/')) {
            assert!(resources.contains(name), "{}: {name} is of no overlay", path.display());
            asked += 1;
        }
    }
    assert_eq!(asked, 10);
}

/// What the scheduler counts twice costs pods that are too many.
#[test]
fn no_vf_of_the_overlay_for_both_drivers_is_of_two_resources() {
    let file = root().join("kustomize/dpdk/config.json");
    let config: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut seen = BTreeSet::new();
    for resource in config["resourceList"].as_array().unwrap() {
        for name in resource["selectors"]["pfNames"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            let (pf, range) = name.split_once('#').unwrap_or_else(|| panic!("{name}: all VFs of a PF"));
            let (first, last) = range.split_once('-').unwrap();
            for number in first.parse::<u32>().unwrap()..=last.parse().unwrap() {
                assert!(seen.insert((pf.to_owned(), number)), "VF {number} of {pf} is of two resources");
            }
        }
    }
    assert_eq!(seen.len(), 16);
}

#[test]
fn every_alert_has_a_row_of_its_page_and_every_row_an_alert() {
    let rules = parse(&root().join("chart/manifests/monitoring/prometheusrule.yaml")).remove(0);
    let groups = rules["spec"]["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let alerts: BTreeSet<_> = rules.map(|rule| text(rule, "/alert").to_owned()).collect();
    let page = fs::read_to_string(root().join("../docs/monitoring.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `Ferrule")?.split_once('`'));
    let documented: BTreeSet<_> = rows.map(|(name, _)| format!("Ferrule{name}")).collect();
    assert_eq!(documented, alerts);
}

/// Each panel is explained, by its title.
#[test]
fn every_panel_of_the_dashboard_is_on_its_page() {
    let text = fs::read_to_string(root().join("grafana/ferrule.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let page = fs::read_to_string(root().join("../docs/monitoring.md")).unwrap();
    let rows: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" |"))
        .flat_map(|(titles, _)| titles.split("; ").flat_map(|part| [vec![part], part.split(", ").collect()].concat()))
        .collect();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let missing: Vec<_> =
        panels.filter_map(|panel| panel["title"].as_str()).filter(|title| !rows.contains(title)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// A pod of the host's network has a port of the host, of which there is one.
#[test]
fn who_comes_before_the_old_one_goes_has_no_port_of_the_host() {
    for daemon in DAEMONS {
        let daemon_set = daemon_set(daemon);
        let surges = daemon_set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] != 0;
        assert_eq!(surges, daemon == "device-plugin", "{daemon}");
        let pod = &daemon_set["spec"]["template"]["spec"];
        let ports = pod["containers"][0]["ports"].as_array().unwrap();
        let has_host_port = pod["hostNetwork"] == true || ports.iter().any(|port| port.get("hostPort").is_some());
        assert!(!(surges && has_host_port), "{daemon}");
    }
}

#[test]
fn images_and_chart_are_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    for daemon in DAEMONS {
        let image = daemon_set(daemon)["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        assert_eq!(image, format!("localhost/ferrule/{daemon}:{version}"));
    }
    let chart = parse(&root().join("chart/Chart.yaml")).remove(0);
    assert_eq!([text(&chart, "/version"), text(&chart, "/appVersion")], [version; 2]);
}

fn known_as<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    serde_json::to_value(typed).unwrap()
}

fn daemon_set(daemon: &str) -> Value {
    parse(&root().join(format!("chart/manifests/{daemon}/daemonset.yaml"))).remove(0)
}

/// Of everything that is applied as it is. Patches are parts of objects, and what a chart has of its own is no object.
fn objects() -> Vec<(PathBuf, Value)> {
    let mut files = Vec::new();
    for folder in ["chart/manifests", "kustomize", "examples"] {
        collect(&root().join(folder), &mut files);
    }
    let is_object = |path: &PathBuf| !["patch.yaml", "policies.yaml"].iter().any(|name| path.ends_with(name));
    files
        .into_iter()
        .filter(is_object)
        .flat_map(|path| parse(&path).into_iter().map(move |object| (path.clone(), object)))
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
}

fn parse(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const DAEMONS: [&str; 3] = ferrule_deploy::product::DAEMONS;
