//! What is said to rtnetlink and what it says, byte by byte: no NIC at hand can do all of it.

use netlink_packet_core::{Emitable, NetlinkDeserializable, NetlinkHeader};

use super::xdp_sockets::Part;
use super::*;
use crate::attributes::{LinkState, Rate, Vlan, VlanProtocol};

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
    for (change, wanted) in [
        // As strace shows `ip link set lo vf 3 ...` of iproute2 6.1 to send it.
        (VfChange::Mac(Mac([2, 0, 0, 0, 0, 9])), attribute(IFLA_VF_MAC, &mac(3))),
        (VfChange::Vlan(service), list(vlan_info(3, 100, 5, 0x88a8))),
        (VfChange::Vlan(customer), list(vlan_info(3, 100, 5, 0x8100))),
        (VfChange::Rate(Rate { min: 10, max: 500 }), attribute(IFLA_VF_RATE, &words(&[3, 10, 500]))),
        (VfChange::SpoofCheck(false), attribute(IFLA_VF_SPOOFCHK, &words(&[3, 0]))),
        (VfChange::Trust(true), attribute(IFLA_VF_TRUST, &words(&[3, 1]))),
        (VfChange::LinkState(LinkState::Auto), attribute(IFLA_VF_LINK_STATE, &words(&[3, 0]))),
        (VfChange::LinkState(LinkState::Enable), attribute(IFLA_VF_LINK_STATE, &words(&[3, 1]))),
        (VfChange::LinkState(LinkState::Disable), attribute(IFLA_VF_LINK_STATE, &words(&[3, 2]))),
    ] {
        let mut sent = vec![0; vf_info::tell(3, change).buffer_len()];
        vf_info::tell(3, change).emit(&mut sent);
        assert_eq!(plain(&sent), attribute(IFLA_VFINFO_LIST, &attribute(IFLA_VF_INFO, &wanted)), "{change}");
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
    let states = vf_info::parse(&attribute(IFLA_VFINFO_LIST, &vfs)).vfs;
    let wanted = |protocol, link_state| VfState {
        mac: Mac([2, 0, 0, 0, 0, 9]),
        vlan: Vlan { id: 100, qos: 5, protocol },
        rate: Some(Rate { min: 10, max: 500 }),
        spoof_check: Some(true),
        trust: Some(true),
        link_state: Some(link_state),
    };
    assert_eq!(states.keys().copied().collect::<Vec<_>>(), [0, 12]);
    assert_eq!(states[&0], wanted(VlanProtocol::Dot1Ad, LinkState::Enable));
    assert_eq!(states[&12], wanted(VlanProtocol::Dot1Q, LinkState::Disable));
}

#[test]
fn a_driver_that_does_not_tell_has_not_said_off() {
    let vf = |value: i32| {
        let words = |word: i32| words(&[5, word.cast_unsigned()]);
        let told = [
            attribute(IFLA_VF_MAC, &mac(5)),
            attribute(IFLA_VF_SPOOFCHK, &words(value)),
            attribute(IFLA_VF_TRUST, &words(value)),
            attribute(IFLA_VF_LINK_STATE, &words(-1)),
        ];
        let report = vf_info::parse(&attribute(IFLA_VFINFO_LIST, &attribute(IFLA_VF_INFO, &told.concat())));
        let state = report.vfs[&5].clone();
        (state.spoof_check, state.trust, state.link_state)
    };
    assert_eq!(vf(-1), (None, None, None));
    assert_eq!(vf(0), (Some(false), Some(false), None));
    assert_eq!(vf(1), (Some(true), Some(true), None));
}

