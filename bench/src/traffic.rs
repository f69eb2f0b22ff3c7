//! The pure part of a generator and of a sink: stamped frames, and the count of what became of them.
//!
//! A stamp says which flow a frame belongs to, which frame of that flow it is, and when it was sent. It follows the UDP
//! header, and fills the smallest frame of Ethernet:
//!
//! ```text
//! 0           14       34      42          46         49             54         60
//! | Ethernet  | IPv4   | UDP   | magic u32 | flow u24 | sequence u40 | time u48 | payload ...   (little endian)
//! ```
//! 40 bits of sequence numbers last for five hours at 60 million frames in a second.

use std::net::Ipv4Addr;
use std::ops::{AddAssign, Range};

use ferrule_dataplane::spec::MacAddress;
use ferrule_ffi::span::Span;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
};
use thiserror::Error;

/// One flow's frame, stamped again for each sending. Nothing is allocated after `new`.
#[derive(Clone, Debug)]
pub struct Pattern {
    frame: Box<[u8]>,
    /// The sum of what the UDP checksum covers, with sequence 0, in little-endian words (RFC 1071, section 2.B).
    sum: u32,
    addresses: Addresses,
}

impl Pattern {
    /// A frame of `size` bytes (without FCS) of flow number `flow`, which also selects the UDP source port. Its payload is
    /// a part of the same bytes for all flows and sizes.
    pub fn new(size: usize, flow: u32, addresses: Addresses) -> Result<Self, SizeError> {
        if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
            return Err(SizeError { size });
        }
        let mut frame = vec![0; size].into_boxed_slice();
        addresses.write_headers(&mut frame, FLOW_PORT_MIN + (flow % FLOW_PORTS) as u16);
        frame[STAMP..STAMP + 4].copy_from_slice(&MAGIC.to_le_bytes());
        frame[FLOW..SEQUENCE].copy_from_slice(&flow.to_le_bytes()[..SEQUENCE - FLOW]);
        let mut pattern = Self { frame, sum: 0, addresses };
        pattern.fill(0);
        Ok(pattern)
    }

    /// The frame as it was last stamped.
    #[inline]
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// The frame with this sequence number and the payload it last had: a few instructions whatever its size.
    #[inline]
    pub fn stamp(&mut self, sequence: u64) -> &[u8] {
        self.stamp_at(sequence, 0)
    }

    /// The same, with a time of any unit, of which 48 bits are kept.
    #[inline]
    pub fn stamp_at(&mut self, sequence: u64, time: u64) -> &[u8] {
        let (sequence, time) = (sequence & SEQUENCE_MASK, time & TIME_MASK);
        self.frame[SEQUENCE..TIME].copy_from_slice(&sequence.to_le_bytes()[..TIME - SEQUENCE]);
        self.frame[TIME..PAYLOAD].copy_from_slice(&time.to_le_bytes()[..PAYLOAD - TIME]);
        let checksum = checksum(self.sum, sequence, time);
        self.frame[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&checksum.to_le_bytes());
        &self.frame
    }

    /// The frame with this sequence number and the payload that a verifying [`Sink`] expects of it.
    pub fn fill(&mut self, sequence: u64) -> &[u8] {
        self.fill_at(sequence, 0)
    }

    /// The same, with a time as for [`Self::stamp_at`].
    pub fn fill_at(&mut self, sequence: u64, time: u64) -> &[u8] {
        let sequence = sequence & SEQUENCE_MASK;
        for (index, chunk) in self.frame[PAYLOAD..].chunks_mut(8).enumerate() {
            chunk.copy_from_slice(&payload_word(sequence, index)[..chunk.len()]);
        }
        self.sum_up();
        self.stamp_at(sequence, time)
    }

    /// The first bytes, to be stamped without the others. Of a shorter frame, what follows it is zeros.
    pub fn head(&self) -> Head {
        let mut bytes = [0; HEAD];
        let len = self.frame.len().min(HEAD);
        bytes[..len].copy_from_slice(&self.frame[..len]);
        bytes[UDP_CHECKSUM..UDP_CHECKSUM + 2].fill(0);
        bytes[SEQUENCE..PAYLOAD].fill(0);
        let mut words = [0; HEAD / 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Head { words, sum: self.sum, size: self.frame.len() as u32 }
    }

    fn sum_up(&mut self) {
        self.frame[SEQUENCE..PAYLOAD].fill(0);
        let (from, to) = (self.addresses.source.into(), self.addresses.destination.into());
        let mut udp = UdpPacket::new_unchecked(&mut self.frame[UDP..]);
        udp.fill_checksum(&from, &to);
        self.sum = u32::from(!udp.checksum().swap_bytes());
    }
}

