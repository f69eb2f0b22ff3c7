//! What is said to rtnetlink and what it says, byte by byte: no NIC at hand can do all of it.

use netlink_packet_core::{Emitable, NetlinkMessage, NetlinkPayload};

use super::*;

/// An attribute of netlink: length, kind, value, padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct ifla_vf_mac`: the VF, and room for 32 bytes of address.
fn mac(vf: u32) -> Vec<u8> {
    let mut bytes = [&vf.to_ne_bytes()[..], &[2, 0, 0, 0, 0, 9]].concat();
    bytes.resize(36, 0);
    bytes
}

/// `struct ifla_vf_vlan_info`: the protocol is in the order of the network.
fn vlan_info(vf: u32, id: u32, qos: u32, protocol: u16) -> Vec<u8> {
    [&words(&[vf, id, qos])[..], &protocol.to_be_bytes(), &[0, 0]].concat()
}

#[test]
fn what_a_pf_is_told_is_what_ip_link_tells_it() {
    let service = Vlan { id: 100, qos: 5, protocol: VlanProtocol::Dot1Ad };
    let customer = Vlan { protocol: VlanProtocol::Dot1Q, ..service };
    let list = |info: Vec<u8>| attribute(IFLA_VF_VLAN_LIST, &attribute(IFLA_VF_VLAN_INFO, &info));
    for (setting, wanted) in [
        // As strace shows `ip link set lo vf 3 ...` of iproute2 6.1 to send it.
        (Setting::Mac(Mac([2, 0, 0, 0, 0, 9])), attribute(IFLA_VF_MAC, &mac(3))),
        (Setting::Vlan(service), list(vlan_info(3, 100, 5, 0x88a8))),
        (Setting::Vlan(customer), list(vlan_info(3, 100, 5, 0x8100))),
        (Setting::Rate(Rate { min: 10, max: 500 }), attribute(IFLA_VF_RATE, &words(&[3, 10, 500]))),
        (Setting::SpoofCheck(false), attribute(IFLA_VF_SPOOFCHK, &words(&[3, 0]))),
        (Setting::Trust(true), attribute(IFLA_VF_TRUST, &words(&[3, 1]))),
        (Setting::LinkState(LinkState::Auto), attribute(IFLA_VF_LINK_STATE, &words(&[3, 0]))),
        (Setting::LinkState(LinkState::Enable), attribute(IFLA_VF_LINK_STATE, &words(&[3, 1]))),
        (Setting::LinkState(LinkState::Disable), attribute(IFLA_VF_LINK_STATE, &words(&[3, 2]))),
    ] {
        let mut sent = vec![0; vf_info(3, setting).buffer_len()];
        vf_info(3, setting).emit(&mut sent);
        assert_eq!(plain(&sent), attribute(IFLA_VFINFO_LIST, &attribute(IFLA_VF_INFO, &wanted)), "{setting}");
    }
}

/// Without the mark of a nest on its kinds, which the kernel takes and ip does not set: two levels are here.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for kind in [2, 6] {
        let word = u16::from_ne_bytes([bytes[kind], bytes[kind + 1]]) & !NLA_F_NESTED;
        bytes[kind..kind + 2].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[test]
fn what_a_pf_says_of_its_vfs_is_understood() {
    // In the order of `rtnl_fill_vfinfo` of net/core/rtnetlink.c, Linux 6.12.
    let vf = |index: u32, link_state: u32, vlan: &[u8]| {
        attribute(
            IFLA_VF_INFO,
            &[
                attribute(IFLA_VF_MAC, &mac(index)),
                attribute(IFLA_VF_VLAN, &words(&[index, 100, 5])),
                attribute(IFLA_VF_RATE, &words(&[index, 10, 500])),
                attribute(IFLA_VF_TX_RATE, &words(&[index, 500])),
                attribute(IFLA_VF_SPOOFCHK, &words(&[index, 1])),
                attribute(IFLA_VF_LINK_STATE, &words(&[index, link_state])),
                attribute(IFLA_VF_RSS_QUERY_EN, &words(&[index, 0])),
                attribute(IFLA_VF_TRUST, &words(&[index, 1])),
                attribute(IFLA_VF_VLAN_LIST, &attribute(IFLA_VF_VLAN_INFO, vlan)),
            ]
            .concat(),
        )
    };
    let vfs = [vf(0, 1, &vlan_info(0, 100, 5, 0x88a8)), vf(12, 2, &vlan_info(12, 100, 5, 0x8100))].concat();
    let settings = settings_of(&link(&attribute(IFLA_VFINFO_LIST, &vfs)));
    let wanted = |protocol, link_state| Settings {
        mac: Mac([2, 0, 0, 0, 0, 9]),
        vlan: Vlan { id: 100, qos: 5, protocol },
        rate: Some(Rate { min: 10, max: 500 }),
        spoof_check: Some(true),
        trust: Some(true),
        link_state: Some(link_state),
    };
    assert_eq!(settings.keys().copied().collect::<Vec<_>>(), [0, 12]);
    assert_eq!(settings[&0], wanted(VlanProtocol::Dot1Ad, LinkState::Enable));
    assert_eq!(settings[&12], wanted(VlanProtocol::Dot1Q, LinkState::Disable));
}

/// `RTM_NEWLINK` with these attributes.
fn link(attributes: &[u8]) -> LinkMessage {
    let body = [&[0; 16][..], attributes].concat();
    let length = 16 + body.len() as u32;
    let header = [&length.to_ne_bytes()[..], &RTM_NEWLINK.to_ne_bytes(), &[0; 10]].concat();
    let message = NetlinkMessage::deserialize(&[header, body].concat()).unwrap();
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => link,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vf_is_read_with_its_vlan_list_before_its_plain_vlan() {
    let vlan = VfVlanInfo::new(3, 100, 5, WireProtocol::Ieee8021Ad);
    let list = LinkVfInfo(vec![
        VfInfo::Mac(VfInfoMac::new(3, &[2, 0, 0, 0, 0, 9])),
        VfInfo::VlanList(vec![VfVlan::Info(vlan)]),
        VfInfo::Rate(VfInfoRate::new(3, 0, 500)),
        VfInfo::LinkState(VfInfoLinkState::new(3, VfLinkState::Other(u32::MAX))),
    ]);
    let (index, settings) = parse_vf(&list).unwrap();
    assert_eq!(index, 3);
    assert_eq!(settings.vlan, Vlan { id: 100, qos: 5, protocol: VlanProtocol::Dot1Ad });
    assert_eq!((settings.rate, settings.link_state), (Some(Rate { min: 0, max: 500 }), None));
    assert_eq!(settings.mac.to_string(), "02:00:00:00:00:09");
}

#[test]
fn a_link_that_is_not_there_is_refused_by_the_kernel() {
    let refusal = LiveKernel.vf_settings("no-such-link").unwrap_err();
    assert_eq!(refusal.errno, Errno::ENODEV);
    let refusal = LiveKernel.set_vf("no-such-link", 0, Setting::Trust(true)).unwrap_err();
    assert_eq!(refusal.errno, Errno::ENODEV);
}

// linux/rtnetlink.h, linux/netlink.h and linux/if_link.h.
const RTM_NEWLINK: u16 = 16;
const NLA_F_NESTED: u16 = 1 << 15;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_TX_RATE: u16 = 3;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_RSS_QUERY_EN: u16 = 7;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;
