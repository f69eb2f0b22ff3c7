//! What can go wrong with an interface of the kernel, and the cure.

use std::fmt;

use ipnet::IpNet;
use nix::errno::Errno;
use thiserror::Error;

use super::setup::Task;
use crate::spec::{InterfaceName, KernelSpec, NetNs, Route};
use ferrule_ffi::netlink::NetlinkError;

/// Why an interface could not be made or read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KernelError {
    /// The namespace is gone, is not one, or may not be read.
    #[error(
        "open the namespace of {place}: {reason}; name a namespace that exists, as `ip netns list` or `lsns -t net` shows"
    )]
    Namespace {
        /// The interface that was to live there.
        place: Place,
        /// Why not.
        reason: String,
    },
    /// An interface of this name is there.
    #[error("create {place}: the name is taken; choose another name, or remove the interface that has it")]
    NameTaken {
        /// The interface that was to be made.
        place: Place,
    },
    /// A capability is missing.
    #[error("{tried} {place}: not permitted; the forwarder needs CAP_NET_ADMIN there{}", to_enter(.place))]
    NotPermitted {
        /// What was tried.
        tried: String,
        /// On what.
        place: Place,
    },
    /// The kernel lacks the kind of interface, or the container does not see its device.
    #[error("create {place}: no `{driver}` driver: {reason}; load it with `modprobe {driver}`{}", and_device(.driver))]
    DriverMissing {
        /// The kernel module: `tun` or `veth`.
        driver: &'static str,
        /// The interface that was to be made.
        place: Place,
        /// Why not.
        reason: String,
    },
    /// An address was refused.
    #[error(
        "give address {address} to {place}: {reason}; list each address once, and for IPv6 leave `disable_ipv6` off and the MTU at 1280 or more"
    )]
    Address {
        /// The address.
        address: IpNet,
        /// The interface.
        place: Place,
        /// Why not.
        reason: String,
    },
    /// A route was refused.
    #[error(
        "add the route to {}{} through {place}: {reason}; the next hop must be in the network of one of its addresses, and the namespace must have no other route to that destination",
        .route.to, next_hop(.route)
    )]
    Route {
        /// The route.
        route: Route,
        /// The interface.
        place: Place,
        /// Why not.
        reason: String,
    },
    /// The MTU was refused.
    #[error("set MTU {mtu} of {place}: {reason}; choose 68 to 65521 bytes, and 1280 or more for IPv6")]
    Mtu {
        /// The MTU.
        mtu: u32,
        /// The interface.
        place: Place,
        /// Why not.
        reason: String,
    },
    /// The interface was there and is not any more.
    #[error("{tried} {place}: it is gone; someone removed it or its namespace: make the wire again")]
    Gone {
        /// What was tried.
        tried: String,
        /// On what.
        place: Place,
    },
    /// The kernel said no to something else.
    #[error("{tried} {place}: {reason}; the kernel's log (`dmesg`) may say more")]
    Refused {
        /// What was tried.
        tried: String,
        /// On what.
        place: Place,
        /// Why not.
        reason: String,
    },
}

impl KernelError {
    /// The interface it is about.
    pub fn place(&self) -> &Place {
        match self {
            Self::Namespace { place, .. }
            | Self::NameTaken { place, .. }
            | Self::NotPermitted { place, .. }
            | Self::DriverMissing { place, .. }
            | Self::Address { place, .. }
            | Self::Route { place, .. }
            | Self::Mtu { place, .. }
            | Self::Gone { place, .. }
            | Self::Refused { place, .. } => place,
        }
    }

    /// The kernel's refusal of one task.
    pub(super) fn refused(task: &Task, place: &Place, refusal: NetlinkError) -> Self {
        if matches!(refusal.errno, Errno::EPERM | Errno::ENODEV) {
            return Self::failed(&task.to_string(), place, refusal);
        }
        let (place, reason) = (place.clone(), refusal.to_string());
        match task {
            Task::Mtu(mtu) => Self::Mtu { mtu: *mtu, place, reason },
            Task::Address(address) => Self::Address { address: *address, place, reason },
            Task::Route(route) => Self::Route { route: route.clone(), place, reason },
            Task::Mac(_) | Task::Up => Self::Refused { tried: task.to_string(), place, reason },
        }
    }

    /// Any other refusal.
    pub(super) fn failed(tried: &str, place: &Place, refusal: impl Into<NetlinkError>) -> Self {
        let (tried, place, refusal) = (tried.to_owned(), place.clone(), refusal.into());
        match refusal.errno {
            Errno::EPERM => Self::NotPermitted { tried, place },
            Errno::ENODEV => Self::Gone { tried, place },
            _ => Self::Refused { tried, place, reason: refusal.to_string() },
        }
    }
}

/// An interface as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name of the interface.
    pub interface: InterfaceName,
    /// Its namespace; none: the forwarder's own.
    pub netns: Option<NetNs>,
}

impl From<&KernelSpec> for Place {
    fn from(spec: &KernelSpec) -> Self {
        Self { interface: spec.name.clone(), netns: spec.netns.clone() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns @ NetNs::Process(_)) => write!(f, "interface `{}` in the namespace of {netns}", self.interface),
            Some(netns @ (NetNs::Path(_) | NetNs::Open(_))) => write!(f, "interface `{}` in {netns}", self.interface),
            None => write!(f, "interface `{}` in the forwarder's own namespace", self.interface),
        }
    }
}

fn to_enter(place: &Place) -> &'static str {
    if place.netns.is_some() { ", and CAP_SYS_ADMIN to enter the namespace" } else { "" }
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
    fn a_refusal_becomes_what_was_tried_where_why_not_and_the_cure() {
        let home = Place { interface: "eth9".parse().unwrap(), netns: None };
        let pod = Place { netns: Some(NetNs::Process(Process { pid: 7, start_time: None })), ..home.clone() };
        let address = Task::Address("10.0.0.1/24".parse().unwrap());
        let cases = [
            (
                KernelError::refused(&Task::Up, &home, refusal(Errno::EPERM)),
                "bring up interface `eth9` in the forwarder's own namespace: not permitted; \
                 the forwarder needs CAP_NET_ADMIN there",
            ),
            (
                KernelError::refused(&address, &pod, refusal(Errno::EPERM)),
                "give address 10.0.0.1/24 to interface `eth9` in the namespace of pid 7: not permitted; \
                 the forwarder needs CAP_NET_ADMIN there, and CAP_SYS_ADMIN to enter the namespace",
            ),
            (
                KernelError::refused(&address, &pod, refusal(Errno::ENODEV)),
                "give address 10.0.0.1/24 to interface `eth9` in the namespace of pid 7: it is gone; \
                 someone removed it or its namespace: make the wire again",
            ),
            (
                KernelError::DriverMissing { driver: "tun", place: home, reason: "ENOENT".to_owned() },
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
