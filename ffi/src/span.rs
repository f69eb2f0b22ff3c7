//! Checked pieces of memory that frames are copied from and to.
//!
//! The bytes may belong to a peer that rewrites them at any time, so a span never becomes a Rust
//! reference: it can only be copied, and what was copied may already be old.

use std::marker::PhantomData;

/// Bytes that may be read as long as `'a` lasts.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    base: *const u8,
    len: usize,
    memory: PhantomData<&'a ()>,
}

/// Bytes that may be written as long as `'a` lasts.
pub struct SpanMut<'a> {
    base: *mut u8,
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl Span<'_> {
    /// # Safety
    /// `base..base + len` must stay mapped and readable for `'a`.
    pub(crate) unsafe fn new(base: *const u8, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// How many bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Copies the whole span to the front of `target`; `false`, and nothing copied, if it does not fit.
    #[inline(always)]
    #[must_use]
    pub fn copy_to(self, target: &mut SpanMut<'_>) -> bool {
        if self.len > target.len {
            return false;
        }
        // SAFETY: both spans are valid for their lengths, and the target is the longer one. They may
        // overlap only if a peer names one place twice, in its own memory: `copy` then stores some
        // mix of its own bytes, reads and writes stay inside the two spans.
        unsafe { copy(self.base, target.base, self.len) };
        true
    }

    /// Copies the whole span to the front of `target`; `false`, and nothing copied, if it does not fit.
    #[inline]
    #[must_use]
    pub fn copy_out(self, target: &mut [u8]) -> bool {
        self.copy_to(&mut SpanMut::from(target))
    }

    /// The part from `start` on; `None` if it begins behind the end.
    #[inline]
    pub fn tail(self, start: usize) -> Option<Self> {
        let len = self.len.checked_sub(start)?;
        // SAFETY: start <= self.len, so the part lies inside this span.
        Some(Self { base: unsafe { self.base.add(start) }, len, memory: PhantomData })
    }

    /// The first `len` bytes; `None` if there are fewer.
    #[inline]
    pub fn head(self, len: usize) -> Option<Self> {
        (len <= self.len).then_some(Self { len, ..self })
    }

    /// The first words, in the machine's byte order, each read once by a load of its own; of a shorter span, all of it
    /// and zeros.
    #[inline(always)]
    pub fn first_words<const N: usize>(self) -> [u64; N] {
        if self.len >= 8 * N {
            // SAFETY: 8 * place + 8 <= 8 * N <= len, inside the span.
            return std::array::from_fn(|place| unsafe { self.base.add(8 * place).cast::<u64>().read_unaligned() });
        }
        let mut words = [0; N];
        // SAFETY: `len` bytes are inside the span, and fewer than the words have, which nobody else sees.
        unsafe { std::ptr::copy_nonoverlapping(self.base, words.as_mut_ptr().cast(), self.len) };
        words
    }

    /// The one's complement sum of the bytes as big-endian 16-bit words, the last padded with 0 (RFC 1071). Each byte is
    /// read once.
    ///
    /// Sums in the machine's byte order and swaps once at the end (RFC 1071, section 2 B). The halves of each 8 bytes go
    /// to two 64-bit sums, which cannot overflow below 2^32 words and so need no carries: compilers make vectors of that.
    #[inline]
    pub fn ones_sum(self) -> u16 {
        let (mut low, mut high) = (0u64, 0u64);
        for word in 0..self.len / 8 {
            // SAFETY: 8 * word + 8 <= len, inside the span.
            let word = unsafe { self.base.add(8 * word).cast::<u64>().read_unaligned() };
            low += word & 0xffff_ffff;
            high += word >> 32;
        }
        let rest = self.len % 8;
        let mut tail = [0; 8];
        // SAFETY: the last `rest` bytes are inside the span, and fewer than 8.
        unsafe { std::ptr::copy_nonoverlapping(self.base.add(self.len - rest), tail.as_mut_ptr(), rest) };
        let tail = u64::from_ne_bytes(tail);
        u16::from_be(fold_carries(low + (tail & 0xffff_ffff) + (tail >> 32) + high))
    }

    /// All bytes, each read once, as 64-bit words of which the last one is filled up with zeros: their exclusive or.
    #[inline]
    pub fn xor(self) -> u64 {
        // Several at a time, so that one need not wait for the other.
        const WORDS: usize = 8;
        let mut sums = [0; WORDS];
        let mut rest = self;
        while rest.len >= 8 * WORDS {
            let words = rest.first_words::<WORDS>();
            sums = std::array::from_fn(|place| sums[place] ^ words[place]);
            // SAFETY: at least as many bytes are left.
            rest = Self { base: unsafe { rest.base.add(8 * WORDS) }, len: rest.len - 8 * WORDS, memory: PhantomData };
        }
        if rest.len > 0 {
            // Of a shorter span, zeros follow.
            let words = rest.first_words::<WORDS>();
            sums = std::array::from_fn(|place| sums[place] ^ words[place]);
        }
        sums.into_iter().fold(0, |sum, word| sum ^ word)
    }

    /// Asks for the cache line of the first byte, to read it soon.
    #[inline(always)]
    pub fn prefetch(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes nothing and never faults.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(self.base.cast());
        }
    }

    /// Reads a byte of every page. A system call that was given the span and answered EFAULT met a page that is missing:
    /// afterwards it is there, or its region is dead.
    pub fn touch(self) {
        touch_pages(self.base, self.len);
    }

    /// For system calls that read the bytes themselves (writev).
    pub(crate) fn as_ptr(self) -> *const u8 {
        self.base
    }
}

