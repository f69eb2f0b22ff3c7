//! TCP segments of one flow joined to one GSO frame: the inverse of [`Segments`](super::Segments).
//!
//! A kernel takes a frame of 64 KiB for little more than one of 1500 bytes, so a burst of segments is worth joining on
//! its way there. What is joined must be what [`Segments`](super::Segments) makes of it again, byte for byte: each frame
//! follows the one before it at once, and nothing but length, IPv4 ID, sequence number, PSH of the last and checksums
//! differs. Each checksum is verified first: whoever segments or receives the whole makes new ones, so that a segment
//! damaged on its way here would be laundered.
//!
//! Headers are checked and sent on from a copy of ours. Payloads stay where they are: a peer that changes them between
//! the look at the checksum and the copy has sent other data, as it could have from the start.

use ferrule_ffi::span::Span;

use super::VnetHeader;
use super::checksum::{TCP_OFFSET, add, complete, sum};

/// A frame that is a TCP segment with payload and without anything unusual.
#[derive(Clone, Copy)]
pub struct TcpSegment<'a> {
    /// The headers, with whatever follows them.
    head: [u8; HEAD_MAX],
    /// Where the TCP header begins: 34 in IPv4, 54 in IPv6.
    transport: usize,
    /// Where it ends.
    headers_len: usize,
    payload: Span<'a>,
}

impl<'a> TcpSegment<'a> {
    /// Reads the headers of an Ethernet frame; none: it is to be left alone.
    #[inline]
    pub fn parse(frame: Span<'a>) -> Option<Self> {
        let mut head = [0; HEAD_MAX];
        if !frame.head(frame.len().min(HEAD_MAX))?.copy_out(&mut head) {
            return None;
        }
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (transport, end) = match word(12) {
            // No options, and neither a fragment nor one to come.
            ETHERTYPE_IPV4 if head[14] == 0x45 && head[23] == TCP && word(20) & IPV4_FRAGMENT == 0 => {
                (IPV4_TRANSPORT, ETHERNET + usize::from(word(16)))
            }
            ETHERTYPE_IPV6 if head[14] >> 4 == 6 && head[20] == TCP => {
                (IPV6_TRANSPORT, IPV6_TRANSPORT + usize::from(word(18)))
            }
            _ => return None,
        };
        let headers_len = transport + usize::from(head[transport + 12] >> 4) * 4;
        // Padding would be lost, and a segment without payload acknowledges something now.
        let whole = end == frame.len() && headers_len >= transport + TCP_HEADER && headers_len < end;
        let flags = head[transport + TCP_FLAGS];
        if !whole || flags & !PSH != ACK {
            return None;
        }
        Some(Self { head, transport, headers_len, payload: frame.tail(headers_len)? })
    }

    /// What is behind the headers.
    #[inline]
    pub fn payload(&self) -> Span<'a> {
        self.payload
    }

    fn headers(&self) -> &[u8] {
        &self.head[..self.headers_len]
    }

    fn sequence(&self) -> u32 {
        let at = self.transport + 4;
        u32::from_be_bytes([self.head[at], self.head[at + 1], self.head[at + 2], self.head[at + 3]])
    }

    fn is_pushed(&self) -> bool {
        self.head[self.transport + TCP_FLAGS] & PSH != 0
    }

    /// Whether all checksums are the ones that a sender computes: of the two zeros of one's complement, the one that
    /// comes out.
    fn is_valid(&self) -> bool {
        let tcp = &self.head[self.transport..self.headers_len];
        let tcp_len = (tcp.len() + self.payload.len()) as u16;
        let total = add(add(self.pseudo(tcp_len), sum(tcp)), self.payload.ones_sum());
        let ip = if self.transport == IPV4_TRANSPORT { sum(&self.head[ETHERNET..IPV4_TRANSPORT]) } else { 0xffff };
        let usual = |at: usize| self.head[at..at + 2] != [0xff; 2];
        let ip_usual = self.transport != IPV4_TRANSPORT || usual(IPV4_CHECKSUM);
        total == 0xffff && ip == 0xffff && ip_usual && usual(self.transport + TCP_OFFSET)
    }

    /// The sum of the pseudo-header.
    fn pseudo(&self, tcp_len: u16) -> u16 {
        let addresses = if self.transport == IPV4_TRANSPORT { 26 } else { 22 };
        add(sum(&self.head[addresses..self.transport]), add(u16::from(TCP), tcp_len))
    }

    /// Whether `next` has the headers of this flow, but for what differs from segment to segment.
    fn is_of_flow(&self, next: &Self) -> bool {
        let same = |from: usize, to: usize| self.head[from..to] == next.head[from..to];
        let network = if self.transport == IPV4_TRANSPORT {
            same(0, 16) && same(20, 24) && same(26, 34)
        } else {
            same(0, 18) && same(20, 54)
        };
        let tcp = self.transport;
        self.transport == next.transport
            && self.headers_len == next.headers_len
            && network
            && same(tcp, tcp + 4)
            && same(tcp + 8, tcp + TCP_FLAGS)
            && same(tcp + 14, tcp + TCP_OFFSET)
            && same(tcp + 18, self.headers_len)
    }

    /// The IPv4 ID.
    fn id(&self) -> u16 {
        u16::from_be_bytes([self.head[18], self.head[19]])
    }
}

