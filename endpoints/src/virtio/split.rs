//! Split rings (virtio 1.2, section 2.7), the driver's side.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use ferrule_dataplane::offload::{Accepts, VnetHeader};
use ferrule_dataplane::port::vhost_user::VirtqDescriptor;
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::{BURST, Fault, Frame, Put, Run, Source, Target};
use ferrule_dataplane::status::DropReason;
use ferrule_ffi::array::Array;
use ferrule_ffi::region::Index;
use ferrule_ffi::span::SpanMut;

use crate::InPlace;
use crate::virtio::Eventfds;
use crate::virtio::frames::{self, CopyRing, MergedFrame, Plain, accepted};
use crate::virtio::ids::Ids;
use crate::virtio::memory::{Buffers, DriverMemory};
use crate::virtio::spread::{Segment, Spread, store_table};

/// What both directions have in common.
struct SplitDriver {
    desc: Array<[u64; 2]>,
    avail: Array<u16>,
    avail_index: Index,
    avail_flags: Index,
    used: Array<[u32; 2]>,
    used_index: Index,
    used_flags: Index,
    used_event: Index,
    avail_event: Index,
    event_idx: bool,
    mask: u16,
    buffers: Buffers,
    eventfds: Eventfds,
    /// The first available entry not filled yet.
    next: u16,
    /// What the device last saw of our index.
    published: u16,
    /// The first used entry not looked at yet.
    done: u16,
    /// The device's index when it was last read.
    seen: u16,
    /// What the descriptors and the available entries hold.
    written: Box<[[u64; 2]]>,
    heads: Box<[u16]>,
}

impl SplitDriver {
    fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        let size = memory.spec().size;
        let at = memory.addresses(index);
        let wide = u64::from(size);
        let driver = Self {
            desc: memory.array(at.desc, size),
            avail: memory.array(at.avail + 4, size),
            avail_index: memory.word(at.avail + 2),
            avail_flags: memory.word(at.avail),
            used: memory.array(at.used + 4, size),
            used_index: memory.word(at.used + 2),
            used_flags: memory.word(at.used),
            used_event: memory.word(at.avail + 4 + 2 * wide),
            avail_event: memory.word(at.used + 4 + 8 * wide),
            event_idx: features.has(Features::EVENT_IDX),
            // At most 2^15 - 1.
            mask: (size - 1) as u16,
            buffers: memory.buffers(index, features.header_len()),
            eventfds,
            next: 0,
            published: 0,
            done: 0,
            seen: 0,
            written: vec![[0; 2]; size as usize].into(),
            heads: vec![0; size as usize].into(),
        };
        driver.want_call(false);
        driver
    }

    /// Makes a descriptor say this.
    #[inline(always)]
    fn describe(&mut self, id: u16, descriptor: VirtqDescriptor) {
        let words = descriptor.emit_split();
        let written = &mut self.written[usize::from(id)];
        if *written != words {
            *written = words;
            self.desc.write(id.into(), words);
        }
    }

    /// Puts the chain that begins with `head` into the available entry at `position`, which `next` has to pass.
    #[inline(always)]
    fn offer(&mut self, position: u16, head: u16) {
        let place = position & self.mask;
        let written = &mut self.heads[usize::from(place)];
        if *written != head {
            *written = head;
            self.avail.write(place.into(), head);
        }
    }

    /// Reads how far the device is.
    #[inline]
    fn refresh(&mut self) -> Result<(), Fault> {
        let seen = self.used_index.load();
        let under_way = self.published.wrapping_sub(self.done);
        if seen.wrapping_sub(self.done) > under_way {
            return Err(Fault::Index { from: self.seen.into(), to: seen.into(), size: under_way.into() });
        }
        self.seen = seen;
        Ok(())
    }

    /// Lets the device see what was offered. Whether it wants to be rung.
    #[inline]
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next);
        if old == new {
            return false;
        }
        self.published = new;
        self.avail_index.store(new);
        // Without it the load below could come before the store above, and a device that goes to sleep in between would
        // never be rung.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.avail_event.load();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_flags.load() & NO_NOTIFY == 0
        }
    }

    fn want_call(&self, wanted: bool) {
        if !self.event_idx {
            self.avail_flags.store(if wanted { 0 } else { NO_INTERRUPT });
        } else if wanted {
            self.used_event.store(self.done);
        } else {
            // Passed for the next 2^16 entries.
            self.used_event.store(self.done.wrapping_sub(1));
        }
        if wanted {
            fence(Ordering::SeqCst);
        }
    }
}

/// Transmits through a split ring.
pub struct SplitDriverTx {
    ring: SplitDriver,
    ids: Ids,
    features: Features,
    header_apart: bool,
}

