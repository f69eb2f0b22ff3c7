//! What each address of the pool has in use, and what has gone through it.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use foldhash::fast::RandomState;

use super::session::NatSession;
use crate::counter::Counter;
use crate::function::Side;

/// What has been counted of each address of a pool.
#[derive(Debug, Default)]
pub struct PoolCounters {
    ranges: Vec<RangeInclusive<u32>>,
    /// In the order of the ranges.
    counters: Vec<AddressCounters>,
}

/// What has been counted of one address.
#[derive(Debug, Default)]
pub struct AddressCounters {
    /// Sessions that there are.
    pub sessions: Counter,
    /// Ports and identifiers that they use: sessions to different destinations may use one.
    pub ports: Counter,
    /// Packets that were translated, by the side they came in on.
    pub packets: [Counter; 2],
    /// Their bytes, without those of Ethernet.
    pub bytes: [Counter; 2],
    /// Packets that would have opened a session, and found no port or no room.
    pub refused: Counter,
}

impl PoolCounters {
    /// Of these addresses. What grows goes on for those that were there before.
    pub fn new(ranges: &[RangeInclusive<u32>], before: &Self) -> Self {
        let go_on = |address| {
            let counters = AddressCounters::default();
            if let Some(old) = before.of(address) {
                counters.growing().into_iter().zip(old.growing()).for_each(|(counter, old)| counter.set(old.get()));
            }
            counters
        };
        Self { ranges: ranges.to_vec(), counters: ranges.iter().cloned().flatten().map(go_on).collect() }
    }

    /// Of an address; none: the pool has none such.
    pub fn of(&self, address: u32) -> Option<&AddressCounters> {
        let mut before = 0;
        for range in &self.ranges {
            if range.contains(&address) {
                return self.counters.get(before + (address - range.start()) as usize);
            }
            before += (range.end() - range.start()) as usize + 1;
        }
        None
    }

    /// The addresses that anybody has used or wanted.
    pub fn used(&self) -> impl Iterator<Item = (u32, &AddressCounters)> {
        let all = self.ranges.iter().cloned().flatten().zip(&self.counters);
        all.filter(|(_, counters)| {
            let AddressCounters { sessions, .. } = counters;
            counters.growing().into_iter().chain([sessions]).any(|counter| counter.get() > 0)
        })
    }
}

impl AddressCounters {
    /// A packet of so many bytes was translated, which came in on `side`.
    pub(super) fn count(&self, side: Side, bytes: usize) {
        self.packets[side.index()].add(1);
        self.bytes[side.index()].add(bytes as u64);
    }

    /// Those that never shrink.
    fn growing(&self) -> [&Counter; 5] {
        let Self { packets: [out, back], bytes: [bytes_out, bytes_back], refused, .. } = self;
        [out, back, bytes_out, bytes_back, refused]
    }
}

/// How many sessions have each port.
#[derive(Debug, Default)]
pub struct PortUse(HashMap<(u32, u16, u8), u32, RandomState>);

impl PortUse {
    /// Tells what there is to counters that know nothing of it yet.
    pub fn tell(&self, pool: &PoolCounters) {
        for (&(address, ..), &count) in &self.0 {
            if let Some(address) = pool.of(address) {
                address.sessions.add(count.into());
                address.ports.add(1);
            }
        }
    }

    /// A session was opened.
    pub fn open(&mut self, session: &NatSession, pool: &PoolCounters) {
        let count = self.0.entry(port_of(session)).or_default();
        *count += 1;
        if let Some(address) = pool.of(session.outside.0) {
            address.sessions.add(1);
            address.ports.add(u64::from(*count == 1));
        }
    }

    /// One has ended.
    pub fn close(&mut self, session: &NatSession, pool: &PoolCounters) {
        let Some(count) = self.0.get_mut(&port_of(session)) else { return };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.0.remove(&port_of(session));
        }
        if let Some(address) = pool.of(session.outside.0) {
            address.sessions.subtract(1);
            address.ports.subtract(u64::from(is_last));
        }
    }
}

fn port_of(session: &NatSession) -> (u32, u16, u8) {
    (session.outside.0, session.outside.1, session.protocol)
}
