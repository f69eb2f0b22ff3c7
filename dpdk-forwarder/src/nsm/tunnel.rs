//! A VXLAN device of the kernel, inside the namespace of a client or an endpoint: its frames leave by the forwarder's own namespace.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ferrule_dataplane::port::kernel::message::{Link, link_request, named_link_request, up_request};
use ferrule_dataplane::spec::{MacAddress, NetNs};
use ferrule_ffi::netlink::{Netlink, NetlinkError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, Stats64};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use nix::errno::Errno;

use super::interface::InterfacePlace;
use super::vxlan::{TunnelSite, Vxlan};

/// One end of a tunnel, as an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TunnelInterface {
    pub(super) place: InterfacePlace,
    pub(super) vxlan: Vxlan,
    pub(super) mark: TunnelMark,
    /// None: as the kernel chooses it.
    pub(super) mac: Option<MacAddress>,
    /// None: as the tunnel has it.
    pub(super) mtu: Option<u32>,
}

/// Whose a tunnel is: by its alias a forwarder that starts again knows what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TunnelMark {
    owner: String,
    connection: String,
}

impl TunnelMark {
    /// Of this owner of interfaces, for a connection of this id.
    pub(super) fn new(owner: &str, connection: &str) -> Self {
        Self { owner: owner.to_owned(), connection: connection.to_owned() }
    }

    /// The id of its connection.
    pub(super) fn connection(&self) -> &str {
        &self.connection
    }

    /// The one in an alias.
    fn parse(alias: &str) -> Option<Self> {
        let mut words = alias.strip_prefix(ALIAS)?.split(' ');
        let owner = words.next()?.strip_prefix("owner=")?;
        Some(Self::new(owner, words.next()?.strip_prefix("id=")?))
    }
}

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
#[error("{tried} the tunnel {} in {}: {problem}", place.name, NetNs::Open(place.netns.clone()))]
pub(super) struct TunnelError {
    tried: &'static str,
    place: InterfacePlace,
    problem: String,
    is_number_taken: bool,
}

impl TunnelError {
    /// Whether with another number it could be made.
    pub(super) fn is_number_taken(&self) -> bool {
        self.is_number_taken
    }
}

impl TunnelInterface {
    /// Makes it, unless it is there; then its MAC address and MTU become what they should be. Whether it is new. One of the same name that is
    /// left of a connection that is not there any more is removed.
    pub(super) fn make(&self, is_there: impl Fn(&str) -> bool + Sync) -> Result<bool, TunnelError> {
        let alias = self.alias();
        let is_in_the_way =
            |mark: TunnelMark| mark == self.mark || mark.owner == self.mark.owner && !is_there(&mark.connection);
        let found = self.inside(|netlink| match Link::named(netlink, self.place.name.as_str()) {
            Ok(link) if link.alias.as_ref() == Some(&alias) => self.adjust(netlink, link.index).map(|()| true),
            Ok(link) if link.alias.as_deref().and_then(TunnelMark::parse).is_some_and(is_in_the_way) => {
                netlink.request(link_request(RouteNetlinkMessage::DelLink, link.index, Vec::new())).map(|_| false)
            }
            Ok(_) => Err(NetlinkError { errno: Errno::EEXIST, hint: Some("the name is taken".to_owned()) }),
            Err(refusal) if refusal.errno == Errno::ENODEV => Ok(false),
            Err(refusal) => Err(refusal),
        });
        if found.map_err(|error| self.failed("look for", &error))? {
            return Ok(false);
        }
        self.create().map_err(|error| {
            // Nobody has the name, as we have seen: somebody has the number.
            let is_number_taken = error.errno == Errno::EEXIST;
            TunnelError { is_number_taken, ..self.failed("make", &error) }
        })?;
        let done = self.inside(|netlink| {
            let index = Link::named(netlink, self.place.name.as_str())?.index;
            let name = vec![LinkAttribute::IfAlias(alias.clone())];
            netlink.request(link_request(RouteNetlinkMessage::SetLink, index, name))?;
            netlink.request(up_request(index)).map(drop)
        });
        if let Err(error) = done {
            // The first failure says more.
            let _ = self.delete(|_| true);
            return Err(self.failed("set up", &error));
        }
        Ok(true)
    }

    /// Removes it, if it is there and ours.
    pub(super) fn remove(&self) -> Result<(), TunnelError> {
        let alias = self.alias();
        self.delete(|link| link.alias.as_ref() == Some(&alias)).map_err(|error| self.failed("remove", &error))
    }

    /// What the kernel has counted.
    pub(super) fn stats(&self) -> Option<Stats64> {
        self.inside(|netlink| Ok(Link::named(netlink, self.place.name.as_str())?.stats)).ok().flatten()
    }

