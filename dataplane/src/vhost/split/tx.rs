//! A split ring of which the guest transmits.

use std::os::fd::BorrowedFd;

use crate::offload::VnetHeader;
use crate::port::{BURST, FRAME_MAX, Fault, Frame, Source};
use crate::vhost::chain::{Descriptor, Pieces};
use crate::vhost::guest::{Guest, prefetch_frame, read_header};
use crate::vhost::split::SplitRing;
use crate::vhost::vring::{VringError, VringSetup};

/// Takes the frames of a guest from a split ring.
pub struct SplitTx {
    ring: SplitRing,
    /// Those of a chain.
    pieces: Pieces,
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
        let pieces = Pieces::new(false, setup.size);
        Ok(Self { ring, pieces, last_head: 0, unfinished, header: VnetHeader::default(), owes_call: false })
    }

    /// Where a successor begins.
    pub(crate) fn base(&self) -> u32 {
        self.ring.done.into()
    }

    /// The frame at the next entry, whatever it looks like.
    #[cold]
    fn chain<'a>(
        ring: &'a SplitRing,
        pieces: &mut Pieces,
        header: Option<&'a mut VnetHeader>,
        gather: &'a mut [u8],
    ) -> Result<Option<Frame<'a>>, Fault> {
        pieces.clear();
        let head = ring.collect(ring.next, pieces)?;
        let Guest { memory, header_len, .. } = &ring.guest;
        let offload = pieces.header(*header_len, head, memory, header)?;
        // Empty, if there is no more than a header: every target refuses that and it is counted (CVE-2022-2132).
        let bytes = pieces.assemble(*header_len, head, memory, gather)?;
        Ok(Some(Frame { bytes, offload, slots: 1 }))
    }

    /// Takes a burst of what a disabled ring holds, and nobody gets it.
    #[cold]
    fn drain(&mut self) {
        for _ in 0..self.ring.ready.wrapping_sub(self.ring.next) {
            self.advance(1);
        }
    }
}

impl Source for SplitTx {
    #[inline]
    fn look(&mut self) -> Result<bool, Fault> {
        self.ring.read_ahead(prefetch_frame)?;
        let waiting = self.ring.ready != self.ring.next;
        if !self.ring.guest.enabled {
            self.drain();
        }
        Ok(waiting)
    }

    #[inline(always)]
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Self { ring, pieces, header, unfinished, .. } = self;
        if ring.next == ring.ready {
            return Ok(None);
        }
        let descriptor = Descriptor::split(ring.ahead[usize::from(ring.next) % BURST].words);
        let header_len = ring.guest.header_len as usize;
        if descriptor.flags & (Descriptor::NEXT | Descriptor::INDIRECT) == 0
            && let Some(piece) = ring.guest.memory.span(descriptor.address, descriptor.len, &mut ring.guest.near)
            && let Some(bytes) = piece.tail(header_len)
            && bytes.len() <= FRAME_MAX
        {
            let mut offload = None;
            if *unfinished && !bytes.is_empty() {
                *header = read_header(piece, header_len as u32);
                offload = (!header.is_plain()).then_some(&*header);
            }
            return Ok(Some(Frame { bytes, offload, slots: 1 }));
        }
        Self::chain(ring, pieces, unfinished.then_some(header), gather)
    }

    #[inline(always)]
    fn advance(&mut self, slots: u32) {
        let ring = &mut self.ring;
        self.last_head = ring.ahead[usize::from(ring.next) % BURST].head;
        if !ring.batches {
            ring.used.write((ring.next & ring.mask).into(), [self.last_head.into(), 0]);
        }
        // Every frame has one entry.
        ring.take(slots as u16);
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
    fn release_bell(&mut self) -> Option<BorrowedFd<'_>> {
        if std::mem::take(&mut self.owes_call) { self.ring.guest.call() } else { None }
    }

    fn want_bell(&mut self, wanted: bool) {
        self.ring.want_kick(wanted);
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.ring.guest.kick()
    }
}
