//! What a kernel interface has beyond its wire: addresses, routes, neighbours. Planned, then applied, and taken back when that fails:
//! a refresh that changes them never touches the interface.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;

use ferrule_dataplane::port::kernel::message::{Link, address_request, route_request};
use ferrule_dataplane::spec::{InterfaceName, MacAddress, NetNs, OpenNetNs, Route};
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::nat::{self, NatRule};
use super::rules::{self, PolicyRule};

/// Where an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfacePlace {
    /// Its namespace.
    pub(super) netns: OpenNetNs,
    /// Its name there.
    pub(super) name: InterfaceName,
}

/// What it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InterfaceState {
    pub(super) addresses: BTreeSet<IpNet>,
    /// With their next hops; none: on the link.
    pub(super) routes: BTreeMap<IpNet, Option<IpAddr>>,
    pub(super) neighbours: BTreeMap<IpAddr, MacAddress>,
    /// Traffic that goes by tables of its own.
    pub(super) rules: Vec<PolicyRule>,
    /// Rules of iptables that its endpoint wants.
    pub(super) nat: Vec<NatRule>,
    /// Whether what is for 127.0.0.0/8 may come in by it.
    pub(super) route_localnet: bool,
}

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
#[error("{tried} {name} in {netns}: {problem}")]
pub(super) struct InterfaceError {
    tried: String,
    name: InterfaceName,
    netns: NetNs,
    problem: String,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum InterfaceStep {
    Address(IpNet),
    NoAddress(IpNet),
    Route(IpNet, Option<IpAddr>),
    NoRoute(IpNet, Option<IpAddr>),
    Neighbour(IpAddr, MacAddress),
    NoNeighbour(IpAddr),
}

impl InterfacePlace {
    /// Makes an interface what it should be: one that was just made, of which nothing has to be asked, or one that may have something
    /// already, as those that an earlier forwarder has left.
    pub(super) fn set_up(&self, should: &InterfaceState, is_bare: bool) -> Result<(), InterfaceError> {
        self.inside("set up", || -> Result<(), NetlinkError> {
            let uses_ipv6 = should.addresses.iter().any(|address| address.addr().is_ipv6());
            if uses_ipv6 {
                allow("ipv6", &format!("conf/{}/disable_ipv6", self.name), "0")?;
            }
            // Whoever looks whether the link works does so with sockets that need no right but this.
            allow("ipv4", "ping_group_range", "0\t2147483647")?;
            let mut interface = OpenInterface::find(&self.name)?;
            if is_bare {
                return interface.change(&InterfaceState::default(), should);
            }
            let is = interface.read()?;
            rules::retain(&mut interface.netlink, interface.index, &should.rules)?;
            interface.change(&is, should)
        })?;
        self.translate(&InterfaceState::default(), should)
    }

    /// Changes what it has. What failed half-way is taken back.
    pub(super) fn change(&self, is: &InterfaceState, should: &InterfaceState) -> Result<(), InterfaceError> {
        self.inside("change", || -> Result<(), NetlinkError> {
            let mut interface = OpenInterface::find(&self.name)?;
            let is = interface.still_has(is)?;
            if is == *should { Ok(()) } else { interface.change(&is, should) }
        })?;
        self.translate(is, should)
    }

    /// What is said of addresses that are none of the interface.
    fn translate(&self, is: &InterfaceState, should: &InterfaceState) -> Result<(), InterfaceError> {
        if is.nat == should.nat && is.route_localnet == should.route_localnet {
            return Ok(());
        }
        self.inside("have addresses translated at", || {
            if is.route_localnet != should.route_localnet {
                self.route_localnet(should.route_localnet)?;
            }
            nat::change(self.name.as_str(), &is.nat, &should.nat)
        })
    }

    fn route_localnet(&self, wanted: bool) -> Result<(), String> {
        let setting = format!("conf/{}/route_localnet", self.name);
        allow("ipv4", &setting, if wanted { "1" } else { "0" }).map_err(|error| format!("set {setting}: {error}"))
    }

