//! A split ring of which the guest transmits.

use std::os::fd::BorrowedFd;

use crate::offload::VnetHeader;
use crate::port::pieces::Pieces;
use crate::port::vhost_user::chain::DescriptorChain;
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::guest::{Guest, read_header, sent};
use crate::port::vhost_user::split::SplitRing;
use crate::port::vhost_user::vring::{VringError, VringSetup};
use crate::port::{BURST, Fault, Frame, PieceFrame, Run, Source};

/// Takes the frames of a guest from a split ring.
pub struct SplitTx {
    ring: SplitRing,
    /// Those of a chain.
    segments: DescriptorChain,
    /// The heads of the chains that were shown, the next one's first.
    heads: [u16; BURST],
    /// The head of the chain that was peeked, which need not be taken: the target can be full.
    peeked_head: u16,
    /// The head of the last chain taken.
    last_head: u16,
    /// Whether frames can be unfinished.
    unfinished: bool,
    /// The header of the frame that was peeked, if it is.
    header: VnetHeader,
    /// Whether the guest is to be interrupted for the last release.
    owes_call: bool,
}

impl SplitTx {
    pub(crate) fn new(setup: &VringSetup) -> Result<Self, VringError> {
        let ring = SplitRing::new(setup, false)?;
        let unfinished = ring.guest.sends_unfinished();
        let segments = DescriptorChain::new(false, setup.size);
        Ok(Self {
            ring,
            segments,
            heads: [0; BURST],
            peeked_head: 0,
            last_head: 0,
            unfinished,
            header: VnetHeader::default(),
            owes_call: false,
        })
    }

    pub(crate) fn exchange(&mut self, exchange: &EventfdExchange) {
        self.ring.guest.exchange(exchange);
    }

    /// Where a successor begins.
    pub(crate) fn base(&self) -> u32 {
        self.ring.done.into()
    }

    /// Lists the segments of the frame at the next entry, whatever it looks like. Its head, and what is left to do on it.
    #[cold]
    fn collect<'a>(
        ring: &SplitRing,
        segments: &mut DescriptorChain,
        peeked_head: &mut u16,
        header: Option<&'a mut VnetHeader>,
    ) -> Result<(u16, Option<&'a VnetHeader>), Fault> {
        segments.clear();
        let head = ring.collect(ring.next, segments)?;
        *peeked_head = head;
        let Guest { memory, header_len, .. } = &ring.guest;
        Ok((head, segments.header(*header_len, head, memory, header)?))
    }

    /// Whether its frames go anywhere.
    pub(crate) fn is_enabled(&self) -> bool {
        self.ring.guest.enabled
    }

    #[inline(always)]
    fn take(&mut self, head: u16) {
        let ring = &mut self.ring;
        if !ring.batches {
            ring.used.write((ring.next & ring.mask).into(), [head.into(), 0]);
        }
        self.last_head = head;
        ring.next = ring.next.wrapping_add(1);
    }
}

impl Source for SplitTx {
    #[inline]
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.ring.refresh()?;
        Ok(self.ring.waiting() > 0)
    }

    // A function of its own: inlined into the loop around it, it would not get the registers it needs.
    #[inline(never)]
    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        let Self { ring, heads, unfinished, .. } = self;
        if !ring.batches {
            ring.prefetch_used(BURST);
        }
        let header_len = ring.guest.header_len;
        let mut cached = ring.guest.memory.cached(ring.guest.cached);
        for (ahead, shown) in (0..ring.waiting()).zip(heads) {
            let Some((head, descriptor)) = ring.entry(ring.next.wrapping_add(ahead)) else { break };
            let Some((frame, segment)) = sent(descriptor, &mut cached, header_len) else { break };
            if *unfinished && !read_header(segment, header_len).is_plain() {
                break;
            }
            *shown = head;
            run.push(frame);
        }
        ring.guest.cached = cached.number;
    }

    // A function of its own, as `run` is.
    #[inline(never)]
    fn advance_run(&mut self, count: usize) {
        let Self { ring, heads, last_head, .. } = self;
        let taken = &heads[..count.min(BURST)];
        let Some(&last) = taken.last() else { return };
        *last_head = last;
        if !ring.batches {
            for (ahead, &head) in taken.iter().enumerate() {
                // At most a burst.
                let position = ring.next.wrapping_add(ahead as u16);
                ring.used.write((position & ring.mask).into(), [head.into(), 0]);
            }
        }
        ring.next = ring.next.wrapping_add(taken.len() as u16);
    }

    #[inline]
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Self { ring, segments, peeked_head, header, unfinished, .. } = self;
        if ring.waiting() == 0 {
            return Ok(None);
        }
        let (head, offload) = Self::collect(ring, segments, peeked_head, unfinished.then_some(header))?;
        let Guest { memory, header_len, .. } = &ring.guest;
        // Empty, if there is no more than a header: every target refuses that and it is counted (CVE-2022-2132).
        let bytes = segments.assemble(*header_len, head, memory, gather)?;
        Ok(Some(Frame { bytes, offload, slots: 1 }))
    }

    fn peek_pieces<'a>(&'a mut self, pieces: &mut Pieces<'a>) -> Result<Option<PieceFrame<'a>>, Fault> {
        let Self { ring, segments, peeked_head, header, unfinished, .. } = self;
        if ring.waiting() == 0 {
            return Ok(None);
        }
        let (head, offload) = Self::collect(ring, segments, peeked_head, unfinished.then_some(header))?;
        let Guest { memory, header_len, .. } = &ring.guest;
        Ok(segments.pieces(*header_len, head, memory, pieces)?.then_some(PieceFrame { offload, slots: 1 }))
    }

    fn cost(&self, _length: usize, _slots: u32) -> u64 {
        self.segments.cost()
    }

    /// Every frame has one entry.
    fn advance(&mut self, _slots: u32) {
        self.take(self.peeked_head);
    }

    #[inline]
    fn release(&mut self) {
        let ring = &self.ring;
        if ring.batches && ring.next != ring.done {
            // At the place of the batch's first, with the head of its last.
            ring.used.write((ring.done & ring.mask).into(), [self.last_head.into(), 0]);
        }
        self.owes_call = self.ring.complete();
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
