//! IPv4 packets, with checksums made of all bytes.

/// An address and a port; of a ping, its identifier.
pub type End = (u32, u16);

/// An IPv4 packet in the making.
#[derive(Clone)]
pub struct Ipv4 {
    pub from: u32,
    pub to: u32,
    pub tos: u8,
    pub id: u16,
    /// Flags, and the offset in words of 8 bytes.
    pub fragment: u16,
    pub ttl: u8,
    pub options: Vec<u8>,
    pub protocol: u8,
    pub payload: Vec<u8>,
}

impl Ipv4 {
    pub fn new(protocol: u8, from: u32, to: u32, payload: Vec<u8>) -> Self {
        Self { from, to, tos: 0, id: 0x298c, fragment: DF, ttl: 64, options: Vec::new(), protocol, payload }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let total = (header_len + self.payload.len()) as u16;
        let start = [0x40 | (header_len / 4) as u8, self.tos];
        let middle = [self.ttl, self.protocol, 0, 0];
        let words = [total, self.id, self.fragment].map(u16::to_be_bytes).concat();
        let addresses = [self.from, self.to].map(u32::to_be_bytes).concat();
        let mut header = [&start[..], &words, &middle, &addresses, &self.options].concat();
        let sum = checksum(&header, 0);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, self.payload.clone()].concat()
    }

    /// In parts with so much payload each, a multiple of 8.
    pub fn parts(&self, payload_len: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(payload_len);
        let part = |(number, payload): (usize, &[u8])| {
            let more = if number + 1 < count { MORE } else { 0 };
            let fragment = (number * payload_len / 8) as u16 | more;
            Self { fragment, payload: payload.to_vec(), ..self.clone() }.bytes()
        };
        self.payload.chunks(payload_len).enumerate().map(part).collect()
    }
}

pub fn udp(from: End, to: End, data: &[u8]) -> Ipv4 {
    let mut datagram = udp_unsummed(from, to, data);
    let sum = transport_checksum(&datagram);
    datagram.payload[6..8].copy_from_slice(&if sum == 0 { u16::MAX } else { sum }.to_be_bytes());
    datagram
}

/// One without a checksum (RFC 768).
pub fn udp_unsummed(from: End, to: End, data: &[u8]) -> Ipv4 {
    let words = [from.1, to.1, 8 + data.len() as u16, 0].map(u16::to_be_bytes).concat();
    Ipv4::new(UDP, from.0, to.0, [&words, data].concat())
}

pub fn tcp(from: End, to: End, flags: u8, data: &[u8]) -> Ipv4 {
    tcp_with(from, to, flags, &[], data)
}

pub fn tcp_with(from: End, to: End, flags: u8, options: &[u8], data: &[u8]) -> Ipv4 {
    let ports = [from.1, to.1].map(u16::to_be_bytes).concat();
    let numbers = [0x0102_0304_u32, 0x0506_0708].map(u32::to_be_bytes).concat();
    let rest = [((5 + options.len() / 4) << 4) as u8, flags, 0xfa, 0xf0, 0, 0, 0, 0];
    let mut segment = Ipv4::new(TCP, from.0, to.0, [&ports[..], &numbers, &rest, options, data].concat());
    let sum = transport_checksum(&segment);
    segment.payload[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

pub fn icmp(kind: u8, code: u8, from: u32, to: u32, rest: [u8; 4], data: &[u8]) -> Ipv4 {
    let mut message = [&[kind, code, 0, 0][..], &rest, data].concat();
    let sum = checksum(&message, 0);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Ipv4::new(ICMP, from, to, message)
}

/// A query or its answer, by its type.
pub fn query(kind: u8, from: u32, to: u32, identifier: u16, data: &[u8]) -> Ipv4 {
    let [high, low] = identifier.to_be_bytes();
    icmp(kind, 0, from, to, [high, low, 0, 7], data)
}

/// An error about `packet`, of which so much behind the IP header is quoted.
pub fn error((kind, code): (u8, u8), from: u32, to: u32, packet: &[u8], quoted: usize) -> Ipv4 {
    let length = header_len(packet) + quoted;
    let packet = packet.get(..length).unwrap_or(packet);
    icmp(kind, code, from, to, [0, 0, 5, 0x78], packet)
}

pub fn header_len(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0xf) * 4
}

pub fn source(packet: &[u8]) -> u32 {
    u32::from_be_bytes([packet[12], packet[13], packet[14], packet[15]])
}

pub fn destination(packet: &[u8]) -> u32 {
    u32::from_be_bytes([packet[16], packet[17], packet[18], packet[19]])
}

/// Who sent it, by TCP or UDP.
pub fn sender(packet: &[u8]) -> End {
    let at = header_len(packet);
    (source(packet), u16::from_be_bytes([packet[at], packet[at + 1]]))
}

/// The checksum of a packet of TCP or UDP as its bytes are, with its field as it is: of a right one 0.
pub fn transport_checksum(packet: &Ipv4) -> u16 {
    let pseudo = [packet.from >> 16, packet.from & 0xffff, packet.to >> 16, packet.to & 0xffff];
    let more = pseudo.iter().sum::<u32>() + u32::from(packet.protocol) + packet.payload.len() as u32;
    checksum(&packet.payload, more)
}

/// RFC 1071, word by word.
pub fn checksum(bytes: &[u8], more: u32) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum = bytes.chunks(2).map(word).sum::<u32>() + more;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const DF: u16 = 0x4000;
pub const MORE: u16 = 0x2000;
