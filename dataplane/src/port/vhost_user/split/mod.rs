//! Split virtqueues (virtio 1.2, section 2.7), the device's side.
//!
//! ```text
//!   avail   guest: ring of heads, index     "these chains are there"
//!   desc    guest: address, length, flags, next
//!   used    device: ring of (head, bytes written), index     "these chains are yours again"
//! ```
//! Indexes run freely over 16 bits. Chains are completed in the order in which they were made available, so entry *i* of
//! the used ring is always for entry *i* of the available ring, and one position serves both.

mod rx;
mod tx;

pub use rx::SplitRx;
pub use tx::SplitTx;

use std::sync::atomic::{Ordering, fence};

use ferrule_ffi::array::Array;
use ferrule_ffi::region::Index;

use crate::port::vhost_user::chain::{DescriptorChain, Links, VirtqDescriptor};
use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::guest::Guest;
use crate::port::vhost_user::inflight::SplitInflight;
use crate::port::vhost_user::vring::{VringError, VringSetup};
use crate::port::{BURST, Fault};

/// What both directions have in common.
struct SplitRing {
    desc: Array<[u64; 2]>,
    avail: Array<u16>,
    avail_index: Index,
    avail_flags: Index,
    used: Array<[u32; 2]>,
    used_index: Index,
    used_flags: Index,
    /// The guest: when to interrupt it.
    used_event: Index,
    /// We: when to be kicked.
    avail_event: Index,
    event_idx: bool,
    /// One used entry stands for a whole batch (2.7.9), which says nothing of lengths: for a transmit ring only.
    batches: bool,
    mask: u16,
    guest: Guest,
    /// The first entry not taken yet.
    next: u16,
    /// The guest's index when it was last read.
    seen: u16,
    /// What the guest last saw of our index.
    done: u16,
    /// For a successor, if the frontend keeps memory for that.
    inflight: Option<SplitInflight>,
}

impl SplitRing {
    fn new(setup: &VringSetup, writable: bool) -> Result<Self, VringError> {
        let size = setup.size;
        let [desc, avail, used] = setup.areas()?;
        let used_index = used.index(2)?;
        // In memory and not from SET_VRING_BASE: what was under way when a predecessor was killed is taken once more.
        let next = used_index.load();
        let mut ring = Self {
            desc: desc.array(0, size)?,
            avail: avail.array(4, size)?,
            avail_index: avail.index(2)?,
            avail_flags: avail.index(0)?,
            used: used.array(4, size)?,
            used_index,
            used_flags: used.index(0)?,
            used_event: avail.index(4 + 2 * u64::from(size))?,
            avail_event: used.index(4 + 8 * u64::from(size))?,
            event_idx: setup.features.has(Features::EVENT_IDX),
            batches: !writable && setup.features.has(Features::IN_ORDER),
            // At most 2^15 - 1.
            mask: (size - 1) as u16,
            guest: Guest::new(setup),
            next,
            seen: next,
            done: next,
            inflight: setup.inflight.as_ref().and_then(|block| SplitInflight::new(block, size as u16, next)),
        };
        ring.want_kick(false);
        Ok(ring)
    }

    /// Makes sure that a burst of entries is known, if there is one.
    #[inline(always)]
    fn refresh(&mut self) -> Result<(), Fault> {
        if usize::from(self.waiting()) < BURST { self.read_peer_index() } else { Ok(()) }
    }

    /// Entries that are known and not taken.
    #[inline(always)]
    fn waiting(&self) -> u16 {
        self.seen.wrapping_sub(self.next)
    }

    /// Fetches the used entries of the next `count` chains, as far as they are there: the guest has read them.
    #[inline(always)]
    fn prefetch_used(&self, count: usize) {
        for ahead in (0..self.waiting().min(count as u16)).step_by(USED_PER_LINE) {
            self.used.prefetch_write((self.next.wrapping_add(ahead) & self.mask).into());
        }
    }

    /// The head of the entry at `position` and the first descriptor of its chain; none if there is no such descriptor.
    #[inline(always)]
    fn entry(&self, position: u16) -> Option<(u16, VirtqDescriptor)> {
        let head = self.avail.read((position & self.mask).into());
        (head <= self.mask).then(|| (head, VirtqDescriptor::split(self.desc.read(head.into()))))
    }

