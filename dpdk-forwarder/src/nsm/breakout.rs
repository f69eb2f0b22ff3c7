//! VLAN breakout: connections leave the mesh into a VLAN of a device of the node.
//!
//! ```text
//!   client ==wire== port \
//!                         bridge - trunk ==veth== branch ~~tag on, off~~ device of the node
//!   client ==wire== port /  (a namespace of ours for each VLAN)
//! ```
//! Clients of one VLAN reach what is behind the device, and not each other, as with cmd-forwarder-vpp. The namespace has no name, and what
//! hangs at the device goes with this process: when the forwarder ends, in whichever way, nothing of it is left.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ferrule_dataplane::port::kernel::message::{Link, link_request, named_link_request, up_request};
use ferrule_dataplane::spec::{InterfaceName, KernelSpec, MacAddress, NetNs, WireSpec};
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use ferrule_ffi::vlan_link::VlanLink;
use ferrule_nsm::path::new_id;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use tonic::Status;

use super::bridge::{BridgeRoom, silence};
use super::device_selector::DeviceSelector;
use super::vxlan::REMOTE;

/// The VLANs that connections leave by now.
#[derive(Default)]
pub(super) struct Breakouts {
    selector: DeviceSelector,
    open: Mutex<BTreeMap<(InterfaceName, u16), Weak<VlanRoom>>>,
}

/// A VLAN of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VlanPlace {
    pub(super) device: InterfaceName,
    /// 0: frames without a tag.
    pub(super) vlan: u16,
}

/// A connection's way into a VLAN.
#[derive(Clone, Debug)]
pub(super) struct Breakout {
    /// From the client to a port of the room.
    pub(super) wire: WireSpec,
    pub(super) port: InterfaceName,
    /// The client's, if it is known.
    pub(super) mac: Option<MacAddress>,
    pub(super) room: Arc<VlanRoom>,
}

/// Where the connections of a VLAN meet.
pub(super) struct VlanRoom {
    room: BridgeRoom,
    place: VlanPlace,
    /// The device's number: one of the same name may be another.
    index: u32,
    _link: VlanLink,
}

impl Breakouts {
    /// By the devices that a file says.
    pub(super) fn new(selector: DeviceSelector) -> Self {
        for device in selector.devices() {
            let found = Netlink::open().map_err(NetlinkError::from);
            if let Err(error) = found.and_then(|mut netlink| Link::named(&mut netlink, device.name.as_str())) {
                tracing::warn!(device = %device.name, %error, "a device of the device selector is not there yet");
            }
        }
        Self { selector, open: Mutex::default() }
    }

    /// What an endpoint that is no pod of this node is asked for, if the connection says by which device it may leave.
    pub(super) fn preference(&self, connection: &Connection) -> Option<Mechanism> {
        self.selector.device(&connection.labels)?;
        Some(Mechanism { cls: REMOTE.to_owned(), r#type: VLAN.to_owned(), ..Mechanism::default() })
    }

    /// The VLAN that an endpoint has answered.
    pub(super) fn place(&self, connection: &Connection, mechanism: &Mechanism) -> Result<VlanPlace, Status> {
        let device = self.selector.device(&connection.labels).ok_or_else(|| {
            Status::failed_precondition(
                "the endpoint's mechanism is VLAN, and no device has what the connection's label `via` says: see NSM_DEVICE_SELECTOR_FILE",
            )
        })?;
        let text = mechanism.parameters.get(VLAN_ID).map_or("", String::as_str);
        // Without one the frames have no tag, as with the Go forwarders.
        let vlan = if text.is_empty() { Some(0) } else { text.parse().ok().filter(|vlan| *vlan <= VLAN_MAX) };
        let vlan = vlan.ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            Status::invalid_argument(format!("the mechanism {VLAN}: {VLAN_ID} {shown:?} is none; 0 to {VLAN_MAX} are"))
        })?;
        let place = VlanPlace { device: device.name.clone(), vlan };
        if !device.has(vlan) {
            return Err(Status::permission_denied(format!(
                "{place} is not for connections: its `vlans` in the device selector say which are"
            )));
        }
        Ok(place)
    }

    /// What the device of a VLAN carries, beside the tag. Blocks for a moment.
    pub(super) fn mtu(place: &VlanPlace) -> Result<u32, Status> {
        let found = Netlink::open().map_err(NetlinkError::from).and_then(|mut netlink| {
            let asked = named_link_request(RouteNetlinkMessage::GetLink, place.device.as_str(), []);
            Ok(match netlink.request(asked)? {
                Some(RouteNetlinkMessage::NewLink(link)) => mtu_of(&link),
                _ => None,
            })
        });
        found.map_err(|error| place.failed("find", &error))?.ok_or_else(|| Status::internal("a device without an MTU"))
    }

