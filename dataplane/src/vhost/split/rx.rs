//! A split ring of which the guest receives.

use std::os::fd::BorrowedFd;

use ferrule_ffi::span::Span;

use crate::offload::{Accepts, VnetHeader};
use crate::port::{BURST, Fault, Frame, Put, Target};
use crate::status::DropReason;
use crate::vhost::chain::{Descriptor, Pieces};
use crate::vhost::features::Features;
use crate::vhost::guest::{FINISHED, MERGED_MAX, prefetch_room, write_finished};
use crate::vhost::split::{Entry, SplitRing};
use crate::vhost::vring::{VringError, VringSetup};

/// Puts frames into the buffers that a guest offers in a split ring.
pub struct SplitRx {
    ring: SplitRing,
    /// Those of the chains that a frame is spread over.
    pieces: Pieces,
    /// A frame may be spread over several chains.
    mergeable: bool,
    accepts: Accepts,
}

impl SplitRx {
    pub(crate) fn new(setup: &VringSetup) -> Result<Self, VringError> {
        let ring = SplitRing::new(setup, true)?;
        let accepts = ring.guest.accepts();
        let pieces = Pieces::new(true, setup.size);
        Ok(Self { ring, pieces, mergeable: setup.features.has(Features::MRG_RXBUF), accepts })
    }

    /// Where a successor begins.
    pub(crate) fn base(&self) -> u32 {
        self.ring.done.into()
    }

    /// Stores a frame in whatever chains there are, or nothing of it.
    #[cold]
    fn scatter(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        if !self.ring.guest.enabled {
            return Ok(Put::Full);
        }
        if self.ring.next == self.ring.ready {
            self.look()?;
            return if self.ring.next == self.ring.ready { Ok(Put::Full) } else { self.put(frame) };
        }
        let ring = &mut self.ring;
        let len = frame.bytes.len();
        if len == 0 {
            return Ok(Put::Refused(DropReason::TooShort));
        }
        let mut header = frame.offload.copied().unwrap_or(FINISHED);
        if header.check(len).is_err() {
            return Ok(Put::Refused(DropReason::BadOffload));
        }
        header.flags &= VnetHeader::NEEDS_CSUM;
        let header_len = ring.guest.header_len;
        self.pieces.clear();
        let mut missing = header_len + len as u32;
        let mut chains = 0u16;
        let mut slot = 0;
        while missing > 0 {
            let position = ring.next.wrapping_add(chains);
            // A guest that offers buffers of a few bytes must not have us look through thousands for each frame.
            if usize::from(chains) == MERGED_MAX || chains > ring.mask / 2 + 1 {
                return Ok(Put::Refused(DropReason::TooLong));
            }
            if position == ring.seen {
                ring.refresh()?;
            }
            if position == ring.seen {
                return Ok(Put::Full);
            }
            let first = self.pieces.len();
            let head = ring.collect(position, &mut self.pieces)?;
            let room = self.pieces.bytes(first).min(u64::from(u32::MAX)) as u32;
            if room < header_len {
                return Err(Fault::NoRoom { slot: head.into(), length: room });
            }
            if room < missing && !self.mergeable {
                return Ok(Put::Refused(DropReason::TooLong));
            }
            if chains == 0 {
                slot = head;
            }
            let stored = room.min(missing);
            // Not seen before the index is.
            ring.used.write((position & ring.mask).into(), [head.into(), stored]);
            missing -= stored;
            chains += 1;
        }
        header.num_buffers = chains;
        let (pieces, memory, marks) = (&self.pieces, &ring.guest.memory, &mut ring.guest.marks);
        let mut written = |address, len| {
            if let Some(marks) = marks {
                marks.note(address, len);
            }
        };
        let header = header.emit();
        pieces.fill(0, Span::from(&header[..header_len as usize]), slot, memory, &mut written)?;
        pieces.fill(header_len, frame.bytes, slot, memory, written)?;
        ring.take(chains);
        Ok(Put::Stored)
    }
}

impl Target for SplitRx {
    #[inline]
    fn look(&mut self) -> Result<(), Fault> {
        self.ring.read_ahead(prefetch_room)
    }

    #[inline(always)]
    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        let ring = &mut self.ring;
        let Entry { words, head } = ring.ahead[usize::from(ring.next) % BURST];
        let descriptor = Descriptor::split(words);
        let header_len = ring.guest.header_len;
        let total = frame.bytes.len() as u32 + header_len;
        let usual = ring.next != ring.ready
            && descriptor.flags == Descriptor::WRITE
            && total <= descriptor.len
            && total > header_len
            && frame.offload.is_none()
            && ring.guest.marks.is_none()
            && ring.guest.enabled;
        if usual && let Some(room) = ring.guest.memory.span_mut(descriptor.address, total, &mut ring.guest.near) {
            write_finished(room, header_len, frame.bytes);
            ring.used.write((ring.next & ring.mask).into(), [head.into(), total]);
            ring.next = ring.next.wrapping_add(1);
            return Ok(Put::Stored);
        }
        self.scatter(frame)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        self.ring.complete()
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.ring.guest.call()
    }

    fn accepts(&self) -> Accepts {
        self.accepts
    }
}
