//! Who has which MAC address on one side of a router, and the frames that wait until that is known. How a neighbour is asked, and what its answer looks
//! like, is its function's: ARP, or neighbour discovery.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use foldhash::fast::RandomState;

/// The neighbours of one interface.
#[derive(Debug)]
pub struct Neighbours<A> {
    own_mac: [u8; 6],
    known: HashMap<A, Neighbour, RandomState>,
    /// Frames without their destination, in the order they came.
    waiting: VecDeque<WaitingFrame<A>>,
    /// Those that waited in vain.
    lost: u64,
    /// When a neighbour was last asked for.
    asked: HashMap<A, u64, RandomState>,
}

/// What somebody says of where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told<A> {
    /// Its address, which is one of this side's network and not our own.
    pub address: A,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Whether it asks for us.
    pub asks_us: bool,
}

#[derive(Debug)]
struct WaitingFrame<A> {
    for_whom: A,
    until_ms: u64,
    frame: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    mac: [u8; 6],
    seen_ms: u64,
}

impl<A: Copy + Eq + Hash> Neighbours<A> {
    /// Of an interface with this MAC address; nobody is known.
    pub fn new(own_mac: [u8; 6]) -> Self {
        Self { own_mac, known: HashMap::default(), waiting: VecDeque::new(), lost: 0, asked: HashMap::default() }
    }

    /// Somebody says where it is. Frames that waited for that.
    pub fn learn(&mut self, Told { address, mac, asks_us }: Told<A>, now_ms: u64) -> Vec<Vec<u8>> {
        let known = self.known.contains_key(&address);
        // Who is not asked for and asks for nobody of ours is not remembered: a flood must not push others out.
        let wanted = asks_us || known || self.asked.contains_key(&address);
        if mac[0] & 1 != 0 || !wanted {
            return Vec::new();
        }
        if !known && self.known.len() >= NEIGHBOURS_MAX {
            self.known.clear();
        }
        self.known.insert(address, Neighbour { mac, seen_ms: now_ms });
        self.asked.remove(&address);
        self.forget(now_ms);
        let (ours, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.for_whom == address);
        self.waiting = others;
        ours.into_iter()
            .map(|WaitingFrame { mut frame, .. }| {
                frame[..6].copy_from_slice(&mac);
                frame
            })
            .collect()
    }

    /// Forgets frames that have waited for long enough.
    pub fn forget(&mut self, now_ms: u64) {
        while self.waiting.front().is_some_and(|waiting| waiting.until_ms <= now_ms) {
            self.waiting.pop_front();
            self.lost += 1;
        }
    }

    /// How many frames waited in vain since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Writes both MAC addresses of a frame to `address`. The first `false`: it is kept until that neighbour is known. The second: whether the
    /// neighbour is to be asked for.
    pub fn address(&mut self, frame: &mut [u8], address: A, now_ms: u64) -> (bool, bool) {
        frame[6..12].copy_from_slice(&self.own_mac);
        let known = self.known.get(&address).copied();
        let is_fresh = known.is_some_and(|neighbour| now_ms < neighbour.seen_ms + FRESH_MS);
        let asks = !is_fresh && self.may_ask(address, now_ms);
        if let Some(neighbour) = known.filter(|neighbour| now_ms < neighbour.seen_ms + STALE_MS) {
            frame[..6].copy_from_slice(&neighbour.mac);
            return (true, asks);
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(WaitingFrame { for_whom: address, until_ms: now_ms + WAIT_MS, frame: frame.to_vec() });
        (false, asks)
    }

    /// A neighbour is asked for no more often than once a second.
    fn may_ask(&mut self, address: A, now_ms: u64) -> bool {
        if self.asked.get(&address).is_some_and(|asked| now_ms < asked + ASK_AGAIN_MS) {
            return false;
        }
        if self.asked.len() >= NEIGHBOURS_MAX {
            self.asked.clear();
        }
        self.asked.insert(address, now_ms);
        true
    }
}

/// Of one side.
const NEIGHBOURS_MAX: usize = 4096;
/// Frames of one side.
const WAITING_MAX: usize = 64;
/// After that a neighbour is asked whether it is there still, and used meanwhile.
const FRESH_MS: u64 = 30_000;
/// After that it is not used any more.
const STALE_MS: u64 = 300_000;
const ASK_AGAIN_MS: u64 = 1000;
/// As long as Linux asks.
const WAIT_MS: u64 = 3000;
