//! The headers of a frame: parsed on our copy, with every length checked against it.
//!
//! [`parse`] says yes only to what is whole: whoever reads by the offsets of [`Headers`] stays inside the frame.

pub mod checksum;
mod icmp;
mod plain;

pub use icmp::{Quoted, opens_way_back, quoted, request_of};
pub use plain::PlainPacket;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// An IP packet, or a fragment of one.
    Ip(Headers),
    /// ARP.
    Arp,
    /// Something else, by its ethertype.
    Other(u16),
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Ethernet, with up to two VLAN tags.
    #[default]
    Ethernet,
    /// The IP packet itself.
    Ip,
}

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The headers of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Which IP.
    pub family: Family,
    /// The source address; of IPv4, in the low 32 bits.
    pub source: u128,
    /// The destination address.
    pub destination: u128,
    /// The protocol behind all extension headers.
    pub protocol: u8,
    /// Source and destination port; of ICMP, type and code; of anything else and of later fragments, 0.
    pub ports: [u16; 2],
    /// The identifier of an ICMP query.
    pub identifier: u16,
    /// The flags of TCP.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Which part of a packet it is.
    pub fragment: Fragment,
    /// Where the IP header begins.
    pub ip_at: usize,
    /// Where the transport header begins, or the payload of a later fragment.
    pub transport_at: usize,
    /// Where the packet ends; padding may follow.
    pub end: usize,
}

/// Which part of a packet a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first part, which has the transport header.
    First {
        /// By what the parts are known.
        id: u32,
    },
    /// Another part.
    Later {
        /// By what the parts are known.
        id: u32,
        /// Bytes of payload before it.
        offset: u16,
    },
}

impl Headers {
    /// Whether it has a transport header.
    #[inline]
    pub fn has_transport(&self) -> bool {
        !matches!(self.fragment, Fragment::Later { .. })
    }

    /// Whether its protocol is the ICMP of its family.
    #[inline]
    pub fn is_icmp(&self) -> bool {
        self.protocol == icmp_of(self.family)
    }

    /// Whether it is what resolves addresses in IPv6, as ARP does in IPv4: solicitations and advertisements that no router forwarded
    /// (RFC 4861, section 7.1).
    pub fn is_neighbour_discovery(&self) -> bool {
        self.family == Family::V6
            && self.is_icmp()
            && self.fragment == Fragment::Whole
            && self.hop_limit == 255
            && matches!(self.ports, [NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT, 0])
    }
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends inside a header.
    Truncated,
    /// A version, length or offset that no such header has.
    BadHeader,
    /// More VLAN tags or extension headers than anybody needs.
    TooManyHeaders,
    /// A fragment that hides the transport header, or writes over it (RFC 1858, RFC 3128).
    TinyFragment,
}

/// Reads the headers of a frame.
#[inline]
pub fn parse(link: Link, frame: &[u8]) -> Result<Packet, Malformed> {
    match link {
        Link::Ethernet => parse_ethernet(frame),
        Link::Ip => match frame.first().map(|first| first >> 4) {
            Some(4) => parse_v4(frame, 0).map(Packet::Ip),
            Some(6) => parse_v6(frame, 0).map(Packet::Ip),
            Some(_) => Err(Malformed::BadHeader),
            None => Err(Malformed::Truncated),
        },
    }
}

#[inline]
fn parse_ethernet(frame: &[u8]) -> Result<Packet, Malformed> {
    let mut at = 12;
    for _ in 0..=VLAN_TAGS_MAX {
        let ethertype = u16_at(frame, at)?;
        at += 2;
        match ethertype {
            ETHERTYPE_V4 => return parse_v4(frame, at).map(Packet::Ip),
            ETHERTYPE_V6 => return parse_v6(frame, at).map(Packet::Ip),
            ETHERTYPE_ARP => return Ok(Packet::Arp),
            // The tag, behind which the next ethertype stands.
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => at += 2,
            other => return Ok(Packet::Other(other)),
        }
    }
    Err(Malformed::TooManyHeaders)
}

