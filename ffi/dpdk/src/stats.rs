//! What a port tells of itself while it runs.

use std::collections::BTreeMap;
use std::mem::zeroed;
use std::ptr::null_mut;

use ferrule_dpdk_sys::{ferrule_link, rte_eth_stats, rte_eth_xstat, rte_eth_xstat_name};

use crate::error::PortError;
use crate::interface::Interface;
use crate::port::Port;

/// What a port does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// Whether its link is up, if its driver knows.
    pub link_is_up: Option<bool>,
    /// The speed of it in Mbit/s, if the driver knows.
    pub speed_mbps: Option<u32>,
    /// Its MTU.
    pub mtu: u16,
    /// The NUMA node that it is on, if it is on one.
    pub numa_node: Option<u32>,
}

impl Port {
    /// Whether the device is there.
    ///
    /// # Errors
    /// It is gone.
    pub fn check_presence(&self) -> Result<(), PortError> {
        // SAFETY: it asks the driver, for a port that is there until `self` is dropped.
        let removed = self.call("rte_eth_dev_is_removed", |dpdk| unsafe { dpdk.rte_eth_dev_is_removed(self.id()) })?;
        if removed != 0 {
            return Err(PortError::new(self.device(), "rte_eth_dev_is_removed", "the device was removed".to_owned()));
        }
        if self.interface.as_ref().is_some_and(Interface::is_gone) {
            return Err(PortError::new(self.device(), "the interface", "it is gone".to_owned()));
        }
        Ok(())
    }

    /// Its link, MTU and node.
    ///
    /// # Errors
    /// Its driver does not answer now.
    pub fn status(&self) -> Result<PortStatus, PortError> {
        let mut link = ferrule_link { speed: 0, is_up: 0 };
        // SAFETY: the port is there, and there is room for the answer.
        let asked =
            self.call("rte_eth_link_get_nowait", |dpdk| unsafe { dpdk.ferrule_link_get(self.id(), &raw mut link) });
        let knows_link = match asked {
            Err(error) if error.is_unsupported() => false,
            told => told.map(|_| true)?,
        };
        let mut mtu = 0;
        // SAFETY: as above.
        self.call("rte_eth_dev_get_mtu", |dpdk| unsafe { dpdk.rte_eth_dev_get_mtu(self.id(), &raw mut mtu) })?;
        // SAFETY: it reads a number, for any port.
        let node = unsafe { self.dpdk().rte_eth_dev_socket_id(self.id()) };
        Ok(PortStatus {
            link_is_up: knows_link.then_some(link.is_up != 0),
            speed_mbps: Some(link.speed).filter(|&speed| speed != 0 && speed != u32::MAX),
            mtu,
            numa_node: u32::try_from(node).ok(),
        })
    }

