//! The hot path of memif: taking frames from a ring and putting frames into one.
//!
//! ```text
//!            S2M ring (client sends)             M2S ring (server sends)
//!   head     client: filled up to here           client: empty buffers offered up to here
//!   tail     server: consumed up to here         server: filled up to here
//! ```
//! Indexes run freely over 16 bits; a slot is an index masked. Each side keeps its own index in a
//! private variable and never reads it back from shared memory.
//!
//! - `in_place`: what a generator needs to leave frames in their buffers.
//! - [`zero_copy`]: frames of trusted pairs, which stay where they are.

mod in_place;
pub mod zero_copy;

pub use in_place::Alike;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;
use ferrule_ffi::region::{Health, Index, Region, Table};
use ferrule_ffi::span::{Span, SpanMut, copy_run};
use serde::{Deserialize, Serialize};

use crate::offload::VnetHeader;
use crate::port::memif::message::Direction;
use crate::port::memif::ring::zero_copy::{BorrowedSlots, OfferedBuffers};
use crate::port::pieces::{PIECES_MAX, PieceReader, Pieces};
use crate::port::{BURST, FRAME_MAX, Fault, Frame, PieceFrame, Put, Run, SEGMENT_COST, Source, Target};
use crate::spec::Role;
use crate::status::DropReason;

#[cfg(target_endian = "big")]
compile_error!("memif descriptors are read as little-endian words");

/// One ring in shared memory, as both of its users see it.
pub(crate) struct Ring {
    pub(crate) table: Table,
    pub(crate) head: Index,
    pub(crate) tail: Index,
    pub(crate) flags: Index,
    pub(crate) interrupt: Arc<OwnedFd>,
    pub(crate) regions: Box<[Region]>,
    pub(crate) health: Arc<Health>,
}

impl Ring {
    fn size(&self) -> u16 {
        // At most 2^14 (RING_MAX).
        self.table.len() as u16
    }

    /// How far `theirs` is ahead of `ours`, which can never be more than `size`.
    fn distance(&self, ours: u16, theirs: u16, seen: u16) -> Result<u16, Fault> {
        let distance = theirs.wrapping_sub(ours);
        if distance > self.size() {
            return Err(Fault::Index { from: seen.into(), to: theirs.into(), size: u32::from(self.size()) });
        }
        Ok(distance)
    }

    fn check_health(&self) -> Result<(), Fault> {
        Ok(self.health.check()?)
    }
}

/// The receiving end of a ring: S2M for a server, M2S for a client.
pub struct Receiver {
    ring: Ring,
    /// The first slot not taken yet.
    next: u16,
    /// The peer's index when it was last read: slots before it are filled.
    filled: u16,
    /// The first slot not given back yet.
    held: u16,
    /// Bytes of the frame that was peeked, if it was put together.
    gathered: u64,
    /// Where the slots' buffers are.
    slots: Slots<OfferedBuffers>,
}

/// The sending end of a ring: M2S for a server, S2M for a client.
pub struct Sender {
    ring: Ring,
    /// The first slot not filled yet.
    next: u16,
    /// The first slot that is not free, when the peer's index was last read.
    limit: u16,
    /// What the peer last saw of `next`.
    published: u16,
    /// What frames cost that did not fit into one slot.
    cost: u64,
    /// Where the slots' buffers are.
    slots: Slots<BorrowedSlots>,
}

/// Where the buffers of a ring's slots are. `L` is what is noted of memory that is lent.
pub(crate) enum Slots<L> {
    /// As server: where the descriptors say.
    Announced,
    /// As client: in memory of ours.
    Own(Buffers),
    /// As client of one peer and server of another: in memory of the other, which this one sees too.
    ZeroCopy(L),
}

impl<L> Slots<L> {
    fn is_client(&self) -> bool {
        !matches!(self, Self::Announced)
    }
}

/// The buffers of a ring that this process made: one for each slot, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    pub(crate) region: u16,
    pub(crate) offset: u32,
    pub(crate) size: u32,
}

impl Buffers {
    /// The descriptor of `slot`, offering its whole buffer.
    pub(crate) fn descriptor(self, slot: u16) -> Descriptor {
        // The layout was made so that all buffers lie below 4 GiB.
        let offset = self.offset + u32::from(slot) * self.size;
        Descriptor { flags: 0, region: self.region, length: self.size, offset }
    }
}

/// One descriptor, read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) flags: u16,
    pub(crate) region: u16,
    pub(crate) length: u32,
    pub(crate) offset: u32,
}