#[inline]
fn parse_v4(frame: &[u8], ip_at: usize) -> Result<Headers, Malformed> {
    let header: &[u8; 20] = array_at(frame, ip_at)?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_len < 20 || total < header_len {
        return Err(Malformed::BadHeader);
    }
    let end = ip_at + total;
    if end > frame.len() {
        return Err(Malformed::Truncated);
    }
    let fragment_field = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (fragment_field & 0x2000 != 0, (fragment_field & 0x1fff) * 8);
    let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let headers = Headers {
        family: Family::V4,
        source: u32::from_be_bytes([header[12], header[13], header[14], header[15]]).into(),
        destination: u32::from_be_bytes([header[16], header[17], header[18], header[19]]).into(),
        protocol: header[9],
        hop_limit: header[8],
        fragment: fragment_of(id, offset, more),
        ip_at,
        transport_at: ip_at + header_len,
        end,
        ..EMPTY
    };
    with_transport(frame, headers)
}

fn parse_v6(frame: &[u8], ip_at: usize) -> Result<Headers, Malformed> {
    let header: &[u8; 40] = array_at(frame, ip_at)?;
    let end = ip_at + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 {
        return Err(Malformed::BadHeader);
    }
    if end > frame.len() {
        return Err(Malformed::Truncated);
    }
    let mut headers = Headers {
        family: Family::V6,
        source: u128::from_be_bytes(*array_at(header, 8)?),
        destination: u128::from_be_bytes(*array_at(header, 24)?),
        protocol: header[6],
        hop_limit: header[7],
        ip_at,
        transport_at: ip_at + 40,
        end,
        ..EMPTY
    };
    let packet = &frame[..end];
    let mut fragment_at = None;
    let mut extensions = 0..EXTENSION_HEADERS_MAX;
    while let Some(length) = extension_len(packet, headers.protocol, headers.transport_at)? {
        extensions.next().ok_or(Malformed::TooManyHeaders)?;
        let at = headers.transport_at;
        if headers.protocol == FRAGMENT {
            let fields: &[u8; 8] = array_at(packet, at)?;
            let offset = u16::from_be_bytes([fields[2], fields[3]]);
            if headers.fragment != Fragment::Whole {
                return Err(Malformed::BadHeader);
            }
            let id = u32::from_be_bytes([fields[4], fields[5], fields[6], fields[7]]);
            headers.fragment = fragment_of(id, offset & 0xfff8, offset & 1 != 0);
            fragment_at = Some(at + length);
        }
        headers.protocol = u8_at(packet, at)?;
        headers.transport_at = at + length;
        if headers.transport_at > end {
            return Err(Malformed::Truncated);
        }
        // What follows is a part of the payload: the next header is that of the first fragment.
        if !headers.has_transport() {
            return with_transport(frame, headers);
        }
    }
    // Later parts must not reach what is looked through here.
    let at = headers.transport_at;
    let hidden = fragment_at.is_some_and(|from| at > from && at - from > FRAGMENTED_HEADERS_MAX);
    if hidden { Err(Malformed::TinyFragment) } else { with_transport(frame, headers) }
}

/// The length of an extension header that is looked through; none: it is another header.
fn extension_len(packet: &[u8], protocol: u8, at: usize) -> Result<Option<usize>, Malformed> {
    Ok(Some(match protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8 + 8 * usize::from(u8_at(packet, at + 1)?),
        // In words of 4 bytes, less 2 (RFC 4302, section 2.2).
        AUTHENTICATION => 8 + 4 * usize::from(u8_at(packet, at + 1)?),
        FRAGMENT => 8,
        _ => return Ok(None),
    }))
}

fn fragment_of(id: u32, offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First { id },
        (offset, _) => Fragment::Later { id, offset },
    }
}

