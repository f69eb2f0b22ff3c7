//! What workers do with the queues of a device: a frame is copied once, between the other end's memory and an mbuf.

use std::any::Any;
use std::os::fd::BorrowedFd;

use ferrule_dataplane::offload::{Accepts, NicOffload, VnetHeader, finish_checksum};
use ferrule_dataplane::port::pieces::Pieces;
use ferrule_dataplane::port::{Fault, Frame, MoveEnd, Moved, PieceFrame, Put, Run, SEGMENT_COST, Source, Target};
use ferrule_dataplane::status::DropReason;
use ferrule_dpdk::config::{BURST, Finishes};
use ferrule_dpdk::finish::{DeviceFinish, Finish};
use ferrule_dpdk::queue::{MoveEnd as QueueEnd, MovedFrames, RxQueue, Stored, TxQueue};
use ferrule_ffi::span::Span;

/// What comes from a device.
pub struct EthdevSource {
    rx: RxQueue,
    /// As many frames may still lie in it from before both ends of its wire were there. They are drained, up to the moment that none is left.
    waiting: usize,
}

impl EthdevSource {
    /// Of this queue.
    pub fn new(rx: RxQueue) -> Self {
        Self { rx, waiting: 0 }
    }

    /// When the frames that come next arrived, by the clock of the device; how many of the first ones say so.
    pub fn stamps(&self, stamps: &mut [u64; BURST]) -> usize {
        self.rx.stamps(stamps)
    }
}

impl Source for EthdevSource {
    #[inline]
    fn refresh(&mut self) -> Result<bool, Fault> {
        let has_frames = self.rx.poll();
        if !has_frames {
            self.waiting = 0;
        }
        Ok(has_frames)
    }

    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        if let Some(bytes) = self.rx.plain().next() {
            return Ok(Some(Frame { bytes: bytes.into(), offload: None, slots: 1 }));
        }
        if !self.rx.has_pending() {
            return Ok(None);
        }
        let (mut len, mut slots) = (0, 0);
        for piece in self.rx.pieces() {
            // The queue shows no frame that is longer than any may be.
            let Some(room) = gather.get_mut(len..len + piece.len()) else { break };
            room.copy_from_slice(piece);
            (len, slots) = (len + piece.len(), slots + 1);
        }
        Ok(Some(Frame { bytes: Span::from(&gather[..len]), offload: None, slots }))
    }

    fn peek_pieces<'a>(&'a mut self, pieces: &mut Pieces<'a>) -> Result<Option<PieceFrame<'a>>, Fault> {
        if !self.rx.has_pending() || self.rx.plain().next().is_some() {
            return Ok(None);
        }
        pieces.extend(self.rx.pieces().into_iter().map(Span::from));
        let slots = pieces.len() as u32;
        Ok((slots > 0).then_some(PieceFrame { offload: None, slots }))
    }

    #[inline]
    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        run.extend(self.rx.plain().map(Span::from));
    }

    #[inline]
    fn advance_run(&mut self, count: usize) {
        self.waiting = self.waiting.saturating_sub(count);
        self.rx.take(count);
    }

    #[inline]
    fn move_to(&mut self, target: &mut dyn Any) -> Option<Moved> {
        let EthdevTarget(tx) = target.downcast_mut::<EthdevTarget>()?;
        let MovedFrames { count, bytes, end } = tx.move_from(&mut self.rx);
        let end = match end {
            QueueEnd::Empty => MoveEnd::Empty,
            QueueEnd::Full => MoveEnd::Full,
            QueueEnd::Unmovable => MoveEnd::Unmovable,
        };
        Some(Moved { frames: count, bytes, end })
    }

    fn cost(&self, length: usize, slots: u32) -> u64 {
        if slots > 1 { length as u64 + u64::from(slots) * SEGMENT_COST } else { 0 }
    }

    fn advance(&mut self, _slots: u32) {
        self.advance_run(1);
    }

    #[inline]
    fn release(&mut self) {
        self.rx.release();
    }

    fn enable_notify(&mut self, wanted: bool) {
        self.rx.arm(wanted);
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.rx.interrupt_fd()
    }

    fn is_enabled(&self) -> bool {
        self.waiting == 0
    }

    fn drop_waiting(&mut self) {
        self.waiting = WAITING_MAX;
    }

    fn must_poll(&self) -> bool {
        !self.rx.has_interrupt()
    }
}

/// What goes to a device.
pub struct EthdevTarget(TxQueue);

impl EthdevTarget {
    /// By this queue.
    pub fn new(tx: TxQueue) -> Self {
        Self(tx)
    }
}

impl Target for EthdevTarget {
    fn refresh(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    #[inline]
    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        self.0.store_run(run)
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        self.put_pieces(&[frame.bytes], frame.offload)
    }

    fn takes_pieces(&self) -> bool {
        true
    }

    fn put_pieces(&mut self, pieces: &[Span<'_>], offload: Option<&VnetHeader>) -> Result<Put, Fault> {
        let stored = match offload {
            Some(header) if !header.is_plain() => {
                let len = pieces.iter().map(|piece| piece.len()).sum();
                self.0.store_unfinished(pieces, |head| finish(head, len, header))
            }
            Some(_) | None => self.0.store(pieces),
        };
        Ok(put(stored))
    }

    fn accepts(&self) -> Accepts {
        let Finishes { checksums, segments, segments_ipv6, .. } = self.0.finishes();
        Accepts { csum: checksums, tso4: segments, tso6: segments_ipv6, ecn: segments, udp_l4: false }
    }

    /// Whether the device takes it: what is cut into less or more than it cuts, is cut in software.
    fn takes(&self, header: &VnetHeader) -> bool {
        let (segment_min, segment_max) = self.0.finishes().segment_bounds;
        let is_cut = header.gso_type != VnetHeader::GSO_NONE;
        let segment = usize::from(header.hdr_len) + usize::from(header.gso_size);
        self.accepts().takes(header) && (!is_cut || (header.gso_size >= segment_min && segment <= segment_max))
    }

    #[inline]
    fn as_any(&mut self) -> Option<&mut dyn Any> {
        Some(self)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        self.0.flush();
        false
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What the device did not take is tried again.
    #[inline]
    fn reclaim(&mut self) -> bool {
        !self.0.flush()
    }
}

/// What the device has to do on a frame of `len` bytes that begins with `head`. What it does not know is done here, if all of the frame is
/// there. The frame is a copy of ours: nobody changes it any more.
fn finish(head: &mut [u8], len: usize, header: &VnetHeader) -> Option<Finish> {
    match NicOffload::of(head, len, header) {
        Ok(NicOffload { link_len, network_len, transport_len, is_ipv6, is_udp, segment }) => {
            Some(Finish::Device(DeviceFinish { link_len, network_len, transport_len, is_ipv6, is_udp, segment }))
        }
        Err(_) if header.gso_type == VnetHeader::GSO_NONE && head.len() == len => {
            finish_checksum(head, header).is_ok().then_some(Finish::Nothing)
        }
        Err(_) => None,
    }
}

fn put(stored: Stored) -> Put {
    match stored {
        Stored::Yes => Put::Stored,
        Stored::Full => Put::Full,
        Stored::TooLong => Put::Refused(DropReason::TooLong),
        Stored::TooShort => Put::Refused(DropReason::TooShort),
        Stored::Bad => Put::Refused(DropReason::BadOffload),
    }
}

/// Frames that a device may hold: those in its ring, and in that of an interface under it.
const WAITING_MAX: usize = 4096;
