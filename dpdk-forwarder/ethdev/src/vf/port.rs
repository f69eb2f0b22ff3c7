//! Such an end as the engine sees it: a kind of ports of another crate.

use ferrule_dataplane::port::device::{DeviceContext, MadeDevice};
use ferrule_dataplane::port::external::{DeviceError, ExternalPort};
use ferrule_dataplane::spec::FieldError;

use super::spec::VfSpec;
use crate::address::{pci_address, pci_identity};
#[cfg(no_dpdk)]
use crate::port::built_without;
use crate::port::check_queues_and_mtu;

impl ExternalPort for VfSpec {
    fn kind(&self) -> &'static str {
        "vf"
    }

    fn identity(&self) -> Option<String> {
        self.address.as_deref().map(pci_identity)
    }

    fn is_same(&self, other: &dyn ExternalPort) -> bool {
        other.downcast_ref() == Some(self)
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        // In full, as DPDK and the manager know it.
        if let Some(address) = &self.address
            && pci_address(address).as_ref() != Some(address)
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

    fn takes_offloads(&self) -> bool {
        true
    }

    #[cfg(not(no_dpdk))]
    fn make(&self, context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        super::device::make(self, context)
    }

    #[cfg(no_dpdk)]
    fn make(&self, _context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        Err(built_without(self.to_string()))
    }
}

/// As many may be named in a request.
const POOLS_MAX: usize = 16;
const VLAN_MAX: u16 = 4094;

#[cfg(test)]
mod tests {
    use super::super::spec::VfAttributes;
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
                .all(|text| VfSpec::at(*text).check().len() == 1)
        );
    }

    #[test]
    fn two_vfs_of_a_pool_are_two_vfs() {
        let [of_pool, at] = [VfSpec::of_pool("fast"), VfSpec::at("0000:3b:02.1")];
        assert_eq!((of_pool.identity(), at.identity().as_deref()), (None, Some("PCI device 0000:3b:02.1")));
        assert!(at.is_same(&at.clone()) && !at.is_same(&of_pool));
        let two = VfSpec { pools: vec!["fast".into(), "spare".into()], ..of_pool };
        assert_eq!((two.to_string(), at.to_string()), ("vf of pool fast or spare".into(), "vf 0000:3b:02.1".into()));
    }
}
