//! What a wire says of an end that is a VF.

use std::fmt;

use ferrule_dataplane::port::device::{DeviceContext, MadeDevice};
use ferrule_dataplane::port::external::{DeviceError, ExternalPort};
use ferrule_dataplane::spec::{FieldError, MacAddress};

use crate::port::check_queues_and_mtu;

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

impl ExternalPort for VfSpec {
    fn kind(&self) -> &'static str {
        "vf"
    }

    fn identity(&self) -> Option<String> {
        self.address.as_ref().map(|address| format!("vf {address}"))
    }

    fn is_same(&self, other: &dyn ExternalPort) -> bool {
        other.downcast_ref() == Some(self)
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(address) = &self.address
            && !is_pci_address(address)
        {
            let problem = format!("`{}`; a PCI address as in `0000:3b:02.1` is wanted", address.escape_debug());
            errors.push(FieldError::new("address", problem));
        }
        if self.address.is_none() && self.pools.is_empty() {
            errors
                .push(FieldError::new("pool", "missing; a pool of sriov-manager is wanted, or the `address` of a VF"));
        }
        if self.pools.len() > POOLS_MAX {
            errors.push(FieldError::new("pool", format!("{} pools; {POOLS_MAX} are possible", self.pools.len())));
        }
        if self.pools.iter().any(String::is_empty) {
            errors.push(FieldError::new("pool", "a pool has a name"));
        }
        if let Some(vlan) = self.attributes.vlan.filter(|vlan| !(1..=VLAN_MAX).contains(vlan)) {
            errors.push(FieldError::new("vlan", format!("{vlan}; 1 to {VLAN_MAX} are possible")));
        }
        check_queues_and_mtu(self.queues, self.mtu, &mut errors);
        errors
    }

    #[cfg(not(no_dpdk))]
    fn make(&self, context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        super::device::make(self, context)
    }

    #[cfg(no_dpdk)]
    fn make(&self, _context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        Err(crate::port::built_without(self.to_string()))
    }
}

/// `0000:3b:02.1`: that of the kernel, in full, by which DPDK and the manager know it.
fn is_pci_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_form = |(place, byte): (usize, &u8)| match place {
        4 | 7 => *byte == b':',
        10 => *byte == b'.',
        11 => (b'0'..=b'7').contains(byte),
        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
    };
    bytes.len() == 12 && bytes.iter().enumerate().all(is_form)
}

/// As many may be named in a request.
const POOLS_MAX: usize = 16;
const VLAN_MAX: u16 = 4094;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_an_end_is_said_of_each_field() {
        let good = [VfSpec::of_pool("fast"), VfSpec { queues: 4, mtu: Some(9000), ..VfSpec::at("0000:3b:02.1") }];
        assert!(good.iter().all(|spec| spec.check().is_empty()));
        let attributes = VfAttributes { vlan: Some(4095), ..VfAttributes::default() };
        let wrong = [
            VfSpec { attributes, mtu: Some(1), queues: 0, ..VfSpec::at("3b:02.1") },
            VfSpec { pools: Vec::new(), ..VfSpec::of_pool("") },
            VfSpec::of_pool(""),
            VfSpec { pools: vec!["a".to_owned(); 17], ..VfSpec::of_pool("") },
        ];
        let told: Vec<_> =
            wrong.iter().flat_map(VfSpec::check).map(|error| format!("{}: {}", error.field, error.problem)).collect();
        let wanted = [
            "address: `3b:02.1`; a PCI address as in `0000:3b:02.1` is wanted",
            "vlan: 4095; 1 to 4094 are possible",
            "queues: 0 queues; 1 to 256 are possible",
            "mtu: 1; 68 to 65000 are possible",
            "pool: missing; a pool of sriov-manager is wanted, or the `address` of a VF",
            "pool: a pool has a name",
            "pool: 17 pools; 16 are possible",
        ];
        assert_eq!(told, wanted);
        assert!(
            ["0000:3B:02.1", "0000:3b:02.8", "0000-3b:02.1", "0000:3b:02,1", "0000:3b:02.10"]
                .iter()
                .all(|text| !is_pci_address(text))
        );
    }

    #[test]
    fn two_vfs_of_a_pool_are_two_vfs() {
        let [of_pool, at] = [VfSpec::of_pool("fast"), VfSpec::at("0000:3b:02.1")];
        assert_eq!((of_pool.identity(), at.identity().as_deref()), (None, Some("vf 0000:3b:02.1")));
        assert!(at.is_same(&at.clone()) && !at.is_same(&of_pool));
        let two = VfSpec { pools: vec!["fast".into(), "spare".into()], ..of_pool };
        assert_eq!((two.to_string(), at.to_string()), ("vf of pool fast or spare".into(), "vf 0000:3b:02.1".into()));
    }
}
