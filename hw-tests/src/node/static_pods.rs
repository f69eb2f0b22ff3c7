//! Pods and devices of a kubelet that has no API server: files, and its podresources API.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ferrule_kubelet::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use ferrule_kubelet::pod_resources::{AllocatableResourcesRequest, ListPodResourcesRequest};
use ferrule_kubelet::{POD_RESOURCES_SOCKET, connect};

use super::kubelet::NODE;
use super::machine::Node;
use super::pod::{CONTAINER, Pod};
use super::until;

impl Node {
    /// Devices of a resource that the kubelet may give away, and those that it gave.
    pub fn allocatable_devices(&self, resource: &str) -> Result<Vec<String>> {
        self.hardware.runtime().block_on(async {
            let mut client = PodResourcesListerClient::new(connect(POD_RESOURCES_SOCKET.as_ref()).await?);
            let answer = client.get_allocatable_resources(AllocatableResourcesRequest {}).await?.into_inner();
            let of = answer.devices.into_iter().filter(|devices| devices.resource_name == resource);
            let mut ids: Vec<_> = of.flat_map(|devices| devices.device_ids).collect();
            ids.sort();
            ids.dedup();
            Ok(ids)
        })
    }

    /// Devices of a pod.
    pub fn devices_of(&self, pod: &str) -> Result<Vec<String>> {
        self.hardware.runtime().block_on(async {
            let mut client = PodResourcesListerClient::new(connect(POD_RESOURCES_SOCKET.as_ref()).await?);
            let answer = client.list(ListPodResourcesRequest {}).await?.into_inner();
            let of = answer.pod_resources.into_iter().filter(|listed| listed.name == static_name(pod));
            let containers = of.flat_map(|listed| listed.containers);
            Ok(containers.flat_map(|container| container.devices).flat_map(|devices| devices.device_ids).collect())
        })
    }

    /// Has the kubelet run a pod.
    pub fn write_static(&self, pod: &Pod) -> Result<()> {
        let file = self.pieces.run().join("manifests").join(format!("{}.json", pod.name));
        // A file that is half written is an error of the kubelet's.
        let new = self.pieces.run().join("manifest.new");
        fs::write(&new, pod.object().to_string()).and_then(|()| fs::rename(&new, &file)).context("write a manifest")
    }

    /// Runs a pod; returns what it printed until it said `started`.
    pub fn run_static_until_started(&self, pod: &Pod) -> Result<String> {
        self.write_static(pod)?;
        until(&format!("pod {} says started", pod.name), || {
            let said = said_by(&pod.name)?;
            ensure!(said.lines().any(|line| line == "started"), "it said:\n{said}");
            Ok(Some(said))
        })
    }

    /// Ends all pods of scenarios; returns when they are gone.
    pub fn delete_static_pods(&self) -> Result<()> {
        for entry in fs::read_dir(self.pieces.run().join("manifests")).context("read the manifests")?.flatten() {
            let text = fs::read_to_string(entry.path()).context("read a manifest")?;
            if text.contains("\"namespace\":\"default\"") {
                fs::remove_file(entry.path()).context("remove a manifest")?;
            }
        }
        until("no pod's logs are left", || {
            let entries = fs::read_dir(LOGS).context("read the folder of logs")?.flatten();
            let left = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("default_")).count();
            ensure!(left == 0, "{left} are");
            Ok(Some(()))
        })
    }
}

/// What a pod's containers printed, of all their starts.
pub fn said_by(pod: &str) -> Result<String> {
    let prefix = format!("default_{}_", static_name(pod));
    let mut said = String::new();
    for folder in fs::read_dir(LOGS).context("read the folder of logs")?.flatten() {
        if !folder.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let Ok(files) = fs::read_dir(folder.path().join(CONTAINER)) else { continue };
        let mut files: Vec<_> = files.flatten().map(|file| file.path()).collect();
        files.sort();
        for file in files {
            // `TIME STREAM F TEXT`
            let text = fs::read_to_string(&file).unwrap_or_default();
            let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
            said.extend(lines.flat_map(|line| [line, "\n"]));
        }
    }
    ensure!(!said.is_empty(), "it said nothing yet ({})", Path::new(LOGS).display());
    Ok(said)
}

fn static_name(pod: &str) -> String {
    format!("{pod}-{NODE}")
}

const LOGS: &str = "/var/log/pods";
