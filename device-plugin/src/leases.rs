//! What is asked of `sriov-manager`: VFs claimed as a whole, and each lent while a pod has it.
//!
//! The claim is the plugin's and stays: nobody else lends what was promised to the kubelet. A lease is named after its resource and its
//! device, so that whoever starts again finds what pods have in the manager's own journal.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sriov_manager_client::{Client, connect, refusal, v1};
use thiserror::Error;
use tokio::sync::Mutex;
use tonic::{Code, Status};

use crate::config::ResourceConfig;
use crate::grants::Tenant;
use crate::inventory::Device;
use crate::lease_name::{LeaseName, OWNER};
use crate::software::WireError;

/// The manager of this node.
#[derive(Clone, Debug)]
pub struct Manager {
    socket: PathBuf,
    /// Once there is one, it connects again by itself.
    client: Arc<Mutex<Option<Client>>>,
}

/// A VF that is to be lent.
#[derive(Clone, Debug)]
pub struct Wanted {
    name: LeaseName,
    driver: v1::Driver,
    attributes: v1::Attributes,
    /// Which pod has it, if that was told; for people.
    pod: Option<String>,
    /// The pod that has it already: what a CNI plugin has changed for it since, which need not be known here yet, stays.
    is_again: bool,
}

impl Wanted {
    /// A VF as its resource wants it. None: it is on a driver that the manager does not bind to, and is given as it is.
    pub fn new(resource: &ResourceConfig, device: &Device, tenant: Tenant) -> Option<Self> {
        device.vf()?;
        // One that is lent is on the driver of its lease, whatever became of it since.
        let lent = device.vf().and_then(|vf| vf.lease.as_ref()).filter(|lease| LeaseName::parse(lease).is_some());
        let of_lease = lent.map(v1::Lease::driver);
        let driver = match tenant {
            // Whatever the configuration says now: a container of its pod has the nodes of this one.
            Tenant::Same => of_lease.or(resource.driver),
            Tenant::New | Tenant::Next => resource.driver.or(of_lease),
        };
        let driver = driver.or(device.present_driver())?;
        let mut attributes = match lent.filter(|_| tenant == Tenant::Same) {
            // The same holds for what the PF was told for its pod.
            Some(lease) => lease.attributes.clone().unwrap_or_default(),
            None => resource.attributes.clone(),
        };
        if driver != v1::Driver::Kernel {
            attributes.mtu = None;
        }
        // It may name the pod before.
        let pod = lent.filter(|_| tenant == Tenant::Same).map(|lease| lease.tenant.clone());
        let is_again = tenant == Tenant::Same;
        Some(Self { name: LeaseName::new(&resource.name.to_string(), &device.id), driver, attributes, pod, is_again })
    }

    /// The same, with the pod that the kubelet lists with it, if it does.
    #[must_use]
    pub fn of_pod(self, pod: Option<String>) -> Self {
        Self { pod: pod.or(self.pod), ..self }
    }

    /// What its lease is called.
    pub fn name(&self) -> &LeaseName {
        &self.name
    }

    /// What it shall be bound to.
    pub fn driver(&self) -> v1::Driver {
        self.driver
    }

    fn request(&self) -> v1::AcquireRequest {
        let pod = self.pod.clone().unwrap_or_else(|| format!("a pod, by {}", self.name.resource));
        v1::AcquireRequest {
            id: self.name.to_string(),
            tenant: pod,
            vf: self.name.device.clone(),
            driver: self.driver.into(),
            attributes: Some(self.attributes.clone()),
            owner: OWNER.to_owned(),
            again: self.is_again.then(|| v1::Again { from: Some(self.attributes.clone()), since: 0 }),
            ..Default::default()
        }
    }
}