impl Descriptor {
    #[inline(always)]
    fn parse(words: [u64; 2]) -> Self {
        Self {
            flags: words[0] as u16,
            region: (words[0] >> 16) as u16,
            length: (words[0] >> 32) as u32,
            offset: words[1] as u32,
        }
    }

    #[inline(always)]
    pub(crate) fn emit(self) -> [u64; 2] {
        [self.first(), u64::from(self.offset)]
    }

    /// Flags, region and length: the half that changes when a server fills a slot.
    #[inline(always)]
    fn first(self) -> u64 {
        u64::from(self.flags) | u64::from(self.region) << 16 | u64::from(self.length) << 32
    }

    fn fault(self, slot: u16) -> Fault {
        Fault::Descriptor { slot: slot.into(), region: self.region.into(), offset: self.offset, length: self.length }
    }
}

impl Receiver {
    pub(crate) fn new(ring: Ring, slots: Slots<OfferedBuffers>) -> Self {
        let mut receiver = Self { ring, next: 0, filled: 0, held: 0, gathered: 0, slots };
        receiver.enable_notify(false);
        receiver.offer(0, receiver.ring.size());
        receiver
    }

    /// Goes on with a ring where a predecessor stopped. Of what the peer may have seen, nothing is written again.
    pub(super) fn restore(ring: Ring, slots: Slots<OfferedBuffers>, next: u16, held: u16) -> Self {
        let mut receiver = Self { ring, next, filled: next, held, gathered: 0, slots };
        receiver.enable_notify(false);
        receiver
    }

    /// The first slot not taken yet, and the first one not given back yet (of a borrower: not offered yet).
    pub(super) fn positions(&self) -> (u16, u16) {
        (self.next, self.held)
    }

    /// What a borrower was offered.
    pub(super) fn offered(&self) -> Option<&OfferedBuffers> {
        match &self.slots {
            Slots::ZeroCopy(offered) => Some(offered),
            Slots::Announced | Slots::Own(_) => None,
        }
    }

    /// Which way the ring's frames go.
    pub fn direction(&self) -> Direction {
        if self.slots.is_client() { Direction::M2S } else { Direction::S2M }
    }

    /// Takes the rings of the eventfd that were heard, so that it is not readable any more.
    pub fn clear_notify(&self) {
        // An eventfd holds 8 bytes; a peer's may be in any state, and only whether it rings matters.
        let _ = nix::unistd::read(&*self.ring.interrupt, &mut [0; 8]);
    }

    /// As client: offers the buffers of `count` slots from `first` on. As server: says that the
    /// slots before `first` were consumed.
    fn offer(&mut self, first: u16, count: u16) {
        match self.slots {
            Slots::Own(buffers) => {
                let mask = self.ring.size() - 1;
                for position in 0..count {
                    let slot = first.wrapping_add(position) & mask;
                    self.ring.table.write(slot, buffers.descriptor(slot).emit());
                }
                self.ring.head.store(self.next.wrapping_add(self.ring.size()));
            }
            Slots::Announced => self.ring.tail.store(self.next),
            // What is lent is offered by `zero_copy`, as far as there is something.
            Slots::ZeroCopy(_) => {}
        }
    }

    /// Clears NEXT in a chain's slots, which as server are ours until they are released.
    ///
    /// A client sets the flags of a slot when it fills it, so nothing is lost. But DPDK before 26.03 only ever
    /// sets NEXT in a frame's first slot: left there, it would join a later short frame with its successor.
    #[cold]
    fn unchain(&self, slots: u16) {
        for position in 0..slots {
            let slot = self.next.wrapping_add(position);
            let piece = Descriptor::parse(self.ring.table.read(slot));
            let piece = Descriptor { flags: piece.flags & !NEXT, ..piece };
            self.ring.table.write_first(slot, piece.first());
        }
    }

