//! What has to be known of an attachment's VF later. Each part is written before what it says is done.

use serde::{Deserialize, Serialize};
use sriov_manager_client::mac::Mac;
use sriov_manager_client::v1::Attributes;

use crate::store;

/// What was done with a VF, or was about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfRecord {
    /// Its address on the bus.
    pub device: String,
    /// What was asked of the manager.
    pub lease: LeaseRecord,
    /// The interface that was moved; none: not yet, or it has none.
    pub interface: Option<InterfaceRecord>,
}

/// A lease, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Its name.
    pub id: String,
    /// When it began: the next one has the same name.
    pub since: u64,
    /// It is of this attachment alone: nobody had lent the VF.
    pub is_own: bool,
    /// What it asked for before.
    pub before: Attributes,
    /// What it asks for now.
    pub asked: Attributes,
}

/// An interface, as it was on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRecord {
    /// What it was called.
    pub name: String,
    /// Its address.
    pub mac: Option<Mac>,
    /// Bytes of a packet.
    pub mtu: u32,
    /// Whether it was set up.
    pub is_up: bool,
    /// Its address in the container.
    pub pod_mac: Option<Mac>,
}

/// What the lease of an attachment is called that has borrowed its VF itself.
pub fn lease_id(container: &str, interface: &str) -> String {
    format!("{LEASES}{container}/{interface}")
}

/// The record of an attachment with a VF.
pub type VfAttachment = store::Record<VfRecord>;

/// What names of leases of attachments begin with.
pub const LEASES: &str = "cni/";
/// Of the records' folder, and of a lock of a VF.
pub const KIND: &str = "vf";
