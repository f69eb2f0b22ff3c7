//! What a router says of a packet that it does not forward (RFC 4443).

use super::settings::NptInterface;
use crate::function::{Extra, Side};
use crate::packet::checksum;
use crate::packet::{Headers, ICMP_V6};

/// An ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    kind: u8,
    code: u8,
    /// Of a parameter problem: which byte of the packet.
    pointer: u32,
}

/// There is no route to the destination.
pub const NO_ROUTE: Refusal = Refusal { kind: 1, code: 0, pointer: 0 };
/// The source is not one of this side.
pub const WRONG_SOURCE: Refusal = Refusal { kind: 1, code: 5, pointer: 0 };
/// The hop limit is reached.
pub const EXPIRED: Refusal = Refusal { kind: 3, code: 0, pointer: 0 };
/// The source, and the destination, has no counterpart (RFC 6296, section 3.5, with its erratum).
pub const BAD_SOURCE: Refusal = Refusal { kind: 4, code: 0, pointer: 8 };
/// The same of the destination.
pub const BAD_DESTINATION: Refusal = Refusal { kind: 4, code: 0, pointer: 24 };

/// Whether whoever sent a packet may be told (section 2.4): not about errors, nor about parts that do not say what they are.
pub fn may_be_told(headers: &Headers) -> bool {
    headers.has_transport() && !(headers.is_icmp() && headers.ports[0] < 128)
}

/// Tells whoever sent `frame`, which came in on `side`.
pub fn refuse(refusal: Refusal, interface: &NptInterface, side: Side, frame: &[u8], headers: &Headers) -> Extra {
    let Refusal { kind, code, pointer } = refusal;
    let quote = &frame[headers.ip_at..headers.end.min(headers.ip_at + QUOTED_MAX)];
    let mut message = [&[kind, code, 0, 0][..], &pointer.to_be_bytes(), quote].concat();
    let (from, to) = (interface.address.addr(), headers.source);
    let sum = checksum::full(&message, checksum::pseudo_v6(from.into(), to, ICMP_V6, message.len() as u32));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let len = (message.len() as u16).to_be_bytes();
    let ip = [&[0x60, 0, 0, 0, len[0], len[1], ICMP_V6, 64][..], &from.octets(), &to.to_be_bytes()].concat();
    let frame = [&frame[6..12], &interface.mac.0, &[0x86, 0xdd], &ip, &message].concat();
    Extra { to: side, frame }
}

/// The error is no longer than every link takes.
const QUOTED_MAX: usize = 1280 - 40 - 8;
