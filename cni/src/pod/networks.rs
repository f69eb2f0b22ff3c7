//! What becomes of each device of a pod: a pure function of the devices, of the networks of their resources, and of the pod's annotation.
//!
//! A pod chooses among networks that the configuration has, and nothing else: a VLAN is not a pod's to take, and a plugin of ipam not a
//! pod's to run.

use std::collections::BTreeSet;

use device_plugin_client::networks::{Networks, ResourceNetworks};
use serde::Deserialize;
use serde_json::{Value, json};

use super::devices::PodDevice;
use super::record::Part;
use crate::network::Network;
use crate::protocol::{CniError, is_interface};

/// What a pod says of one of its devices: an item of its annotation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Which of its devices: the next of this resource.
    resource: String,
    /// One of the resource's networks; none: the first.
    network: Option<String>,
    /// What the interface is called; none: `net1`, `net2`, ...
    interface: Option<String>,
    /// Where the network lets its pods say so.
    mac: Option<String>,
    /// The same.
    #[serde(default)]
    ips: Vec<String>,
}

/// What a pod is attached to. Devices of resources without a network are left as they are: others see to them, or the pod itself.
pub fn parts(
    devices: &[PodDevice],
    networks: &Networks,
    annotation: Option<&str>,
    chain: &Network,
    own: &str,
) -> Result<Vec<Part>, CniError> {
    let mut wanted = read(annotation)?;
    let mut chosen = Vec::new();
    for device in devices {
        let place = wanted.iter().position(|one| one.resource == device.resource);
        let said = place.map(|place| wanted.remove(place));
        let Some(of_resource) = networks.resources.get(&device.resource) else {
            if said.is_some() {
                let problem = format!(
                    "{} has no networks: its entry of device-plugin's configuration names none (`networks`)",
                    device.resource
                );
                return Err(wrong(&problem));
            }
            continue;
        };
        if let Some(network) = choose(of_resource, device, said.as_ref())? {
            chosen.push((device, of_resource, network, said));
        }
    }
    if let Some(left) = wanted.first() {
        return Err(wrong(&format!("no container of the pod has a device, or one more, of {}", left.resource)));
    }
    let names = chosen.iter().map(|(.., said)| said.as_ref().and_then(|said| said.interface.clone()));
    let names = interfaces(&names.collect::<Vec<_>>(), own)?;
    let parts = chosen.into_iter().zip(names).map(|((device, of_resource, network, said), interface)| {
        let config = config(network, device, of_resource, said.as_ref(), chain)?;
        Ok(Part { resource: device.resource.clone(), interface, config })
    });
    parts.collect()
}

fn read(annotation: Option<&str>) -> Result<Vec<Wanted>, CniError> {
    let Some(annotation) = annotation.filter(|text| !text.trim().is_empty()) else { return Ok(Vec::new()) };
    let example = r#"[{"resource": "intel.com/kernel", "network": "blue"}]"#;
    serde_json::from_str(annotation).map_err(|error| wrong(&format!("{error}: a list as {example} is wanted")))
}

/// The network of a device; none: the pod wants it as it is.
fn choose<'a>(
    of_resource: &'a ResourceNetworks,
    device: &PodDevice,
    said: Option<&Wanted>,
) -> Result<Option<&'a Value>, CniError> {
    match said.and_then(|said| said.network.as_deref()) {
        Some(NONE) => Ok(None),
        None => Ok(of_resource.networks.first()),
        Some(name) => {
            let all = &of_resource.networks;
            let found = all.iter().find(|network| network["name"] == *name);
            found.map(Some).ok_or_else(|| {
                let all: Vec<_> = all.iter().filter_map(|network| network["name"].as_str()).collect();
                let problem = format!(
                    "network `{name}`, where {} has {}: name one of these, or `{NONE}`",
                    device.resource,
                    all.join(", ")
                );
                wrong(&problem)
            })
        }
    }
}

