//! Segmentation, compared with frames that another library builds, and by anything a sender may make up.

use super::*;
use etherparse::{IpHeaders, Ipv4Header, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions};
use etherparse::{PacketBuilder, TcpHeader, VlanId, ip_number};
use proptest::prelude::*;

/// The one's complement sum, word by word.
pub(super) fn naive_sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    (0..2).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16)) as u16
}

proptest! {
    /// Byte for byte: payloads, sizes, lengths, ids, sequence numbers, flags and checksums at once.
    #[test]
    fn the_segments_are_the_frames_that_a_stack_would_have_sent_one_by_one(flow in flow()) {
        let (frame, header) = flow.gso();
        let segments = Segments::new(&frame, &header).unwrap();
        let parts = flow.parts();
        prop_assert_eq!(segments.count(), parts.len());
        let mut out = vec![0xee; segments.frame_len(0).unwrap()];
        for (index, part) in parts.iter().enumerate().rev() {
            let expected = flow.segment(index, part);
            prop_assert_eq!(segments.frame_len(index), Some(expected.len()));
            prop_assert_eq!(segments.write(index, &mut out), Some(expected.len()));
            prop_assert_eq!(&out[..expected.len()], &expected[..]);
        }
        prop_assert_eq!(segments.frame_len(parts.len()), None);
    }

    /// In their order, each perhaps again and again, as when a target is full.
    #[test]
    fn segments_made_in_the_frame_are_those_that_are_written(flow in flow(), again in 1..3usize) {
        let (frame, header) = flow.gso();
        let written = Segments::new(&frame, &header).unwrap();
        let (mut own, mut scratch, mut out) = (frame.clone(), vec![0; frame.len()], vec![0; frame.len()]);
        for index in 0..written.count() {
            let len = written.write(index, &mut out).unwrap();
            for _ in 0..again {
                // Planned anew each time: all that is kept between two visits is the index.
                let mut segments = Segments::new(own.as_mut_slice(), &header).unwrap();
                prop_assert_eq!(segments.count(), written.count());
                prop_assert_eq!(segments.make(index, &mut scratch), Some(&out[..len]));
            }
        }
        let mut segments = Segments::new(own.as_mut_slice(), &header).unwrap();
        prop_assert_eq!(segments.make(written.count(), &mut scratch), None);
    }

    #[test]
    fn a_frame_of_one_segment_gets_the_same_checksum_by_either_way(flow in flow()) {
        let flow = Flow { gso_size: u16::MAX, ..flow };
        let (mut frame, header) = flow.gso();
        let mut segment = frame.clone();
        Segments::new(&frame, &header).unwrap().write(0, &mut segment);
        let finish = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..header };
        prop_assert_eq!(finish_checksum(&mut frame, &finish), Ok(()));
        prop_assert_eq!(frame, segment);
    }

    #[test]
    fn padding_after_the_packet_is_left_out(flow in flow(), padding in 1..40usize) {
        let (mut frame, header) = flow.gso();
        let count = Segments::new(&frame, &header).unwrap().count();
        let last = flow.segment(count - 1, flow.parts()[count - 1]);
        frame.resize(frame.len() + padding, 0xaa);
        let segments = Segments::new(&frame, &header).unwrap();
        let mut out = vec![0; frame.len()];
        prop_assert_eq!(segments.count(), count);
        prop_assert_eq!(segments.write(count - 1, &mut out), Some(last.len()));
        prop_assert_eq!(&out[..last.len()], &last[..]);
    }

    #[test]
    fn a_frame_cut_short_is_refused(flow in flow(), cut in any::<prop::sample::Index>()) {
        let (frame, header) = flow.gso();
        let frame = &frame[..cut.index(frame.len())];
        let unhinted = VnetHeader { hdr_len: 0, ..header };
        prop_assert!(Segments::new(frame, &unhinted).is_err());
    }

    #[test]
    fn a_segment_is_not_written_past_the_room_there_is(flow in flow(), room in any::<prop::sample::Index>()) {
        let (frame, header) = flow.gso();
        let segments = Segments::new(&frame, &header).unwrap();
        let room = room.index(segments.frame_len(0).unwrap());
        let mut out = vec![0; room];
        prop_assert_eq!(segments.write(0, &mut out), None);
    }

    #[test]
    fn no_lie_in_a_good_frame_makes_it_panic(
        flow in flow(),
        lies in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        (vnet_lie, vnet_byte) in (0..2 * VnetHeader::LEN, any::<u8>()),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let (mut frame, header) = flow.gso();
        let headers_len = frame.len() - flow.payload.len();
        for (at, byte) in lies {
            frame[at.index(headers_len)] = byte;
        }
        let mut vnet = header.emit();
        if let Some(byte) = vnet.get_mut(vnet_lie) {
            *byte = vnet_byte;
        }
        let len = if cut { len.index(frame.len()) } else { frame.len() };
        write_all(&frame[..len], &VnetHeader::parse(&vnet));
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(
        frame in prop::collection::vec(any::<u8>(), 0..300),
        header in any::<[u8; VnetHeader::LEN]>(),
    ) {
        write_all(&frame, &VnetHeader::parse(&header));
    }
}

