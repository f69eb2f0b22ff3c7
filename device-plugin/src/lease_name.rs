//! What leases of ours are called: after what a pod has, so that whoever starts again finds it in the manager's journal.

use std::fmt;

use sriov_manager_client::v1;

/// The name of a lease of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseName {
    /// By which a pod has it.
    pub resource: String,
    /// Its address.
    pub device: String,
}

impl LeaseName {
    /// Of a device of a resource.
    pub fn new(resource: &str, device: &str) -> Self {
        Self { resource: resource.to_owned(), device: device.to_owned() }
    }

    /// None: it is not one of ours.
    pub fn parse(lease: &v1::Lease) -> Option<Self> {
        let (resource, device) = lease.id.rsplit_once('@').filter(|_| lease.owner == OWNER)?;
        Some(Self::new(resource, device))
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.resource, self.device)
    }
}

/// The owner of our claim, and of our leases.
pub const OWNER: &str = "device-plugin";
