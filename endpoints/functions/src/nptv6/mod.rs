//! NPTv6: a router that gives the prefix of its clients another one outside, and back, without sessions (RFC 6296).
//!
//! Each address has one counterpart, whose sum is the same, so no checksum changes. Solicitations are answered outside for its own address and for
//! all of the outside prefix, and inside for its own address; for no other.
//!
//! Modules in reading order: [`settings`], [`prefix`] (the mapping), [`discovery`] (neighbours), [`error`](mod@error) (what a router says), [`counters`].

pub mod counters;
pub mod discovery;
pub mod error;
pub mod prefix;
pub mod settings;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ferrule_dataplane::capture::Remark;
use ferrule_endpoints::Responder;

use self::counters::{NptCounters, NptReason};
use self::error::Refusal;
use self::settings::{NptInterface, NptSettings};
use crate::error_limit::ErrorLimit;
use crate::function::{Disposition, Extra, Function, Side};
use crate::neighbours::Neighbours;
use crate::packet::{Family, Headers, Link, Packet, parse};

/// A translator.
#[derive(Debug)]
pub struct Nptv6 {
    settings: NptSettings,
    neighbours: [Neighbours<Ipv6Addr>; 2],
    errors: ErrorLimit,
    counters: Arc<NptCounters>,
    last: Result<Disposition, NptReason>,
}

impl Nptv6 {
    /// One that has seen nothing yet.
    pub fn new(settings: NptSettings) -> Self {
        Self {
            neighbours: [settings.inside, settings.outside].map(|interface| Neighbours::new(interface.mac.0)),
            errors: ErrorLimit::default(),
            counters: Arc::default(),
            last: Ok(Disposition::Drop),
            settings,
        }
    }

    /// Other settings from now on.
    pub fn set_settings(&mut self, settings: NptSettings) {
        if (settings.inside, settings.outside) != (self.settings.inside, self.settings.outside) {
            self.neighbours = [settings.inside, settings.outside].map(|interface| Neighbours::new(interface.mac.0));
        }
        self.settings = settings;
    }

    /// What it counts.
    pub fn counters(&self) -> &Arc<NptCounters> {
        &self.counters
    }