#[test]
fn a_frame_that_is_not_what_its_header_says_is_refused() {
    let (frame, header) = Flow::plain(true).gso();
    let refused = |frame: &[u8], header| Segments::new(frame, &header).err();
    assert_eq!(refused(&frame, header), None);
    for gso_type in [VnetHeader::GSO_NONE, VnetHeader::GSO_TCPV6, VnetHeader::GSO_UDP_L4] {
        assert_eq!(refused(&frame, VnetHeader { gso_type, ..header }), Some(BadOffload::OtherProtocol));
    }
    assert_eq!(refused(&frame, VnetHeader { csum_start: 38, ..header }), Some(BadOffload::OtherProtocol));
    assert_eq!(refused(&frame, VnetHeader { csum_offset: 6, ..header }), Some(BadOffload::OtherProtocol));

    let changed = |at: usize, byte: u8| {
        let mut frame = frame.clone();
        frame[at] = byte;
        refused(&frame, header)
    };
    assert_eq!(changed(12, 0x09), Some(BadOffload::OtherProtocol), "not IP");
    assert_eq!(changed(14, 0x65), Some(BadOffload::OtherProtocol), "IPv6 after the ethertype of IPv4");
    assert_eq!(changed(14, 0x44), Some(BadOffload::Truncated), "an IPv4 header of 16 bytes");
    assert_eq!(changed(16, 0xff), Some(BadOffload::Truncated), "more than came");
    assert_eq!(changed(20, 0x20), Some(BadOffload::Fragment));
    assert_eq!(changed(21, 0x01), Some(BadOffload::Fragment));
    assert_eq!(changed(23, ip_number::ICMP.0), Some(BadOffload::OtherProtocol));
    assert_eq!(changed(46, 0x40), Some(BadOffload::Truncated), "a TCP header of 16 bytes");
}

#[test]
fn headers_that_overlap_or_leave_the_packet_are_refused() {
    for (tcp, headers_len) in [(true, 40), (false, 28)] {
        let (mut frame, header) = Flow::plain(tcp).gso();
        frame[16..18].copy_from_slice(&(headers_len - 1u16).to_be_bytes());
        assert_eq!(Segments::new(&frame, &header).err(), Some(BadOffload::Truncated));
        frame[16..18].copy_from_slice(&headers_len.to_be_bytes());
        assert_eq!(Segments::new(&frame, &header).map(|segments| segments.count()), Ok(1));
    }

    // An IPv4 header of 8 bytes, and after them what could be a TCP header, where csum_start has it.
    let (mut frame, header) = Flow::plain(true).gso();
    (frame[14], frame[34]) = (0x42, 0x50);
    assert_eq!(Segments::new(&frame, &VnetHeader { csum_start: 22, ..header }).err(), Some(BadOffload::Truncated));
}

#[test]
fn an_ipv6_fragment_and_endless_extensions_are_refused() {
    let (mut frame, header) = Flow { v6: true, ..Flow::plain(false) }.gso();
    frame[20] = ip_number::IPV6_FRAG.0;
    assert_eq!(Segments::new(&frame, &header).err(), Some(BadOffload::Fragment));

    // Each header says that another of the same kind follows, up to the end.
    frame[20] = 0;
    frame[54..].fill(0);
    assert_eq!(Segments::new(&frame, &header).err(), Some(BadOffload::Truncated));
}

