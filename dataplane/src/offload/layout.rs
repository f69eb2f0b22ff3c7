//! Where the headers of a TCP or UDP frame lie, found in the frame itself: `hdr_len` is only a hint.

use super::checksum::{TCP_OFFSET, UDP_OFFSET};
use super::{BadOffload, VnetHeader};

/// Offsets into an Ethernet frame, each checked: `network < transport < payload <= end <= frame.len()`.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderLayout {
    pub version: Version,
    pub network: usize,
    pub protocol: Protocol,
    pub transport: usize,
    pub payload: usize,
    /// Where the IP packet ends; what follows is padding.
    pub end: usize,
}

/// Of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// On top of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl HeaderLayout {
    /// Finds the headers of `frame`, past up to two VLAN tags, IPv4 options and IPv6 extension headers.
    pub fn of(frame: &[u8]) -> Result<Self, BadOffload> {
        Self::of_head(frame, frame.len())
    }

    /// The same for a frame of `frame_len` bytes of which these are the first. All headers are among them.
    pub fn of_head(head: &[u8], frame_len: usize) -> Result<Self, BadOffload> {
        let (network, version) = network(head)?;
        let packet = match version {
            Version::V4 => ipv4(head, network)?,
            Version::V6 => ipv6(head, network)?,
        };
        let Packet { protocol, transport, end } = packet;
        // A length field may claim more than came, but nothing is read past its end either.
        if end > frame_len {
            return Err(BadOffload::Truncated);
        }
        let frame = &head[..end.min(head.len())];
        let (protocol, header_len) = match protocol {
            TCP => (Protocol::Tcp, usize::from(byte(frame, transport + 12)? >> 4) * 4),
            UDP => (Protocol::Udp, UDP_HEADER),
            _ => return Err(BadOffload::OtherProtocol),
        };
        let payload = transport + header_len;
        if header_len < protocol.header_min() || payload > end {
            return Err(BadOffload::Truncated);
        }
        Ok(Self { version, network, protocol, transport, payload, end })
    }
}

impl HeaderLayout {
    /// Whether a frame is of the protocol that its virtio-net header names, with the checksum where that says.
    pub fn is_as_said(&self, header: &VnetHeader) -> bool {
        let is_of_kind = match header.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_NONE => true,
            VnetHeader::GSO_TCPV4 => (self.protocol, self.version) == (Protocol::Tcp, Version::V4),
            VnetHeader::GSO_TCPV6 => (self.protocol, self.version) == (Protocol::Tcp, Version::V6),
            VnetHeader::GSO_UDP_L4 => self.protocol == Protocol::Udp,
            _ => false,
        };
        let checksum = (usize::from(header.csum_start), usize::from(header.csum_offset));
        is_of_kind && checksum == (self.transport, self.protocol.checksum_offset())
    }
}

impl Protocol {
    /// Where the checksum is, from the start of the transport header.
    pub fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => TCP_OFFSET,
            Self::Udp => UDP_OFFSET,
        }
    }

    fn header_min(self) -> usize {
        match self {
            Self::Tcp => TCP_HEADER,
            Self::Udp => UDP_HEADER,
        }
    }
}

/// What the IP headers say: which protocol begins where, and where the packet ends (maybe past the frame).
struct Packet {
    protocol: u8,
    transport: usize,
    end: usize,
}

fn network(frame: &[u8]) -> Result<(usize, Version), BadOffload> {
    let mut at = ETHERTYPE;
    for _ in 0..VLAN_TAGS_MAX {
        if !matches!(word(frame, at)?, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            break;
        }
        at += VLAN_TAG;
    }
    match word(frame, at)? {
        ETHERTYPE_IPV4 => Ok((at + 2, Version::V4)),
        ETHERTYPE_IPV6 => Ok((at + 2, Version::V6)),
        _ => Err(BadOffload::OtherProtocol),
    }
}

fn ipv4(frame: &[u8], network: usize) -> Result<Packet, BadOffload> {
    let first = byte(frame, network)?;
    if first >> 4 != 4 {
        return Err(BadOffload::OtherProtocol);
    }
    let header_len = usize::from(first & 0xf) * 4;
    if header_len < IPV4_HEADER {
        return Err(BadOffload::Truncated);
    }
    if word(frame, network + 6)? & IPV4_FRAGMENT != 0 {
        return Err(BadOffload::Fragment);
    }
    let end = network + usize::from(word(frame, network + 2)?);
    Ok(Packet { protocol: byte(frame, network + 9)?, transport: network + header_len, end })
}

fn ipv6(frame: &[u8], network: usize) -> Result<Packet, BadOffload> {
    if byte(frame, network)? >> 4 != 6 {
        return Err(BadOffload::OtherProtocol);
    }
    let mut transport = network + IPV6_HEADER;
    let end = transport + usize::from(word(frame, network + 4)?);
    let mut protocol = byte(frame, network + 6)?;
    // Bounded by the frame: each turn moves on by at least 8 bytes.
    while matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION) {
        protocol = byte(frame, transport)?;
        transport += (usize::from(byte(frame, transport + 1)?) + 1) * 8;
    }
    if protocol == FRAGMENT {
        return Err(BadOffload::Fragment);
    }
    Ok(Packet { protocol, transport, end })
}

fn byte(frame: &[u8], at: usize) -> Result<u8, BadOffload> {
    frame.get(at).copied().ok_or(BadOffload::Truncated)
}

fn word(frame: &[u8], at: usize) -> Result<u16, BadOffload> {
    let bytes = frame.get(at..).and_then(<[u8]>::first_chunk).ok_or(BadOffload::Truncated)?;
    Ok(u16::from_be_bytes(*bytes))
}

/// Bytes of an IPv6 header without extensions.
pub(super) const IPV6_HEADER: usize = 40;
const IPV4_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

const ETHERTYPE: usize = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const VLAN_TAG: usize = 4;
const VLAN_TAGS_MAX: usize = 2;

/// More fragments, or an offset.
const IPV4_FRAGMENT: u16 = 0x3fff;

// Protocol numbers, of IPv6 extension headers as well (RFC 8200, section 4).
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
