//! Software endpoints: what is done to their wires when pods come and go. One at a time for each wire.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use dpdk_forwarder_client::v1;
use ferrule_kubelet::v1beta1::Mount;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{Allocator, COST_TAKEN, Candidate};
use crate::config::ResourceConfig;
use crate::device_locks::DeviceLock;
use crate::lease_name::LeaseName;
use crate::leases::LeaseError;
use crate::pools::Member;
use crate::resources::Allotted;
use crate::software::{FreeEndpoint, PairState, WireError, container_path, prefer};

impl Allocator {
    /// Makes sure that the wires of these are there.
    pub(super) async fn wire(&self, allotted: &[Allotted]) -> Result<(), LeaseError> {
        let mut by_wire: BTreeMap<String, Vec<&Allotted>> = BTreeMap::new();
        let devices: Vec<_> = allotted.iter().filter(|device| device.member.device.software().is_some()).collect();
        if !devices.is_empty() {
            self.know_wires().await?;
        }
        for device in devices {
            let id = &device.member.device.id;
            let unknown = || WireError::Unknown { id: id.clone() };
            let pair = self.resources.pair(id).ok_or_else(unknown)?;
            by_wire.entry(pair.pair.name().to_owned()).or_default().push(device);
        }
        for (wire, devices) in by_wire {
            let lock = self.lock_wire(&wire).await;
            // While it was waited for, somebody else may have done it, and the container may run.
            let needs_cleaning =
                |device: &&&Allotted| self.resources.with_grants(|grants| grants.needs_cleaning(&device.lease_name()));
            let of_before = devices.iter().filter(needs_cleaning).map(|device| device.member.device.id.as_str());
            let of_before: Vec<_> = of_before.collect();
            if let Some(state) = self.resources.pair(&wire).filter(PairState::is_held) {
                self.put_without(&state, &of_before, &lock).await?;
            }
            self.resources.with_grants(|grants| devices.iter().for_each(|device| grants.lent(&device.lease_name())));
        }
        Ok(())
    }

    /// Makes a wire what it should be now, if a pod has something of it.
    pub async fn wire_again(&self, wire: &str) -> Result<(), WireError> {
        let lock = self.lock_wire(wire).await;
        match self.resources.pair(wire).filter(PairState::is_held) {
            Some(state) => self.put_without(&state, &[], &lock).await,
            None => Ok(()),
        }
    }

    /// A connection may outlive its pod, and so may an open descriptor of the socket's path: whoever has one keeps it. So the path is
    /// another one from now on, and a wire that is made anew has no connection.
    async fn put_without(&self, state: &PairState, of_before: &[&str], lock: &DeviceLock) -> Result<(), WireError> {
        for id in of_before {
            self.forwarder.renew_directory(id)?;
        }
        let is_shared = of_before.iter().fold(state.clone(), |left, id| left.without(id)).is_held();
        if !is_shared && !of_before.is_empty() {
            // It cuts nobody, and waits for nothing.
            return self.forwarder.put_anew(state, lock).await;
        }
        self.forwarder.put(state, lock).await?;
        for id in of_before {
            // Nobody comes by the path of before any more.
            if self.forwarder.has_peer(state, id).await? {
                let wire = state.pair.name();
                warn!(wire, endpoint = id, "its pod has gone, and its peer has not: the wire is made anew");
                return self.forwarder.put_anew(state, lock).await;
            }
        }
        Ok(())
    }

    /// Removes a wire that no pod has anything of.
    pub async fn unwire(&self, wire: &v1::Wire) -> Result<(), WireError> {
        let _lock = self.lock_wire(&wire.name).await;
        // While the lock was waited for, the kubelet may have given one of its ends away.
        if self.resources.pair(&wire.name).is_some_and(|state| state.is_held()) {
            return Ok(());
        }
        match self.forwarder.read(wire) {
            Some(state) => self.forwarder.remove(&state).await,
            None => self.forwarder.ask_to_remove(&wire.name).await,
        }
    }

    /// Takes an endpoint back from a pod that has gone: with the last of its pods, the wire goes too.
    pub async fn take_back(&self, name: &LeaseName) -> Result<(), LeaseError> {
        self.know_wires().await?;
        let Some(state) = self.resources.pair(&name.device) else { return Ok(()) };
        let lock = self.lock_wire(state.pair.name()).await;
        let is_due = self.resources.with_grants(|grants| grants.is_due(name, Instant::now()));
        let Some(state) = self.resources.pair(&name.device).filter(|_| is_due) else { return Ok(()) };
        let left = state.without(&name.device);
        if left.is_held() {
            self.put_without(&left, &[&name.device], &lock).await?;
        } else {
            self.forwarder.remove(&left).await?;
        }
        Ok(())
    }

    /// Removes directories of endpoints that no pod has, left by a plugin that was killed. What pods have must be known.
    pub async fn sweep(&self) {
        for id in self.forwarder.place.ids() {
            let wire = self.resources.pair(&id).map_or_else(|| id.clone(), |state| state.pair.name().to_owned());
            let _lock = self.lock_wire(&wire).await;
            if self.resources.pair(&id).is_some_and(|state| state.is_held()) {
                continue;
            }
            match self.forwarder.place.remove(&id) {
                Ok(()) => info!(endpoint = id, "its directory is removed: no pod has it"),
                Err(error) => warn!(endpoint = id, %error, "remove its directory, which no pod has"),
            }
        }
    }

    /// A wire has the name of one of its ends, whose own lock is another.
    async fn lock_wire(&self, wire: &str) -> DeviceLock {
        self.locks.lock(std::iter::once(format!("the wire {wire}"))).await
    }

