//! The VF of an end, made when its wire is made: borrowed, opened, looked after.

use std::sync::Arc;

use ferrule_dataplane::port::device::{Device, DeviceContext, MadeDevice};
use ferrule_dataplane::port::device_status::DeviceStatus;
use ferrule_dataplane::port::external::DeviceError;

use super::leases::{Lease, lease_name, leases};
use super::spec::VfSpec;
use crate::device::{EthdevDevice, POOL_CALL, RAISE_MEMORY, open};
use crate::settings::start;

/// Borrows it, and polls it.
pub(super) fn make(spec: &VfSpec, context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
    // First: a VF that cannot be polled is not borrowed.
    let eal = start().map_err(|error| spec.error("make", error.to_string(), error.cure()))?;
    let name = lease_name(&context.wire, context.end);
    let borrowed = leases().borrow(&name, spec);
    let (lease, vf) = borrowed.map_err(|error| spec.error("borrow", error.to_string(), error.cure()))?;
    let (port, rings) = open(eal, &vf.address, (spec.queues, spec.mtu), context).map_err(|error| {
        let cure = match error.call {
            POOL_CALL => RAISE_MEMORY,
            "rte_dev_probe" => "see that DPDK's driver for it is installed, and that its VFIO group may be opened",
            _ => "choose what the VF can, or another VF",
        };
        spec.error("open", format!("{} ({}): {}", error.call, vf.address, error.cause), cure)
    })?;
    let words = format!("{} of {} ({}), lease {name}", vf.address, vf.pf_name, port.driver());
    Ok(MadeDevice { rings, device: Arc::new(VfDevice { device: EthdevDevice::new(port, words), _lease: lease }) })
}

/// It is closed before the lease may be given back: fields are dropped in their order.
struct VfDevice {
    device: EthdevDevice,
    _lease: Lease,
}

impl Device for VfDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        self.device.status()
    }

    fn set_link(&self, up: bool) {
        self.device.set_link(up);
    }
}
