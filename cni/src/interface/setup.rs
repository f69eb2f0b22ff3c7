//! What an interface has in its container: an address of its own, those of its network, routes.

use std::fs;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferrule_ffi::netlink::Request;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use sriov_manager_client::mac::Mac;

use super::announce::announce;
use super::namespace::{flags_request, link_request};
use super::{Link, Namespace};
use crate::protocol::{AddResult, CniError, IpAddress, Route};

/// What an interface is to have.
#[derive(Clone, Copy, Debug)]
pub struct Addressing<'a> {
    /// None: its own.
    pub mac: Option<Mac>,
    /// What the plugin of ipam answered.
    pub ipam: &'a AddResult,
}

/// Gives an interface, which is down, what it is to have, sets it up and tells its neighbours. Answers what it is then.
pub fn set_up(pod: &mut Namespace, link: &Link, wanted: Addressing<'_>) -> Result<Link, CniError> {
    let name = link.name.as_str();
    if let Some(mac) = wanted.mac.filter(|&mac| link.mac != Some(mac)) {
        let request = link_request(link.index, vec![LinkAttribute::Address(mac.0.to_vec())]);
        pod.request_all(vec![(format!("give {name} the address {mac}"), request)])?;
    }
    switch(pod, name, wanted.ipam.ips.iter().any(|ip| ip.address.addr().is_ipv6()))?;
    // Addresses come before the interface is up, so that nothing leaves without one. The kernel takes routes only then.
    let address = |ip: &IpAddress| (format!("give {name} {}", ip.address), address_request(link.index, ip));
    let mut requests: Vec<_> = wanted.ipam.ips.iter().map(address).collect();
    requests.push((format!("set {name} up"), flags_request(link.index, true)));
    pod.request_all(requests)?;
    let route = |route: &Route| {
        (format!("add a route to {} through {name}", route.dst), route_request(link.index, route, wanted.ipam))
    };
    pod.request_all(wanted.ipam.routes.iter().map(route).collect())?;
    // Without addresses there is nothing that neighbours could be told.
    let wait = if wanted.ipam.ips.is_empty() { Duration::ZERO } else { CARRIER_WAIT };
    let is = with_carrier(pod, name, wait)?;
    if let Some(mac) = is.mac
        && let Err(error) = announce(pod, name, mac, &wanted.ipam.ips)
    {
        // The container is attached all the same; its neighbours learn of it when it speaks.
        eprintln!("{name}: its neighbours were not told of its addresses: {error}");
    }
    Ok(is)
}

/// Neighbours are told again when the address of the interface changes, and IPv6 is on where an address needs it.
fn switch(pod: &Namespace, name: &str, is_ipv6: bool) -> Result<(), CniError> {
    let switched = pod.run(|| {
        for (family, key) in [("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")] {
            // A kernel without IPv6 has none of its switches.
            let _ = fs::write(format!("/proc/sys/net/{family}/conf/{name}/{key}"), "1");
        }
        let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        if !is_ipv6 || fs::read_to_string(&path).is_ok_and(|value| value.trim() == "0") {
            return Ok(());
        }
        fs::write(&path, "0").map_err(|error| CniError::failed(&format!("switch IPv6 on for {name} ({path})"), error))
    });
    switched.map_err(|error| CniError::failed("enter the container's network namespace", error))?
}

/// A link may take a moment to come, and what is told before goes nowhere. It need not come.
fn with_carrier(pod: &mut Namespace, name: &str, wait: Duration) -> Result<Link, CniError> {
    let deadline = Instant::now() + wait;
    loop {
        let link = pod.named(name)?;
        let link = link.ok_or_else(|| CniError::failed(&format!("look at {name}"), "somebody took it away"))?;
        if link.has_carrier || Instant::now() >= deadline {
            return Ok(link);
        }
        sleep(CARRIER_POLL);
    }
}

fn address_request(index: u32, ip: &IpAddress) -> Request {
    let address = ip.address.addr();
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = ip.address.prefix_len();
    message.header.index = index;
    if address.is_ipv6() {
        // Looking for duplicates takes a second, and the address could not be used until then. The plugin of ipam answers for it.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    Request { message: RouteNetlinkMessage::NewAddress(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// A route without a next hop goes through the gateway of its family, as those of the plugins in Go do.
fn route_request(index: u32, route: &Route, ipam: &AddResult) -> Request {
    let to = route.dst.trunc();
    let is_of_family = |gateway: &IpAddr| gateway.is_ipv4() == to.addr().is_ipv4();
    let gateway = route.gw.or_else(|| ipam.ips.iter().filter_map(|ip| ip.gateway).find(is_of_family));
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    let nearest = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.scope = route.scope.map_or(nearest, RouteScope::from);
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to.addr())));
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    message.attributes.extend(route.priority.map(RouteAttribute::Priority));
    if let Some(table) = route.table {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
    let metrics = route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss));
    let metrics: Vec<_> = metrics.collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Request { message: RouteNetlinkMessage::NewRoute(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// As long as sriov-cni waits.
const CARRIER_WAIT: Duration = Duration::from_millis(200);
const CARRIER_POLL: Duration = Duration::from_millis(5);
