//! A firewall: ordered rules, and the ways back that they open.
//!
//! A live session passes; otherwise the first rule that matches decides; what none names is denied, unless the policy says otherwise for
//! the side it came in on. ARP passes, and neighbour discovery where some IPv6 may. Judged are the headers of our own copy.
//!
//! Modules in reading order: [`rule`] (what it is told), [`file`](mod@file) (the three forms that is written in), [`verdict`] (what it says),
//! [`classifier`] and [`cache`] (which rule), [`session`] (the ways back), [`counters`].

pub mod cache;
pub mod classifier;
pub mod counters;
pub mod file;
pub mod rule;
pub mod session;
pub mod verdict;

use std::sync::Arc;

use ferrule_dataplane::capture::Remark;
use ferrule_dataplane::port::BURST;

use self::cache::Cache;
use self::classifier::{Classifier, Found};
use self::counters::Counters;
use self::rule::{Action, Policy, Tuple, Unmatched};
use self::session::{Opening, Session, class_of, classes};
use self::verdict::{Reason, Verdict};
use crate::burst::Burst;
use crate::flow::FlowKey;
use crate::fragments::{Fragments, PacketId, released};
use crate::function::{Disposition, Extra, Function, Side};
use crate::packet::{Family, Fragment, Headers, Link, Malformed, Packet, PlainPacket, parse, quoted};
use crate::sessions::{Sessions, Sought};

/// A firewall with its sessions.
#[derive(Debug)]
pub struct Firewall {
    link: Link,
    policy: Policy,
    permits_v6: bool,
    /// By side and family.
    classifiers: [[Classifier; 2]; 2],
    /// Which rules those are: sessions that other rules opened are judged again.
    generation: u32,
    sessions: Sessions<Session>,
    /// By the numbers of the sessions.
    openings: Vec<Opening>,
    cache: Cache,
    fragments: Fragments<Verdict>,
    counters: Arc<Counters>,
    /// The parts that the last verdict releases.
    released: Vec<Vec<u8>>,
    last: Verdict,
    /// Of the burst that is judged, those that are plain.
    plain: Vec<Option<PlainFlow>>,
}

/// What is known of a plain packet before it is judged.
#[derive(Clone, Copy, Debug)]
struct PlainFlow {
    sought: Sought,
    tcp_flags: u8,
}

impl Firewall {
    /// One that has seen nothing yet.
    pub fn new(link: Link, policy: Policy, sessions_max: usize) -> Self {
        Self {
            link,
            permits_v6: policy.permits_v6(),
            classifiers: compile(&policy),
            generation: 0,
            sessions: Sessions::new(sessions_max, &classes()),
            openings: Vec::new(),
            cache: Cache::default(),
            fragments: Fragments::new(),
            counters: Arc::new(Counters::new(policy.rules.iter().map(|rule| rule.name.as_str()), None)),
            policy,
            released: Vec::new(),
            last: Verdict::Held,
            plain: Vec::with_capacity(BURST),
        }
    }

    /// Other rules from now on. Sessions stay that they would open as well: each is judged again with its next packet.
    pub fn set_policy(&mut self, policy: Policy) {
        self.classifiers = compile(&policy);
        self.permits_v6 = policy.permits_v6();
        self.generation = self.generation.wrapping_add(1);
        self.cache.clear();
        // What became of first parts was said by rules that are gone. Packets whose parts are on the way are lost once.
        let held = std::mem::take(&mut self.fragments).held();
        let names = policy.rules.iter().map(|rule| rule.name.as_str());
        self.counters = Arc::new(Counters::new(names, Some(&self.counters)));
        self.counters.reasons[Reason::LostFragment as usize].add(held as u64);
        self.policy = policy;
    }

    /// The rules.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What it counts, until it has other rules.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Sessions that there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Judges a frame that came in on `side`, and counts it.
    pub fn judge(&mut self, side: Side, frame: &[u8], now_ms: u64) -> Verdict {
        let plain = self.plain(side, frame);
        self.judge_as(side, frame, plain.as_ref(), now_ms)
    }

    #[inline(always)]
    fn plain(&self, side: Side, frame: &[u8]) -> Option<PlainFlow> {
        let packet = PlainPacket::read(self.link, frame)?;
        let sought = self.sessions.sought(FlowKey::of_plain(side, &packet));
        Some(PlainFlow { sought, tcp_flags: packet.tcp_flags })
    }

    #[inline(always)]
    fn judge_as(&mut self, side: Side, frame: &[u8], plain: Option<&PlainFlow>, now_ms: u64) -> Verdict {
        let known = plain.and_then(|plain| self.known(side, plain, now_ms));
        let verdict = known.unwrap_or_else(|| self.judge_parsed(side, frame, now_ms));
        self.count(verdict, frame.len());
        verdict
    }

