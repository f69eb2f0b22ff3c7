//! A packed ring of which the guest receives.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use ferrule_ffi::span::{Span, SpanMut};

use crate::offload::{Accepts, VnetHeader};
use crate::port::pieces::PieceReader;
use crate::port::vhost_user::chain::DescriptorChain;
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::guest::{FINISHED, MERGED_MAX, offered, write_finished};
use crate::port::vhost_user::packed::{PackedRing, ShadowUsed, available};
use crate::port::vhost_user::vring::{VringError, VringSetup};
use crate::port::{BURST, Fault, Frame, Put, Target};
use crate::status::DropReason;

/// Puts frames into the buffers that a guest offers in a packed ring.
pub struct PackedRx {
    ring: PackedRing,
    /// Those of the chains that a frame is spread over.
    segments: DescriptorChain,
    /// What frames cost that did not fit into one buffer as they are.
    cost: u64,
    /// A frame may be spread over several buffers.
    mergeable: bool,
    accepts: Accepts,
    /// Whether the guest is to be interrupted for what had to be given back early.
    owes_call: bool,
}

impl PackedRx {
    pub(crate) fn new(setup: &VringSetup) -> Result<Self, VringError> {
        let ring = PackedRing::new(setup, true)?;
        let accepts = ring.guest.accepts();
        let segments = DescriptorChain::new(true, setup.size);
        Ok(Self {
            ring,
            segments,
            cost: 0,
            mergeable: setup.features.has(Features::MRG_RXBUF),
            accepts,
            owes_call: false,
        })
    }

    pub(crate) fn exchange(&mut self, exchange: &EventfdExchange) {
        self.ring.guest.exchange(exchange);
    }

    /// Where a successor begins.
    pub(crate) fn base(&self) -> u32 {
        self.ring.base()
    }

    /// Stores a frame in whatever buffers there are, or nothing of it.
    fn scatter(&mut self, pieces: &[Span<'_>], offload: Option<&VnetHeader>) -> Result<Put, Fault> {
        if !self.ring.guest.enabled {
            return Ok(Put::Full);
        }
        if self.ring.shadow_used.remaining_capacity() < MERGED_MAX {
            self.owes_call |= self.ring.complete();
        }
        let mut frame = PieceReader::new(pieces);
        let len = frame.len();
        if len == 0 {
            return Ok(Put::Refused(DropReason::TooShort));
        }
        let mut header = offload.copied().unwrap_or(FINISHED);
        if header.check(len).is_err() {
            return Ok(Put::Refused(DropReason::BadOffload));
        }
        header.flags &= VnetHeader::NEEDS_CSUM;
        let ring = &mut self.ring;
        let header_len = ring.guest.header_len;
        let mut buffers = ArrayVec::<ShadowUsed, MERGED_MAX>::new();
        let mut missing = header_len + len as u32;
        let mut position = ring.next;
        while missing > 0 {
            // A guest that offers buffers of a few bytes must not have us look through thousands for each frame.
            if buffers.is_full() || buffers.len() > usize::from(ring.size / 2) {
                return Ok(Put::Refused(DropReason::TooLong));
            }
            let first = self.segments.len();
            let Some((id, slots)) = ring.collect(position, &mut self.segments)? else { return Ok(Put::Full) };
            let room = self.segments.bytes(first).min(u64::from(u32::MAX)) as u32;
            if room < header_len {
                return Err(Fault::NoRoom { slot: position.index.into(), length: room });
            }
            if room < missing && !self.mergeable {
                return Ok(Put::Refused(DropReason::TooLong));
            }
            let len = room.min(missing);
            missing -= len;
            buffers.push(ShadowUsed { id, slots, len });
            position = position.after(slots, ring.size);
        }
        header.num_buffers = buffers.len() as u16;
        let (segments, memory, dirty) = (&self.segments, &ring.guest.memory, &mut ring.guest.dirty);
        let mut written = |address, len| {
            if let Some(dirty) = dirty {
                dirty.note(address, len);
            }
        };
        let header = header.emit();
        let slot = ring.next.index;
        let header = [Span::from(&header[..header_len as usize])];
        segments.fill(0, &mut PieceReader::new(&header), slot, memory, &mut written)?;
        segments.fill(header_len, &mut frame, slot, memory, written)?;
        buffers.into_iter().for_each(|taken| ring.take(taken));
        Ok(Put::Stored)
    }
}

impl Target for PackedRx {
    #[inline]
    fn refresh(&mut self) -> Result<(), Fault> {
        self.ring.guest.check_health()
    }

    // A function of its own, as `run` is.
    #[inline(never)]
    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        if self.ring.shadow_used.remaining_capacity() < BURST {
            self.owes_call |= self.ring.complete();
        }
        let ring = &mut self.ring;
        if ring.guest.dirty.is_some() || !ring.guest.enabled {
            return 0;
        }
        let PackedRing { desc, guest, shadow_used, next, size, .. } = ring;
        let header_len = guest.header_len;
        let mut cached = guest.memory.cached(guest.cached);
        let mut position = *next;
        let mut rooms = ArrayVec::<SpanMut<'_>, BURST>::new();
        for frame in run.iter().take(usize::from(*size).min(BURST)) {
            let Some(descriptor) = available(desc, position) else { break };
            // No frame is as long as 4 GiB.
            let len = frame.len() as u32 + header_len;
            let Some(room) = offered(descriptor, &mut cached, len, header_len) else { break };
            shadow_used.push(ShadowUsed { id: descriptor.next, slots: 1, len });
            position = position.after(1, *size);
            rooms.push(room);
        }
        let count = rooms.len();
        for (frame, room) in run.iter().zip(&mut rooms) {
            write_finished(room, header_len, *frame);
        }
        guest.cached = cached.number;
        *next = position;
        count
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        let stored = frame.offload.is_none() && self.put_run(&[frame.bytes]) == 1;
        if stored {
            return Ok(Put::Stored);
        }
        self.put_pieces(&[frame.bytes], frame.offload)
    }

    fn takes_pieces(&self) -> bool {
        true
    }

    fn put_pieces(&mut self, pieces: &[Span<'_>], offload: Option<&VnetHeader>) -> Result<Put, Fault> {
        self.segments.clear();
        let put = self.scatter(pieces, offload);
        self.cost += self.segments.cost();
        put
    }

    fn cost(&mut self) -> u64 {
        std::mem::take(&mut self.cost)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let wanted = self.ring.complete();
        std::mem::take(&mut self.owes_call) | wanted
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ring.guest.call()
    }

    fn accepts(&self) -> Accepts {
        self.accepts
    }
}
