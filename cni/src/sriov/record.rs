//! What has to be known of an attachment's VF later. Each part is written before what it says is done.

use serde::{Deserialize, Serialize};

use super::Attributes;
use crate::mac::Mac;
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

/// The record of an attachment with a VF.
pub type VfAttachment = store::Record<VfRecord>;

/// Of the records' folder, and of a lock of a VF.
pub const KIND: &str = "vf";
