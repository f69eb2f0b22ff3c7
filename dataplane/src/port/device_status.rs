//! What a device tells of itself.

use std::collections::BTreeMap;

use crate::spec::MacAddress;

/// What a device says of itself: its driver knows, and whoever looks at its wire is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// What it is, in words: `mlx5_core 0000:3b:02.1, 25 Gbit/s`; empty: it has nothing to say.
    pub words: String,
    /// Whether its link is up. While it is not, the other end of the wire is told that nobody is here, if it can be.
    pub link: LinkState,
    /// The MAC address that it has.
    pub mac: Option<MacAddress>,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// The NUMA node that its memory should be on.
    pub numa_node: Option<u32>,
    /// What it counts itself, by names such as `rx_missed`: since it was made, and of a wire's status since the wire was.
    pub counters: BTreeMap<String, u64>,
}

/// What a device knows of its link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    /// Nothing.
    #[default]
    Unknown,
    /// It is up.
    Up,
    /// It is down: no frame crosses it.
    Down,
}
