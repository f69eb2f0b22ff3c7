//! The queues of a port: frames as slices. Each is used by one thread at a time, and makes no call that waits.

use std::mem::zeroed;
use std::sync::Arc;

use arrayvec::ArrayVec;
use ferrule_dpdk_sys::{FERRULE_BURST, FERRULE_SEGMENTS_MAX, ferrule_frame, ferrule_segment, rte_mempool};
use ferrule_ffi::span::{Span, SpanMut};

use crate::eal::PoolPointer;
use crate::port::Port;

/// Frames of a burst.
pub const BURST: usize = FERRULE_BURST as usize;
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
    refused: u64,
}

// SAFETY: the frames are the queue's own, and DPDK binds neither queues nor mbufs to a thread.
unsafe impl Send for RxQueue {}

impl RxQueue {
    pub(crate) fn new(port: Arc<Port>, queue: u16) -> Self {
        Self { port, queue, frames: Box::new(no_frames()), released: 0, taken: 0, received: 0, refused: 0 }
    }

    /// Whether there is a frame to take. Asks the device if none is left of the last burst.
    #[inline]
    pub fn poll(&mut self) -> bool {
        if self.taken == self.received {
            self.release();
            // SAFETY: the port is started while one of its queues is there, this is the only owner of the queue, and there
            // is room for a burst.
            let received = unsafe {
                self.port.dpdk().ferrule_rx_burst(
                    self.port.id(),
                    self.queue,
                    self.frames.as_mut_ptr(),
                    BURST as u16,
                    &raw mut self.refused,
                )
            };
            (self.released, self.taken, self.received) = (0, 0, usize::from(received));
        }
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

    /// Frames that were freed unseen, since they were too long or in too many pieces.
    pub fn refused(&self) -> u64 {
        self.refused
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
    port: Arc<Port>,
    queue: u16,
    pool: *mut rte_mempool,
    frames: Box<[ferrule_frame; BURST]>,
    /// As many of them wait to be sent.
    stored: usize,
}

// SAFETY: as for `RxQueue`; the pool is freed after the port is closed, which the queue keeps open.
unsafe impl Send for TxQueue {}

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
}

impl TxQueue {
    pub(crate) fn new(port: Arc<Port>, queue: u16, pool: &PoolPointer) -> Self {
        Self { port, queue, pool: pool.0.as_ptr(), frames: Box::new(no_frames()), stored: 0 }
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
            if !source.copy_to(&mut room(frame)) {
                frame.len = 0;
                break;
            }
            frame.len = source.len() as u32;
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
        frame.len = len as u32;
        if !copy_pieces(pieces, room(frame)) {
            // SAFETY: one mbuf that is ours and was not used.
            unsafe { self.port.dpdk().ferrule_free(self.frames[self.stored..].as_mut_ptr(), 1) };
            return Stored::TooLong;
        }
        self.stored += 1;
        Stored::Yes
    }

    /// Sends what is stored, as far as the device takes it. `true`: all.
    #[inline]
    pub fn flush(&mut self) -> bool {
        if self.stored == 0 {
            return true;
        }
        // SAFETY: the port is started while one of its queues is there, this is the only owner of the queue, and the first
        // `stored` frames are mbufs of ours. Those that are sent are not looked at again.
        let sent = unsafe {
            self.port.dpdk().ferrule_tx_burst(self.port.id(), self.queue, self.frames.as_mut_ptr(), self.stored as u16)
        };
        let sent = usize::from(sent).min(self.stored);
        self.frames.copy_within(sent..self.stored, 0);
        self.stored -= sent;
        self.stored == 0
    }

    /// Sends up to `max` of the frames that were received and not taken, without copying them: they are taken, and their
    /// buffers come back to their own port's pool. How many, and their bytes. None, as long as others wait to be sent; a frame
    /// that this port cannot send as it is stays, and those behind it.
    #[inline]
    pub fn move_from(&mut self, rx: &mut RxQueue, max: usize) -> (usize, u64) {
        if !self.flush() {
            return (0, 0);
        }
        rx.release();
        let (frame_max, takes_chains) = (self.port.frame_max(), self.port.takes_chains());
        let can_move = |frame: &&ferrule_frame| {
            (FRAME_MIN..=frame_max).contains(&(frame.len as usize)) && (frame.segments == 1 || takes_chains)
        };
        let count = rx.pending().iter().take(max).take_while(can_move).count();
        let frames = &mut rx.frames[rx.taken..rx.taken + count];
        // SAFETY: as in `flush`. Those that are sent are the device's from now on: the receive queue looks at none of them
        // again, since both of its marks move behind them.
        let sent =
            unsafe { self.port.dpdk().ferrule_tx_move(self.port.id(), self.queue, frames.as_mut_ptr(), count as u16) };
        let sent = usize::from(sent).min(count);
        let bytes = frames[..sent].iter().map(|frame| u64::from(frame.len)).sum();
        rx.taken += sent;
        rx.released = rx.taken;
        (sent, bytes)
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

/// Copies the pieces one behind the other; `false`, if they do not fit.
fn copy_pieces(pieces: &[Span<'_>], mut room: SpanMut<'_>) -> bool {
    for piece in pieces {
        if !piece.copy_to(&mut room) {
            return false;
        }
        let Some(behind) = room.tail(piece.len()) else { return false };
        room = behind;
    }
    true
}

/// The room that an empty frame has.
#[inline(always)]
fn room(frame: &mut ferrule_frame) -> SpanMut<'_> {
    // SAFETY: the data of an mbuf that was just allocated for us alone, with as much room behind it.
    unsafe { std::slice::from_raw_parts_mut(frame.data, usize::from(frame.first)) }.into()
}

fn no_frames() -> [ferrule_frame; BURST] {
    // SAFETY: of numbers and pointers; nobody looks at a frame before DPDK has filled it.
    unsafe { zeroed() }
}

/// Two addresses and a type.
const FRAME_MIN: usize = 14;
