//! A NAT44: a router whose clients are known outside by addresses and ports of a pool.
//!
//! A session belongs to two tuples, the inside and the outside one, with the destination in both (endpoint-dependent, as VPP's default is):
//! one port serves many destinations, and only whoever was asked can answer. ARP is answered for the pool and for our own addresses, and
//! for no other.
//!
//! Modules in reading order: [`settings`], [`session`] (how long one idles), [`table`] (which tuples a packet has), [`released`] (ports
//! that wait), [`pool`] (what each address has in use), [`rewrite`] (addresses and checksums), [`mtu`] (what is too long), [`arp`]
//! (neighbours), [`error`](mod@error) (what a router says), [`counters`].

pub mod arp;
pub mod counters;
pub mod error;
pub mod mtu;
pub mod pool;
pub mod released;
pub mod rewrite;
pub mod session;
pub mod settings;
pub mod table;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ferrule_dataplane::capture::Remark;
use ferrule_dataplane::port::BURST;
use ferrule_endpoints::Responder;

use self::counters::{NatCounters, NatReason};
use self::error::IcmpError;
use self::rewrite::Which;
use self::settings::{NatInterface, NatSettings};
use self::table::NatTable;
use crate::burst::Burst;
use crate::error_limit::ErrorLimit;
use crate::flow::FlowKey;
use crate::fragments::{Fragments, PacketId};
use crate::function::{Disposition, Extra, Function, Side};
use crate::neighbours::Neighbours;
use crate::packet::checksum;
use crate::packet::{Family, Fragment, Headers, Link, Packet, PlainPacket, Quoted, parse, quoted};
use crate::sessions::Sought;

/// A NAT44 with its sessions.
#[derive(Debug)]
pub struct Nat44 {
    settings: NatSettings,
    table: NatTable,
    neighbours: [Neighbours<u32>; 2],
    /// Answer ARP and pings for our own addresses, by side.
    responders: [Responder; 2],
    /// Answers pings of clients to our addresses outside, for which nobody inside asks by ARP.
    outside_from_inside: Responder,
    fragments: Fragments<Option<Rewrite>>,
    errors: ErrorLimit,
    counters: Arc<NatCounters>,
    last: Result<Disposition, NatReason>,
    /// Of the burst that is translated, those of plain packets.
    sought: Vec<Option<Sought>>,
}

/// What becomes of the later parts of a packet.
#[derive(Clone, Copy, Debug)]
struct Rewrite {
    which: Which,
    end: (u32, u16),
}

impl Nat44 {
    /// One that has seen nothing yet.
    pub fn new(settings: NatSettings) -> Self {
        let counters = Arc::new(NatCounters::new(&settings.pool, &NatCounters::default()));
        Self {
            table: NatTable::new(&settings, Arc::clone(&counters)),
            neighbours: [settings.inside, settings.outside].map(|interface| Neighbours::new(interface.mac.0)),
            responders: responders(&settings),
            outside_from_inside: Responder::new(settings.inside.mac, known_outside(&settings)),
            fragments: Fragments::new(),
            errors: ErrorLimit::default(),
            counters,
            last: Ok(Disposition::Drop),
            sought: Vec::with_capacity(BURST),
            settings,
        }
    }

    /// Other settings from now on, but for how many sessions there may be. Sessions stay, with the addresses that they have.
    pub fn set_settings(&mut self, settings: NatSettings) {
        if (settings.inside, settings.outside) != (self.settings.inside, self.settings.outside) {
            self.neighbours = [settings.inside, settings.outside].map(|interface| Neighbours::new(interface.mac.0));
        }
        self.responders = responders(&settings);
        self.outside_from_inside = Responder::new(settings.inside.mac, known_outside(&settings));
        if settings.pool != self.settings.pool {
            self.counters = Arc::new(NatCounters::new(&settings.pool, &self.counters));
        }
        self.table.set_settings(&settings, Arc::clone(&self.counters));
        self.settings = settings;
    }

    /// What it counts.
    pub fn counters(&self) -> &Arc<NatCounters> {
        &self.counters
    }