#[inline]
fn with_transport(frame: &[u8], mut headers: Headers) -> Result<Headers, Malformed> {
    let packet = &frame[..headers.end];
    let at = headers.transport_at;
    let length = headers.end - at;
    let is_icmp = headers.is_icmp();
    let needed = match headers.protocol {
        TCP => 20,
        UDP => 8,
        _ if is_icmp => 8,
        // The transport header is somewhere behind these, in the first part.
        HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION_OPTIONS
            if headers.family == Family::V6 && !headers.has_transport() =>
        {
            FRAGMENTED_HEADERS_MAX + 20
        }
        _ => 0,
    };
    match headers.fragment {
        Fragment::Later { offset, .. } => {
            // It would write over what the first one was judged by, or make the packet longer than any.
            let reached = usize::from(offset) + length;
            return if usize::from(offset) < needed || length == 0 {
                Err(Malformed::TinyFragment)
            } else if reached > usize::from(u16::MAX) {
                Err(Malformed::BadHeader)
            } else {
                Ok(headers)
            };
        }
        Fragment::First { .. } if length < needed => return Err(Malformed::TinyFragment),
        _ if length < needed => return Err(Malformed::Truncated),
        _ => {}
    }
    if headers.protocol == TCP {
        let tcp: &[u8; 20] = array_at(packet, at)?;
        let header_len = usize::from(tcp[12] >> 4) * 4;
        if header_len < 20 || (headers.fragment == Fragment::Whole && header_len > length) {
            return Err(Malformed::BadHeader);
        }
        headers.ports = [u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]])];
        headers.tcp_flags = tcp[13];
    } else if needed > 0 {
        let start: &[u8; 8] = array_at(packet, at)?;
        if is_icmp {
            headers.ports = [start[0].into(), start[1].into()];
            headers.identifier = u16::from_be_bytes([start[4], start[5]]);
        } else {
            headers.ports = [u16::from_be_bytes([start[0], start[1]]), u16::from_be_bytes([start[2], start[3]])];
            let told = usize::from(u16::from_be_bytes([start[4], start[5]]));
            if headers.fragment == Fragment::Whole && !(8..=length).contains(&told) {
                return Err(Malformed::BadHeader);
            }
        }
    }
    Ok(headers)
}

/// The ICMP of a family.
#[inline]
pub fn icmp_of(family: Family) -> u8 {
    match family {
        Family::V4 => ICMP,
        Family::V6 => ICMP_V6,
    }
}

#[inline]
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<&[u8; N], Malformed> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Malformed::Truncated)
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    array_at(bytes, at).map(|word| u16::from_be_bytes(*word))
}

#[inline]
fn u8_at(bytes: &[u8], at: usize) -> Result<u8, Malformed> {
    bytes.get(at).copied().ok_or(Malformed::Truncated)
}

const EMPTY: Headers = Headers {
    family: Family::V4,
    source: 0,
    destination: 0,
    protocol: 0,
    ports: [0; 2],
    identifier: 0,
    tcp_flags: 0,
    hop_limit: 0,
    fragment: Fragment::Whole,
    ip_at: 0,
    transport_at: 0,
    end: 0,
};

/// IANA's protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMP_V6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Flags of TCP.
pub const TCP_FIN: u8 = 0x01;
/// Opens a connection.
pub const TCP_SYN: u8 = 0x02;
/// Ends it at once.
pub const TCP_RST: u8 = 0x04;
/// Acknowledges.
pub const TCP_ACK: u8 = 0x10;

const NEIGHBOUR_SOLICITATION: u16 = 135;
const NEIGHBOUR_ADVERTISEMENT: u16 = 136;

const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_V6: u16 = 0x86dd;
const ETHERTYPE_QINQ: u16 = 0x88a8;
/// A provider's and a customer's.
const VLAN_TAGS_MAX: usize = 2;
/// Each kind once, and one twice, is what RFC 8200, section 4.1, recommends.
const EXTENSION_HEADERS_MAX: usize = 8;
/// Bytes of extension headers between the fragment header and the transport header.
const FRAGMENTED_HEADERS_MAX: usize = 256;

#[cfg(test)]
mod tests;
