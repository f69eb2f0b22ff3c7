//! What a firewall says of a frame, and why.

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes, by this rule.
    PassRule(u32),
    /// It passes: it belongs to a session that this rule opened.
    PassSession(u32),
    /// It passes.
    Pass(Reason),
    /// It is dropped, by this rule.
    DropRule(u32),
    /// It is dropped.
    Drop(Reason),
    /// It is a part of a packet whose first part has not come yet.
    Held,
}

impl Verdict {
    /// Whether the frame goes on now.
    #[inline]
    pub fn passes(self) -> bool {
        matches!(self, Self::PassRule(_) | Self::PassSession(_) | Self::Pass(_))
    }
}

/// Why a frame passed or not, where no rule says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No rule names it.
    Unmatched,
    /// ARP.
    Arp,
    /// Neighbour discovery, where some IPv6 may pass.
    NeighbourDiscovery,
    /// Neither IP nor ARP.
    NotIp,
    /// An ICMP error that quotes a packet of a live session.
    IcmpError,
    /// It is broken.
    Malformed,
    /// A part of a packet that hides or overwrites a transport header.
    TinyFragment,
    /// A part of a packet whose first part never came.
    LostFragment,
    /// A rule would open a session, and there are as many as may be.
    SessionsFull,
}

impl Reason {
    /// All of them, in their order.
    pub const ALL: [Self; 9] = [
        Self::Unmatched,
        Self::Arp,
        Self::NeighbourDiscovery,
        Self::NotIp,
        Self::IcmpError,
        Self::Malformed,
        Self::TinyFragment,
        Self::LostFragment,
        Self::SessionsFull,
    ];

    /// As metrics and traces call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unmatched => "unmatched",
            Self::Arp => "arp",
            Self::NeighbourDiscovery => "neighbour-discovery",
            Self::NotIp => "not-ip",
            Self::IcmpError => "icmp-error",
            Self::Malformed => "malformed",
            Self::TinyFragment => "tiny-fragment",
            Self::LostFragment => "lost-fragment",
            Self::SessionsFull => "sessions-full",
        }
    }
}
