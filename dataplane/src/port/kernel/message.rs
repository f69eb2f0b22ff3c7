//! What is said to rtnetlink about interfaces, and what it says of one.

use std::net::IpAddr;

use ferrule_ffi::netlink::{Answer, Netlink, NetlinkError, Request};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, Stats64};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::namespace::NamespaceId;
use crate::spec::Route;

/// An interface as the kernel describes it.
#[derive(Debug, Default)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// What it is called there.
    pub name: String,
    /// What whoever made it has noted.
    pub alias: Option<String>,
    /// What the kernel has counted.
    pub stats: Option<Stats64>,
}

impl Link {
    /// The one that an answer describes.
    pub fn from_answer(answer: Answer) -> Result<Self, NetlinkError> {
        match answer? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(Self::from(link)),
            _ => Err(NetlinkError { errno: Errno::EBADMSG, hint: Some("no interface in the answer".to_owned()) }),
        }
    }

    /// The one of that name, in the namespace of the socket.
    pub fn named(netlink: &mut Netlink, name: &str) -> Result<Self, NetlinkError> {
        Self::from_answer(netlink.request(named_link_request(RouteNetlinkMessage::GetLink, name, [])))
    }

    /// All in the namespace of the socket.
    pub fn all(netlink: &mut Netlink) -> Result<Vec<Self>, NetlinkError> {
        let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let links = links.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewLink(link) => Some(Self::from(link)),
            _ => None,
        });
        Ok(links.collect())
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self { index: message.header.index, ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Stats64(stats) => link.stats = Some(stats),
                _ => {}
            }
        }
        link
    }
}

/// A request about an interface that exists.
pub fn link_request(
    kind: fn(LinkMessage) -> RouteNetlinkMessage,
    index: u32,
    attributes: Vec<LinkAttribute>,
) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = attributes;
    Request { message: kind(link), flags: 0 }
}

/// The same by its name.
pub fn named_link_request(
    kind: fn(LinkMessage) -> RouteNetlinkMessage,
    name: &str,
    attributes: impl IntoIterator<Item = LinkAttribute>,
) -> Request {
    let name = LinkAttribute::IfName(name.to_owned());
    link_request(kind, 0, std::iter::once(name).chain(attributes).collect())
}

/// A question or an order about an interface of another namespace.
pub(super) fn far_link_request(
    kind: fn(LinkMessage) -> RouteNetlinkMessage,
    index: u32,
    namespace: NamespaceId,
) -> Request {
    link_request(kind, index, namespace.map(LinkAttribute::IfNetnsId).into_iter().collect())
}

/// Brings an interface up.
pub fn up_request(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request { message: RouteNetlinkMessage::SetLink(link), flags: 0 }
}

/// Gives an interface an address.
pub fn address_request(index: u32, address: IpNet) -> Request {
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

/// Adds a route through an interface.
pub fn route_request(index: u32, route: &Route) -> Request {
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
