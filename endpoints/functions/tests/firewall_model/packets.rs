//! Packets of few hosts and ports, known by what they were made of: nobody has to read them again to say what is in them.

use std::fmt::{self, Display, Formatter};

use ferrule_functions::Side;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadePacket {
    /// Where it comes in.
    pub side: Side,
    pub is_v6: bool,
    pub source: u128,
    pub destination: u128,
    pub protocol: u8,
    /// Of the ICMP of its family, type and code; of what has neither ports nor types, 0.
    pub ports: [u16; 2],
    /// Of ICMP.
    pub identifier: u16,
    /// Of TCP.
    pub flags: u8,
    pub hop_limit: u8,
    /// Of an ICMP error.
    pub quote: Option<Box<Quote>>,
}

/// What an ICMP error quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    pub packet: MadePacket,
    pub shape: Shape,
    /// Whether what was sent is a part of a packet, and which.
    pub part: Option<Part>,
    /// How much of the transport header.
    pub transport_len: usize,
}

/// How a packet is sent, which means nothing to the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub vlan_tags: usize,
    /// IPv6 extension headers, by their numbers.
    pub extensions: Vec<u8>,
    /// IPv4 options.
    pub has_options: bool,
    /// Bytes behind the packet.
    pub padding_len: usize,
    /// The frame ends before the packet does.
    pub is_cut: bool,
}

/// A part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub id: u16,
    pub number: usize,
    /// Bytes in each part but the last.
    pub len: usize,
}

impl MadePacket {
    pub fn is_icmp(&self) -> bool {
        self.protocol == if self.is_v6 { 58 } else { 1 }
    }

    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17)
    }

    /// The one that would answer it, or that it would answer.
    pub fn answer(&self) -> Self {
        let Self { side, source, destination, ports: [near, far], .. } = *self;
        let ports = if self.is_icmp() { [counterpart(self.is_v6, near).unwrap_or(near), far] } else { [far, near] };
        Self { side: side.other(), source: destination, destination: source, ports, ..self.clone() }
    }

    /// The transport header and what follows.
    pub fn transport(&self) -> Vec<u8> {
        let [near, far] = self.ports;
        let mut bytes = match self.protocol {
            6 => [&near.to_be_bytes()[..], &far.to_be_bytes(), &[9; 8], &[0x50, self.flags, 9, 9, 0, 0, 0, 0]].concat(),
            17 => [near.to_be_bytes(), far.to_be_bytes(), (TRANSPORT_LEN as u16).to_be_bytes(), [0; 2]].concat(),
            _ if self.is_icmp() => {
                let [high, low] = self.identifier.to_be_bytes();
                vec![near as u8, far as u8, 0, 0, high, low, 0, 1]
            }
            _ => Vec::new(),
        };
        match &self.quote {
            Some(quote) => bytes.extend(quote.bytes()),
            None => bytes.resize(TRANSPORT_LEN, 0x77),
        }
        bytes
    }

    /// Bytes of the transport header, all of which must be in the first part.
    pub fn header_len(&self) -> usize {
        match self.protocol {
            6 => 20,
            17 => 8,
            _ if self.is_icmp() => 8,
            _ => 0,
        }
    }

    /// The packet, or a part of it.
    pub fn ip(&self, shape: &Shape, part: Option<Part>) -> Vec<u8> {
        let transport = self.transport();
        let Some(part) = part else { return self.header(shape, None, &transport) };
        let start = part.number * part.len;
        let end = (start + part.len).min(transport.len());
        let field = start as u16 | u16::from(end < transport.len());
        self.header(shape, Some((part.id, field)), &transport[start..end])
    }

    fn header(&self, shape: &Shape, part: Option<(u16, u16)>, payload: &[u8]) -> Vec<u8> {
        if self.is_v6 {
            let mut chain: Vec<u8> = shape.extensions.clone();
            chain.extend(part.map(|_| FRAGMENT));
            let next = chain.iter().skip(1).copied().chain([self.protocol]);
            let headers = chain.iter().zip(next).flat_map(|(header, next)| match (*header, part) {
                (FRAGMENT, Some((id, field))) => {
                    [&[next, 0][..], &field.to_be_bytes(), &[0, 0], &id.to_be_bytes()].concat()
                }
                // 16 bytes: in words of 4, less 2.
                (AUTHENTICATION, _) => [&[next, 2][..], &[0; 14]].concat(),
                // 16 bytes: in words of 8, less 1; routing with nothing left, and options that are padding.
                (ROUTING, _) => [&[next, 1, 0, 0][..], &[0; 12]].concat(),
                _ => [&[next, 1, 1, 12][..], &[0; 12]].concat(),
            });
            let body: Vec<u8> = headers.chain(payload.iter().copied()).collect();
            let first = chain.first().copied().unwrap_or(self.protocol);
            let start = [&[0x60, 0, 0, 0][..], &(body.len() as u16).to_be_bytes(), &[first, self.hop_limit]].concat();
            return [&start[..], &self.source.to_be_bytes(), &self.destination.to_be_bytes(), &body].concat();
        }
        let (id, field) = part.unwrap_or((0, 0));
        let field = (field & 1) << 13 | field >> 3;
        let options: &[u8] = if shape.has_options { &[1, 1, 1, 0] } else { &[] };
        let len = (20 + options.len() + payload.len()) as u16;
        let start = [
            &[0x45 + u8::from(shape.has_options), 0][..],
            &len.to_be_bytes(),
            &id.to_be_bytes(),
            &field.to_be_bytes(),
            &[self.hop_limit, self.protocol, 0, 0],
        ];
        let addresses = [self.source, self.destination].map(|address| (address as u32).to_be_bytes());
        [&start.concat()[..], &addresses.concat(), options, payload].concat()
    }
}

