//! What an NPTv6 translator has counted. One thread adds, any thread reads.

use crate::counter::Counter;

/// All counters.
#[derive(Debug, Default)]
pub struct NptCounters {
    /// Packets that were translated, by the side they came in on.
    pub translated: [Counter; 2],
    /// Packets that went no further, by the reason.
    pub reasons: [Counter; NptReason::ALL.len()],
}

impl NptCounters {
    /// Packets of a reason.
    pub fn of(&self, reason: NptReason) -> u64 {
        self.reasons[reason as usize].get()
    }
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NptReason {
    /// It is broken.
    Malformed,
    /// It is not IPv6, or not for us, or not for more than one link.
    NotOurs,
    /// It was answered here, or is an answer to us.
    Answered,
    /// Its hop limit is reached.
    Expired,
    /// It says to come from where it does not.
    WrongSource,
    /// Its address is one of those that have no counterpart.
    NoCounterpart,
    /// There is no way to where it goes.
    NoRoute,
    /// Nobody has the address that it is to be sent to: a solicitation was not answered in time.
    NoNeighbour,
}

impl NptReason {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::NotOurs,
        Self::Answered,
        Self::Expired,
        Self::WrongSource,
        Self::NoCounterpart,
        Self::NoRoute,
        Self::NoNeighbour,
    ];

    /// As metrics call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotOurs => "not-ours",
            Self::Answered => "answered",
            Self::Expired => "expired",
            Self::WrongSource => "wrong-source",
            Self::NoCounterpart => "no-counterpart",
            Self::NoRoute => "no-route",
            Self::NoNeighbour => "no-neighbour",
        }
    }
}