    /// Sessions that there are.
    pub fn sessions(&self) -> usize {
        self.table.len()
    }

    /// What becomes of a frame, whose session may have been looked for already.
    fn judge(
        &mut self,
        side: Side,
        frame: &mut [u8],
        sought: Option<&Sought>,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Disposition {
        self.last = self.take(side, frame, sought, now_ms, out);
        self.last.unwrap_or_else(|reason| {
            self.counters.reasons[reason as usize].add(1);
            Disposition::Drop
        })
    }

    fn take(
        &mut self,
        side: Side,
        frame: &mut [u8],
        sought: Option<&Sought>,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Result<Disposition, NatReason> {
        let headers = match parse(Link::Ethernet, frame) {
            Ok(Packet::Ip(headers)) if headers.family == Family::V4 && headers.ip_at == ETHERNET => headers,
            Ok(Packet::Arp) => {
                if let Some(told) = arp::told(self.interface(side), frame) {
                    let ready = self.neighbours[side.index()].learn(told, now_ms);
                    out.extend(ready.into_iter().map(|frame| Extra { to: side, frame }));
                }
                return Err(self.answer(side, frame, out));
            }
            Ok(_) => return Err(NatReason::NotOurs),
            Err(_) => return Err(NatReason::Malformed),
        };
        if frame[..6] != self.interface(side).mac.0 {
            return Err(NatReason::NotOurs);
        }
        if !checksum::is_right(&frame[headers.ip_at..headers.ip_at + header_len(frame)], 0) {
            return Err(NatReason::Malformed);
        }
        let (own, destination) = (u32::from(self.interface(side).address.addr()), headers.destination as u32);
        if ![headers.source as u32, destination].into_iter().all(|address| self.settings.is_unicast(address)) {
            return Err(NatReason::NoRoute);
        }
        if side == Side::Client && destination == own {
            return Err(self.answer(side, frame, out));
        }
        if headers.is_icmp() && self.is_answered(side, destination, frame, out) {
            return Err(NatReason::Answered);
        }
        if side == Side::Client {
            // Before it opens a session.
            self.check_ttl(side, frame, &headers, now_ms, out)?;
        }
        let rewrite = match headers.fragment {
            Fragment::Later { id, .. } => {
                let packet = PacketId::new(side, &headers, id);
                let Some(fate) = self.fragments.fate(&packet, now_ms) else {
                    let lost = self.fragments.hold(packet, frame, now_ms);
                    self.counters.reasons[NatReason::LostFragment as usize].add(lost);
                    return Ok(Disposition::Drop);
                };
                fate.ok_or(NatReason::LostFragment)?
            }
            Fragment::Whole => self.translate(side, frame, &headers, sought, now_ms, out)?,
            Fragment::First { id } => {
                let rewrite = self.translate(side, frame, &headers, sought, now_ms, out);
                let held = self.fragments.decide(PacketId::new(side, &headers, id), rewrite.ok(), now_ms);
                let rewrite = rewrite?;
                let disposition = self.forward(side, frame, &headers, rewrite, now_ms, out);
                for mut part in held {
                    if let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, &part)
                        && self.forward(side, &mut part, &headers, rewrite, now_ms, out) == Ok(Disposition::Forward)
                    {
                        out.push(Extra { to: side.other(), frame: part });
                    }
                }
                return disposition;
            }
        };
        self.forward(side, frame, &headers, rewrite, now_ms, out)
    }

    /// The tuple that a packet gets.
    fn translate(
        &mut self,
        side: Side,
        frame: &mut [u8],
        headers: &Headers,
        sought: Option<&Sought>,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Result<Rewrite, NatReason> {
        let which = if side == Side::Client { Which::Source } else { Which::Destination };
        if let Some(quoted) = quoted(frame, headers) {
            return self.translate_error(side, frame, headers, &quoted, which, now_ms);
        }
        if side == Side::Client {
            self.route(headers.destination as u32).inspect_err(|_| {
                let inside = &self.settings.inside;
                error::send(&mut self.errors, inside, side, IcmpError::Unreachable, frame, headers, now_ms, out);
            })?;
        }
        let sought = sought.copied().unwrap_or_else(|| self.table.sought(FlowKey::of(side, headers)));
        match self.table.find_or_open(side, headers, &sought, now_ms) {
            Ok(session) => {
                Ok(Rewrite { which, end: if side == Side::Client { session.outside } else { session.inside } })
            }
            Err(reason) => {
                if side == Side::Client && reason.is_refusal() {
                    self.refuse(side, IcmpError::Prohibited, frame, headers, now_ms, out);
                } else if side == Side::Network {
                    return Err(match self.answer(side, frame, out) {
                        NatReason::Answered => NatReason::Answered,
                        _ => reason,
                    });
                }
                Err(reason)
            }
        }
    }

    /// An ICMP error: what it quotes is the other direction of a session. It neither refreshes nor ends that.
    fn translate_error(
        &mut self,
        side: Side,
        frame: &mut [u8],
        headers: &Headers,
        quoted: &Quoted,
        which: Which,
        now_ms: u64,
    ) -> Result<Rewrite, NatReason> {
        if headers.fragment == Fragment::Whole && !checksum::is_right(&frame[headers.transport_at..headers.end], 0) {
            return Err(NatReason::Malformed);
        }
        let session = self.table.find_quoted(side, headers, quoted, now_ms).ok_or(NatReason::NoSession)?;
        let (inner, end) = match side {
            // The client received it, at its inside tuple; outside it is known by the other one. So is a router that says so inside.
            Side::Client => (Which::Destination, session.outside),
            Side::Network => (Which::Source, session.inside),
        };
        if side == Side::Client {
            self.route(headers.destination as u32)?;
        }
        if !rewrite::quoted(frame, headers, quoted, inner, end) {
            return Err(NatReason::Malformed);
        }
        // No identifier: bytes 4 to 8 of an error are its own.
        let own = [frame[headers.transport_at + 4], frame[headers.transport_at + 5]];
        Ok(Rewrite { which, end: (end.0, u16::from_be_bytes(own)) })
    }

    /// Its sender is told if a packet goes no further because it is too old.
    fn check_ttl(
        &mut self,
        side: Side,
        frame: &[u8],
        headers: &Headers,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Result<(), NatReason> {
        if headers.hop_limit > 1 {
            return Ok(());
        }
        self.refuse(side, IcmpError::Expired, frame, headers, now_ms, out);
        Err(NatReason::Expired)
    }

    /// Rewrites a packet and sends it on.
    fn forward(
        &mut self,
        side: Side,
        frame: &mut [u8],
        headers: &Headers,
        Rewrite { which, end }: Rewrite,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Result<Disposition, NatReason> {
        self.check_ttl(side, frame, headers, now_ms, out)?;
        let route = match side {
            Side::Client => self.route(headers.destination as u32)?,
            Side::Network => Route::Neighbour(end.0),
        };
        let to = if matches!(route, Route::Hairpin) { Side::Client } else { side.other() };
        self.check_length(side, to, frame, headers, now_ms, out)?;
        rewrite::packet(frame, headers, which, end);
        rewrite::hop(frame, headers.ip_at);
        if let Some(most) = self.settings.mss_max() {
            mtu::clamp_mss(frame, headers, most);
        }
        self.counters.translated[side.index()].add(1);
        self.count_address(side, if side == Side::Client { end.0 } else { headers.destination as u32 }, headers);
        match route {
            Route::Neighbour(hop) if self.send(to, hop, frame, now_ms, out) => Ok(Disposition::Forward),
            Route::Neighbour(_) => Ok(Disposition::Drop),
            Route::Hairpin => self.hairpin(frame, now_ms, out),
        }
    }

    /// A packet that came in on `side`, or has turned back, has this address of ours outside.
    fn count_address(&self, side: Side, outside: u32, headers: &Headers) {
        if let Some(address) = self.counters.pool.of(outside) {
            address.count(side, headers.end - headers.ip_at);
        }
    }

    /// Its sender is told if a packet goes no further because it is too long and must not be parted.
    fn check_length(
        &mut self,
        side: Side,
        to: Side,
        frame: &[u8],
        headers: &Headers,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) -> Result<(), NatReason> {
        match self.interface(to).mtu {
            Some(mtu)
                if headers.end - headers.ip_at > usize::from(mtu)
                    && frame[headers.ip_at + 6] & DO_NOT_FRAGMENT != 0 =>
            {
                self.refuse(side, IcmpError::TooLong { mtu }, frame, headers, now_ms, out);
                Err(NatReason::TooLong)
            }
            _ => Ok(()),
        }
    }

    /// Sends a frame to a neighbour. Whether it may go now, as it is: what is too long leaves in parts.
    fn send(&mut self, to: Side, hop: u32, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> bool {
        let mtu = self.interface(to).mtu.map_or(usize::MAX, usize::from);
        if total_len(frame) <= mtu {
            return self.address(to, hop, frame, now_ms, out);
        }
        for mut frame in mtu::parts(frame, mtu) {
            if self.address(to, hop, &mut frame, now_ms, out) {
                out.push(Extra { to, frame });
            }
        }
        false
    }

    /// Addresses a frame to a neighbour. Whether it may go now.
    fn address(&mut self, to: Side, hop: u32, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> bool {
        let (is_ready, asks) = self.neighbours[to.index()].address(frame, hop, now_ms);
        out.extend(asks.then(|| Extra { to, frame: arp::request(self.interface(to), hop) }));
        is_ready
    }

    /// A client speaks to an address of ours outside: it comes back in as if from there.
    fn hairpin(&mut self, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> Result<Disposition, NatReason> {
        let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, frame) else { return Err(NatReason::Malformed) };
        if let Some(quoted) = quoted(frame, &headers) {
            let Rewrite { which, end } =
                self.translate_error(Side::Network, frame, &headers, &quoted, Which::Destination, now_ms)?;
            rewrite::packet(frame, &headers, which, end);
            self.turn_back(end.0, frame, now_ms, out);
            return Ok(Disposition::Drop);
        }
        if !headers.has_transport() {
            return Err(NatReason::LostFragment);
        }
        let sought = self.table.sought(FlowKey::of(Side::Network, &headers));
        let session = self.table.find_or_open(Side::Network, &headers, &sought, now_ms)?;
        self.count_address(Side::Network, session.outside.0, &headers);
        rewrite::packet(frame, &headers, Which::Destination, session.inside);
        self.turn_back(session.inside.0, frame, now_ms, out);
        Ok(Disposition::Drop)
    }

    /// Sends a frame to where it came from.
    fn turn_back(&mut self, hop: u32, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) {
        if self.send(Side::Client, hop, frame, now_ms, out) {
            out.push(Extra { to: Side::Client, frame: frame.to_vec() });
        }
    }

    fn route(&self, destination: u32) -> Result<Route, NatReason> {
        if self.settings.is_ours_outside(destination) {
            return Ok(Route::Hairpin);
        }
        let address = Ipv4Addr::from(destination);
        if self.settings.outside.address.contains(&address) {
            return Ok(Route::Neighbour(destination));
        }
        if self.settings.inside.address.contains(&address) {
            return Err(NatReason::NoRoute);
        }
        self.settings.gateway.map(|gateway| Route::Neighbour(gateway.into())).ok_or(NatReason::NoRoute)
    }

    /// A ping of an address outside that is ours. It goes no further, so that its TTL does not matter (RFC 1812, 5.2.4.3).
    fn is_answered(&self, side: Side, destination: u32, frame: &[u8], out: &mut Vec<Extra>) -> bool {
        let responder = match side {
            Side::Client => &self.outside_from_inside,
            Side::Network => &self.responders[side.index()],
        };
        self.settings.is_ours_outside(destination) && answer(responder, side, frame, out)
    }

    /// ARP and pings for our own addresses.
    fn answer(&self, side: Side, frame: &[u8], out: &mut Vec<Extra>) -> NatReason {
        let is_answered = answer(&self.responders[side.index()], side, frame, out);
        if is_answered { NatReason::Answered } else { NatReason::NotOurs }
    }

    fn refuse(
        &mut self,
        side: Side,
        error: IcmpError,
        frame: &[u8],
        headers: &Headers,
        now_ms: u64,
        out: &mut Vec<Extra>,
    ) {
        let interface = *self.interface(side);
        error::send(&mut self.errors, &interface, side, error, frame, headers, now_ms, out);
    }

    fn interface(&self, side: Side) -> &NatInterface {
        match side {
            Side::Client => &self.settings.inside,
            Side::Network => &self.settings.outside,
        }
    }
}

impl Function for Nat44 {
    fn frame(&mut self, side: Side, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> Disposition {
        self.judge(side, frame, None, now_ms, out)
    }

    /// Sessions are looked for all at once, so that the frames wait for memory at the same time.
    fn burst(&mut self, side: Side, burst: &mut Burst, now_ms: u64, out: &mut Vec<Extra>) {
        let mut sought = std::mem::take(&mut self.sought);
        sought.extend((0..burst.len()).map(|number| {
            let packet = PlainPacket::read(Link::Ethernet, burst.frame(number))?;
            Some(self.table.sought(FlowKey::of_plain(side, &packet)))
        }));
        for sought in sought.iter_mut().flatten() {
            self.table.seek(sought, now_ms);
        }
        for (number, sought) in sought.iter().enumerate() {
            let disposition = self.judge(side, burst.frame_mut(number), sought.as_ref(), now_ms, out);
            burst.dispose(number, disposition, out.len());
        }
        sought.clear();
        self.sought = sought;
    }

    fn remark(&self) -> Remark<'_> {
        let (dropped, word) = match self.last {
            Ok(Disposition::Forward) => (false, "translated"),
            // For a neighbour or its first part; or it has turned back, or left in parts.
            Ok(Disposition::Drop) => (false, "held"),
            Err(NatReason::Answered) => (false, NatReason::Answered.word()),
            Err(reason) => (true, reason.word()),
        };
        Remark { dropped, word, rule: "" }
    }

    fn tick(&mut self, now_ms: u64) {
        self.table.expire(now_ms);
        for neighbours in &mut self.neighbours {
            neighbours.forget(now_ms);
            self.counters.reasons[NatReason::NoNeighbour as usize].add(neighbours.take_lost());
        }
        self.counters.sessions.set(self.table.len() as u64);
    }
}

/// Whether somebody has an answer, which is sent back to where the frame came from then.
fn answer(responder: &Responder, side: Side, frame: &[u8], out: &mut Vec<Extra>) -> bool {
    let mut reply = vec![0; frame.len().max(ANSWER_MIN)];
    let Some(length) = responder.answer(frame, &mut reply) else { return false };
    reply.truncate(length);
    out.push(Extra { to: side, frame: reply });
    true
}

/// Who answers inside, and outside.
fn responders(settings: &NatSettings) -> [Responder; 2] {
    let NatSettings { inside, outside, .. } = settings;
    let own = IpAddr::V4(inside.address.addr());
    [Responder::new(inside.mac, vec![own]), Responder::new(outside.mac, known_outside(settings))]
}

/// Our addresses outside.
fn known_outside(NatSettings { outside, pool, forwards, .. }: &NatSettings) -> Vec<IpAddr> {
    let own = u32::from(outside.address.addr());
    let others = pool.iter().cloned().flatten().chain(forwards.iter().map(|forward| forward.outside.0));
    std::iter::once(own).chain(others).map(|address| IpAddr::V4(address.into())).collect()
}

/// Where a packet goes outside.
#[derive(Clone, Copy, Debug)]
enum Route {
    Neighbour(u32),
    /// It is for an address of ours.
    Hairpin,
}

fn header_len(frame: &[u8]) -> usize {
    usize::from(frame[ETHERNET] & 0xf) * 4
}

fn total_len(frame: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([frame[ETHERNET + 2], frame[ETHERNET + 3]]))
}

const ETHERNET: usize = 14;
/// In the first byte of flags and offset.
const DO_NOT_FRAGMENT: u8 = 0x40;
/// An ARP reply, or a short ping's.
const ANSWER_MIN: usize = 64;

#[cfg(test)]
mod tests;
