//! What the PF says of a VF, as a lease asks for it and as a record keeps it.

use serde::{Deserialize, Serialize};
use sriov_manager_client::v1;

/// What a lease asks for. What is not there is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Its address.
    pub mac: Option<String>,
    /// Its VLAN.
    pub vlan: Option<Vlan>,
    /// What it may send.
    pub rate: Option<Rate>,
    /// Whether frames from other addresses are dropped.
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and be promiscuous.
    pub trust: Option<bool>,
    /// What its link says, as the API numbers it.
    pub link_state: Option<i32>,
    /// Of its interface.
    pub mtu: Option<u32>,
}

/// A VLAN that the NIC adds and takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan {
    /// 0: none.
    pub id: u32,
    /// Priority.
    pub qos: u32,
    /// As the API numbers it.
    pub protocol: i32,
}

/// Mbit/s; 0: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// What it is sure of.
    pub min: u32,
    /// What it may not exceed.
    pub max: u32,
}

impl Attributes {
    /// Where `self` says nothing, what `other` says.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            mac: self.mac.or_else(|| other.mac.clone()),
            vlan: self.vlan.or(other.vlan),
            rate: self.rate.or(other.rate),
            spoof_check: self.spoof_check.or(other.spoof_check),
            trust: self.trust.or(other.trust),
            link_state: self.link_state.or(other.link_state),
            mtu: self.mtu.or(other.mtu),
        }
    }
}

impl From<v1::Attributes> for Attributes {
    fn from(told: v1::Attributes) -> Self {
        Self {
            mac: told.mac,
            vlan: told.vlan.map(|v1::Vlan { id, qos, protocol }| Vlan { id, qos, protocol }),
            rate: told.rate.map(|v1::Rate { min, max }| Rate { min, max }),
            spoof_check: told.spoof_check,
            trust: told.trust,
            link_state: told.link_state,
            mtu: told.mtu,
        }
    }
}

impl From<Attributes> for v1::Attributes {
    fn from(asked: Attributes) -> Self {
        Self {
            mac: asked.mac,
            vlan: asked.vlan.map(|Vlan { id, qos, protocol }| v1::Vlan { id, qos, protocol }),
            rate: asked.rate.map(|Rate { min, max }| v1::Rate { min, max }),
            spoof_check: asked.spoof_check,
            trust: asked.trust,
            link_state: asked.link_state,
            mtu: asked.mtu,
        }
    }
}
