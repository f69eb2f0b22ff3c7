//! What is too long for an interface: it leaves in parts (RFC 791, section 3.2), and connections agree on shorter segments (RFC 1191,
//! section 3.1, as every router of links with different MTUs has them do).

use crate::packet::checksum::{self, Change};
use crate::packet::{Headers, TCP, TCP_SYN};

/// An IPv4 packet in an Ethernet frame, in parts of at most `mtu` bytes each, in their order. Padding goes.
pub fn parts(frame: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let header_len = usize::from(frame[ETHERNET] & 0xf) * 4;
    let total = usize::from(word(frame, ETHERNET + 2));
    let (link, packet) = (&frame[..ETHERNET], &frame[ETHERNET..ETHERNET + total]);
    let (header, payload) = packet.split_at(header_len);
    // Offsets count words of 8 bytes.
    let most = (mtu.saturating_sub(header_len) & !7).max(8);
    let fragment = word(header, 6);
    let part = |(number, piece): (usize, &[u8])| {
        let mut header = header.to_vec();
        if number > 0 {
            keep_copied_options(&mut header[20..]);
        }
        let is_last = (number + 1) * most >= payload.len();
        let more = if is_last { fragment & MORE } else { MORE };
        let offset = (fragment & OFFSET) + (number * most / 8) as u16;
        put(&mut header, 2, (header_len + piece.len()) as u16);
        put(&mut header, 6, fragment & !(MORE | OFFSET) | more | offset);
        put(&mut header, 10, 0);
        let sum = checksum::full(&header, 0);
        put(&mut header, 10, sum);
        [link, &header, piece].concat()
    };
    payload.chunks(most).enumerate().map(part).collect()
}

/// What both ends of a connection say of the longest segment that they take is made at most that, where it is said.
pub fn clamp_mss(frame: &mut [u8], headers: &Headers, most: u16) {
    if headers.protocol != TCP || !headers.has_transport() || headers.tcp_flags & TCP_SYN == 0 {
        return;
    }
    let at = headers.transport_at;
    let header_len = usize::from(frame[at + 12] >> 4) * 4;
    let Some(segment) = frame.get_mut(at..headers.end.min(at + header_len)) else { return };
    let Some(place) = mss_at(segment).filter(|place| word(segment, *place) > most) else { return };
    // It may stand at an odd place.
    let changed = place & !1..(place + 3) & !1;
    let before = segment[changed.clone()].to_vec();
    put(segment, place, most);
    let change = Change::default().bytes(&before, &segment[changed]);
    let sum = change.apply(word(segment, 16));
    put(segment, 16, sum);
}

/// Where the value of the option stands.
fn mss_at(segment: &[u8]) -> Option<usize> {
    let mut at = TCP_HEADER;
    loop {
        match (*segment.get(at)?, segment.get(at + 1)) {
            (END, _) => return None,
            (NOTHING, _) => at += 1,
            (MSS, Some(4)) => return (at + 4 <= segment.len()).then_some(at + 2),
            (_, Some(&length)) if length >= 2 => at += usize::from(length),
            _ => return None,
        }
    }
}

