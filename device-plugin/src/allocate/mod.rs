//! What is done when a pod gets devices, and before each start of its containers.
//!
//! The kubelet forgives nothing at Allocate: an error there kills the pod. Before a start it tries again for as long as it takes. So
//! Allocate waits for the manager a moment only, answers from what is known of the device whatever it is bound to, and leaves
//! what could heal to PreStartContainer; it fails only for what can never be.
//!
//! Modules: `given` (environment and nodes), `files` (what runtimes and CNI plugins read), `preferred` (which devices go first),
//! `locks` (one at a time for each device), `later` (what was not ready at once), `told` (what containers were told before), `wired`
//! (software endpoints).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_kubelet::v1beta1::{CdiDevice, ContainerAllocateResponse};
use sriov_manager_client::tokens::{Tokens, token_variable};
use sriov_manager_client::v1;
use thiserror::Error;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::config::ResourceConfig;
use crate::counters::Counters;
use crate::device_locks::DeviceLocks;
use crate::grants::Tenant;
use crate::host::Host;
use crate::lease_name::LeaseName;
use crate::leases::{AT_ONCE_MAX, LeaseError, Manager, Wanted};
use crate::pod_resources::{POD, PodResources};
use crate::pools::Member;
use crate::resources::{Allotted, Resources};
use crate::software::{Forwarder, is_endpoint};

mod files;
mod given;
mod later;
mod preferred;
mod told;
mod wired;

pub use files::{CdiMode, DeviceFiles};
use given::{Bound, Given, give};
pub use later::keep_trying_refused;
use preferred::prefer;
pub use preferred::{COST_TAKEN, Candidate};
pub use told::ToldNodes;

/// Gives devices to pods.
#[derive(Debug)]
pub struct Allocator {
    /// What there is.
    pub resources: Resources,
    /// Who lends VFs.
    pub manager: Manager,
    /// Who makes wires of software endpoints.
    pub forwarder: Forwarder,
    /// Who has what.
    pub pod_resources: PodResources,
    /// What sysfs says.
    pub host: Host,
    /// For runtimes and CNI plugins.
    pub files: DeviceFiles,
    /// How containers get device nodes.
    pub cdi: CdiMode,
    /// Which of them containers were told of.
    pub told: ToldNodes,
    /// What pods show forwarders of Network Service Mesh.
    pub tokens: Tokens,
    /// One at a time for each device.
    pub locks: DeviceLocks,
    /// For metrics.
    pub counters: Arc<Counters>,
}

