//! An interface, as the kernel describes it.

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use sriov_manager_client::mac::Mac;

/// An interface, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// What it is called there.
    pub name: String,
    /// None: it has none of Ethernet's.
    pub mac: Option<Mac>,
    /// Bytes of a packet.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether it has a link.
    pub has_carrier: bool,
    /// Its device, as `0000:3b:02.1`; none: it has none, or Linux is before 5.14.
    pub device: Option<String>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let is_up = message.header.flags.contains(LinkFlags::Up);
        let mut link = Self { index: message.header.index, is_up, ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Carrier(carrier) => link.has_carrier = carrier == 1,
                LinkAttribute::ParentDevName(device) => link.device = Some(device),
                _ => {}
            }
        }
        link
    }
}