    /// Puts a chain together: the pieces lie in consecutive slots.
    #[cold]
    fn gather<'a>(&self, gather: &'a mut [u8]) -> Result<Frame<'a>, Fault> {
        let mut length = 0;
        let mut slots = 0;
        loop {
            let slot = self.next.wrapping_add(slots);
            if slot == self.filled {
                return Err(Fault::OpenChain { slot: self.next.into() });
            }
            let piece = Descriptor::parse(self.ring.table.read(slot));
            let bytes = self.ring.regions.get(usize::from(piece.region));
            let bytes = bytes.and_then(|region| region.span(piece.offset, piece.length));
            let bytes = bytes.ok_or_else(|| piece.fault(slot))?;
            if slots == SEGMENTS_MAX || !bytes.copy_out(&mut gather[length..]) {
                return Err(Fault::Oversize { slot: self.next.into() });
            }
            length += bytes.len();
            slots += 1;
            if piece.flags & NEXT == 0 {
                let bytes = gather[..length].into();
                return Ok(Frame { bytes, offload: None, slots: slots.into() });
            }
        }
    }
}

impl Source for Receiver {
    #[inline]
    fn refresh(&mut self) -> Result<bool, Fault> {
        let waiting = self.filled.wrapping_sub(self.next);
        if usize::from(waiting) < BURST {
            let index = if self.slots.is_client() { &self.ring.tail } else { &self.ring.head };
            let filled = index.load();
            self.ring.distance(self.next, filled, self.filled)?;
            self.filled = filled;
            self.ring.check_health()?;
        }
        Ok(self.filled != self.next)
    }

    // A function of its own: inlined into the loop around it, it would not get the registers it needs.
    #[inline(never)]
    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        let (table, regions) = (&self.ring.table, &*self.ring.regions);
        let plain = |position| {
            let descriptor = Descriptor::parse(table.read(position));
            let region = regions.get(usize::from(descriptor.region))?;
            let frame = region.span(descriptor.offset, descriptor.length)?;
            (descriptor.flags & NEXT == 0 && frame.len() <= FRAME_MAX).then_some(frame)
        };
        let (first, waiting) = (self.next, self.filled.wrapping_sub(self.next).min(BURST as u16));
        run.extend((0..waiting).map(|ahead| first.wrapping_add(ahead)).map_while(plain));
    }

    #[inline(always)]
    fn advance_run(&mut self, count: usize) {
        self.next = self.next.wrapping_add(count as u16);
    }

    #[inline(always)]
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        if self.next == self.filled {
            return Ok(None);
        }
        let descriptor = Descriptor::parse(self.ring.table.read(self.next));
        if descriptor.flags & NEXT != 0 {
            let frame = self.gather(gather)?;
            self.gathered = frame.bytes.len() as u64;
            return Ok(Some(frame));
        }
        let region = self.ring.regions.get(usize::from(descriptor.region));
        match region.and_then(|region| region.span(descriptor.offset, descriptor.length)) {
            Some(bytes) if bytes.len() <= FRAME_MAX => Ok(Some(Frame { bytes, offload: None, slots: 1 })),
            Some(_) => Err(Fault::Oversize { slot: self.next.into() }),
            None => Err(descriptor.fault(self.next)),
        }
    }

    fn peek_pieces<'a>(&'a mut self, pieces: &mut Pieces<'a>) -> Result<Option<PieceFrame<'a>>, Fault> {
        self.gathered = 0;
        if self.next == self.filled || Descriptor::parse(self.ring.table.read(self.next)).flags & NEXT == 0 {
            return Ok(None);
        }
        let mut length = 0;
        for slots in 1..=PIECES_MAX as u16 {
            let position = self.next.wrapping_add(slots - 1);
            if position == self.filled {
                break;
            }
            let piece = Descriptor::parse(self.ring.table.read(position));
            let region = self.ring.regions.get(usize::from(piece.region));
            let Some(bytes) = region.and_then(|region| region.span(piece.offset, piece.length)) else { break };
            length += bytes.len();
            if length > FRAME_MAX || (!bytes.is_empty() && pieces.try_push(bytes).is_err()) {
                break;
            }
            if piece.flags & NEXT == 0 {
                return Ok(Some(PieceFrame { offload: None, slots: slots.into() }));
            }
        }
        // Whatever is unusual about it.
        Ok(None)
    }

    fn cost(&self, _length: usize, slots: u32) -> u64 {
        if slots > 1 { self.gathered + u64::from(slots) * SEGMENT_COST } else { 0 }
    }

    #[inline(always)]
    fn advance(&mut self, slots: u32) {
        // Indexes have 16 bits.
        let slots = slots as u16;
        if slots > 1 && !self.slots.is_client() {
            self.unchain(slots);
        }
        self.next = self.next.wrapping_add(slots);
    }

    #[inline]
    fn release(&mut self) {
        let count = self.next.wrapping_sub(self.held);
        if count > 0 {
            self.offer(self.held, count);
            self.held = self.next;
        }
    }

    fn enable_notify(&mut self, wanted: bool) {
        self.ring.flags.store(if wanted { 0 } else { MASK_INTERRUPT });
        if wanted {
            // The peer stores its index, fences, loads the flags; we the other way round: one of the
            // two sees the other's store. (Model-checked in `crate::sleep`.)
            fence(Ordering::SeqCst);
        }
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.interrupt.as_fd())
    }
}