#[test]
fn a_list_of_more_than_64_kib_is_read_whole_and_so_is_what_comes_behind_it() {
    // 32 bytes of address, as many of MAC, rates and the rest: some 160 bytes a VF, as Linux 6.12 sends without statistics.
    let vf = |index: u32| {
        let padding = attribute(IFLA_VF_RSS_QUERY_EN, &[0; 100]);
        attribute(IFLA_VF_INFO, &[attribute(IFLA_VF_MAC, &mac(index)), padding].concat())
    };
    let vfs = (0..500).flat_map(vf).collect::<Vec<_>>();
    assert!(vfs.len() > usize::from(u16::MAX));
    let wrapped = ((4 + vfs.len()) as u16).to_ne_bytes();
    let list = [&wrapped[..], &IFLA_VFINFO_LIST.to_ne_bytes(), &vfs].concat();
    let permanent = attribute(IFLA_PERM_ADDRESS, &[2, 0, 0, 0, 0, 1]);
    let device = attribute(IFLA_PARENT_DEV_NAME, b"0000:3b:00.0\0");
    let report = vf_info::parse(&[list, permanent, device].concat());
    assert_eq!(report.vfs.len(), 500);
    assert_eq!(report.permanent_mac, Some(Mac([2, 0, 0, 0, 0, 1])));
    assert_eq!(report.device.as_deref(), Some("0000:3b:00.0"));
}

proptest::proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = vf_info::parse(&bytes);
        let _ = vf_info::parse(&attribute(IFLA_VFINFO_LIST, &attribute(IFLA_VF_INFO, &bytes)));
    }
}

#[test]
fn a_link_that_is_not_there_is_refused_by_the_kernel() {
    let nothing = Interface { index: i32::MAX.cast_unsigned(), device: PciAddress::new(0, 1, 0, 0) };
    assert_eq!(LiveKernel.pf_report(nothing).unwrap_err().errno, Errno::ENODEV);
    assert_eq!(LiveKernel.set_vf(nothing, 0, VfChange::Trust(true)).unwrap_err().errno, Errno::ENODEV);
}

#[test]
fn an_answer_about_the_interface_of_another_device_is_refused() {
    let pf = Interface { index: 7, device: PciAddress::new(0, 1, 0, 0) };
    let report = |device: &str| PfReport { device: Some(device.to_owned()), ..PfReport::default() };
    assert!(report("0000:01:00.0").of(pf).is_ok() && PfReport::default().of(pf).is_ok());
    let refusal = report("0000:01:00.1").of(pf).unwrap_err().to_string();
    assert_eq!(refusal, "the interface 7 is of 0000:01:00.1 and not of 0000:01:00.0 (ENODEV)");
}

#[test]
fn what_the_host_does_with_an_interface_is_told_in_words() {
    let loopback = Interface { index: 1, device: PciAddress::new(0, 1, 0, 0) };
    assert_eq!(LiveKernel.pf_report(loopback).unwrap().vfs.len(), 0);
    let uses = LiveKernel.host_uses(loopback).unwrap();
    assert!(uses.contains(&"it has the address 127.0.0.1/8".to_owned()), "{uses:?}");
}

#[test]
fn an_address_for_the_link_alone_is_the_kernels_only_if_it_is_of_ipv6() {
    let told = |family, address: &str, scope| {
        let mut message = AddressMessage::default();
        (message.header.family, message.header.index, message.header.prefix_len) = (family, 7, 16);
        message.header.scope = scope;
        message.attributes.push(AddressAttribute::Address(address.parse().unwrap()));
        address_of(&RouteNetlinkMessage::NewAddress(message), 7)
    };
    assert_eq!(told(AddressFamily::Inet6, "fe80::1", AddressScope::Link), None);
    let chosen = told(AddressFamily::Inet, "169.254.0.1", AddressScope::Link);
    assert_eq!(chosen.as_deref(), Some("it has the address 169.254.0.1/16"));
}

#[test]
fn the_guid_that_a_pf_gave_a_vf_is_understood() {
    let guid = |vf: u32, guid: u64| [&vf.to_ne_bytes()[..], &[0; 4], &guid.to_ne_bytes()].concat();
    let vf = |index, number| {
        let said = [attribute(IFLA_VF_MAC, &mac(index)), attribute(IFLA_VF_IB_NODE_GUID, &guid(index, number))];
        attribute(IFLA_VF_INFO, &said.concat())
    };
    let list = [vf(0, 0x0002_c903_0012_3456), vf(1, 0)].concat();
    let report = vf_info::parse(&attribute(IFLA_VFINFO_LIST, &list));
    assert_eq!((report.vfs.len(), report.guids.len()), (2, 1), "zeros are none");
    assert_eq!(report.guids[&0].to_string(), "00:02:c9:03:00:12:34:56");
}

