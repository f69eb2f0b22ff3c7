//! The memory of a hostile frontend, and its hands in it.
//!
//! One file, one region. The parts of each ring are on pages of their own, a buffer for each descriptor behind them.
//! Guest addresses and user addresses differ from each other and from offsets in the file.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::MemoryRegion;
use ferrule_dataplane::port::vhost_user::message::{VhostUserRequest, VringAddress, VringFile, VringState};
use ferrule_ffi::array::Array;
use ferrule_ffi::region::{Index, Region};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::common::eventually;
use crate::testbed::Testbed;
use crate::vhost::peer::Peer;

pub struct HostileSetup {
    pub file: OwnedFd,
    pub memory: Region,
    pub shape: Shape,
    /// Of each ring: what we ring, what we are rung by.
    pub eventfds: Vec<[OwnedFd; 2]>,
}

/// What rings look like.
#[derive(Clone, Copy)]
pub struct Shape {
    pub features: Features,
    /// Descriptors of each ring.
    pub size: u32,
    pub pairs: u16,
    /// Bytes of each buffer.
    pub buffer: u32,
}

/// A split ring as its driver sees it.
pub struct Split {
    pub size: u16,
    pub desc: Array<[u64; 2]>,
    /// Flags, index, entries, used event.
    pub avail: Array<u16>,
    pub avail_index: Index,
    pub used_flags: Index,
    pub used_index: Index,
}

/// A packed ring as its driver sees it.
pub struct Packed {
    pub size: u32,
    pub desc: Array<[u64; 2]>,
    pub driver_event: Array<u32>,
    pub device_event: Array<u32>,
}

impl Shape {
    /// Split rings of 256 descriptors, one pair, frames over several buffers.
    pub fn split() -> Self {
        let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::PROTOCOL_FEATURES;
        Self { features: features | Features::INDIRECT_DESC, size: 256, pairs: 1, buffer: 2048 }
    }

    /// The same in packed rings.
    pub fn packed() -> Self {
        Self::split().with(Features::RING_PACKED)
    }

    pub fn with(self, features: Features) -> Self {
        Self { features: self.features | features, ..self }
    }

    pub fn without(self, features: Features) -> Self {
        Self { features: self.features.without(features), ..self }
    }

    pub fn is_packed(&self) -> bool {
        self.features.has(Features::RING_PACKED)
    }

    /// Where the available ring, the used ring and the buffers begin in a ring's memory, and where it ends.
    fn parts(&self) -> [u64; 4] {
        let size = u64::from(self.size);
        let avail = (16 * size).next_multiple_of(PAGE);
        let used = avail + (6 + 2 * size).next_multiple_of(PAGE);
        let buffers = used + (6 + 8 * size).next_multiple_of(PAGE);
        [avail, used, buffers, (buffers + size * u64::from(self.buffer)).next_multiple_of(PAGE)]
    }
}

impl HostileSetup {
    /// With split rings, in a file that cannot be sealed.
    pub fn new() -> Self {
        Self::of(Shape::split())
    }

    pub fn of(shape: Shape) -> Self {
        Self::in_file(memfd_create(c"setup", MFdFlags::MFD_CLOEXEC).unwrap(), shape)
    }

    /// In a file of the caller's choice, which is made as long as it has to be.
    pub fn in_file(file: OwnedFd, shape: Shape) -> Self {
        let [.., ring] = shape.parts();
        let len = (2 * u64::from(shape.pairs) * ring).next_multiple_of(2 << 20);
        ftruncate(&file, len.cast_signed()).unwrap();
        let memory = Region::map(file.try_clone().unwrap(), len, &Arc::default()).unwrap();
        let eventfd = || OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
        let eventfds = (0..2 * shape.pairs).map(|_| [eventfd(), eventfd()]).collect();
        let setup = Self { file, memory, shape, eventfds };
        (0..setup.rings()).step_by(2).for_each(|index| setup.offer(index));
        setup
    }

    pub fn rings(&self) -> u32 {
        2 * u32::from(self.shape.pairs)
    }

    /// Its row of the memory table.
    pub fn row(&self) -> MemoryRegion {
        MemoryRegion { guest: GUEST, size: self.memory.len() as u64, user: USER, offset: 0 }
    }