    /// The room of a VLAN, which is there as long as somebody has it. Blocks.
    pub(super) fn open(&self, place: &VlanPlace) -> Result<Arc<VlanRoom>, Status> {
        // Held while it is made: a VLAN has one.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, room| room.strong_count() > 0);
        let found = Netlink::open().map_err(NetlinkError::from);
        let found = found.and_then(|mut netlink| Link::named(&mut netlink, place.device.as_str()));
        let index = found.map_err(|error| place.failed("find", &error))?.index;
        let key = (place.device.clone(), place.vlan);
        if let Some(room) = open.get(&key).and_then(Weak::upgrade).filter(|room| room.index == index) {
            return Ok(room);
        }
        let mtu = Self::mtu(place)?;
        let room = Arc::new(VlanRoom::make(place, index, mtu).map_err(|error| place.failed("leave by", &error))?);
        open.insert(key, Arc::downgrade(&room));
        Ok(room)
    }
}

impl VlanPlace {
    fn failed(&self, tried: &str, error: &NetlinkError) -> Status {
        let hint = match error.errno {
            Errno::EINVAL => "; this takes Linux 6.6",
            Errno::ENODEV => "; the device selector names it",
            _ => "",
        };
        Status::failed_precondition(format!("{tried} {self}: {error}{hint}"))
    }
}

impl fmt::Display for VlanPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VLAN {} of {}", self.vlan, self.device)
    }
}

impl VlanRoom {
    /// All of it carries what the device does: a bridge drops what is longer, and says nothing.
    fn make(place: &VlanPlace, index: u32, mtu: u32) -> Result<Self, NetlinkError> {
        let room = BridgeRoom::new()?;
        let mut netlink = Netlink::open()?;
        // It goes with the namespace of the other end, a moment later: the next one has another name.
        let branch = format!("fv{}", new_id().get(..8).unwrap_or_default());
        let target = NetNs::Open(room.netns().clone()).open()?;
        let mut trunk = LinkMessage::default();
        let target = LinkAttribute::NetNsFd(target.as_fd().as_raw_fd());
        trunk.attributes = vec![LinkAttribute::IfName(TRUNK.to_owned()), target, LinkAttribute::Mtu(mtu)];
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(trunk)))];
        let mut create = creating(&branch, info);
        if let RouteNetlinkMessage::NewLink(link) = &mut create.message {
            link.attributes.push(LinkAttribute::Mtu(mtu));
        }
        netlink.request(create)?;
        // What the node says by itself there would be heard by all clients.
        silence(&branch)?;
        let branch = Link::named(&mut netlink, &branch)?.index;
        netlink.request(up_request(branch))?;
        room.inside(|netlink| {
            // A kernel without the limit (before Linux 6.7) knows nothing of it, and goes on without.
            let data = vec![InfoBridge::MulticastSnooping(false), InfoBridge::FdbMaxLearned(LEARNED_MAX)];
            let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))];
            netlink.request(creating(BRIDGE, info))?;
            let bridge = Link::named(netlink, BRIDGE)?.index;
            netlink.request(up_request(bridge))?;
            let trunk = Link::named(netlink, TRUNK)?.index;
            netlink.request(of_bridge(trunk, bridge))?;
            netlink.request(up_request(trunk)).map(drop)
        })?;
        let link = VlanLink::attach(index, branch, place.vlan)?;
        Ok(Self { room, place: place.clone(), index, _link: link })
    }

    /// The end of a connection's wire in it.
    pub(super) fn port(&self, name: &InterfaceName, mtu: Option<u32>) -> KernelSpec {
        KernelSpec { netns: Some(NetNs::Open(self.room.netns().clone())), mtu, ..KernelSpec::new(name.clone()) }
    }
}

impl fmt::Debug for VlanRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VlanRoom({})", self.place)
    }
}

impl Breakout {
    /// Joins the wire's port with the others, once it is there. Again and again it is the same.
    pub(super) fn join(&self) -> Result<(), NetlinkError> {
        self.room.room.inside(|netlink| {
            let bridge = Link::named(netlink, BRIDGE)?.index;
            let port = Link::named(netlink, self.port.as_str())?.index;
            netlink.request(of_bridge(port, bridge))?;
            // It does not reach the ports of others, and where its address is known nobody has that by saying so: neither its own, nor that
            // of whoever is outside.
            let alone = vec![InfoBridgePort::Isolated(true), InfoBridgePort::Learning(self.mac.is_none())];
            let alone = InfoPortData::BridgePort(alone);
            let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(alone)];
            // The kernel looks at what kinds of links have only where one is made, or could be.
            let isolate = link_request(RouteNetlinkMessage::NewLink, port, vec![LinkAttribute::LinkInfo(info)]);
            netlink.request(isolate)?;
            self.mac.map_or(Ok(()), |mac| netlink.request(at_port(port, mac)).map(drop))
        })
    }
}

