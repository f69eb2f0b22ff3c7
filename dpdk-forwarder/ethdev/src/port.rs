//! Such an end as the engine sees it: a kind of ports of another crate.

use ferrule_dataplane::port::device::{DeviceContext, MadeDevice};
use ferrule_dataplane::port::external::{DeviceError, ExternalPort};
use ferrule_dataplane::spec::FieldError;

use crate::address::{pci_address, pci_identity};
use crate::devargs;
use crate::spec::EthdevSpec;

/// What was missing when this was built, if anything was: then no such end can be made.
#[cfg(feature = "dpdk")]
pub const MISSING: Option<&str> = ferrule_dpdk::MISSING;
/// What was missing when this was built.
#[cfg(not(feature = "dpdk"))]
pub const MISSING: Option<&str> = Some("its feature `dpdk` was off");

impl ExternalPort for EthdevSpec {
    fn kind(&self) -> &'static str {
        "ethdev"
    }

    fn identity(&self) -> Option<String> {
        Some(
            pci_address(self.name())
                .map_or_else(|| format!("DPDK device {}", self.name()), |address| pci_identity(&address)),
        )
    }

    fn is_same(&self, other: &dyn ExternalPort) -> bool {
        other.downcast_ref() == Some(self)
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Err(problem) = devargs::check(&self.device) {
            errors.push(FieldError::new("device", problem));
        }
        check_queues_and_mtu(self.queues, self.mtu, &mut errors);
        errors
    }

    /// Of a device that has such a thing, its driver decides. To others a guest had better send finished frames.
    fn takes_offloads(&self) -> bool {
        pci_address(self.name()).is_some() || FINISH.iter().any(|driver| self.name().starts_with(driver))
    }

    #[cfg(not(no_dpdk))]
    fn make(&self, context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        crate::device::make(self, context)
    }

    #[cfg(no_dpdk)]
    fn make(&self, _context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        Err(built_without(format!("DPDK device {}", self.name())))
    }
}

/// What is wrong with the queues and the MTU of a device, whatever it is.
pub(crate) fn check_queues_and_mtu(queues: u32, mtu: Option<u32>, errors: &mut Vec<FieldError>) {
    if !(1..=QUEUES_MAX).contains(&queues) {
        errors.push(FieldError::new("queues", format!("{queues} queues; 1 to {QUEUES_MAX} are possible")));
    }
    if let Some(mtu) = mtu
        && !(MTU_MIN..=MTU_MAX).contains(&mtu)
    {
        errors.push(FieldError::new("mtu", format!("{mtu}; {MTU_MIN} to {MTU_MAX} are possible")));
    }
}

/// Why a device is not made.
#[cfg(no_dpdk)]
pub(crate) fn built_without(device: String) -> DeviceError {
    DeviceError {
        tried: "make".to_owned(),
        device,
        reason: format!("this forwarder was built without DPDK: {}", MISSING.unwrap_or_default()),
        cure: "build it where libdpdk (22.11 or newer), pkg-config and libclang are installed".to_owned(),
    }
}

/// Drivers of software devices that finish frames.
const FINISH: [&str; 1] = ["net_tap"];
/// As many as a wire can have.
const QUEUES_MAX: u32 = 256;
/// The shortest MTU (RFC 791).
const MTU_MIN: u32 = 68;
/// A frame has to fit into one buffer.
const MTU_MAX: u32 = 65_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_an_end_is_said_of_each_field() {
        let good = EthdevSpec { mtu: Some(9000), ..EthdevSpec::new("net_null0,size=64") };
        assert_eq!(good.check(), []);
        let wrong = EthdevSpec { device: ",x y".to_owned(), queues: 0, mtu: Some(67) };
        let told: Vec<_> =
            wrong.check().into_iter().map(|error| format!("{}: {}", error.field, error.problem)).collect();
        let wanted = [
            "device: `,x y`; devargs have no spaces",
            "queues: 0 queues; 1 to 256 are possible",
            "mtu: 67; 68 to 65000 are possible",
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn two_ends_are_one_device_if_their_names_are_equal_and_the_same_end_if_all_is() {
        let ends = ["net_null0,size=64", "net_null0", "net_null01"].map(EthdevSpec::new);
        let identity = Some("DPDK device net_null0".to_owned());
        assert_eq!(ends.each_ref().map(ExternalPort::identity)[..2], [identity.clone(), identity]);
        assert_ne!(ends[1].identity(), ends[2].identity());
        for address in ["0000:3b:02.1", "3b:02.1", "0000:3B:02.1,x=1"] {
            assert_eq!(EthdevSpec::new(address).identity(), crate::VfSpec::at("0000:3b:02.1").identity(), "{address}");
        }
        assert!(ends[0].is_same(&ends[0].clone()) && !ends[0].is_same(&ends[1]));
        assert_eq!(ends[0].to_string(), "ethdev net_null0,size=64");
    }
}