    /// Where ring `index` is.
    pub fn address(&self, index: u32) -> VringAddress {
        let [avail, used, ..] = self.shape.parts();
        let at = USER + self.ring_at(index);
        let log_guest = at + used - USER + GUEST;
        VringAddress { index, log: false, desc: at, used: at + used, avail: at + avail, log_guest }
    }

    /// The guest address of the buffer of descriptor `slot` of ring `index`.
    pub fn buffer(&self, index: u32, slot: u32) -> u64 {
        let [_, _, buffers, _] = self.shape.parts();
        GUEST + self.ring_at(index) + buffers + u64::from(slot % self.shape.size) * u64::from(self.shape.buffer)
    }

    /// Connects and agrees on features.
    pub fn greet(&self, testbed: &Testbed) -> Peer {
        let peer = Peer::connect(testbed);
        self.negotiate(&peer);
        peer
    }

    /// Agrees on features.
    pub fn negotiate(&self, peer: &Peer) {
        peer.say(&VhostUserRequest::SetOwner, &[]);
        let offered = Features(peer.ask(&VhostUserRequest::GetFeatures, &[]).value());
        assert!(offered.has(self.shape.features), "{offered:x?} are offered, {:x?} wanted", self.shape.features);
        let protocol = peer.ask(&VhostUserRequest::GetProtocolFeatures, &[]).value();
        peer.say(&VhostUserRequest::SetProtocolFeatures(protocol), &[]);
        peer.say(&VhostUserRequest::SetFeatures(self.shape.features.0), &[]);
    }

    pub fn say_memory(&self, peer: &Peer) {
        peer.say(&VhostUserRequest::SetMemTable(vec![self.row()]), &[self.file.as_fd()]);
    }

    /// Says everything of a ring, and starts it.
    pub fn say_ring(&self, peer: &Peer, index: u32) {
        self.say_place(peer, index);
        self.start(peer, index);
    }

    /// Says how long a ring is and where it lies.
    pub fn say_place(&self, peer: &Peer, index: u32) {
        let first = if self.shape.is_packed() { 0x8000_8000 } else { 0 };
        peer.say(&VhostUserRequest::SetVringNum(VringState { index, num: self.shape.size }), &[]);
        peer.say(&VhostUserRequest::SetVringBase(VringState { index, num: first }), &[]);
        peer.say(&VhostUserRequest::SetVringAddr(self.address(index)), &[]);
    }

    /// Starts a ring.
    pub fn start(&self, peer: &Peer, index: u32) {
        let [kick, call] = &self.eventfds[index as usize];
        let ring = VringFile { index: index as u8, has_file: true };
        peer.say(&VhostUserRequest::SetVringCall(ring), &[call.as_fd()]);
        peer.say(&VhostUserRequest::SetVringKick(ring), &[kick.as_fd()]);
    }

    /// Says everything but that rings carry frames.
    pub fn announce(&self, testbed: &Testbed) -> Peer {
        let peer = Peer::connect(testbed);
        self.announce_to(&peer);
        peer
    }

    pub fn announce_to(&self, peer: &Peer) {
        self.negotiate(peer);
        self.say_memory(peer);
        (0..self.rings()).for_each(|index| self.say_ring(peer, index));
    }

    pub fn enable(&self, peer: &Peer) {
        (0..self.rings()).for_each(|index| {
            peer.say(&VhostUserRequest::SetVringEnable(VringState { index, num: 1 }), &[]);
        });
        peer.say(&VhostUserRequest::SetStatus(DRIVER_OK), &[]);
    }

    /// Connects with it, and waits until frames can cross.
    pub fn join(&self, testbed: &Testbed) -> Peer {
        let peer = self.announce(testbed);
        self.enable(&peer);
        assert!(peer.is_heard());
        eventually("the wire is up", || testbed.engine.wire(&testbed.wire).unwrap().is_up());
        peer
    }