/// Segments being joined.
pub struct Coalescer<'a> {
    first: TcpSegment<'a>,
    /// Of all of them.
    payload_len: usize,
    count: usize,
    /// Nothing may follow.
    closed: bool,
}

impl<'a> Coalescer<'a> {
    /// Begins with a segment.
    pub fn new(first: TcpSegment<'a>) -> Self {
        let (payload_len, closed) = (first.payload.len(), first.is_pushed());
        Self { first, payload_len, count: 1, closed }
    }

    /// Takes the segment that came next, if it continues those before it.
    #[inline]
    pub fn push(&mut self, next: &TcpSegment<'_>) -> bool {
        let (gso_size, len) = (self.first.payload.len(), next.payload.len());
        let continues = !self.closed
            && len <= gso_size
            && self.first.headers_len + self.payload_len + len <= ETHERNET + usize::from(u16::MAX)
            && next.sequence() == self.first.sequence().wrapping_add(self.payload_len as u32)
            && self.first.is_of_flow(next)
            && (self.first.transport != IPV4_TRANSPORT || next.id() == self.first.id().wrapping_add(self.count as u16));
        if !continues || (self.count == 1 && !self.first.is_valid()) || !next.is_valid() {
            return false;
        }
        self.payload_len += len;
        self.count += 1;
        self.closed = len < gso_size || next.is_pushed();
        if next.is_pushed() {
            self.first.head[self.first.transport + TCP_FLAGS] |= PSH;
        }
        true
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The header and the headers of the GSO frame; the payloads follow in their order.
    pub fn finish(&mut self) -> (VnetHeader, &[u8]) {
        let TcpSegment { transport, headers_len, .. } = self.first;
        // At most 65535, which `push` keeps to.
        let tcp_len = (headers_len - transport + self.payload_len) as u16;
        let pseudo = self.first.pseudo(tcp_len);
        let head = &mut self.first.head;
        let mut put = |at: usize, value: u16| head[at..at + 2].copy_from_slice(&value.to_be_bytes());
        put(transport + TCP_OFFSET, pseudo);
        let gso_type = if transport == IPV4_TRANSPORT {
            put(16, (transport - ETHERNET) as u16 + tcp_len);
            put(IPV4_CHECKSUM, 0);
            complete(&mut head[ETHERNET..IPV4_TRANSPORT], IPV4_CHECKSUM - ETHERNET, &[]);
            VnetHeader::GSO_TCPV4
        } else {
            put(18, tcp_len);
            VnetHeader::GSO_TCPV6
        };
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: headers_len as u16,
            gso_size: self.first.payload.len() as u16,
            csum_start: transport as u16,
            csum_offset: TCP_OFFSET as u16,
            num_buffers: 0,
        };
        (header, self.first.headers())
    }
}

/// Ethernet, IPv6 and TCP with all its options take 114; whole cache lines are copied.
const HEAD_MAX: usize = 128;
const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPV4_TRANSPORT: usize = 34;
const IPV6_TRANSPORT: usize = 54;
const IPV4_CHECKSUM: usize = 24;
/// More fragments, or an offset.
const IPV4_FRAGMENT: u16 = 0x3fff;
const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
const TCP_FLAGS: usize = 13;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

