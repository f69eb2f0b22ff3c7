//! Frames that came in together: copies of ours, which no peer can change any more.

use ferrule_dataplane::port::{BURST, FRAME_MAX};
use ferrule_ffi::span::Span;

use crate::disposition::Disposition;

/// Copies of frames, side by side in their order, and what becomes of each.
#[derive(Debug)]
pub struct Burst {
    bytes: Box<[u8]>,
    frames: Vec<FrameCopy>,
}

#[derive(Clone, Copy, Debug)]
struct FrameCopy {
    start: usize,
    length: usize,
    disposition: Disposition,
    /// How many others the function had made when it had judged this one.
    made: u32,
}

impl Burst {
    /// None yet, and all the memory that it will ever need.
    pub fn new() -> Self {
        let bytes = vec![0; BYTES_MAX + LINE + FRAME_MAX].into_boxed_slice();
        Self { bytes, frames: Vec::with_capacity(BURST) }
    }

    /// Whether there is room for one more, of any length.
    pub fn has_room(&self) -> bool {
        self.frames.len() < BURST && self.end() < BYTES_MAX
    }

    /// Adds a copy of a frame, which is never longer than [`FRAME_MAX`], if there is room.
    pub fn push(&mut self, frame: Span<'_>) {
        let (start, length) = (self.end(), frame.len());
        if !self.has_room() {
            return;
        }
        let room = self.bytes.get_mut(start..start + length);
        if room.is_some_and(|room| frame.copy_out(room)) {
            self.frames.push(FrameCopy { start, length, disposition: Disposition::Drop, made: 0 });
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// One of them.
    #[inline]
    pub fn frame(&self, number: usize) -> &[u8] {
        let FrameCopy { start, length, .. } = self.frames[number];
        &self.bytes[start..start + length]
    }

    /// The same, to be rewritten.
    #[inline]
    pub fn frame_mut(&mut self, number: usize) -> &mut [u8] {
        let FrameCopy { start, length, .. } = self.frames[number];
        &mut self.bytes[start..start + length]
    }

    /// What becomes of one: nothing, unless somebody has said otherwise.
    #[inline]
    pub fn disposition(&self, number: usize) -> Disposition {
        self.frames[number].disposition
    }

    /// Says what becomes of one, and how many other frames the function has made by now: each leaves behind the one that it was made by, and before
    /// the next one.
    #[inline]
    pub fn dispose(&mut self, number: usize, disposition: Disposition, made: usize) {
        let frame = &mut self.frames[number];
        // A burst and what was held make far fewer.
        (frame.disposition, frame.made) = (disposition, made as u32);
    }

    /// By which one the function made its frame number `made`.
    pub fn maker(&self, made: usize) -> usize {
        let maker = self.frames.partition_point(|frame| frame.made as usize <= made);
        // What was made after the last word about a frame leaves behind the last one.
        maker.min(self.frames.len().saturating_sub(1))
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.frames.clear();
    }

    /// Where the next one begins: in a line of its own, which hardly changes how many lines are used.
    fn end(&self) -> usize {
        self.frames.last().map_or(0, |last| (last.start + last.length).next_multiple_of(LINE))
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

/// Behind so many bytes no frame begins: those of a burst stay in the first level of the cache.
const BYTES_MAX: usize = 16 << 10;
/// A line of the cache: no two frames share one.
const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_kept_apart_and_in_their_order() {
        let mut burst = Burst::new();
        let frames = [&b"first"[..], &[7; 64], b"", b"last"];
        for frame in frames {
            burst.push(frame.into());
        }
        burst.frame_mut(1).fill(8);
        assert_eq!([0, 1, 2, 3].map(|number| burst.frame(number)), [frames[0], &[8; 64], frames[2], frames[3]]);
        burst.dispose(2, Disposition::Forward, 0);
        assert_eq!((burst.disposition(1), burst.disposition(2)), (Disposition::Drop, Disposition::Forward));
        burst.clear();
        assert!(burst.is_empty() && burst.has_room());
    }

    #[test]
    fn of_each_frame_that_was_made_it_is_known_by_which_one() {
        let mut burst = Burst::new();
        for (number, made) in [0, 0, 2, 2, 3].into_iter().enumerate() {
            burst.push([number as u8][..].into());
            burst.dispose(number, Disposition::Forward, made);
        }
        assert_eq!([0, 1, 2].map(|made| burst.maker(made)), [2, 2, 4]);
    }

    #[test]
    fn the_longest_frame_has_room_whenever_there_is_some() {
        for length in [0, 1, 64, 1500, 9000, FRAME_MAX] {
            let (mut burst, frame) = (Burst::new(), vec![length as u8; length]);
            let mut count = 0;
            while burst.has_room() {
                burst.push(frame[..].into());
                count += 1;
                assert_eq!((burst.len(), burst.frame(count - 1)), (count, &frame[..]));
            }
            burst.push(frame[..].into());
            assert_eq!(burst.len(), count, "and none otherwise");
        }
    }
}
