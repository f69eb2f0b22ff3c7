//! What a specification asks of an interface that exists: tasks, and each as a netlink request.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::error::{KernelError, Place};
use super::namespace::NamespaceId;
use crate::spec::{KernelSpec, MacAddress, Route};
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};

/// One thing to do to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Mac(MacAddress),
    Mtu(u32),
    Address(IpNet),
    Up,
    Route(Route),
}

/// Makes the interface what `spec` says: one system call to ask, one for each answer.
pub(super) fn set_up(netlink: &mut Netlink, index: u32, spec: &KernelSpec) -> Result<(), KernelError> {
    let tasks = tasks(spec);
    let place = Place::from(spec);
    let requests = tasks.iter().map(|task| task.request(index)).collect();
    let answers = netlink.exchange(requests).map_err(|refusal| KernelError::failed("set up", &place, refusal))?;
    for (task, answer) in tasks.iter().zip(answers) {
        answer.map_err(|refusal| KernelError::refused(task, &place, refusal))?;
    }
    Ok(())
}

/// The index of an interface by its name.
pub(super) fn find(netlink: &mut Netlink, name: &str) -> Result<u32, NetlinkError> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.request(Request { message: RouteNetlinkMessage::GetLink(link), flags: 0 })? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.header.index),
        _ => Err(NetlinkError { errno: Errno::ENODEV, hint: None }),
    }
}

/// A request about an interface that exists.
pub(super) fn link_request(
    kind: fn(LinkMessage) -> RouteNetlinkMessage,
    index: u32,
    attributes: Vec<LinkAttribute>,
) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = attributes;
    Request { message: kind(link), flags: 0 }
}

/// The same about an interface of another namespace.
pub(super) fn far_link_request(
    kind: fn(LinkMessage) -> RouteNetlinkMessage,
    index: u32,
    namespace: NamespaceId,
) -> Request {
    link_request(kind, index, namespace.map(LinkAttribute::IfNetnsId).into_iter().collect())
}

/// The order matters: addresses before the interface is up, so that nothing leaves without one;
/// routes after it, because the kernel takes them only then.
fn tasks(spec: &KernelSpec) -> Vec<Task> {
    let routes = spec.routes.iter().filter(|route| !is_implied(route, spec));
    spec.mac
        .map(Task::Mac)
        .into_iter()
        .chain([Task::Mtu(spec.mtu.unwrap_or(MTU_DEFAULT))])
        .chain(spec.addresses.iter().copied().map(Task::Address))
        .chain([Task::Up])
        .chain(routes.cloned().map(Task::Route))
        .collect()
}

/// Whether an address brings this route along; asked for again, the kernel would refuse it.
fn is_implied(route: &Route, spec: &KernelSpec) -> bool {
    route.via.is_none() && spec.addresses.iter().any(|address| address.trunc() == route.to.trunc())
}

impl Task {
    fn request(&self, index: u32) -> Request {
        match self {
            Self::Mac(mac) => {
                link_request(RouteNetlinkMessage::SetLink, index, vec![LinkAttribute::Address(mac.0.to_vec())])
            }
            Self::Mtu(mtu) => link_request(RouteNetlinkMessage::SetLink, index, vec![LinkAttribute::Mtu(*mtu)]),
            Self::Address(address) => address_request(index, *address),
            Self::Up => up_request(index),
            Self::Route(route) => route_request(index, route),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "set MAC address {mac} of"),
            Self::Mtu(mtu) => write!(f, "set MTU {mtu} of"),
            Self::Address(address) => write!(f, "give address {address} to"),
            Self::Up => write!(f, "bring up"),
            Self::Route(route) => write!(f, "add a route to {} through", route.to),
        }
    }
}

fn up_request(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request { message: RouteNetlinkMessage::SetLink(link), flags: 0 }
}

fn address_request(index: u32, address: IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    if address.addr().is_ipv6() {
        // Looking for duplicates takes a second, and the address could not be used until then.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    Request { message: RouteNetlinkMessage::NewAddress(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn route_request(index: u32, route: &Route) -> Request {
    let to = route.to.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if route.via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to.addr())));
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via))));
    Request { message: RouteNetlinkMessage::NewRoute(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

const MTU_DEFAULT: u32 = 1500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_before_up_and_routes_behind_it() {
        let address: IpNet = "10.0.0.1/24".parse().unwrap();
        let [implied, far] = ["10.0.0.0/24", "10.1.0.0/16"].map(|to| Route { to: to.parse().unwrap(), via: None });
        let spec = KernelSpec {
            netns: None,
            name: "eth9".parse().unwrap(),
            mac: None,
            mtu: None,
            addresses: vec![address],
            routes: vec![implied, far.clone()],
        };
        assert_eq!(tasks(&spec), [Task::Mtu(1500), Task::Address(address), Task::Up, Task::Route(far)]);
    }
}
