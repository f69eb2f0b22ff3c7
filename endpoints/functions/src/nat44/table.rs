//! Which tuples a packet has: sessions, by the inside tuple and by the outside one.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::Ipv4Addr;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::counters::{NatCounters, NatReason};
use super::pool::PortUse;
use super::released::ReleasedPorts;
use super::session::{NatSession, class_of, classes};
use super::settings::NatSettings;
use crate::flow::FlowKey;
use crate::function::Side;
use crate::packet::{Headers, ICMP, Quoted, TCP, TCP_ACK, TCP_SYN, UDP, opens_way_back};
use crate::sessions::{Sessions, Sought};

/// The sessions, and what is needed to open one.
#[derive(Debug)]
pub struct NatTable {
    settings: NatSettings,
    sessions: Sessions<NatSession, 2>,
    /// Of each client, how many.
    pub(super) clients: HashMap<u32, usize, RandomState>,
    released: ReleasedPorts,
    ports: PortUse,
    counters: Arc<NatCounters>,
    random: RandomState,
    drawn: u64,
}

impl NatTable {
    /// No sessions yet.
    pub fn new(settings: &NatSettings, counters: Arc<NatCounters>) -> Self {
        Self {
            settings: settings.clone(),
            sessions: Sessions::new(settings.sessions_max, &classes()).keeping_gone(),
            clients: HashMap::default(),
            released: ReleasedPorts::default(),
            ports: PortUse::default(),
            counters,
            random: RandomState::default(),
            drawn: 0,
        }
    }