/// The first 64 bytes of a [`Pattern`]: all that differs from frame to frame.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Head {
    /// In little-endian words, without checksum, sequence number and time.
    words: HeadWords,
    sum: u32,
    /// Bytes of the whole frame.
    pub size: u32,
}

impl Head {
    /// The bytes with a sequence number and a time, in little-endian words, for a frame whose other bytes are those of its
    /// pattern as it was when this was made.
    #[inline(always)]
    pub fn stamp(&self, sequence: u64, time: u64) -> HeadWords {
        let (sequence, time) = (sequence & SEQUENCE_MASK, time & TIME_MASK);
        let mut words = self.words;
        words[5] |= u64::from(checksum(self.sum, sequence, time));
        words[6] |= sequence << 8 | time << 48;
        words[7] |= time >> 16;
        words
    }
}

/// The first 64 bytes of a frame, in little-endian words.
pub type HeadWords = [u64; HEAD / 8];

/// Every byte of a frame's payload, read once, as one number. `head` are its [`head_words`].
#[inline(always)]
pub fn payload_digest(frame: Span<'_>, head: &HeadWords) -> u64 {
    frame.tail(HEAD).map_or(0, Span::xor) ^ u64::from_le(head[HEAD / 8 - 1]) >> 32
}

/// The first words of a frame, each read once; of a shorter one, zeros follow.
#[inline(always)]
pub fn head_words(frame: Span<'_>) -> HeadWords {
    if (SIZE_MIN..HEAD).contains(&frame.len())
        && let Some(last) = frame.tail(frame.len() - 8)
    {
        // The smallest frames come by the ten million too: no call of `memcpy` for them.
        let [a, b, c, d, e, f, g] = frame.first_words();
        let [last] = last.first_words();
        return [a, b, c, d, e, f, g, (u64::from_le(last) >> (8 * (HEAD - frame.len()))).to_le()];
    }
    frame.first_words()
}

/// The UDP checksum of a frame in which the sum of all other words is `sum`.
#[inline(always)]
fn checksum(sum: u32, sequence: u64, time: u64) -> u16 {
    let words = |number: u64| (number & 0xffff) + (number >> 16 & 0xffff) + (number >> 32 & 0xffff) + (number >> 48);
    // A sequence number begins at an odd byte.
    let mut sum = sum + (words(sequence << 8) + words(time)) as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // A checksum of 0 would mean that there is none.
    if sum == 0xffff { 0xffff } else { !sum as u16 }
}

/// Where the frames of a [`Pattern`] come from and go to. The default is of the range for benchmarks (RFC 2544, C.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Sender's MAC address.
    pub source_mac: MacAddress,
    /// Receiver's MAC address.
    pub destination_mac: MacAddress,
    /// Sender's IP address.
    pub source: Ipv4Addr,
    /// Receiver's IP address.
    pub destination: Ipv4Addr,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            source_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            destination_mac: MacAddress([2, 0, 0, 0, 0, 2]),
            source: Ipv4Addr::new(198, 18, 0, 1),
            destination: Ipv4Addr::new(198, 18, 0, 2),
        }
    }
}

impl Addresses {
    /// These, and for the frames that come back the same reversed.
    pub fn both_ways(self) -> [Self; 2] {
        let back = Self {
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            source: self.destination,
            destination: self.source,
        };
        [self, back]
    }

    fn write_headers(&self, frame: &mut [u8], source_port: u16) {
        let (udp_size, ip_payload) = ((frame.len() - UDP) as u16, frame.len() - UDP);
        EthernetRepr {
            src_addr: EthernetAddress(self.source_mac.0),
            dst_addr: EthernetAddress(self.destination_mac.0),
            ethertype: EthernetProtocol::Ipv4,
        }
        .emit(&mut EthernetFrame::new_unchecked(&mut *frame));
        Ipv4Repr {
            src_addr: self.source,
            dst_addr: self.destination,
            next_header: IpProtocol::Udp,
            payload_len: ip_payload,
            hop_limit: 64,
        }
        .emit(&mut Ipv4Packet::new_unchecked(&mut frame[IP..]), &ChecksumCapabilities::default());
        let mut udp = UdpPacket::new_unchecked(&mut frame[UDP..]);
        udp.set_src_port(source_port);
        udp.set_dst_port(DISCARD_PORT);
        udp.set_len(udp_size);
    }
}

