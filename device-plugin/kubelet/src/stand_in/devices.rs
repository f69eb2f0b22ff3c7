//! What is known of devices, and which pod has which.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::AbortHandle;

use super::registration::Sockets;
use super::{Container, Plugin, Refusal, Release};
use crate::HEALTHY;
use crate::pod_resources::{ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources};
use crate::v1beta1::{ContainerAllocateResponse, Device};

/// Everything of one run of the kubelet.
#[derive(Default)]
pub(crate) struct Devices {
    resources: BTreeMap<String, Resource>,
    pub(super) sockets: Sockets,
    pods: Vec<PodEntry>,
    /// Pods without devices.
    others: BTreeSet<String>,
    pub(super) registrations: u64,
    pub(super) listings: u64,
    pub(super) most_open: usize,
}

/// What a node's status says of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// All devices.
    pub capacity: usize,
    /// Those that may be given away, and those that pods have.
    pub allocatable: usize,
}

#[derive(Default)]
struct Resource {
    devices: BTreeMap<String, Device>,
    /// Its connection may have ended: then all devices are unhealthy.
    is_connected: bool,
    /// The newest, who is called.
    newest: Option<(u64, Plugin)>,
    streams: BTreeMap<u64, AbortHandle>,
    open: BTreeSet<u64>,
}

/// One container's devices of one resource.
struct PodEntry {
    pod: String,
    container: String,
    resource: String,
    ids: BTreeSet<String>,
    kind: Container,
    answer: ContainerAllocateResponse,
}

/// Which devices a container can have.
pub(super) struct Choice {
    /// From an init container of its pod.
    pub reused: BTreeSet<String>,
    /// Free and healthy.
    pub available: BTreeSet<String>,
}

impl Devices {
    /// What outlives the kubelet: who has what, and nothing of devices themselves.
    pub fn checkpoint(&mut self) -> Self {
        let pods = std::mem::take(&mut self.pods);
        let others = self.others.clone();
        let known = self.resources.keys().map(|name| (name.clone(), Resource::default())).collect();
        Self {
            pods,
            others,
            resources: known,
            registrations: self.registrations,
            most_open: self.most_open,
            ..Self::default()
        }
    }

    pub fn registered(&mut self, resource: &str, plugin: Plugin) -> u64 {
        self.registrations += 1;
        let id = self.registrations;
        self.resources.entry(resource.to_owned()).or_default().newest = Some((id, plugin));
        id
    }

    pub fn watched_by(&mut self, resource: &str, id: u64, task: AbortHandle) {
        if let Some(resource) = self.resources.get_mut(resource) {
            resource.streams.insert(id, task);
        }
    }

    pub fn opened(&mut self, resource: &str, id: u64) {
        if let Some(resource) = self.resources.get_mut(resource) {
            resource.open.insert(id);
            resource.is_connected = true;
            self.most_open = self.most_open.max(resource.open.len());
        }
    }

    /// Whoever sends it: the newest list holds.
    pub fn listed(&mut self, resource: &str, devices: Vec<Device>) {
        if let Some(resource) = self.resources.get_mut(resource) {
            resource.devices = devices.into_iter().map(|device| (device.id.clone(), device)).collect();
        }
    }

    /// A list has ended. Up to 1.36 the plugin that is connected now pays for it, whoever's it was.
    pub fn closed(&mut self, resource: &str, id: u64, release: Release) {
        let Some(resource) = self.resources.get_mut(resource) else { return };
        resource.open.remove(&id);
        resource.streams.remove(&id);
        let is_newest = resource.newest.as_ref().is_some_and(|(newest, _)| *newest == id);
        if is_newest || release == Release::V1_36 {
            resource.is_connected = false;
            resource.newest = None;
            for stream in std::mem::take(&mut resource.streams).into_values() {
                stream.abort();
            }
            resource.open.clear();
        }
    }

    /// The connection to a plugin breaks.
    pub fn cut(&mut self, resource: &str) {
        let Some(resource) = self.resources.get_mut(resource) else { return };
        for stream in std::mem::take(&mut resource.streams).into_values() {
            stream.abort();
        }
        resource.open.clear();
        (resource.is_connected, resource.newest) = (false, None);
    }

    pub fn cut_all(&mut self) {
        let names: Vec<_> = self.resources.keys().cloned().collect();
        for name in names {
            self.cut(&name);
        }
    }

    pub fn open_lists(&self, resource: &str) -> usize {
        self.resources.get(resource).map_or(0, |resource| resource.open.len())
    }

    /// The number of the list that was opened last; none: none is open.
    pub fn newest_list(&self, resource: &str) -> Option<u64> {
        self.resources.get(resource)?.open.last().copied()
    }

    pub fn has_list(&self, resource: &str, list: Option<u64>) -> bool {
        list.is_some_and(|list| self.resources.get(resource).is_some_and(|resource| resource.open.contains(&list)))
    }

    pub fn counts(&self, resource: &str) -> Option<Counts> {
        let capacity = self.resources.get(resource)?.devices.len();
        Some(Counts { capacity, allocatable: self.healthy(resource).len() })
    }

    /// Healthy devices of all resources, one entry each as the kubelet tells them.
    pub fn allocatable(&self) -> Vec<ContainerDevices> {
        let of = |resource: &String| {
            let device = |id| ContainerDevices { resource_name: resource.clone(), device_ids: vec![id] };
            self.healthy(resource).into_iter().map(device).collect::<Vec<_>>()
        };
        self.resources.keys().flat_map(of).collect()
    }

