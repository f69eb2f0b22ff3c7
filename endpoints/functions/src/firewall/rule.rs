//! What a firewall is told: ordered rules, and what becomes of that which none of them names.

use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::function::Side;
use crate::packet::{Family, Headers, ICMP, ICMP_V6};

/// The rules of a firewall, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// In their order: the first that matches decides.
    pub rules: Vec<Rule>,
    /// What becomes of an IP packet that came in on the client's or the network's side and that no rule names.
    pub unmatched: [Unmatched; 2],
    /// What becomes of frames that carry neither IP nor ARP.
    pub not_ip: Unmatched,
}

/// What becomes of something that no rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// It is dropped.
    Deny,
    /// It passes.
    Permit,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As people and metrics call it.
    pub name: String,
    /// What becomes of what it matches.
    pub action: Action,
    /// What it matches of that which comes in on the client's and on the network's side; none: nothing.
    pub matches: [Option<Match>; 2],
}

/// What becomes of what a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is dropped.
    Deny,
    /// It passes.
    Permit,
    /// It passes, and so does what answers it.
    Reflect,
}

/// Which packets a rule means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Of one IP only.
    pub family: Option<Family>,
    /// From there.
    pub source: Option<IpNet>,
    /// To there.
    pub destination: Option<IpNet>,
    /// Of this protocol.
    pub protocol: Option<u8>,
    /// From these ports; of ICMP, of these types.
    pub source_ports: RangeInclusive<u16>,
    /// To these ports; of ICMP, of these codes.
    pub destination_ports: RangeInclusive<u16>,
    /// Which TCP flags are looked at.
    pub tcp_mask: u8,
    /// What they are.
    pub tcp_value: u8,
}

impl Match {
    /// Everything.
    pub const ANY: Self = Self {
        family: None,
        source: None,
        destination: None,
        protocol: None,
        source_ports: 0..=u16::MAX,
        destination_ports: 0..=u16::MAX,
        tcp_mask: 0,
        tcp_value: 0,
    };

    /// Whether packets of this family can match.
    pub fn is_for(&self, family: Family) -> bool {
        let of = |net: &IpNet| match net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        };
        let nets = [&self.source, &self.destination].into_iter().flatten().map(of);
        let by_protocol = match self.protocol {
            Some(ICMP) => Some(Family::V4),
            Some(ICMP_V6) => Some(Family::V6),
            _ => None,
        };
        nets.chain(self.family).chain(by_protocol).all(|wanted| wanted == family)
    }
}

/// The addresses of a network, as [`Headers`] has them.
pub fn range_of(net: &IpNet) -> RangeInclusive<u128> {
    match net {
        IpNet::V4(net) => u32::from(net.network()).into()..=u32::from(net.broadcast()).into(),
        IpNet::V6(net) => u128::from(net.network())..=u128::from(net.broadcast()),
    }
}

/// What rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Which IP.
    pub family: Family,
    /// The source address.
    pub source: u128,
    /// The destination address.
    pub destination: u128,
    /// The protocol.
    pub protocol: u8,
    /// Ports; of ICMP, type and code.
    pub ports: [u16; 2],
    /// Flags of TCP.
    pub tcp_flags: u8,
}

impl Tuple {
    /// Of a packet.
    #[inline]
    pub fn of(headers: &Headers) -> Self {
        let Headers { family, source, destination, protocol, ports, tcp_flags, .. } = *headers;
        Self { family, source, destination, protocol, ports, tcp_flags }
    }
}

impl Policy {
    /// Whether some IPv6 may pass that comes in on either side: then addresses are resolved as well.
    pub fn permits_v6(&self) -> bool {
        let by_rule = |rule: &Rule| {
            rule.action != Action::Deny && rule.matches.iter().flatten().any(|matched| matched.is_for(Family::V6))
        };
        self.rules.iter().any(by_rule) || self.unmatched == [Unmatched::Permit; 2]
    }

    /// What becomes of what no rule names on `side`.
    #[inline]
    pub fn unmatched_on(&self, side: Side) -> Unmatched {
        self.unmatched[side.index()]
    }
}