impl Manager {
    /// That whose socket is at this path. It need not be there yet.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), client: Arc::default() }
    }

    /// Lends VFs. What is lent already is made to be as wanted. If it fails, some may be lent, but none of up to [`AT_ONCE_MAX`].
    pub async fn acquire(&self, wanted: &[Wanted]) -> Result<Vec<v1::Vf>, LeaseError> {
        let mut client = self.client().await?;
        let mut vfs = Vec::new();
        for chunk in wanted.chunks(AT_ONCE_MAX) {
            let leases = chunk.iter().map(Wanted::request).collect();
            let request = v1::AcquireAllRequest { leases, ..Default::default() };
            let answer = client.acquire_all(request).await.map_err(|status| refused(&status))?;
            vfs.extend(answer.into_inner().leases.into_iter().filter_map(|lease| lease.vf));
        }
        Ok(vfs)
    }

    /// Whether a VF would be lent.
    pub async fn try_acquire(&self, wanted: &Wanted) -> Result<(), LeaseError> {
        let request = v1::AcquireRequest { dry_run: true, ..wanted.request() };
        self.client().await?.acquire(request).await.map(drop).map_err(|status| refused(&status))
    }

    /// Lends a VF that a pod before had, cleaned of everything that was set for that one.
    pub async fn hand_over(&self, wanted: &Wanted) -> Result<Option<v1::Vf>, LeaseError> {
        let mut client = self.client().await?;
        let next = Wanted { pod: None, ..wanted.clone() }.request();
        let request = v1::HandOverRequest { from: wanted.name.to_string(), to: Some(next), wait_ms: HOLDER_WAIT_MS };
        match client.hand_over(request).await {
            Ok(answer) => Ok(answer.into_inner().vf),
            // It was given back meanwhile, and is clean.
            Err(status) if status.code() == Code::NotFound => {
                Ok(self.acquire(std::slice::from_ref(wanted)).await?.pop())
            }
            Err(status) => Err(refused(&status)),
        }
    }

    /// Gives a VF back. One that is not lent is good as it is.
    pub async fn release(&self, name: &LeaseName) -> Result<(), LeaseError> {
        let mut client = self.client().await?;
        let request = v1::ReleaseRequest { lease: name.to_string(), ..Default::default() };
        match client.release(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(refused(&status)),
        }
    }

    /// Says which pod has a VF, for people who look at the manager's list.
    pub async fn tell_tenant(&self, name: &LeaseName, tenant: String) -> Result<(), LeaseError> {
        let request = v1::UpdateRequest { lease: name.to_string(), tenant, ..Default::default() };
        self.client().await?.update(request).await.map(drop).map_err(|status| refused(&status))
    }

    /// These VFs, and no others, are lent by us alone.
    pub async fn claim(&self, vfs: &BTreeSet<String>) -> Result<(), LeaseError> {
        let mut client = self.client().await?;
        if vfs.is_empty() {
            let unclaimed = client.unclaim(v1::UnclaimRequest { owner: OWNER.to_owned() }).await;
            return match unclaimed {
                Err(status) if status.code() != Code::NotFound => Err(refused(&status)),
                _ => Ok(()),
            };
        }
        let request =
            v1::ClaimRequest { owner: OWNER.to_owned(), pools: Vec::new(), vfs: vfs.iter().cloned().collect() };
        client.claim(request).await.map(drop).map_err(|status| refused(&status))
    }

    async fn client(&self) -> Result<Client, LeaseError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let connected = connect(&self.socket).await.map_err(|error| LeaseError::Away(error.to_string()))?;
        Ok(client.insert(connected).clone())
    }
}

fn refused(status: &Status) -> LeaseError {
    match refusal(status) {
        Some(refusal) => LeaseError::Refused { message: status.message().to_owned(), refusal: Box::new(refusal) },
        None => LeaseError::Away(format!("sriov-manager does not answer: {}", status.message())),
    }
}

/// Why a VF is not lent, or not given back.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Nobody could be asked.
    #[error("{0}")]
    Away(String),
    /// The manager said no.
    #[error("{message}")]
    Refused {
        /// In words.
        message: String,
        /// For programs.
        refusal: Box<v1::Refusal>,
    },
    /// A wire is not as it should be.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It took too long.
    #[error("no answer for {}: look at the log of sriov-manager, or of dpdk-forwarder for software endpoints", humantime(.0))]
    Late(Duration),
}

impl LeaseError {
    /// Whether trying again cannot help: somebody else has it, or the node cannot do it.
    pub fn is_final(&self) -> bool {
        use v1::{ReasonKind as Reason, RefusalKind as Kind};
        let Self::Refused { refusal, .. } = self else { return false };
        let final_reasons = [
            Reason::Lent,
            Reason::Claimed,
            Reason::Cordoned,
            Reason::NoIommu,
            Reason::DriverMissing,
            Reason::Forbidden,
            Reason::PfInGroup,
            Reason::DeviceInGroup,
            Reason::GroupLent,
            Reason::UsedByHost,
        ];
        match refusal.kind() {
            Kind::NoSuchVf
            | Kind::Wrong
            | Kind::IdTaken
            | Kind::IdOfAnother
            | Kind::OwnerOfAnother
            | Kind::NotAllowed
            | Kind::UsedByHost => true,
            Kind::Unavailable => refusal.reasons.iter().any(|reason| final_reasons.contains(&reason.kind())),
            _ => false,
        }
    }

    /// The VF that it is about, if that was told.
    pub fn vf(&self) -> Option<&str> {
        let Self::Refused { refusal, .. } = self else { return None };
        Some(refusal.vf.as_str()).filter(|vf| !vf.is_empty())
    }

    /// Whether a claim is what is missing.
    pub fn is_unclaimed(&self) -> bool {
        let Self::Refused { refusal, .. } = self else { return false };
        refusal.reasons.iter().any(|reason| reason.kind() == v1::ReasonKind::NotClaimed)
    }

    /// Whether somebody still uses the VF.
    pub fn is_held(&self) -> bool {
        let Self::Refused { refusal, .. } = self else { return false };
        let is_held = |reason: &v1::Reason| reason.kind() == v1::ReasonKind::Held;
        refusal.kind() == v1::RefusalKind::Held || refusal.reasons.iter().any(is_held)
    }
}

fn humantime(time: &Duration) -> String {
    format!("{} s", time.as_secs())
}

/// The manager's limit: it lends so many together or none of them.
pub const AT_ONCE_MAX: usize = 64;
/// A pod that has ended may take a moment to let go.
const HOLDER_WAIT_MS: u32 = 1000;