impl SplitDriverTx {
    pub(super) fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        Self {
            ring: SplitDriver::new(memory, index, features, eventfds),
            ids: Ids::new(memory.spec().size),
            features,
            header_apart: memory.spec().header_apart,
        }
    }

    /// Visits the buffer of every descriptor id.
    pub fn each_buffer(&mut self, mut visit: impl FnMut(SpanMut<'_>)) {
        let buffers = &self.ring.buffers;
        (0..=self.ring.mask).filter_map(|id| buffers.frame_room(id, buffers.room)).for_each(&mut visit);
    }

    /// Takes back what the device has sent.
    #[inline]
    fn reclaim(&mut self) -> Result<(), Fault> {
        let ring = &mut self.ring;
        ring.refresh()?;
        let in_order = self.features.has(Features::IN_ORDER);
        let mut position = ring.done;
        while position != ring.seen {
            let place = position & ring.mask;
            let id = ring.used.read(place.into())[0];
            let last = u16::try_from(id).unwrap_or(u16::MAX);
            if !in_order {
                self.ids.give(last)?;
                position = position.wrapping_add(1);
                continue;
            }
            // It stands for all chains up to the one that it names (2.7.9).
            loop {
                if position == ring.seen {
                    let size = u32::from(ring.mask) + 1;
                    return Err(Fault::Head { entry: place.into(), head: id, size });
                }
                let head = ring.heads[usize::from(position & ring.mask)];
                self.ids.give(head)?;
                position = position.wrapping_add(1);
                if head == last {
                    break;
                }
            }
        }
        ring.done = position;
        Ok(())
    }
}

impl InPlace for SplitDriverTx {
    #[inline(always)]
    fn buffer(&mut self, ahead: u32) -> Option<SpanMut<'_>> {
        self.ring.buffers.frame_room(self.ids.nth(ahead)?, self.ring.buffers.room)
    }

    #[inline(always)]
    fn describe(&mut self, ahead: u32, length: u32) {
        let ring = &mut self.ring;
        let Some(id) = self.ids.nth(ahead) else { return };
        let (address, header_len) = (ring.buffers.address(id), ring.buffers.header_len);
        ring.describe(
            id,
            VirtqDescriptor { address, len: header_len + length.min(ring.buffers.room), flags: 0, next: 0 },
        );
        // Rings are no longer than 2^15.
        ring.offer(ring.next.wrapping_add(ahead as u16), id);
    }

    #[inline(always)]
    fn commit(&mut self, count: u32) {
        self.ring.next = self.ring.next.wrapping_add(self.ids.take_each(count));
    }
}

impl CopyRing for SplitDriverTx {
    #[inline(always)]
    fn next_id(&self) -> Option<u16> {
        self.ids.nth(0)
    }

    #[inline(always)]
    fn buffers(&self) -> &Buffers {
        &self.ring.buffers
    }

    #[inline(always)]
    fn features(&self) -> Features {
        self.features
    }

    #[inline(always)]
    fn header_apart(&self) -> bool {
        self.header_apart
    }

    #[cold]
    fn chain(&mut self, frame: &Frame<'_>) -> Put {
        let (ring, indirect) = (&mut self.ring, self.features.has(Features::INDIRECT_DESC));
        let spread = Spread::new(frame.bytes.len() as u32, &ring.buffers, self.header_apart, indirect);
        let Some(spread) = spread.filter(|spread| spread.ids() <= u32::from(ring.mask) + 1) else {
            return Put::Refused(DropReason::TooLong);
        };
        if spread.ids() > self.ids.free() {
            return Put::Full;
        }
        let mut table = Vec::new();
        let mut chain = Vec::new();
        spread.fill(frame, &ring.buffers, &self.ids, |Segment { address, len, id, next }| {
            let flags = if next.is_some() { VirtqDescriptor::NEXT } else { 0 };
            let descriptor = VirtqDescriptor { address, len, flags, next: next.unwrap_or(0) };
            if spread.indirect {
                table.extend(descriptor.emit_split().map(u64::to_le_bytes).concat());
            } else {
                chain.push((id, descriptor));
            }
        });
        // No more than the ring has.
        let head = self.ids.take(spread.ids() as u16);
        if spread.indirect {
            let address = store_table(&table, &ring.buffers, head);
            let len = table.len() as u32;
            chain.push((head, VirtqDescriptor { address, len, flags: VirtqDescriptor::INDIRECT, next: 0 }));
        }
        for (id, descriptor) in chain {
            ring.describe(id, descriptor);
        }
        ring.offer(ring.next, head);
        ring.next = ring.next.wrapping_add(1);
        Put::Stored
    }
}

impl Target for SplitDriverTx {
    #[inline]
    fn refresh(&mut self) -> Result<(), Fault> {
        if self.ids.free() as usize >= BURST { Ok(()) } else { self.reclaim() }
    }

    #[inline(always)]
    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        Ok(frames::put(self, frame))
    }

    #[inline]
    fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.eventfds.kick.as_fd())
    }

    fn accepts(&self) -> Accepts {
        accepted(self.features)
    }
}

/// Receives through a split ring.
pub struct SplitDriverRx {
    ring: SplitDriver,
    plain: Plain,
    header: VnetHeader,
    /// Buffers taken and not offered again, each at its position masked.
    taken: Box<[u16]>,
    /// The first of them.
    first_taken: u16,
    owes_kick: bool,
}

