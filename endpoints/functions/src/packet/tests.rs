use proptest::prelude::*;

use super::*;
use crate::flow::FlowKey;
use crate::function::Side;

#[test]
fn a_tcp_segment_of_ipv4_is_read() {
    let frame = ethernet(ETHERTYPE_V4, &v4(TCP, 0, &tcp(1234, 80, TCP_SYN)));
    let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, &frame) else { panic!("it is whole") };
    assert_eq!((headers.source, headers.destination), (0x0a00_0001, 0x0a00_0002));
    assert_eq!((headers.protocol, headers.ports, headers.tcp_flags), (TCP, [1234, 80], TCP_SYN));
    assert_eq!((headers.ip_at, headers.transport_at, headers.end, headers.hop_limit), (14, 34, 54, 64));
    assert_eq!(parse(Link::Ip, &frame[14..]).map(|packet| matches!(packet, Packet::Ip(_))), Ok(true));
}

#[test]
fn tags_are_looked_through_and_more_than_two_are_refused() {
    let packet = v4(UDP, 0, &udp(1, 2));
    let tagged = |tags: usize| {
        let tags = [0x81, 0, 0, 7].repeat(tags);
        [&[0; 12][..], &tags, &[8, 0], &packet].concat()
    };
    for tags in 0..=2 {
        let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, &tagged(tags)) else { panic!("{tags} tags") };
        assert_eq!((headers.ports, headers.ip_at), ([1, 2], 14 + 4 * tags));
    }
    assert_eq!(parse(Link::Ethernet, &tagged(3)), Err(Malformed::TooManyHeaders));
}

#[test]
fn what_is_no_ip_is_named() {
    assert_eq!(parse(Link::Ethernet, &ethernet(ETHERTYPE_ARP, &[0; 28])), Ok(Packet::Arp));
    assert_eq!(parse(Link::Ethernet, &ethernet(0x88cc, &[])), Ok(Packet::Other(0x88cc)));
    assert_eq!(parse(Link::Ethernet, &[0; 13]), Err(Malformed::Truncated));
    assert_eq!(parse(Link::Ip, &[0x50; 40]), Err(Malformed::BadHeader));
}

#[test]
fn every_cut_of_a_packet_is_refused() {
    let frames = [
        ethernet(ETHERTYPE_V4, &v4(TCP, 0, &tcp(1, 2, 0))),
        ethernet(ETHERTYPE_V6, &v6(0, &[&[UDP, 0, 0, 0, 0, 0, 0, 0][..], &udp(1, 2)].concat())),
    ];
    for frame in frames {
        assert!(matches!(parse(Link::Ethernet, &frame), Ok(Packet::Ip(_))));
        for length in 0..frame.len() {
            assert_eq!(parse(Link::Ethernet, &frame[..length]), Err(Malformed::Truncated), "{length}");
        }
    }
}

#[test]
fn fragments_say_which_part_they_are_and_must_not_touch_the_transport_header() {
    let part = |offset: u16, more: bool, payload: &[u8]| {
        let field = (offset / 8) | if more { 0x2000 } else { 0 };
        parse(Link::Ip, &v4(TCP, field, payload)).map(|packet| match packet {
            Packet::Ip(headers) => (headers.fragment, headers.ports),
            other => panic!("{other:?}"),
        })
    };
    let header = tcp(7, 80, 0);
    assert_eq!(part(0, true, &header), Ok((Fragment::First { id: 9 }, [7, 80])));
    assert_eq!(part(24, false, &[0; 8]), Ok((Fragment::Later { id: 9, offset: 24 }, [0, 0])));
    assert_eq!(part(0, true, &header[..16]), Err(Malformed::TinyFragment));
    assert_eq!(part(8, false, &[0; 8]), Err(Malformed::TinyFragment), "it would write over the flags");
    assert_eq!(part(24, false, &[]), Err(Malformed::TinyFragment));
    assert_eq!(part(65_528, false, &[0; 16]), Err(Malformed::BadHeader), "no packet is as long");
}

#[test]
fn extension_headers_are_looked_through_and_are_not_endless() {
    let options = |next: u8| [next, 0, 0, 0, 0, 0, 0, 0];
    let packet = v6(HOP_BY_HOP, &[&options(DESTINATION_OPTIONS)[..], &options(UDP), &udp(5, 53)].concat());
    let Ok(Packet::Ip(headers)) = parse(Link::Ip, &packet) else { panic!("it is whole") };
    assert_eq!((headers.protocol, headers.ports, headers.transport_at), (UDP, [5, 53], 56));
    let many = |count: usize| [options(ROUTING).repeat(count - 1), options(UDP).to_vec(), udp(5, 53)].concat();
    assert!(matches!(parse(Link::Ip, &v6(ROUTING, &many(8))), Ok(Packet::Ip(Headers { ports: [5, 53], .. }))));
    assert_eq!(parse(Link::Ip, &v6(ROUTING, &many(9))), Err(Malformed::TooManyHeaders));
    let fragment = |offset: u16| [&[UDP, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 3], &udp(5, 53)].concat();
    let Ok(Packet::Ip(later)) = parse(Link::Ip, &v6(FRAGMENT, &fragment(64))) else { panic!("it is whole") };
    assert_eq!((later.fragment, later.protocol, later.ports), (Fragment::Later { id: 3, offset: 64 }, UDP, [0; 2]));
}

