//! What a PF is told about a VF, and what the kernel answers about its VFs (`rtnl_fill_ifinfo` of net/core/rtnetlink.c). The answer is
//! read by hand for two reasons: a list of more than 64 KiB, some 400 VFs, has a length that has wrapped around; and of a switch, -1 means that the driver
//! does not tell, which is not `off`.

use std::io;

use ferrule_ffi::netlink::NetlinkError;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfLinkState, VfVlan, VfVlanInfo, VlanProtocol as WireProtocol,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::PfReport;
use super::attribute::{ALIGNMENT, ATTRIBUTE_HEADER, Attribute, NLMSG_ERROR, NLMSG_HEADER, read_u16, read_u32};
use crate::attributes::{Guid, LinkState, Mac, Rate, VfChange, VfState, Vlan, VlanProtocol};

/// Asks about the interface of a number.
pub fn ask(interface: u32) -> Result<PfReport, NetlinkError> {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let payload = NetlinkPayload::InnerMessage(RouteNetlinkMessage::GetLink(link));
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);

    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    socket.recv(&mut answer, 0)?;
    let kind = read_u16(&answer, 4);
    match kind {
        Some(RTM_NEWLINK) => Ok(parse(answer.get(LINK_ATTRIBUTES..).unwrap_or_default())),
        Some(NLMSG_ERROR) => {
            let code = read_u32(&answer, NLMSG_HEADER).map_or(0, u32::cast_signed);
            Err(io::Error::from_raw_os_error(code.saturating_neg()).into())
        }
        _ => {
            Err(NetlinkError { errno: Errno::EBADMSG, hint: Some(format!("no link in the answer about {interface}")) })
        }
    }
}

/// What a PF is told: one thing about a VF.
pub(super) fn tell(index: u32, change: VfChange) -> LinkAttribute {
    let info = match change {
        VfChange::Mac(mac) => VfInfo::Mac(VfInfoMac::new(index, &mac.0)),
        VfChange::Vlan(vlan) => {
            let protocol = match vlan.protocol {
                VlanProtocol::Dot1Q => WireProtocol::Ieee8021Q,
                VlanProtocol::Dot1Ad => WireProtocol::Ieee8021Ad,
            };
            let info = VfVlanInfo::new(index, u32::from(vlan.id), u32::from(vlan.qos), protocol);
            VfInfo::VlanList(vec![VfVlan::Info(info)])
        }
        VfChange::Rate(Rate { min, max }) => VfInfo::Rate(VfInfoRate::new(index, min, max)),
        VfChange::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, on)),
        VfChange::Trust(on) => VfInfo::Trust(VfInfoTrust::new(index, on)),
        VfChange::LinkState(state) => VfInfo::LinkState(VfInfoLinkState::new(
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

/// Reads the attributes of a link.
pub(super) fn parse(attributes: &[u8]) -> PfReport {
    let mut report = PfReport::default();
    let mut rest = attributes;
    while let Some(attribute) = Attribute::first(rest) {
        let mut length = attribute.length;
        match attribute.kind {
            IFLA_VFINFO_LIST => {
                let list = rest.get(ATTRIBUTE_HEADER..).unwrap_or_default();
                let read = read_list(list, &mut report);
                // A length that has wrapped around is not believed.
                if read > length - ATTRIBUTE_HEADER {
                    length = ATTRIBUTE_HEADER + read;
                }
            }
            // An InfiniBand port has 20 bytes, of which no part says which card it is.
            IFLA_PERM_ADDRESS => report.permanent_mac = attribute.value.try_into().ok().map(Mac),
            IFLA_PARENT_DEV_NAME => {
                let name = attribute.value.split(|&byte| byte == 0).next().unwrap_or_default();
                report.device = Some(String::from_utf8_lossy(name).into_owned());
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    report
}

/// Reads the VFs at the beginning of `list`, which may be followed by others' attributes; returns their length. No other attribute
/// behind the list has the kind of a VF, which is that of the interface's address.
fn read_list(list: &[u8], report: &mut PfReport) -> usize {
    let mut read = 0;
    while let Some(vf) = Attribute::first(&list[read..]).filter(|attribute| attribute.kind == IFLA_VF_INFO) {
        if let Some((index, state, guid)) = parse_vf(vf.value) {
            report.vfs.insert(index, state);
            report.guids.extend(guid.map(|guid| (index, guid)));
        }
        read = (read + vf.length.next_multiple_of(ALIGNMENT)).min(list.len());
    }
    read
}

/// The number of a VF and what is said of it.
fn parse_vf(mut rest: &[u8]) -> Option<(u32, VfState, Option<Guid>)> {
    let (mut index, mut guid) = (None, None);
    let mut state = VfState::default();
    while let Some(Attribute { kind, length, value }) = Attribute::first(rest) {
        let word = |number: usize| read_u32(value, 4 * number);
        let switch = || word(1).filter(|&word| word != NOT_TOLD).map(|word| word != 0);
        match kind {
            IFLA_VF_MAC => {
                index = word(0);
                state.mac = Mac(*value.get(4..)?.first_chunk()?);
            }
            // Behind it comes the list of VLANs, which says the protocol as well.
            IFLA_VF_VLAN => {
                state.vlan = Vlan { id: word(1)?.try_into().ok()?, qos: word(2)?.try_into().ok()?, ..Vlan::default() };
            }
            IFLA_VF_VLAN_LIST => {
                if let Some(info) = Attribute::first(value) {
                    state.vlan = parse_vlan(info.value)?;
                }
            }
            IFLA_VF_RATE => state.rate = Some(Rate { min: word(1)?, max: word(2)? }),
            IFLA_VF_SPOOFCHK => state.spoof_check = switch(),
            IFLA_VF_TRUST => state.trust = switch(),
            // `struct ifla_vf_guid`: the number is at a multiple of its length.
            IFLA_VF_IB_NODE_GUID => {
                let number = u64::from_ne_bytes(*value.get(size_of::<u64>()..)?.first_chunk()?);
                guid = Some(Guid(number)).filter(|guid| guid.0 != 0);
            }
            IFLA_VF_LINK_STATE => {
                state.link_state = match word(1)? {
                    0 => Some(LinkState::Auto),
                    1 => Some(LinkState::Enable),
                    2 => Some(LinkState::Disable),
                    _ => None,
                };
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Some((index?, state, guid))
}

/// `struct ifla_vf_vlan_info`: the protocol is in the order of the network.
fn parse_vlan(info: &[u8]) -> Option<Vlan> {
    let protocol = match info.get(12..14)? {
        [0x88, 0xa8] => VlanProtocol::Dot1Ad,
        _ => VlanProtocol::Dot1Q,
    };
    Some(Vlan { id: read_u32(info, 4)?.try_into().ok()?, qos: read_u32(info, 8)?.try_into().ok()?, protocol })
}

/// A link's answer is 2 to 4 KiB, and some 160 bytes for each VF, of which a PF has at most 65535 and never so many.
const ANSWER_MAX: usize = 1 << 20;
/// The value of a switch that a driver does not tell (`rtnl_fill_vfinfo`).
const NOT_TOLD: u32 = u32::MAX;

// linux/rtnetlink.h and linux/if_link.h.
const RTM_NEWLINK: u16 = 16;
/// Behind the header is a `struct ifinfomsg`.
const LINK_ATTRIBUTES: usize = NLMSG_HEADER + 16;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_IB_NODE_GUID: u16 = 10;
const IFLA_VF_VLAN_LIST: u16 = 12;