    /// A split ring.
    pub fn split(&self, index: u32) -> Split {
        let (at, [avail, used, ..]) = (self.ring_at(index), self.shape.parts());
        Split {
            // At most 2^15.
            size: self.shape.size as u16,
            desc: self.array(at, self.shape.size),
            avail: self.array(at + avail, 3 + self.shape.size),
            avail_index: self.memory.index(at + avail + 2).unwrap(),
            used_flags: self.memory.index(at + used).unwrap(),
            used_index: self.memory.index(at + used + 2).unwrap(),
        }
    }

    /// A packed ring.
    pub fn packed(&self, index: u32) -> Packed {
        let (at, [avail, used, ..]) = (self.ring_at(index), self.shape.parts());
        Packed {
            size: self.shape.size,
            desc: self.array(at, self.shape.size),
            driver_event: self.array(at + avail, 1),
            device_event: self.array(at + used, 1),
        }
    }

    /// Writes descriptors somewhere in memory: a table. Its guest address.
    pub fn table(&self, place: u64, descriptors: &[[u64; 2]]) -> u64 {
        let array: Array<[u64; 2]> = Array::new(&self.memory, place - GUEST, descriptors.len() as u32).unwrap();
        (0..).zip(descriptors).for_each(|(at, words)| array.write(at, *words));
        place
    }

    fn array<T: ferrule_ffi::array::Plain>(&self, at: u64, len: u32) -> Array<T> {
        Array::new(&self.memory, at, len).unwrap()
    }

    /// Offers every buffer of a receive ring.
    fn offer(&self, index: u32) {
        let (size, len) = (self.shape.size, self.shape.buffer);
        if self.shape.is_packed() {
            let ring = self.packed(index);
            for slot in 0..size {
                ring.desc.write(slot, packed(self.buffer(index, slot), len, slot as u16, WRITE | AVAIL));
            }
        } else {
            let ring = self.split(index);
            for slot in 0..size {
                ring.desc.write(slot, split(self.buffer(index, slot), len, WRITE, 0));
                ring.avail.write(2 + slot, slot as u16);
            }
            ring.avail_index.store(ring.size);
        }
    }

    fn ring_at(&self, index: u32) -> u64 {
        let [.., ring] = self.shape.parts();
        u64::from(index) * ring
    }
}

impl Split {
    /// Makes these heads available.
    pub fn offer(&self, heads: &[u16]) {
        let mut index = self.avail_index.load();
        for &head in heads {
            self.avail.write(2 + u32::from(index % self.size), head);
            index = index.wrapping_add(1);
        }
        self.avail_index.store(index);
    }

    /// Makes one chain of these descriptors available, from slot 0 on.
    pub fn publish(&self, descriptors: &[[u64; 2]]) {
        (0..).zip(descriptors).for_each(|(slot, words)| self.desc.write(slot, *words));
        self.offer(&[0]);
    }
}

impl Packed {
    /// Makes these descriptors available, from the first slot on of a ring that was never used. They are the same chain
    /// or not, as their flags say.
    pub fn publish(&self, descriptors: &[[u64; 2]]) {
        for (slot, &[address, second]) in descriptors.iter().enumerate().rev() {
            let slot = slot as u32;
            self.desc.write_first(slot, address);
            self.desc.store_second(slot, second | u64::from(AVAIL) << 48);
        }
    }

    /// Whether the device has used the descriptor in `slot`, in the first round.
    pub fn is_used(&self, slot: u32) -> bool {
        (self.desc.load_second(slot) >> 48) as u16 & (AVAIL | USED) == AVAIL | USED
    }
}

/// A descriptor of a split ring.
pub fn split(address: u64, len: u32, flags: u16, next: u16) -> [u64; 2] {
    [address, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48]
}

/// A descriptor of a packed ring.
pub fn packed(address: u64, len: u32, id: u16, flags: u16) -> [u64; 2] {
    [address, u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48]
}

/// Flags of descriptors.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;
/// Bytes of the header in front of each frame.
pub const HEADER: u32 = 12;
/// Where its memory is for a guest, and for its process.
pub const GUEST: u64 = 1 << 32;
pub const USER: u64 = 0x7000_0000_0000;
/// ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK.
const DRIVER_OK: u64 = 0x0f;
const PAGE: u64 = 4096;