/// Checks the frames that arrive. Each flow is expected to count from 0.
///
/// Frames missing behind the last one that came are not in `lost`: compare `frames` with what was sent.
#[derive(Clone, Debug)]
pub struct Sink {
    first: u32,
    flows: Box<[FlowState]>,
    verify: bool,
    tally: RxCounters,
}

impl Sink {
    /// A sink for these flows. With `verify`, checksums and payload are checked too, and the sender must use
    /// [`Pattern::fill`].
    pub fn new(flows: Range<u32>, verify: bool) -> Self {
        let states = vec![FlowState::default(); flows.len()].into_boxed_slice();
        Self { first: flows.start, flows: states, verify, tally: RxCounters::default() }
    }

    /// Takes note of one frame. When it was sent, if it is a good one of ours; compare with [`since`].
    #[inline]
    pub fn see(&mut self, frame: &[u8]) -> Option<u64> {
        let stamp = self.judge(&head_words(frame.into()), frame.len())?;
        if self.verify && !is_intact(frame, stamp.sequence) {
            self.tally.corrupt += 1;
            return None;
        }
        self.count(&stamp, frame.len());
        Some(stamp.time)
    }

    /// Takes note of a frame of `length` bytes by its [`head_words`] and by whether what follows them is as it should be.
    /// As [`Self::see`], but nothing else is verified.
    #[inline(always)]
    pub fn see_head(&mut self, head: &HeadWords, length: usize, intact: bool) -> Option<u64> {
        let stamp = self.judge(head, length)?;
        if !intact {
            self.tally.corrupt += 1;
            return None;
        }
        self.count(&stamp, length);
        Some(stamp.time)
    }

    /// Takes note of frames that nobody looked at, and that have so many bytes.
    #[inline(always)]
    pub fn count_unseen(&mut self, frames: usize, bytes: usize) {
        self.tally.frames += frames as u64;
        self.tally.bytes += bytes as u64;
    }

    /// The sequence number that is expected of the only flow; none, if there are several.
    #[inline(always)]
    pub fn expected(&self) -> Option<u64> {
        if let [flow] = &*self.flows { Some(flow.next) } else { None }
    }

    /// Takes note of frames of the only flow which came as they are [expected](Self::expected), with so many bytes.
    #[inline(always)]
    pub fn count_expected(&mut self, frames: usize, bytes: usize) {
        self.count_unseen(frames, bytes);
        if let [flow] = &mut *self.flows {
            flow.in_order(frames as u64);
        }
    }

    /// What was seen so far.
    pub fn tally(&self) -> RxCounters {
        self.tally
    }

    /// Forgets what was seen, and expects of each flow what `next` says.
    pub fn restart(&mut self, next: impl IntoIterator<Item = u64>) {
        self.tally = RxCounters::default();
        for (flow, next) in self.flows.iter_mut().zip(next) {
            *flow = FlowState { next, seen: u64::MAX };
        }
    }

    #[inline(always)]
    fn judge(&mut self, head: &HeadWords, length: usize) -> Option<Stamp> {
        let stamp = Stamp::read(head, length);
        match &stamp {
            None => self.tally.foreign += 1,
            Some(stamp) if stamp.length != length || self.place(stamp.flow).is_none() => self.tally.corrupt += 1,
            Some(_) => return stamp,
        }
        None
    }

    #[inline(always)]
    fn count(&mut self, stamp: &Stamp, length: usize) {
        self.tally.frames += 1;
        self.tally.bytes += length as u64;
        // Judged before.
        let Some(place) = self.place(stamp.flow) else { return };
        let flow = &mut self.flows[place];
        if stamp.sequence == flow.next {
            flow.in_order(1);
        } else {
            flow.out_of_order(stamp.sequence, &mut self.tally);
        }
    }

    #[inline(always)]
    fn place(&self, flow: u32) -> Option<usize> {
        let place = flow.wrapping_sub(self.first) as usize;
        (place < self.flows.len()).then_some(place)
    }
}

/// How long ago a time was stamped, in its unit, if the clock has not gone round since.
#[inline(always)]
pub fn since(time: u64, now: u64) -> u64 {
    now.wrapping_sub(time) & TIME_MASK
}