impl Sender {
    pub(crate) fn new(ring: Ring, slots: Slots<BorrowedSlots>) -> Self {
        Self { ring, next: 0, limit: 0, published: 0, cost: 0, slots }
    }

    /// Goes on with a ring where a predecessor stopped. Of what the peer may have seen, nothing is written again.
    pub(super) fn restore(ring: Ring, slots: Slots<BorrowedSlots>, next: u16, published: u16) -> Self {
        Self { ring, next, limit: next, published, cost: 0, slots }
    }

    /// The first slot not filled yet, and what the peer last saw of that.
    pub(super) fn positions(&self) -> (u16, u16) {
        (self.next, self.published)
    }

    /// What a borrower has of a lender.
    pub(super) fn borrowed(&self) -> Option<&BorrowedSlots> {
        match &self.slots {
            Slots::ZeroCopy(borrowed) => Some(borrowed),
            Slots::Announced | Slots::Own(_) => None,
        }
    }

    /// Which way the ring's frames go.
    pub fn direction(&self) -> Direction {
        if self.slots.is_client() { Direction::S2M } else { Direction::M2S }
    }

    /// The slots that can be filled before the next look.
    pub fn room(&self) -> u16 {
        self.limit.wrapping_sub(self.next)
    }

    /// The buffer of a free slot: as client our own, as server what the peer offered.
    #[inline(always)]
    fn slot(&self, position: u16) -> Descriptor {
        match self.slots {
            Slots::Own(buffers) => buffers.descriptor(position & (self.ring.size() - 1)),
            Slots::Announced | Slots::ZeroCopy(_) => Descriptor::parse(self.ring.table.read(position)),
        }
    }

