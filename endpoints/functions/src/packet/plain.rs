//! The packets that nearly all are, read without what the others need: whole ones of IPv4 without options, of TCP or UDP, without VLAN tags.

use super::{Link, TCP, UDP};

/// Such a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainPacket {
    /// The source address.
    pub source: u32,
    /// The destination address.
    pub destination: u32,
    /// TCP or UDP.
    pub protocol: u8,
    /// Source and destination port.
    pub ports: [u16; 2],
    /// The flags of TCP.
    pub tcp_flags: u8,
}

impl PlainPacket {
    /// Reads a frame; none: it carries something else, or what [`parse`](super::parse) refuses.
    // As a part of whoever reads: what it finds is not moved from one place to the next then.
    #[inline(always)]
    pub fn read(link: Link, frame: &[u8]) -> Option<Self> {
        let ip_at = match link {
            Link::Ethernet if frame.get(12..14)? == ETHERTYPE => 14,
            Link::Ethernet => return None,
            Link::Ip => 0,
        };
        let packet = frame.get(ip_at..)?;
        // The IP header, and as much of the transport header as both have.
        let head: &[u8; 28] = packet.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let address = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let total = usize::from(word(2));
        let length = total.checked_sub(20)?;
        if head[0] != VERSION_AND_LENGTH || word(6) & FRAGMENT != 0 || total > packet.len() {
            return None;
        }
        let (protocol, told, tcp_flags) = match head[9] {
            TCP => {
                let tcp: &[u8; 20] = packet[20..].first_chunk()?;
                (TCP, usize::from(tcp[12] >> 4) * 4, tcp[13])
            }
            UDP => (UDP, usize::from(word(24)), 0),
            _ => return None,
        };
        let least = if protocol == TCP { 20 } else { 8 };
        (least..=length).contains(&told).then(|| Self {
            source: address(12),
            destination: address(16),
            protocol,
            ports: [word(20), word(22)],
            tcp_flags,
        })
    }
}

const ETHERTYPE: [u8; 2] = [8, 0];
/// IPv4, and a header of 20 bytes.
const VERSION_AND_LENGTH: u8 = 0x45;
/// More fragments, and the offset.
const FRAGMENT: u16 = 0x3fff;
