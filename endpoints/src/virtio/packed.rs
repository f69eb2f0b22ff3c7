//! Packed rings (virtio 1.2, section 2.8), the driver's side.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use ferrule_dataplane::offload::{Accepts, VnetHeader};
use ferrule_dataplane::port::vhost_user::VirtqDescriptor;
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::packed::{
    AVAIL, EVENT_DISABLE, EVENT_ENABLE, EVENT_FLAGS, Position, USED, needs_event,
};
use ferrule_dataplane::port::{BURST, Fault, Frame, Put, Run, Source, Target};
use ferrule_dataplane::status::DropReason;
use ferrule_ffi::array::Array;
use ferrule_ffi::span::SpanMut;

use crate::InPlace;
use crate::virtio::Eventfds;
use crate::virtio::frames::{self, CopyRing, MergedFrame, Plain, accepted};
use crate::virtio::ids::Ids;
use crate::virtio::memory::{Buffers, DriverMemory};
use crate::virtio::spread::{Segment, Spread, store_table};

/// What both directions have in common.
struct PackedDriver {
    desc: Array<[u64; 2]>,
    driver_event: Array<u32>,
    device_event: Array<u32>,
    size: u16,
    buffers: Buffers,
    eventfds: Eventfds,
    /// The first descriptor not made available yet.
    next: Position,
    /// What the device could last see of that.
    published: Position,
    /// The first used element not looked at yet.
    done: Position,
    /// The addresses in the descriptors: a device leaves them as they are.
    addresses: Box<[u64]>,
    /// The second word of the first descriptor made available since the last publish: stored then, as the device reads
    /// none behind it before.
    held_back: u64,
}

impl PackedDriver {
    fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        let size = memory.spec().size;
        let at = memory.addresses(index);
        let start = Position { index: 0, wrap: true };
        let driver = Self {
            desc: memory.array(at.desc, size),
            driver_event: memory.array(at.avail, 1),
            device_event: memory.array(at.used, 1),
            // At most 2^15.
            size: size as u16,
            buffers: memory.buffers(index, features.header_len()),
            eventfds,
            next: start,
            published: start,
            done: start,
            addresses: vec![0; size as usize].into(),
            held_back: 0,
        };
        driver.want_call(false);
        driver
    }

    /// Makes the descriptor at `position` available, which `next` has to pass, with `descriptor.next` as its id.
    #[inline(always)]
    fn offer(&mut self, position: Position, descriptor: VirtqDescriptor) {
        let place = position.index;
        let flags = descriptor.flags | position.available();
        let [first, second] = VirtqDescriptor { flags, ..descriptor }.emit_packed();
        let written = &mut self.addresses[usize::from(place)];
        if *written != first {
            *written = first;
            self.desc.write_first(place.into(), first);
        }
        if position == self.published {
            self.held_back = second;
        } else {
            self.desc.store_second(place.into(), second);
        }
    }

    /// Lets the device see what was offered. Whether it wants to be rung.
    #[inline]
    fn publish(&mut self) -> bool {
        let old = self.published;
        if old == self.next {
            return false;
        }
        self.desc.store_second(old.index.into(), self.held_back);
        self.published = self.next;
        // Without it the load below could come before the stores above, and a device that goes to sleep in between would
        // never be rung.
        fence(Ordering::SeqCst);
        needs_event(self.device_event.read(0), old, self.next, self.size)
    }

    /// The id in the next used element, if there is one.
    #[inline(always)]
    fn used(&self, position: Position) -> Option<u16> {
        let second = self.desc.load_second(position.index.into());
        let used = (second >> 48) as u16 & (AVAIL | USED) == position.used();
        used.then_some((second >> 32) as u16)
    }

    /// The id and the length in the next used element, if there is one. Its length means nothing without WRITE (2.8.5).
    #[inline(always)]
    fn written(&self, position: Position) -> Result<Option<(u16, u32)>, Fault> {
        let second = self.desc.load_second(position.index.into());
        let flags = (second >> 48) as u16 & (AVAIL | USED | VirtqDescriptor::WRITE);
        if flags == position.used() | VirtqDescriptor::WRITE {
            Ok(Some(((second >> 32) as u16, second as u32)))
        } else if flags == position.used() {
            Err(Fault::Direction { slot: position.index.into() })
        } else {
            Ok(None)
        }
    }

    fn want_call(&self, wanted: bool) {
        let flags = if wanted { EVENT_ENABLE } else { EVENT_DISABLE };
        self.driver_event.write(0, u32::from(flags & EVENT_FLAGS) << 16);
        if wanted {
            fence(Ordering::SeqCst);
        }
    }
}

/// Transmits through a packed ring.
pub struct PackedDriverTx {
    ring: PackedDriver,
    ids: Ids,
    /// Descriptors of the buffer that an id stands for.
    slots: Box<[u16]>,
    /// Descriptors not in use.
    free: u16,
    /// The ids made available and not seen back, oldest first, if one used element stands for a batch of them (2.8.14).
    under_way: Option<Fifo>,
    features: Features,
    header_apart: bool,
}

