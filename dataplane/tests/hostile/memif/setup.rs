//! The memory of a hostile client, and its hands in it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ferrule_dataplane::port::memif::message::{AddRing, Direction, MemifMessage};
use ferrule_ffi::region::{Index, Region, Table};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::memif::peer::Peer;
use crate::testbed::Testbed;

/// One file with all rings in front and a buffer for each slot behind.
pub struct HostileSetup {
    pub file: OwnedFd,
    pub len: u64,
    pub memory: Region,
    pub log2: u8,
    pub pairs: u16,
    /// One for each ring, S2M first.
    pub eventfds: Vec<OwnedFd>,
}

/// A ring as its owner sees it.
pub struct Ring {
    pub head: Index,
    pub tail: Index,
    pub flags: Index,
    pub table: Table,
    pub size: u16,
}

impl HostileSetup {
    /// One pair of rings of 256 slots, in a file that cannot be sealed.
    pub fn new() -> Self {
        Self::sized(1, 8)
    }

    pub fn sized(pairs: u16, log2: u8) -> Self {
        Self::in_file(memfd_create(c"setup", MFdFlags::MFD_CLOEXEC).unwrap(), pairs, log2)
    }

    /// In a file of the caller's choice, which is made as long as it has to be.
    pub fn in_file(file: OwnedFd, pairs: u16, log2: u8) -> Self {
        let rings = 2 * u64::from(pairs);
        let len = (buffers_at(pairs, log2) + ((rings * BUFFER) << log2)).next_multiple_of(2 << 20);
        ftruncate(&file, len.cast_signed()).unwrap();
        let memory = Region::map(file.try_clone().unwrap(), len, &Arc::default()).unwrap();
        let eventfds = (0..rings).map(|_| EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into()).collect();
        let setup = Self { file, len, memory, log2, pairs, eventfds };
        for number in 0..2 * pairs {
            setup.memory.write_u32(setup.ring_at(number), COOKIE).unwrap();
        }
        (0..pairs).for_each(|pair| setup.offer(pair));
        setup
    }

    /// Connects with it.
    pub fn join(&self, testbed: &Testbed) -> Peer {
        let peer = self.announce(testbed);
        peer.finish();
        peer
    }

    /// Says everything but CONNECT, as it should be said.
    pub fn announce(&self, testbed: &Testbed) -> Peer {
        let peer = Peer::init(testbed);
        peer.region(0, self.len, &self.file);
        assert_eq!(peer.hear(), Some(MemifMessage::Ack));
        for number in 0..2 * self.pairs {
            peer.say(&MemifMessage::AddRing(self.ring(number)), &[self.eventfds[usize::from(number)].as_fd()]);
            assert_eq!(peer.hear(), Some(MemifMessage::Ack));
        }
        peer
    }

    /// How ring `number` is announced: S2M first.
    pub fn ring(&self, number: u16) -> AddRing {
        let direction = if number < self.pairs { Direction::S2M } else { Direction::M2S };
        AddRing {
            direction,
            index: number % self.pairs,
            region: 0,
            offset: self.ring_at(number) as u32,
            log2_size: self.log2,
            private_header: 0,
        }
    }

    /// What it sends with.
    pub fn s2m(&self) -> Ring {
        self.hands(0)
    }

    /// What it receives with.
    pub fn m2s(&self) -> Ring {
        self.hands(self.pairs)
    }

    /// The place of the buffer of `slot` of ring `number`.
    pub fn buffer(&self, number: u16, slot: u16) -> u32 {
        let before = (u64::from(number) << self.log2) + u64::from(slot & ((1 << self.log2) - 1));
        (buffers_at(self.pairs, self.log2) + BUFFER * before) as u32
    }

    /// Offers every buffer of an M2S ring.
    fn offer(&self, pair: u16) {
        let number = self.pairs + pair;
        let ring = self.hands(number);
        for slot in 0..ring.size {
            ring.table.write(slot, descriptor(0, 0, BUFFER as u32, self.buffer(number, slot)));
        }
        ring.head.store(ring.size);
    }

    fn hands(&self, number: u16) -> Ring {
        let at = self.ring_at(number);
        Ring {
            flags: self.memory.index(at + 4).unwrap(),
            head: self.memory.index(at + 6).unwrap(),
            tail: self.memory.index(at + 64).unwrap(),
            table: self.memory.table(at + HEADER, 1 << self.log2).unwrap(),
            size: 1 << self.log2,
        }
    }

    fn ring_at(&self, number: u16) -> u64 {
        u64::from(number) * ring_len(self.log2)
    }
}

impl Ring {
    /// Sends one frame, lawfully, if there is room.
    pub fn send(&self, offset: u32, length: u32) {
        let head = self.head.load();
        if head.wrapping_sub(self.tail.load()) < self.size {
            self.table.write(head, descriptor(0, 0, length, offset));
            self.head.store(head.wrapping_add(1));
        }
    }

    /// Publishes a first frame of these descriptors.
    pub fn publish(&self, descriptors: &[[u64; 2]]) {
        for (slot, words) in descriptors.iter().enumerate() {
            self.table.write(slot as u16, *words);
        }
        self.head.store(descriptors.len() as u16);
    }
}

/// A descriptor as it lies in memory.
pub fn descriptor(flags: u16, region: u16, length: u32, offset: u32) -> [u64; 2] {
    [u64::from(flags) | u64::from(region) << 16 | u64::from(length) << 32, u64::from(offset)]
}

fn buffers_at(pairs: u16, log2: u8) -> u64 {
    (2 * u64::from(pairs) * ring_len(log2)).next_multiple_of(4096)
}

fn ring_len(log2: u8) -> u64 {
    HEADER + (16u64 << log2).next_multiple_of(64)
}

/// The frame goes on in the next slot.
pub const NEXT: u16 = 1;
/// Bytes of a buffer.
pub const BUFFER: u64 = 2048;
pub const COOKIE: u32 = 0x03E3_1F20;
const HEADER: u64 = 128;
