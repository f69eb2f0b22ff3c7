//! Who has which MAC address on one side, and the frames that wait until that is known.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

use foldhash::fast::RandomState;

use super::settings::NatInterface;

/// The neighbours of one interface.
#[derive(Debug)]
pub struct Neighbours {
    interface: NatInterface,
    known: HashMap<u32, Neighbour, RandomState>,
    /// Frames without their destination, in the order they came.
    waiting: VecDeque<WaitingFrame>,
    /// Those that waited in vain.
    lost: u64,
    /// When a neighbour was last asked for.
    asked: HashMap<u32, u64, RandomState>,
}

#[derive(Debug)]
struct WaitingFrame {
    for_whom: u32,
    until_ms: u64,
    frame: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    mac: [u8; 6],
    seen_ms: u64,
}

impl Neighbours {
    /// Of this interface; nobody is known.
    pub fn new(interface: NatInterface) -> Self {
        Self { interface, known: HashMap::default(), waiting: VecDeque::new(), lost: 0, asked: HashMap::default() }
    }

    /// An ARP packet came in: whoever sent it says where they are. Frames that waited for that.
    pub fn learn(&mut self, frame: &[u8], now_ms: u64) -> Vec<Vec<u8>> {
        let Some(arp) = frame.get(ETHERNET..ETHERNET + ARP_LEN) else { return Vec::new() };
        let address = u32::from_be_bytes([arp[14], arp[15], arp[16], arp[17]]);
        let mac = [arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]];
        let known = self.known.contains_key(&address);
        let is_here = self.interface.address.contains(&Ipv4Addr::from(address));
        // Who is not asked for and asks for nobody of ours is not remembered: a flood must not push others out.
        let wanted =
            self.asked.contains_key(&address) || known || u32::from(self.interface.address.addr()) == target(arp);
        if arp[..6] != [0, 1, 8, 0, 6, 4]
            || !is_here
            || mac[0] & 1 != 0
            || address == u32::from(self.interface.address.addr())
            || !wanted
        {
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

    /// Writes both MAC addresses of a frame to `address`. `false`: it is kept until that neighbour is known. `ask` is the request to be
    /// sent, if one is due.
    pub fn address(&mut self, frame: &mut [u8], address: u32, now_ms: u64) -> (bool, Option<Vec<u8>>) {
        frame[6..12].copy_from_slice(&self.interface.mac.0);
        let known = self.known.get(&address).copied();
        let ask = match known {
            Some(neighbour) if now_ms < neighbour.seen_ms + FRESH_MS => None,
            _ => self.ask(address, now_ms),
        };
        if let Some(neighbour) = known.filter(|neighbour| now_ms < neighbour.seen_ms + STALE_MS) {
            frame[..6].copy_from_slice(&neighbour.mac);
            return (true, ask);
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(WaitingFrame { for_whom: address, until_ms: now_ms + WAIT_MS, frame: frame.to_vec() });
        (false, ask)
    }

    /// A request for a neighbour, no more often than once a second.
    fn ask(&mut self, address: u32, now_ms: u64) -> Option<Vec<u8>> {
        if self.asked.get(&address).is_some_and(|asked| now_ms < asked + ASK_AGAIN_MS) {
            return None;
        }
        if self.asked.len() >= NEIGHBOURS_MAX {
            self.asked.clear();
        }
        self.asked.insert(address, now_ms);
        let (mac, own) = (self.interface.mac.0, self.interface.address.addr().octets());
        let header = [0, 1, 8, 0, 6, 4, 0, 1];
        Some([&[0xff; 6][..], &mac, &[8, 6], &header, &mac, &own, &[0; 6], &address.to_be_bytes()].concat())
    }
}

fn target(arp: &[u8]) -> u32 {
    u32::from_be_bytes([arp[24], arp[25], arp[26], arp[27]])
}

const ETHERNET: usize = 14;
const ARP_LEN: usize = 28;
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