/// `net1`, `net2`, ... but for those that have a name, and none twice.
fn interfaces(said: &[Option<String>], own: &str) -> Result<Vec<String>, CniError> {
    let mut taken: BTreeSet<String> = ["lo".to_owned(), own.to_owned()].into();
    for name in said.iter().flatten() {
        if !is_interface(name) {
            return Err(wrong(&format!("interface `{name}`: 1 to 15 bytes without `/`, `:` and space are wanted")));
        }
        if !taken.insert(name.clone()) {
            return Err(wrong(&format!("interface `{name}`: another one of the pod is called so")));
        }
    }
    let mut numbers = 1_u32..;
    let mut free = || numbers.by_ref().map(|number| format!("net{number}")).find(|name| !taken.contains(name));
    Ok(said.iter().filter_map(|said| said.clone().or_else(&mut free)).collect())
}

/// A network's configuration for one device, as Multus would make it.
fn config(
    network: &Value,
    device: &PodDevice,
    of_resource: &ResourceNetworks,
    said: Option<&Wanted>,
    chain: &Network,
) -> Result<Value, CniError> {
    let mut config = network.clone();
    let name = network["name"].as_str().unwrap_or_default();
    let lets = |what: &str| network["capabilities"][what] == true;
    let refused = |key: &str| {
        wrong(&format!("`{key}`: network `{name}` does not let its pods say so (`capabilities`: {{`{key}`: true}})"))
    };
    let mut runtime = json!({});
    if let Some(mac) = said.and_then(|said| said.mac.as_ref()) {
        runtime["mac"] = if lets("mac") { json!(mac) } else { return Err(refused("mac")) };
    }
    if let Some(said) = said.filter(|said| !said.ips.is_empty()) {
        runtime["ips"] = if lets("ips") { json!(said.ips) } else { return Err(refused("ips")) };
    }
    let places = &chain.places;
    config["cniVersion"] = json!(chain.version.word());
    config["type"] = json!(chain.plugin);
    config["runtimeConfig"] = runtime;
    config["ferrule"] = json!({
        "manager": places.manager, "forwarder": places.forwarder, "state": places.state, "root": places.root,
        "chain": chain.name,
    });
    match &of_resource.endpoints {
        None => config["deviceID"] = json!(device.id),
        Some(endpoints) => {
            let socket = endpoints.directory.join(&device.id).join(&endpoints.socket);
            config["endpoint"] = json!({ "id": device.id, "kind": endpoints.kind, "socket": socket });
        }
    }
    Ok(config)
}

fn wrong(problem: &str) -> CniError {
    CniError::config(format!("annotation {ANNOTATION}: {problem}"))
}

/// What a pod says of its devices.
pub const ANNOTATION: &str = "ferrule/networks";
/// In the place of a network's name: the device is left as it is.
const NONE: &str = "none";

#[cfg(test)]
mod tests {
    use device_plugin_client::networks::Endpoints;

    use super::*;

    fn chain() -> Network {
        let config = json!({ "cniVersion": "1.0.0", "name": "k8s", "type": "ferrule-cni" });
        Network::read(config.to_string().as_bytes()).unwrap()
    }

    fn networks() -> Networks {
        let endpoints = Endpoints { kind: "memif".into(), directory: "/run/s".into(), socket: "memif.sock".into() };
        let red = json!({ "name": "red", "trust": "on", "capabilities": { "mac": true, "ips": true } });
        let vfs = ResourceNetworks { endpoints: None, networks: vec![json!({ "name": "blue", "vlan": 7 }), red] };
        let ports = ResourceNetworks { endpoints: Some(endpoints), networks: vec![json!({ "name": "wire" })] };
        Networks { resources: [("a.io/vf".to_owned(), vfs), ("a.io/port".to_owned(), ports)].into() }
    }