    /// Which of these endpoints of a resource go first.
    pub(super) fn prefer_endpoints(
        &self,
        resource: &str,
        available: &[String],
        must_include: &[String],
        size: usize,
    ) -> Vec<String> {
        let (_, candidates) = self.resources.candidates(resource, available);
        let free = |Candidate { id, cost, .. }: Candidate| {
            let state = self.resources.pair(&id)?;
            let (_, other) = state.pair.seen_from(&id)?;
            // What the kubelet may give away no pod has, whatever is known here.
            let is_left = available.contains(&other.name.device)
                || self.resources.with_grants(|grants| grants.is_leaving(&other.name));
            let wire = state.pair.name().to_owned();
            let is_awaited = !is_left && state.without(&id).is_held();
            Some(FreeEndpoint { id, wire, is_awaited, is_taken: cost >= COST_TAKEN })
        };
        let free: Vec<_> = candidates.into_iter().filter_map(free).collect();
        prefer(&free, must_include, size)
    }

    /// What is mounted into a container. Read-only: it can be connected to, and not removed.
    pub(super) fn mounts(&self, allotted: &[Allotted]) -> Vec<Mount> {
        let endpoints = allotted.iter().filter(|device| device.member.device.software().is_some());
        let mount = |device: &Allotted| {
            let id = &device.member.device.id;
            Mount {
                container_path: container_path(id),
                host_path: self.forwarder.place.directory(id).display().to_string(),
                read_only: true,
            }
        };
        endpoints.map(mount).collect()
    }

    /// Writes what CNI plugins read about a device.
    pub(super) fn write_info(&self, resource: &ResourceConfig, member: &Member) -> io::Result<()> {
        let device = &member.device;
        match device.software() {
            Some(end) => {
                let socket = self.forwarder.place.socket(&device.id, end.kind);
                self.files.write_software_info(&resource.name, &device.id, end.kind, &socket)
            }
            None => self.files.write_info(&resource.name, device, member.selector(resource)),
        }
    }

    /// Until wires of a process before are known, pods would be joined as the configuration says now, whatever they have.
    async fn know_wires(&self) -> Result<(), WireError> {
        if self.resources.are_wires_known() { Ok(()) } else { self.adopt_wires_later().await }
    }

    /// The same as [`Self::adopt_wires`] at the start, as far as the forwarder answers at once. Where no resource is served by it, a process
    /// before may have been; but then it is asked when the kubelet is served, which waits for no forwarder that hangs.
    pub async fn adopt_wires_at_start(&self) {
        if !self.resources.has_software() {
            return;
        }
        if let Ok(Err(error)) = timeout(ADOPT_WAIT, self.adopt_wires()).await {
            warn!(%error, "what pods have of software endpoints is known once the forwarder answers");
        }
    }

    /// The same as [`Self::adopt_wires`] after the start. If nothing was known of them, files of endpoints are brought in line with them.
    pub async fn adopt_wires_later(&self) -> Result<(), WireError> {
        let were_known = self.resources.are_wires_known();
        self.adopt_wires().await?;
        if !were_known {
            self.write_files_again();
        }
        Ok(())
    }

    /// Learns from wires that are there what pods have.
    pub async fn adopt_wires(&self) -> Result<(), WireError> {
        let wires = self.forwarder.list().await?;
        let states: Vec<_> = wires.iter().filter_map(|wire| self.forwarder.read(wire)).collect();
        self.resources.adopt(&states);
        Ok(())
    }
}

/// A forwarder that is there answers in milliseconds.
const ADOPT_WAIT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use super::*;
    use crate::allocate::{CdiMode, DeviceFiles, ToldNodes};
    use crate::config::Config;
    use crate::counters::Counters;
    use crate::device_locks::DeviceLocks;
    use crate::host::Host;
    use crate::leases::Manager;
    use crate::pod_resources::{PodResources, Witness};
    use crate::resources::Resources;
    use crate::software::{Forwarder, Place};
    use sriov_manager_client::tokens::Tokens;

    #[tokio::test]
    async fn a_forwarder_that_hangs_is_waited_for_only_where_it_serves_a_resource() {
        let directory = tempfile::tempdir().unwrap();
        let _hangs = UnixListener::bind(directory.path().join("admin.sock")).unwrap();
        for (software, waits) in [("", false), (r#", "software": 2"#, true)] {
            let text = format!(r#"{{"resourceList": [{{"resourceName": "a"{software}, "selectors": {{}}}}]}}"#);
            let allocator = allocator(&text, directory.path());
            let mut adopted = pin!(allocator.adopt_wires_at_start());
            let first = adopted.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(first.is_pending(), waits, "{text}");
        }
    }

    fn allocator(config: &str, directory: &Path) -> Allocator {
        let at = |name: &str| directory.join(name);
        let witness = Witness { own_pod: None, settle: Duration::ZERO };
        Allocator {
            resources: Resources::new(Config::parse("config.json", config, "intel.com").unwrap()),
            manager: Manager::at(at("vf.sock")),
            forwarder: Forwarder::at(at("admin.sock"), Place::at(at("software"))),
            pod_resources: PodResources::at(at("kubelet.sock"), witness),
            host: Host::new(directory),
            files: DeviceFiles { cdi: at("cdi"), device_info: at("devinfo") },
            cdi: CdiMode::Off,
            told: ToldNodes::at(directory),
            tokens: Tokens::at(at("tokens")),
            locks: DeviceLocks::default(),
            counters: Arc::new(Counters::default()),
        }
    }
}