    /// Its counters: what it did not take (`tx_refused`) and what nobody could take of it (`rx_refused`), those that every port has, and its
    /// driver's own (`xstats`), which begin with `x_`. Only the first two, if its driver counts nothing.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>, PortError> {
        let refused = [("rx_refused", self.rx_refused()), ("tx_refused", self.tx_refused())];
        let refused = refused.map(|(name, value)| (name.to_owned(), value));
        // SAFETY: of numbers.
        let mut stats: rte_eth_stats = unsafe { zeroed() };
        // SAFETY: the port is there until `self` is dropped, and there is room for the answer.
        match self.call("rte_eth_stats_get", |dpdk| unsafe { dpdk.rte_eth_stats_get(self.id(), &raw mut stats) }) {
            Err(error) if error.is_unsupported() => return Ok(refused.into()),
            told => told?,
        };
        let named = [
            ("rx_frames", stats.ipackets),
            ("tx_frames", stats.opackets),
            ("rx_bytes", stats.ibytes),
            ("tx_bytes", stats.obytes),
            ("rx_missed", stats.imissed),
            ("rx_errors", stats.ierrors),
            ("tx_errors", stats.oerrors),
            ("rx_no_buffer", stats.rx_nombuf),
        ];
        let named = named.map(|(name, value)| (name.to_owned(), value));
        let mut counters: BTreeMap<_, _> = refused.into_iter().chain(named).collect();
        let own = match self.xstats() {
            Err(error) if error.is_unsupported() => Vec::new(),
            told => told?,
        };
        counters.extend(own.into_iter().map(|(name, value)| (format!("x_{name}"), value)));
        Ok(counters)
    }

    fn xstats(&self) -> Result<Vec<(String, u64)>, PortError> {
        let (id, count) = (self.id(), self.xstat_names(&mut [])?);
        // SAFETY: of characters.
        let mut names = vec![unsafe { zeroed::<rte_eth_xstat_name>() }; count];
        self.xstat_names(&mut names)?;
        // SAFETY: of numbers.
        let mut values = vec![unsafe { zeroed::<rte_eth_xstat>() }; count];
        let written = self.call("rte_eth_xstats_get", |dpdk| {
            // SAFETY: the port is there, and there is room for as many as are told.
            unsafe { dpdk.rte_eth_xstats_get(id, values.as_mut_ptr(), count as u32) }
        })?;
        match usize::try_from(written) {
            Ok(written) if written <= count => values.truncate(written),
            // There are more by now, and none was written: next time.
            _ => values.clear(),
        }
        Ok(values.iter().filter_map(|stat| Some((text(&names.get(stat.id as usize)?.name), stat.value))).collect())
    }

    /// Writes the names that there is room for. How many there are.
    fn xstat_names(&self, room: &mut [rte_eth_xstat_name]) -> Result<usize, PortError> {
        let (names, count) = if room.is_empty() { (null_mut(), 0) } else { (room.as_mut_ptr(), room.len() as u32) };
        let written = self.call("rte_eth_xstats_get_names", |dpdk| {
            // SAFETY: the port is there until `self` is dropped, and there is room for as many as are told.
            unsafe { dpdk.rte_eth_xstats_get_names(self.id(), names, count) }
        })?;
        Ok(usize::try_from(written).unwrap_or_default())
    }
}

fn text(characters: &[std::ffi::c_char]) -> String {
    let bytes: Vec<_> = characters.iter().map(|&c| c.cast_unsigned()).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::c_int;

    use super::*;
    use crate::replaced::{eal_with, open, turn};

    const UNSUPPORTED: c_int = -95;

    unsafe extern "C" fn no_names(_port: u16, _names: *mut rte_eth_xstat_name, _count: u32) -> c_int {
        UNSUPPORTED
    }

    unsafe extern "C" fn no_stats(_port: u16, _stats: *mut rte_eth_stats) -> c_int {
        UNSUPPORTED
    }

    unsafe extern "C" fn no_link(_port: u16, _link: *mut ferrule_link) -> c_int {
        UNSUPPORTED
    }

    #[test]
    fn what_a_driver_does_not_tell_is_not_told_and_no_failure() {
        let _turn = turn();
        let eal = eal_with(|dpdk| dpdk.rte_eth_xstats_get_names = no_names);
        let (port, queues) = open(eal, "net_null5,size=64").unwrap();
        let counters = port.counters().unwrap();
        assert!(counters.contains_key("rx_frames") && !counters.keys().any(|name| name.starts_with("x_")));
        drop((port, queues));
        let eal = eal_with(|dpdk| (dpdk.rte_eth_stats_get, dpdk.ferrule_link_get) = (no_stats, no_link));
        let (port, queues) = open(eal, "net_null5,size=64").unwrap();
        let none = ["rx_refused", "tx_refused"].map(|name| (name.to_owned(), 0));
        assert_eq!(port.counters().unwrap(), BTreeMap::from(none));
        let status = port.status().unwrap();
        assert_eq!((status.link_is_up, status.speed_mbps, status.mtu), (None, None, 1500));
        drop((port, queues));
    }
}
