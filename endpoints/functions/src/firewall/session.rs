//! A way back that a rule opened.

use super::rule::Tuple;
use crate::function::Side;
use crate::packet::{Headers, TCP, opens_way_back};
use crate::sessions::Class;
use crate::tcp_state::TcpState;

/// A session.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Which rules it was last judged by.
    pub generation: u32,
    /// The one that lets it live.
    pub rule: u32,
    is_tcp: bool,
    tcp: TcpState,
}

/// What a session was opened with, for other rules that judge it again.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// By whom.
    pub side: Side,
    /// What rules look at.
    pub tuple: Tuple,
}

impl Session {
    /// One that this packet opens.
    pub fn new(opener: Side, headers: &Headers, rule: u32, generation: u32) -> Self {
        let is_tcp = headers.protocol == TCP;
        let mut session = Self { generation, rule, is_tcp, tcp: TcpState::default() };
        session.see(opener, headers.tcp_flags);
        session
    }

    /// Whether a packet can have an answer: of ICMP, only requests have one.
    pub fn is_opened_by(headers: &Headers) -> bool {
        !headers.is_icmp() || opens_way_back(headers.family, headers.ports[0])
    }

    /// Notes a packet of it, with the flags that it has if it is one of TCP.
    #[inline]
    pub fn see(&mut self, side: Side, tcp_flags: u8) {
        if self.is_tcp {
            self.tcp.see(side, tcp_flags);
        }
    }

    /// The class that it idles in.
    #[inline]
    pub fn class(&self) -> u8 {
        if !self.is_tcp {
            return OTHER;
        }
        if self.tcp.is_established() { TCP_ESTABLISHED } else { TCP_TRANSIENT }
    }
}

/// The class that a session begins in.
pub fn class_of(protocol: u8) -> u8 {
    if protocol == TCP { TCP_TRANSIENT } else { OTHER }
}

/// How long sessions idle, as in VPP.
pub fn classes() -> [Class; 3] {
    [
        Class { idle_ms: 120_000, can_be_evicted: true },
        Class { idle_ms: 86_400_000, can_be_evicted: false },
        Class { idle_ms: 600_000, can_be_evicted: false },
    ]
}

const TCP_TRANSIENT: u8 = 0;
const TCP_ESTABLISHED: u8 = 1;
const OTHER: u8 = 2;
