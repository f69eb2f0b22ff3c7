//! What can go wrong with an interface of the kernel, and the cure.

use std::fmt;

use ipnet::IpNet;
use nix::errno::Errno;
use thiserror::Error;

use crate::spec::{InterfaceName, KernelSpec, NetNs, Route};
use ferrule_ffi::netlink::NetlinkError;

/// Why an interface could not be made or read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KernelError {
    /// The namespace is gone, is not one, or may not be read.
    #[error(
        "open the namespace of {interface}: {reason}; name a namespace that exists, as `ip netns list` or `lsns -t net` shows"
    )]
    Namespace {
        /// The interface that was to live there.
        interface: InterfaceId,
        /// Why not.
        reason: String,
    },
    /// An interface of this name is there.
    #[error("create {interface}: the name is taken; choose another name, or remove the interface that has it")]
    NameTaken {
        /// The interface that was to be made.
        interface: InterfaceId,
    },
    /// A capability is missing.
    #[error("{tried} {interface}: not permitted; the forwarder needs CAP_NET_ADMIN there{}", to_enter(.interface))]
    NotPermitted {
        /// What was tried.
        tried: String,
        /// On what.
        interface: InterfaceId,
    },
    /// The kernel lacks the kind of interface, or the container does not see its device.
    #[error("create {interface}: no `{driver}` driver: {reason}; load it with `modprobe {driver}`{}", and_device(.driver))]
    DriverMissing {
        /// The kernel module: `tun` or `veth`.
        driver: &'static str,
        /// The interface that was to be made.
        interface: InterfaceId,
        /// Why not.
        reason: String,
    },
    /// An address was refused.
    #[error(
        "give address {address} to {interface}: {reason}; list each address once, and for IPv6 leave the MTU at 1280 or more"
    )]
    Address {
        /// The address.
        address: IpNet,
        /// The interface.
        interface: InterfaceId,
        /// Why not.
        reason: String,
    },
    /// A route was refused.
    #[error(
        "add the route to {}{} through {interface}: {reason}; the next hop must be in the network of one of its addresses, and the namespace must have no other route to that destination",
        .route.to, next_hop(.route)
    )]
    Route {
        /// The route.
        route: Route,
        /// The interface.
        interface: InterfaceId,
        /// Why not.
        reason: String,
    },
    /// The MTU was refused.
    #[error("set MTU {mtu} of {interface}: {reason}; choose 68 to 65521 bytes, and 1280 or more for IPv6")]
    Mtu {
        /// The MTU.
        mtu: u32,
        /// The interface.
        interface: InterfaceId,
        /// Why not.
        reason: String,
    },
    /// IPv6 is switched off for the interface, and stays so.
    #[error(
        "switch IPv6 on for {interface}: {reason}; give the forwarder a /proc/sys that it may write to, or set `net.ipv6.conf.default.disable_ipv6` to 0 in that namespace"
    )]
    Ipv6Off {
        /// The interface.
        interface: InterfaceId,
        /// Why not.
        reason: String,
    },
    /// The interface was there and is not any more.
    #[error("{tried} {interface}: it is gone; someone removed it or its namespace: make the wire again")]
    Gone {
        /// What was tried.
        tried: String,
        /// On what.
        interface: InterfaceId,
    },
    /// The kernel said no to something else.
    #[error("{tried} {interface}: {reason}; the kernel's log (`dmesg`) may say more")]
    Refused {
        /// What was tried.
        tried: String,
        /// On what.
        interface: InterfaceId,
        /// Why not.
        reason: String,
    },
}

impl KernelError {
    /// The interface it is about.
    pub fn interface(&self) -> &InterfaceId {
        match self {
            Self::Namespace { interface, .. }
            | Self::NameTaken { interface, .. }
            | Self::NotPermitted { interface, .. }
            | Self::DriverMissing { interface, .. }
            | Self::Address { interface, .. }
            | Self::Route { interface, .. }
            | Self::Mtu { interface, .. }
            | Self::Ipv6Off { interface, .. }
            | Self::Gone { interface, .. }
            | Self::Refused { interface, .. } => interface,
        }
    }

    /// A refusal that has no variant of its own.
    pub(super) fn failed(tried: &str, interface: &InterfaceId, refusal: impl Into<NetlinkError>) -> Self {
        let (tried, interface, refusal) = (tried.to_owned(), interface.clone(), refusal.into());
        match refusal.errno {
            Errno::EPERM => Self::NotPermitted { tried, interface },
            Errno::ENODEV => Self::Gone { tried, interface },
            _ => Self::Refused { tried, interface, reason: refusal.to_string() },
        }
    }
}

/// An interface as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceId {
    /// The name of the interface.
    pub name: InterfaceName,
    /// Its namespace; none: the forwarder's own.
    pub netns: Option<NetNs>,
}

impl From<&KernelSpec> for InterfaceId {
    fn from(spec: &KernelSpec) -> Self {
        Self { name: spec.name.clone(), netns: spec.netns.clone() }
    }
}

impl fmt::Display for InterfaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns @ NetNs::Process(_)) => write!(f, "interface `{}` in the namespace of {netns}", self.name),
            Some(netns @ (NetNs::Path(_) | NetNs::Open(_))) => write!(f, "interface `{}` in {netns}", self.name),
            None => write!(f, "interface `{}` in the forwarder's own namespace", self.name),
        }
    }
}

fn to_enter(interface: &InterfaceId) -> &'static str {
    if interface.netns.is_some() { ", and CAP_SYS_ADMIN to enter the namespace" } else { "" }
}

fn and_device(driver: &str) -> &'static str {
    if driver == "tun" { " and give the container /dev/net/tun" } else { "" }
}

fn next_hop(route: &Route) -> String {
    route.via.map(|via| format!(" via {via}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Process;

    #[test]
    fn a_refusal_says_what_was_tried_where_why_not_and_the_cure() {
        let home = InterfaceId { name: "eth9".parse().unwrap(), netns: None };
        let pod = InterfaceId { netns: Some(NetNs::Process(Process { pid: 7, start_time: None })), ..home.clone() };
        let address = "give address 10.0.0.1/24 to";
        let cases = [
            (
                KernelError::failed("bring up", &home, refusal(Errno::EPERM)),
                "bring up interface `eth9` in the forwarder's own namespace: not permitted; \
                 the forwarder needs CAP_NET_ADMIN there",
            ),
            (
                KernelError::failed(address, &pod, refusal(Errno::EPERM)),
                "give address 10.0.0.1/24 to interface `eth9` in the namespace of pid 7: not permitted; \
                 the forwarder needs CAP_NET_ADMIN there, and CAP_SYS_ADMIN to enter the namespace",
            ),
            (
                KernelError::failed(address, &pod, refusal(Errno::ENODEV)),
                "give address 10.0.0.1/24 to interface `eth9` in the namespace of pid 7: it is gone; \
                 someone removed it or its namespace: make the wire again",
            ),
            (
                KernelError::DriverMissing { driver: "tun", interface: home, reason: "ENOENT".to_owned() },
                "create interface `eth9` in the forwarder's own namespace: no `tun` driver: ENOENT; \
                 load it with `modprobe tun` and give the container /dev/net/tun",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }

    fn refusal(errno: Errno) -> NetlinkError {
        NetlinkError { errno, hint: None }
    }
}