    /// What becomes of a packet whose flow is known: the same as if it were parsed.
    #[inline(always)]
    fn known(&mut self, side: Side, plain: &PlainFlow, now_ms: u64) -> Option<Verdict> {
        let PlainFlow { sought, tcp_flags } = plain;
        if let Some(rule) = self.pass_session(side, sought, *tcp_flags, now_ms) {
            return Some(Verdict::PassSession(rule));
        }
        let Some(rule) = self.cache.find(side, &sought.key, sought.hash)? else {
            return Some(by_default(self.policy.unmatched_on(side), Reason::Unmatched));
        };
        match self.policy.rules[rule as usize].action {
            Action::Permit => Some(Verdict::PassRule(rule)),
            Action::Deny => Some(Verdict::DropRule(rule)),
            // It opens a session.
            Action::Reflect => None,
        }
    }

    /// The rule of the session that a packet belongs to, which has seen it now.
    #[inline(always)]
    fn pass_session(&mut self, side: Side, sought: &Sought, tcp_flags: u8, now_ms: u64) -> Option<u32> {
        let id = self.sessions.find_sought(sought, now_ms)?;
        let rule = self.rule_of_session(id)?;
        let session = self.sessions.get(id);
        session.see(side, tcp_flags);
        let class = session.class();
        self.sessions.touch(id, class, now_ms);
        Some(rule)
    }

    fn judge_parsed(&mut self, side: Side, frame: &[u8], now_ms: u64) -> Verdict {
        match parse(self.link, frame) {
            Ok(Packet::Ip(headers)) => self.judge_ip(side, frame, &headers, now_ms),
            Ok(Packet::Arp) => Verdict::Pass(Reason::Arp),
            Ok(Packet::Other(_)) => by_default(self.policy.not_ip, Reason::NotIp),
            Err(Malformed::TinyFragment) => Verdict::Drop(Reason::TinyFragment),
            Err(_) => Verdict::Drop(Reason::Malformed),
        }
    }

    /// Forgets idle sessions, a few at a time.
    pub fn expire(&mut self, now_ms: u64) {
        self.sessions.expire(now_ms, EXPIRED_IN_A_ROUND);
        self.counters.sessions.set(self.sessions.len() as u64);
    }

    fn judge_ip(&mut self, side: Side, frame: &[u8], headers: &Headers, now_ms: u64) -> Verdict {
        match headers.fragment {
            Fragment::Whole => self.judge_packet(side, frame, headers, now_ms),
            Fragment::First { id } => {
                let verdict = self.judge_packet(side, frame, headers, now_ms);
                let held = self.fragments.decide(PacketId::new(side, headers, id), verdict, now_ms);
                for part in &held {
                    self.count(verdict, part.len());
                }
                if verdict.passes() {
                    self.released.extend(held);
                }
                verdict
            }
            Fragment::Later { id, .. } => {
                let packet = PacketId::new(side, headers, id);
                self.fragments.fate(&packet, now_ms).unwrap_or_else(|| {
                    let lost = self.fragments.hold(packet, frame, now_ms);
                    self.counters.reasons[Reason::LostFragment as usize].add(lost);
                    Verdict::Held
                })
            }
        }
    }

    #[inline]
    fn judge_packet(&mut self, side: Side, frame: &[u8], headers: &Headers, now_ms: u64) -> Verdict {
        let sought = self.sessions.sought(FlowKey::of(side, headers));
        if let Some(rule) = self.pass_session(side, &sought, headers.tcp_flags, now_ms) {
            return Verdict::PassSession(rule);
        }
        let Sought { key, hash, .. } = sought;
        if self.permits_v6 && headers.is_neighbour_discovery() {
            return Verdict::Pass(Reason::NeighbourDiscovery);
        }
        // The code of an ICMP query is no part of its key, and rules name codes.
        let cacheable = !headers.is_icmp();
        let known = if cacheable { self.cache.find(side, &key, hash) } else { None };
        let rule = known.unwrap_or_else(|| {
            let Found { rule, by_flags } = self.classify(side, &Tuple::of(headers));
            if cacheable && !by_flags {
                self.cache.put(side, key, hash, rule);
            }
            rule
        });
        let action = rule.map(|rule| (rule, self.policy.rules[rule as usize].action));
        match action {
            Some((rule, Action::Permit)) => Verdict::PassRule(rule),
            Some((rule, Action::Reflect)) => self.reflect(side, key, headers, rule, now_ms),
            _ if self.is_error_of_session(side, frame, headers, now_ms) => Verdict::Pass(Reason::IcmpError),
            Some((rule, Action::Deny)) => Verdict::DropRule(rule),
            None => by_default(self.policy.unmatched_on(side), Reason::Unmatched),
        }
    }

    /// Opens the way back.
    fn reflect(&mut self, side: Side, key: FlowKey, headers: &Headers, rule: u32, now_ms: u64) -> Verdict {
        if !Session::is_opened_by(headers) {
            return Verdict::PassRule(rule);
        }
        let session = Session::new(side, headers, rule, self.generation);
        let Some(id) = self.sessions.insert([key], class_of(headers.protocol), session, now_ms) else {
            return Verdict::Drop(Reason::SessionsFull);
        };
        let opening = Opening { side, tuple: Tuple::of(headers) };
        match self.openings.get_mut(id as usize) {
            Some(place) => *place = opening,
            // Numbers are given in turn.
            None => self.openings.push(opening),
        }
        Verdict::PassRule(rule)
    }

