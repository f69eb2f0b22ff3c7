//! A client's conversation with somebody outside, and the two tuples that it has.

use crate::function::Side;
use crate::packet::{Headers, ICMP, TCP};
use crate::sessions::Class;
use crate::tcp_state::TcpState;

/// A session.
#[derive(Clone, Copy, Debug)]
pub struct NatSession {
    /// The client as it is: address, and port or identifier.
    pub inside: (u32, u16),
    /// The client as it is known outside.
    pub outside: (u32, u16),
    /// What it is of.
    pub protocol: u8,
    tcp: TcpState,
}

impl NatSession {
    /// One that nothing was seen of.
    pub fn new(inside: (u32, u16), outside: (u32, u16), protocol: u8) -> Self {
        Self { inside, outside, protocol, tcp: TcpState::default() }
    }

    /// Notes a packet of it that came in on `side`. The class that it idles in from now on.
    pub fn see(&mut self, side: Side, headers: &Headers) -> u8 {
        if self.protocol == TCP {
            self.tcp.see(side, headers.tcp_flags);
        }
        match self.protocol {
            TCP if self.tcp.is_established() => TCP_ESTABLISHED,
            TCP => TCP_TRANSITORY,
            ICMP => QUERY,
            _ => OTHER,
        }
    }
}

/// How long sessions idle (RFC 4787 requirement 5, RFC 5382 requirement 5, RFC 5508 requirement 2; as in VPP).
pub fn classes() -> [Class; 4] {
    [
        Class { idle_ms: 240_000, can_be_evicted: false },
        Class { idle_ms: 7_440_000, can_be_evicted: false },
        Class { idle_ms: 60_000, can_be_evicted: false },
        Class { idle_ms: 300_000, can_be_evicted: false },
    ]
}

/// The class that a session begins in.
pub fn class_of(protocol: u8) -> u8 {
    match protocol {
        TCP => TCP_TRANSITORY,
        ICMP => QUERY,
        _ => OTHER,
    }
}

const TCP_TRANSITORY: u8 = 0;
const TCP_ESTABLISHED: u8 = 1;
const QUERY: u8 = 2;
const OTHER: u8 = 3;
