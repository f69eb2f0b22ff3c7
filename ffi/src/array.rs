//! Arrays of small plain values in shared memory: the parts of a virtqueue.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::region::Region;

/// Values of one type side by side in a region. Positions wrap at the length, so every position is inside. Each value
/// is read once into a local: decide on that, never read again.
pub struct Array<T> {
    place: NonNull<T>,
    len: u32,
    _region: Region,
}

// SAFETY: every access is a volatile or atomic one on plain integers; the region it points into is kept.
unsafe impl<T: Plain> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Array<T> {}

/// What an array can hold: integers, of which any bytes are a value.
pub trait Plain: sealed::Sealed + Copy {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for [u32; 2] {}
    impl Sealed for [u64; 2] {}
}

impl<T: sealed::Sealed + Copy> Plain for T {}

impl<T: Plain> Array<T> {
    /// `len` values (not none) from `offset` on; `None` if they are not all inside or not aligned to their type.
    pub fn new(region: &Region, offset: u64, len: u32) -> Option<Self> {
        let place = region.place(offset, u64::from(len) * size_of::<T>() as u64, align_of::<T>())?;
        (len > 0).then(|| Self { place: place.cast(), len, _region: region.clone() })
    }

    /// The value at `position`.
    #[inline(always)]
    pub fn read(&self, position: u32) -> T {
        // SAFETY: `at` stays inside the array, which lies inside the kept region, aligned to its type.
        unsafe { self.at(position).read_volatile() }
    }

    /// Stores the value at `position`.
    #[inline(always)]
    pub fn write(&self, position: u32, value: T) {
        // SAFETY: as for `read`.
        unsafe { self.at(position).write_volatile(value) }
    }

    /// Asks for the cache line of `position`, to write to it soon.
    #[inline(always)]
    pub fn prefetch_write(&self, position: u32) {
        crate::span::prefetch_write(self.at(position).cast());
    }

    #[inline(always)]
    fn at(&self, position: u32) -> *mut T {
        let position = if position < self.len { position } else { self.wrap(position) };
        // SAFETY: position < len, by the line above.
        unsafe { self.place.as_ptr().add(position as usize) }
    }

    #[cold]
    fn wrap(&self, position: u32) -> u32 {
        position % self.len
    }
}

/// Descriptors of a packed ring: the second word holds the flags, by which its owner changes.
impl Array<[u64; 2]> {
    /// The first word at `position`.
    #[inline(always)]
    pub fn read_first(&self, position: u32) -> u64 {
        // SAFETY: as for `read`; the first word of the pair is aligned as the pair is.
        unsafe { self.at(position).cast::<u64>().read_volatile() }
    }

    /// Stores the first word at `position` and leaves the second as it is.
    #[inline(always)]
    pub fn write_first(&self, position: u32, value: u64) {
        // SAFETY: as for `read_first`.
        unsafe { self.at(position).cast::<u64>().write_volatile(value) }
    }

    /// The second word at `position`, and with it everything the peer wrote before it.
    #[inline(always)]
    pub fn load_second(&self, position: u32) -> u64 {
        self.second(position).load(Ordering::Acquire)
    }

    /// Publishes the second word at `position`, and with it everything written before.
    #[inline(always)]
    pub fn store_second(&self, position: u32, value: u64) {
        self.second(position).store(value, Ordering::Release);
    }

    #[inline(always)]
    fn second(&self, position: u32) -> &AtomicU64 {
        // SAFETY: inside, as for `read`, and aligned to 8; it lives as long as `self`. Only atomic accesses are made to
        // second words of rings whose owners use these functions, and what other processes do is outside of Rust's view.
        unsafe { AtomicU64::from_ptr(self.at(position).cast::<u64>().add(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn region() -> Region {
        Region::create("test", 4096, &Arc::default()).unwrap()
    }

    #[test]
    fn an_array_lies_inside_its_region_and_is_aligned() {
        let region = region();
        assert!(Array::<u16>::new(&region, 4, 2046).is_some());
        assert!(Array::<u16>::new(&region, 4, 2047).is_none());
        assert!(Array::<u16>::new(&region, 1, 1).is_none());
        assert!(Array::<u16>::new(&region, 0, 0).is_none());
        assert!(Array::<[u32; 2]>::new(&region, 4, 511).is_some());
        assert!(Array::<[u32; 2]>::new(&region, 2, 1).is_none());
        assert!(Array::<[u64; 2]>::new(&region, 4, 1).is_none());
        assert!(Array::<[u64; 2]>::new(&region, u64::MAX - 7, 1).is_none());
    }

    #[test]
    fn positions_wrap_at_any_length() {
        let region = region();
        let array = Array::<[u32; 2]>::new(&region, 4, 3).unwrap();
        array.write(5, [7, 8]);
        assert_eq!(array.read(2), [7, 8]);
        assert_eq!(array.read(u32::MAX - 1), [7, 8]);
        assert_eq!((region.read_u32(20), region.read_u32(24)), (Some(7), Some(8)));
    }

    #[test]
    fn the_words_of_a_descriptor_are_stored_each_by_itself() {
        let region = region();
        let array = Array::<[u64; 2]>::new(&region, 16, 2).unwrap();
        array.write(1, [1, 2]);
        array.store_second(1, 3);
        array.write_first(1, 4);
        assert_eq!((array.read_first(1), array.load_second(1)), (4, 3));
        assert_eq!(array.read(0), [0, 0]);
    }
}
