//! What a PF decides about a VF, and what a lease may ask of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sriov_manager_client::v1;
use thiserror::Error;

pub use sriov_manager_client::mac::Mac;

/// A name of 64 bits that a fabric of InfiniBand knows a port or a device by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub u64);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i] = self.0.to_be_bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}:{h:02x}:{i:02x}")
    }
}

/// A VLAN that the NIC adds and takes away; id 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vlan {
    /// 0 to 4094.
    pub id: u16,
    /// Priority, 0 to 7.
    pub qos: u8,
    /// Its tag.
    pub protocol: VlanProtocol,
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} qos {} {}", self.id, self.qos, self.protocol.word())
    }
}

/// The tag of a VLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VlanProtocol {
    /// The usual one, 0x8100.
    #[default]
    #[serde(rename = "802.1q")]
    Dot1Q,
    /// Service tag, 0x88a8.
    #[serde(rename = "802.1ad")]
    Dot1Ad,
}

impl VlanProtocol {
    /// As people and files write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dot1Q => "802.1q",
            Self::Dot1Ad => "802.1ad",
        }
    }
}

/// Limits of what a VF may send, in Mbit/s; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// What it is sure of.
    pub min: u32,
    /// What it may not exceed.
    pub max: u32,
}

/// What a VF's link says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// What the PF's link says.
    #[default]
    Auto,
    /// Always up.
    Enable,
    /// Always down.
    Disable,
}

impl LinkState {
    /// As people and files write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Enable => "enable",
            Self::Disable => "disable",
        }
    }
}

/// What a lease asks of its VF. What is not asked for stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// The address that the VF is to have.
    pub mac: Option<Mac>,
    /// The VLAN that it is to be in; id 0: none.
    pub vlan: Option<Vlan>,
    /// What it may send.
    pub rate: Option<Rate>,
    /// Whether frames from another address are dropped.
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and be promiscuous.
    pub trust: Option<bool>,
    /// What its link says.
    pub link_state: Option<LinkState>,
    /// Bytes of a packet.
    pub mtu: Option<u32>,
}

impl Attributes {
    /// What becomes of it where `from` and `to` differ: as `to` says, unless somebody has changed it since it was as `from` says.
    #[must_use]
    pub fn changed(&self, from: &Self, to: &Self) -> Self {
        fn one<T: Copy + PartialEq>(is: Option<T>, from: Option<T>, to: Option<T>) -> Option<T> {
            if from != to && is == from { to } else { is }
        }
        Self {
            mac: one(self.mac, from.mac, to.mac),
            vlan: one(self.vlan, from.vlan, to.vlan),
            rate: one(self.rate, from.rate, to.rate),
            spoof_check: one(self.spoof_check, from.spoof_check, to.spoof_check),
            trust: one(self.trust, from.trust, to.trust),
            link_state: one(self.link_state, from.link_state, to.link_state),
            mtu: one(self.mtu, from.mtu, to.mtu),
        }
    }

    /// Everything that cannot be meant, in one go.
    pub fn check(&self) -> Result<(), AttributeError> {
        let mut wrong = Vec::new();
        if let Some(mac) = self.mac
            && !mac.is_unicast()
        {
            wrong.push(format!("mac {mac}: a unicast address that is not all zeros is wanted"));
        }
        if let Some(vlan) = self.vlan {
            if vlan.id > VLAN_ID_MAX {
                wrong.push(format!("vlan {}: 0 to {VLAN_ID_MAX} is wanted", vlan.id));
            }
            if vlan.qos > VLAN_QOS_MAX {
                wrong.push(format!("vlan qos {}: 0 to {VLAN_QOS_MAX} is wanted", vlan.qos));
            }
            if vlan.id == 0 && (vlan.qos != 0 || vlan.protocol != VlanProtocol::Dot1Q) {
                wrong.push("vlan 0 means none: it has neither qos nor protocol 802.1ad".to_owned());
            }
        }
        if let Some(Rate { min, max }) = self.rate
            && max != 0
            && min > max
        {
            wrong.push(format!("rate: min {min} is above max {max}"));
        }
        if let Some(mtu) = self.mtu
            && !(MTU_MIN..=MTU_MAX).contains(&mtu)
        {
            wrong.push(format!("mtu {mtu}: {MTU_MIN} to {MTU_MAX} is wanted"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(AttributeError(wrong.join("; "))) }
    }

    /// Where `self` says nothing, what `other` says.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            mac: self.mac.or(other.mac),
            vlan: self.vlan.or(other.vlan),
            rate: self.rate.or(other.rate),
            spoof_check: self.spoof_check.or(other.spoof_check),
            trust: self.trust.or(other.trust),
            link_state: self.link_state.or(other.link_state),
            mtu: self.mtu.or(other.mtu),
        }
    }