    /// Takes back what does not go with the interface, which may stay: rules are the namespace's.
    pub(super) fn tear_down(&self, is: &InterfaceState) -> Result<(), InterfaceError> {
        if !is.nat.is_empty() || is.route_localnet {
            self.inside("no more have addresses translated at", || {
                let released = nat::release(self.name.as_str(), &is.nat);
                if is.route_localnet { self.route_localnet(false).and(released) } else { released }
            })?;
        }
        if is.rules.is_empty() {
            return Ok(());
        }
        self.inside("remove the rules of", || -> Result<(), NetlinkError> {
            let mut netlink = Netlink::open()?;
            let index = match Link::named(&mut netlink, self.name.as_str()) {
                Ok(link) => Some(link.index),
                Err(refusal) if refusal.errno == Errno::ENODEV => None,
                Err(refusal) => return Err(refusal),
            };
            rules::remove(&mut netlink, index, &is.rules)
        })
    }

    fn inside<E: fmt::Display + Send>(
        &self,
        tried: &str,
        work: impl FnOnce() -> Result<(), E> + Send,
    ) -> Result<(), InterfaceError> {
        let netns = NetNs::Open(self.netns.clone());
        let problem = match netns.open().and_then(|netns| netns.run(work)) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(problem)) => problem.to_string(),
            Err(error) => error.to_string(),
        };
        Err(InterfaceError { tried: tried.to_owned(), name: self.name.clone(), netns, problem })
    }
}

/// Sets a setting of the thread's namespace, if it is another one. A kernel without it needs nothing.
fn allow(family: &str, setting: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{family}/{setting}");
    match fs::read_to_string(&path) {
        Ok(is) if is.trim_end() == value => Ok(()),
        Ok(_) => fs::write(&path, value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// An interface of the namespace that the thread is in.
struct OpenInterface {
    netlink: Netlink,
    index: u32,
}

impl OpenInterface {
    fn find(name: &InterfaceName) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let index = Link::named(&mut netlink, name.as_str())?.index;
        Ok(Self { netlink, index })
    }

    /// What the kernel says that it has, but for neighbours. Addresses of the link alone are the kernel's own.
    fn read(&mut self) -> Result<InterfaceState, NetlinkError> {
        let mut state = InterfaceState::default();
        // Of this interface alone: others of the namespace may have thousands.
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let (mut addresses, mut routes) = (AddressMessage::default(), RouteMessage::default());
            (addresses.header.family, addresses.header.index) = (family, self.index);
            for object in self.netlink.dump_some(RouteNetlinkMessage::GetAddress(addresses))? {
                if let RouteNetlinkMessage::NewAddress(message) = object
                    && message.header.index == self.index
                    && message.header.scope == AddressScope::Universe
                {
                    state.addresses.extend(address_of(&message));
                }
            }
            routes.header.address_family = family;
            routes.attributes.push(RouteAttribute::Oif(self.index));
            for object in self.netlink.dump_some(RouteNetlinkMessage::GetRoute(routes))? {
                if let RouteNetlinkMessage::NewRoute(message) = object {
                    state.routes.extend(self.route_of(&message));
                }
            }
        }
        Ok(state)
    }

    /// What is left of what it had: whoever brings it down and up takes its routes from it, its neighbours and its addresses of IPv6.
    fn still_has(&mut self, had: &InterfaceState) -> Result<InterfaceState, NetlinkError> {
        let there = self.read()?;
        let mut is = had.clone();
        is.addresses.retain(|address| there.addresses.contains(address));
        is.routes.retain(|to, via| there.routes.get(to) == Some(via));
        rules::keep_those_that_lead_to(&mut self.netlink, self.index, &mut is.rules)?;
        if !is.neighbours.is_empty() {
            let there = self.neighbours()?;
            is.neighbours.retain(|address, mac| there.get(address) == Some(mac));
        }
        Ok(is)
    }

    /// Those that it was given.
    fn neighbours(&mut self) -> Result<BTreeMap<IpAddr, MacAddress>, NetlinkError> {
        let mut wanted = NeighbourMessage::default();
        wanted.attributes.push(NeighbourAttribute::IfIndex(self.index));
        let found = self.netlink.dump_some(RouteNetlinkMessage::GetNeighbour(wanted))?;
        let neighbours = found.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewNeighbour(message)
                if message.header.ifindex == self.index && message.header.state == NeighbourState::Permanent =>
            {
                neighbour_of(&message)
            }
            _ => None,
        });
        Ok(neighbours.collect())
    }

    fn route_of(&self, message: &RouteMessage) -> Option<(IpNet, Option<IpAddr>)> {
        let is_ours = message.header.table == RouteHeader::RT_TABLE_MAIN
            && message.header.protocol == RouteProtocol::Static
            && message.attributes.contains(&RouteAttribute::Oif(self.index));
        let (mut to, mut via) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => to = ip(address),
                RouteAttribute::Gateway(address) => via = ip(address),
                _ => {}
            }
        }
        let any: IpAddr = match message.header.address_family {
            AddressFamily::Inet => [0; 4].into(),
            _ => [0_u8; 16].into(),
        };
        let to = IpNet::new(to.unwrap_or(any), message.header.destination_prefix_length).ok()?;
        is_ours.then_some((to, via))
    }

    fn change(&mut self, is: &InterfaceState, should: &InterfaceState) -> Result<(), NetlinkError> {
        let done = self.apply(is, should);
        if done.is_err() {
            // It says no more than the first failure does.
            let _ = self.apply(should, is);
        }
        done
    }

    fn apply(&mut self, is: &InterfaceState, should: &InterfaceState) -> Result<(), NetlinkError> {
        let steps = plan(is, should);
        let requests = steps.iter().map(|step| step.request(self.index)).collect();
        for (step, answer) in steps.iter().zip(self.netlink.exchange(requests)?) {
            if let Err(refusal) = answer
                && !step.is_done_by(refusal.errno)
            {
                let hint = format!("{step:?}: {refusal}");
                return Err(NetlinkError { errno: refusal.errno, hint: Some(hint) });
            }
        }
        rules::change(&mut self.netlink, self.index, &is.rules, &should.rules)
    }
}