#[test]
fn headers_longer_than_the_scratch_for_them_are_refused() {
    let exts = |len| Exts { hop_by_hop: Some(len), ..Exts::default() };
    // 14 Ethernet, 40 IPv6, 20 TCP; an extension header has 2 bytes beside its payload.
    let fitting = Flow { v6: true, exts: exts(432 - 2), ..Flow::plain(true) };
    let (frame, header) = fitting.gso();
    assert_eq!(Segments::new(&frame, &header).unwrap().headers_len(), 506);
    let (frame, header) = Flow { exts: exts(440 - 2), ..fitting }.gso();
    assert_eq!(Segments::new(&frame, &header).err(), Some(BadOffload::LongHeaders));
}

/// Does all that a forwarder may do with it. What is accepted keeps its promises, whatever it is.
fn write_all(frame: &[u8], header: &VnetHeader) {
    let Ok(segments) = Segments::new(frame, header) else { return };
    let mut out = vec![0; frame.len()];
    let mut payload_len = 0;
    for index in 0..segments.count() {
        let len = segments.write(index, &mut out).unwrap();
        assert!(len <= segments.headers_len() + usize::from(header.gso_size));
        payload_len += segments.frame_len(index).unwrap() - segments.headers_len();
    }
    assert!(segments.headers_len() + payload_len <= frame.len());
    assert_eq!(segments.write(segments.count(), &mut out), None);
    assert_eq!(segments.write(usize::MAX, &mut out), None);
}

/// A GSO frame to be: what is in its headers, and what it carries.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are bits of headers")]
struct Flow {
    vlans: usize,
    v6: bool,
    /// Words of IPv4 options.
    ip_options: usize,
    exts: Exts,
    tcp: bool,
    /// Words of TCP options.
    tcp_options: usize,
    id: u16,
    sequence: u32,
    fin: bool,
    psh: bool,
    cwr: bool,
    gso_size: u16,
    payload: Vec<u8>,
}

/// Payload lengths of IPv6 extension headers, each 6 more than a multiple of 8.
#[derive(Clone, Debug, Default)]
struct Exts {
    hop_by_hop: Option<usize>,
    destination: Option<usize>,
    routing: Option<usize>,
    final_destination: Option<usize>,
}

impl Flow {
    /// Three segments over IPv4 without any options.
    fn plain(tcp: bool) -> Self {
        Self {
            vlans: 0,
            v6: false,
            ip_options: 0,
            exts: Exts::default(),
            tcp,
            tcp_options: 0,
            id: u16::MAX,
            sequence: u32::MAX - 1000,
            fin: true,
            psh: true,
            cwr: true,
            gso_size: 1000,
            payload: vec![0x5a; 2500],
        }
    }

    fn parts(&self) -> Vec<&[u8]> {
        if self.payload.is_empty() { vec![&[]] } else { self.payload.chunks(self.gso_size.into()).collect() }
    }