    /// Other settings from now on, but for how many sessions there may be. Sessions stay.
    pub fn set_settings(&mut self, settings: &NatSettings, counters: Arc<NatCounters>) {
        self.settings = settings.clone();
        if !Arc::ptr_eq(&self.counters, &counters) {
            self.ports.tell(&counters.pool);
            self.counters = counters;
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// A session that is to be looked for.
    pub fn sought(&self, key: FlowKey) -> Sought {
        self.sessions.sought(key)
    }

    /// Looks for one, so that it is in the cache when it is asked for.
    pub fn seek(&self, sought: &mut Sought, now_ms: u64) {
        self.sessions.seek(sought, now_ms);
    }

    /// The session of a packet that came in on `side`. A client opens one; from outside only what a forward names does.
    pub fn find_or_open(
        &mut self,
        side: Side,
        headers: &Headers,
        sought: &Sought,
        now_ms: u64,
    ) -> Result<NatSession, NatReason> {
        let key = sought.key;
        if let Some(id) = self.find(sought, now_ms) {
            let session = self.sessions.get(id);
            let class = session.see(side, headers);
            let session = *session;
            self.sessions.touch(id, class, now_ms);
            return Ok(session);
        }
        let opened = self.open(side, key, headers, now_ms);
        if opened.is_err_and(NatReason::is_refusal) {
            let outside = match side {
                Side::Client => self.address_of(headers.source as u32),
                Side::Network => headers.destination as u32,
            };
            if let Some(address) = self.counters.pool.of(outside) {
                address.refused.add(1);
            }
        }
        opened
    }

    fn open(&mut self, side: Side, key: FlowKey, headers: &Headers, now_ms: u64) -> Result<NatSession, NatReason> {
        let mut session = match side {
            Side::Client => self.new_outward(headers, now_ms)?,
            Side::Network => self.new_forwarded(headers)?,
        };
        session.see(side, headers);
        let client = session.inside.0;
        let is_full =
            |table: &Self| table.clients.get(&client).is_some_and(|count| *count >= table.settings.client_sessions_max);
        if is_full(self) {
            // Idle ones count until they are met.
            self.expire(now_ms);
            if is_full(self) {
                return Err(NatReason::ClientFull);
            }
        }
        let (inside, outside) = match side {
            Side::Client => (key, FlowKey::of(side, &with_source(headers, session.outside))),
            Side::Network => (FlowKey::of(side, &with_destination(headers, session.inside)), key),
        };
        let opened = self.sessions.insert([inside, outside], class_of(headers.protocol), session, now_ms);
        self.forget_gone(now_ms);
        if opened.is_none() {
            return Err(NatReason::SessionsFull);
        }
        self.released.remove(&outside);
        self.ports.open(&session, &self.counters.pool);
        *self.clients.entry(client).or_default() += 1;
        Ok(session)
    }

    /// The session whose packet an ICMP error quotes, that came in on `side` and goes to whom that packet came from.
    pub fn find_quoted(&mut self, side: Side, headers: &Headers, quoted: &Quoted, now_ms: u64) -> Option<NatSession> {
        if quoted.source != headers.destination {
            return None;
        }
        let sought = self.sought(FlowKey::of_quoted(side, headers.family, quoted));
        let id = self.find(&sought, now_ms)?;
        Some(*self.sessions.get(id))
    }

    /// Forgets idle ones, a few at a time.
    pub fn expire(&mut self, now_ms: u64) {
        self.sessions.expire(now_ms, EXPIRED_IN_A_ROUND);
        self.forget_gone(now_ms);
    }

    fn find(&mut self, sought: &Sought, now_ms: u64) -> Option<u32> {
        let found = self.sessions.find_sought(sought, now_ms);
        if found.is_none() {
            // It may have been idle.
            self.forget_gone(now_ms);
        }
        found
    }

    fn forget_gone(&mut self, now_ms: u64) {
        for ([_, outside], session) in self.sessions.take_gone() {
            let client = session.inside.0;
            self.ports.close(&session, &self.counters.pool);
            if let Some(count) = self.clients.get_mut(&client) {
                *count -= 1;
                if *count == 0 {
                    self.clients.remove(&client);
                }
            }
            if !self.settings.is_forwarded(session.protocol, session.outside) {
                self.released.add(outside, client, now_ms);
            }
        }
    }

    fn new_outward(&mut self, headers: &Headers, now_ms: u64) -> Result<NatSession, NatReason> {
        let client = headers.source as u32;
        if self.settings.is_ours_outside(client) || !self.settings.inside.address.contains(&Ipv4Addr::from(client)) {
            return Err(NatReason::NotOurs);
        }
        check_opens(headers)?;
        let port = near_port(headers);
        let inside = (client, port);
        // A server behind a forward is known by that, whoever speaks first.
        if let Some(forward) = self
            .settings
            .forwards
            .iter()
            .find(|forward| forward.protocol == headers.protocol && forward.inside == inside)
        {
            return Ok(NatSession::new(inside, forward.outside, headers.protocol));
        }
        let address = self.address_of(client);
        // It keeps its port, if nobody else has that there; otherwise one is drawn that nobody foresees (RFC 6056).
        let port = if has_port(headers.protocol) {
            let ports = self.settings.ports.clone();
            let count = u32::from(ports.end() - ports.start()) + 1;
            self.drawn += 1;
            let start = self.random.hash_one((self.drawn, client)) as u32;
            let drawn =
                (0..count.min(TRIES_MAX)).map(|tried| ports.start() + (start.wrapping_add(tried) % count) as u16);
            let kept = Some(port).filter(|port| ports.contains(port));
            self.choose(kept.into_iter().chain(drawn), address, headers, now_ms)
        } else {
            self.choose(std::iter::once(0), address, headers, now_ms)
        };
        port.map(|port| NatSession::new(inside, (address, port), headers.protocol)).ok_or(NatReason::NoPort)
    }

    /// A client keeps its address of the pool (RFC 4787, requirement 2).
    fn address_of(&self, client: u32) -> u32 {
        self.settings.pool_address(self.random.hash_one(client))
    }

    /// The first port that nobody has; or else, of those that are kept from this client, the one that was released first.
    fn choose(
        &mut self,
        ports: impl Iterator<Item = u16>,
        address: u32,
        headers: &Headers,
        now_ms: u64,
    ) -> Option<u16> {
        let (client, mut oldest) = (headers.source as u32, None);
        for port in ports {
            let key = FlowKey::of(Side::Client, &with_source(headers, (address, port)));
            let hash = self.sessions.hash(&key);
            if self.settings.is_forwarded(headers.protocol, (address, port))
                || self.sessions.find(&key, hash, now_ms).is_some()
            {
                continue;
            }
            // It may have been idle.
            self.forget_gone(now_ms);
            match self.released.kept_until(&key, client, now_ms) {
                None => return Some(port),
                Some(until_ms) => oldest = oldest.into_iter().chain([(until_ms, port)]).min(),
            }
        }
        oldest.map(|(_, port)| port)
    }

    fn new_forwarded(&self, headers: &Headers) -> Result<NatSession, NatReason> {
        let outside = (headers.destination as u32, headers.ports[1]);
        let mut forwards = self.settings.forwards.iter();
        let forward = forwards
            .find(|forward| forward.protocol == headers.protocol && forward.outside == outside)
            .ok_or(NatReason::NoSession)?;
        check_opens(headers)?;
        Ok(NatSession::new(forward.inside, outside, headers.protocol))
    }
}

/// Whether a packet can begin a conversation.
fn check_opens(headers: &Headers) -> Result<(), NatReason> {
    let opens = match headers.protocol {
        TCP => headers.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
        ICMP => opens_way_back(headers.family, headers.ports[0]),
        _ => true,
    };
    if opens { Ok(()) } else { Err(NatReason::NotOpening) }
}

fn has_port(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | ICMP)
}

/// The source port, or the identifier.
fn near_port(headers: &Headers) -> u16 {
    if headers.protocol == ICMP { headers.identifier } else { headers.ports[0] }
}

fn with_source(headers: &Headers, (address, port): (u32, u16)) -> Headers {
    let mut headers = Headers { source: address.into(), ..*headers };
    if headers.protocol == ICMP {
        headers.identifier = port;
    } else {
        headers.ports[0] = port;
    }
    headers
}

fn with_destination(headers: &Headers, (address, port): (u32, u16)) -> Headers {
    let ports = [headers.ports[0], port];
    Headers { destination: address.into(), ports, ..*headers }
}

/// Ports that are tried before a client is refused.
const TRIES_MAX: u32 = 512;
const EXPIRED_IN_A_ROUND: usize = 64;
