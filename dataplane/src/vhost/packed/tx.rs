//! A packed ring of which the guest transmits.

use std::os::fd::BorrowedFd;

use crate::offload::VnetHeader;
use crate::port::{FRAME_MAX, Fault, Frame, Source};
use crate::vhost::chain::{Descriptor, Pieces};
use crate::vhost::guest::{Guest, prefetch_frame, read_header};
use crate::vhost::packed::{PackedRing, Taken};
use crate::vhost::vring::{VringError, VringSetup};

/// Takes the frames of a guest from a packed ring.
pub struct PackedTx {
    ring: PackedRing,
    /// Those of a chain.
    pieces: Pieces,
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
        let pieces = Pieces::new(false, setup.size);
        Ok(Self { ring, pieces, id: 0, unfinished, header: VnetHeader::default(), owes_call: false })
    }

    /// Where a successor begins.
    pub(crate) fn base(&self) -> u32 {
        self.ring.base()
    }

    /// The frame of the next buffer, whatever it looks like.
    #[cold]
    fn chain<'a>(
        ring: &'a PackedRing,
        pieces: &mut Pieces,
        last_id: &mut u16,
        header: Option<&'a mut VnetHeader>,
        gather: &'a mut [u8],
    ) -> Result<Option<Frame<'a>>, Fault> {
        pieces.clear();
        let slot = ring.next.index;
        // Made available a moment ago and taken away again, which a guest must not do (2.8.21).
        let Some((id, slots)) = ring.collect(ring.next, pieces)? else {
            return Err(Fault::OpenChain { slot: slot.into() });
        };
        *last_id = id;
        let Guest { memory, header_len, .. } = &ring.guest;
        let offload = pieces.header(*header_len, slot, memory, header)?;
        // Empty, if there is no more than a header: every target refuses that and it is counted (CVE-2022-2132).
        let bytes = pieces.assemble(*header_len, slot, memory, gather)?;
        Ok(Some(Frame { bytes, offload, slots: slots.into() }))
    }

    /// Takes a burst of what a disabled ring holds, and nobody gets it.
    #[cold]
    fn drain(&mut self) -> Result<(), Fault> {
        for _ in 0..self.ring.ahead {
            self.pieces.clear();
            let Some((id, slots)) = self.ring.collect(self.ring.next, &mut self.pieces)? else { break };
            self.ring.take(Taken { id, slots, len: 0 });
        }
        Ok(())
    }
}

impl Source for PackedTx {
    #[inline]
    fn look(&mut self) -> Result<bool, Fault> {
        self.ring.read_ahead(prefetch_frame)?;
        let waiting = self.ring.ahead > 0;
        if !self.ring.guest.enabled {
            self.drain()?;
        }
        Ok(waiting)
    }

    #[inline(always)]
    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Self { ring, pieces, id, header, unfinished, .. } = self;
        let Some(descriptor) = ring.front() else { return Ok(None) };
        let header_len = ring.guest.header_len as usize;
        if descriptor.flags & (Descriptor::NEXT | Descriptor::INDIRECT) == 0
            && let Some(piece) = ring.guest.memory.span(descriptor.address, descriptor.len, &mut ring.guest.near)
            && let Some(bytes) = piece.tail(header_len)
            && bytes.len() <= FRAME_MAX
        {
            *id = descriptor.next;
            let mut offload = None;
            if *unfinished && !bytes.is_empty() {
                *header = read_header(piece, header_len as u32);
                offload = (!header.is_plain()).then_some(&*header);
            }
            return Ok(Some(Frame { bytes, offload, slots: 1 }));
        }
        Self::chain(ring, pieces, id, unfinished.then_some(header), gather)
    }

    #[inline(always)]
    fn advance(&mut self, slots: u32) {
        if self.ring.taken.is_full() {
            self.release();
        }
        // At most the ring's length.
        self.ring.take(Taken { id: self.id, slots: slots as u16, len: 0 });
    }

    #[inline]
    fn release(&mut self) {
        self.owes_call |= self.ring.complete();
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