    /// Gives one that is there what it should have.
    fn adjust(&self, netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
        let asked = link_request(RouteNetlinkMessage::GetLink, index, Vec::new());
        let Some(RouteNetlinkMessage::NewLink(link)) = netlink.request(asked)? else {
            return Err(NetlinkError { errno: Errno::EBADMSG, hint: Some("no interface in the answer".to_owned()) });
        };
        let other: Vec<_> = self.settings().filter(|wanted| !link.attributes.contains(wanted)).collect();
        if other.is_empty() {
            return Ok(());
        }
        netlink.request(link_request(RouteNetlinkMessage::SetLink, index, other)).map(drop)
    }

    /// What it has beside what makes it the tunnel that it is.
    fn settings(&self) -> impl Iterator<Item = LinkAttribute> + use<> {
        let mac = self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec()));
        let mtu = self.mtu.or(Some(self.vxlan.mtu).filter(|mtu| *mtu > 0));
        mac.into_iter().chain(mtu.map(LinkAttribute::Mtu))
    }

    /// In our own namespace, where its packets leave, and from the first moment in the other. To move it there later costs the kernel three
    /// times as much.
    fn create(&self) -> Result<(), NetlinkError> {
        let target = NetNs::Open(self.place.netns.clone()).open()?;
        let Vxlan { vni, local, remote, port, .. } = self.vxlan;
        let mut data = vec![InfoVxlan::Id(vni), InfoVxlan::Port(port), InfoVxlan::Learning(false)];
        match (local, remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => data.extend([InfoVxlan::Local(local), InfoVxlan::Group(remote)]),
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                data.extend([InfoVxlan::Local6(local), InfoVxlan::Group6(remote), InfoVxlan::UDPZeroCsumRX(true)]);
            }
            _ => return Err(NetlinkError { errno: Errno::EAFNOSUPPORT, hint: None }),
        }
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
        let mut attributes = vec![LinkAttribute::NetNsFd(target.as_fd().as_raw_fd()), LinkAttribute::LinkInfo(info)];
        attributes.extend(self.settings());
        let mut create = named_link_request(RouteNetlinkMessage::NewLink, self.place.name.as_str(), attributes);
        create.flags = NLM_F_CREATE | NLM_F_EXCL;
        Netlink::open()?.request(create).map(drop)
    }

    fn delete(&self, is_meant: impl Fn(&Link) -> bool + Send + Sync) -> Result<(), NetlinkError> {
        self.inside(|netlink| match Link::named(netlink, self.place.name.as_str()) {
            Ok(link) if is_meant(&link) => {
                netlink.request(link_request(RouteNetlinkMessage::DelLink, link.index, Vec::new())).map(drop)
            }
            Ok(_) => Ok(()),
            Err(refusal) if refusal.errno == Errno::ENODEV => Ok(()),
            Err(refusal) => Err(refusal),
        })
    }

    fn inside<T: Send>(
        &self,
        work: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError> + Send,
    ) -> Result<T, NetlinkError> {
        let netns = NetNs::Open(self.place.netns.clone()).open()?;
        netns.run(|| work(&mut Netlink::open()?))?
    }

    /// By which a forwarder that starts again knows it.
    fn alias(&self) -> String {
        let Vxlan { vni, local, remote, port, .. } = self.vxlan;
        let TunnelMark { owner, connection } = &self.mark;
        format!("{ALIAS}owner={owner} id={connection} vni={vni} local={local} remote={remote} port={port}")
    }

    fn failed(&self, tried: &'static str, error: &NetlinkError) -> TunnelError {
        TunnelError { tried, place: self.place.clone(), problem: error.to_string(), is_number_taken: false }
    }
}

/// Removes the tunnels that an owner of interfaces left in the namespace of the socket, and says how many. `claim` says which connections
/// nobody wants: they stay so as long as it lives what it returns.
pub(super) fn remove_left<C>(
    netlink: &mut Netlink,
    owner: &str,
    claim: impl Fn(&str) -> Option<C>,
) -> Result<usize, NetlinkError> {
    let mut removed = 0;
    for link in Link::all(netlink)? {
        let mark = link.alias.as_deref().and_then(TunnelMark::parse).filter(|mark| mark.owner == owner);
        let Some(mark) = mark else { continue };
        let Some(_claimed) = claim(&mark.connection) else { continue };
        netlink.request(link_request(RouteNetlinkMessage::DelLink, link.index, Vec::new()))?;
        tracing::info!(interface = link.name, connection = mark.connection, "removed a tunnel that a forwarder left");
        removed += 1;
    }
    Ok(removed)
}

/// The site of our tunnels, at an address of ours.
pub(super) fn find_site(address: IpAddr, port: u16) -> Result<TunnelSite, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let owns = |message: &AddressMessage| {
        message.attributes.iter().any(|attribute| match attribute {
            AddressAttribute::Local(own) | AddressAttribute::Address(own) => *own == address,
            _ => false,
        })
    };
    let index =
        netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?.into_iter().find_map(|object| {
            match object {
                RouteNetlinkMessage::NewAddress(message) if owns(&message) => Some(message.header.index),
                _ => None,
            }
        });
    let missing = || NetlinkError { errno: Errno::EADDRNOTAVAIL, hint: Some(format!("no interface has {address}")) };
    let asked = link_request(RouteNetlinkMessage::GetLink, index.ok_or_else(missing)?, Vec::new());
    let Some(RouteNetlinkMessage::NewLink(link)) = netlink.request(asked)? else { return Err(missing()) };
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Ok(TunnelSite { address, port, link_mtu: mtu.ok_or_else(missing)? })
}