/// Ids in their order.
struct Fifo {
    ids: Box<[u16]>,
    head: u32,
    tail: u32,
}

impl Fifo {
    fn new(size: u32) -> Self {
        Self { ids: vec![0; size.next_power_of_two() as usize].into(), head: 0, tail: 0 }
    }

    #[inline(always)]
    fn push(&mut self, id: u16) {
        let place = self.tail as usize & (self.ids.len() - 1);
        self.ids[place] = id;
        self.tail = self.tail.wrapping_add(1);
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<u16> {
        let id = (self.head != self.tail).then(|| self.ids[self.head as usize & (self.ids.len() - 1)])?;
        self.head = self.head.wrapping_add(1);
        Some(id)
    }
}

impl PackedDriverTx {
    pub(super) fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        let size = memory.spec().size;
        Self {
            ring: PackedDriver::new(memory, index, features, eventfds),
            ids: Ids::new(size),
            slots: vec![0; size as usize].into(),
            free: size as u16,
            under_way: features.has(Features::IN_ORDER).then(|| Fifo::new(size)),
            features,
            header_apart: memory.spec().header_apart,
        }
    }

    /// Visits the buffer of every descriptor id.
    pub fn each_buffer(&mut self, mut visit: impl FnMut(SpanMut<'_>)) {
        let buffers = &self.ring.buffers;
        (0..self.ring.size).filter_map(|id| buffers.frame_room(id, buffers.room)).for_each(&mut visit);
    }

    /// The id of the frame after `ahead` others of one descriptor each, if there is room for it.
    #[inline(always)]
    fn nth(&self, ahead: u32) -> Option<u16> {
        self.ids.nth(ahead).filter(|_| ahead < self.free.into())
    }

    /// Takes back what the device has sent.
    #[inline]
    fn reclaim(&mut self) -> Result<(), Fault> {
        while self.free < self.ring.size
            && let Some(id) = self.ring.used(self.ring.done)
        {
            loop {
                let back = match &mut self.under_way {
                    Some(under_way) => under_way.pop().unwrap_or(u16::MAX),
                    None => id,
                };
                self.ids.give(back)?;
                let slots = self.slots[usize::from(back)];
                self.free += slots;
                self.ring.done = self.ring.done.after(slots, self.ring.size);
                if back == id {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl InPlace for PackedDriverTx {
    #[inline(always)]
    fn buffer(&mut self, ahead: u32) -> Option<SpanMut<'_>> {
        self.ring.buffers.frame_room(self.nth(ahead)?, self.ring.buffers.room)
    }

    #[inline(always)]
    fn describe(&mut self, ahead: u32, length: u32) {
        let Some(id) = self.nth(ahead) else { return };
        let ring = &mut self.ring;
        let (address, len) = (ring.buffers.address(id), ring.buffers.header_len + length.min(ring.buffers.room));
        // Rings are no longer than 2^15.
        let position = ring.next.after(ahead as u16, ring.size);
        ring.offer(position, VirtqDescriptor { address, len, flags: 0, next: id });
    }

    #[inline(always)]
    fn commit(&mut self, count: u32) {
        let count = count.min(self.free.into());
        for id in (0..count).map_while(|ahead| self.ids.nth(ahead)) {
            self.slots[usize::from(id)] = 1;
            if let Some(under_way) = &mut self.under_way {
                under_way.push(id);
            }
        }
        let count = self.ids.take_each(count);
        self.free -= count;
        self.ring.next = self.ring.next.after(count, self.ring.size);
    }
}

impl CopyRing for PackedDriverTx {
    #[inline(always)]
    fn next_id(&self) -> Option<u16> {
        self.nth(0)
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
        let Some(spread) = spread.filter(|spread| spread.ids() <= u32::from(ring.size)) else {
            return Put::Refused(DropReason::TooLong);
        };
        if spread.ids() > self.ids.free() || spread.slots() > u32::from(self.free) {
            return Put::Full;
        }
        let head = self.ids.ahead(0);
        let mut table = Vec::new();
        let mut chain = Vec::new();
        spread.fill(frame, &ring.buffers, &self.ids, |Segment { address, len, next, .. }| {
            if spread.indirect {
                table.extend(
                    VirtqDescriptor { address, len, flags: 0, next: 0 }.emit_packed().map(u64::to_le_bytes).concat(),
                );
            } else {
                let flags = if next.is_some() { VirtqDescriptor::NEXT } else { 0 };
                chain.push(VirtqDescriptor { address, len, flags, next: head });
            }
        });
        if spread.indirect {
            let address = store_table(&table, &ring.buffers, head);
            let len = table.len() as u32;
            chain.push(VirtqDescriptor { address, len, flags: VirtqDescriptor::INDIRECT, next: head });
        }
        let mut position = ring.next;
        for descriptor in chain {
            ring.offer(position, descriptor);
            position = position.after(1, ring.size);
        }
        ring.next = position;
        // No more than the ring has.
        let (ids, slots) = (spread.ids() as u16, spread.slots() as u16);
        self.slots[usize::from(self.ids.take(ids))] = slots;
        self.free -= slots;
        if let Some(under_way) = &mut self.under_way {
            under_way.push(head);
        }
        Put::Stored
    }
}

impl Target for PackedDriverTx {
    #[inline]
    fn refresh(&mut self) -> Result<(), Fault> {
        if self.ids.free().min(self.free.into()) as usize >= BURST { Ok(()) } else { self.reclaim() }
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

/// Receives through a packed ring.
pub struct PackedDriverRx {
    ring: PackedDriver,
    plain: Plain,
    header: VnetHeader,
    /// The ids of buffers taken and not offered again, each at its place in the ring.
    taken: Box<[u16]>,
    /// How many.
    count: u16,
    owes_kick: bool,
}

impl PackedDriverRx {
    pub(super) fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        let mut ring = PackedDriver::new(memory, index, features, eventfds);
        let taken = vec![0; memory.spec().size as usize].into();
        for id in 0..ring.size {
            let position = ring.next.after(id, ring.size);
            Self::offer(&mut ring, position, id);
        }
        ring.next = ring.next.after(ring.size, ring.size);
        ring.publish();
        Self { ring, plain: Plain::new(features), header: VnetHeader::default(), taken, count: 0, owes_kick: true }
    }

    #[inline(always)]
    fn offer(ring: &mut PackedDriver, position: Position, id: u16) {
        let (address, len) = (ring.buffers.address(id), ring.buffers.header_len + ring.buffers.room);
        ring.offer(position, VirtqDescriptor { address, len, flags: VirtqDescriptor::WRITE, next: id });
    }

    /// The id and the length in the used element at `position`.
    #[inline(always)]
    fn entry(ring: &PackedDriver, position: Position) -> Result<Option<(u16, u32)>, Fault> {
        match ring.written(position)? {
            Some((id, _)) if id >= ring.size => {
                Err(Fault::Head { entry: position.index.into(), head: id.into(), size: ring.size.into() })
            }
            entry => Ok(entry),
        }
    }

    /// A frame over several buffers, or one that the device lies about.
    #[cold]
    fn gather<'a>(
        ring: &'a PackedDriver,
        taken: &mut [u16],
        header: &'a mut VnetHeader,
        mergeable: bool,
        gather: &'a mut [u8],
    ) -> Result<Option<Frame<'a>>, Fault> {
        let mut frame = MergedFrame::new(&ring.buffers, mergeable, header, gather);
        let mut position = ring.done;
        while !frame.is_whole() && frame.read() < ring.size {
            let Some((id, len)) = Self::entry(ring, position)? else {
                return Err(Fault::OpenChain { slot: ring.done.index.into() });
            };
            taken[usize::from(position.index)] = id;
            frame.add(id, len)?;
            position = position.after(1, ring.size);
        }
        Ok(Some(frame.finish()))
    }
}

impl Source for PackedDriverRx {
    #[inline]
    fn refresh(&mut self) -> Result<bool, Fault> {
        Ok(Self::entry(&self.ring, self.ring.done)?.is_some())
    }

    // A function of its own: inlined into the loop around it, it would not get the registers it needs.
    #[inline(never)]
    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        let Self { ring, plain, taken, .. } = self;
        let mut position = ring.done;
        for _ in 0..ring.size.min(BURST as u16) {
            let Ok(Some((id, len))) = Self::entry(ring, position) else { break };
            let Some(frame) = plain.frame(&ring.buffers, id, len) else { break };
            taken[usize::from(position.index)] = id;
            position = position.after(1, ring.size);
            run.push(frame);
        }
    }

    #[inline(always)]
    fn advance_run(&mut self, count: usize) {
        // At most a burst.
        self.advance(count as u32);
    }

    #[inline(always)]
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Self { ring, plain, header, taken, .. } = self;
        let Some((id, len)) = Self::entry(ring, ring.done)? else { return Ok(None) };
        if let Some(bytes) = plain.frame(&ring.buffers, id, len) {
            taken[usize::from(ring.done.index)] = id;
            return Ok(Some(Frame { bytes, offload: None, slots: 1 }));
        }
        Self::gather(ring, taken, header, plain.mergeable, gather)
    }

    #[inline(always)]
    fn advance(&mut self, slots: u32) {
        // Fewer than the ring has.
        self.ring.done = self.ring.done.after(slots as u16, self.ring.size);
        self.count += slots as u16;
    }

    #[inline]
    fn release(&mut self) {
        // Every buffer has one descriptor, so what was taken first lies where the next one is to be made available.
        let mut position = self.ring.next;
        for _ in 0..self.count {
            let id = self.taken[usize::from(position.index)];
            Self::offer(&mut self.ring, position, id);
            position = position.after(1, self.ring.size);
        }
        self.ring.next = position;
        self.count = 0;
        self.owes_kick |= self.ring.publish();
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