    /// The rule that a session lives by; none: the rules are others now, and none of them would open it, so it is gone.
    #[inline]
    fn rule_of_session(&mut self, id: u32) -> Option<u32> {
        let Session { generation, rule, .. } = *self.sessions.get(id);
        if generation == self.generation {
            return Some(rule);
        }
        let Opening { side, tuple } = self.openings[id as usize];
        let rule = self.classify(side, &tuple).rule;
        let rule = rule.filter(|rule| self.policy.rules[*rule as usize].action == Action::Reflect);
        if let Some(rule) = rule {
            let session = self.sessions.get(id);
            (session.generation, session.rule) = (self.generation, rule);
        } else {
            self.sessions.remove(id);
        }
        rule
    }

    fn is_error_of_session(&mut self, side: Side, frame: &[u8], headers: &Headers, now_ms: u64) -> bool {
        let Some(quoted) = quoted(frame, headers) else { return false };
        // It goes to whom the quoted packet came from.
        if quoted.source != headers.destination {
            return false;
        }
        let key = FlowKey::of_quoted(side, headers.family, &quoted);
        let hash = self.sessions.hash(&key);
        let id = self.sessions.find(&key, hash, now_ms);
        id.is_some_and(|id| self.rule_of_session(id).is_some())
    }

    fn classify(&self, side: Side, tuple: &Tuple) -> Found {
        self.classifiers[side.index()][tuple.family as usize].find(tuple)
    }

    /// What that makes of a frame; parts that were held for it leave with it.
    #[inline]
    fn dispose(&mut self, side: Side, verdict: Verdict, out: &mut Vec<Extra>) -> Disposition {
        if !self.released.is_empty() {
            out.extend(released(side.other(), std::mem::take(&mut self.released)));
        }
        if verdict.passes() { Disposition::Forward } else { Disposition::Drop }
    }

    #[inline]
    fn count(&self, verdict: Verdict, length: usize) {
        match verdict {
            Verdict::PassRule(rule) | Verdict::PassSession(rule) | Verdict::DropRule(rule) => {
                let counters = &self.counters.rules[rule as usize];
                counters.frames.add(1);
                counters.bytes.add(length as u64);
            }
            Verdict::Pass(reason) | Verdict::Drop(reason) => self.counters.reasons[reason as usize].add(1),
            Verdict::Held => {}
        }
    }
}

impl Function for Firewall {
    fn frame(&mut self, side: Side, frame: &mut [u8], now_ms: u64, out: &mut Vec<Extra>) -> Disposition {
        self.last = self.judge(side, frame, now_ms);
        self.dispose(side, self.last, out)
    }

    /// Step by step for all of them, so that they wait for memory at the same time.
    fn burst(&mut self, side: Side, burst: &mut Burst, now_ms: u64, out: &mut Vec<Extra>) {
        let mut flows = std::mem::take(&mut self.plain);
        flows.extend((0..burst.len()).map(|number| self.plain(side, burst.frame(number))));
        for flow in flows.iter_mut().flatten() {
            self.sessions.seek(&mut flow.sought, now_ms);
        }
        for (number, flow) in flows.iter().enumerate() {
            let verdict = self.judge_as(side, burst.frame(number), flow.as_ref(), now_ms);
            let disposition = self.dispose(side, verdict, out);
            burst.dispose(number, disposition, out.len());
        }
        flows.clear();
        self.plain = flows;
    }

    fn remark(&self) -> Remark<'_> {
        // New rules may have come since, and fewer.
        let rule = |rule: u32| self.policy.rules.get(rule as usize).map_or("", |rule| rule.name.as_str());
        let (word, rule) = match self.last {
            Verdict::PassRule(number) | Verdict::DropRule(number) => ("rule", rule(number)),
            Verdict::PassSession(number) => ("session", rule(number)),
            Verdict::Pass(reason) | Verdict::Drop(reason) => (reason.word(), ""),
            Verdict::Held => ("held", ""),
        };
        Remark { dropped: matches!(self.last, Verdict::DropRule(_) | Verdict::Drop(_)), word, rule }
    }

    fn tick(&mut self, now_ms: u64) {
        self.expire(now_ms);
    }
}

fn compile(policy: &Policy) -> [[Classifier; 2]; 2] {
    Side::BOTH.map(|side| [Family::V4, Family::V6].map(|family| Classifier::new(&policy.rules, side, family)))
}

fn by_default(unmatched: Unmatched, reason: Reason) -> Verdict {
    match unmatched {
        Unmatched::Deny => Verdict::Drop(reason),
        Unmatched::Permit => Verdict::Pass(reason),
    }
}

/// Sessions that are looked at in one round of [`Firewall::expire`], of each class.
const EXPIRED_IN_A_ROUND: usize = 64;

#[cfg(test)]
mod tests;