    /// The frame that stands for all, as a kernel hands it over.
    fn gso(&self) -> (Vec<u8>, VnetHeader) {
        let mut frame = self.build(self.id, self.sequence, [self.cwr, self.fin, self.psh], &self.payload);
        let (csum_offset, header_len) = if self.tcp { (16, 20 + 4 * self.tcp_options) } else { (6, 8) };
        let transport = frame.len() - self.payload.len() - header_len;
        let transport_len = ((frame.len() - transport) as u16).to_be_bytes();
        let protocol = [0, if self.tcp { ip_number::TCP.0 } else { ip_number::UDP.0 }];
        let addresses = if self.v6 { [V6_FROM, V6_TO].concat() } else { [V4_FROM, V4_TO].concat() };
        let pseudo = naive_sum(&[&addresses[..], &transport_len, &protocol].concat());
        let field = transport + csum_offset;
        frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        let gso_type = match (self.tcp, self.v6) {
            (true, false) => VnetHeader::GSO_TCPV4,
            (true, true) => VnetHeader::GSO_TCPV6,
            (false, _) => VnetHeader::GSO_UDP_L4,
        };
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: gso_type | if self.tcp && self.cwr { VnetHeader::GSO_ECN } else { 0 },
            hdr_len: (transport + header_len) as u16,
            gso_size: self.gso_size,
            csum_start: transport as u16,
            csum_offset: csum_offset as u16,
            num_buffers: 0,
        };
        (frame, header)
    }

    /// The frame that a stack without offloads would have sent for `part`.
    fn segment(&self, index: usize, part: &[u8]) -> Vec<u8> {
        let last = index + 1 == self.parts().len();
        let flags = [self.cwr && index == 0, self.fin && last, self.psh && last];
        let sequence = self.sequence.wrapping_add(index as u32 * u32::from(self.gso_size));
        self.build(self.id.wrapping_add(index as u16), sequence, flags, part)
    }

    fn build(&self, id: u16, sequence: u32, [cwr, fin, psh]: [bool; 3], payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = if self.v6 { self.ipv6() } else { self.ipv4(id) };
        let (outer, inner) = (VlanId::try_new(100).unwrap(), VlanId::try_new(7).unwrap());
        let packet = match self.vlans {
            0 => ethernet.ip(ip),
            1 => ethernet.single_vlan(inner).ip(ip),
            _ => ethernet.double_vlan(outer, inner).ip(ip),
        };
        let mut frame = Vec::new();
        if self.tcp {
            let mut tcp = TcpHeader::new(443, 50_000, sequence, 500);
            tcp.acknowledgment_number = 0x0102_0304;
            (tcp.ack, tcp.cwr, tcp.fin, tcp.psh, tcp.ece) = (true, cwr, fin, psh, true);
            tcp.set_options_raw(&[1; 40][..4 * self.tcp_options]).unwrap();
            packet.tcp_header(tcp).write(&mut frame, payload).unwrap();
        } else {
            packet.udp(443, 50_000).write(&mut frame, payload).unwrap();
        }
        frame
    }

    fn ipv4(&self, id: u16) -> IpHeaders {
        let mut ip = Ipv4Header::new(0, 64, ip_number::TCP, V4_FROM, V4_TO).unwrap();
        ip.identification = id;
        ip.options = [1; 40][..4 * self.ip_options].try_into().unwrap();
        IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
    }

    fn ipv6(&self) -> IpHeaders {
        let ext = |len: Option<usize>| len.map(|len| Ipv6RawExtHeader::new_raw(0.into(), &vec![0; len]).unwrap());
        let exts = Ipv6Extensions {
            hop_by_hop_options: ext(self.exts.hop_by_hop),
            destination_options: ext(self.exts.destination),
            routing: ext(self.exts.routing).map(|routing| Ipv6RoutingExtensions {
                routing,
                final_destination_options: ext(self.exts.final_destination),
            }),
            ..Ipv6Extensions::default()
        };
        let ip = Ipv6Header { hop_limit: 64, source: V6_FROM, destination: V6_TO, ..Ipv6Header::default() };
        IpHeaders::Ipv6(ip, exts)
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    let sizes =
        prop_oneof![(0..400usize, 1..200u16), (0..20_000usize, 100..9000u16), (0..60_000usize, 1000..=u16::MAX)];
    let payload = (sizes, any::<u64>()).prop_map(|((len, gso_size), seed)| (gso_size, noise(len, seed)));
    let headers = (0..3usize, any::<bool>(), 0..=10usize, any::<bool>(), 0..=10usize);
    let exts = (ext(), ext(), ext(), ext());
    (payload, headers, exts, any::<(u16, u32, bool, bool, bool)>()).prop_map(|(payload, headers, exts, fields)| {
        let (gso_size, payload) = payload;
        let (vlans, v6, ip_options, tcp, tcp_options) = headers;
        let (hop_by_hop, destination, routing, final_destination) = exts;
        let exts = Exts { hop_by_hop, destination, routing, final_destination };
        let (id, sequence, fin, psh, cwr) = fields;
        Flow { vlans, v6, ip_options, exts, tcp, tcp_options, id, sequence, fin, psh, cwr, gso_size, payload }
    })
}

fn ext() -> impl Strategy<Value = Option<usize>> {
    prop::option::of((0..6usize).prop_map(|words| 6 + 8 * words))
}

/// Bytes without a pattern, much faster than as many strategies.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

const V4_FROM: [u8; 4] = [10, 0, 0, 1];
const V4_TO: [u8; 4] = [10, 0, 0, 2];
const V6_FROM: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const V6_TO: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