    #[inline(always)]
    fn room_at(&self, slot: Descriptor, length: u32, position: u16) -> Result<SpanMut<'_>, Fault> {
        let region = self.ring.regions.get(usize::from(slot.region));
        region.and_then(|region| region.span_mut(slot.offset, length)).ok_or_else(|| slot.fault(position))
    }

    /// Stores frames as far as each fits into the slot that is its turn. How many.
    // A function of its own, as `run` is.
    #[inline(never)]
    fn store(
        &mut self,
        run: &[Span<'_>],
        slot: impl Fn(&Table, u16) -> Descriptor,
        fill: impl Fn(&Table, u16, Descriptor),
    ) -> usize {
        let (table, regions) = (&self.ring.table, &*self.ring.regions);
        let (first, free) = (self.next, self.room().min(BURST as u16));
        let mut rooms = ArrayVec::<SpanMut<'_>, BURST>::new();
        for (position, frame) in (0..free).map(|ahead| first.wrapping_add(ahead)).zip(run) {
            let slot = slot(table, position);
            let length = frame.len() as u32;
            let Some(region) = regions.get(usize::from(slot.region)) else { break };
            let Some(room) = region.span_mut(slot.offset, length) else { break };
            if length == 0 || length > slot.length {
                break;
            }
            fill(table, position, Descriptor { flags: 0, length, ..slot });
            rooms.push(room);
        }
        copy_run(run, &mut rooms);
        let count = rooms.len();
        self.next = self.next.wrapping_add(count as u16);
        count
    }

    /// Says in the slot's descriptor what was put into it.
    #[inline(always)]
    fn fill(&self, position: u16, slot: Descriptor, length: u32, flags: u16) {
        let filled = Descriptor { flags, length, ..slot };
        if self.slots.is_client() {
            self.ring.table.write(position, filled.emit());
        } else {
            // A server never writes the offset; the region goes back as it was read.
            self.ring.table.write_first(position, filled.first());
        }
    }

    /// Reads how far the peer is.
    #[inline]
    fn read_peer_index(&mut self) -> Result<(), Fault> {
        self.limit = if self.slots.is_client() {
            let consumed = self.ring.tail.load();
            let used = self.ring.distance(consumed, self.next, self.limit)?;
            self.next.wrapping_add(self.ring.size() - used)
        } else {
            let offered = self.ring.head.load();
            self.ring.distance(self.next, offered, self.limit)?;
            offered
        };
        self.ring.check_health()
    }

    /// Spreads a frame over as many consecutive slots as it needs, or stores nothing of it.
    #[cold]
    fn scatter(&mut self, pieces: &[Span<'_>]) -> Result<Put, Fault> {
        let mut rest = PieceReader::new(pieces);
        if rest.is_empty() {
            return Ok(Put::Refused(DropReason::TooShort));
        }
        let mut slots = 0;
        while !rest.is_empty() {
            // A receiver takes no more; and a peer that offers slots of a byte must not have us look
            // through thousands of them for each frame.
            if slots == SEGMENTS_MAX || slots > self.ring.size() / 2 {
                return Ok(Put::Refused(DropReason::TooLong));
            }
            let position = self.next.wrapping_add(slots);
            if position == self.limit {
                // A frame of more pieces than a burst has slots would otherwise never see new room.
                self.read_peer_index()?;
            }
            if position == self.limit {
                return Ok(Put::Full);
            }
            let slot = self.slot(position);
            let length = slot.length.min(rest.len() as u32);
            if length == 0 {
                return Err(slot.fault(position));
            }
            if !rest.fill(self.room_at(slot, length, position)?) {
                return Err(slot.fault(position));
            }
            self.fill(position, slot, length, if rest.is_empty() { 0 } else { NEXT });
            // Also if it has to be stored once more, since there was not room for all of it.
            self.cost += u64::from(length) + SEGMENT_COST;
            slots += 1;
        }
        self.next = self.next.wrapping_add(slots);
        Ok(Put::Stored)
    }
}

impl Target for Sender {
    #[inline]
    fn refresh(&mut self) -> Result<(), Fault> {
        if usize::from(self.room()) >= BURST {
            return Ok(());
        }
        self.read_peer_index()
    }

    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        match self.slots {
            Slots::Announced | Slots::ZeroCopy(_) => self.store(
                run,
                |table, position| Descriptor::parse(table.read(position)),
                |table, position, slot| table.write_first(position, slot.first()),
            ),
            Slots::Own(buffers) => {
                let mask = self.ring.size() - 1;
                let slot = |_: &Table, position| buffers.descriptor(position & mask);
                self.store(run, slot, |table, position, slot| table.write(position, slot.emit()))
            }
        }
    }

    #[inline(always)]
    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        if self.next == self.limit {
            return Ok(Put::Full);
        }
        let slot = self.slot(self.next);
        let length = frame.bytes.len() as u32;
        if length > slot.length {
            return self.scatter(&[frame.bytes]);
        }
        if length == 0 {
            return Ok(Put::Refused(DropReason::TooShort));
        }
        let mut room = self.room_at(slot, length, self.next)?;
        if !frame.bytes.copy_to(&mut room) {
            return Err(slot.fault(self.next));
        }
        self.fill(self.next, slot, length, 0);
        self.next = self.next.wrapping_add(1);
        Ok(Put::Stored)
    }

    fn takes_pieces(&self) -> bool {
        true
    }

    fn put_pieces(&mut self, pieces: &[Span<'_>], _offload: Option<&VnetHeader>) -> Result<Put, Fault> {
        if self.next == self.limit { Ok(Put::Full) } else { self.scatter(pieces) }
    }

    fn cost(&mut self) -> u64 {
        std::mem::take(&mut self.cost)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        if self.next == self.published {
            return false;
        }
        self.published = self.next;
        let index = if self.slots.is_client() { &self.ring.head } else { &self.ring.tail };
        index.store(self.next);
        // Without it the load below could come before the store above, and a receiver that goes to
        // sleep in between would never be rung. (Model-checked in `crate::sleep`.)
        fence(Ordering::SeqCst);
        self.ring.flags.load() & MASK_INTERRUPT == 0
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.interrupt.as_fd())
    }
}

/// Which of the two ends of a ring a role has.
pub(crate) fn receives(role: Role, direction: Direction) -> bool {
    matches!((role, direction), (Role::Server, Direction::S2M) | (Role::Client, Direction::M2S))
}