    /// Of `self`, what `other` speaks of too.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        Self {
            mac: self.mac.filter(|_| other.mac.is_some()),
            vlan: self.vlan.filter(|_| other.vlan.is_some()),
            rate: self.rate.filter(|_| other.rate.is_some()),
            spoof_check: self.spoof_check.filter(|_| other.spoof_check.is_some()),
            trust: self.trust.filter(|_| other.trust.is_some()),
            link_state: self.link_state.filter(|_| other.link_state.is_some()),
            mtu: self.mtu.filter(|_| other.mtu.is_some()),
        }
    }

    /// Whether the PF has to be told any of them.
    pub fn needs_pf(&self) -> bool {
        *self != Self { mtu: self.mtu, ..Self::default() }
    }
}

impl From<&Attributes> for v1::Attributes {
    fn from(attributes: &Attributes) -> Self {
        let vlan = |vlan: Vlan| {
            let protocol = match vlan.protocol {
                VlanProtocol::Dot1Q => v1::VlanProtocol::Dot1q,
                VlanProtocol::Dot1Ad => v1::VlanProtocol::Dot1ad,
            };
            v1::Vlan { id: vlan.id.into(), qos: vlan.qos.into(), protocol: protocol.into() }
        };
        let link_state = |state| match state {
            LinkState::Auto => v1::LinkState::Auto.into(),
            LinkState::Enable => v1::LinkState::Enable.into(),
            LinkState::Disable => v1::LinkState::Disable.into(),
        };
        v1::Attributes {
            mac: attributes.mac.map(|mac| mac.to_string()),
            vlan: attributes.vlan.map(vlan),
            rate: attributes.rate.map(|Rate { min, max }| v1::Rate { min, max }),
            spoof_check: attributes.spoof_check,
            trust: attributes.trust,
            link_state: attributes.link_state.map(link_state),
            mtu: attributes.mtu,
        }
    }
}

impl TryFrom<v1::Attributes> for Attributes {
    type Error = AttributeError;

    fn try_from(message: v1::Attributes) -> Result<Self, AttributeError> {
        let link_state = |state| -> Result<_, AttributeError> {
            Ok(match known("link state", state)? {
                v1::LinkState::Auto => LinkState::Auto,
                v1::LinkState::Enable => LinkState::Enable,
                v1::LinkState::Disable => LinkState::Disable,
            })
        };
        let vlan = |vlan: v1::Vlan| -> Result<_, AttributeError> {
            let protocol = match known("vlan protocol", vlan.protocol)? {
                v1::VlanProtocol::Dot1q => VlanProtocol::Dot1Q,
                v1::VlanProtocol::Dot1ad => VlanProtocol::Dot1Ad,
            };
            // What is out of range for the type is out of range for the check, which says it best.
            let (id, qos) = (u16::try_from(vlan.id).unwrap_or(u16::MAX), u8::try_from(vlan.qos).unwrap_or(u8::MAX));
            Ok(Vlan { id, qos, protocol })
        };
        Ok(Attributes {
            mac: message
                .mac
                .map(|mac| mac.parse().map_err(|error| AttributeError(format!("mac: {error}"))))
                .transpose()?,
            vlan: message.vlan.map(vlan).transpose()?,
            rate: message.rate.map(|v1::Rate { min, max }| Rate { min, max }),
            spoof_check: message.spoof_check,
            trust: message.trust,
            link_state: message.link_state.map(link_state).transpose()?,
            mtu: message.mtu,
        })
    }
}

/// What a newer client may mean is not guessed.
fn known<T: TryFrom<i32>>(what: &str, value: i32) -> Result<T, AttributeError> {
    T::try_from(value).map_err(|_| AttributeError(format!("{what}: {value} is none that this release knows")))
}

/// Something that cannot be meant.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct AttributeError(String);

/// What is known of what a PF says of a VF. The three cases are not alike: a VF of which nothing was told may be in a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfReport {
    /// The PF has no interface in this network namespace, so it cannot be asked.
    NoInterface,
    /// The PF told of others and not of this one now, and why.
    LeftOut(String),
    /// The PF did not tell of any now, and why.
    Untold(String),
    /// This.
    Told(VfState),
}

impl VfReport {
    /// What was told.
    pub fn told(&self) -> Option<&VfState> {
        match self {
            Self::Told(state) => Some(state),
            Self::NoInterface | Self::LeftOut(_) | Self::Untold(_) => None,
        }
    }
}

/// What a PF says of a VF. None: the driver does not tell, and cannot set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VfState {
    /// The address that the PF gave it, or that it gave itself.
    pub mac: Mac,
    /// The VLAN it is in.
    pub vlan: Vlan,
    /// What it may send.
    pub rate: Option<Rate>,
    /// Whether frames from another address are dropped.
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and be promiscuous.
    pub trust: Option<bool>,
    /// What its link says.
    pub link_state: Option<LinkState>,
}

