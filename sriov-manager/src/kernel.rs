//! What we ask of the kernel beside reading: writes into sysfs, the VF attributes of a PF, who uses an interface, and
//! whether a VFIO node is open.
//!
//! Modules: `vf_info` (the VFs of a PF), `devlink` (the switch of a card), `xdp_sockets` (who takes frames of an interface),
//! `attribute` (what these are read from), `namespaces` (those of others).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ferrule_ffi::ethtool;
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage, LinkXdp, Prop};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::libc;

use crate::address::PciAddress;
use crate::attributes::{Guid, Mac, VfChange, VfState};

mod attribute;
mod devlink;
mod namespaces;
mod vf_info;
mod xdp_sockets;

use namespaces::{NamespaceFile, find_elsewhere, look_elsewhere};

/// The kernel, or one made of files. Every call may hang: only the watchdog makes them.
pub trait Kernel: Send + Sync {
    /// Writes one value into one file of sysfs.
    fn write(&self, file: &Path, value: &str) -> Result<(), NetlinkError>;
    /// What a PF says of itself and of its VFs. Refused when the interface is not of that function.
    fn pf_report(&self, pf: Interface) -> Result<PfReport, NetlinkError>;
    /// Tells a PF one thing about a VF.
    fn set_vf(&self, pf: Interface, index: u32, change: VfChange) -> Result<(), NetlinkError>;
    /// Sets the MTU of an interface.
    fn set_mtu(&self, interface: Interface, mtu: u32) -> Result<(), NetlinkError>;
    /// The interface of a VF in another network namespace than ours.
    fn foreign_netdev(&self, vf: PciAddress) -> Result<Option<ForeignNetdev>, NetlinkError>;
    /// Interfaces of PCI functions in network namespaces that a process is in, or that have a name, but for ours: all at once.
    fn foreign_netdevs(&self) -> Result<BTreeMap<PciAddress, ForeignNetdev>, NetlinkError>;
    /// Other names of the interfaces in our namespace, by their own names.
    fn altnames(&self) -> Result<BTreeMap<String, Vec<String>>, NetlinkError>;
    /// What the host does with an interface, in words: addresses, routes, XDP programs.
    fn host_uses(&self, interface: Interface) -> Result<Vec<String>, NetlinkError>;
    /// What the switch of a PF's card does; none: it has none, or its driver does not tell.
    fn eswitch_mode(&self, pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError>;
    /// Whether somebody has a node of VFIO open, or a device that was opened through it; none: there is no such node.
    fn is_vfio_open(&self, node: &Path) -> Result<Option<bool>, NetlinkError>;
}

/// A network interface in our namespace, by its number: a name may be another one's the next moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number.
    pub index: u32,
    /// The function that it is of.
    pub device: PciAddress,
}

/// What a PF says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PfReport {
    /// The address that it was made with, whatever a bond gave it since.
    pub permanent_mac: Option<Mac>,
    /// The function that it is of; none: a kernel before 5.14 does not say.
    pub device: Option<String>,
    /// Its VFs by their numbers. One whose driver is busy is not among them.
    pub vfs: BTreeMap<u32, VfState>,
    /// The GUIDs that it gave its VFs, by their numbers.
    pub guids: BTreeMap<u32, Guid>,
}

/// What the switch of a card does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EswitchMode {
    /// It forwards by MAC address and VLAN.
    Legacy,
    /// By rules, with an interface here for the other end of each VF.
    Switchdev,
}

/// An interface that is in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignNetdev {
    /// Its name there.
    pub netdev: String,
    /// A file of the namespace.
    pub namespace: PathBuf,
    /// A process inside; none: the namespace has only a name.
    pub pid: Option<u32>,
}

impl PfReport {
    /// This, if it is of the function that was meant.
    fn of(self, pf: Interface) -> Result<Self, NetlinkError> {
        match &self.device {
            Some(device) if *device != pf.device.to_string() => Err(NetlinkError {
                errno: Errno::ENODEV,
                hint: Some(format!("the interface {} is of {device} and not of {}", pf.index, pf.device)),
            }),
            _ => Ok(self),
        }
    }
}

/// The kernel of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LiveKernel;