#[cfg(test)]
mod tests {
    use etherparse::{
        IpFragOffset, IpHeaders, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpHeader, ip_number,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::offload::Segments;

    #[test]
    fn segments_that_follow_each_other_become_one_frame() {
        for v6 in [false, true] {
            let frames = built(&stream(v6, 40, 1448));
            let (header, whole) = &join(&frames)[0];
            assert_eq!(header.map(|header| (header.gso_size, header.gso_type)), Some((1448, if v6 { 4 } else { 1 })));
            assert_eq!(whole.len(), frames[0].len() + 39 * 1448);
            assert_eq!(join(&frames).len(), 1);
            assert_eq!(segmented(&frames), frames);
        }
    }

    #[test]
    fn none_is_longer_than_an_ip_packet() {
        for v6 in [false, true] {
            let frames = built(&stream(v6, 64, 1448));
            let joined = join(&frames);
            assert_eq!(joined.len(), 2);
            assert!(joined[0].1.len() > 64_000 && joined[0].1.len() <= 14 + 65_535);
        }
    }

    #[test]
    fn whatever_is_not_of_a_run_ends_it() {
        type Change = fn(&mut Segment);
        let changes: [(&str, Change); 17] = [
            ("a gap", |segment| segment.sequence = segment.sequence.wrapping_add(1)),
            ("sent again", |segment| segment.sequence = segment.sequence.wrapping_sub(1448)),
            ("another ID", |segment| segment.id = segment.id.wrapping_add(1)),
            ("another TTL", |segment| segment.ttl -= 1),
            ("ECN", |segment| segment.tos |= 3),
            ("fragmentation", |segment| segment.dont_fragment = false),
            ("a fragment", |segment| segment.fragment = true),
            ("a port", |segment| segment.port += 1),
            ("an acknowledgement", |segment| segment.acknowledges += 1),
            ("a window", |segment| segment.window += 1),
            ("an option", |segment| segment.options[5] ^= 1),
            ("fewer options", |segment| segment.options.truncate(4)),
            ("FIN", |segment| segment.flags |= 0x01),
            ("RST", |segment| segment.flags |= 0x04),
            ("URG", |segment| segment.flags |= 0x20),
            ("CWR", |segment| segment.flags |= 0x80),
            ("longer", |segment| segment.payload.push(0)),
        ];
        for (what, change) in changes {
            let mut segments = stream(false, 3, 1448);
            change(&mut segments[1]);
            let frames = built(&segments);
            assert_eq!(join(&frames).len(), 3, "{what}");
            assert_eq!(segmented(&frames), frames, "{what}");
        }
    }

    #[test]
    fn what_is_pushed_or_short_is_the_last() {
        let changes: [fn(&mut Segment); 2] = [|segment| segment.flags |= PSH, |segment| segment.payload.truncate(1447)];
        for change in changes {
            let mut segments = stream(true, 4, 1448);
            change(&mut segments[1]);
            let frames = built(&segments);
            let lens: Vec<_> = join(&frames).iter().map(|(_, bytes)| bytes.len()).collect();
            assert!(lens[0] > 2 * 1448 && lens[1] < 3 * 1448, "{lens:?}");
            assert_eq!(segmented(&frames), frames);
        }
    }

    #[test]
    fn a_damaged_segment_is_passed_on_as_it_is() {
        for v6 in [false, true] {
            let good = built(&stream(v6, 3, 1448));
            let headers_len = good[0].len() - 1448;
            for damaged in 0..3 {
                // A payload byte, one of the TCP header, one of the checksum; one of the IPv4 header.
                for at in [headers_len + 700, headers_len - 18, headers_len - 15, 22] {
                    let mut frames = good.clone();
                    frames[damaged][at] ^= 0x10;
                    let joined = join(&frames);
                    let alone = joined.iter().any(|(header, bytes)| header.is_none() && *bytes == frames[damaged]);
                    assert!(alone, "frame {damaged}, byte {at}");
                    assert_eq!(segmented(&frames), frames);
                }
            }
        }
    }

    #[test]
    fn padding_and_cut_frames_are_left_alone() {
        let frames = built(&stream(false, 2, 100));
        for length in [0, 13, 53, frames[1].len() - 1, frames[1].len() + 1] {
            let mut frames = frames.clone();
            frames[1].resize(length, 0);
            assert_eq!(join(&frames).len(), 2, "{length}");
        }
    }

    proptest! {
        /// Whatever a burst holds: what comes out, cut again, is what went in, byte for byte and in its order.
        #[test]
        fn coalescing_and_segmenting_gives_the_same_frames(
            v6 in any::<bool>(),
            len in 1..1500usize,
            changes in prop::collection::vec((0..24usize, any::<u8>(), any::<u16>()), 0..6),
            damages in prop::collection::vec((0..24usize, 0..130usize, any::<u8>()), 0..3),
        ) {
            let mut segments = stream(v6, 24, len);
            for (at, kind, value) in changes {
                segments[at].change(kind, value);
            }
            let mut frames = built(&segments);
            for (frame, byte, bits) in damages {
                if let Some(byte) = frames[frame].get_mut(byte) {
                    *byte ^= bits;
                }
            }
            prop_assert_eq!(segmented(&frames), frames);
        }

        #[test]
        fn no_bytes_at_all_make_it_panic(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4)) {
            prop_assert_eq!(segmented(&frames), frames);
        }
    }

