//! Packed virtqueues (virtio 1.2, section 2.8), the device's side.
//!
//! One ring of descriptors, written by both sides in turn. Two flags of each say whose it is, compared with a wrap
//! counter that flips at each round:
//!
//! ```text
//!   AVAIL == round, USED != round    the guest has made it available
//!   AVAIL == round, USED == round    we have used it
//! ```
//! Buffers are used in the order in which they were made available, so the used element of a buffer takes the place of
//! its first descriptor.

pub(crate) mod position;
mod rx;
mod tx;

pub use position::{AVAIL, Position, USED};
pub use rx::PackedRx;
pub use tx::PackedTx;

use std::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;
use ferrule_ffi::array::Array;

use crate::port::vhost_user::chain::{DescriptorChain, Links, VirtqDescriptor};
use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::guest::{Guest, MERGED_MAX};
use crate::port::vhost_user::inflight::PackedInflight;
use crate::port::vhost_user::vring::{VringError, VringSetup};
use crate::port::{BURST, Fault};

/// What both directions have in common.
struct PackedRing {
    desc: Array<[u64; 2]>,
    /// The guest: when to interrupt it.
    driver_event: Array<u32>,
    /// We: when to be kicked.
    device_event: Array<u32>,
    size: u16,
    /// One used element stands for a whole batch (2.8.14), which says nothing of lengths: for a transmit ring only.
    batches: bool,
    /// What a used element says beside whose it is: WRITE, in its place, where we have written to the buffer. Without it
    /// the length means nothing (2.8.5).
    written: u64,
    guest: Guest,
    /// The guest address of the descriptors, for the dirty log.
    desc_guest: u64,
    /// The first descriptor not taken yet.
    next: Position,
    /// The first one not given back yet.
    done: Position,
    /// For a successor, if the frontend keeps memory for that.
    inflight: Option<PackedInflight>,
    /// Buffers taken and not given back.
    shadow_used: ArrayVec<ShadowUsed, SHADOW_USED_MAX>,
}

/// A buffer that was taken: its id, how many descriptors it had, how many bytes we wrote.
#[derive(Clone, Copy)]
struct ShadowUsed {
    id: u16,
    slots: u16,
    len: u32,
}

impl PackedRing {
    fn new(setup: &VringSetup, writable: bool) -> Result<Self, VringError> {
        let VringSetup { index, size, base, .. } = *setup;
        let [desc, driver_event, device_event] = setup.areas()?;
        // What a predecessor took and did not use is taken once more. DPDK's frontend sends the low half only.
        let used = if base >> 16 == 0 { base } else { base >> 16 };
        let next = Position::parse(used as u16);
        if u32::from(next.index) >= size {
            return Err(VringError::Base { index, base, size });
        }
        let (desc_guest, desc) = (desc.guest, desc.array(0, size)?);
        // At most 2^15.
        let size = size as u16;
        let found = setup.inflight.as_ref().and_then(|block| PackedInflight::new(block, size, next, &desc));
        let (inflight, next) = found.map_or((None, next), |(inflight, next)| (Some(inflight), next));
        let mut ring = Self {
            desc_guest,
            desc,
            driver_event: driver_event.array(0, 1)?,
            device_event: device_event.array(0, 1)?,
            size,
            batches: !writable && setup.features.has(Features::IN_ORDER),
            written: if writable { u64::from(VirtqDescriptor::WRITE) << 48 } else { 0 },
            guest: Guest::new(setup),
            next,
            done: next,
            inflight,
            shadow_used: ArrayVec::new(),
        };
        ring.want_kick(false);
        Ok(ring)
    }

    /// As GET_VRING_BASE carries it: taken and used are the same once everything was given back.
    fn base(&self) -> u32 {
        let done = u32::from(self.done.emit());
        done | done << 16
    }

    /// The descriptor at `position`, if the guest has made it available.
    #[inline(always)]
    fn available(&self, position: Position) -> Option<VirtqDescriptor> {
        available(&self.desc, position)
    }

    /// Lists the segments of the chain that begins at `position`. Its id and how many
    /// descriptors it has; none: there is no chain.
    fn collect(&self, position: Position, segments: &mut DescriptorChain) -> Result<Option<(u16, u16)>, Fault> {
        let mut at = position;
        for slots in 1..=self.size {
            let Some(descriptor) = self.available(at) else {
                // The guest makes a chain's first descriptor available after all others (2.8.8).
                return if slots == 1 { Ok(None) } else { Err(Fault::OpenChain { slot: position.index.into() }) };
            };
            if !segments.add(descriptor, at.index, Links::Packed, &self.guest.memory)? {
                // The id is in the last one (2.8.6).
                return Ok(Some((descriptor.next, slots)));
            }
            at = at.after(1, self.size);
        }
        Err(Fault::Oversize { slot: position.index.into() })
    }

    /// Moves on behind a buffer.
    #[inline(always)]
    fn take(&mut self, taken: ShadowUsed) {
        self.shadow_used.push(taken);
        self.next = self.next.after(taken.slots, self.size);
    }

