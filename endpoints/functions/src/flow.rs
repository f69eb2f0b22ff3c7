//! What the packets of one conversation have in common, in both directions.

use std::hash::{Hash, Hasher};

use crate::function::Side;
use crate::packet::{Family, Headers, ICMP, ICMP_V6, PlainPacket, Quoted, icmp_of, request_of};

/// A conversation, whoever of the two sides speaks: addresses, protocol, ports; of an ICMP query its identifier and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// Addresses on the client's side and on the network's, in halves: so a key has no gap, and a session fits into a cache line.
    client: [u64; 2],
    network: [u64; 2],
    /// Ports, protocol, and which IP.
    rest: u64,
}

impl FlowKey {
    /// The conversation of a packet that came in on `side`. Not of a later fragment, which has no ports.
    #[inline]
    pub fn of(side: Side, headers: &Headers) -> Self {
        let Headers { family, source, destination, protocol, ports, identifier, .. } = *headers;
        Self::between(side, family, [source, destination], protocol, ports, identifier)
    }

    /// The same of a plain packet.
    #[inline(always)]
    pub fn of_plain(side: Side, packet: &PlainPacket) -> Self {
        let PlainPacket { source, destination, protocol, ports: [near, far], .. } = *packet;
        let (client, network, ports) = match side {
            Side::Client => (source, destination, [near, far]),
            Side::Network => (destination, source, [far, near]),
        };
        Self { client: [0, client.into()], network: [0, network.into()], rest: rest_of(ports, protocol) }
    }

    /// The conversation of a packet that an ICMP error quotes, which came in on `side`: it was sent from the other one.
    pub fn of_quoted(side: Side, family: Family, quoted: &Quoted) -> Self {
        let Quoted { source, destination, protocol, ports, identifier, .. } = *quoted;
        Self::between(side.other(), family, [source, destination], protocol, ports, identifier)
    }

    #[inline]
    fn between(
        from: Side,
        family: Family,
        [source, destination]: [u128; 2],
        protocol: u8,
        [mut near, mut far]: [u16; 2],
        identifier: u16,
    ) -> Self {
        let mut asker = None;
        if matches!(protocol, ICMP | ICMP_V6) && protocol == icmp_of(family) {
            let request = request_of(family, near);
            if let Some(request) = request {
                asker = Some(if request == near { from } else { from.other() });
            }
            // Other messages are conversations by type and code.
            (near, far) = request.map_or((near, far), |request| (identifier, request));
            if from == Side::Network && request.is_some() {
                (near, far) = (far, near);
            }
        }
        let (client, network, ports) = match from {
            Side::Client => (source, destination, [near, far]),
            Side::Network => (destination, source, [far, near]),
        };
        // A question of either side is another conversation.
        let asker = asker.map_or(0, |asker| 1 + asker.index() as u64);
        let family = u64::from(family == Family::V6);
        let rest = rest_of(ports, protocol) | family << 40 | asker << 41;
        Self { client: halves(client), network: halves(network), rest }
    }
}

#[inline]
fn rest_of(ports: [u16; 2], protocol: u8) -> u64 {
    u64::from(ports[0]) | u64::from(ports[1]) << 16 | u64::from(protocol) << 32
}

impl Hash for FlowKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        for [high, low] in [self.client, self.network] {
            state.write_u128(u128::from(high) << 64 | u128::from(low));
        }
        state.write_u64(self.rest);
    }
}

#[inline]
fn halves(address: u128) -> [u64; 2] {
    [(address >> 64) as u64, address as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Fragment, TCP};

    fn headers(protocol: u8, addresses: [u128; 2], ports: [u16; 2], identifier: u16) -> Headers {
        Headers {
            family: Family::V4,
            source: addresses[0],
            destination: addresses[1],
            protocol,
            ports,
            identifier,
            tcp_flags: 0,
            hop_limit: 64,
            fragment: Fragment::Whole,
            ip_at: 0,
            transport_at: 20,
            end: 60,
        }
    }

    #[test]
    fn both_directions_are_one_conversation() {
        let there = FlowKey::of(Side::Client, &headers(TCP, [1, 2], [1000, 80], 0));
        let back = FlowKey::of(Side::Network, &headers(TCP, [2, 1], [80, 1000], 0));
        assert_eq!(there, back);
        assert_ne!(there, FlowKey::of(Side::Client, &headers(TCP, [2, 1], [80, 1000], 0)), "that is another client");
        assert_ne!(there, FlowKey::of(Side::Client, &headers(TCP, [1, 2], [1000, 81], 0)));
    }

    #[test]
    fn an_echo_reply_belongs_to_its_request_and_to_no_other() {
        let request = FlowKey::of(Side::Client, &headers(ICMP, [1, 2], [8, 0], 77));
        assert_eq!(request, FlowKey::of(Side::Network, &headers(ICMP, [2, 1], [0, 0], 77)));
        assert_ne!(request, FlowKey::of(Side::Network, &headers(ICMP, [2, 1], [0, 0], 78)));
        assert_ne!(request, FlowKey::of(Side::Network, &headers(ICMP, [2, 1], [8, 0], 77)), "the other side asks");
    }
}
