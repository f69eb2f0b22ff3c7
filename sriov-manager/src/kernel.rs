//! What we ask of the kernel beside reading: writes into sysfs, and the VF attributes of a PF.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use ferrule_ffi::netns::NetNs;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfLinkState, VfVlan, VfVlanInfo, VlanProtocol as WireProtocol,
};
use nix::errno::Errno;

use crate::address::PciAddress;
use crate::attributes::{LinkState, Mac, Rate, Setting, Settings, Vlan, VlanProtocol};

/// The kernel, or one made of files. Every call may hang: only the watchdog makes them.
pub trait Kernel: Send + Sync {
    /// Writes one value into one file of sysfs.
    fn write(&self, file: &Path, value: &str) -> Result<(), NetlinkError>;
    /// What a PF, by its interface, says of its VFs.
    fn vf_settings(&self, pf: &str) -> Result<BTreeMap<u32, Settings>, NetlinkError>;
    /// Tells a PF one thing about a VF.
    fn set_vf(&self, pf: &str, index: u32, setting: Setting) -> Result<(), NetlinkError>;
    /// Sets the MTU of an interface.
    fn set_mtu(&self, netdev: &str, mtu: u32) -> Result<(), NetlinkError>;
    /// The interface of a VF in another network namespace than ours.
    fn foreign_netdev(&self, vf: PciAddress) -> Result<Option<ForeignNetdev>, NetlinkError>;
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

    fn vf_settings(&self, pf: &str) -> Result<BTreeMap<u32, Settings>, NetlinkError> {
        let mut link = named(pf);
        let mask = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
        link.attributes.push(LinkAttribute::ExtMask(mask));
        let answer = Netlink::open()?.request(Request { message: RouteNetlinkMessage::GetLink(link), flags: 0 })?;
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
            return Err(NetlinkError {
                errno: Errno::EBADMSG,
                hint: Some(format!("no link in the answer about {pf}")),
            });
        };
        Ok(settings_of(&link))
    }

    fn set_vf(&self, pf: &str, index: u32, setting: Setting) -> Result<(), NetlinkError> {
        let mut link = named(pf);
        link.attributes.push(vf_info(index, setting));
        set_link(link)
    }

    fn set_mtu(&self, netdev: &str, mtu: u32) -> Result<(), NetlinkError> {
        let mut link = named(netdev);
        link.attributes.push(LinkAttribute::Mtu(mtu));
        set_link(link)
    }

    fn foreign_netdev(&self, vf: PciAddress) -> Result<Option<ForeignNetdev>, NetlinkError> {
        for Namespace { file, pid } in foreign_namespaces()? {
            // One that just went away holds nothing.
            let Ok(namespace) = NetNs::open(&file) else { continue };
            let links = namespace.run(|| Netlink::open()?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())));
            if let Some(netdev) = links??.iter().find_map(|link| of_device(link, vf)) {
                return Ok(Some(ForeignNetdev { netdev, namespace: file, pid }));
            }
        }
        Ok(None)
    }
}

fn named(netdev: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(netdev.to_owned()));
    link
}

fn set_link(link: LinkMessage) -> Result<(), NetlinkError> {
    Netlink::open()?.request(Request { message: RouteNetlinkMessage::SetLink(link), flags: 0 }).map(drop)
}

/// One thing about a VF.
fn vf_info(index: u32, setting: Setting) -> LinkAttribute {
    let info = match setting {
        Setting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(index, &mac.0)),
        Setting::Vlan(vlan) => {
            let protocol = match vlan.protocol {
                VlanProtocol::Dot1Q => WireProtocol::Ieee8021Q,
                VlanProtocol::Dot1Ad => WireProtocol::Ieee8021Ad,
            };
            let info = VfVlanInfo::new(index, u32::from(vlan.id), u32::from(vlan.qos), protocol);
            VfInfo::VlanList(vec![VfVlan::Info(info)])
        }
        Setting::Rate(Rate { min, max }) => VfInfo::Rate(VfInfoRate::new(index, min, max)),
        Setting::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, on)),
        Setting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(index, on)),
        Setting::LinkState(state) => VfInfo::LinkState(VfInfoLinkState::new(
            index,
            match state {
                LinkState::Auto => VfLinkState::Auto,
                LinkState::Enable => VfLinkState::Enable,
                LinkState::Disable => VfLinkState::Disable,
            },
        )),
    };
    LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])])
}

