//! The queues of a port: frames as slices. Each is used by one thread at a time, and makes no call that waits.

use std::mem::zeroed;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use ferrule_dpdk_sys::{
    FERRULE_FRAME_MIN, FERRULE_SEGMENTS_MAX, ferrule_frame, ferrule_moved, ferrule_path, ferrule_segment, rte_mempool,
};
use ferrule_ffi::span::{Span, SpanMut};

use crate::config::{BURST, Finishes};
use crate::interrupt::RxInterrupt;
use crate::pool::Mempool;
use crate::port::Port;
use crate::stall::Stall;

/// Pieces of a frame.
pub const SEGMENTS_MAX: usize = FERRULE_SEGMENTS_MAX as usize;

/// A receive queue.
///
/// ```text
///   frames   | given back | taken | received, not taken | nothing |
///            0        released  taken               received    BURST
/// ```
pub struct RxQueue {
    port: Arc<Port>,
    queue: u16,
    frames: Box<[ferrule_frame; BURST]>,
    released: usize,
    taken: usize,
    received: usize,
    pub(crate) interrupt: Option<RxInterrupt>,
}

// SAFETY: the frames are the queue's own, and DPDK binds neither queues nor mbufs to a thread.
unsafe impl Send for RxQueue {}

impl RxQueue {
    pub(crate) fn new(port: Arc<Port>, queue: u16) -> Self {
        let interrupt = if port.has_interrupts { RxInterrupt::of(port.dpdk(), port.id(), queue) } else { None };
        Self { port, queue, frames: Box::new(no_frames()), released: 0, taken: 0, received: 0, interrupt }
    }

    /// Whether there is a frame to take. Asks the device if none is left of the last burst.
    #[inline]
    pub fn poll(&mut self) -> bool {
        if !self.has_pending() {
            self.release();
            let mut refused = 0;
            // SAFETY: the port is started while one of its queues is there, this is the only owner of the queue, and there
            // is room for a burst.
            let received = unsafe {
                self.port.dpdk().ferrule_rx_burst(
                    self.port.id(),
                    self.queue,
                    self.frames.as_mut_ptr(),
                    BURST as u16,
                    &raw mut refused,
                )
            };
            (self.released, self.taken, self.received) = (0, 0, usize::from(received));
            self.port.count_rx_refused(refused);
            if let Some(interrupt) = &mut self.interrupt
                && interrupt.is_armed()
            {
                interrupt.looked(received > 0);
            }
        }
        self.has_pending()
    }

    /// Whether a frame of the last burst was not taken yet.
    #[inline]
    pub fn has_pending(&self) -> bool {
        self.taken < self.received
    }

    /// The frames that come next, as far as each lies in one piece.
    #[inline]
    pub fn plain(&self) -> impl Iterator<Item = &[u8]> {
        self.pending().iter().take_while(|frame| frame.segments == 1).map(|frame| {
            // SAFETY: the first segment of an mbuf that is ours until it is released, which takes `&mut self`.
            unsafe { std::slice::from_raw_parts(frame.data, usize::from(frame.first)) }
        })
    }

    /// The pieces of the next frame, none of them empty; none: there is no frame.
    pub fn pieces(&self) -> ArrayVec<&[u8], SEGMENTS_MAX> {
        let Some(frame) = self.pending().first() else { return ArrayVec::new() };
        let mut segments = [ferrule_segment { data: std::ptr::null(), len: 0 }; SEGMENTS_MAX];
        // SAFETY: an mbuf that is ours, and room for as many segments as are told.
        let count =
            unsafe { self.port.dpdk().ferrule_segments(frame.mbuf, segments.as_mut_ptr(), SEGMENTS_MAX as u16) };
        let pieces = segments[..usize::from(count).min(SEGMENTS_MAX)].iter().filter(|segment| segment.len > 0);
        pieces
            .map(|segment| {
                // SAFETY: a segment of an mbuf that is ours until it is released, which takes `&mut self`.
                unsafe { std::slice::from_raw_parts(segment.data, segment.len as usize) }
            })
            .collect()
    }

    /// When the frames that come next arrived, by the clock of the device ([`Port::clock`]). How many of the first ones say so: none, if
    /// the port was not opened with [`stamps`](crate::config::PortConfig), or its driver does not know.
    pub fn stamps(&self, stamps: &mut [u64; BURST]) -> usize {
        let pending = self.pending();
        // SAFETY: mbufs that are ours, no more than a burst, and room for so many stamps.
        let known =
            unsafe { self.port.dpdk().ferrule_stamps(pending.as_ptr(), pending.len() as u16, stamps.as_mut_ptr()) };
        usize::from(known)
    }

