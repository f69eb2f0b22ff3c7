//! The VF of an end, made when its wire is made: borrowed, opened, looked after.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::device::{Device, DeviceContext, MadeDevice};
use ferrule_dataplane::port::device_status::DeviceStatus;
use ferrule_dataplane::port::external::DeviceError;

use super::leases::{Lease, LeaseError, lease_name, leases};
use super::link_watch::{LinkWatch, tells_resets};
use super::spec::VfSpec;
use crate::device::{EthdevDevice, POOL_CALL, RAISE_MEMORY, open};
use crate::settings::start;

/// Borrows it, and polls it.
pub(super) fn make(spec: &VfSpec, context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
    // First: a VF that cannot be polled is not borrowed.
    let eal = start().map_err(|error| spec.error("make", error.to_string(), error.cure()))?;
    let name = lease_name(&context.wire, context.end);
    let refused = |tried: &'static str| move |error: LeaseError| spec.error(tried, error.to_string(), error.cure());
    let (lease, vf) = leases().borrow(&name, spec).map_err(refused("borrow"))?;
    let open = || open(eal, &vf.address, (spec.queues, spec.mtu), context);
    let opened = match open() {
        // The manager has looked whether somebody holds it.
        Err(error) if error.cause.contains(BUSY) => {
            thread::sleep(BUSY_PAUSE);
            open()
        }
        opened => opened,
    };
    let (port, rings) = opened.map_err(|error| {
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
    if let Err(error) = lease.check(&vf.address) {
        drop(rings);
        drop(port);
        return Err(refused("keep")(error));
    }
    let words = format!("{} of {} ({}), lease {name}", vf.address, vf.pf_name, port.driver());
    let link = (!tells_resets(port.driver())).then(|| Mutex::new(LinkWatch::new(Instant::now(), lease.link_wait())));
    Ok(MadeDevice { rings, device: Arc::new(VfDevice { device: EthdevDevice::new(port, words), link, lease }) })
}

/// It is closed before the lease may be given back: fields are dropped in their order.
struct VfDevice {
    device: EthdevDevice,
    /// If its driver does not say that its PF was reset.
    link: Option<Mutex<LinkWatch>>,
    lease: Lease,
}

impl Device for VfDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        let status = self.device.status()?;
        let Some(link) = &self.link else { return Ok(status) };
        let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
        if link.is_to_be_opened_anew(status.link, Instant::now()) {
            self.lease.set_link_wait(link.next_wait());
            return Err(NO_LINK.to_owned());
        }
        Ok(status)
    }

    fn set_link(&self, up: bool) {
        self.device.set_link(up);
    }
}

/// As the kernel says it, in what DPDK says.
const BUSY: &str = "Device or resource busy";
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Why it is closed.
const NO_LINK: &str = "its link is down, as after a reset of its PF: it is opened anew";