impl Quote {
    /// What is quoted: the headers, and the beginning of the transport header.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.packet.ip(&self.shape, self.part);
        let carried = self.carried_len();
        bytes.truncate(bytes.len() - carried + self.transport_len.min(carried));
        bytes
    }

    /// Bytes of the transport header and what follows in what was sent.
    pub fn carried_len(&self) -> usize {
        let len = self.packet.transport().len();
        self.part.map_or(len, |part| part.len.min(len - part.number * part.len))
    }
}

impl Display for MadePacket {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { source, destination, protocol, ports: [near, far], identifier, flags, hop_limit, .. } = self;
        let (side, family) = (self.side.word(), if self.is_v6 { 6 } else { 4 });
        write!(f, "{side}: IPv{family} {source:x} > {destination:x} protocol {protocol} {near} {far}")?;
        write!(f, " id {identifier} flags {flags:#x} hops {hop_limit}")?;
        match &self.quote {
            Some(quote) => {
                write!(f, " quotes {} bytes of [{} {}{:?}]", quote.transport_len, quote.packet, quote.shape, quote.part)
            }
            None => Ok(()),
        }
    }
}

impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { vlan_tags, extensions, has_options, is_cut, .. } = self;
        write!(f, "tags {vlan_tags} extensions {extensions:?} options {has_options} cut {is_cut} ")
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {} bytes, packet {}", self.number, self.len, self.id)
    }
}

/// An IP packet in a frame, or by itself.
pub fn frame(packet: &MadePacket, shape: &Shape, part: Option<Part>, is_ethernet: bool) -> Vec<u8> {
    let mut ip = packet.ip(shape, part);
    if shape.is_cut {
        ip.pop();
    } else {
        ip.resize(ip.len() + shape.padding_len, 0);
    }
    if !is_ethernet {
        return ip;
    }
    let ethertype = if packet.is_v6 { [0x86, 0xdd] } else { [8, 0] };
    let tags = [0x88, 0xa8, 0, 7].into_iter().chain([0x81, 0, 0, 9].repeat(2));
    let tags: Vec<u8> = tags.take(shape.vlan_tags * 4).collect();
    [&[2; 12][..], &tags, &ethertype, &ip].concat()
}

/// The type of ICMP that answers this one, or that it answers.
pub fn counterpart(is_v6: bool, kind: u16) -> Option<u16> {
    let pairs: &[[u16; 2]] = if is_v6 { &[[128, 129], [139, 140]] } else { &[[8, 0], [13, 14], [15, 16], [17, 18]] };
    let of = |[request, reply]: &[u16; 2]| match kind {
        kind if kind == *request => Some(*reply),
        kind if kind == *reply => Some(*request),
        _ => None,
    };
    pairs.iter().find_map(of)
}

/// Whether it is a request, which somebody may answer.
pub fn is_request(is_v6: bool, kind: u16) -> bool {
    if is_v6 { matches!(kind, 128 | 139) } else { matches!(kind, 8 | 13 | 15 | 17) }
}

/// Of all but ICMP errors: more parts than two.
pub const TRANSPORT_LEN: usize = 96;
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;
