//! Frames for tests, with right checksums.

use crate::packet::checksum;
use crate::packet::{ICMP, TCP, UDP};

/// An address and a port.
pub(crate) type End = (u32, u16);

pub(crate) fn tcp(from: End, to: End, flags: u8) -> Vec<u8> {
    let mut segment =
        [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &[0; 8], &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]].concat();
    let sum = checksum::full(&segment, checksum::pseudo_v4(from.0, to.0, TCP, segment.len() as u16));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    v4(TCP, from.0, to.0, &segment)
}

pub(crate) fn udp(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let ports = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let mut datagram = [&ports[..], &length.to_be_bytes(), &[0, 0], payload].concat();
    let sum = checksum::full(&datagram, checksum::pseudo_v4(from.0, to.0, UDP, length));
    datagram[6..8].copy_from_slice(&if sum == 0 { u16::MAX } else { sum }.to_be_bytes());
    v4(UDP, from.0, to.0, &datagram)
}

pub(crate) fn icmp(kind: u8, code: u8, from: u32, to: u32, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0][..], &rest, payload].concat();
    let sum = checksum::full(&message, 0);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    v4(ICMP, from, to, &message)
}

pub(crate) fn echo(kind: u8, from: u32, to: u32, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    icmp(kind, 0, from, to, [high, low, 0, 1], b"12345678")
}

/// An error about `frame`, of which this much of the transport header is quoted.
pub(crate) fn error(kind: u8, code: u8, from: u32, to: u32, frame: &[u8], quoted: usize) -> Vec<u8> {
    let packet = &frame[ETHERNET..];
    let header_len = usize::from(packet[0] & 0xf) * 4;
    icmp(kind, code, from, to, [0; 4], &packet[..(header_len + quoted).min(packet.len())])
}

pub(crate) fn v4(protocol: u8, from: u32, to: u32, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let start = [0x45, 0, length[0], length[1], 0x29, 0x8c, 0x40, 0, 64, protocol, 0, 0];
    let mut header = [&start[..], &from.to_be_bytes(), &to.to_be_bytes()].concat();
    let sum = checksum::full(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&MACS[..], &[8, 0], &header, payload].concat()
}

pub(crate) fn v6(next: u8, from: u128, to: u128, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    let start = [0x60, 0, 0, 0, length[0], length[1], next, hop_limit];
    [&MACS[..], &[0x86, 0xdd], &start, &from.to_be_bytes(), &to.to_be_bytes(), payload].concat()
}

pub(crate) fn udp_v6(from: (u128, u16), to: (u128, u16)) -> Vec<u8> {
    let datagram = [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &[0, 8, 0, 0]].concat();
    v6(UDP, from.0, to.0, 64, &datagram)
}

pub(crate) fn arp() -> Vec<u8> {
    [&MACS[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat()
}

/// The same IPv4 packet in parts with so much payload each, a multiple of 8.
pub(crate) fn parts(frame: &[u8], id: u16, payload_len: usize) -> Vec<Vec<u8>> {
    let (header, payload) = (&frame[..ETHERNET + 20], &frame[ETHERNET + 20..]);
    let count = payload.len().div_ceil(payload_len);
    let part = |(number, payload): (usize, &[u8])| {
        let mut part = [header, payload].concat();
        let ip = &mut part[ETHERNET..ETHERNET + 20];
        ip[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        let more = if number + 1 < count { 0x2000 } else { 0 };
        ip[6..8].copy_from_slice(&((number * payload_len / 8) as u16 | more).to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum::full(ip, 0);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        part
    };
    payload.chunks(payload_len).enumerate().map(part).collect()
}

/// Who has `wanted`? Tell `from`.
pub(crate) fn arp_request(mac: [u8; 6], from: u32, wanted: u32) -> Vec<u8> {
    let start = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &mac, &start, &mac, &from.to_be_bytes(), &[0; 6], &wanted.to_be_bytes()].concat()
}

pub(crate) const ETHERNET: usize = 14;
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
