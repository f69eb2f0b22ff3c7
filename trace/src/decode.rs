//! What a frame is, as far as its first bytes say it. A frame that is broken is shown as far as it is not.

use std::fmt;
use std::net::IpAddr;

use etherparse::{ArpOperation, LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// A frame, looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Which protocol it carries, innermost: of an IP packet its number.
    pub network: Network,
    /// Source and destination, of ARP the sender's and the target's.
    pub addresses: Option<[IpAddr; 2]>,
    /// Of TCP and UDP.
    pub ports: Option<[u16; 2]>,
    /// What there is to be told beside that: flags, types.
    detail: String,
}

/// What it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// An IP packet of this protocol.
    Ip(u8),
    /// ARP.
    Arp,
    /// Something of this ethertype.
    Other(u16),
    /// Too short to be anything.
    #[default]
    Nothing,
}

impl Decoded {
    /// Looks at a frame, or at an IP packet without an Ethernet header.
    pub fn of(bytes: &[u8], is_ip: bool) -> Self {
        let sliced =
            if is_ip { LaxSlicedPacket::from_ip(bytes).ok() } else { LaxSlicedPacket::from_ethernet(bytes).ok() };
        sliced.map(|packet| Self::of_packet(&packet)).unwrap_or_default()
    }

    fn of_packet(packet: &LaxSlicedPacket<'_>) -> Self {
        let (network, addresses, mut detail) = match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                let addresses = [ip.header().source_addr().into(), ip.header().destination_addr().into()];
                let offset = ip.header().fragments_offset().byte_offset();
                (Network::Ip(ip.payload_ip_number().0), Some(addresses), part(ip.is_payload_fragmented(), Some(offset)))
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let addresses = [ip.header().source_addr().into(), ip.header().destination_addr().into()];
                (Network::Ip(ip.payload().ip_number.0), Some(addresses), part(ip.is_payload_fragmented(), None))
            }
            Some(LaxNetSlice::Arp(arp)) => {
                let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
                let ends = address(arp.sender_protocol_addr()).zip(address(arp.target_protocol_addr()));
                let word = match arp.operation() {
                    ArpOperation::REQUEST => "who has".to_owned(),
                    ArpOperation::REPLY => {
                        let mac: Vec<_> = arp.sender_hw_addr().iter().map(|byte| format!("{byte:02x}")).collect();
                        format!("is at {}, told to", mac.join(":"))
                    }
                    other => format!("operation {}", other.0),
                };
                (Network::Arp, ends.map(|(sender, target)| [sender, target]), word)
            }
            None => (ethertype(packet).map_or(Network::Nothing, Network::Other), None, String::new()),
        };
        let mut ports = None;
        let mut add = |word: String| {
            if !detail.is_empty() && !word.is_empty() {
                detail.push(' ');
            }
            detail.push_str(&word);
        };
        match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                ports = Some([tcp.source_port(), tcp.destination_port()]);
                let flags = [
                    (tcp.syn(), "SYN"),
                    (tcp.ack(), "ACK"),
                    (tcp.fin(), "FIN"),
                    (tcp.rst(), "RST"),
                    (tcp.psh(), "PSH"),
                ];
                let set: Vec<_> = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, word)| word).collect();
                add(set.join(" "));
            }
            Some(TransportSlice::Udp(udp)) => ports = Some([udp.source_port(), udp.destination_port()]),
            Some(TransportSlice::Icmpv4(icmp)) => add(icmp_word(icmp.type_u8(), icmp.code_u8(), [8, 0])),
            Some(TransportSlice::Icmpv6(icmp)) => add(icmp_word(icmp.type_u8(), icmp.code_u8(), [128, 129])),
            Some(TransportSlice::Igmp(_)) | None => {}
        }
        Self { network, addresses, ports, detail }
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |at: usize| {
            let address = self.addresses.map(|ends| ends[at]);
            match (address, self.ports) {
                (Some(IpAddr::V6(address)), Some(ports)) => format!("[{address}]:{}", ports[at]),
                (Some(address), Some(ports)) => format!("{address}:{}", ports[at]),
                (Some(address), None) => address.to_string(),
                (None, _) => String::new(),
            }
        };
        match self.network {
            Network::Ip(protocol) => write!(f, "{} {} > {}", name_of(protocol), end(0), end(1))?,
            Network::Arp => return write!(f, "ARP {} {} {}", end(0), self.detail, end(1)),
            Network::Other(ethertype) => write!(f, "ethertype {ethertype:#06x}")?,
            Network::Nothing => f.write_str("no frame that can be read")?,
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, " {}", self.detail) }
    }
}