impl Kernel for LiveKernel {
    fn write(&self, file: &Path, value: &str) -> Result<(), NetlinkError> {
        let mut file = OpenOptions::new().write(true).open(file)?;
        // The kernel takes each write as a whole command, so it is one.
        let written = file.write(value.as_bytes())?;
        if written < value.len() {
            return Err(NetlinkError { errno: Errno::EIO, hint: Some(format!("only {written} bytes were taken")) });
        }
        Ok(())
    }

    fn pf_report(&self, pf: Interface) -> Result<PfReport, NetlinkError> {
        vf_info::ask(pf.index)?.of(pf)
    }

    fn set_vf(&self, pf: Interface, index: u32, change: VfChange) -> Result<(), NetlinkError> {
        let mut link = numbered(pf);
        link.attributes.push(vf_info::tell(index, change));
        set_link(link)
    }

    fn set_mtu(&self, interface: Interface, mtu: u32) -> Result<(), NetlinkError> {
        let mut link = numbered(interface);
        link.attributes.push(LinkAttribute::Mtu(mtu));
        set_link(link)
    }

    fn foreign_netdev(&self, vf: PciAddress) -> Result<Option<ForeignNetdev>, NetlinkError> {
        find_elsewhere(|namespace, NamespaceFile { path, pid, .. }| {
            let found = namespace.run(|| find_netdev(vf))??;
            Ok(found.map(|netdev| ForeignNetdev { netdev, namespace: path.clone(), pid: *pid }))
        })
    }

    fn foreign_netdevs(&self) -> Result<BTreeMap<PciAddress, ForeignNetdev>, NetlinkError> {
        let mut found = BTreeMap::new();
        look_elsewhere(|namespace, NamespaceFile { path, pid, .. }| {
            let links = namespace.run(links)??;
            found.extend(
                links
                    .iter()
                    .filter_map(device_of)
                    .map(|(device, netdev)| (device, ForeignNetdev { netdev, namespace: path.clone(), pid: *pid })),
            );
            Ok(())
        });
        Ok(found)
    }

    fn altnames(&self) -> Result<BTreeMap<String, Vec<String>>, NetlinkError> {
        Ok(links()?.iter().filter_map(altnames_of).collect())
    }

    fn host_uses(&self, interface: Interface) -> Result<Vec<String>, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let mut uses = Vec::new();
        let addresses = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        uses.extend(addresses.iter().filter_map(|message| address_of(message, interface.index)));
        let routes = netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        let routes = routes.iter().filter_map(|message| route_over(message, interface.index));
        // One says it for all: there may be very many.
        uses.extend(routes.min().map(|use_of| use_of.to_string()));
        let link = RouteNetlinkMessage::GetLink(numbered(interface));
        if let Some(RouteNetlinkMessage::NewLink(link)) = netlink.request(Request { message: link, flags: 0 })?
            && has_xdp(&link)
        {
            uses.push("an XDP program is attached to it".to_owned());
        }
        match xdp_sockets::bound_to(interface.index)? {
            None | Some(0) => {}
            Some(1) => uses.push("an AF_XDP socket is bound to it".to_owned()),
            Some(count) => uses.push(format!("{count} AF_XDP sockets are bound to it")),
        }
        Ok(uses)
    }

    fn eswitch_mode(&self, pf: PciAddress) -> Result<Option<EswitchMode>, NetlinkError> {
        devlink::eswitch_mode(pf)
    }

    fn is_vfio_open(&self, node: &Path) -> Result<Option<bool>, NetlinkError> {
        let lock = probe_lock(node);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // A group can be opened once. Devices keep their group open, also when its own file was closed.
        match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(node) {
            Ok(_) => Ok(Some(false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(Some(true)),
            Err(error) => Err(error.into()),
        }
    }
}

/// The interface of a VF, if it is in the namespace of this thread.
fn find_netdev(vf: PciAddress) -> Result<Option<String>, NetlinkError> {
    let links = links()?;
    let named = links.iter().find_map(|link| of_device(link, vf));
    // Kernels before 5.14 do not name the device of a link; its driver does.
    let is_of_vf = |netdev: &String| ethtool::bus_info(netdev).is_ok_and(|place| place == vf.to_string());
    Ok(named.or_else(|| links.iter().filter_map(of_unnamed_device).find(is_of_vf)))
}

/// Those in the namespace of this thread.
fn links() -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
    Netlink::open()?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
}