/// No NIC at hand has a switch: the question is the one that `devlink dev eswitch show` of iproute2 6.1 asks, the answers are
/// made up as net/devlink/dev.c of Linux 6.12 puts them together.
#[test]
fn the_mode_of_a_switch_is_asked_and_read_as_devlink_does() {
    let header = |kind: u16, body: &[u8]| {
        let length = (16 + body.len()) as u32;
        let flags = 1_u16;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body].concat()
    };
    let asked = header(16, b"\x03\x01\0\0\x0c\0\x02\0devlink\0");
    assert_eq!(devlink::family_question(), asked);
    let device = [attribute(1, b"pci\0"), attribute(2, b"0000:3b:00.0\0")].concat();
    let asked = header(21, &[&[29, 1, 0, 0][..], &device].concat());
    assert_eq!(devlink::mode_question(21, PciAddress::new(0, 0x3b, 0, 0)), asked);

    let family = [attribute(2, b"devlink\0"), attribute(1, &21_u16.to_ne_bytes())].concat();
    assert_eq!(devlink::read_family(&header(16, &[&[1, 2, 0, 0][..], &family].concat())), Ok(21));
    let mode = |mode: u16| {
        let said = [device.clone(), attribute(25, &mode.to_ne_bytes()), attribute(26, &[0])].concat();
        devlink::read_mode(Ok(header(21, &[&[29, 1, 0, 0][..], &said].concat())))
    };
    assert_eq!((mode(0), mode(1)), (Ok(Some(EswitchMode::Legacy)), Ok(Some(EswitchMode::Switchdev))));
    assert_eq!(mode(2), Ok(None), "a mode that is newer");
    let refused = |errno: Errno| devlink::read_mode(Ok(header(2, &(-(errno as i32)).to_ne_bytes())));
    for none in [Errno::ENODEV, Errno::EOPNOTSUPP, Errno::ENOENT] {
        assert_eq!(refused(none), Ok(None));
    }
    assert_eq!(refused(Errno::EPERM).unwrap_err().errno, Errno::EPERM);
    assert_eq!(devlink::read_mode(Ok(vec![1, 2, 3])).unwrap_err().errno, Errno::EBADMSG);
}

#[test]
fn a_card_that_is_not_there_has_no_switch() {
    assert_eq!(LiveKernel.eswitch_mode(PciAddress::new(0xffff, 0xff, 31, 7)), Ok(None));
}

/// As Linux 6.12 sends a link after `ip link property add dev ens1f0 altname ...` (`rtnl_fill_prop_list` of net/core/rtnetlink.c).
#[test]
fn the_address_of_an_infiniband_port_tells_no_card() {
    let report = |length| vf_info::parse(&attribute(IFLA_PERM_ADDRESS, &vec![1; length]));
    assert_eq!(report(6).permanent_mac, Some(Mac([1; 6])));
    assert_eq!(report(20).permanent_mac, None);
}

#[test]
fn other_names_of_an_interface_are_understood() {
    let link = |more: &[u8]| {
        let header = [&[0, 0, 1, 0][..], &7_u32.to_ne_bytes(), &[0; 8]].concat();
        let payload = [&header[..], &attribute(IFLA_IFNAME, b"ens1f0\0"), more].concat();
        let mut header = NetlinkHeader::default();
        header.message_type = RTM_NEWLINK;
        altnames_of(&RouteNetlinkMessage::deserialize(&header, &payload).unwrap())
    };
    let names =
        [&b"storage0\0"[..], b"a-name-that-is-longer-than-15-bytes\0"].map(|name| attribute(IFLA_ALT_IFNAME, name));
    let others = ["storage0", "a-name-that-is-longer-than-15-bytes"].map(ToOwned::to_owned).to_vec();
    assert_eq!(link(&attribute(IFLA_PROP_LIST | NLA_F_NESTED, &names.concat())), Some(("ens1f0".to_owned(), others)));
    assert_eq!(link(&[]), None);
}

