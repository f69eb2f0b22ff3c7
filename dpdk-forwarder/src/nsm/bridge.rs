//! A tunnel for an end that is no interface of the kernel: a namespace of our own in which a bridge joins the TAP of a wire with the
//! kernel's VXLAN device.
//!
//! The UDP port of tunnels belongs to the kernel as long as one of its devices has it, so all tunnels of a node are its devices. The
//! namespace has no name: when the forwarder ends, in whichever way, it goes with everything in it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use ferrule_dataplane::port::kernel::message::{Link, link_request, named_link_request, up_request};
use ferrule_dataplane::spec::{InterfaceName, KernelSpec, NetNs, OpenNetNs, WireSpec};
use ferrule_ffi::netlink::{Netlink, NetlinkError};
use ferrule_ffi::netns;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo};
use nix::errno::Errno;

use super::interface::InterfacePlace;
use super::tunnel::TunnelInterface;

/// What joins such an end with another node.
#[derive(Clone, Debug)]
pub(super) struct TunnelBridge {
    /// From the end to the TAP.
    pub(super) wire: WireSpec,
    pub(super) tunnel: TunnelInterface,
}

/// A namespace for one of them.
#[derive(Clone, Debug)]
pub(super) struct BridgeRoom(OpenNetNs);

impl BridgeRoom {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        let room = netns::NetNs::private()?;
        // Nothing in it is to say anything by itself.
        room.run(|| ["all", "default"].into_iter().try_for_each(silence))??;
        Ok(Self(OpenNetNs::try_from(OwnedFd::from(room))?))
    }

    /// What it is.
    pub(super) fn netns(&self) -> &OpenNetNs {
        &self.0
    }

    /// Works in it.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError> + Send,
    ) -> Result<T, NetlinkError> {
        let netns = NetNs::Open(self.0.clone()).open()?;
        netns.run(|| work(&mut Netlink::open()?))?
    }

    /// The TAP in it.
    pub(super) fn tap(&self, mtu: Option<u32>) -> KernelSpec {
        KernelSpec { netns: Some(NetNs::Open(self.0.clone())), mtu, ..KernelSpec::new(name(TAP)) }
    }

    /// Where the tunnel is.
    pub(super) fn tunnel(&self) -> InterfacePlace {
        InterfacePlace { netns: self.0.clone(), name: name(TUNNEL) }
    }
}

impl TunnelBridge {
    /// The namespace that it is in.
    pub(super) fn room(&self) -> BridgeRoom {
        BridgeRoom(self.tunnel.place.netns.clone())
    }

    /// Joins both, once they are there. Again and again it is the same.
    pub(super) fn join(&self) -> Result<(), NetlinkError> {
        self.room().inside(|netlink| {
            let data = vec![
                // With two ports nothing has to be learned: what comes in at one goes out at the other.
                InfoBridge::AgeingTime(0),
                InfoBridge::MulticastSnooping(false),
                InfoBridge::GroupFwdMask(GROUPS),
            ];
            let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))];
            let mut create = named_link_request(RouteNetlinkMessage::NewLink, BRIDGE, [LinkAttribute::LinkInfo(info)]);
            create.flags = NLM_F_CREATE | NLM_F_EXCL;
            match netlink.request(create) {
                Err(refusal) if refusal.errno != Errno::EEXIST => return Err(refusal),
                _ => {}
            }
            let bridge = Link::named(netlink, BRIDGE)?.index;
            netlink.request(up_request(bridge))?;
            for port in [TAP, TUNNEL] {
                let index = Link::named(netlink, port)?.index;
                let of_bridge = vec![LinkAttribute::Controller(bridge)];
                netlink.request(link_request(RouteNetlinkMessage::SetLink, index, of_bridge))?;
            }
            Ok(())
        })
    }

    /// Removes the bridge, if it is there.
    pub(super) fn part(&self) -> Result<(), NetlinkError> {
        self.room().inside(|netlink| {
            match netlink.request(named_link_request(RouteNetlinkMessage::DelLink, BRIDGE, [])) {
                Err(refusal) if refusal.errno != Errno::ENODEV => Err(refusal),
                _ => Ok(()),
            }
        })
    }
}

/// IPv6 says nothing by these interfaces of the thread's namespace.
pub(super) fn silence(interfaces: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{interfaces}/disable_ipv6"), "1") {
        // The kernel has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn name(text: &str) -> InterfaceName {
    text.parse().expect("the kernel takes these names")
}

const TAP: &str = "tap";
const TUNNEL: &str = "tunnel";
const BRIDGE: &str = "bridge";
/// Frames to 01:80:c2:00:00:03 to 0f are passed on too. The kernel keeps the first three: spanning tree, pause, and link aggregation.
const GROUPS: u16 = 0xfff8;