    fn made(devices: &[(&str, &str)], annotation: Option<&str>) -> Result<Vec<Part>, CniError> {
        let devices = devices.iter().map(|(resource, id)| PodDevice { resource: (*resource).into(), id: (*id).into() });
        parts(&devices.collect::<Vec<_>>(), &networks(), annotation, &chain(), "eth0")
    }

    #[test]
    fn devices_are_attached_in_order_and_those_of_others_are_left_alone() {
        let devices = [("gpu.io/gpu", "7"), ("a.io/vf", "0000:3b:02.1"), ("a.io/port", "soft-port-0")];
        let parts = made(&devices, None).unwrap();
        let names: Vec<_> = parts.iter().map(|part| part.interface.as_str()).collect();
        assert_eq!(names, ["net1", "net2"]);
        let vf = &parts[0].config;
        assert_eq!((&vf["name"], &vf["vlan"], &vf["deviceID"]), (&json!("blue"), &json!(7), &json!("0000:3b:02.1")));
        assert_eq!((&vf["cniVersion"], &vf["ferrule"]["chain"]), (&json!("1.0.0"), &json!("k8s")));
        let socket = json!({ "id": "soft-port-0", "kind": "memif", "socket": "/run/s/soft-port-0/memif.sock" });
        assert_eq!(parts[1].config["endpoint"], socket);
        assert_eq!(made(&[("gpu.io/gpu", "7")], None).unwrap(), []);
    }

    #[test]
    fn an_annotation_chooses_networks_and_names_in_the_order_of_devices() {
        let two = [("a.io/vf", "0000:3b:02.1"), ("a.io/vf", "0000:3b:02.2"), ("a.io/port", "soft-port-0")];
        let annotation = r#"[{"resource": "a.io/port", "network": "none"}, {"resource": "a.io/vf", "interface": "net2"},
            {"resource": "a.io/vf", "network": "red", "mac": "02:00:00:00:00:01", "ips": ["10.0.0.5/24"]}]"#;
        let parts = made(&two, Some(annotation)).unwrap();
        let said = parts.iter().map(|part| (part.interface.as_str(), part.config["name"].as_str().unwrap()));
        assert_eq!(said.collect::<Vec<_>>(), [("net2", "blue"), ("net1", "red")]);
        let runtime = json!({ "mac": "02:00:00:00:00:01", "ips": ["10.0.0.5/24"] });
        assert_eq!(parts[1].config["runtimeConfig"], runtime);
    }

    #[test]
    fn what_a_pod_may_not_say_or_cannot_mean_is_refused_with_the_cure() {
        let one = [("a.io/vf", "0000:3b:02.1"), ("gpu.io/gpu", "7")];
        let cases = [
            (r#"{"resource": "a.io/vf"}"#, "a list as"),
            (r#"[{"resource": "a.io/vf", "vlan": 5}]"#, "unknown field `vlan`"),
            (r#"[{"resource": "a.io/vf", "network": "green"}]"#, "`green`, where a.io/vf has blue, red"),
            (r#"[{"resource": "a.io/vf", "mac": "02:00:00:00:00:01"}]"#, "network `blue` does not let its pods say so"),
            (r#"[{"resource": "a.io/vf", "ips": ["10.0.0.5/24"]}]"#, "`ips`: network `blue`"),
            (r#"[{"resource": "a.io/vf", "interface": "eth0"}]"#, "another one of the pod is called so"),
            (r#"[{"resource": "a.io/vf", "interface": "a/b"}]"#, "interface `a/b`"),
            (r#"[{"resource": "a.io/vf"}, {"resource": "a.io/vf"}]"#, "or one more, of a.io/vf"),
            (r#"[{"resource": "gpu.io/gpu"}]"#, "gpu.io/gpu has no networks"),
        ];
        for (annotation, part) in cases {
            let error = made(&one, Some(annotation)).unwrap_err();
            assert!(error.message.contains(part), "{annotation}: {error}");
        }
    }
}