/// One thing that a PF is told about a VF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfChange {
    /// Its address; all zeros: none.
    Mac(Mac),
    /// Its VLAN.
    Vlan(Vlan),
    /// What it may send.
    Rate(Rate),
    /// Whether frames from another address are dropped.
    SpoofCheck(bool),
    /// Whether it may change its address and be promiscuous.
    Trust(bool),
    /// What its link says.
    LinkState(LinkState),
}

impl VfState {
    /// What has to be told to get from `self` to what is wanted, in the order in which sriov-cni tells it. What is
    /// not wanted stays.
    pub fn towards(&self, wanted: &Attributes) -> Vec<VfChange> {
        let mut changes = Vec::new();
        changes.extend(change(Some(self.vlan), wanted.vlan).map(VfChange::Vlan));
        changes.extend(change(Some(self.mac), wanted.mac).map(VfChange::Mac));
        changes.extend(change(self.rate, wanted.rate).map(VfChange::Rate));
        changes.extend(change(self.spoof_check, wanted.spoof_check).map(VfChange::SpoofCheck));
        changes.extend(change(self.trust, wanted.trust).map(VfChange::Trust));
        changes.extend(change(self.link_state, wanted.link_state).map(VfChange::LinkState));
        changes
    }

    /// What a PF says once it was told something.
    pub fn change(&mut self, change: VfChange) {
        match change {
            VfChange::Mac(mac) => self.mac = mac,
            VfChange::Vlan(vlan) => self.vlan = vlan,
            VfChange::Rate(rate) => self.rate = Some(rate),
            VfChange::SpoofCheck(on) => self.spoof_check = Some(on),
            VfChange::Trust(on) => self.trust = Some(on),
            VfChange::LinkState(state) => self.link_state = Some(state),
        }
    }

    /// To go back to all of it.
    pub fn as_wanted(&self) -> Attributes {
        let Self { mac, vlan, rate, spoof_check, trust, link_state } = *self;
        Attributes { mac: Some(mac), vlan: Some(vlan), rate, spoof_check, trust, link_state, mtu: None }
    }
}

fn change<T: Copy + PartialEq>(current: Option<T>, wanted: Option<T>) -> Option<T> {
    // A driver that does not tell may still be able to: it is asked, and its refusal is told.
    if current == wanted { None } else { wanted }
}

impl fmt::Display for VfChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on: bool| if on { "on" } else { "off" };
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Vlan(vlan) => write!(f, "vlan {vlan}"),
            Self::Rate(Rate { min, max }) => write!(f, "rate min {min} max {max}"),
            Self::SpoofCheck(on) => write!(f, "spoof check {}", word(*on)),
            Self::Trust(on) => write!(f, "trust {}", word(*on)),
            Self::LinkState(state) => write!(f, "link state {}", state.word()),
        }
    }
}

/// 4095 is reserved (IEEE 802.1Q, 9.6).
const VLAN_ID_MAX: u16 = 4094;
/// Three bits (IEEE 802.1Q, 9.6).
const VLAN_QOS_MAX: u8 = 7;
/// `ETH_MIN_MTU` of linux/if_ether.h.
const MTU_MIN: u32 = 68;
/// `ETH_MAX_MTU` of linux/if_ether.h.
const MTU_MAX: u32 = 65535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let now = VfState { spoof_check: Some(true), trust: None, ..VfState::default() };
        assert_eq!(now.towards(&now.as_wanted()), []);
        let vlan = Vlan { id: 7, ..Vlan::default() };
        let asked = Attributes { vlan: Some(vlan), trust: Some(true), spoof_check: Some(true), ..Default::default() };
        assert_eq!(now.towards(&asked), [VfChange::Vlan(vlan), VfChange::Trust(true)]);
        let later = VfState { vlan, trust: Some(true), ..now.clone() };
        assert_eq!(later.towards(&now.as_wanted()), [VfChange::Vlan(Vlan::default())], "trust was never told");
    }

    #[test]
    fn everything_that_cannot_be_meant_is_named_at_once() {
        let asked = Attributes {
            mac: Some(Mac([1, 0, 0, 0, 0, 0])),
            vlan: Some(Vlan { id: 4095, qos: 8, ..Vlan::default() }),
            rate: Some(Rate { min: 2, max: 1 }),
            mtu: Some(60),
            ..Attributes::default()
        };
        let error = asked.check().unwrap_err().to_string();
        for part in ["mac 01:", "vlan 4095", "qos 8", "min 2 is above max 1", "mtu 60"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert_eq!(Attributes::default().check(), Ok(()));
    }
}