/// What a PF says of its VFs, by their numbers.
fn settings_of(link: &LinkMessage) -> BTreeMap<u32, Settings> {
    let lists = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::VfInfoList(list) => Some(list),
        _ => None,
    });
    lists.flatten().filter_map(parse_vf).collect()
}

/// The number of a VF and what is said of it. Values of -1 mean that the driver does not tell.
fn parse_vf(list: &LinkVfInfo) -> Option<(u32, Settings)> {
    let mut index = None;
    let mut settings = Settings::default();
    for info in &list.0 {
        match info {
            VfInfo::Mac(info) => {
                index = Some(info.vf_id);
                settings.mac = Mac(*info.mac.first_chunk()?);
            }
            VfInfo::Vlan(info) => {
                settings.vlan.id = u16::try_from(info.vlan_id).ok()?;
                settings.vlan.qos = u8::try_from(info.qos).ok()?;
            }
            VfInfo::VlanList(list) => {
                if let Some(VfVlan::Info(info)) = list.first() {
                    settings.vlan = parse_vlan(info)?;
                }
            }
            VfInfo::Rate(info) => settings.rate = Some(Rate { min: info.min_tx_rate, max: info.max_tx_rate }),
            VfInfo::SpoofCheck(info) => settings.spoof_check = Some(info.enabled),
            VfInfo::Trust(info) => settings.trust = Some(info.enabled),
            VfInfo::LinkState(info) => {
                settings.link_state = match info.state {
                    VfLinkState::Auto => Some(LinkState::Auto),
                    VfLinkState::Enable => Some(LinkState::Enable),
                    VfLinkState::Disable => Some(LinkState::Disable),
                    _ => None,
                };
            }
            _ => {}
        }
    }
    Some((index?, settings))
}

fn parse_vlan(info: &VfVlanInfo) -> Option<Vlan> {
    let protocol = match info.protocol {
        WireProtocol::Ieee8021Ad => VlanProtocol::Dot1Ad,
        _ => VlanProtocol::Dot1Q,
    };
    Some(Vlan { id: u16::try_from(info.vlan_id).ok()?, qos: u8::try_from(info.qos).ok()?, protocol })
}

/// The name of a link whose device is that PCI function.
fn of_device(link: &RouteNetlinkMessage, vf: PciAddress) -> Option<String> {
    let RouteNetlinkMessage::NewLink(link) = link else { return None };
    let parent = LinkAttribute::ParentDevName(vf.to_string());
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    link.attributes.contains(&parent).then_some(name).flatten()
}

struct Namespace {
    file: PathBuf,
    pid: Option<u32>,
}

/// Every network namespace but ours: those of processes, then those that only have a name.
fn foreign_namespaces() -> io::Result<Vec<Namespace>> {
    let identity = |file: &Path| fs::metadata(file).map(|metadata| (metadata.dev(), metadata.ino()));
    let mut seen = BTreeSet::from([identity(Path::new("/proc/self/ns/net"))?]);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let file = entry.path().join("ns/net");
        if identity(&file).is_ok_and(|identity| seen.insert(identity)) {
            found.push(Namespace { file, pid: Some(pid) });
        }
    }
    for directory in ["/run/netns", "/var/run/netns"] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for file in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if identity(&file).is_ok_and(|identity| seen.insert(identity)) {
                found.push(Namespace { file, pid: None });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
