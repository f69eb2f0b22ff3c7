//! Stands in for Multus where its hand-over of devices is looked at: chained behind a node's network, it asks the kubelet which devices the
//! pod has, and calls the plugin of each of its networks with one of them (`deviceID`), in the order of the kubelet's list, as `net1`, `net2`, ...
//!
//! There are no objects of an API server: its networks are in its own entry.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use ferrule_cni::pod::devices::{PodDevice, PodName, devices_of};
use serde_json::{Value, json};

fn main() -> ExitCode {
    match run() {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", json!({ "cniVersion": "1.0.0", "code": 999, "msg": format!("{error:#}") }));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Value> {
    let mut input = String::new();
    io::stdin().read_to_string(&mut input).context("read the configuration")?;
    let config: Value = serde_json::from_str(&input).context("understand the configuration")?;
    let command = std::env::var("CNI_COMMAND").context("a runtime says what is to be done")?;
    if command == "VERSION" {
        return Ok(json!({ "cniVersion": "1.0.0", "supportedVersions": ["1.0.0"] }));
    }
    let args = std::env::var("CNI_ARGS").unwrap_or_default();
    let args: BTreeMap<_, _> = args.split(';').filter_map(|pair| pair.split_once('=')).collect();
    // At the end the kubelet may not list the pod any more, and the plugin knows what it did.
    let devices = match (command.as_str(), args.get("K8S_POD_NAMESPACE"), args.get("K8S_POD_NAME")) {
        ("ADD", Some(namespace), Some(name)) => {
            let pod = PodName { namespace: (*namespace).to_owned(), name: (*name).to_owned() };
            devices_of(ferrule_kubelet::POD_RESOURCES_SOCKET.as_ref(), &pod)?
        }
        _ => Vec::new(),
    };
    for (number, network) in handed_over(&config, &devices)?.iter().enumerate() {
        call(network, &format!("net{}", number + 1))?;
    }
    Ok(config["prevResult"].clone())
}

/// The networks with a device each. A pod without any has none of them; without devices (DEL) all are called, with none.
fn handed_over(config: &Value, devices: &[PodDevice]) -> Result<Vec<Value>> {
    let mut left: Vec<_> = devices.iter().collect();
    let networks = config["networks"].as_array().context("networks: a list is wanted")?;
    let mut all = Vec::new();
    for network in networks {
        let resource = network["resource"].as_str().context("resource: it says which devices are meant")?;
        let mut one = network["config"].clone();
        one["cniVersion"] = config["cniVersion"].clone();
        one["ferrule"] = config["ferrule"].clone();
        match left.iter().position(|device| device.resource == resource) {
            Some(place) => one["deviceID"] = json!(left.remove(place).id),
            None if devices.is_empty() => one["deviceID"] = json!(NOBODYS),
            None => bail!("the pod has no device of {resource} for network {}", one["name"]),
        }
        all.push(one);
    }
    let is_add = std::env::var("CNI_COMMAND").is_ok_and(|command| command == "ADD");
    Ok(if is_add && devices.is_empty() { Vec::new() } else { all })
}

fn call(network: &Value, interface: &str) -> Result<()> {
    let name = network["type"].as_str().context("type: it says which plugin is called")?;
    let path = std::env::var_os("CNI_PATH").unwrap_or_default();
    let program: Option<PathBuf> =
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    let program = program.with_context(|| format!("no plugin {name} in CNI_PATH"))?;
    let mut plugin = Command::new(program);
    plugin.env("CNI_IFNAME", interface).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut plugin = plugin.spawn().with_context(|| format!("run {name}"))?;
    plugin.stdin.take().context("it reads its input")?.write_all(network.to_string().as_bytes())?;
    let output = plugin.wait_with_output().with_context(|| format!("wait for {name}"))?;
    ensure!(output.status.success(), "{name} for {interface}: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// No VF has it: at DEL a plugin goes by what it has recorded.
const NOBODYS: &str = "0000:00:00.0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_gets_the_next_device_of_its_resource() {
        let device = |resource: &str, id: &str| PodDevice { resource: resource.into(), id: id.into() };
        let devices = [device("a.io/x", "1"), device("a.io/y", "2"), device("a.io/x", "3")];
        let network = |resource: &str| json!({ "resource": resource, "config": { "name": "n", "type": "sriov" } });
        let config =
            json!({ "cniVersion": "1.0.0", "networks": [network("a.io/x"), network("a.io/x"), network("a.io/y")] });
        let all = handed_over(&config, &devices).unwrap();
        let ids: Vec<_> = all.iter().map(|network| network["deviceID"].as_str().unwrap()).collect();
        assert_eq!(ids, ["1", "3", "2"]);
        assert_eq!(all[0]["cniVersion"], "1.0.0");
        let error = handed_over(&config, &devices[..1]).unwrap_err().to_string();
        assert!(error.contains("no device of a.io/x"), "{error}");
    }
}