    /// Reads the guest's index.
    #[inline]
    fn read_peer_index(&mut self) -> Result<(), Fault> {
        let seen = self.avail_index.load();
        if seen.wrapping_sub(self.next) > self.mask.wrapping_add(1) {
            let size = u32::from(self.mask) + 1;
            return Err(Fault::Index { from: self.seen.into(), to: seen.into(), size });
        }
        self.seen = seen;
        self.guest.check_health()
    }

    /// Lists the segments of the chain that begins at `position`. Its head.
    fn collect(&self, position: u16, segments: &mut DescriptorChain) -> Result<u16, Fault> {
        let head = self.avail.read((position & self.mask).into());
        let mut slot = head;
        // As many steps as descriptors: links in a circle end here.
        for _ in 0..=self.mask {
            if slot > self.mask {
                let (entry, size) = ((position & self.mask).into(), u32::from(self.mask) + 1);
                return Err(Fault::Head { entry, head: slot.into(), size });
            }
            let descriptor = VirtqDescriptor::split(self.desc.read(slot.into()));
            if !segments.add(descriptor, head, Links::Split, &self.guest.memory)? {
                return Ok(head);
            }
            slot = descriptor.next;
        }
        Err(Fault::Oversize { slot: head.into() })
    }

    /// Gives the guest all entries before `next` back. Whether it wants to be interrupted.
    #[inline]
    fn complete(&mut self) -> bool {
        let (old, new) = (self.done, self.next);
        if old == new {
            return false;
        }
        if self.guest.dirty.is_some() {
            self.log_entries(old, new);
        }
        self.done = new;
        if let Some(inflight) = &self.inflight {
            // Of a batch, the only entry that was written is the first one; it names the last.
            let entry = if self.batches { old } else { new.wrapping_sub(1) };
            let [last, _] = self.used.read((entry & self.mask).into());
            inflight.begin(last as u16 & self.mask);
        }
        self.used_index.store(new);
        if let Some(inflight) = &self.inflight {
            inflight.finish(new);
        }
        self.log_now(2);
        if self.guest.call().is_none() {
            return false;
        }
        // Without it the load below could come before the store above, and a guest that asks for an interrupt in between
        // and finds nothing would sleep for ever.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.used_event.load();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.avail_flags.load() & NO_INTERRUPT == 0
        }
    }

    /// Sets the bits of everything written since the last time.
    #[cold]
    fn log_entries(&mut self, old: u16, new: u16) {
        let Some(dirty) = &mut self.guest.dirty else { return };
        let count = if self.batches { 1 } else { new.wrapping_sub(old) };
        for entry in 0..count {
            dirty.note_used(4 + 8 * u32::from(old.wrapping_add(entry) & self.mask), 8);
        }
        dirty.flush();
    }

    fn want_kick(&mut self, wanted: bool) {
        if !self.event_idx {
            self.used_flags.store(if wanted { 0 } else { NO_NOTIFY });
            self.log_now(0);
        } else if wanted {
            self.avail_event.store(self.next);
            self.log_now(4 + 8 * (u32::from(self.mask) + 1));
        }
        if wanted {
            // The guest stores its index, fences, loads the flags; we the other way round: one of the two sees the
            // other's store. (Model-checked in `crate::sleep`.)
            fence(Ordering::SeqCst);
        }
    }

    /// Sets the bit of a word of the used ring that was just written. After it: a bit set before could be harvested
    /// before the word is there.
    #[inline]
    fn log_now(&mut self, offset: u32) {
        if let Some(dirty) = &mut self.guest.dirty {
            dirty.note_used(offset, 2);
            dirty.flush();
        }
    }
}

/// Used entries in a cache line.
const USED_PER_LINE: usize = 8;
/// In `avail.flags`: the guest does not want to be interrupted (2.7.6).
const NO_INTERRUPT: u16 = 1;
/// In `used.flags`: we do not want to be kicked (2.7.8).
const NO_NOTIFY: u16 = 1;
