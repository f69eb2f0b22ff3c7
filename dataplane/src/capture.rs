//! Capture: copies of the frames that a lane moves, or that a function judges, for whoever looks at them.
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
    /// The end of the wire that it came from, or the side of the function that it came in on or leaves by.
    pub end: usize,
    /// Whether it leaves there.
    pub is_outbound: bool,
    /// Whether the next one is the same frame once more, as it leaves.
    pub is_followed: bool,
    /// Its whole length.
    pub length: usize,
    dropped: bool,
    word: &'static str,
    rule: [u8; RULE_MAX],
    rule_len: usize,
    bytes: Box<[u8]>,
}

/// What whoever judged a frame says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remark<'a> {
    /// Whether it goes no further.
    pub dropped: bool,
    /// Why, in a word; empty: there is nothing to be said.
    pub word: &'static str,
    /// By which rule, if there is one.
    pub rule: &'a str,
}

impl Capture {
    /// Room for so many frames, of each of which the first `snap_len` bytes are kept.
    pub fn new(frames: usize, snap_len: usize) -> Self {
        let free = ArrayQueue::new(frames);
        while free.push(CapturedFrame::empty(snap_len)).is_ok() {}
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

    /// Copies a frame. `None`: there is no room, and that is counted. It is seen once it is [put](Self::put).
    pub fn take(&self, ticks: u64, end: usize, is_outbound: bool, bytes: &[u8]) -> Option<CapturedFrame> {
        let Some(mut frame) = self.free.pop() else {
            self.skip();
            return None;
        };
        let kept = bytes.len().min(frame.bytes.len());
        frame.bytes[..kept].copy_from_slice(&bytes[..kept]);
        (frame.ticks, frame.end, frame.is_outbound, frame.length) = (ticks, end, is_outbound, bytes.len());
        Some(frame)
    }

    /// Shows a copy to whoever reads, with what is said of it.
    pub fn put(&self, mut frame: CapturedFrame, remark: Remark<'_>, is_followed: bool) {
        frame.is_followed = is_followed;
        (frame.dropped, frame.word) = (remark.dropped, remark.word);
        let mut kept = remark.rule.len().min(RULE_MAX);
        while !remark.rule.is_char_boundary(kept) {
            kept -= 1;
        }
        frame.rule[..kept].copy_from_slice(&remark.rule.as_bytes()[..kept]);
        frame.rule_len = kept;
        // As many as there are frames.
        let _ = self.filled.push(frame);
    }

    fn add(&self, ticks: u64, end: usize, bytes: &[u8]) {
        if let Some(frame) = self.take(ticks, end, false, bytes) {
            self.put(frame, Remark::default(), false);
        }
    }

    fn skip(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl CapturedFrame {
    fn empty(snap_len: usize) -> Self {
        Self {
            ticks: 0,
            end: 0,
            is_outbound: false,
            is_followed: false,
            length: 0,
            dropped: false,
            word: "",
            rule: [0; RULE_MAX],
            rule_len: 0,
            bytes: vec![0; snap_len].into(),
        }
    }

    /// What was said of it.
    pub fn remark(&self) -> Remark<'_> {
        // It was cut between characters.
        let rule = std::str::from_utf8(&self.rule[..self.rule_len]).unwrap_or_default();
        Remark { dropped: self.dropped, word: self.word, rule }
    }

    /// The first bytes of it, as many as are kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length.min(self.bytes.len())]
    }
}

/// Bytes that are kept of a rule's name.
const RULE_MAX: usize = 48;

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
        let frame = capture.read(|frame| (frame.ticks, frame.end, frame.length, frame.bytes().to_vec()));
        assert_eq!(frame, Some((7, 1, 6, vec![0; 4])));
        capture.add(8, 0, &[9]);
        let rest: Vec<_> = std::iter::from_fn(|| capture.read(|frame| frame.bytes().to_vec())).collect();
        assert_eq!((rest, capture.dropped()), (vec![vec![1; 4], vec![9]], 1));
    }

    #[test]
    fn what_is_said_of_a_frame_comes_with_it_and_a_long_name_is_cut_between_characters() {
        let capture = Capture::new(1, 4);
        let rule = format!("{}\u{e4}{}", "r".repeat(RULE_MAX - 1), "more");
        for (rule, kept) in [("web", "web"), (rule.as_str(), &rule[..RULE_MAX - 1]), ("", "")] {
            let remark = Remark { dropped: true, word: "rule", rule };
            let frame = capture.take(1, 0, true, &[1]).unwrap();
            assert!(capture.read(|_| ()).is_none(), "it is not judged yet");
            capture.put(frame, remark, true);
            let seen = capture.read(|frame| {
                assert_eq!(frame.remark(), Remark { rule: kept, ..remark });
                (frame.is_outbound, frame.is_followed)
            });
            assert_eq!(seen, Some((true, true)));
        }
    }
}