/// The number of a protocol of IP that people and filters call by a name.
pub fn number_of(name: &str) -> Option<u8> {
    PROTOCOLS.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(number, _)| *number)
}

fn name_of(protocol: u8) -> String {
    let known = PROTOCOLS.iter().find(|(number, _)| *number == protocol);
    known.map_or_else(|| format!("protocol {protocol}"), |(_, name)| (*name).to_owned())
}

fn part(is_fragmented: bool, offset: Option<u16>) -> String {
    match (is_fragmented, offset) {
        (false, _) => String::new(),
        (true, Some(offset)) => format!("part at {offset}"),
        (true, None) => "part".to_owned(),
    }
}

fn icmp_word(kind: u8, code: u8, echo: [u8; 2]) -> String {
    match kind {
        _ if kind == echo[0] => "echo request".to_owned(),
        _ if kind == echo[1] => "echo reply".to_owned(),
        _ => format!("type {kind} code {code}"),
    }
}

fn ethertype(packet: &LaxSlicedPacket<'_>) -> Option<u16> {
    packet.ether_payload().map(|payload| payload.ether_type.0)
}

const PROTOCOLS: [(u8, &str); 4] = [(6, "TCP"), (17, "UDP"), (1, "ICMP"), (58, "ICMPv6")];

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpHeader};

    use super::*;

    fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
        PacketBuilder::ethernet2([2; 6], [4; 6])
    }

    fn shown(bytes: &[u8]) -> String {
        Decoded::of(bytes, false).to_string()
    }

    #[test]
    fn frames_are_told_as_people_call_them() {
        let mut syn = TcpHeader::new(36822, 80, 0, 1000);
        syn.syn = true;
        let mut bytes = Vec::new();
        ethernet().ipv4([192, 168, 100, 10], [80, 80, 80, 80], 64).tcp_header(syn).write(&mut bytes, &[]).unwrap();
        assert_eq!(shown(&bytes), "TCP 192.168.100.10:36822 > 80.80.80.80:80 SYN");
        assert_eq!(Decoded::of(&bytes[14..], true).to_string(), shown(&bytes));
        let mut bytes = Vec::new();
        ethernet().ipv6([1; 16], [2; 16], 64).udp(53, 54).write(&mut bytes, &[1]).unwrap();
        assert!(shown(&bytes).starts_with("UDP [101:101:101:101:101:101:101:101]:53 > [202:"), "{}", shown(&bytes));
        let mut bytes = Vec::new();
        ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).icmpv4_echo_request(7, 1).write(&mut bytes, &[1]).unwrap();
        assert_eq!(shown(&bytes), "ICMP 10.0.0.1 > 10.0.0.2 echo request");
        let arp = [0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2];
        let arp = [&[0xff; 6][..], &[2; 6], &[8, 6], &arp].concat();
        assert_eq!(shown(&arp), "ARP 10.0.0.1 who has 10.0.0.2");
    }

    #[test]
    fn what_is_broken_is_told_as_far_as_it_is_not() {
        assert_eq!(shown(&[1, 2, 3]), "no frame that can be read");
        assert_eq!(shown(&[&[2; 12][..], &[0x88, 0x47], &[0; 40]].concat()), "ethertype 0x8847");
        let mut bytes = Vec::new();
        ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut bytes, &[1; 99]).unwrap();
        assert_eq!(shown(&bytes[..14 + 20 + 4]), "UDP 10.0.0.1 > 10.0.0.2", "its ports are cut off");
    }
}