// linux/rtnetlink.h, linux/netlink.h and linux/if_link.h.
const RTM_NEWLINK: u16 = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const NLA_F_NESTED: u16 = 1 << 15;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_TX_RATE: u16 = 3;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_RSS_QUERY_EN: u16 = 7;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_IB_NODE_GUID: u16 = 10;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;

#[test]
fn a_driver_is_asked_about_links_whose_device_the_kernel_does_not_name_and_about_no_other() {
    let link = |kind, attributes: Vec<LinkAttribute>| {
        let mut link = LinkMessage::default();
        link.header.link_layer_type = kind;
        link.attributes = [vec![LinkAttribute::IfName("net1".into())], attributes].concat();
        RouteNetlinkMessage::NewLink(link)
    };
    let vf = PciAddress::new(0, 2, 16, 0);
    let of_old_kernel = link(LinkLayerType::Ether, vec![]);
    assert_eq!((of_device(&of_old_kernel, vf), of_unnamed_device(&of_old_kernel)), (None, Some("net1".into())));
    let named = link(LinkLayerType::Ether, vec![LinkAttribute::ParentDevName(vf.to_string())]);
    assert_eq!((of_device(&named, vf), of_unnamed_device(&named)), (Some("net1".into()), None));
    assert_eq!(of_unnamed_device(&link(LinkLayerType::Ether, vec![LinkAttribute::LinkInfo(vec![])])), None);
    assert_eq!(of_unnamed_device(&link(LinkLayerType::Loopback, vec![])), None);
}

/// As Linux 6.12 answers `ss --xdp`: two sockets, bound to the interfaces 5 and 7, and the end of the dump.
#[test]
fn af_xdp_sockets_are_counted_by_their_interface() {
    let socket = |interface: u32| {
        let body = [&[44, 3, 0, 0][..], &9_u32.to_ne_bytes(), &[0; 8]].concat();
        let info = [&12_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &interface.to_ne_bytes(), &[0; 4]].concat();
        [body, info].concat()
    };
    let message = |kind: u16, body: &[u8]| {
        let length = 16 + body.len() as u32;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[2, 0], &[0; 8], body].concat()
    };
    let [five, seven] = [5, 7].map(|interface| message(20, &socket(interface)));
    let done = message(3, &[0; 4]);
    let count = |bytes: &[u8]| xdp_sockets::count(bytes, 7).unwrap();
    assert_eq!(count(&[&five[..], &seven].concat()), Part::More(1));
    assert_eq!(count(&[&seven[..], &seven, &done].concat()), Part::Last(2));
    // A kernel without it.
    assert_eq!(count(&message(2, &(-2_i32).to_ne_bytes())), Part::NotTold);
    assert!(xdp_sockets::count(&message(2, &(-1_i32).to_ne_bytes()), 7).is_err());
    assert!(xdp_sockets::count(&seven[..20], 7).is_err(), "it is cut short");
}

#[test]
fn a_route_that_the_kernel_did_not_make_is_a_use_of_its_interface() {
    let route = |length: u8, table: u8, protocol: RouteProtocol, interface: u32| {
        let mut route = RouteMessage::default();
        route.header.destination_prefix_length = length;
        (route.header.table, route.header.protocol, route.header.kind) = (table, protocol, RouteType::Unicast);
        route.attributes.push(RouteAttribute::Oif(interface));
        route_over(&RouteNetlinkMessage::NewRoute(route), 7)
    };
    assert_eq!(route(0, 254, RouteProtocol::Static, 7), Some(RouteOver::Default));
    assert_eq!(route(0, 100, RouteProtocol::Boot, 7), Some(RouteOver::Default), "of another table");
    assert_eq!(route(24, 254, RouteProtocol::Bgp, 7), Some(RouteOver::Other), "BGP over a link-local address alone");
    assert_eq!(route(24, 254, RouteProtocol::Kernel, 7), None, "what comes with an address");
    assert_eq!(route(8, RT_TABLE_LOCAL, RouteProtocol::Boot, 7), None, "multicast of an older kernel");
    assert_eq!(route(24, 254, RouteProtocol::Bgp, 8), None, "of another interface");
    assert!(RouteOver::Default < RouteOver::Other, "the default route is told first");
}
