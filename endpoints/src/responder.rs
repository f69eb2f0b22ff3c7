//! A far end that answers who asks for it: ARP, neighbour solicitations, and echo requests of both families.
//!
//! Deliberately absent: fragments, IPv6 extension headers and VLAN tags. Such frames are not answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ferrule_dataplane::spec::{MacAddress, Mode};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet,
    Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags,
    NdiscRepr,
};

/// Answers for a list of addresses, or, if the list is empty, for every address that it is asked for.
///
/// - Echo requests are answered only when both the frame and the packet are addressed to one host: neither broadcast
///   nor multicast pings get a reply, so an answerer of every address cannot be made to shout.
/// - With an empty list, a host that only asks whether its own new address is free (an ARP probe or announcement, a
///   neighbour solicitation from `::`) hears nothing: an answer would take the address from it.
/// - Requests with a wrong checksum are not answered.
/// - Replies are as short as their content: no padding to 60 bytes.
#[derive(Debug)]
pub struct Responder {
    mode: Mode,
    mac: EthernetAddress,
    addresses: Vec<IpAddr>,
    answered: [AtomicU64; Kind::COUNT],
}

impl Responder {
    /// A responder to Ethernet frames.
    pub fn new(mac: MacAddress, addresses: Vec<IpAddr>) -> Self {
        Self { mode: Mode::Ethernet, mac: EthernetAddress(mac.0), addresses, answered: Default::default() }
    }

    /// The same in another mode. In IP mode there is no link to resolve: only echo requests are answered.
    #[must_use]
    pub fn in_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Writes the reply to `frame` into `out` and returns its length; none if there is nothing to say, or no room.
    pub fn answer(&self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        let (kind, length) = match self.mode {
            Mode::Ethernet => self.answer_frame(frame, out)?,
            Mode::Ip => match frame.first()? >> 4 {
                4 => (Kind::EchoV4, self.echo_v4(frame, out)?),
                6 => (Kind::EchoV6, self.echo_v6(frame, out)?),
                _ => return None,
            },
        };
        self.answered[kind as usize].fetch_add(1, Relaxed);
        Some(length)
    }

    /// The replies written since the responder was made. Any thread may ask.
    pub fn answered(&self) -> Answered {
        let count = |kind: Kind| self.answered[kind as usize].load(Relaxed);
        Answered {
            arp: count(Kind::Arp),
            neighbour: count(Kind::Neighbour),
            echo_v4: count(Kind::EchoV4),
            echo_v6: count(Kind::EchoV6),
        }
    }