    fn take(
        &mut self,
        side: Side,
        frame: &mut [u8],
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Result<Disposition, NptReason> {
        let headers = match parse(Link::Ethernet, frame) {
            Ok(Packet::Ip(headers)) if headers.family == Family::V6 && headers.ip_at == ETHERNET => headers,
            Ok(_) => return Err(NptReason::NotOurs),
            Err(_) => return Err(NptReason::Malformed),
        };
        if headers.is_neighbour_discovery() {
            return Err(self.discover(side, frame, &headers, now_ms, out));
        }
        let ends = [headers.source, headers.destination].map(Ipv6Addr::from);
        if frame[..6] != self.interface(side).mac.0 || !ends.iter().all(is_for_routers) {
            return Err(NptReason::NotOurs);
        }
        let refused = self.route(side, frame, &headers, ends, now_ms, out);
        refused.map_err(|(reason, refusal)| {
            if let Some(refusal) = refusal
                && error::may_be_told(&headers)
                && self.errors.may_send(now_ms)
            {
                out.push(error::refuse(refusal, self.interface(side), side, frame, &headers));
            }
            reason
        })
    }

    /// Sends a packet to its other side, with the addresses that it has there. None is changed of one that is refused.
    fn route(
        &mut self,
        side: Side,
        frame: &mut [u8],
        headers: &Headers,
        [source, destination]: [Ipv6Addr; 2],
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Result<Disposition, (NptReason, Option<Refusal>)> {
        let NptSettings { inside, outside, prefixes, gateway } = self.settings;
        let own = [inside, outside].map(|interface| interface.address.addr());
        if own[side.index()] == destination || side == Side::Client && own.contains(&destination) {
            let responder = Responder::new(self.interface(side).mac, vec![IpAddr::V6(destination)]);
            return Err((answer(&responder, side, frame, out), None));
        }
        let (is_hairpin, is_from_inside) = (prefixes.outside.contains(&destination), prefixes.inside.contains(&source));
        match side {
            Side::Client if !is_from_inside => return Err((NptReason::WrongSource, Some(error::WRONG_SOURCE))),
            // Nobody outside has an address inside: it would be answered there.
            Side::Network if is_from_inside => return Err((NptReason::WrongSource, None)),
            Side::Network if !is_hairpin => return Err((NptReason::NotOurs, None)),
            _ => {}
        }
        if headers.hop_limit <= 1 {
            return Err((NptReason::Expired, Some(error::EXPIRED)));
        }
        let no_counterpart = |refusal| (NptReason::NoCounterpart, Some(refusal));
        let from = if side == Side::Client {
            prefixes.outward(source).ok_or(no_counterpart(error::BAD_SOURCE))?
        } else {
            source
        };
        // A client that speaks to the address outside of another one is turned back.
        let (to, leaves_by) = if is_hairpin {
            (prefixes.inward(destination).ok_or(no_counterpart(error::BAD_DESTINATION))?, Side::Client)
        } else {
            (destination, Side::Network)
        };
        let hop = match leaves_by {
            Side::Client => Some(to).filter(|to| inside.address.contains(to)),
            Side::Network if prefixes.inside.contains(&to) => None,
            Side::Network => Some(to).filter(|to| outside.address.contains(to)).or(gateway),
        };
        let hop = hop.ok_or((NptReason::NoRoute, Some(error::NO_ROUTE)))?;
        if let Some(ip_at) = quoted_at(frame, headers) {
            // What it quotes went the other way.
            let [sender, receiver] = [SOURCE, DESTINATION].map(|field| address_at(frame, ip_at + field));
            if is_hairpin
                && let Some(sender) = prefixes.outside.contains(&sender).then(|| prefixes.inward(sender)).flatten()
            {
                put_address(frame, ip_at + SOURCE, sender);
            }
            if side == Side::Client
                && let Some(receiver) =
                    prefixes.inside.contains(&receiver).then(|| prefixes.outward(receiver)).flatten()
            {
                put_address(frame, ip_at + DESTINATION, receiver);
            }
        }
        put_address(frame, ETHERNET + SOURCE, from);
        put_address(frame, ETHERNET + DESTINATION, to);
        frame[ETHERNET + HOP_LIMIT] -= 1;
        self.counters.translated[side.index()].add(1);
        Ok(self.send(side, leaves_by, hop, frame, now_ms, out))
    }

    /// Addresses a frame to a neighbour. It goes now, waits, or turns back.
    fn send(
        &mut self,
        side: Side,
        leaves_by: Side,
        hop: Ipv6Addr,
        frame: &mut [u8],
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Disposition {
        let (is_ready, asks) = self.neighbours[leaves_by.index()].address(frame, hop, now_ms);
        if asks {
            out.push(Extra { to: leaves_by, frame: discovery::solicitation(self.interface(leaves_by), hop) });
        }
        if is_ready && leaves_by != side {
            return Disposition::Forward;
        }
        out.extend(is_ready.then(|| Extra { to: side, frame: frame.to_vec() }));
        Disposition::Drop
    }

    /// A solicitation or an advertisement.
    fn discover(
        &mut self,
        side: Side,
        frame: &[u8],
        headers: &Headers,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> NptReason {
        let Some(target) = discovery::target(frame, headers) else { return NptReason::Malformed };
        let interface = *self.interface(side);
        let told = discovery::told(&interface, frame, headers);
        if let Some(told) = told {
            let ready = self.neighbours[side.index()].learn(told, now_ms);
            out.extend(ready.into_iter().map(|frame| Extra { to: side, frame }));
        }
        let is_ours = target == interface.address.addr()
            || side == Side::Network && self.settings.prefixes.outside.contains(&target);
        if is_ours {
            return answer(&Responder::new(interface.mac, vec![IpAddr::V6(target)]), side, frame, out);
        }
        if told.is_some() { NptReason::Answered } else { NptReason::NotOurs }
    }

    fn interface(&self, side: Side) -> &NptInterface {
        match side {
            Side::Client => &self.settings.inside,
            Side::Network => &self.settings.outside,
        }
    }
}

impl Function for Nptv6 {
    fn frame(&mut self, side: Side, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> Disposition {
        self.last = self.take(side, frame, now_ms, out);
        self.last.unwrap_or_else(|reason| {
            self.counters.reasons[reason as usize].add(1);
            Disposition::Drop
        })
    }

    fn remark(&self) -> Remark<'_> {
        let (dropped, word) = match self.last {
            Ok(Disposition::Forward) => (false, "translated"),
            // For a neighbour; or it has turned back.
            Ok(Disposition::Drop) => (false, "held"),
            Err(NptReason::Answered) => (false, NptReason::Answered.word()),
            Err(reason) => (true, reason.word()),
        };
        Remark { dropped, word, rule: "" }
    }

    fn tick(&mut self, now_ms: u64) {
        for neighbours in &mut self.neighbours {
            neighbours.forget(now_ms);
            self.counters.reasons[NptReason::NoNeighbour as usize].add(neighbours.take_lost());
        }
    }
}

/// An answer is sent back to where the frame came from.
fn answer(responder: &Responder, side: Side, frame: &[u8], out: &mut Vec<Extra>) -> NptReason {
    let mut reply = vec![0; frame.len().max(ANSWER_MIN)];
    let Some(length) = responder.answer(frame, &mut reply) else { return NptReason::NotOurs };
    reply.truncate(length);
    out.push(Extra { to: side, frame: reply });
    NptReason::Answered
}

/// Where the packet begins that an ICMPv6 error quotes, if its addresses are there.
fn quoted_at(frame: &[u8], headers: &Headers) -> Option<usize> {
    let ip_at = headers.transport_at + 8;
    let is_error = headers.is_icmp() && headers.has_transport() && headers.ports[0] < 128;
    (is_error && headers.end >= ip_at + HEADER && frame[ip_at] >> 4 == 6).then_some(ip_at)
}

/// Whether packets from there, and to there, leave their link.
fn is_for_routers(address: &Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_unicast_link_local())
}

fn address_at(frame: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&frame[at..at + 16]);
    octets.into()
}

fn put_address(frame: &mut [u8], at: usize, address: Ipv6Addr) {
    frame[at..at + 16].copy_from_slice(&address.octets());
}

const ETHERNET: usize = 14;
/// An advertisement, or a short ping's.
const ANSWER_MIN: usize = 128;
/// In an IPv6 header.
const HOP_LIMIT: usize = 7;
const SOURCE: usize = 8;
const DESTINATION: usize = 24;
const HEADER: usize = 40;
