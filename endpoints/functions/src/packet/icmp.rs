//! ICMP: queries with their answers, and errors with the packet that they quote.

use super::{
    EXTENSION_HEADERS_MAX, FRAGMENT, Family, Headers, ICMP, ICMP_V6, TCP, UDP, array_at, extension_len, icmp_of, u8_at,
    u16_at,
};

/// The type of the request that an ICMP type answers, or is; none: it is no query.
#[inline]
pub fn request_of(family: Family, kind: u16) -> Option<u16> {
    match (family, kind) {
        (Family::V4, 8 | 0) => Some(8),
        (Family::V4, 13 | 14) => Some(13),
        (Family::V4, 15 | 16) => Some(15),
        (Family::V4, 17 | 18) => Some(17),
        (Family::V6, 128 | 129) => Some(128),
        (Family::V6, 139 | 140) => Some(139),
        _ => None,
    }
}

/// Whether an ICMP type is a request, which an answer follows.
#[inline]
pub fn opens_way_back(family: Family, kind: u16) -> bool {
    request_of(family, kind) == Some(kind)
}

/// The packet that an ICMP error quotes: whoever receives the error sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its source address.
    pub source: u128,
    /// Its destination address.
    pub destination: u128,
    /// Its protocol.
    pub protocol: u8,
    /// Its ports; of ICMP, type and code.
    pub ports: [u16; 2],
    /// The identifier of an ICMP query.
    pub identifier: u16,
    /// Where its IP header begins in the frame.
    pub ip_at: usize,
    /// Where its transport header begins; at least 8 bytes of that are there.
    pub transport_at: usize,
}

/// What an ICMP error quotes; none: it is no error, or quotes too little to say whose packet it was (RFC 792 has 8 bytes of the transport
/// header quoted).
pub fn quoted(frame: &[u8], headers: &Headers) -> Option<Quoted> {
    let is_error = match headers.family {
        Family::V4 => matches!(headers.ports[0], 3 | 4 | 11 | 12),
        Family::V6 => matches!(headers.ports[0], 1..=4),
    };
    if !headers.is_icmp() || !headers.has_transport() || !is_error {
        return None;
    }
    let packet = frame.get(..headers.end)?;
    let ip_at = headers.transport_at + 8;
    let (source, destination, protocol, transport_at) = match headers.family {
        Family::V4 => {
            let ip: &[u8; 20] = array_at(packet, ip_at).ok()?;
            let header_len = usize::from(ip[0] & 0xf) * 4;
            let later = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
            if ip[0] >> 4 != 4 || header_len < 20 || later {
                return None;
            }
            let address = |at: usize| u128::from(u32::from_be_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]));
            (address(12), address(16), ip[9], ip_at + header_len)
        }
        Family::V6 => {
            let ip: &[u8; 40] = array_at(packet, ip_at).ok()?;
            if ip[0] >> 4 != 6 {
                return None;
            }
            let address = |at| array_at(ip, at).ok().map(|bytes| u128::from_be_bytes(*bytes));
            let (protocol, transport_at) = behind_extensions(packet, ip[6], ip_at + 40)?;
            (address(8)?, address(24)?, protocol, transport_at)
        }
    };
    let start: &[u8; 8] = array_at(packet, transport_at).ok()?;
    let word = |at: usize| u16::from_be_bytes([start[at], start[at + 1]]);
    let (ports, identifier) = match protocol {
        TCP | UDP => ([word(0), word(2)], 0),
        ICMP | ICMP_V6 if protocol == icmp_of(headers.family) => ([start[0].into(), start[1].into()], word(4)),
        _ => ([0; 2], 0),
    };
    Some(Quoted { source, destination, protocol, ports, identifier, ip_at, transport_at })
}

/// The transport protocol behind the extension headers of a quoted packet, and where its header begins; none: it is not quoted, or the packet is a
/// later fragment, which has none.
fn behind_extensions(packet: &[u8], mut protocol: u8, mut at: usize) -> Option<(u8, usize)> {
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let Some(length) = extension_len(packet, protocol, at).ok()? else { return Some((protocol, at)) };
        if protocol == FRAGMENT && u16_at(packet, at + 2).ok()? & 0xfff8 != 0 {
            return None;
        }
        (protocol, at) = (u8_at(packet, at).ok()?, at + length);
    }
    None
}
