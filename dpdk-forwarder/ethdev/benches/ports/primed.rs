//! Devices that begin with frames on their way.

use std::any::Any;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::device::{Device, DeviceContext, MadeDevice};
use ferrule_dataplane::port::device_status::DeviceStatus;
use ferrule_dataplane::port::external::{DeviceError, ExternalPort};
use ferrule_dataplane::port::{Fault, Frame, Moved, Source, Target};
use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::eal::{Eal, EalSettings};
use ferrule_dpdk::port::Port;
use ferrule_ethdev::queue::{EthdevSource, EthdevTarget};
use ferrule_ffi::span::Span;

/// A device with as many frames on their way as testpmd begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primed {
    /// Its devargs.
    pub device: String,
}

impl fmt::Display for Primed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "primed {}", self.device)
    }
}

impl ExternalPort for Primed {
    fn kind(&self) -> &'static str {
        "primed"
    }

    fn identity(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn is_same(&self, other: &dyn ExternalPort) -> bool {
        other.downcast_ref() == Some(self)
    }

    fn make(&self, _context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        let failed = |reason: String| DeviceError {
            tried: "make".to_owned(),
            device: self.to_string(),
            reason,
            cure: "look at the reason".to_owned(),
        };
        let eal = Eal::start(EalSettings::default()).map_err(|error| failed(error.to_string()))?;
        let opened = Port::open(eal, &self.device, &PortConfig::default(), Arc::new(|_| {}));
        let (port, mut queues) = opened.map_err(|error| failed(error.to_string()))?;
        let (rx, mut tx) = queues.remove(0);
        let frame = [0x5a; 64];
        for _ in 0..FIRST / BURST {
            tx.store_run(&[Span::from(&frame[..]); BURST]);
            tx.flush();
        }
        let target: Box<dyn Target + Send> = Box::new(EthdevTarget::new(tx));
        let rings = LaneEnd::external([(Box::new(KeepingSource(EthdevSource::new(rx))) as _, target)]);
        Ok(MadeDevice { rings, device: Arc::new(PrimedDevice { _port: port }) })
    }
}

struct PrimedDevice {
    _port: Arc<Port>,
}

impl Device for PrimedDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        Ok(DeviceStatus::default())
    }
}

/// What comes from a device, also what came before its wire was there.
struct KeepingSource(EthdevSource);

impl Source for KeepingSource {
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.0.refresh()
    }

    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        self.0.peek(gather)
    }

    #[inline]
    fn move_to(&mut self, target: &mut dyn Any) -> Option<Moved> {
        self.0.move_to(target)
    }

    fn advance(&mut self, slots: u32) {
        self.0.advance(slots);
    }

    fn release(&mut self) {
        self.0.release();
    }

    fn enable_notify(&mut self, _wanted: bool) {}

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn must_poll(&self) -> bool {
        true
    }
}

/// Frames in each device at the beginning.
pub const FIRST: usize = 256;
const BURST: usize = 32;