/// Those that are of the first part only become options that do nothing.
fn keep_copied_options(options: &mut [u8]) {
    let mut at = 0;
    while at < options.len() {
        let length = match options[at..] {
            [END, ..] => return,
            [NOTHING, ..] => 1,
            [_, length, ..] if length >= 2 && at + usize::from(length) <= options.len() => usize::from(length),
            _ => return,
        };
        if options[at] & COPIED == 0 {
            options[at..at + length].fill(NOTHING);
        }
        at += length;
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

const ETHERNET: usize = 14;
/// Without options.
const TCP_HEADER: usize = 20;
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Kinds of options, of IP and TCP alike.
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
/// Of an option of IP: every part has it.
const COPIED: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames;
    use crate::packet::{Link, Packet, parse};

    /// A protocol without ports (RFC 3692).
    const EXPERIMENT: u8 = 253;

    fn headers_of(frame: &[u8]) -> Headers {
        match parse(Link::Ethernet, frame) {
            Ok(Packet::Ip(headers)) => headers,
            other => panic!("{other:?}"),
        }
    }

    /// Puts parts together, each of which is whole.
    fn together(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = Vec::new();
        for part in parts {
            assert!(checksum::is_right(&part[ETHERNET..headers_of(part).transport_at], 0));
            let offset = usize::from(word(part, ETHERNET + 6) & OFFSET) * 8;
            assert_eq!(offset, payload.len(), "in order");
            payload.extend_from_slice(&part[headers_of(part).transport_at..]);
        }
        payload
    }

    proptest! {
        #[test]
        fn parts_fit_and_are_the_packet(len in 1..3000_usize, mtu in 68..1500_usize, again in 68..1500_usize) {
            let payload: Vec<u8> = (0..len).map(|number| number as u8).collect();
            let mut frame = frames::v4(EXPERIMENT, 1, 2, &payload);
            // It may be parted.
            put(&mut frame, ETHERNET + 6, 0);
            let parts = parts(&frame, mtu);
            // Parts that find a shorter MTU on their way are parted again.
            let parts: Vec<_> = parts.iter().flat_map(|part| super::parts(part, again)).collect();
            prop_assert!(parts.iter().all(|part| part.len() <= ETHERNET + mtu.min(again)));
            prop_assert_eq!(together(&parts), payload);
            let more: Vec<_> = parts.iter().map(|part| word(part, ETHERNET + 6) & MORE != 0).collect();
            prop_assert!(more.iter().rev().skip(1).all(|more| *more) && !more[more.len() - 1]);
        }

        #[test]
        fn a_segment_of_any_options_stays_whole(options in prop::collection::vec(any::<u8>(), 0..10), most in any::<u16>()) {
            let options = [options.clone(), vec![0; options.len().next_multiple_of(4) - options.len()]].concat();
            let mut frame = with_options(&options);
            let headers = headers_of(&frame);
            let before = frame.clone();
            clamp_mss(&mut frame, &headers, most);
            check_sum(&frame, &headers);
            prop_assert_eq!(frame.len(), before.len());
        }
    }

    fn with_options(options: &[u8]) -> Vec<u8> {
        let frame = frames::tcp((1, 2), (3, 4), TCP_SYN);
        let mut segment = [&frame[ETHERNET + 20..], options].concat();
        segment[12] = ((segment.len() / 4) << 4) as u8;
        put(&mut segment, 16, 0);
        let sum = checksum::full(&segment, checksum::pseudo_v4(1, 3, TCP, segment.len() as u16));
        put(&mut segment, 16, sum);
        frames::v4(TCP, 1, 3, &segment)
    }

    fn check_sum(frame: &[u8], headers: &Headers) {
        let segment = &frame[headers.transport_at..headers.end];
        assert!(checksum::is_right(segment, checksum::pseudo_v4(1, 3, TCP, segment.len() as u16)));
    }

    #[test]
    fn segments_become_shorter_and_never_longer() {
        for (options, most, clamped) in [
            (&[2, 4, 5, 0xb4][..], 1360, &[2, 4, 5, 0x50][..]),
            (&[2, 4, 5, 0xb4], 1460, &[2, 4, 5, 0xb4]),
            (&[1, 2, 4, 5, 0xb4, 1, 1, 0], 1360, &[1, 2, 4, 5, 0x50, 1, 1, 0]),
            (&[4, 2, 2, 4, 5, 0xb4, 0, 0], 1360, &[4, 2, 2, 4, 5, 0x50, 0, 0]),
            (&[0, 2, 4, 5], 1, &[0, 2, 4, 5]),
            (&[2, 3, 5, 0xb4], 1, &[2, 3, 5, 0xb4]),
            (&[9, 0, 2, 4], 1, &[9, 0, 2, 4]),
            (&[1, 1, 2, 4], 1, &[1, 1, 2, 4]),
        ] {
            let mut frame = with_options(options);
            let headers = headers_of(&frame);
            clamp_mss(&mut frame, &headers, most);
            assert_eq!(&frame[headers.transport_at + TCP_HEADER..], clamped);
            check_sum(&frame, &headers);
        }
    }

    #[test]
    fn later_parts_have_the_options_that_are_to_be_copied() {
        let mut options = [7, 3, 4, 1, 0x94, 4, 0, 0, 0x82, 9, 7, 7];
        keep_copied_options(&mut options);
        assert_eq!(options, [1, 1, 1, 1, 0x94, 4, 0, 0, 0x82, 9, 7, 7]);
    }
}
