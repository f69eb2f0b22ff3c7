//! The VF of an end, made when its wire is made: borrowed, opened, looked after.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrule_dataplane::port::device::{Device, DeviceContext, MadeDevice};
use ferrule_dataplane::port::device_status::{DeviceStatus, LinkState};
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
    if vf.vendor == MELLANOX {
        let reason = format!(
            "{} is of NVIDIA (Mellanox), and DPDK polls these by the kernel's driver, not by vfio-pci",
            vf.address
        );
        return Err(spec.error("open", reason, "choose a VF of another NIC"));
    }
    let (port, rings) = open(eal, &vf.address, (spec.queues, spec.mtu), context).map_err(|error| {
        let cure = match error.call {
            POOL_CALL => RAISE_MEMORY,
            "rte_dev_probe" => {
                "see that DPDK's driver for it is installed, that its VFIO group may be opened, and that all of `dpdk.memory` may be locked \
                 (LimitMEMLOCK=infinity, or the capability IPC_LOCK)"
            }
            _ => "choose what the VF can, or another VF",
        };
        spec.error("open", format!("{} ({}): {}", error.call, vf.address, error.cause), cure)
    })?;
    let words = format!("{} of {} ({}), lease {name}", vf.address, vf.pf_name, port.driver());
    let (device, link) = (EthdevDevice::new(port, words), Mutex::new(LinkWatch::new(Instant::now())));
    Ok(MadeDevice { rings, device: Arc::new(VfDevice { device, link, _lease: lease }) })
}

/// It is closed before the lease may be given back: fields are dropped in their order.
struct VfDevice {
    device: EthdevDevice,
    link: Mutex<LinkWatch>,
    _lease: Lease,
}

impl Device for VfDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        let status = self.device.status()?;
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if link.is_to_be_opened_anew(status.link, Instant::now()) {
            return Err(NO_LINK.to_owned());
        }
        Ok(status)
    }

    fn set_link(&self, up: bool) {
        self.device.set_link(up);
    }
}

/// Tells of a VF that its PF was reset and that does not come back by itself: nobody may say so, and what is left of it is a link that is down. While
/// that is down nothing is lost by opening the VF anew.
struct LinkWatch {
    was_up: bool,
    down_since: Instant,
}

impl LinkWatch {
    fn new(now: Instant) -> Self {
        Self { was_up: false, down_since: now }
    }

    fn is_to_be_opened_anew(&mut self, link: LinkState, now: Instant) -> bool {
        match link {
            LinkState::Down => self.was_up || now.duration_since(self.down_since) >= DOWN_MAX,
            LinkState::Up => {
                (self.was_up, self.down_since) = (true, now);
                false
            }
            LinkState::Unknown => {
                self.down_since = now;
                false
            }
        }
    }
}

/// PCI vendor id.
const MELLANOX: u32 = 0x15b3;
/// Why it is closed.
const NO_LINK: &str = "its link is down, as after a reset of its PF: it is opened anew";
/// A VF that was opened while its PF was being reset may never have a link.
const DOWN_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vf_whose_link_goes_is_opened_anew_at_once_and_one_that_never_had_one_after_a_while() {
        let began = Instant::now();
        let mut link = LinkWatch::new(began);
        let mut look = |state, seconds| link.is_to_be_opened_anew(state, began + Duration::from_secs(seconds));
        assert!(!look(LinkState::Down, 1) && !look(LinkState::Down, 9) && look(LinkState::Down, 10));
        assert!(!look(LinkState::Unknown, 31), "we have brought it down");
        assert!(!look(LinkState::Down, 40) && look(LinkState::Down, 41));
        assert!(!look(LinkState::Up, 62) && look(LinkState::Down, 63));
    }
}
