//! A network namespace, and what is asked of the kernel there.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use ferrule_ffi::ethtool;
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use ferrule_ffi::netns::NetNs;
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::errno::Errno;
use sriov_manager_client::mac::Mac;

use super::Link;
use crate::protocol::CniError;

/// A network namespace with a socket of rtnetlink.
pub struct Namespace {
    netns: NetNs,
    netlink: Netlink,
}

impl Namespace {
    /// Opens the one that a file leads to.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(NetNs::open(path)?)
    }

    /// That of this thread: the host's.
    pub fn host() -> Result<Self, CniError> {
        let open = || Self::of(NetNs::current()?);
        open().map_err(|error| CniError::failed("open the host's network namespace", error))
    }

    fn of(netns: NetNs) -> io::Result<Self> {
        let netlink = netns.run(Netlink::open)??;
        Ok(Self { netns, netlink })
    }

    /// Whether both are the same.
    pub fn is_same(&self, other: &Self) -> io::Result<bool> {
        self.netns.is_same(&other.netns)
    }

    /// Runs something inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.netns.run(work)
    }

    /// Sends requests, each with the words of what it tries, and ends at the first that is refused.
    pub fn request_all(&mut self, requests: Vec<(String, Request)>) -> Result<(), CniError> {
        let (tried, requests): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let answers = self.netlink.exchange(requests).map_err(|error| CniError::failed("ask the kernel", error))?;
        let mut refused = tried.into_iter().zip(answers).filter_map(|(tried, answer)| Some((tried, answer.err()?)));
        refused.next().map_or(Ok(()), |(tried, error)| Err(CniError::failed(&tried, error)))
    }

    /// The interface of a name.
    pub fn named(&mut self, name: &str) -> Result<Option<Link>, CniError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.netlink.request(Request { message: RouteNetlinkMessage::GetLink(message), flags: 0 }) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(link.into())),
            Ok(_) => Err(CniError::failed(&format!("look for {name}"), "the kernel's answer has no interface")),
            Err(NetlinkError { errno: Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(CniError::failed(&format!("look for {name}"), error)),
        }
    }

    /// The interface of a device.
    pub fn of_device(&mut self, device: &str) -> Result<Option<Link>, CniError> {
        let links = self.netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let links = links.map_err(|error| CniError::failed("list interfaces", error))?;
        let links: Vec<Link> = links
            .into_iter()
            .filter_map(|link| match link {
                RouteNetlinkMessage::NewLink(link) => Some(link.into()),
                _ => None,
            })
            .collect();
        if let Some(link) = links.iter().find(|link| link.device.as_deref() == Some(device)) {
            return Ok(Some(link.clone()));
        }
        let is_on = |link: &&Link| ethtool::bus_info(&link.name).is_ok_and(|place| place == device);
        let silent = || links.iter().filter(|link| link.device.is_none()).find(is_on).cloned();
        self.run(silent).map_err(|error| CniError::failed("enter a network namespace", error))
    }

    /// The addresses of an interface.
    pub fn addresses(&mut self, link: &Link) -> Result<Vec<IpNet>, CniError> {
        let addresses = self.netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let addresses = addresses.map_err(|error| CniError::failed("list addresses", error))?;
        let of_link = addresses.into_iter().filter_map(|address| match address {
            RouteNetlinkMessage::NewAddress(address) if address.header.index == link.index => {
                let ip = address.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                });
                IpNet::new(ip?, address.header.prefix_len).ok()
            }
            _ => None,
        });
        Ok(of_link.collect())
    }

    /// Sets an interface down, with another address and MTU.
    pub fn set_down(&mut self, link: &Link, mac: Option<Mac>, mtu: u32) -> Result<(), CniError> {
        let mac = mac.filter(|&mac| link.mac != Some(mac)).map(|mac| LinkAttribute::Address(mac.0.to_vec()));
        let mtu = (link.mtu != mtu).then_some(LinkAttribute::Mtu(mtu));
        let attributes: Vec<_> = mac.into_iter().chain(mtu).collect();
        let mut requests = vec![(format!("set {} down", link.name), flags_request(link.index, false))];
        if !attributes.is_empty() {
            let tried = format!("give {} its address and MTU", link.name);
            requests.push((tried, link_request(link.index, attributes)));
        }
        self.request_all(requests)
    }

    /// Sets an interface up.
    pub fn set_up(&mut self, link: &Link) -> Result<(), CniError> {
        self.request_all(vec![(format!("set {} up", link.name), flags_request(link.index, true))])
    }

    /// Calls an interface, which is down, otherwise.
    pub fn rename(&mut self, link: &Link, name: &str) -> Result<(), CniError> {
        let request = link_request(link.index, vec![LinkAttribute::IfName(name.to_owned())]);
        self.request_all(vec![(format!("call {} {name}", link.name), request)])
    }

    /// Moves an interface to another namespace, where it has another name from the first moment on. Nobody sees it there under its
    /// old name: the kernel does both in one step. It is down then.
    pub fn move_to(&mut self, link: &Link, other: &Self, name: &str) -> Result<(), CniError> {
        let to = LinkAttribute::NetNsFd(other.netns.as_fd().as_raw_fd());
        let request = link_request(link.index, vec![to, LinkAttribute::IfName(name.to_owned())]);
        self.request_all(vec![(format!("move {} as {name}", link.name), request)])
    }
}

/// A change of an interface.
pub(super) fn link_request(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

/// Up or down.
pub(super) fn flags_request(index: u32, is_up: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = if is_up { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
    Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}