/// What a [`Sink`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxCounters {
    /// Stamped frames in good order or not, duplicates included.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sequence numbers that were jumped over and did not come later.
    pub lost: u64,
    /// Frames that came after a later one of their flow.
    pub reordered: u64,
    /// Frames that came again, or too late to tell (64 or more behind the latest).
    pub duplicated: u64,
    /// Stamped frames of a wrong length or an unknown flow, or, if verified, with a wrong checksum or payload.
    pub corrupt: u64,
    /// Frames without a stamp, such as a kernel's own.
    pub foreign: u64,
}

impl AddAssign for RxCounters {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.reordered += other.reordered;
        self.duplicated += other.duplicated;
        self.corrupt += other.corrupt;
        self.foreign += other.foreign;
    }
}

/// The state of one flow.
#[derive(Clone, Copy, Debug, Default)]
struct FlowState {
    next: u64,
    /// Bit n: whether number `next - 1 - n` came.
    seen: u64,
}

impl FlowState {
    /// The next `count` frames came, each at its turn.
    #[inline(always)]
    fn in_order(&mut self, count: u64) {
        self.next = self.next.saturating_add(count);
        // Shifting by 64 or more is all zeros here, which Rust's `<<` does not promise.
        self.seen = if count < 64 { !(!self.seen << count) } else { u64::MAX };
    }

    #[cold]
    fn out_of_order(&mut self, sequence: u64, tally: &mut RxCounters) {
        if sequence > self.next {
            let missing = sequence - self.next;
            tally.lost = tally.lost.saturating_add(missing);
            // Shifting by 64 or more is all zeros here, which Rust's `<<` does not promise.
            self.seen = u32::try_from(missing + 1).ok().and_then(|by| self.seen.checked_shl(by)).unwrap_or(0) | 1;
            self.next = sequence.saturating_add(1);
            return;
        }
        let age = self.next - 1 - sequence;
        if age < 64 && self.seen >> age & 1 == 0 {
            self.seen |= 1 << age;
            tally.lost = tally.lost.saturating_sub(1);
            tally.reordered += 1;
        } else {
            tally.duplicated += 1;
        }
    }
}

#[derive(Clone, Copy)]
struct Stamp {
    flow: u32,
    sequence: u64,
    time: u64,
    /// The frame's length by its own IP header.
    length: usize,
}

impl Stamp {
    #[inline(always)]
    fn read(head: &HeadWords, length: usize) -> Option<Self> {
        // Words of their own, as they were loaded: see the drawing at the top.
        let [_, _, ip, _, _, magic_flow, flow_sequence_time, time_payload] = head.map(u64::to_le);
        if (magic_flow >> 16) as u32 != MAGIC || length < SIZE_MIN {
            return None;
        }
        Some(Self {
            flow: (magic_flow >> 48) as u32 | u32::from(flow_sequence_time as u8) << 16,
            sequence: flow_sequence_time >> 8 & SEQUENCE_MASK,
            time: flow_sequence_time >> 48 | u64::from(time_payload as u32) << 16,
            length: IP + usize::from((ip as u16).swap_bytes()),
        })
    }
}

fn is_intact(frame: &[u8], sequence: u64) -> bool {
    let Ok(ip) = Ipv4Packet::new_checked(&frame[IP..]) else { return false };
    let Ok(udp) = UdpPacket::new_checked(ip.payload()) else { return false };
    let mut payload = frame.get(PAYLOAD..).unwrap_or_default().chunks(8).enumerate();
    ip.verify_checksum()
        && udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into())
        && payload.all(|(index, chunk)| *chunk == payload_word(sequence, index)[..chunk.len()])
}

/// Differs in every byte from frame to frame and from word to word.
fn payload_word(sequence: u64, index: usize) -> [u8; 8] {
    // 2^64 divided by the golden ratio, as in Fibonacci hashing.
    (sequence ^ (index as u64) << 48).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()
}

/// A frame cannot have this size.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a frame of {size} bytes: {SIZE_MIN} to {SIZE_MAX} are possible (without FCS)")]
pub struct SizeError {
    size: usize,
}

