//! Addresses, ports and identifiers are replaced, and checksums mended (RFC 1624).

use crate::packet::checksum::{self, Change};
use crate::packet::{Headers, ICMP, Quoted, TCP, UDP};

/// Which end of a packet is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Where it is from.
    Source,
    /// Where it goes.
    Destination,
}

impl Which {
    fn address_at(self) -> usize {
        if self == Self::Source { 12 } else { 16 }
    }

    fn port_at(self) -> usize {
        if self == Self::Source { 0 } else { 2 }
    }
}

/// Replaces an address, and of a part that has a transport header the port or identifier.
pub fn packet(frame: &mut [u8], headers: &Headers, which: Which, (address, port): (u32, u16)) {
    let change = ip(frame, headers.ip_at, which, address);
    if !headers.has_transport() {
        return;
    }
    let at = headers.transport_at;
    match headers.protocol {
        TCP => {
            let change = replace(frame, at + which.port_at(), port, change);
            mend(frame, at + 16, |old| change.apply(old));
        }
        UDP => {
            let change = replace(frame, at + which.port_at(), port, change);
            mend(frame, at + 6, |old| change.apply_udp(old));
        }
        // There is no pseudo-header.
        ICMP => {
            let change = replace(frame, at + 4, port, Change::default());
            mend(frame, at + 2, |old| change.apply(old));
        }
        _ => {}
    }
}

/// Replaces an end of the packet that an ICMP error quotes, whose checksum covers all of that. `false`, and nothing done: the quoted IP
/// header is not as it was sent. The checksum behind it is mended where it is quoted, and never judged (RFC 5508, requirements 3 and 4).
pub fn quoted(frame: &mut [u8], headers: &Headers, quoted: &Quoted, which: Which, (address, port): (u32, u16)) -> bool {
    if !checksum::is_right(&frame[quoted.ip_at..quoted.transport_at], 0) {
        return false;
    }
    let has_tcp_checksum = quoted.protocol == TCP && quoted.transport_at + TCP_HEADER <= headers.end;
    let changed = quoted.ip_at..quoted.transport_at + if has_tcp_checksum { TCP_HEADER } else { 8 };
    let before = frame[changed.clone()].to_vec();
    let change = ip(frame, quoted.ip_at, which, address);
    let at = quoted.transport_at;
    match quoted.protocol {
        TCP => {
            let change = replace(frame, at + which.port_at(), port, change);
            if has_tcp_checksum {
                mend(frame, at + 16, |old| change.apply(old));
            }
        }
        UDP => {
            let change = replace(frame, at + which.port_at(), port, change);
            mend(frame, at + 6, |old| change.apply_udp(old));
        }
        ICMP => {
            let change = replace(frame, at + 4, port, Change::default());
            mend(frame, at + 2, |old| change.apply(old));
        }
        _ => {}
    }
    let change = Change::default().bytes(&before, &frame[changed]);
    mend(frame, headers.transport_at + 2, |old| change.apply(old));
    true
}

/// One hop more, which is not the last one.
pub fn hop(frame: &mut [u8], ip_at: usize) {
    let (ttl, protocol) = (frame[ip_at + 8], frame[ip_at + 9]);
    let left = ttl.saturating_sub(1);
    frame[ip_at + 8] = left;
    let change = Change::default().word(u16::from_be_bytes([ttl, protocol]), u16::from_be_bytes([left, protocol]));
    mend(frame, ip_at + 10, |old| change.apply(old));
}

/// An address in an IP header. What that changes in checksums that cover it.
fn ip(frame: &mut [u8], ip_at: usize, which: Which, address: u32) -> Change {
    let at = ip_at + which.address_at();
    let before = u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    frame[at..at + 4].copy_from_slice(&address.to_be_bytes());
    let change = Change::default().address(before, address);
    mend(frame, ip_at + 10, |old| change.apply(old));
    change
}

fn replace(frame: &mut [u8], at: usize, new: u16, change: Change) -> Change {
    let before = u16::from_be_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    change.word(before, new)
}

fn mend(frame: &mut [u8], at: usize, new: impl FnOnce(u16) -> u16) {
    let checksum = new(u16::from_be_bytes([frame[at], frame[at + 1]]));
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Without options.
const TCP_HEADER: usize = 20;
