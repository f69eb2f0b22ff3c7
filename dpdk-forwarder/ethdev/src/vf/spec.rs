//! What a wire says of an end that is a VF.

use std::fmt;

#[cfg(not(no_dpdk))]
use ferrule_dataplane::port::external::DeviceError;
use ferrule_dataplane::spec::MacAddress;

/// An end that is a VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfSpec {
    /// Its PCI address; none: any of the pools.
    pub address: Option<String>,
    /// Pools, of which the first that has a VF lends one. With an address: it is lent by the rules of the first that it is in.
    pub pools: Vec<String>,
    /// Queue pairs: queue *i* is joined with queue *i* of the other end.
    pub queues: u32,
    /// Its MTU; none: what the VF has.
    pub mtu: Option<u32>,
    /// What its PF is told of it.
    pub attributes: VfAttributes,
}

/// What a PF is told of a VF; none: it stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VfAttributes {
    /// Its address. A VF receives what is for its own address, so it has to be that of whoever is at the other end, unless its
    /// NIC lets it be promiscuous.
    pub mac: Option<MacAddress>,
    /// The VLAN that its NIC tags its frames with, and takes the tag from.
    pub vlan: Option<u16>,
    /// Whether it may change its address and be promiscuous.
    pub trust: Option<bool>,
    /// Whether it may only send from its own address.
    pub spoof_check: Option<bool>,
}

impl VfSpec {
    /// A VF of a pool, with one queue.
    pub fn of_pool(pool: impl Into<String>) -> Self {
        Self { address: None, pools: vec![pool.into()], queues: 1, mtu: None, attributes: VfAttributes::default() }
    }

    /// The VF of this address, with one queue.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), pools: Vec::new(), ..Self::of_pool("") }
    }

    #[cfg(not(no_dpdk))]
    pub(crate) fn error(&self, tried: &str, reason: impl Into<String>, cure: impl Into<String>) -> DeviceError {
        DeviceError { tried: tried.to_owned(), device: self.to_string(), reason: reason.into(), cure: cure.into() }
    }
}

impl fmt::Display for VfSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "vf {address}"),
            None => write!(f, "vf of pool {}", self.pools.join(" or ")),
        }
    }
}