/// Carries around until 16 bits are left: 64 to 33 to 18 to 17 to 16, without a branch.
fn fold_carries(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

impl<'a> From<&'a [u8]> for Span<'a> {
    #[inline]
    fn from(bytes: &'a [u8]) -> Self {
        Self { base: bytes.as_ptr(), len: bytes.len(), memory: PhantomData }
    }
}

impl SpanMut<'_> {
    /// # Safety
    /// `base..base + len` must stay mapped and writable for `'a`, and no Rust reference to any of it
    /// may be used meanwhile.
    pub(crate) unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// How many bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part from `start` on; `None` if it begins behind the end.
    #[inline]
    pub fn tail(self, start: usize) -> Option<Self> {
        let len = self.len.checked_sub(start)?;
        // SAFETY: start <= self.len, so the part lies inside this span.
        Some(Self { base: unsafe { self.base.add(start) }, len, memory: PhantomData })
    }

    /// The first `len` bytes and the rest; `None` if there are fewer.
    #[inline(always)]
    pub fn split(&mut self, len: usize) -> Option<(SpanMut<'_>, SpanMut<'_>)> {
        let rest = self.len.checked_sub(len)?;
        // SAFETY: len <= self.len, so both parts lie inside this span, which is borrowed for as long as they are.
        let tail = unsafe { SpanMut::new(self.base.add(len), rest) };
        Some((SpanMut { base: self.base, len, memory: PhantomData }, tail))
    }

    /// Stores words at the front, in the machine's byte order and each by a store of its own, as what was just computed
    /// lies in registers; `false`, and nothing stored, if they do not fit.
    #[inline(always)]
    #[must_use]
    pub fn write_words<const N: usize>(&mut self, words: [u64; N]) -> bool {
        if self.len < 8 * N {
            return false;
        }
        for (place, word) in words.into_iter().enumerate() {
            // SAFETY: 8 * place + 8 <= 8 * N <= len, inside this span.
            unsafe { self.base.add(8 * place).cast::<u64>().write_unaligned(word) };
        }
        true
    }

    /// As [`Span::touch`].
    pub fn touch(&self) {
        touch_pages(self.base, self.len);
    }

    /// Asks for the cache line of the first byte, to write to it soon.
    #[inline(always)]
    pub fn prefetch(&self) {
        prefetch_write(self.base);
    }

    /// Asks for the cache line of the byte at `offset`, to write to it soon.
    #[inline(always)]
    pub fn prefetch_at(&self, offset: usize) {
        prefetch_write(self.base.wrapping_add(offset));
    }
}

impl<'a> From<&'a mut [u8]> for SpanMut<'a> {
    #[inline]
    fn from(bytes: &'a mut [u8]) -> Self {
        Self { base: bytes.as_mut_ptr(), len: bytes.len(), memory: PhantomData }
    }
}

/// The bytes are those of a span.
#[cold]
fn touch_pages(base: *const u8, len: usize) {
    let first = base as usize;
    let pages = ((first | (PAGE - 1)) + 1..first + len).step_by(PAGE).map(|at| at - first);
    for at in std::iter::once(0).filter(|_| len > 0).chain(pages) {
        // SAFETY: at < len, inside the span; a missing page is the guard's.
        let _ = unsafe { base.add(at).read_volatile() };
    }
}

