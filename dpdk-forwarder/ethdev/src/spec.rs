//! What a wire says of such an end.

use std::fmt;

#[cfg(not(no_dpdk))]
use ferrule_dataplane::port::external::DeviceError;

/// An end that is a DPDK device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EthdevSpec {
    /// Its devargs: `net_af_packet0,iface=eth1`, `0000:3b:02.1`.
    pub device: String,
    /// Queue pairs: queue *i* is joined with queue *i* of the other end.
    pub queues: u32,
    /// Its MTU; none: what the device has.
    pub mtu: Option<u32>,
}

impl EthdevSpec {
    /// A device with one queue.
    pub fn new(device: impl Into<String>) -> Self {
        Self { device: device.into(), queues: 1, mtu: None }
    }

    /// The name of the device, without its arguments.
    pub(crate) fn name(&self) -> &str {
        self.device.split(',').next().unwrap_or_default()
    }

    #[cfg(not(no_dpdk))]
    pub(crate) fn error(&self, tried: &str, reason: impl Into<String>, cure: impl Into<String>) -> DeviceError {
        let device = format!("DPDK device {}", self.name());
        DeviceError { tried: tried.to_owned(), device, reason: reason.into(), cure: cure.into() }
    }
}

impl fmt::Display for EthdevSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ethdev {}", self.device)
    }
}
