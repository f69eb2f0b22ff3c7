//! Later fragments share the fate of the first one, which alone has ports.
//!
//! One that comes before the first is held for a while. What is remembered and what is held is bounded: a flood costs its own frames.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use crate::function::{Extra, Side};
use crate::packet::{Family, Headers};

/// Packets that are coming in parts, and what `F` becomes of each.
#[derive(Debug)]
pub struct Fragments<F> {
    fates: HashMap<PacketId, (F, u64), RandomState>,
    order: VecDeque<(PacketId, u64)>,
    held: VecDeque<Held>,
}

/// By what the parts of a packet are known (RFC 791, RFC 8200). The side they come from tells two conversations apart, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketId {
    side: Side,
    family: Family,
    source: u128,
    destination: u128,
    /// In IPv6, parts may name different headers that come next.
    protocol: u8,
    id: u32,
}

impl PacketId {
    /// Of a fragment with this identification that came in on `side`.
    pub fn new(side: Side, headers: &Headers, id: u32) -> Self {
        let Headers { family, source, destination, protocol, .. } = *headers;
        let protocol = if family == Family::V4 { protocol } else { 0 };
        Self { side, family, source, destination, protocol, id }
    }
}

#[derive(Debug)]
struct Held {
    packet: PacketId,
    until_ms: u64,
    frame: Vec<u8>,
}

impl<F: Copy> Fragments<F> {
    /// None yet.
    pub fn new() -> Self {
        Self { fates: HashMap::default(), order: VecDeque::new(), held: VecDeque::new() }
    }

    /// The first part came, and this became of it. Parts that were held for it are returned, in the order they came.
    pub fn decide(&mut self, packet: PacketId, fate: F, now_ms: u64) -> Vec<Vec<u8>> {
        self.forget(now_ms);
        let until_ms = now_ms + REMEMBERED_MS;
        if self.fates.insert(packet, (fate, until_ms)).is_none() {
            self.order.push_back((packet, until_ms));
        }
        if self.order.len() > PACKETS_MAX
            && let Some((oldest, _)) = self.order.pop_front()
        {
            self.fates.remove(&oldest);
        }
        let (ours, others) = std::mem::take(&mut self.held).into_iter().partition(|held| held.packet == packet);
        self.held = others;
        let ours: VecDeque<Held> = ours;
        ours.into_iter().map(|held| held.frame).collect()
    }

    /// What became of the first part; none: it did not come, or long ago.
    pub fn fate(&self, packet: &PacketId, now_ms: u64) -> Option<F> {
        self.fates.get(packet).filter(|(_, until_ms)| now_ms < *until_ms).map(|(fate, _)| *fate)
    }

    /// Keeps a part until the first one comes. How many parts that pushes out.
    pub fn hold(&mut self, packet: PacketId, frame: &[u8], now_ms: u64) -> u64 {
        let lost = self.forget(now_ms);
        self.held.push_back(Held { packet, until_ms: now_ms + HELD_MS, frame: frame.to_vec() });
        let surplus = self.held.len().saturating_sub(HELD_MAX);
        self.held.drain(..surplus);
        lost + surplus as u64
    }

    /// Parts that are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Packets whose first part is remembered.
    pub fn remembered(&self) -> usize {
        self.fates.len()
    }

    /// Forgets what is old. How many parts were held in vain.
    fn forget(&mut self, now_ms: u64) -> u64 {
        while let Some(&(packet, until_ms)) = self.order.front() {
            match self.fates.get(&packet) {
                // Another packet of this name came later.
                Some(&(_, later_ms)) if later_ms > until_ms && until_ms <= now_ms => {
                    self.order.pop_front();
                    self.order.push_back((packet, later_ms));
                }
                _ if until_ms <= now_ms => {
                    self.order.pop_front();
                    self.fates.remove(&packet);
                }
                _ => break,
            }
        }
        let before = self.held.len();
        while self.held.front().is_some_and(|held| held.until_ms <= now_ms) {
            self.held.pop_front();
        }
        (before - self.held.len()) as u64
    }
}

impl<F: Copy> Default for Fragments<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Parts that were held leave as they came.
pub fn released(to: Side, frames: Vec<Vec<u8>>) -> impl Iterator<Item = Extra> {
    frames.into_iter().map(move |frame| Extra { to, frame })
}

/// Packets in parts that are remembered at a time.
pub const PACKETS_MAX: usize = 4096;
/// How long a packet is remembered: more than the 2 s that RFC 4787, requirement 14, and RFC 6146 want; Linux puts them together for 30 s.
const REMEMBERED_MS: u64 = 30_000;
/// Parts that are held at a time: some packets of 64 KiB.
pub const HELD_MAX: usize = 256;
const HELD_MS: u64 = 2000;