impl SplitDriverRx {
    pub(super) fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        let mut ring = SplitDriver::new(memory, index, features, eventfds);
        let taken = vec![0; memory.spec().size as usize].into();
        for id in 0..=ring.mask {
            let (address, len) = (ring.buffers.address(id), ring.buffers.header_len + ring.buffers.room);
            ring.describe(id, VirtqDescriptor { address, len, flags: VirtqDescriptor::WRITE, next: 0 });
            ring.offer(id, id);
        }
        ring.next = ring.mask + 1;
        ring.publish();
        Self {
            ring,
            plain: Plain::new(features),
            header: VnetHeader::default(),
            taken,
            first_taken: 0,
            owes_kick: true,
        }
    }

    /// The id and the length in the used entry at `position`.
    #[inline(always)]
    fn entry(ring: &SplitDriver, position: u16) -> Result<(u16, u32), Fault> {
        let place = position & ring.mask;
        let [id, len] = ring.used.read(place.into());
        let size = u32::from(ring.mask) + 1;
        // The id is a u16 if it is below the size.
        if id < size { Ok((id as u16, len)) } else { Err(Fault::Head { entry: place.into(), head: id, size }) }
    }

    /// A frame over several buffers, or one that the device lies about.
    #[cold]
    fn gather<'a>(
        ring: &'a SplitDriver,
        taken: &mut [u16],
        header: &'a mut VnetHeader,
        mergeable: bool,
        gather: &'a mut [u8],
    ) -> Result<Option<Frame<'a>>, Fault> {
        let mut frame = MergedFrame::new(&ring.buffers, mergeable, header, gather);
        while !frame.is_whole() {
            let position = ring.done.wrapping_add(frame.read());
            if position == ring.seen {
                return Err(Fault::OpenChain { slot: (ring.done & ring.mask).into() });
            }
            let (id, len) = Self::entry(ring, position)?;
            taken[usize::from(position & ring.mask)] = id;
            frame.add(id, len)?;
        }
        Ok(Some(frame.finish()))
    }
}

impl Source for SplitDriverRx {
    #[inline]
    fn refresh(&mut self) -> Result<bool, Fault> {
        let ring = &mut self.ring;
        if usize::from(ring.seen.wrapping_sub(ring.done)) < BURST {
            let first = ring.seen;
            ring.refresh()?;
            let count = ring.seen.wrapping_sub(first).min(BURST as u16);
            for position in 0..count {
                let (id, _) = Self::entry(ring, first.wrapping_add(position))?;
                if let Some(frame) = ring.buffers.read(id, ring.buffers.header_len, 1) {
                    frame.prefetch();
                }
            }
        }
        Ok(ring.seen != ring.done)
    }

    // A function of its own: inlined into the loop around it, it would not get the registers it needs.
    #[inline(never)]
    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        let Self { ring, plain, taken, .. } = self;
        let waiting = ring.seen.wrapping_sub(ring.done).min(BURST as u16);
        for position in (0..waiting).map(|ahead| ring.done.wrapping_add(ahead)) {
            let Ok((id, len)) = Self::entry(ring, position) else { break };
            let Some(frame) = plain.frame(&ring.buffers, id, len) else { break };
            taken[usize::from(position & ring.mask)] = id;
            run.push(frame);
        }
    }

    #[inline(always)]
    fn advance_run(&mut self, count: usize) {
        // At most a burst.
        self.ring.done = self.ring.done.wrapping_add(count as u16);
    }

    #[inline]
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Self { ring, plain, header, taken, .. } = self;
        if ring.done == ring.seen {
            return Ok(None);
        }
        let (id, len) = Self::entry(ring, ring.done)?;
        if let Some(bytes) = plain.frame(&ring.buffers, id, len) {
            taken[usize::from(ring.done & ring.mask)] = id;
            return Ok(Some(Frame { bytes, offload: None, slots: 1 }));
        }
        Self::gather(ring, taken, header, plain.mergeable, gather)
    }

    #[inline(always)]
    fn advance(&mut self, slots: u32) {
        // Fewer than the ring has.
        self.ring.done = self.ring.done.wrapping_add(slots as u16);
    }

    #[inline]
    fn release(&mut self) {
        let ring = &mut self.ring;
        let (first, next, count) = (self.first_taken, ring.next, ring.done.wrapping_sub(self.first_taken));
        for ahead in 0..count {
            let id = self.taken[usize::from(first.wrapping_add(ahead) & ring.mask)];
            // Offered again before it was taken back: the device may name one twice, which is its own affair then.
            ring.offer(next.wrapping_add(ahead), id);
        }
        ring.next = next.wrapping_add(count);
        self.first_taken = ring.done;
        self.owes_kick |= ring.publish();
    }

    #[inline]
    fn release_notify_fd(&mut self) -> Option<BorrowedFd<'_>> {
        if std::mem::take(&mut self.owes_kick) { Some(self.ring.eventfds.kick.as_fd()) } else { None }
    }

    fn enable_notify(&mut self, wanted: bool) {
        self.ring.want_call(wanted);
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.eventfds.call.as_fd())
    }
}

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