/// Descriptor flag: the frame goes on in the next slot.
const NEXT: u16 = 1;
/// Ring flag, written by its receiver: do not ring.
const MASK_INTERRUPT: u16 = 1;
/// Pieces of one frame: the longest frame in the smallest buffers of ours.
const SEGMENTS_MAX: u16 = 512;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    use ferrule_ffi::memory_budget::MemoryBudget;

    use crate::port::memif::layout::{Layout, Queues};
    use crate::spec::MemifSpec;

    /// Client and server of the same memory.
    pub(crate) fn pair(buffer: u32, ring: u32) -> (Queues, Queues) {
        let spec = MemifSpec { buffer, ..MemifSpec::new("@unused".parse().unwrap(), Role::Client) };
        let mut ours = Layout::create(&spec, 1, ring, &<_>::default()).unwrap();
        let mut theirs = Layout::announced_by_peer(&MemoryBudget::unlimited());
        for (region, file) in ours.regions() {
            theirs.add_region(region, file.try_clone_to_owned().unwrap().into()).unwrap();
        }
        for (ring, interrupt) in ours.rings() {
            theirs.add_ring(ring, interrupt.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
        }
        (ours.queues().unwrap(), theirs.queues().unwrap())
    }

    #[test]
    fn a_chain_is_whole_each_time_it_is_peeked_and_leaves_no_mark_behind() {
        let (mut client, mut server) = pair(2048, 64);
        let (sender, receiver) = (&mut client.senders[0], &mut server.receivers[0]);
        let data = vec![7; 5000];
        sender.refresh().unwrap();
        let frame = Frame { bytes: data[..].into(), offload: None, slots: 0 };
        assert_eq!(sender.put(&frame).unwrap(), Put::Stored);
        sender.publish();
        assert!(receiver.refresh().unwrap());
        let mut gather = vec![0; FRAME_MAX];
        for _ in 0..2 {
            let frame = receiver.peek(&mut gather).unwrap().unwrap();
            assert_eq!((frame.bytes.len(), frame.slots), (5000, 3));
        }
        receiver.advance(3);
        receiver.release();
        let slots = [0, 1, 2].map(|slot| Descriptor::parse(sender.ring.table.read(slot)));
        assert_eq!(slots.map(|slot| (slot.flags, slot.length)), [(0, 2048), (0, 2048), (0, 904)]);
    }

    #[test]
    fn a_run_is_shown_up_to_a_chain_and_stored_up_to_a_slot_that_is_too_small() {
        let (mut client, mut server) = pair(2048, 64);
        let (sender, receiver) = (&mut client.senders[0], &mut server.receivers[0]);
        let frames = [60, 1518, 2048].map(|length| vec![length as u8; length]);
        let frames = frames.each_ref().map(|frame| Span::from(&frame[..]));
        sender.refresh().unwrap();
        assert_eq!(sender.put_run(&frames), 3);
        let long = Frame { bytes: [7; 5000][..].into(), offload: None, slots: 0 };
        assert_eq!(sender.put(&long).unwrap(), Put::Stored);
        sender.publish();
        assert!(receiver.refresh().unwrap());
        let (mut small, _server) = pair(1024, 64);
        let target = &mut small.senders[0];
        target.refresh().unwrap();
        let stored = {
            let mut run = Run::new();
            receiver.run(&mut run);
            assert_eq!(run.iter().map(|frame| frame.len()).collect::<Vec<_>>(), [60, 1518, 2048]);
            target.put_run(&run)
        };
        assert_eq!((stored, target.room()), (1, 63));
        receiver.advance_run(stored);
        let mut gather = vec![0; FRAME_MAX];
        assert_eq!(receiver.peek(&mut gather).unwrap().unwrap().bytes.len(), 1518);
    }

    #[test]
    fn a_frame_of_more_pieces_than_a_burst_waits_for_room_and_then_goes() {
        let (mut client, mut server) = pair(128, 256);
        let (sender, receiver) = (&mut client.senders[0], &mut server.receivers[0]);
        let put = |sender: &mut Sender, data: &[u8]| {
            sender.refresh().unwrap();
            sender.put(&Frame { bytes: data.into(), offload: None, slots: 0 }).unwrap()
        };
        for _ in 0..187 {
            assert_eq!(put(sender, &[1; 64]), Put::Stored);
        }
        let long = [2; 70 * 128];
        assert_eq!((sender.room(), put(sender, &long)), (69, Put::Full));
        sender.publish();
        let mut gather = vec![0; FRAME_MAX];
        while receiver.refresh().unwrap() {
            receiver.peek(&mut gather).unwrap().unwrap();
            receiver.advance(1);
        }
        receiver.release();
        assert_eq!((sender.room(), put(sender, &long)), (69, Put::Stored));
    }
}