    /// What would be written for a burst.
    fn join(frames: &[Vec<u8>]) -> Vec<(Option<VnetHeader>, Vec<u8>)> {
        let mut out = Vec::new();
        let mut rest = frames;
        while let [frame, behind @ ..] = rest {
            let parse =
                |frame: &'_ Vec<u8>| TcpSegment::parse(Span::from(frame.as_slice())).map(|segment| segment.headers_len);
            let mut count = 1;
            if let Some(headers_len) = parse(frame) {
                let mut joined = Coalescer::new(TcpSegment::parse(Span::from(frame.as_slice())).unwrap());
                let mut payload = frame[headers_len..].to_vec();
                for next in behind {
                    let Some(segment) = TcpSegment::parse(Span::from(next.as_slice())) else { break };
                    if !joined.push(&segment) {
                        break;
                    }
                    payload.extend(&next[headers_len..]);
                }
                count = joined.count();
                if count > 1 {
                    let (header, headers) = joined.finish();
                    out.push((Some(header), [headers, &payload].concat()));
                }
            }
            if count == 1 {
                out.push((None, frame.clone()));
            }
            rest = &rest[count..];
        }
        out
    }

    /// The same, cut again.
    fn segmented(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let cut = |(header, bytes): (Option<VnetHeader>, Vec<u8>)| {
            let Some(header) = header else { return vec![bytes] };
            let segments = Segments::new(&bytes, &header).unwrap();
            let write = |index| {
                let mut out = vec![0; segments.frame_len(index).unwrap()];
                segments.write(index, &mut out).unwrap();
                out
            };
            (0..segments.count()).map(write).collect()
        };
        join(frames).into_iter().flat_map(cut).collect()
    }

    /// What is in a segment.
    #[derive(Clone, Debug)]
    struct Segment {
        v6: bool,
        tos: u8,
        ttl: u8,
        id: u16,
        dont_fragment: bool,
        fragment: bool,
        port: u16,
        sequence: u32,
        acknowledges: u32,
        window: u16,
        flags: u8,
        options: Vec<u8>,
        payload: Vec<u8>,
    }

    impl Segment {
        fn change(&mut self, kind: u8, value: u16) {
            match kind % 12 {
                0 => self.tos = value as u8,
                1 => self.ttl = value as u8,
                2 => self.id = value,
                3 => self.dont_fragment = !self.dont_fragment,
                4 => self.port = value,
                5 => self.sequence = self.sequence.wrapping_add(value.into()),
                6 => self.acknowledges = value.into(),
                7 => self.window = value,
                8 => self.flags = value as u8,
                9 => self.options = vec![value as u8; usize::from(value >> 8) % 11 * 4],
                10 => self.payload.truncate(value.into()),
                _ => self.payload.iter_mut().for_each(|byte| *byte = value as u8),
            }
        }

        fn build(&self) -> Vec<u8> {
            let ip = if self.v6 {
                let flow_label = Ipv6FlowLabel::try_new(0x12345).unwrap();
                let (source, destination) = ([0xfd; 16], [0xfc; 16]);
                let (traffic_class, hop_limit) = (self.tos, self.ttl);
                let header =
                    Ipv6Header { traffic_class, flow_label, hop_limit, source, destination, ..Ipv6Header::default() };
                IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
            } else {
                let mut header = Ipv4Header::new(0, self.ttl, ip_number::TCP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
                header.identification = self.id;
                header.dont_fragment = self.dont_fragment;
                header.more_fragments = self.fragment;
                header.fragment_offset = IpFragOffset::ZERO;
                header.dscp = (self.tos >> 2).try_into().unwrap();
                header.ecn = (self.tos & 3).try_into().unwrap();
                IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
            };
            let mut tcp = TcpHeader::new(self.port, 5001, self.sequence, self.window);
            tcp.acknowledgment_number = self.acknowledges;
            let flag = |bit: u8| self.flags & bit != 0;
            (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (flag(1), flag(2), flag(4), flag(8));
            (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (flag(16), flag(32), flag(64), flag(128));
            tcp.set_options_raw(&self.options).unwrap();
            let mut frame = Vec::new();
            let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
            ethernet.ip(ip).tcp_header(tcp).write(&mut frame, &self.payload).unwrap();
            frame
        }
    }

    fn built(segments: &[Segment]) -> Vec<Vec<u8>> {
        segments.iter().map(Segment::build).collect()
    }

    /// Full segments of one flow, with timestamps, over the ends of the ID's and the sequence number's spaces.
    fn stream(v6: bool, count: usize, len: usize) -> Vec<Segment> {
        let segment = |index: usize| Segment {
            v6,
            tos: 0x08,
            ttl: 64,
            id: 0xfffe_u16.wrapping_add(index as u16),
            dont_fragment: true,
            fragment: false,
            port: 40_000,
            sequence: (u32::MAX - 2000).wrapping_add((index * len) as u32),
            acknowledges: 7,
            window: 500,
            flags: ACK,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: (0..len).map(|at| (at * 7 + index) as u8).collect(),
        };
        (0..count).map(segment).collect()
    }
}