/// The smallest Ethernet frame without its FCS.
pub const SIZE_MIN: usize = PAYLOAD;
/// The largest IPv4 packet and its Ethernet header.
pub const SIZE_MAX: usize = IP + 65_535;
/// `FERR` in memory.
const MAGIC: u32 = u32::from_le_bytes(*b"FERR");
const IP: usize = 14;
const UDP: usize = IP + 20;
const UDP_CHECKSUM: usize = UDP + 6;
const STAMP: usize = UDP + 8;
const FLOW: usize = STAMP + 4;
const SEQUENCE: usize = FLOW + 3;
const TIME: usize = SEQUENCE + 5;
/// Where the stamp ends.
const PAYLOAD: usize = TIME + 6;
/// Bytes that are written and read in words: the stamp, and the beginning of the payload.
pub const HEAD: usize = 64;
const SEQUENCE_MASK: u64 = (1 << 40) - 1;
const TIME_MASK: u64 = (1 << 48) - 1;
const FLOW_PORT_MIN: u16 = 1024;
/// 1024 to 65535.
const FLOW_PORTS: u32 = 64_512;
/// RFC 863: who receives it throws it away.
const DISCARD_PORT: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(size: usize, flow: u32) -> Pattern {
        Pattern::new(size, flow, Addresses::default()).unwrap()
    }

    fn checksums_are_right(frame: &[u8]) -> bool {
        let ip = Ipv4Packet::new_checked(&frame[IP..]).unwrap();
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        ip.verify_checksum() && udp.checksum() != 0 && udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into())
    }

    #[test]
    fn the_smallest_frame_is_what_the_drawing_says() {
        let mut pattern = pattern(60, 7);
        let expected = [
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
            0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0xae, 0x97, 198, 18, 0, 1, 198, 18, 0, 2, // IPv4
            0x04, 0x07, 0, 9, 0, 26, 0xa2, 0xbd, // UDP
            b'F', b'E', b'R', b'R', 7, 0, 0, 5, 4, 3, 2, 1, 0xf, 0xe, 0xd, 0xc, 0xb, 0xa, // stamp
        ];
        assert_eq!(pattern.stamp_at(0x01_0203_0405, 0x0a0b_0c0d_0e0f), expected);
    }

    #[test]
    fn checksums_are_right_for_any_size_and_sequence() {
        for size in [60, 61, 64, 1514, 9014, SIZE_MAX] {
            let mut pattern = pattern(size, 3);
            for sequence in [0, 1, 0xffff, 0x1_0000, u64::MAX, 0x8000_0000_0000_0001, 0x0123_4567_89ab_cdef] {
                assert!(checksums_are_right(pattern.stamp(sequence)), "stamp {size} {sequence}");
                assert!(checksums_are_right(pattern.fill(sequence)), "fill {size} {sequence}");
                assert!(checksums_are_right(pattern.stamp(!sequence)), "stamp again {size} {sequence}");
            }
        }
    }

    #[test]
    fn a_head_stamped_alone_is_the_head_of_the_frame() {
        for size in [60, 61, 63, 64, 65, 1518, 9000] {
            let mut pattern = pattern(size, 5);
            let head = pattern.head();
            assert_eq!(head.size as usize, size);
            for (sequence, time) in [(0, 0), (1, 0x1234_5678_9abc), (u64::MAX, u64::MAX), (0x0102_0304_0506_0708, 7)] {
                let words = head.stamp(sequence, time).map(u64::to_le_bytes);
                let frame = pattern.stamp_at(sequence, time);
                let len = size.min(HEAD);
                assert_eq!(
                    (&words.as_flattened()[..len], head_words(frame.into())),
                    (&frame[..len], head.stamp(sequence, time))
                );
                assert!(checksums_are_right(frame));
            }
        }
    }

    #[test]
    fn the_payload_is_a_part_of_the_same_bytes_for_all_flows_and_sizes() {
        assert_eq!(pattern(200, 7).frame()[PAYLOAD..], pattern(1518, 2).frame()[PAYLOAD..200]);
    }

    #[test]
    fn a_sink_tells_when_a_frame_was_sent() {
        for size in [60, 64] {
            let (mut sink, mut flow) = (Sink::new(4..5, false), pattern(size, 4));
            let sent = 0xffff_ffff_fff0;
            let head = head_words(flow.stamp_at(0, sent).into());
            let time = sink.see_head(&head, size, true).unwrap();
            assert_eq!((since(time, sent + 5), since(time, sent + 0x20)), (5, 0x20), "also when the clock goes round");
            assert_eq!(sink.see_head(&head, size + 1, true), None, "another length");
            assert_eq!(sink.see_head(&[0; 8], size, true), None);
            assert_eq!(Sink::new(0..4, false).see_head(&head, size, true), None, "another's flow");
            let expected =
                RxCounters { frames: 1, bytes: size as u64, corrupt: 1, foreign: 1, ..RxCounters::default() };
            assert_eq!(sink.tally(), expected);
        }
    }

    #[test]
    fn a_restarted_sink_goes_on_where_it_is_told_to() {
        let (mut sink, mut flow) = (Sink::new(0..1, false), pattern(64, 0));
        sink.see(flow.stamp(3));
        sink.restart([10]);
        sink.see(flow.stamp(10));
        sink.see(flow.stamp(9));
        assert_eq!(sink.tally(), RxCounters { frames: 2, bytes: 128, duplicated: 1, ..RxCounters::default() });
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        let mut pattern = pattern(60, 0);
        assert!((0..=0xffff).all(|sequence| checksums_are_right(pattern.stamp(sequence))));
    }

    #[test]
    fn a_size_that_no_frame_has_is_an_error() {
        for size in [0, 59, SIZE_MAX + 1] {
            assert_eq!(Pattern::new(size, 0, Addresses::default()).unwrap_err(), SizeError { size });
        }
    }

    #[test]
    fn a_sink_counts_what_came_in_order() {
        let (mut sink, mut flows) = (Sink::new(0..2, true), [pattern(64, 0), pattern(1514, 1)]);
        for sequence in 0..100 {
            for flow in &mut flows {
                sink.see(flow.fill(sequence));
            }
        }
        assert_eq!(sink.tally(), RxCounters { frames: 200, bytes: 100 * (64 + 1514), ..RxCounters::default() });
    }

    #[test]
    fn frames_that_came_as_expected_count_as_if_each_had_been_seen() {
        let (mut sink, mut flow) = (Sink::new(0..1, false), pattern(64, 0));
        sink.see(flow.stamp(2));
        for count in [1, 5, 64, 100] {
            let next = sink.expected().unwrap();
            sink.count_expected(count, 64 * count);
            assert_eq!(sink.expected(), Some(next + count as u64));
        }
        // Numbers 0 and 1 are still missing, but too far behind to tell whether they came.
        for sequence in [172, 172 - 63, 172 - 64, 1] {
            sink.see(flow.stamp(sequence));
        }
        let tally = sink.tally();
        assert_eq!((tally.frames, tally.bytes), (1 + 170 + 4, 64 * 175));
        assert_eq!((tally.lost, tally.reordered, tally.duplicated), (2, 0, 4));
        assert_eq!(Sink::new(0..2, false).expected(), None);
    }

    #[test]
    fn a_sink_tells_lost_from_late_from_repeated() {
        let (mut sink, mut flow) = (Sink::new(0..1, false), pattern(64, 0));
        for sequence in [0, 1, 4, 3, 3, 5, 1] {
            sink.see(flow.stamp(sequence));
        }
        let tally = sink.tally();
        assert_eq!((tally.frames, tally.lost, tally.reordered, tally.duplicated), (7, 1, 1, 2));
        for sequence in [1000, 6, 999, u64::MAX, 0] {
            sink.see(flow.stamp(sequence));
        }
        let tally = sink.tally();
        assert_eq!((tally.reordered, tally.duplicated), (2, 4), "too late to tell counts as repeated");
    }

    #[test]
    fn a_sink_tells_corrupt_frames_from_foreign_ones() {
        let (mut sink, mut flow) = (Sink::new(0..1, true), pattern(128, 0));
        sink.see(&[]);
        sink.see(&[0; 1500]);
        assert_eq!(sink.tally(), RxCounters { foreign: 2, ..RxCounters::default() });
        sink.see(pattern(64, 9).fill(0));
        sink.see(&flow.fill(0)[..127]);
        for byte in (IP..STAMP).chain(SEQUENCE..128) {
            let mut frame = flow.fill(0).to_vec();
            frame[byte] ^= 0x10;
            sink.see(&frame);
        }
        assert_eq!(sink.tally(), RxCounters { foreign: 2, corrupt: 2 + 28 + 79, ..RxCounters::default() });
    }

    #[test]
    fn without_verification_only_stamp_and_length_count() {
        let (mut sink, mut flow) = (Sink::new(0..1, false), pattern(128, 0));
        let mut frame = flow.stamp(0).to_vec();
        frame[100] ^= 1;
        sink.see(&frame);
        assert_eq!(sink.tally(), RxCounters { frames: 1, bytes: 128, ..RxCounters::default() });
    }
}
