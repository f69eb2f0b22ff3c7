//! Frames that are written where they are sent from.

use ferrule_dataplane::port::Target;
pub use ferrule_dataplane::port::memif::ring::Alike;
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

    /// Sends frames of one length as far as buffers are known to be free, each after `write` was shown its buffer and its
    /// number. How many; they leave with the next [`Target::publish`].
    #[inline(always)]
    fn write_each(&mut self, alike: Alike, write: impl FnMut(u32, &mut SpanMut<'_>)) -> u32 {
        write_described(self, alike, write)
    }
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

    #[inline(always)]
    fn write_each(&mut self, alike: Alike, mut write: impl FnMut(u32, &mut SpanMut<'_>)) -> u32 {
        self.write_own(alike, &mut write).unwrap_or_else(|| write_described(self, alike, write))
    }
}

/// The same, buffer by buffer.
#[inline(always)]
fn write_described<T: InPlace + ?Sized>(
    target: &mut T,
    alike: Alike,
    mut write: impl FnMut(u32, &mut SpanMut<'_>),
) -> u32 {
    let mut written = 0;
    while written < alike.count {
        if alike.prefetch > 0
            && let Some(later) = target.buffer(written + alike.prefetch)
        {
            later.prefetch();
        }
        let buffer = target.buffer(written).filter(|buffer| buffer.len() >= alike.room as usize);
        let Some(mut buffer) = buffer else { break };
        write(written, &mut buffer);
        target.describe(written, alike.length);
        written += 1;
    }
    target.commit(written);
    written
}