/// Why a pod does not get its devices.
#[derive(Debug, Error)]
pub enum AllocateError {
    /// The kubelet names what it was never told of, or what is gone.
    #[error("{0}; the kubelet's list is old, and the next pod is given another device")]
    Unknown(String),
    /// It will not be lent.
    #[error("{devices}: {error}")]
    Lease {
        /// Which, or several of which one.
        devices: String,
        /// Why.
        error: LeaseError,
    },
    /// It goes to VFIO, and has no group.
    #[error("{device} is to be given to vfio-pci and has no IOMMU group: turn the IOMMU on (`intel_iommu=on`)")]
    NoGroup {
        /// Which.
        device: String,
    },
    /// It goes to VFIO without an IOMMU, and was not bound while the kubelet could wait.
    #[error(
        "{device} has a VFIO group only when it is bound, since the machine has no IOMMU, and that was not done within {} s: look at \
         sriov-manager, or name devices by CDI (`--cdi field`), which can wait",
        GROUP_WAIT.as_secs()
    )]
    GroupLater {
        /// Which.
        device: String,
    },
    /// The container has the node of another group.
    #[error(
        "{device} is {now}, and its container was told of {told} when its pod was admitted: the machine was started, or the VF was made, \
         since then. Delete the pod; with `--cdi field` the next one finds its device all the same"
    )]
    OtherGroup {
        /// Which.
        device: String,
        /// The node then.
        told: String,
        /// The node now.
        now: String,
    },
    /// What a container runtime is to read could not be written.
    #[error("write the CDI spec of {device}: {error}")]
    Spec {
        /// Of which device.
        device: String,
        /// Why.
        error: std::io::Error,
    },
    /// It has no token.
    #[error("make a token for {device}, in {}: {error}; make room on its disk, or see that it can be written to", directory.display())]
    Token {
        /// For which device.
        device: String,
        /// Where tokens are.
        directory: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl Allocator {
    /// Gives devices to a container.
    pub async fn allocate(
        self: &Arc<Self>,
        resource: &str,
        ids: &[String],
    ) -> Result<ContainerAllocateResponse, AllocateError> {
        let began = Instant::now();
        let result = self.allocate_devices(resource, ids).await;
        self.counters.allocated(resource, began.elapsed(), result.is_ok());
        if let Err(error) = &result {
            warn!(resource, devices = ids.join(","), %error, "a pod is refused");
        }
        result
    }

    async fn allocate_devices(
        self: &Arc<Self>,
        resource: &str,
        ids: &[String],
    ) -> Result<ContainerAllocateResponse, AllocateError> {
        let ids: BTreeSet<String> = ids.iter().cloned().collect();
        let is_held = |id: &String| self.resources.with_grants(|grants| grants.is_held(&LeaseName::new(resource, id)));
        let listing = if ids.iter().any(is_held) { self.pod_resources.list_soon().await } else { None };
        let allotted = self.resources.allocate(resource, &ids, listing.as_ref()).map_err(AllocateError::Unknown)?;
        let (vfs, is_postponed) = match self.lend_to_answer(&allotted).await {
            Ok(vfs) => (vfs, false),
            Err(error) if error.is_final() => {
                // Of more than are lent together, some are lent, and given back as what no pod has.
                self.refuse_pod(&allotted, allotted.len() > AT_ONCE_MAX);
                // Whoever comes next is not given them again at once.
                let refused = error.vf().map_or_else(|| ids.clone(), |vf| BTreeSet::from([vf.to_owned()]));
                self.resources.refuse(&refused, &error.to_string());
                return Err(AllocateError::Lease { devices: ids.into_iter().collect::<Vec<_>>().join(","), error });
            }
            Err(error) if is_early(&error, &allotted) => {
                // A CNI plugin would take the interface before it is lent, and nobody could lend it after that.
                self.refuse_pod(&allotted, true);
                return Err(AllocateError::Lease { devices: ids.into_iter().collect::<Vec<_>>().join(","), error });
            }
            Err(error) => {
                warn!(resource, %error, "a pod's devices are not ready yet; it is tried again until they are");
                self.counters.postponed(resource);
                (BTreeMap::new(), true)
            }
        };
        let answer = self.answer(resource, &allotted, &vfs).inspect_err(|_| self.refuse_pod(&allotted, true))?;
        if is_postponed {
            // CNI plugins come before PreStartContainer, and want them as soon as can be.
            tokio::spawn(later::lend_later(Arc::clone(self), allotted));
        }
        let now = Instant::now();
        self.resources.with_grants(|grants| {
            for id in &ids {
                grants.answered(&LeaseName::new(resource, id), now);
            }
        });
        Ok(answer)
    }

    /// Makes sure, before a container starts, that its devices are as they shall be.
    pub async fn prepare(&self, resource: &str, ids: &[String]) -> Result<(), AllocateError> {
        let ids: BTreeSet<String> = ids.iter().cloned().collect();
        let members = self.resources.members(resource, &ids).map_err(AllocateError::Unknown)?;
        let now = Instant::now();
        let strangers = self.strangers(resource, &members).await;
        let allotted: Vec<_> = members
            .into_iter()
            .map(|(config, member)| {
                let name = LeaseName::new(resource, &member.device.id);
                let must_be_cleaned = self.resources.with_grants(|grants| {
                    grants.start(&name, now);
                    if strangers.contains(&member.device.id) {
                        grants.note_unclean(&name);
                    }
                    grants.needs_cleaning(&name)
                });
                let tenant = if must_be_cleaned { Tenant::Next } else { Tenant::Same };
                Allotted { resource: config, member, tenant }
            })
            .collect();
        self.note_pods(&allotted).await;
        let lent = timeout(PREPARE_WAIT, self.lend(&allotted)).await.unwrap_or(Err(LeaseError::Late(PREPARE_WAIT)));
        let vfs = match lent {
            Ok(vfs) => vfs,
            // What a pod has needs no manager, only what is not as it is to be.
            Err(error) if !error.is_final() && self.are_in_order(&allotted) => {
                debug!(resource, %error, "a container starts with what its pod has, which is in order");
                BTreeMap::new()
            }
            // Its own pod holds it, which another plugin gave it, or whose lease was lost.
            Err(error) if error.is_held() && self.are_listed(&allotted).await => {
                debug!(resource, %error, "a container starts with what its pod has without a lease");
                BTreeMap::new()
            }
            Err(error) => {
                return Err(AllocateError::Lease { devices: ids.into_iter().collect::<Vec<_>>().join(","), error });
            }
        };
        // Another group is not the container's any more, but its files may be missing.
        let given = self.given(&allotted, &vfs);
        self.check_groups(&allotted, &given)?;
        self.write_files(&allotted, &given)
    }

    /// Which of the available devices go first.
    pub fn prefer(&self, resource: &str, available: &[String], must_include: &[String], size: i32) -> Vec<String> {
        let size = usize::try_from(size).unwrap_or(0);
        if available.iter().any(|id| is_endpoint(id)) {
            return self.prefer_endpoints(resource, available, must_include, size);
        }
        let (policy, candidates) = self.resources.candidates(resource, available);
        prefer(policy, &candidates, must_include, size)
    }

    /// Devices whose lease is told to be another pod's than that which the kubelet lists: a process before did not come to clean them.
    async fn strangers(&self, resource: &str, members: &[(Arc<ResourceConfig>, Member)]) -> BTreeSet<String> {
        let told = |member: &Member| {
            let lease = member.device.vf().and_then(|vf| vf.lease.clone())?;
            Some(lease.tenant).filter(|tenant| tenant.starts_with(POD))
        };
        let unknown: Vec<_> = members
            .iter()
            .map(|(_, member)| (LeaseName::new(resource, &member.device.id), told(member)))
            .filter(|(name, _)| {
                self.resources.with_grants(|grants| grants.pod(name).is_none() && !grants.was_lent_here(name))
            })
            .filter_map(|(name, told)| Some((name, told?)))
            .collect();
        if unknown.is_empty() {
            return BTreeSet::new();
        }
        let Some(listing) = self.pod_resources.list_soon().await else { return BTreeSet::new() };
        let is_strange = |(name, told): &(LeaseName, String)| listing.get(name).is_some_and(|pod| pod != told);
        unknown.into_iter().filter(is_strange).map(|(name, _)| name.device).collect()
    }

    /// Which pods have these, if the kubelet lists them by now. One that ends in a moment is gone at the next look, and what it had would
    /// be taken for an init container's.
    async fn note_pods(&self, allotted: &[Allotted]) {
        let is_unknown = |name: &LeaseName| self.resources.with_grants(|grants| grants.pod(name).is_none());
        let unknown: Vec<_> = allotted.iter().map(Allotted::lease_name).filter(is_unknown).collect();
        if unknown.is_empty() {
            return;
        }
        let Some(listing) = self.pod_resources.list_soon().await else { return };
        self.resources.with_grants(|grants| {
            for (name, pod) in unknown.iter().filter_map(|name| listing.get_key_value(name)) {
                grants.note_pod(name, pod.clone());
            }
        });
    }

    /// Removes what containers and their helpers were told of a device that no pod has any more.
    pub fn forget(&self, name: &LeaseName) {
        self.told.tell([(name.clone(), None)]);
        if let Err(error) = self.tokens.void(&name.to_string()) {
            warn!(lease = %name, %error, "make the tokens of a device void");
        }
        self.forget_files(name);
    }

    /// Removes the files of a device: whoever has it next, by whatever resource, has them anew.
    pub fn forget_files(&self, name: &LeaseName) {
        if let Err(error) = self.files.remove_of(name) {
            warn!(lease = %name, %error, "remove the files of a device");
        }
    }

    /// Writes anew what others read about devices that pods have: a start of the machine, or of the plugin, may have lost it. What
    /// there is of others is removed, once it is known what pods have.
    pub fn write_files_again(&self) {
        self.write_files_beside(Some(&[]));
    }

    /// The same when a plugin starts: of devices without a lease nothing is known but what the kubelet lists.
    pub async fn write_files_at_start(&self) {
        let listing = self.pod_resources.list_soon().await;
        self.write_files_beside(listing.map(|listing| listing.into_keys().collect::<Vec<_>>()).as_deref());
    }

    /// Keeps the files of those that are listed as well; where nobody can list them, all files.
    fn write_files_beside(&self, listed: Option<&[LeaseName]>) {
        let held: Vec<LeaseName> = self.resources.with_grants(|grants| grants.names().cloned().collect());
        let kept = listed.map(|listed| [&held, listed].concat());
        if self.resources.is_managed()
            && let Some(kept) = kept
        {
            let names = self.resources.names();
            if let Err(error) = self.files.keep_only(&kept, &names, self.resources.are_wires_known()) {
                warn!(%error, "remove files of devices that no pod has");
            }
            // Another plugin of the node may have made the others; and a pod may have come since.
            let is_kept = |lease: &str| {
                let Some((resource, device)) = lease.rsplit_once('@') else { return true };
                let (is_ours, name) = (names.iter().any(|name| name == resource), LeaseName::new(resource, device));
                !is_ours || kept.contains(&name) || self.resources.with_grants(|grants| grants.is_held(&name))
            };
            if let Err(error) = self.tokens.keep_only(is_kept) {
                warn!(%error, "make tokens of devices void that no pod has");
            }
        }
        for name in held {
            let members = self.resources.members(&name.resource, &BTreeSet::from([name.device.clone()]));
            let allotted: Vec<_> = members
                .unwrap_or_default()
                .into_iter()
                .map(|(resource, member)| Allotted { resource, member, tenant: Tenant::Same })
                .collect();
            let written = self.write_files(&allotted, &self.given(&allotted, &BTreeMap::new()));
            if let Err(error) = written {
                warn!(lease = %name, %error, "a file could not be written; it is tried again before a container starts");
            }
        }
    }

    /// Lends the VFs among the devices: new ones together, and each that another pod had by itself. Returns those that the manager told.
    async fn lend(&self, allotted: &[Allotted]) -> Result<BTreeMap<String, v1::Vf>, LeaseError> {
        self.wire(allotted).await?;
        let is_vf = |device: &&Allotted| wanted_of(device, device.tenant).is_some();
        let vfs: Vec<_> = allotted.iter().filter(is_vf).collect();
        if vfs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let _locks = self.locks.lock(vfs.iter().map(|device| device.member.device.id.clone())).await;
        // While they were waited for, somebody else may have cleaned one, and its container may run.
        let wanted: Vec<_> = vfs.into_iter().filter_map(|device| self.wanted_now(device)).collect();
        let (began, is_rebind) = (Instant::now(), allotted.iter().any(|device| !self.is_bound(device)));
        let mut vfs = Vec::new();
        for (wanted, _) in wanted.iter().filter(|(_, tenant)| *tenant == Tenant::Next) {
            info!(lease = %wanted.name(), "cleaned for the next pod");
            vfs.extend(self.manager.hand_over(wanted).await?);
        }
        let others: Vec<_> =
            wanted.iter().filter(|(_, tenant)| *tenant != Tenant::Next).map(|(wanted, _)| wanted.clone()).collect();
        if !others.is_empty() {
            vfs.extend(self.acquire(&others).await?);
        }
        self.resources.with_grants(|grants| {
            for (wanted, _) in &wanted {
                grants.lent(wanted.name());
            }
        });
        if is_rebind && let Some((wanted, _)) = wanted.first() {
            self.counters.rebound(&wanted.name().resource, began.elapsed());
        }
        Ok(vfs.into_iter().map(|vf| (vf.address.clone(), vf)).collect())
    }

    /// What a VF is to be lent as, and for whom; none: somebody else has cleaned it for that pod, and lent it.
    fn wanted_now(&self, device: &Allotted) -> Option<(Wanted, Tenant)> {
        let name = device.lease_name();
        let (needs_cleaning, pod) = self
            .resources
            .with_grants(|grants| (grants.needs_cleaning(&name), grants.pod(&name).map(ToOwned::to_owned)));
        let is_done = device.tenant == Tenant::Next && !needs_cleaning;
        let wanted = wanted_of(device, device.tenant).filter(|_| !is_done)?;
        Some((wanted.of_pod(pod), device.tenant))
    }

    /// The same for an answer to the kubelet, which waits for a moment; for longer where the answer would come too early.
    async fn lend_to_answer(&self, allotted: &[Allotted]) -> Result<BTreeMap<String, v1::Vf>, LeaseError> {
        let wait = match () {
            () if allotted.iter().any(|device| self.must_be_bound_to_answer(device)) => GROUP_WAIT,
            () if allotted.iter().any(goes_to_kernel) => KERNEL_WAIT,
            () => {
                let lent = timeout(ALLOCATE_WAIT, self.lend(allotted)).await;
                return lent.unwrap_or(Err(LeaseError::Late(ALLOCATE_WAIT)));
            }
        };
        let until_lent = async {
            loop {
                match self.lend(allotted).await {
                    // What a stranger holds no CNI plugin can take. What the last pod holds is free in a moment, and then one could.
                    Err(error) if wait == KERNEL_WAIT && !is_early(&error, allotted) => return Err(error),
                    Err(error) if !error.is_final() => {
                        debug!(%error, "the pod must not go on before its devices are lent; it is tried again");
                        sleep(LEND_RETRY_AFTER).await;
                    }
                    lent => return lent,
                }
            }
        };
        timeout(wait, until_lent).await.unwrap_or(Err(LeaseError::Late(wait)))
    }

    /// Whether nobody knows which node a VF will have before it is bound.
    fn must_be_bound_to_answer(&self, device: &Allotted) -> bool {
        let wanted = || Wanted::new(&device.resource, &device.member.device, device.tenant);
        self.cdi == CdiMode::Off
            && device.member.device.iommu_group.is_none()
            && self.host.allows_noiommu()
            && wanted().is_some_and(|wanted| wanted.driver() == v1::Driver::VfioPci)
    }

    /// Whether the groups are those that the container was told of, if that is known.
    fn check_groups(&self, allotted: &[Allotted], given: &Given) -> Result<(), AllocateError> {
        if let Some(device) = given.without_group.clone() {
            return Err(AllocateError::NoGroup { device });
        }
        for device in allotted {
            let id = &device.member.device.id;
            let (Some(now), Some(told)) = (given.groups.get(id), self.told.node(&device.lease_name())) else {
                continue;
            };
            if *now != told {
                return Err(AllocateError::OtherGroup { device: id.clone(), told, now: now.clone() });
            }
        }
        Ok(())
    }

    /// A VF that has just come may not be claimed yet.
    async fn acquire(&self, wanted: &[Wanted]) -> Result<Vec<v1::Vf>, LeaseError> {
        match self.manager.acquire(wanted).await {
            Err(error) if error.is_unclaimed() => {
                if let Err(error) = self.manager.claim(&self.resources.to_claim()).await {
                    debug!(%error, "the VFs cannot be claimed now");
                }
                self.manager.acquire(wanted).await
            }
            other => other,
        }
    }

    /// Whether the kubelet lists all of them, and each VF is on the driver that it is to be on.
    async fn are_listed(&self, allotted: &[Allotted]) -> bool {
        let Some(listing) = self.pod_resources.list_soon().await else { return false };
        allotted.iter().all(|device| {
            device.tenant == Tenant::Same && listing.contains_key(&device.lease_name()) && self.is_bound(device)
        })
    }

    /// Whether a VF is on the driver that it is to be on.
    fn is_bound(&self, device: &Allotted) -> bool {
        let Some(wanted) = Wanted::new(&device.resource, &device.member.device, device.tenant) else { return true };
        let driver = self.host.driver(&device.member.device.pci);
        match wanted.driver() {
            v1::Driver::VfioPci => driver.as_deref() == Some("vfio-pci"),
            _ => driver.is_some_and(|driver| driver != "vfio-pci"),
        }
    }

    /// Whether all leases are there, as far as is known, and each VF is on the driver of its lease.
    fn are_in_order(&self, allotted: &[Allotted]) -> bool {
        let is_in_order = |device: &Allotted| {
            if device.member.device.software().is_some() {
                // Its wire is there while the forwarder is.
                return false;
            }
            let Some(wanted) = Wanted::new(&device.resource, &device.member.device, device.tenant) else { return true };
            let is_bound = self.is_bound(device);
            let is_lent = self.resources.with_grants(|grants| grants.is_in_order(wanted.name()));
            debug!(lease = %wanted.name(), is_lent, is_bound, "looked at without the manager");
            is_bound && is_lent
        };
        allotted.iter().all(is_in_order)
    }

    /// The pod is refused: it has nothing. `is_lent`: what was free before may be lent by now.
    fn refuse_pod(&self, allotted: &[Allotted], is_lent: bool) {
        self.resources.with_grants(|grants| {
            for device in allotted {
                let name = device.lease_name();
                if device.tenant == Tenant::New && !is_lent { grants.remove(&name) } else { grants.refused(&name) }
            }
        });
    }

    fn answer(
        &self,
        resource: &str,
        allotted: &[Allotted],
        vfs: &BTreeMap<String, v1::Vf>,
    ) -> Result<ContainerAllocateResponse, AllocateError> {
        let given = self.given(allotted, vfs);
        if let Some(device) = given.without_group.clone() {
            if !self.host.allows_noiommu() {
                return Err(AllocateError::NoGroup { device });
            }
            if self.cdi == CdiMode::Off {
                return Err(AllocateError::GroupLater { device });
            }
        }
        if let Err(error) = self.write_files(allotted, &given) {
            // It is tried again before the container starts.
            warn!(resource, %error, "a file could not be written; make room on its disk");
        }
        // What CDI names is looked up at each start.
        let is_told = |id: &String| given.groups.get(id).filter(|_| self.cdi == CdiMode::Off).cloned();
        self.told.tell(allotted.iter().map(|device| (device.lease_name(), is_told(&device.member.device.id))));
        let tokens = self.issue_tokens(allotted)?;
        let mut answer = ContainerAllocateResponse {
            envs: given.envs.clone().into_iter().chain(tokens).collect(),
            mounts: self.mounts(allotted),
            ..Default::default()
        };
        let named: Vec<_> = allotted
            .iter()
            .map(|device| (&device.resource.name, &*device.member.device))
            .filter(|(_, device)| has_nodes(&given, &device.id))
            .collect();
        let names = named.iter().map(|(resource, device)| files::cdi_name(resource, device));
        match self.cdi {
            CdiMode::Off => answer.devices = given.nodes.into_iter().map(Into::into).collect(),
            CdiMode::Field => answer.cdi_devices = names.map(|name| CdiDevice { name }).collect(),
            CdiMode::Annotation => {
                if let Some((resource, device)) = named.first() {
                    let key = files::cdi_annotation(resource, &device.source);
                    answer.annotations.insert(key, names.collect::<Vec<_>>().join(","));
                }
            }
        }
        Ok(answer)
    }

    /// Makes the tokens of devices whose resource has some, and the variable that tells of them.
    fn issue_tokens(&self, allotted: &[Allotted]) -> Result<Option<(String, String)>, AllocateError> {
        let Some(first) = allotted.first().filter(|first| first.resource.nsm_tokens) else { return Ok(None) };
        let issue = |device: &Allotted| {
            let lease = device.lease_name().to_string();
            let token = match device.tenant {
                // An init container has the same device, and has not run yet.
                Tenant::Same => self.tokens.share(&lease),
                Tenant::New | Tenant::Next => self.tokens.issue(&lease),
            };
            token.map_err(|error| AllocateError::Token {
                device: device.member.device.id.clone(),
                directory: self.tokens.directory().to_owned(),
                error,
            })
        };
        let tokens = allotted.iter().map(issue).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(token_variable(&first.resource.name.to_string(), &tokens)))
    }

    fn given(&self, allotted: &[Allotted], vfs: &BTreeMap<String, v1::Vf>) -> Given {
        let Some(first) = allotted.first() else { return Given::default() };
        let bound = |device: &Allotted| {
            let wanted = Wanted::new(&device.resource, &device.member.device, device.tenant);
            let driver = wanted.map(|wanted| wanted.driver()).or(device.member.device.present_driver());
            Bound::of(driver, &device.member, vfs.get(&device.member.device.id), &self.host)
        };
        let devices: Vec<_> = allotted.iter().map(|device| (&device.member, bound(device))).collect();
        give(&first.resource, &devices, &self.host)
    }

    /// Writes what others read. Without a device-info file a pod starts all the same; without a CDI spec it does not.
    fn write_files(&self, allotted: &[Allotted], given: &Given) -> Result<(), AllocateError> {
        for Allotted { resource, member, .. } in allotted {
            let device = &member.device;
            if let Err(error) = self.write_info(resource, member) {
                warn!(device = device.id, %error, "write the device-info file");
            }
            if let Some(nodes) = given.nodes_of.get(&device.id).filter(|_| self.cdi != CdiMode::Off)
                && !nodes.is_empty()
            {
                let written = self.files.write_cdi(&resource.name, device, nodes);
                written.map_err(|error| AllocateError::Spec { device: device.id.clone(), error })?;
            }
        }
        Ok(())
    }
}

