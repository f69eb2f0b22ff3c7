//! Software endpoints: what is done to their wires when pods come and go. One at a time for each wire.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use dpdk_forwarder_client::v1;
use ferrule_kubelet::v1beta1::Mount;
use tokio::sync::OwnedMutexGuard;

use super::{Allocator, Candidate};
use crate::config::ResourceConfig;
use crate::lease_name::LeaseName;
use crate::leases::LeaseError;
use crate::pools::Member;
use crate::resources::{Allotted, COST_TAKEN};
use crate::software::{FreeEndpoint, PairState, WireError, container_path, prefer};

impl Allocator {
    /// Makes sure that the wires of these are there.
    pub(super) async fn wire(&self, allotted: &[Allotted]) -> Result<(), LeaseError> {
        let mut by_wire: BTreeMap<String, Vec<LeaseName>> = BTreeMap::new();
        for device in allotted.iter().filter(|device| device.member.device.software().is_some()) {
            let id = &device.member.device.id;
            let unknown = || WireError::Unknown { id: id.clone() };
            let pair = self.resources.pair(id).ok_or_else(unknown)?;
            by_wire.entry(pair.pair.name().to_owned()).or_default().push(device.lease_name());
        }
        for (wire, names) in by_wire {
            self.wire_again(&wire).await?;
            self.resources.with_grants(|grants| names.iter().for_each(|name| grants.lent(name)));
        }
        Ok(())
    }

    /// Makes a wire what it should be now, if a pod has something of it.
    pub async fn wire_again(&self, wire: &str) -> Result<(), WireError> {
        let _lock = self.lock_wire(wire).await;
        match self.resources.pair(wire).filter(PairState::is_held) {
            Some(state) => self.forwarder.put(&state).await,
            None => Ok(()),
        }
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
        let Some(state) = self.resources.pair(&name.device) else { return Ok(()) };
        let _lock = self.lock_wire(state.pair.name()).await;
        let is_due = self.resources.with_grants(|grants| grants.is_due(name, Instant::now()));
        let Some(state) = self.resources.pair(&name.device).filter(|_| is_due) else { return Ok(()) };
        let left = state.without(&name.device);
        if left.is_held() {
            self.forwarder.put(&left).await?;
        } else {
            self.forwarder.remove(&left).await?;
        }
        Ok(())
    }

    /// A wire has the name of one of its ends, whose own lock is another.
    async fn lock_wire(&self, wire: &str) -> Vec<OwnedMutexGuard<()>> {
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
            let (wire, is_awaited) = (state.pair.name().to_owned(), state.without(&id).is_held());
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

    /// Learns from wires that are there what pods have.
    pub async fn adopt_wires(&self) -> Result<(), WireError> {
        let wires = self.forwarder.list().await?;
        let states: Vec<_> = wires.iter().filter_map(|wire| self.forwarder.read(wire)).collect();
        self.resources.adopt(&states);
        Ok(())
    }
}