    /// Takes the next frames, as far as there are so many.
    #[inline]
    pub fn take(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.received);
    }

    /// Gives the buffers of all taken frames back.
    #[inline]
    pub fn release(&mut self) {
        let taken = &mut self.frames[self.released..self.taken];
        if !taken.is_empty() {
            // SAFETY: mbufs that are ours; they are not looked at again, since `released` moves behind them.
            unsafe { self.port.dpdk().ferrule_free(taken.as_mut_ptr(), taken.len() as u16) };
            self.released = self.taken;
        }
    }

    /// What becomes readable when frames come while that is [asked for](Self::arm); none: nothing does.
    pub fn interrupt_fd(&self) -> Option<BorrowedFd<'_>> {
        self.interrupt.as_ref().map(RxInterrupt::fd)
    }

    /// Whether it does so, as far as is known. If not, it has to be looked for frames all the time.
    pub fn has_interrupt(&self) -> bool {
        self.interrupt.as_ref().is_some_and(RxInterrupt::is_useful)
    }

    /// Asks for interrupts from now on, or not any more. After asking, look once more before waiting.
    pub fn arm(&mut self, wanted: bool) {
        if let Some(interrupt) = &mut self.interrupt {
            interrupt.arm(wanted);
        }
    }

    #[inline]
    fn pending(&self) -> &[ferrule_frame] {
        &self.frames[self.taken..self.received]
    }
}

impl Drop for RxQueue {
    fn drop(&mut self) {
        self.take(BURST);
        self.release();
    }
}

/// A transmit queue.
pub struct TxQueue {
    pub(crate) port: Arc<Port>,
    pub(crate) queue: u16,
    pub(crate) pool: *mut rte_mempool,
    pub(crate) frames: Box<[ferrule_frame; BURST]>,
    /// As many of them wait to be sent.
    pub(crate) stored: usize,
    stall: Stall,
}

// SAFETY: as for `RxQueue`; a pool is never freed.
unsafe impl Send for TxQueue {}

/// Frames that were sent as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedFrames {
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why not more.
    pub end: MoveEnd,
}

/// Why no more frames were sent as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveEnd {
    /// No more were received.
    Empty,
    /// The device did not take all that it was offered.
    Full,
    /// What comes next has to be copied.
    Unmovable,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is stored, and sent with the next flush.
    Yes,
    /// There is no room now.
    Full,
    /// It is longer than the port's MTU allows.
    TooLong,
    /// It has no Ethernet header.
    TooShort,
    /// What is to be finished on it cannot be.
    Bad,
}

impl TxQueue {
    pub(crate) fn new(port: Arc<Port>, queue: u16, pool: &Mempool) -> Self {
        Self {
            port,
            queue,
            pool: pool.pointer.as_ptr(),
            frames: Box::new(no_frames()),
            stored: 0,
            stall: Stall::default(),
        }
    }

