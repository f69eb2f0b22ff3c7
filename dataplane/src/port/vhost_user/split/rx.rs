//! A split ring of which the guest receives.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use ferrule_ffi::span::{Span, SpanMut};

use crate::offload::{Accepts, VnetHeader};
use crate::port::pieces::PieceReader;
use crate::port::vhost_user::chain::DescriptorChain;
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::guest::{FINISHED, MERGED_MAX, offered, write_finished};
use crate::port::vhost_user::split::SplitRing;
use crate::port::vhost_user::vring::{VringError, VringSetup};
use crate::port::{BURST, Fault, Frame, Put, Target};
use crate::status::DropReason;

/// Puts frames into the buffers that a guest offers in a split ring.
pub struct SplitRx {
    ring: SplitRing,
    /// Those of the chains that a frame is spread over.
    segments: DescriptorChain,
    /// What frames cost that did not fit into one buffer as they are.
    cost: u64,
    /// A frame may be spread over several chains.
    mergeable: bool,
    accepts: Accepts,
}

impl SplitRx {
    pub(crate) fn new(setup: &VringSetup) -> Result<Self, VringError> {
        let ring = SplitRing::new(setup, true)?;
        let accepts = ring.guest.accepts();
        let segments = DescriptorChain::new(true, setup.size);
        Ok(Self { ring, segments, cost: 0, mergeable: setup.features.has(Features::MRG_RXBUF), accepts })
    }

    pub(crate) fn exchange(&mut self, exchange: &EventfdExchange) {
        self.ring.guest.exchange(exchange);
    }

    /// Where a successor begins.
    pub(crate) fn base(&self) -> u32 {
        self.ring.done.into()
    }

    /// Stores a frame in whatever chains there are, or nothing of it.
    fn scatter(&mut self, pieces: &[Span<'_>], offload: Option<&VnetHeader>) -> Result<Put, Fault> {
        if !self.ring.guest.enabled {
            return Ok(Put::Full);
        }
        let ring = &mut self.ring;
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
        let header_len = ring.guest.header_len;
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
                ring.read_peer_index()?;
            }
            if position == ring.seen {
                return Ok(Put::Full);
            }
            let first = self.segments.len();
            let head = ring.collect(position, &mut self.segments)?;
            let room = self.segments.bytes(first).min(u64::from(u32::MAX)) as u32;
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
        let (segments, memory, dirty) = (&self.segments, &ring.guest.memory, &mut ring.guest.dirty);
        let mut written = |address, len| {
            if let Some(dirty) = dirty {
                dirty.note(address, len);
            }
        };
        let header = header.emit();
        let header = [Span::from(&header[..header_len as usize])];
        segments.fill(0, &mut PieceReader::new(&header), slot, memory, &mut written)?;
        segments.fill(header_len, &mut frame, slot, memory, written)?;
        ring.next = ring.next.wrapping_add(chains);
        Ok(Put::Stored)
    }
}

impl Target for SplitRx {
    #[inline]
    fn refresh(&mut self) -> Result<(), Fault> {
        self.ring.refresh()
    }

    // A function of its own, as `run` is.
    #[inline(never)]
    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        let ring = &mut self.ring;
        if ring.guest.dirty.is_some() || !ring.guest.enabled {
            return 0;
        }
        let header_len = ring.guest.header_len;
        let mut cached = ring.guest.memory.cached(ring.guest.cached);
        ring.prefetch_used(run.len());
        let mut rooms = ArrayVec::<SpanMut<'_>, BURST>::new();
        for (ahead, frame) in (0..ring.waiting().min(BURST as u16)).zip(run) {
            let position = ring.next.wrapping_add(ahead);
            let Some((head, descriptor)) = ring.entry(position) else { break };
            // No frame is as long as 4 GiB.
            let total = frame.len() as u32 + header_len;
            let Some(room) = offered(descriptor, &mut cached, total, header_len) else { break };
            // Not seen before the index is.
            ring.used.write((position & ring.mask).into(), [head.into(), total]);
            rooms.push(room);
        }
        let count = rooms.len();
        for (frame, room) in run.iter().zip(&mut rooms) {
            write_finished(room, header_len, *frame);
        }
        ring.guest.cached = cached.number;
        ring.next = ring.next.wrapping_add(count as u16);
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
        self.ring.complete()
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ring.guest.call()
    }

    fn accepts(&self) -> Accepts {
        self.accepts
    }
}
