//! What an interface of the kernel should be.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::spec::{InterfaceName, MacAddress, NetNs};

/// An interface of the kernel, made inside a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// Where it lives; none: the forwarder's own namespace.
    pub netns: Option<NetNs>,
    /// Its name there.
    pub name: InterfaceName,
    /// Its MAC address; none: the kernel picks one.
    pub mac: Option<MacAddress>,
    /// Its MTU; none: 1500.
    pub mtu: Option<u32>,
    /// Addresses to give it.
    pub addresses: Vec<IpNet>,
    /// Routes through it.
    pub routes: Vec<Route>,
}

impl KernelSpec {
    /// An interface of that name in the forwarder's own namespace, with nothing else asked for.
    pub fn new(name: InterfaceName) -> Self {
        Self { netns: None, name, mac: None, mtu: None, addresses: Vec::new(), routes: Vec::new() }
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns) => write!(f, "kernel {} in {netns}", self.name),
            None => write!(f, "kernel {}", self.name),
        }
    }
}

/// A route through a kernel interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub to: IpNet,
    /// Next hop; none: the destination is on the link.
    pub via: Option<IpAddr>,
}