fn numbered(interface: Interface) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = interface.index;
    link
}

/// An address that somebody gave an interface: the kernel itself gives one of IPv6 for the link alone.
fn address_of(message: &RouteNetlinkMessage, interface: u32) -> Option<String> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let is_from_kernel = message.header.family == AddressFamily::Inet6 && message.header.scope == AddressScope::Link;
    if message.header.index != interface || is_from_kernel {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(address),
        _ => None,
    });
    address.map(|address| format!("it has the address {address}/{}", message.header.prefix_len))
}

/// What a route that goes over an interface is. Those that the kernel makes with each address are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RouteOver {
    Default,
    Other,
}

impl fmt::Display for RouteOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "the default route goes over it",
            Self::Other => "a route goes over it",
        })
    }
}

fn route_over(message: &RouteNetlinkMessage, interface: u32) -> Option<RouteOver> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let over = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => *index == interface,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == interface),
        _ => false,
    };
    let header = &route.header;
    // Kernels of long ago call those of multicast, which are in the table of local ones, somebody's.
    let is_from_kernel =
        header.protocol == RouteProtocol::Kernel || header.table == RT_TABLE_LOCAL || header.kind != RouteType::Unicast;
    if is_from_kernel || !route.attributes.iter().any(over) {
        return None;
    }
    Some(if header.destination_prefix_length == 0 { RouteOver::Default } else { RouteOver::Other })
}

fn has_xdp(link: &LinkMessage) -> bool {
    let xdp = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    xdp.flatten().any(|xdp| matches!(xdp, LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) if *id != 0))
}

fn set_link(link: LinkMessage) -> Result<(), NetlinkError> {
    Netlink::open()?.request(Request { message: RouteNetlinkMessage::SetLink(link), flags: 0 }).map(drop)
}

/// The name of a link, and its others.
fn altnames_of(link: &RouteNetlinkMessage) -> Option<(String, Vec<String>)> {
    let RouteNetlinkMessage::NewLink(link) = link else { return None };
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let properties = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::PropList(properties) => Some(properties),
        _ => None,
    });
    let altname = |property: &Prop| match property {
        Prop::AltIfName(name) => Some(name.clone()),
        _ => None,
    };
    let altnames: Vec<_> = properties.flatten().filter_map(altname).collect();
    Some((name?, altnames)).filter(|(_, altnames)| !altnames.is_empty())
}

/// The name of a link whose device is that PCI function.
fn of_device(link: &RouteNetlinkMessage, vf: PciAddress) -> Option<String> {
    device_of(link).filter(|(device, _)| *device == vf).map(|(_, name)| name)
}

/// The PCI function that is the device of a link, and the name of the link.
fn device_of(link: &RouteNetlinkMessage) -> Option<(PciAddress, String)> {
    let RouteNetlinkMessage::NewLink(link) = link else { return None };
    let (mut device, mut name) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(own) => name = Some(own.clone()),
            LinkAttribute::ParentDevName(parent) => device = parent.parse().ok(),
            _ => {}
        }
    }
    device.zip(name)
}

/// The name of a link of a device that the kernel does not name. Those without a device have a kind, or are the loopback.
fn of_unnamed_device(link: &RouteNetlinkMessage) -> Option<String> {
    let RouteNetlinkMessage::NewLink(link) = link else { return None };
    let mut name = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(own) => name = Some(own.clone()),
            LinkAttribute::ParentDevName(_) | LinkAttribute::LinkInfo(_) => return None,
            _ => {}
        }
    }
    name.filter(|_| link.header.link_layer_type != LinkLayerType::Loopback)
}

/// The lock of a VFIO node. A group can be opened once: a look at the same moment as another one would find it open.
fn probe_lock(node: &Path) -> Arc<Mutex<()>> {
    static PROBED: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let mut probed = PROBED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(probed.entry(node.to_owned()).or_default())
}

/// linux/rtnetlink.h.
const RT_TABLE_LOCAL: u8 = 255;

#[cfg(test)]
mod tests;