/// What makes `should` of `is`. New addresses come before old ones go: with its last address an interface loses its routes. Routes on
/// the link come before those whose next hops they lead to, and new ones before those that they replace.
fn plan(is: &InterfaceState, should: &InterfaceState) -> Vec<InterfaceStep> {
    let mut steps: Vec<_> = should.addresses.difference(&is.addresses).copied().map(InterfaceStep::Address).collect();
    let gone = |(to, _): &(&IpNet, &Option<IpAddr>)| !should.routes.contains_key(to);
    steps.extend(is.routes.iter().filter(gone).map(|(to, via)| InterfaceStep::NoRoute(*to, *via)));
    let mut new: Vec<_> = should.routes.iter().filter(|(to, via)| is.routes.get(to) != Some(via)).collect();
    new.sort_by_key(|(_, via)| via.is_some());
    for (to, via) in new {
        steps.push(InterfaceStep::Route(*to, *via));
        steps.extend(is.routes.get(to).map(|before| InterfaceStep::NoRoute(*to, *before)));
    }
    let gone = is.neighbours.keys().filter(|address| !should.neighbours.contains_key(address));
    steps.extend(gone.map(|address| InterfaceStep::NoNeighbour(*address)));
    let new = should.neighbours.iter().filter(|(address, mac)| is.neighbours.get(address) != Some(mac));
    steps.extend(new.map(|(address, mac)| InterfaceStep::Neighbour(*address, *mac)));
    steps.extend(is.addresses.difference(&should.addresses).copied().map(InterfaceStep::NoAddress));
    steps
}

impl InterfaceStep {
    fn request(&self, index: u32) -> Request {
        const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;
        let delete = |request: Request| Request {
            message: match request.message {
                RouteNetlinkMessage::NewAddress(message) => RouteNetlinkMessage::DelAddress(message),
                RouteNetlinkMessage::NewRoute(message) => RouteNetlinkMessage::DelRoute(message),
                RouteNetlinkMessage::NewNeighbour(message) => RouteNetlinkMessage::DelNeighbour(message),
                other => other,
            },
            flags: 0,
        };
        match self {
            Self::Address(address) => Request { flags: PUT, ..address_request(index, *address) },
            Self::NoAddress(address) => delete(address_request(index, *address)),
            // In front of a route of the pod's own to the same place, which works again when this one goes.
            Self::Route(to, via) => Request { flags: NLM_F_CREATE, ..in_front(index, *to, *via) },
            Self::NoRoute(to, via) => delete(route_request(index, &Route { to: *to, via: *via })),
            Self::Neighbour(address, mac) => Request { flags: PUT, ..neighbour_request(index, *address, Some(*mac)) },
            Self::NoNeighbour(address) => delete(neighbour_request(index, *address, None)),
        }
    }

    /// Whether a refusal says that there is nothing to do.
    fn is_done_by(&self, errno: Errno) -> bool {
        match self {
            Self::NoAddress(_) | Self::NoRoute(..) | Self::NoNeighbour(_) => {
                matches!(errno, Errno::EADDRNOTAVAIL | Errno::ESRCH | Errno::ENOENT)
            }
            Self::Route(..) => errno == Errno::EEXIST,
            Self::Address(_) | Self::Neighbour(..) => false,
        }
    }
}

