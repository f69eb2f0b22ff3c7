//! A TAP interface as a device.

use std::sync::Arc;

use ferrule_ffi::tap::Tap;

use super::TapInterface;
use crate::port::Fault;
use crate::port::any::LaneEnd;
use crate::port::device::{Device, DeviceContext, DeviceSpec, MadeDevice};
use crate::spec::KernelSpec;
use crate::status::DeviceStatus;

/// The interface. Its rings have it too, and it goes when the last of them is dropped.
struct TapDevice(Arc<Tap>);

impl Device for TapDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        if self.0.is_gone() {
            return Err(Fault::InterfaceGone(libc::EBADFD).to_string());
        }
        Ok(DeviceStatus::default())
    }

    fn set_link(&self, up: bool) {
        // It fails only when the interface is gone, which its lane finds out.
        let _ = self.0.set_carrier(up);
    }

    fn answers_at_once(&self) -> bool {
        true
    }
}

impl DeviceSpec for KernelSpec {
    /// An interface whose frames we finish where the kernel leaves something undone: its other end is in userspace.
    fn make(&self, _context: &DeviceContext) -> Result<MadeDevice, String> {
        let TapInterface { tap, .. } = TapInterface::create(self).map_err(|error| error.to_string())?;
        tap.set_offloads(true).map_err(|error| format!("let {} leave offloads to us: {error}", self.name))?;
        let tap = Arc::new(tap);
        let rings = LaneEnd::tap(&tap);
        Ok(MadeDevice { device: Arc::new(TapDevice(tap)), rings })
    }

    fn is_made_by_kernel(&self) -> bool {
        true
    }

    /// An interface goes with its namespace, and whoever makes that again has the interface made again too.
    fn comes_back(&self) -> bool {
        false
    }

    fn share(&self) -> Arc<dyn DeviceSpec> {
        Arc::new(self.clone())
    }
}