    /// Stores copies of the first frames, as far as there is room and each may be sent. How many.
    #[inline]
    pub fn store_run(&mut self, run: &[Span<'_>]) -> usize {
        let possible = run.len().min(BURST - self.stored);
        let copy_max = self.port.copy_max();
        let fits = |frame: &&Span<'_>| (FRAME_MIN..=copy_max).contains(&frame.len());
        let count = run[..possible].iter().take_while(fits).count();
        let Some(empty) = self.empty(count) else { return 0 };
        for (frame, source) in empty.iter_mut().zip(run) {
            // It has as much room as the port was made with, unless its pool is not what it was made as.
            if !fill(frame, &[*source], source.len()) {
                frame.len = 0;
                break;
            }
        }
        let full = empty.iter().take_while(|frame| frame.len > 0).count();
        // SAFETY: mbufs that are ours and were not used.
        unsafe { self.port.dpdk().ferrule_free(self.frames[self.stored + full..].as_mut_ptr(), (count - full) as u16) };
        self.stored += full;
        full
    }

    /// Stores a copy of one frame that lies in several pieces, or in one.
    pub fn store(&mut self, pieces: &[Span<'_>]) -> Stored {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        if len < FRAME_MIN {
            return Stored::TooShort;
        }
        if len > self.port.copy_max() {
            return Stored::TooLong;
        }
        let Some(frame) = self.empty(1).and_then(|frames| frames.first_mut()) else { return Stored::Full };
        if !fill(frame, pieces, len) {
            // SAFETY: one mbuf that is ours and was not used.
            unsafe { self.port.dpdk().ferrule_free(self.frames[self.stored..].as_mut_ptr(), 1) };
            return Stored::TooLong;
        }
        self.stored += 1;
        Stored::Yes
    }

    /// Sends what is stored, as far as the device takes it. `true`: nothing is left. A frame that it does not take for long, and none of
    /// those behind it, is dropped and counted.
    #[inline]
    pub fn flush(&mut self) -> bool {
        if self.stored == 0 {
            return true;
        }
        if self.send() > 0 {
            self.stall.end();
        } else {
            self.drop_refused();
        }
        self.stored == 0
    }

    /// Drops the first frames, if the device has taken none for too long, until it takes one.
    #[cold]
    fn drop_refused(&mut self) {
        if !self.stall.took_nothing() {
            return;
        }
        self.stall.end();
        while self.stored > 0 {
            // SAFETY: one mbuf that is ours; the others take its place.
            unsafe { self.port.dpdk().ferrule_free(self.frames.as_mut_ptr(), 1) };
            self.frames.copy_within(1..self.stored, 0);
            self.stored -= 1;
            self.port.count_refused();
            if self.send() > 0 {
                break;
            }
        }
    }

    /// Sends what is stored, as far as the device takes it. How many.
    #[inline]
    fn send(&mut self) -> usize {
        // SAFETY: the port is started while one of its queues is there, this is the only owner of the queue, and the first
        // `stored` frames are mbufs of ours. Those that are sent are not looked at again.
        let sent = unsafe {
            self.port.dpdk().ferrule_tx_burst(self.port.id(), self.queue, self.frames.as_mut_ptr(), self.stored as u16)
        };
        let sent = usize::from(sent).min(self.stored);
        self.frames.copy_within(sent..self.stored, 0);
        self.stored -= sent;
        sent
    }

    /// Receives frames, unless some were not taken yet, and sends them without copying them: their buffers come back to their own port's
    /// pool. None, as long as others wait to be sent; a frame that this port cannot send as it is stays, and those behind it.
    #[inline]
    pub fn move_from(&mut self, rx: &mut RxQueue) -> MovedFrames {
        if !self.flush() {
            return MovedFrames { count: 0, bytes: 0, end: MoveEnd::Full };
        }
        rx.release();
        if rx.has_pending() { self.move_pending(rx) } else { self.move_burst(rx) }
    }

    /// A burst from device to device in one call.
    #[inline]
    fn move_burst(&mut self, rx: &mut RxQueue) -> MovedFrames {
        let path = ferrule_path {
            rx_port: rx.port.id(),
            rx_queue: rx.queue,
            tx_port: self.port.id(),
            tx_queue: self.queue,
            frame_max: self.port.frame_max() as u32,
            segments_max: self.port.segments_max(),
        };
        let mut moved = ferrule_moved { frames: 0, bytes: 0, refused: 0 };
        // SAFETY: both ports are started while one of their queues is there, we are the only owner of both queues, no frame is left
        // in those of `rx`, and there is room for a burst.
        let left = unsafe { self.port.dpdk().ferrule_move(&raw const path, rx.frames.as_mut_ptr(), &raw mut moved) };
        rx.port.count_rx_refused(moved.refused);
        (rx.released, rx.taken, rx.received) = (0, 0, usize::from(left));
        if moved.frames > 0 {
            self.stall.end();
        }
        match (left, moved.frames) {
            (0, count) => MovedFrames { count: count as usize, bytes: moved.bytes, end: MoveEnd::Empty },
            // Why, is seen frame by frame.
            (_, 0) => self.move_pending(rx),
            (_, count) => MovedFrames { count: count as usize, bytes: moved.bytes, end: MoveEnd::Full },
        }
    }

    /// The same with what is left of a burst.
    #[cold]
    fn move_pending(&mut self, rx: &mut RxQueue) -> MovedFrames {
        let mut moved = self.try_to_move(rx);
        if moved.count > 0 || moved.end != MoveEnd::Full {
            self.stall.end();
        } else if self.stall.took_nothing() {
            self.stall.end();
            // As in `drop_refused`.
            while moved.count == 0 && moved.end == MoveEnd::Full {
                rx.take(1);
                rx.release();
                self.port.count_refused();
                moved = self.try_to_move(rx);
            }
        }
        moved
    }

    fn try_to_move(&mut self, rx: &mut RxQueue) -> MovedFrames {
        let limits = (self.port.frame_max(), self.port.segments_max());
        let can_move = |frame: &&ferrule_frame| can_move(frame, limits);
        let count = rx.pending().iter().take_while(can_move).count();
        let frames = &mut rx.frames[rx.taken..rx.taken + count];
        // SAFETY: as in `flush`. Those that are sent are the device's from now on: the receive queue looks at none of them
        // again, since both of its marks move behind them.
        let sent =
            unsafe { self.port.dpdk().ferrule_tx_move(self.port.id(), self.queue, frames.as_mut_ptr(), count as u16) };
        let sent = usize::from(sent).min(count);
        let bytes = frames[..sent].iter().map(|frame| u64::from(frame.len)).sum();
        rx.taken += sent;
        rx.released = rx.taken;
        let end = match (sent < count, rx.has_pending()) {
            (true, _) => MoveEnd::Full,
            (false, true) => MoveEnd::Unmovable,
            (false, false) => MoveEnd::Empty,
        };
        MovedFrames { count: sent, bytes, end }
    }

    /// What the device finishes on frames.
    pub fn finishes(&self) -> Finishes {
        self.port.finishes()
    }

    /// Frames that wait to be sent.
    pub fn stored(&self) -> usize {
        self.stored
    }

    /// Empty frames behind the stored ones, of which there is room for `count`; `None`: all buffers are in use.
    #[inline]
    fn empty(&mut self, count: usize) -> Option<&mut [ferrule_frame]> {
        let empty = self.frames.get_mut(self.stored..self.stored + count)?;
        // SAFETY: the pool is there until the port is closed, and there is room for `count` frames.
        let status = unsafe { self.port.dpdk().ferrule_alloc(self.pool, empty.as_mut_ptr(), count as u16) };
        (status == 0).then_some(empty)
    }
}

impl Drop for TxQueue {
    fn drop(&mut self) {
        // SAFETY: mbufs that are ours, and nobody looks at them again.
        unsafe { self.port.dpdk().ferrule_free(self.frames.as_mut_ptr(), self.stored as u16) };
    }
}

/// Copies a frame into an empty one, and fills it up to what Ethernet demands: a NIC may take a shorter one for an attack.
/// `false`, if it does not fit.
#[inline(always)]
fn fill(frame: &mut ferrule_frame, pieces: &[Span<'_>], len: usize) -> bool {
    // SAFETY: the data of an mbuf that was just allocated for us alone, with as much room behind it.
    let room = unsafe { std::slice::from_raw_parts_mut(frame.data, usize::from(frame.first)) };
    if len < WIRE_MIN {
        let Some(padding) = room.get_mut(len..WIRE_MIN) else { return false };
        padding.fill(0);
    }
    frame.len = len.max(WIRE_MIN) as u32;
    let mut rest = SpanMut::from(room);
    for piece in pieces {
        if !piece.copy_to(&mut rest) {
            return false;
        }
        let Some(behind) = rest.tail(piece.len()) else { return false };
        rest = behind;
    }
    true
}

/// Whether a frame can be sent as it is, by a port with these limits: the longest frame, and the most buffers of one.
#[inline(always)]
fn can_move(frame: &ferrule_frame, (frame_max, segments_max): (usize, u16)) -> bool {
    (WIRE_MIN..=frame_max).contains(&(frame.len as usize)) && frame.segments <= segments_max
}

fn no_frames() -> [ferrule_frame; BURST] {
    // SAFETY: of numbers and pointers; nobody looks at a frame before DPDK has filled it.
    unsafe { zeroed() }
}

/// Two addresses and a type.
pub(crate) const FRAME_MIN: usize = 14;
/// The shortest frame of Ethernet, without its checksum.
pub(crate) const WIRE_MIN: usize = FERRULE_FRAME_MIN as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_nic_would_take_for_an_attack_is_not_moved() {
        let can = |len, segments| {
            let [frame, ..] = no_frames();
            can_move(&ferrule_frame { len, segments, ..frame }, (1522, 8))
        };
        assert_eq!([can(60, 1), can(1522, 8)], [true; 2]);
        assert_eq!([can(59, 1), can(1523, 1), can(1000, 9)], [false; 3]);
    }

    #[test]
    fn a_short_frame_is_filled_up_with_zeros_and_none_is_written_beyond_its_room() {
        let mut memory = [7; 128];
        let [frame, ..] = no_frames();
        let mut frame = ferrule_frame { data: memory.as_mut_ptr(), first: 100, ..frame };
        assert!(fill(&mut frame, &[Span::from(&[1; 10][..]), Span::from(&[2; 4][..])], 14));
        assert_eq!(frame.len, 60);
        assert!(!fill(&mut frame, &[Span::from(&[3; 64][..]), Span::from(&[4; 37][..])], 101));
        frame.first = 59;
        assert!(!fill(&mut frame, &[Span::from(&[5; 14][..])], 14));
        assert_eq!((&memory[..2], &memory[100..]), (&[3, 3][..], &[7; 28][..]));
    }
}
