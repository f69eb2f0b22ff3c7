//! Capture: copies of the frames that a lane moves, for whoever looks at them.
//!
//! A lane is switched to it by [`WorkerHandle::trace`](crate::worker::WorkerHandle::trace); the others pay one test a
//! visit. A traced lane reads each frame once, into memory of ours, stores it from there and captures the same bytes:
//! a peer cannot show one frame to the capture and another one to the target. Frames of a trusted wire are not copied,
//! and so not captured.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;

use ferrule_ffi::span::Span;

use crate::offload::VnetHeader;
use crate::port::{Fault, Frame, Source};

/// A bounded buffer between lanes, which never wait for it, and one who reads it.
#[derive(Debug)]
pub struct Capture {
    free: ArrayQueue<CapturedFrame>,
    filled: ArrayQueue<CapturedFrame>,
    dropped: AtomicU64,
}

/// A frame as it was moved.
#[derive(Debug)]
pub struct CapturedFrame {
    /// When its visit began, by the TSC ([`ferrule_ffi::ticks`]).
    pub ticks: u64,
    /// The end of the wire that it came from.
    pub from: usize,
    /// Its whole length.
    pub length: usize,
    bytes: Box<[u8]>,
}

impl Capture {
    /// Room for so many frames, of each of which the first `snap_len` bytes are kept.
    pub fn new(frames: usize, snap_len: usize) -> Self {
        let free = ArrayQueue::new(frames);
        while free.push(CapturedFrame { ticks: 0, from: 0, length: 0, bytes: vec![0; snap_len].into() }).is_ok() {}
        Self { free, filled: ArrayQueue::new(frames), dropped: AtomicU64::new(0) }
    }

    /// Lets `look` see the oldest frame, if there is one.
    pub fn read<T>(&self, look: impl FnOnce(&CapturedFrame) -> T) -> Option<T> {
        let frame = self.filled.pop()?;
        let seen = look(&frame);
        // It was taken from there.
        let _ = self.free.push(frame);
        Some(seen)
    }

    /// Frames that were moved while there was no room for them here, that had begun to be moved before, or that are longer
    /// than any that a peer can send: another crate's source can have such.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn add(&self, ticks: u64, from: usize, bytes: &[u8]) {
        let Some(mut frame) = self.free.pop() else { return self.skip() };
        let kept = bytes.len().min(frame.bytes.len());
        frame.bytes[..kept].copy_from_slice(&bytes[..kept]);
        (frame.ticks, frame.from, frame.length) = (ticks, from, bytes.len());
        // As many as there are frames.
        let _ = self.filled.push(frame);
    }

    fn skip(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl CapturedFrame {
    /// The first bytes of it, as many as are kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length.min(self.bytes.len())]
    }
}

/// A source that is captured: it shows our copies of its frames, one by one.
pub(crate) struct TracedSource<'a> {
    pub(crate) source: &'a mut dyn Source,
    pub(crate) capture: &'a Capture,
    /// The end of the wire that it is of.
    pub(crate) from: usize,
    /// When the visit began.
    pub(crate) ticks: u64,
    /// Room for the longest frame of a peer.
    pub(crate) copy: &'a mut [u8],
    /// How much of it is the frame that was peeked.
    pub(crate) length: usize,
    /// What is left to do on that.
    pub(crate) offload: Option<VnetHeader>,
    /// Segments of the next frame were stored before this visit: they may have been made in the frame's own place, which
    /// is not what crossed any more.
    pub(crate) begun: bool,
}

impl Source for TracedSource<'_> {
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.source.refresh()
    }

    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let Self { source, copy, length, offload, .. } = self;
        let Some(frame) = source.peek(gather)? else { return Ok(None) };
        *length = frame.bytes.len();
        *offload = frame.offload.copied();
        let bytes = match copy.get_mut(..*length) {
            Some(copy) => {
                // As long as the frame.
                let _ = frame.bytes.copy_out(copy);
                Span::from(&*copy)
            }
            // It goes the way that it would go without a capture.
            None => frame.bytes,
        };
        Ok(Some(Frame { bytes, offload: offload.as_ref(), slots: frame.slots }))
    }

    fn cost(&self, length: usize, slots: u32) -> u64 {
        self.source.cost(length, slots)
    }

    fn advance(&mut self, slots: u32) {
        match self.copy.get(..self.length) {
            Some(copy) if !self.begun => self.capture.add(self.ticks, self.from, copy),
            _ => self.capture.skip(),
        }
        self.begun = false;
        self.source.advance(slots);
    }

    fn release(&mut self) {
        self.source.release();
    }

    fn release_notify_fd(&mut self) -> Option<BorrowedFd<'_>> {
        self.source.release_notify_fd()
    }

    fn enable_notify(&mut self, wanted: bool) {
        self.source.enable_notify(wanted);
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.source.notify_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_what_was_read_makes_room() {
        let capture = Capture::new(2, 4);
        for number in 0..3u8 {
            capture.add(7, 1, &[number; 6]);
        }
        assert_eq!(capture.dropped(), 1);
        let frame = capture.read(|frame| (frame.ticks, frame.from, frame.length, frame.bytes().to_vec()));
        assert_eq!(frame, Some((7, 1, 6, vec![0; 4])));
        capture.add(8, 0, &[9]);
        let rest: Vec<_> = std::iter::from_fn(|| capture.read(|frame| frame.bytes().to_vec())).collect();
        assert_eq!((rest, capture.dropped()), (vec![vec![1; 4], vec![9]], 1));
    }
}