#[test]
fn a_later_part_does_not_reach_a_transport_header_behind_extension_headers() {
    let part = |next: u8, offset: u16, payload: &[u8]| {
        let fragment = [&[next, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 3], payload].concat();
        parse(Link::Ip, &v6(FRAGMENT, &fragment)).map(|packet| matches!(packet, Packet::Ip(_)))
    };
    let options = |words: u8| [&[TCP, words][..], &vec![0; 6 + 8 * usize::from(words)], &tcp(1, 80, 0)].concat();
    assert_eq!(part(DESTINATION_OPTIONS, 1, &options(31)), Ok(true));
    assert_eq!(part(DESTINATION_OPTIONS, 1, &options(32)), Err(Malformed::TinyFragment));
    assert_eq!(part(DESTINATION_OPTIONS, 272, &[0; 8]), Err(Malformed::TinyFragment));
    assert_eq!(part(DESTINATION_OPTIONS, 280, &[0; 8]), Ok(true));
}

#[test]
fn an_icmp_error_shows_whose_packet_it_quotes() {
    let sent = v4(TCP, 0, &tcp(1234, 80, TCP_SYN));
    let error = |quote: &[u8]| v4(ICMP, 0, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], quote].concat());
    let seen = |packet: &[u8]| match parse(Link::Ip, packet) {
        Ok(Packet::Ip(headers)) => quoted(packet, &headers),
        other => panic!("{other:?}"),
    };
    let quote = seen(&error(&sent[..28])).expect("8 bytes suffice");
    assert_eq!((quote.source, quote.destination), (0x0a00_0001, 0x0a00_0002));
    assert_eq!((quote.protocol, quote.ports, quote.ip_at, quote.transport_at), (TCP, [1234, 80], 28, 48));
    assert_eq!(seen(&error(&sent[..27])), None);
    assert_eq!(
        seen(&v4(ICMP, 0, &[&[8, 0, 0, 0, 0, 0, 0, 0][..], &sent].concat())),
        None,
        "an echo request quotes nothing"
    );
    // Behind extension headers, and the first part of a packet; another part says nothing.
    let in_parts =
        |offset: u8| [&[FRAGMENT, 0, 0, 0, 0, 0, 0, 0, TCP, 0, 0, offset, 0, 0, 0, 1][..], &tcp(1234, 80, 0)].concat();
    let error = |quote: &[u8]| v6(ICMP_V6, &[&[1, 4, 0, 0, 0, 0, 0, 0][..], quote].concat());
    let seen = |offset| seen(&error(&v6(DESTINATION_OPTIONS, &in_parts(offset))));
    assert_eq!(seen(1).map(|quote| (quote.protocol, quote.ports)), Some((TCP, [1234, 80])));
    assert_eq!(seen(8), None);
}

proptest! {
    #[test]
    fn a_plain_packet_is_what_the_parser_makes_of_it(
        is_tcp in any::<bool>(),
        link in prop_oneof![Just(Link::Ethernet), Just(Link::Ip)],
        more in 0..4usize,
        spoilt in prop::collection::vec((0..60usize, any::<u8>()), 0..3),
    ) {
        let packet = if is_tcp { v4(TCP, 0, &tcp(1, 2, TCP_ACK)) } else { v4(UDP, 0, &udp(3, 4)) };
        let mut frame = if link == Link::Ethernet { ethernet(ETHERTYPE_V4, &packet) } else { packet };
        frame.resize(frame.len() + more, 0);
        for (at, byte) in spoilt {
            let at = at % frame.len();
            frame[at] = byte;
        }
        let plain = PlainPacket::read(link, &frame);
        let headers = match parse(link, &frame) {
            Ok(Packet::Ip(headers)) => headers,
            other => {
                prop_assert_eq!(plain, None, "{:?}", other);
                return Ok(());
            }
        };
        let is_plain = headers.family == Family::V4
            && headers.fragment == Fragment::Whole
            && (headers.transport_at, headers.ip_at) == if link == Link::Ethernet { (34, 14) } else { (20, 0) }
            && matches!(headers.protocol, TCP | UDP);
        prop_assert_eq!(plain.is_some(), is_plain);
        if let Some(plain) = plain {
            let PlainPacket { source, destination, protocol, ports, tcp_flags } = plain;
            prop_assert_eq!((u128::from(source), u128::from(destination)), (headers.source, headers.destination));
            prop_assert_eq!((protocol, ports, tcp_flags), (headers.protocol, headers.ports, headers.tcp_flags));
            for side in Side::BOTH {
                prop_assert_eq!(FlowKey::of_plain(side, &plain), FlowKey::of(side, &headers));
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_offsets_stay_inside(bytes in prop::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
        let mut frame = ethernet(if v6 { ETHERTYPE_V6 } else { ETHERTYPE_V4 }, &bytes);
        if let Some(first) = frame.get_mut(14) {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        if let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, &frame) {
            prop_assert!(headers.ip_at <= headers.transport_at && headers.transport_at <= headers.end);
            prop_assert!(headers.end <= frame.len());
            let _ = quoted(&frame, &headers);
        }
    }
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2; 12][..], &ethertype.to_be_bytes(), payload].concat()
}

fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let [high, low] = fragment.to_be_bytes();
    let header = [0x45, 0, length[0], length[1], 0, 9, high, low, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    [&header, payload].concat()
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, 64][..], &[0xfd; 16], &[0xfe; 16], payload].concat()
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 8], &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat()
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0, 8, 0, 0]].concat()
}