/// Asks for a cache line that another core has, to write to it: a plain store would wait for it later.
#[inline(always)]
pub(crate) fn prefetch_write(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing and never faults. The intrinsic would become a prefetch for reading, unless
    // the whole program was built for CPUs that have this one; the others decode it as doing nothing.
    unsafe {
        std::arch::asm!("prefetchw [{place}]", place = in(reg) place, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Copies each span to the front of the room at its place, as far as there are both; one that does not fit is not
/// copied.
pub fn copy_run(spans: &[Span<'_>], rooms: &mut [SpanMut<'_>]) {
    for (span, room) in spans.iter().zip(rooms) {
        let _ = span.copy_to(room);
    }
}

/// Copies `len` bytes. Short frames, the ones that come by the ten million, are moved by a few
/// overlapping 16-byte loads and stores instead of a call of `memcpy`. Every load comes before the
/// first store of its size class, so overlap is harmless.
///
/// # Safety
/// `source` must be readable and `target` writable for `len` bytes.
#[inline(always)]
unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: in each class every access begins at 0, or ends at `len`, and the class's bounds keep
    // both inside `0..len`; the caller vouches for those. SSE2 is part of every x86-64.
    unsafe {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
        // Unaligned by their names.
        #[expect(clippy::cast_ptr_alignment)]
        let load = |at: usize| _mm_loadu_si128(source.add(at).cast::<__m128i>());
        #[expect(clippy::cast_ptr_alignment)]
        let store = |at: usize, value| _mm_storeu_si128(target.add(at).cast::<__m128i>(), value);
        if !(16..=128).contains(&len) {
            return std::ptr::copy(source, target, len);
        }
        if len > 64 {
            let head = [load(0), load(16), load(32), load(48)];
            let tail = [load(len - 64), load(len - 48), load(len - 32), load(len - 16)];
            store(0, head[0]);
            store(16, head[1]);
            store(32, head[2]);
            store(48, head[3]);
            store(len - 64, tail[0]);
            store(len - 48, tail[1]);
            store(len - 32, tail[2]);
            store(len - 16, tail[3]);
        } else if len >= 32 {
            let (a, b, c, d) = (load(0), load(16), load(len - 32), load(len - 16));
            store(0, a);
            store(16, b);
            store(len - 32, c);
            store(len - 16, d);
        } else {
            let (a, b) = (load(0), load(len - 16));
            store(0, a);
            store(len - 16, b);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller vouches for both ranges.
    unsafe {
        std::ptr::copy(source, target, len);
    }
}

const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_exactly() {
        let source: Vec<u8> = (0..300u16).map(|i| (i % 251) as u8 + 1).collect();
        for len in 0..=300 {
            let mut target = vec![0; 302];
            assert!(Span::from(&source[..len]).copy_out(&mut target[1..]));
            assert_eq!(target[0], 0);
            assert_eq!(target[1..=len], source[..len]);
            assert!(target[len + 1..].iter().all(|&byte| byte == 0), "length {len} wrote too far");
        }
    }

    #[test]
    fn a_run_is_copied_place_by_place() {
        let mut targets = [[0; 4]; 3];
        let mut rooms: Vec<_> = targets.iter_mut().map(|target| SpanMut::from(&mut target[..])).collect();
        copy_run(&[b"ab"[..].into(), b"longer"[..].into()], &mut rooms);
        assert_eq!(targets, [*b"ab\0\0", [0; 4], [0; 4]]);
    }

    #[test]
    fn a_span_that_does_not_fit_is_not_copied() {
        let mut target = [0; 4];
        assert!(!Span::from(&[1; 5][..]).copy_out(&mut target));
        assert_eq!(target, [0; 4]);
    }

    #[test]
    fn words_are_stored_if_all_of_them_fit() {
        let mut target = [9; 20];
        let mut room = SpanMut::from(&mut target[1..]);
        assert!(room.write_words([u64::from_ne_bytes(*b"ferrules"), 0]));
        assert!(!room.write_words([1, 2, 3]));
        assert_eq!(&target[..9], b"\x09ferrules");
        assert_eq!(target[9..], [0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9]);
    }

    #[test]
    fn the_first_words_of_a_short_span_end_in_zeros() {
        let words = |bytes: &[u8]| Span::from(bytes).first_words::<2>().map(u64::to_ne_bytes);
        assert_eq!(words(b"twenty bytes or more"), [*b"twenty b", *b"ytes or "]);
        assert_eq!(words(b"ferrules fe"), [*b"ferrules", *b" fe\0\0\0\0\0"]);
    }

    #[test]
    fn the_exclusive_or_has_every_byte_once() {
        let bytes: Vec<u8> = (0..300u16).map(|i| (i * 7 % 251) as u8).collect();
        for len in 0..=bytes.len() {
            let mut expected = [0; 8];
            bytes[..len].iter().enumerate().for_each(|(place, byte)| expected[place % 8] ^= byte);
            assert_eq!(Span::from(&bytes[..len]).xor().to_ne_bytes(), expected, "length {len}");
        }
    }

    #[test]
    fn a_span_is_cut_only_inside_itself() {
        let span = Span::from(&[1, 2, 3][..]);
        assert_eq!(span.tail(3).map(Span::len), Some(0));
        assert!(span.tail(4).is_none());
        assert_eq!(span.head(2).map(Span::len), Some(2));
        assert!(span.head(4).is_none());
    }
}