    /// Gives the guest everything taken back. Whether it wants to be interrupted.
    #[inline]
    fn complete(&mut self) -> bool {
        let Some(&ShadowUsed { id, len, slots }) = self.shadow_used.first() else { return false };
        let old = self.done;
        if let Some(inflight) = &self.inflight {
            inflight.begin(old, self.next);
        }
        if self.batches {
            let last = self.shadow_used.last().map_or(id, |last| last.id);
            self.use_one(old, last, 0);
        } else {
            if self.inflight.is_some() {
                self.keep_overwritten(old);
            }
            // The first one last: the guest sees none before it sees them all.
            let mut at = old.after(slots, self.size);
            for taken in &self.shadow_used[1..] {
                self.use_one(at, taken.id, taken.len);
                at = at.after(taken.slots, self.size);
            }
            if let Some(dirty) = &mut self.guest.dirty {
                dirty.flush();
            }
            self.use_one(old, id, len);
        }
        self.done = self.next;
        if let Some(inflight) = &self.inflight {
            inflight.finish(self.next);
        }
        if self.guest.dirty.is_some() {
            self.log_elements(old);
        }
        self.shadow_used.clear();
        self.guest.call().is_some() && self.wants_interrupt(old)
    }

    /// Keeps the descriptors that are used before the first one, for a successor of one killed in between.
    #[cold]
    fn keep_overwritten(&self, old: Position) {
        let Some(inflight) = &self.inflight else { return };
        let mut at = old;
        for pair in self.shadow_used.windows(2) {
            at = at.after(pair[0].slots, self.size);
            inflight.keep(at, self.desc.load_second(at.index.into()));
        }
    }

    /// Writes a used element; its address stays as it is.
    #[inline(always)]
    fn use_one(&self, at: Position, id: u16, len: u32) {
        let second = u64::from(len) | u64::from(id) << 32 | u64::from(at.used()) << 48 | self.written;
        self.desc.store_second(at.index.into(), second);
    }

    /// Whether the guest wants an interrupt for what was used from `old` on (2.8.10).
    #[inline]
    fn wants_interrupt(&self, old: Position) -> bool {
        // Without it the load below could come before the stores above, and a guest that asks for an interrupt in between
        // and finds nothing would sleep for ever.
        fence(Ordering::SeqCst);
        needs_event(self.driver_event.read(0), old, self.done, self.size)
    }

    /// Sets the bits of the elements that were written.
    #[cold]
    fn log_elements(&mut self, old: Position) {
        let Some(dirty) = &mut self.guest.dirty else { return };
        let mut at = old;
        let written = if self.batches { 1 } else { self.shadow_used.len() };
        for taken in &self.shadow_used[..written] {
            dirty.note(self.desc_guest + 16 * u64::from(at.index), 16);
            at = at.after(taken.slots, self.size);
        }
        dirty.flush();
    }

    fn want_kick(&mut self, wanted: bool) {
        let flags = if wanted { EVENT_ENABLE } else { EVENT_DISABLE };
        self.device_event.write(0, u32::from(flags) << 16);
        if let Some(dirty) = &mut self.guest.dirty {
            dirty.note_used(0, 4);
            dirty.flush();
        }
        if wanted {
            // The guest makes descriptors available, fences, loads the flags; we the other way round: one of the two
            // sees the other's store. (Model-checked in `crate::sleep`.)
            fence(Ordering::SeqCst);
        }
    }
}

/// The descriptor at `position`, if the guest has made it available.
#[inline(always)]
fn available(desc: &Array<[u64; 2]>, position: Position) -> Option<VirtqDescriptor> {
    let second = desc.load_second(position.index.into());
    let flags = (second >> 48) as u16;
    let available = flags & (AVAIL | USED) == position.available();
    available.then(|| VirtqDescriptor::packed([desc.read_first(position.index.into()), second]))
}

/// Whether whoever wrote this event structure wants to be told of what was done from `old` to `new` (2.8.10).
#[inline]
pub fn needs_event(event: u32, old: Position, new: Position, size: u16) -> bool {
    match (event >> 16) as u16 & EVENT_FLAGS {
        EVENT_DISABLE => false,
        EVENT_DESC => {
            let event = Position::parse(event as u16);
            // Counted from where the round of `new` begins, which can be negative for the others.
            let count =
                |position: Position| position.index.wrapping_sub(if position.wrap == new.wrap { 0 } else { size });
            let ahead = new.index.wrapping_sub(count(event)).wrapping_sub(1);
            ahead < new.index.wrapping_sub(count(old))
        }
        _ => true,
    }
}

/// Buffers given back at once: a burst of them, and a frame over several.
const SHADOW_USED_MAX: usize = BURST + MERGED_MAX;
/// The bits of an event structure that hold its flags (2.8.10).
pub const EVENT_FLAGS: u16 = 3;
/// Flags of an event structure: notify of every buffer.
pub const EVENT_ENABLE: u16 = 0;
/// Flags of an event structure: notify of none.
pub const EVENT_DISABLE: u16 = 1;
/// Flags of an event structure: notify when a given descriptor was passed.
const EVENT_DESC: u16 = 2;
