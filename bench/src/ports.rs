//! Two ports that DPDK drives: the generator sends on one and receives on the other.
//!
//! DPDK is loaded when such ports are asked for, and not before. Where this was built without it, [`PortPair`] is never made.

#[cfg(has_dpdk)]
mod clock;
#[cfg(has_dpdk)]
mod dpdk;
#[cfg(not(has_dpdk))]
mod without;

use ferrule_dataplane::spec::MacAddress;
use thiserror::Error;

#[cfg(has_dpdk)]
pub(crate) use dpdk::{MISSING, PortPair, VERSION};
#[cfg(not(has_dpdk))]
pub(crate) use without::{MISSING, NoPorts as PortPair, VERSION};

/// What is asked of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSetup {
    /// Their devargs: a PCI address, or a driver of DPDK with its arguments.
    pub devices: [String; 2],
    /// Queue pairs of each: one for each thread.
    pub queues: u16,
    /// Their MTU; none: what they have.
    pub mtu: Option<u16>,
    /// Whether frames are to say by the NIC's clock when they arrived, if it can. Some drivers receive more slowly then.
    pub stamps: bool,
    /// How DPDK is started.
    pub dpdk: DpdkStart,
}

/// How DPDK is started, here and in a forwarder that is started for the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DpdkStart {
    /// Memory for the frames of all ports, in MiB.
    pub memory_mib: u32,
    /// Whether it lies in hugepages.
    pub hugepages: bool,
}

/// What a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortInfo {
    /// Its devargs.
    pub device: String,
    /// Its driver.
    pub driver: String,
    /// In Mbit/s, if its driver knows.
    pub speed_mbps: Option<u32>,
    pub mac: MacAddress,
    /// The NUMA node that it is on.
    pub numa_node: Option<u32>,
    pub queues: u16,
    pub is_promiscuous: bool,
    /// Whether its frames can say by its clock when they arrived, if that was asked for.
    pub has_clock: bool,
}

impl PortInfo {
    /// What a line of its speed carries, in bits a second. What drivers of software devices say is no limit of theirs.
    pub fn line(&self) -> Option<f64> {
        if is_software(&self.device) { None } else { self.speed_mbps.map(|mbps| f64::from(mbps) * 1e6) }
    }

    /// In a few words.
    pub fn words(&self) -> String {
        let speed = match (is_software(&self.device), self.speed_mbps) {
            (true, _) => ", a software device".to_owned(),
            (false, Some(mbps)) => format!(", {} Gbit/s", f64::from(mbps) / 1e3),
            (false, None) => ", of unknown speed".to_owned(),
        };
        let node = self.numa_node.map(|node| format!(", NUMA node {node}")).unwrap_or_default();
        let Self { device, driver, mac, queues, .. } = self;
        let all = if self.is_promiscuous { "" } else { ", its own address only" };
        let clock = if self.has_clock { ", a clock that stamps what arrives" } else { "" };
        format!("{device} ({driver}){speed}, MAC {mac}{node}, {queues} queue(s){all}{clock}")
    }
}

/// Whether devargs name a device of DPDK's own, and not one on a bus.
pub(crate) fn is_software(devargs: &str) -> bool {
    devargs.starts_with("net_")
}

/// Why there are no ports.
#[derive(Debug, Error)]
pub enum PortsError {
    /// It cannot drive ports at all.
    #[error(
        "this ferrule was built without DPDK ({0}); install dpdk-dev, libclang-dev and pkgconf, and build it again with `cargo build --release -p ferrule`"
    )]
    BuiltWithout(&'static str),
    /// DPDK does not start.
    #[error("{reason}; {cure}")]
    Start {
        /// Why.
        reason: String,
        /// What helps.
        cure: String,
    },
    /// A port cannot be opened.
    #[error("open port {device}: {reason}; {cure}")]
    Open {
        /// Which.
        device: String,
        /// Why not.
        reason: String,
        /// What helps.
        cure: &'static str,
    },
    /// Its link does not come up.
    #[error(
        "the link of port {device} is down after {seconds} s; look at cable, transceiver, FEC and at the port at its other end, which has to be up"
    )]
    Link {
        /// Which.
        device: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Somebody wanted that.
    #[error("interrupted")]
    Cancelled,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_on_a_bus_has_a_line() {
        let port = |device: &str| PortInfo {
            device: device.to_owned(),
            driver: "d".to_owned(),
            speed_mbps: Some(25_000),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            numa_node: Some(1),
            queues: 2,
            is_promiscuous: false,
            has_clock: device != "net_ring0",
        };
        assert_eq!(port("0000:3b:00.0").line(), Some(25e9));
        assert_eq!(port("net_ring0").line(), None);
        let words = port("0000:3b:00.0").words();
        assert_eq!(
            words,
            "0000:3b:00.0 (d), 25 Gbit/s, MAC 02:00:00:00:00:01, NUMA node 1, 2 queue(s), its own address only, a clock that stamps what \
             arrives"
        );
        assert!(port("net_ring0").words().contains("a software device"));
    }
}