    fn answer_frame(&self, frame: &[u8], out: &mut [u8]) -> Option<(Kind, usize)> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let peer = frame.src_addr();
        let to_us = frame.dst_addr() == self.mac;
        if !peer.is_unicast() || (frame.dst_addr().is_unicast() && !to_us) {
            return None;
        }
        let packet = out.get_mut(ETHERNET_HEADER..)?;
        let (kind, ethertype, to, length) = match frame.ethertype() {
            EthernetProtocol::Arp => {
                let (to, length) = self.arp(frame.payload(), packet)?;
                (Kind::Arp, EthernetProtocol::Arp, to, length)
            }
            EthernetProtocol::Ipv4 if to_us => {
                (Kind::EchoV4, EthernetProtocol::Ipv4, peer, self.echo_v4(frame.payload(), packet)?)
            }
            EthernetProtocol::Ipv6 => {
                if let Some((to, length)) = self.neighbour(peer, frame.payload(), packet) {
                    (Kind::Neighbour, EthernetProtocol::Ipv6, to, length)
                } else if to_us {
                    (Kind::EchoV6, EthernetProtocol::Ipv6, peer, self.echo_v6(frame.payload(), packet)?)
                } else {
                    return None;
                }
            }
            _ => return None,
        };
        let header = EthernetRepr { src_addr: self.mac, dst_addr: to, ethertype };
        header.emit(&mut EthernetFrame::new_unchecked(out));
        Some((kind, ETHERNET_HEADER + length))
    }

    fn arp(&self, request: &[u8], out: &mut [u8]) -> Option<(EthernetAddress, usize)> {
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: peer_mac,
            source_protocol_addr: peer,
            target_protocol_addr: wanted,
            ..
        } = ArpRepr::parse(&ArpPacket::new_checked(request).ok()?).ok()?
        else {
            return None;
        };
        // RFC 5227: a probe comes from 0.0.0.0, an announcement asks for its own address.
        let claims = peer.is_unspecified() || peer == wanted;
        if !peer_mac.is_unicast() || !self.speaks_for(wanted.into(), claims) || peer == wanted {
            return None;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: self.mac,
            source_protocol_addr: wanted,
            target_hardware_addr: peer_mac,
            target_protocol_addr: peer,
        };
        let out = out.get_mut(..reply.buffer_len())?;
        reply.emit(&mut ArpPacket::new_unchecked(&mut *out));
        Some((peer_mac, out.len()))
    }

    /// RFC 4861, sections 7.1.1 (what a valid solicitation is) and 7.2.4 (what answers it).
    fn neighbour(&self, peer_mac: EthernetAddress, packet: &[u8], out: &mut [u8]) -> Option<(EthernetAddress, usize)> {
        let (ip, icmp) = parse_v6(packet)?;
        let Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: wanted, lladdr }) = icmp else {
            return None;
        };
        let claims = ip.src_addr.is_unspecified();
        let asked_properly = ip.dst_addr == wanted && !claims || ip.dst_addr == solicited_node(wanted);
        let valid = ip.hop_limit == NDP_HOP_LIMIT && asked_properly && !(claims && lladdr.is_some());
        if !valid || ip.src_addr.is_multicast() || !self.speaks_for(wanted.into(), claims) {
            return None;
        }
        let (to, to_mac, solicited) = if claims {
            (ALL_NODES, ALL_NODES_MAC, NdiscNeighborFlags::empty())
        } else {
            let told = lladdr.and_then(|raw| <[u8; 6]>::try_from(raw.as_bytes()).ok()).map(EthernetAddress);
            let to_mac = told.filter(EthernetAddress::is_unicast).unwrap_or(peer_mac);
            (ip.src_addr, to_mac, NdiscNeighborFlags::SOLICITED)
        };
        let advertisement = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: solicited | NdiscNeighborFlags::OVERRIDE,
            target_addr: wanted,
            lladdr: Some(self.mac.into()),
        });
        Some((to_mac, emit_v6(wanted, to, NDP_HOP_LIMIT, &advertisement, out)?))
    }

    fn echo_v4(&self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let checksums = ChecksumCapabilities::default();
        let packet = Ipv4Packet::new_checked(packet).ok()?;
        let ip = Ipv4Repr::parse(&packet, &checksums).ok()?;
        if ip.next_header != IpProtocol::Icmp || !is_host_v4(ip.src_addr) || !self.speaks_for(ip.dst_addr.into(), false)
        {
            return None;
        }
        let icmp = Icmpv4Packet::new_checked(packet.payload()).ok()?;
        let Icmpv4Repr::EchoRequest { ident, seq_no, data } = Icmpv4Repr::parse(&icmp, &checksums).ok()? else {
            return None;
        };
        let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
        let header = Ipv4Repr {
            src_addr: ip.dst_addr,
            dst_addr: ip.src_addr,
            next_header: IpProtocol::Icmp,
            payload_len: reply.buffer_len(),
            hop_limit: HOP_LIMIT,
        };
        let out = out.get_mut(..header.buffer_len() + reply.buffer_len())?;
        let (ip_out, icmp_out) = out.split_at_mut(header.buffer_len());
        header.emit(&mut Ipv4Packet::new_unchecked(ip_out), &checksums);
        reply.emit(&mut Icmpv4Packet::new_unchecked(icmp_out), &checksums);
        Some(out.len())
    }

    fn echo_v6(&self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let (ip, icmp) = parse_v6(packet)?;
        let Icmpv6Repr::EchoRequest { ident, seq_no, data } = icmp else {
            return None;
        };
        if !is_host_v6(ip.src_addr) || !self.speaks_for(ip.dst_addr.into(), false) {
            return None;
        }
        let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
        emit_v6(ip.dst_addr, ip.src_addr, HOP_LIMIT, &reply, out)
    }

    /// Whether `address` is ours. With an empty list every host's is, except one that its asker claims.
    fn speaks_for(&self, address: IpAddr, claimed_by_peer: bool) -> bool {
        let is_host = match address {
            IpAddr::V4(address) => is_host_v4(address),
            IpAddr::V6(address) => is_host_v6(address),
        };
        is_host && if self.addresses.is_empty() { !claimed_by_peer } else { self.addresses.contains(&address) }
    }
}

/// How many requests of each kind were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// ARP requests.
    pub arp: u64,
    /// IPv6 neighbour solicitations.
    pub neighbour: u64,
    /// `ICMPv4` echo requests.
    pub echo_v4: u64,
    /// `ICMPv6` echo requests.
    pub echo_v6: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Arp,
    Neighbour,
    EchoV4,
    EchoV6,
}

impl Kind {
    const COUNT: usize = 4;
}

/// The header and message of an `ICMPv6` packet whose checksum is right.
fn parse_v6(packet: &[u8]) -> Option<(Ipv6Repr, Icmpv6Repr<'_>)> {
    let packet = Ipv6Packet::new_checked(packet).ok()?;
    let ip = Ipv6Repr::parse(&packet).ok()?;
    if ip.next_header != IpProtocol::Icmpv6 {
        return None;
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let icmp = Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &icmp, &ChecksumCapabilities::default()).ok()?;
    Some((ip, icmp))
}

fn emit_v6(from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, message: &Icmpv6Repr<'_>, out: &mut [u8]) -> Option<usize> {
    let header = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit,
    };
    let out = out.get_mut(..header.buffer_len() + message.buffer_len())?;
    let (ip_out, icmp_out) = out.split_at_mut(header.buffer_len());
    header.emit(&mut Ipv6Packet::new_unchecked(ip_out));
    message.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(icmp_out), &ChecksumCapabilities::default());
    Some(out.len())
}

fn is_host_v4(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
}

fn is_host_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast())
}

/// RFC 4291, section 2.7.1: `ff02::1:ff` and the last three bytes.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

const ETHERNET_HEADER: usize = 14;
/// RFC 4861, section 7.1: proof that no router forwarded the packet.
const NDP_HOP_LIMIT: u8 = 255;
/// What hosts commonly send with.
const HOP_LIMIT: u8 = 64;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);

#[cfg(test)]
mod tests;
