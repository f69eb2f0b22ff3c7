//! What a NAT44 has counted. One thread adds, any thread reads.

use std::ops::RangeInclusive;

use super::pool::PoolCounters;
use crate::counter::Counter;

/// All counters.
#[derive(Debug, Default)]
pub struct NatCounters {
    /// Packets that were translated, by the side they came in on.
    pub translated: [Counter; 2],
    /// Sessions that there are.
    pub sessions: Counter,
    /// Packets that went no further, by the reason.
    pub reasons: [Counter; NatReason::ALL.len()],
    /// Of each address of the pool.
    pub pool: PoolCounters,
}

impl NatCounters {
    /// With a pool of these addresses. Those that were there before go on.
    pub fn new(pool: &[RangeInclusive<u32>], before: &Self) -> Self {
        let counters = Self { pool: PoolCounters::new(pool, &before.pool), ..Self::default() };
        let growing = counters.translated.iter().chain(&counters.reasons);
        growing.zip(before.translated.iter().chain(&before.reasons)).for_each(|(counter, old)| counter.set(old.get()));
        counters
    }

    /// Packets of a reason.
    pub fn of(&self, reason: NatReason) -> u64 {
        self.reasons[reason as usize].get()
    }
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatReason {
    /// It is broken, or its checksum is wrong where that matters.
    Malformed,
    /// It is not IPv4, or not for us.
    NotOurs,
    /// It was answered here.
    Answered,
    /// Its time to live is over.
    Expired,
    /// It is longer than the MTU, and may not be parted.
    TooLong,
    /// There is no way to where it goes.
    NoRoute,
    /// It comes from outside, and nobody inside has asked.
    NoSession,
    /// It is of TCP, and opens nothing.
    NotOpening,
    /// There are as many sessions as may be.
    SessionsFull,
    /// The client has as many sessions as it may have.
    ClientFull,
    /// No address has a port left for this destination.
    NoPort,
    /// A part of a packet whose first part did not come, or went no further.
    LostFragment,
    /// Nobody has the address that it is to be sent to: ARP was not answered in time.
    NoNeighbour,
}

impl NatReason {
    /// All of them, in their order.
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::NotOurs,
        Self::Answered,
        Self::Expired,
        Self::TooLong,
        Self::NoRoute,
        Self::NoSession,
        Self::NotOpening,
        Self::SessionsFull,
        Self::ClientFull,
        Self::NoPort,
        Self::LostFragment,
        Self::NoNeighbour,
    ];

    /// Whether there was no port or no room for a session.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::NoPort | Self::ClientFull | Self::SessionsFull)
    }

    /// As metrics call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotOurs => "not-ours",
            Self::Answered => "answered",
            Self::Expired => "expired",
            Self::TooLong => "too-long",
            Self::NoRoute => "no-route",
            Self::NoSession => "no-session",
            Self::NotOpening => "not-opening",
            Self::SessionsFull => "sessions-full",
            Self::ClientFull => "client-full",
            Self::NoPort => "no-port",
            Self::LostFragment => "lost-fragment",
            Self::NoNeighbour => "no-neighbour",
        }
    }
}
