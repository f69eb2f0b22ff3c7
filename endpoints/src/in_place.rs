//! Frames that are written where they are sent from.

use ferrule_dataplane::port::Target;
use ferrule_dataplane::port::memif::ring::Sender;
use ferrule_ffi::span::SpanMut;

/// A ring whose buffers are written where they are sent from, by programs whose frames differ in a few bytes only.
///
/// Frames are described one after the other and committed together. Positions stay as they are in between: a 16-bit number
/// that is stored for each frame, and loaded as a part of a word for the next one, stalls the CPU each time.
pub trait InPlace: Target {
    /// The buffer that the frame after `ahead` others goes to, with what an earlier frame left in it; none, if those that
    /// are known to be free end before it, or the peer offers none there: [`Target::put`] tells which.
    fn buffer(&mut self, ahead: u32) -> Option<SpanMut<'_>>;

    /// Makes the first `length` bytes of it a frame, once that and the `ahead` others before it are committed.
    fn describe(&mut self, ahead: u32, length: u32);

    /// Sends the next `count` frames, all of which were described in their order, with the next [`Target::publish`].
    fn commit(&mut self, count: u32);
}

impl InPlace for Sender {
    #[inline(always)]
    fn buffer(&mut self, ahead: u32) -> Option<SpanMut<'_>> {
        Self::buffer(self, ahead)
    }

    #[inline(always)]
    fn describe(&mut self, ahead: u32, length: u32) {
        Self::describe(self, ahead, length);
    }

    #[inline(always)]
    fn commit(&mut self, count: u32) {
        Self::commit(self, count);
    }
}