/// Whether a CNI plugin may take its interface as soon as its pod is admitted.
fn goes_to_kernel(device: &Allotted) -> bool {
    wanted_of(device, device.tenant).is_some_and(|wanted| wanted.driver() == v1::Driver::Kernel)
}

/// Whether a CNI plugin could take an interface of these before it is lent.
fn is_early(error: &LeaseError, allotted: &[Allotted]) -> bool {
    allotted.iter().any(goes_to_kernel) && (!error.is_held() || allotted.iter().any(is_of_another_pod))
}

/// Whether another pod had it last.
fn is_of_another_pod(device: &Allotted) -> bool {
    device.tenant == Tenant::Next
}

/// None: it is given as it is.
fn wanted_of(device: &Allotted, tenant: Tenant) -> Option<Wanted> {
    Wanted::new(&device.resource, &device.member.device, tenant)
}

/// A spec without a node is no spec.
fn has_nodes(given: &Given, id: &str) -> bool {
    given.nodes_of.get(id).is_some_and(|nodes| !nodes.is_empty())
}

/// The kubelet has no deadline, and admits no other pod meanwhile.
const ALLOCATE_WAIT: Duration = Duration::from_secs(10);
/// The same for a VF that the answer cannot name before it is bound: a manager that is updated is back by then.
const GROUP_WAIT: Duration = Duration::from_secs(30);
/// The same for an interface. No other pod of the node is admitted meanwhile; a manager may be away for a minute.
const KERNEL_WAIT: Duration = Duration::from_secs(75);
const LEND_RETRY_AFTER: Duration = Duration::from_millis(200);
/// The kubelet waits for 30 s.
const PREPARE_WAIT: Duration = Duration::from_secs(25);
