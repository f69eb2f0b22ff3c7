//! A packed ring of which the guest transmits.

use std::os::fd::BorrowedFd;

use crate::offload::VnetHeader;
use crate::port::pieces::Pieces;
use crate::port::vhost_user::chain::DescriptorChain;
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::guest::{Guest, read_header, sent};
use crate::port::vhost_user::packed::{PackedRing, ShadowUsed};
use crate::port::vhost_user::vring::{VringError, VringSetup};
use crate::port::{BURST, Fault, Frame, PieceFrame, Run, Source};

/// Takes the frames of a guest from a packed ring.
pub struct PackedTx {
    ring: PackedRing,
    /// Those of a chain.
    segments: DescriptorChain,
    /// The ids of the buffers that were shown, the next one's first.
    ids: [u16; BURST],
    /// The id of the buffer that was peeked: for a chain it is in the last descriptor.
    id: u16,
    /// Whether frames can be unfinished.
    unfinished: bool,
    /// The header of the frame that was peeked, if it is.
    header: VnetHeader,
    /// Whether the guest is to be interrupted for the last release.
    owes_call: bool,
}

impl PackedTx {
    pub(crate) fn new(setup: &VringSetup) -> Result<Self, VringError> {
        let ring = PackedRing::new(setup, false)?;
        let unfinished = ring.guest.sends_unfinished();
        let segments = DescriptorChain::new(false, setup.size);
        Ok(Self { ring, segments, ids: [0; BURST], id: 0, unfinished, header: VnetHeader::default(), owes_call: false })
    }

    pub(crate) fn exchange(&mut self, exchange: &EventfdExchange) {
        self.ring.guest.exchange(exchange);
    }

    /// Where a successor begins.
    pub(crate) fn base(&self) -> u32 {
        self.ring.base()
    }

    /// Lists the segments of the next buffer, whatever it looks like. How many slots it has, and what is left to do on its
    /// frame.
    #[cold]
    fn collect<'a>(
        ring: &PackedRing,
        segments: &mut DescriptorChain,
        last_id: &mut u16,
        header: Option<&'a mut VnetHeader>,
    ) -> Result<(u32, Option<&'a VnetHeader>), Fault> {
        segments.clear();
        let slot = ring.next.index;
        // Made available a moment ago and taken away again, which a guest must not do (2.8.21).
        let Some((id, slots)) = ring.collect(ring.next, segments)? else {
            return Err(Fault::OpenChain { slot: slot.into() });
        };
        *last_id = id;
        let Guest { memory, header_len, .. } = &ring.guest;
        Ok((slots.into(), segments.header(*header_len, slot, memory, header)?))
    }

    /// Whether its frames go anywhere.
    pub(crate) fn is_enabled(&self) -> bool {
        self.ring.guest.enabled
    }
}

impl Source for PackedTx {
    #[inline]
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.ring.guest.check_health()?;
        Ok(self.ring.available(self.ring.next).is_some())
    }

    // A function of its own: inlined into the loop around it, it would not get the registers it needs.
    #[inline(never)]
    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        let Self { ring, ids, unfinished, .. } = self;
        let header_len = ring.guest.header_len;
        let mut cached = ring.guest.memory.cached(ring.guest.cached);
        let mut position = ring.next;
        for shown in ids.iter_mut().take(ring.size.into()) {
            let Some(descriptor) = ring.available(position) else { break };
            let Some((frame, segment)) = sent(descriptor, &mut cached, header_len) else { break };
            if *unfinished && !read_header(segment, header_len).is_plain() {
                break;
            }
            *shown = descriptor.next;
            position = position.after(1, ring.size);
            run.push(frame);
        }
        ring.guest.cached = cached.number;
    }

    #[inline(always)]
    fn advance_run(&mut self, count: usize) {
        if self.ring.shadow_used.remaining_capacity() < BURST {
            self.release();
        }
        let taken = &self.ids[..count.min(BURST)];
        self.ring.shadow_used.extend(taken.iter().map(|&id| ShadowUsed { id, slots: 1, len: 0 }));
        // A run is no longer than a ring.
        self.ring.next = self.ring.next.after(taken.len() as u16, self.ring.size);
    }

    #[inline]
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Self { ring, segments, id, header, unfinished, .. } = self;
        if ring.available(ring.next).is_none() {
            return Ok(None);
        }
        let (slots, offload) = Self::collect(ring, segments, id, unfinished.then_some(header))?;
        let Guest { memory, header_len, .. } = &ring.guest;
        // Empty, if there is no more than a header: every target refuses that and it is counted (CVE-2022-2132).
        let bytes = segments.assemble(*header_len, ring.next.index, memory, gather)?;
        Ok(Some(Frame { bytes, offload, slots }))
    }

    fn peek_pieces<'a>(&'a mut self, pieces: &mut Pieces<'a>) -> Result<Option<PieceFrame<'a>>, Fault> {
        let Self { ring, segments, id, header, unfinished, .. } = self;
        if ring.available(ring.next).is_none() {
            return Ok(None);
        }
        let (slots, offload) = Self::collect(ring, segments, id, unfinished.then_some(header))?;
        let Guest { memory, header_len, .. } = &ring.guest;
        let fits = segments.pieces(*header_len, ring.next.index, memory, pieces)?;
        Ok(fits.then_some(PieceFrame { offload, slots }))
    }

    fn cost(&self, _length: usize, _slots: u32) -> u64 {
        self.segments.cost()
    }

    fn advance(&mut self, slots: u32) {
        if self.ring.shadow_used.is_full() {
            self.release();
        }
        // At most the ring's length.
        self.ring.take(ShadowUsed { id: self.id, slots: slots as u16, len: 0 });
    }

    #[inline]
    fn release(&mut self) {
        self.owes_call |= self.ring.complete();
    }

    #[inline]
    fn release_notify_fd(&mut self) -> Option<BorrowedFd<'_>> {
        if std::mem::take(&mut self.owes_call) { self.ring.guest.call() } else { None }
    }

    fn enable_notify(&mut self, wanted: bool) {
        self.ring.want_kick(wanted);
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ring.guest.kick()
    }
}