    pub fn healthy(&self, resource: &str) -> BTreeSet<String> {
        let Some(resource) = self.resources.get(resource).filter(|resource| resource.is_connected) else {
            return BTreeSet::new();
        };
        let healthy = resource.devices.values().filter(|device| device.health == HEALTHY);
        healthy.map(|device| device.id.clone()).collect()
    }

    pub fn numa_nodes(&self, resource: &str, id: &str) -> Vec<i64> {
        let device = self.resources.get(resource).and_then(|resource| resource.devices.get(id));
        let topology = device.and_then(|device| device.topology.clone());
        topology.map(|topology| topology.nodes.iter().map(|node| node.id).collect()).unwrap_or_default()
    }

    pub fn plugin(&self, resource: &str) -> Result<Plugin, Refusal> {
        let newest = self.resources.get(resource).and_then(|resource| resource.newest.clone());
        newest.map(|(_, plugin)| plugin).ok_or_else(|| Refusal::NoHealthy(resource.to_owned()))
    }

    pub fn choose(&mut self, pod: &str, resource: &str, wanted: usize) -> Result<Choice, Refusal> {
        let healthy = self.healthy(resource);
        if healthy.is_empty() {
            return Err(Refusal::NoHealthy(resource.to_owned()));
        }
        let of = |entry: &&PodEntry| entry.resource == resource;
        let left = |entry: &&PodEntry| entry.pod == pod && entry.kind == Container::Init;
        let reused =
            self.pods.iter().filter(of).filter(left).flat_map(|entry| entry.ids.clone()).take(wanted).collect();
        let used: BTreeSet<String> = self.pods.iter().filter(of).flat_map(|entry| entry.ids.clone()).collect();
        let available: BTreeSet<String> = healthy.difference(&used).cloned().collect();
        let reused: BTreeSet<String> = reused;
        if reused.len() + available.len() < wanted {
            let (resource, available) = (resource.to_owned(), available.len());
            return Err(Refusal::TooFew { resource, wanted, available });
        }
        Ok(Choice { reused, available })
    }

    pub fn allocated(
        &mut self,
        pod: &str,
        container: &str,
        resource: &str,
        ids: &BTreeSet<String>,
        kind: Container,
        answer: ContainerAllocateResponse,
    ) {
        self.pods.push(PodEntry {
            pod: pod.to_owned(),
            container: container.to_owned(),
            resource: resource.to_owned(),
            ids: ids.clone(),
            kind,
            answer,
        });
    }

    pub fn of_container(&self, pod: &str, container: &str) -> BTreeMap<String, BTreeSet<String>> {
        let entries = self.pods.iter().filter(|entry| entry.pod == pod && entry.container == container);
        entries.map(|entry| (entry.resource.clone(), entry.ids.clone())).collect()
    }

    pub fn answers(&self, pod: &str, container: &str) -> Vec<ContainerAllocateResponse> {
        let entries = self.pods.iter().filter(|entry| entry.pod == pod && entry.container == container);
        entries.map(|entry| entry.answer.clone()).collect()
    }

    pub fn of_pod(&self, pod: &str) -> BTreeSet<String> {
        self.pods.iter().filter(|entry| entry.pod == pod).flat_map(|entry| entry.ids.clone()).collect()
    }

    /// The kubelet looks at health before it looks at what the pod has already.
    pub fn admit_again(&self, pod: &str) -> Result<(), Refusal> {
        for entry in self.pods.iter().filter(|entry| entry.pod == pod) {
            let healthy = self.healthy(&entry.resource);
            if healthy.is_empty() {
                return Err(Refusal::NoHealthy(entry.resource.clone()));
            }
            let ill: Vec<_> = entry.ids.difference(&healthy).cloned().collect();
            if !ill.is_empty() {
                return Err(Refusal::NoLongerHealthy(ill.join(", ")));
            }
        }
        Ok(())
    }

    pub fn run_pod(&mut self, pod: &str) {
        self.others.insert(pod.to_owned());
    }

    pub fn end_pod(&mut self, pod: &str) {
        self.others.remove(pod);
        self.pods.retain(|entry| entry.pod != pod);
    }

    /// Every pod with its containers, and one entry for each device. Plain init containers are left out.
    pub fn list(&self) -> ListPodResourcesResponse {
        let mut pods: BTreeMap<&str, BTreeMap<&str, Vec<ContainerDevices>>> = BTreeMap::new();
        pods.extend(self.others.iter().map(|pod| (pod.as_str(), BTreeMap::new())));
        for entry in &self.pods {
            let containers = pods.entry(&entry.pod).or_default();
            if entry.kind == Container::Init {
                continue;
            }
            let one =
                |id: &String| ContainerDevices { resource_name: entry.resource.clone(), device_ids: vec![id.clone()] };
            containers.entry(&entry.container).or_default().extend(entry.ids.iter().map(one));
        }
        let container =
            |(name, devices): (&str, Vec<ContainerDevices>)| ContainerResources { name: name.to_owned(), devices };
        let pod = |(name, containers): (&str, BTreeMap<&str, Vec<ContainerDevices>>)| PodResources {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            containers: containers.into_iter().map(container).collect(),
        };
        ListPodResourcesResponse { pod_resources: pods.into_iter().map(pod).collect() }
    }
}