fn creating(name: &str, info: Vec<LinkInfo>) -> Request {
    let create = named_link_request(RouteNetlinkMessage::NewLink, name, [LinkAttribute::LinkInfo(info)]);
    Request { flags: NLM_F_CREATE | NLM_F_EXCL, ..create }
}

fn of_bridge(port: u32, bridge: u32) -> Request {
    link_request(RouteNetlinkMessage::SetLink, port, vec![LinkAttribute::Controller(bridge)])
}

/// An address is at a port for good.
fn at_port(port: u32, mac: MacAddress) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The mechanism's name.
pub(super) const VLAN: &str = "VLAN";
const VLAN_ID: &str = "vlan-id";
const VLAN_MAX: u16 = 4094;
const BRIDGE: &str = "bridge";
const TRUNK: &str = "trunk";
/// Addresses that a bridge learns: whoever sends from a new one each time would take the node's memory. Those beyond are reached all the
/// same, by what goes to all ports.
const LEARNED_MAX: u32 = 4096;

#[cfg(test)]
mod tests {
    use ferrule_ffi::netns;

    use super::*;

    #[test]
    fn a_room_learns_so_many_addresses_and_no_more() {
        let name = "a_room_learns_so_many_addresses_and_no_more";
        let Ok(node) = netns::NetNs::private() else {
            return println!("skipped: {name}: lacks a namespace of its own");
        };
        let bridges = || -> Result<Vec<InfoBridge>, NetlinkError> {
            let mut netlink = Netlink::open()?;
            netlink.request(creating("eth1", vec![LinkInfo::Kind(InfoKind::Veth)]))?;
            let index = Link::named(&mut netlink, "eth1")?.index;
            let room = VlanRoom::make(&VlanPlace { device: "eth1".parse().unwrap(), vlan: 100 }, index, 1500)?;
            let links =
                room.room.inside(|netlink| netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())))?;
            let attributes = links.into_iter().flat_map(|link| match link {
                RouteNetlinkMessage::NewLink(link) => link.attributes,
                _ => Vec::new(),
            });
            let infos = attributes.flat_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos,
                _ => Vec::new(),
            });
            let of_bridge = |info| if let LinkInfo::Data(InfoData::Bridge(data)) = info { Some(data) } else { None };
            Ok(infos.filter_map(of_bridge).flatten().collect())
        };
        match node.run(bridges).unwrap() {
            Err(error) => println!("skipped: {name}: lacks a VLAN at a device ({error})"),
            Ok(told) if !told.iter().any(|told| matches!(told, InfoBridge::FdbMaxLearned(_))) => {
                println!("skipped: {name}: lacks the limit (Linux 6.7)");
            }
            Ok(told) => assert!(told.contains(&InfoBridge::FdbMaxLearned(LEARNED_MAX)), "{told:?}"),
        }
    }

    #[test]
    fn a_connection_leaves_by_the_device_of_its_label_and_the_vlan_of_its_endpoint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("selector.yaml");
        let text = "interfaces: [{name: eth1, vlans: [0, 100-110], matches: [{labelSelector: [{via: gw0}]}]}]\n";
        std::fs::write(&path, text).unwrap();
        let breakouts = Breakouts::new(DeviceSelector::load(&path).unwrap());
        let by =
            |via: &str| Connection { labels: [("via".to_owned(), via.to_owned())].into(), ..Connection::default() };
        assert_eq!(breakouts.preference(&by("gw0")).unwrap().r#type, VLAN);
        assert_eq!(breakouts.preference(&by("gw1")), None);
        assert_eq!(breakouts.preference(&Connection::default()), None);
        let answered = |vlan: &str| {
            let parameters = [(VLAN_ID.to_owned(), vlan.to_owned())].into();
            Mechanism { r#type: VLAN.to_owned(), parameters, ..Mechanism::default() }
        };
        let place = |vlan: &str| breakouts.place(&by("gw0"), &answered(vlan)).map(|place| place.to_string());
        assert_eq!(place("100").unwrap(), "VLAN 100 of eth1");
        assert_eq!(place("").unwrap(), "VLAN 0 of eth1");
        assert_eq!(place("111").unwrap_err().code(), tonic::Code::PermissionDenied);
        for wrong in ["4095", "-1", "x"] {
            assert_eq!(place(wrong).unwrap_err().code(), tonic::Code::InvalidArgument, "{wrong}");
        }
        let refused = breakouts.place(&by("gw1"), &answered("100")).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    }
}
