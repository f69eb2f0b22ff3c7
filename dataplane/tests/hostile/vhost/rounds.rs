//! Frames in and out of a hostile frontend's memory, by the rules, without end.

use std::thread;

use crate::held::Repeat;
use crate::vhost::setup::{AVAIL, HEADER, HostileSetup, Packed, Split, USED, WRITE, packed, split};

/// Sends frames on the first transmit ring.
pub fn sender_of(setup: &HostileSetup) -> Repeat {
    let buffers: Vec<u64> = (0..setup.shape.size).map(|slot| setup.buffer(1, slot)).collect();
    if setup.shape.is_packed() {
        let ring = setup.packed(1);
        let mut round = Round { next: (0, true), used: (0, true) };
        let mut waiting = 0;
        return Repeat::start(move || {
            while waiting < ring.size {
                let slot = round.next.0;
                round.give(&ring, packed(buffers[slot as usize], HEADER + 60 + slot, slot as u16, 0));
                waiting += 1;
            }
            while waiting > 0 && round.takes_back(&ring) {
                waiting -= 1;
            }
            thread::yield_now();
        });
    }
    let ring = setup.split(1);
    for slot in 0..u32::from(ring.size) {
        ring.desc.write(slot, split(buffers[slot as usize], HEADER + 60 + slot, 0, 0));
        ring.avail.write(2 + slot, slot as u16);
    }
    Repeat::start(move || refill(&ring))
}

/// Gives every filled buffer of the first receive ring back.
pub fn reader_of(setup: &HostileSetup) -> Repeat {
    if setup.shape.is_packed() {
        let (ring, len) = (setup.packed(0), setup.shape.buffer);
        let buffers: Vec<u64> = (0..setup.shape.size).map(|slot| setup.buffer(0, slot)).collect();
        let mut round = Round { next: (0, false), used: (0, true) };
        return Repeat::start(move || {
            while round.takes_back(&ring) {
                let slot = round.next.0;
                round.give(&ring, packed(buffers[slot as usize], len, slot as u16, WRITE));
            }
            thread::yield_now();
        });
    }
    let ring = setup.split(0);
    Repeat::start(move || refill(&ring))
}

/// Makes everything available again that was used. Entries and descriptors are what they always were.
fn refill(ring: &Split) {
    ring.avail_index.store(ring.used_index.load().wrapping_add(ring.size));
    thread::yield_now();
}

/// Where a driver is in a packed ring: slots and wrap counters.
struct Round {
    /// The next descriptor to make available.
    next: (u32, bool),
    /// The next one to come back.
    used: (u32, bool),
}

impl Round {
    fn give(&mut self, ring: &Packed, [address, second]: [u64; 2]) {
        let (slot, wrap) = self.next;
        ring.desc.write_first(slot, address);
        ring.desc.store_second(slot, second | u64::from(if wrap { AVAIL } else { USED }) << 48);
        self.next = after(self.next, ring.size);
    }

    fn takes_back(&mut self, ring: &Packed) -> bool {
        let (slot, wrap) = self.used;
        let flags = (ring.desc.load_second(slot) >> 48) as u16 & (AVAIL | USED);
        let used = flags == if wrap { AVAIL | USED } else { 0 };
        if used {
            self.used = after(self.used, ring.size);
        }
        used
    }
}

fn after((slot, wrap): (u32, bool), size: u32) -> (u32, bool) {
    if slot + 1 == size { (0, !wrap) } else { (slot + 1, wrap) }
}