/// The address that tunnels have when nobody says one, as cmd-forwarder-vpp chooses it: the first global one of the link that the default
/// route leads to.
pub(super) fn default_address() -> Result<Option<IpAddr>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let default = routes.into_iter().filter_map(|object| match object {
        RouteNetlinkMessage::NewRoute(route) => default_link(&route),
        _ => None,
    });
    let Some((_, index)) = default.min() else { return Ok(None) };
    let addresses = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let is_there =
        |message: &AddressMessage| message.header.index == index && message.header.scope == AddressScope::Universe;
    Ok(addresses.into_iter().find_map(|object| match object {
        RouteNetlinkMessage::NewAddress(message) if is_there(&message) => address_of(&message),
        _ => None,
    }))
}

/// If it is a default route: how it ranks, and the link that it leads to.
fn default_link(route: &RouteMessage) -> Option<(u32, u32)> {
    let is_default = route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
    let find = |wanted: fn(&RouteAttribute) -> Option<u32>| route.attributes.iter().find_map(wanted);
    let link = find(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None })?;
    let rank = find(|attribute| if let RouteAttribute::Priority(rank) = attribute { Some(*rank) } else { None });
    (is_default && route.header.table == RouteHeader::RT_TABLE_MAIN).then_some((rank.unwrap_or(0), link))
}

/// Our own address: of a link with two ends, the other one's is told too.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

const ALIAS: &str = "ferrule nsm ";

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use ferrule_dataplane::spec::OpenNetNs;
    use ferrule_ffi::netns;
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    /// The interfaces of a namespace, but for its own.
    fn links(netns: &NetNs) -> Vec<LinkMessage> {
        let all = netns.open().unwrap().run(|| {
            let all = Netlink::open()?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
            Ok::<_, NetlinkError>(all)
        });
        let is_lo = |link: &LinkMessage| link.attributes.contains(&LinkAttribute::IfName("lo".to_owned()));
        let links = all.unwrap().unwrap().into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewLink(link) if !is_lo(&link) => Some(link),
            _ => None,
        });
        links.collect()
    }

    fn has(netns: &NetNs, wanted: &[LinkAttribute]) -> bool {
        let [link] = &links(netns)[..] else { return false };
        wanted.iter().all(|wanted| link.attributes.contains(wanted))
    }

    #[test]
    fn a_refresh_changes_the_mtu_and_the_mac_address_of_a_tunnel_that_is_there() {
        let (Ok(node), Ok(pod)) = (netns::NetNs::private(), netns::NetNs::private()) else {
            return println!("skipped: a tunnel in its pod: namespaces of its own");
        };
        let netns = OpenNetNs::try_from(OwnedFd::from(pod)).unwrap();
        let pod = NetNs::Open(netns.clone());
        let [local, remote] = ["127.0.0.1", "127.0.0.2"].map(|text| text.parse().unwrap());
        let tunnel = TunnelInterface {
            place: InterfacePlace { netns, name: "nsm-1".parse().unwrap() },
            vxlan: Vxlan { vni: 7, local, remote, port: 4789, mtu: 1400 },
            mark: TunnelMark::new("owner", "a"),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: None,
        };
        let make = |tunnel: &TunnelInterface| node.run(|| tunnel.make(|_| true)).unwrap();
        if let Err(error) = make(&tunnel) {
            return println!("skipped: a tunnel in its pod: VXLAN ({error})");
        }
        assert!(has(&pod, &[LinkAttribute::Mtu(1400)]), "{:?}", links(&pod));
        let (mac, mtu) = ("02:00:00:00:00:02".parse::<MacAddress>().unwrap(), 1300);
        let changed = TunnelInterface { mac: Some(mac), mtu: Some(mtu), ..tunnel.clone() };
        assert!(!make(&changed).unwrap(), "it is the same one");
        assert!(has(&pod, &[LinkAttribute::Mtu(mtu), LinkAttribute::Address(mac.0.to_vec())]), "{:?}", links(&pod));
        tunnel.remove().unwrap();
        assert!(links(&pod).is_empty() && make(&changed).unwrap());
    }

    #[test]
    fn a_tunnel_is_known_by_its_alias_and_nothing_else_passes_for_one() {
        let mark = TunnelMark::new("00ff", "12407061-cf50-4a35-acae-142428c6536f");
        let alias =
            format!("{ALIAS}owner=00ff id=12407061-cf50-4a35-acae-142428c6536f vni=7 local=::1 remote=::2 port=4789");
        assert_eq!(TunnelMark::parse(&alias), Some(mark));
        for other in ["", "server-4b1c", "ferrule nsm vni=7", "ferrule owner=1 pair=2 spec=3 end=0 wire=nsm-1"] {
            assert_eq!(TunnelMark::parse(other), None, "{other}");
        }
    }
}