/// A route that goes before others to the same place: of IPv4 the one that was added last does, of IPv6 the one of the lower metric.
fn in_front(index: u32, to: IpNet, via: Option<IpAddr>) -> Request {
    let mut request = route_request(index, &Route { to, via });
    if let RouteNetlinkMessage::NewRoute(message) = &mut request.message
        && to.addr().is_ipv6()
    {
        message.attributes.push(RouteAttribute::Priority(METRIC_V6));
    }
    request
}

fn neighbour_request(index: u32, address: IpAddr, mac: Option<MacAddress>) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: 0 }
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = find(|attribute| if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None });
    let address = local
        .or_else(|| find(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None }))?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn neighbour_of(message: &NeighbourMessage) -> Option<(IpAddr, MacAddress)> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(IpAddr::from(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some(IpAddr::from(*address)),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(MacAddress);
            }
            _ => {}
        }
    }
    ip.zip(mac)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Below 1024, which the kernel gives a route that somebody adds without a metric.
const METRIC_V6: u32 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn state(addresses: &[&str], routes: &[(&str, Option<&str>)]) -> InterfaceState {
        InterfaceState {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            routes: routes.iter().map(|(to, via)| (to.parse().unwrap(), via.map(|via| via.parse().unwrap()))).collect(),
            ..InterfaceState::default()
        }
    }

    #[test]
    fn a_refresh_that_fails_leaves_no_way_to_localnet() {
        let Ok(netns) = ferrule_ffi::netns::NetNs::private() else {
            return println!("skipped: a_refresh_that_fails_leaves_no_way_to_localnet: lacks a namespace of its own");
        };
        let netns = OpenNetNs::try_from(std::os::fd::OwnedFd::from(netns)).unwrap();
        let place = InterfacePlace { netns, name: "lo".parse().unwrap() };
        let way = || {
            let read = || fs::read_to_string("/proc/sys/net/ipv4/conf/lo/route_localnet");
            NetNs::Open(place.netns.clone()).open().unwrap().run(read).unwrap().unwrap()
        };
        let before = InterfaceState::default();
        let rule = NatRule::Rule { chain: "NO_SUCH".to_owned(), in_front: false, words: Vec::new() };
        let wanted = InterfaceState { route_localnet: true, nat: vec![rule], ..before.clone() };
        place.change(&before, &wanted).unwrap_err();
        place.tear_down(&wanted).unwrap();
        place.set_up(&before, false).unwrap();
        assert_eq!(way(), "0\n");
    }

    #[test]
    fn what_is_so_already_takes_no_step() {
        let is = state(&["10.0.0.1/32"], &[("10.0.0.0/32", None)]);
        assert_eq!(plan(&is, &is), []);
    }

    #[test]
    fn a_route_by_another_next_hop_is_added_before_the_old_one_goes() {
        let is = state(&[], &[("10.0.0.0/8", Some("10.0.1.0"))]);
        let should = state(&[], &[("10.0.0.0/8", Some("10.0.2.0"))]);
        let (net, hop) = ("10.0.0.0/8".parse().unwrap(), |text: &str| Some(text.parse().unwrap()));
        assert_eq!(
            plan(&is, &should),
            [InterfaceStep::Route(net, hop("10.0.2.0")), InterfaceStep::NoRoute(net, hop("10.0.1.0"))]
        );
    }

    #[test]
    fn new_addresses_come_first_then_routes_on_the_link_then_others_and_old_addresses_go_last() {
        let is = state(&["10.0.0.1/32"], &[("10.0.0.0/32", None)]);
        let should = state(&["10.0.1.1/32"], &[("10.0.1.0/32", None), ("10.0.0.0/8", Some("10.0.1.0"))]);
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(
            plan(&is, &should),
            [
                InterfaceStep::Address(net("10.0.1.1/32")),
                InterfaceStep::NoRoute(net("10.0.0.0/32"), None),
                InterfaceStep::Route(net("10.0.1.0/32"), None),
                InterfaceStep::Route(net("10.0.0.0/8"), Some("10.0.1.0".parse().unwrap())),
                InterfaceStep::NoAddress(net("10.0.0.1/32")),
            ]
        );
    }
}
