//! Memory shared with a peer.
//!
//! The peer may rewrite any byte at any instant, so nothing here hands out a reference to it. There
//! are three ways in, all checked once against the region's length: an [`Index`] (acquire loads,
//! release stores), a [`Table`] of 16-byte descriptors (each read once into a local), and a
//! [`Span`] to copy payload from or to.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

pub use crate::health::Health;
use crate::mapping::Mapping;
use crate::peer_file::PeerFile;
use crate::span::{Span, SpanMut};

/// A file mapped for reading and writing. Clones share the mapping; the last one unmaps it.
#[derive(Clone)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: the memory is shared with other processes anyway; every access is a volatile or atomic
// one, or a plain byte copy whose result nobody trusts. The mapping itself is never changed.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps the first `len` bytes of `file`: [`Self::map_window`] from its beginning.
    pub fn map(file: impl Into<PeerFile>, len: u64, health: &Arc<Health>) -> io::Result<Self> {
        Self::map_window(file, 0, len, health)
    }

    /// Maps `len` bytes of a peer's `file` from `offset` on, and no page more than they lie in. If a page of it is
    /// missing one day, and is not populated within the budget of `health`, then `health` is marked dead and the region
    /// reads as zeros from then on.
    ///
    /// A memfd is sealed against shrinking when it allows that.
    ///
    /// # Errors
    /// The file is not in memory, ends before the window does, or cannot be mapped.
    pub fn map_window(file: impl Into<PeerFile>, offset: u64, len: u64, health: &Arc<Health>) -> io::Result<Self> {
        let invalid = |problem| io::Error::new(io::ErrorKind::InvalidInput, problem);
        if len == 0 {
            return Err(invalid("a region of no bytes"));
        }
        let end = offset.checked_add(len).ok_or_else(|| invalid("a region whose end wraps around"))?;
        let file = file.into();
        Self::check(&file, end)?;
        Self::whole(Mapping::metered_by(file.into_memory()?, offset, len, health)?, offset, len)
    }

    /// Whether the first `len` bytes of a peer's file can be mapped, now or later.
    ///
    /// # Errors
    /// The file is not in memory, is shorter, or may not be written to.
    pub fn check(file: &PeerFile, len: u64) -> io::Result<()> {
        // Reading another kind of file can block in a page fault for ever, if its owner serves it (FUSE).
        file.check_memory()?;
        // May fail: the file is no memfd, or was made without sealing. Then the guard has to do.
        let _ = fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK));
        let held = fstat(file)?.st_size.cast_unsigned();
        let mode = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
        let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
        let problem = match len {
            0 => "a region of no bytes".to_owned(),
            _ if mode != OFlag::O_RDWR => "map it for reading and writing: it was opened read-only".to_owned(),
            _ if seals.bits() & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 => {
                "map it for reading and writing: it is sealed against writing".to_owned()
            }
            _ if held < len => format!("the file holds {held} bytes, fewer than the {len} announced"),
            _ => return Ok(()),
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }

    /// Makes a memfd of `len` bytes, sealed against shrinking and growing, and maps it. What we populate of it is charged to
    /// the budget of `health`, if it has one: whoever gets the file may keep it.
    pub fn create(name: &str, len: u64, health: &Arc<Health>) -> io::Result<Self> {
        let name = CString::new(name)?;
        let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&file, i64::try_from(len).map_err(io::Error::other)?)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        Self::whole(Mapping::metered_by(file, 0, len, health)?, 0, len)
    }

    /// The same of at least `len` bytes in pages of 2 MiB, which are reserved for it.
    ///
    /// # Errors
    /// The node has not so many free.
    pub fn create_huge(name: &str, len: u64, health: &Arc<Health>) -> io::Result<Self> {
        let name = CString::new(name)?;
        let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | huge)?;
        // A peer that unmaps less than whole pages of it would fail.
        let len = len.checked_next_multiple_of(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        ftruncate(&file, i64::try_from(len).map_err(io::Error::other)?)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        Self::whole(Mapping::reserved(file, len, health)?, 0, len)
    }

    /// Populates every page, if the budget allows that: later nobody waits for the kernel to do it. Takes as long as the kernel does,
    /// while others use the region.
    pub fn populate(&self) {
        for offset in (0..self.len as u64).step_by(PAGE) {
            // Every offset is inside.
            if let Some(byte) = self.span_at(offset, 1) {
                byte.touch();
            }
        }
    }

    /// The window that `mapping` was made for.
    fn whole(mapping: Mapping, offset: u64, len: u64) -> io::Result<Self> {
        let base = mapping.place(offset);
        let len = usize::try_from(len).map_err(io::Error::other)?;
        Ok(Self { base, len, mapping: Arc::new(mapping) })
    }

    /// Its length in bytes, as it was announced.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// A region is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The file behind it, to pass on.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.mapping.file()
    }

    /// `len` bytes from `offset` on, to copy from; `None` if they are not all inside.
    #[inline(always)]
    pub fn span(&self, offset: u32, len: u32) -> Option<Span<'_>> {
        // 64 bits: two u32 cannot wrap in them.
        if u64::from(offset) + u64::from(len) > self.len as u64 {
            return None;
        }
        // SAFETY: inside the mapping, by the check above; it lives as long as `self`.
        Some(unsafe { Span::new(self.base.as_ptr().add(offset as usize), len as usize) })
    }

    /// `len` bytes from `offset` on, to copy to; `None` if they are not all inside.
    #[inline(always)]
    pub fn span_mut(&self, offset: u32, len: u32) -> Option<SpanMut<'_>> {
        if u64::from(offset) + u64::from(len) > self.len as u64 {
            return None;
        }
        // SAFETY: inside the mapping, by the check above; no reference to its bytes exists anywhere.
        Some(unsafe { SpanMut::new(self.base.as_ptr().add(offset as usize), len as usize) })
    }

    /// The same for memory that can be longer than 4 GiB.
    #[inline(always)]
    pub fn span_at(&self, offset: u64, len: u32) -> Option<Span<'_>> {
        if offset.checked_add(u64::from(len))? > self.len as u64 {
            return None;
        }
        // SAFETY: inside the mapping, by the check above; it lives as long as `self`.
        Some(unsafe { Span::new(self.base.as_ptr().add(offset as usize), len as usize) })
    }

    /// The same for memory that can be longer than 4 GiB.
    #[inline(always)]
    pub fn span_mut_at(&self, offset: u64, len: u32) -> Option<SpanMut<'_>> {
        if offset.checked_add(u64::from(len))? > self.len as u64 {
            return None;
        }
        // SAFETY: inside the mapping, by the check above; no reference to its bytes exists anywhere.
        Some(unsafe { SpanMut::new(self.base.as_ptr().add(offset as usize), len as usize) })
    }

    /// `len` bytes (not none) from `offset` on as a region of their own, in the same mapping; `None` if they are not
    /// all inside.
    pub fn part(&self, offset: u64, len: u64) -> Option<Self> {
        let base = self.place(offset, len, 1)?;
        (len > 0).then(|| Self { base, len: len as usize, mapping: Arc::clone(&self.mapping) })
    }

    /// The 16-bit index at `offset`; `None` if it is outside or not aligned.
    pub fn index(&self, offset: u64) -> Option<Index> {
        Some(Index { place: self.place(offset, 2, 2)?.cast(), _region: self.clone() })
    }

    /// The 64-bit word at `offset`; `None` if it is outside or not aligned.
    pub fn word(&self, offset: u64) -> Option<Word> {
        Some(Word { place: self.place(offset, 8, 8)?.cast(), _region: self.clone() })
    }

    /// The table of `len` descriptors (a power of two) at `offset`; `None` if it is not all inside or
    /// not aligned to 8 bytes.
    pub fn table(&self, offset: u64, len: u32) -> Option<Table> {
        if !len.is_power_of_two() {
            return None;
        }
        let place = self.place(offset, u64::from(len) * 16, 8)?.cast();
        Some(Table { place, mask: len as usize - 1, _region: self.clone() })
    }

    /// The u32 at `offset`, once; `None` if it is outside or not aligned.
    pub fn read_u32(&self, offset: u64) -> Option<u32> {
        let place = self.place(offset, 4, 4)?;
        // SAFETY: inside the mapping and aligned, by `place`.
        Some(unsafe { place.cast::<u32>().read_volatile() })
    }

    /// Stores the u32 at `offset`; `None`, and nothing stored, if it is outside or not aligned.
    #[must_use]
    pub fn write_u32(&self, offset: u64, value: u32) -> Option<()> {
        let place = self.place(offset, 4, 4)?;
        // SAFETY: inside the mapping and aligned, by `place`.
        unsafe { place.cast::<u32>().write_volatile(value) };
        Some(())
    }

    /// Sets bits of the byte at `offset` that others set and clear too; `None` if it is outside.
    pub fn set_bits(&self, offset: u64, bits: u8) -> Option<()> {
        let place = self.place(offset, 1, 1)?;
        // SAFETY: inside the mapping, by `place`; only atomic accesses are made to bytes used this way, and what other
        // processes do is outside of Rust's view.
        unsafe { AtomicU8::from_ptr(place.as_ptr()) }.fetch_or(bits, Ordering::SeqCst);
        Some(())
    }

    pub(crate) fn place(&self, offset: u64, len: u64, align: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: offset <= end <= len, inside the mapping.
        let place = unsafe { self.base.add(offset as usize) };
        (place.as_ptr() as usize).is_multiple_of(align).then_some(place)
    }
}

/// A 16-bit number that one side publishes and the other watches.
pub struct Index {
    place: NonNull<u16>,
    _region: Region,
}

// SAFETY: every access is atomic; the region it points into is kept.
unsafe impl Send for Index {}
// SAFETY: as above.
unsafe impl Sync for Index {}

impl Index {
    /// What the peer published, and with it everything it wrote before.
    #[inline]
    pub fn load(&self) -> u16 {
        // SAFETY: valid and aligned while the region is kept; only atomic accesses are made here,
        // and what other processes do is outside of Rust's view.
        unsafe { AtomicU16::from_ptr(self.place.as_ptr()) }.load(Ordering::Acquire)
    }

    /// Publishes `value`, and with it everything written before.
    #[inline]
    pub fn store(&self, value: u16) {
        // SAFETY: as for `load`.
        unsafe { AtomicU16::from_ptr(self.place.as_ptr()) }.store(value, Ordering::Release);
    }
}

/// Eight bytes that are stored at once: who looks at them sees all of a store or nothing of it, whenever the one who stores
/// is killed.
pub struct Word {
    place: NonNull<u64>,
    _region: Region,
}

// SAFETY: every access is atomic; the region it points into is kept.
unsafe impl Send for Word {}
// SAFETY: as above.
unsafe impl Sync for Word {}

impl Word {
    /// What was stored last, and with it everything written before.
    #[inline]
    pub fn load(&self) -> u64 {
        // SAFETY: valid and aligned while the region is kept; only atomic accesses are made here,
        // and what other processes do is outside of Rust's view.
        unsafe { AtomicU64::from_ptr(self.place.as_ptr()) }.load(Ordering::Acquire)
    }

    /// Stores `value` after everything written before.
    #[inline]
    pub fn store(&self, value: u64) {
        // SAFETY: as for `load`.
        unsafe { AtomicU64::from_ptr(self.place.as_ptr()) }.store(value, Ordering::Release);
    }
}

/// A ring of 16-byte descriptors. Positions are masked, so every position is inside.
pub struct Table {
    place: NonNull<[u64; 2]>,
    mask: usize,
    _region: Region,
}

// SAFETY: every access is volatile on plain integers; the region it points into is kept.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// How many descriptors.
    #[inline]
    pub fn len(&self) -> usize {
        self.mask + 1
    }

    /// A table is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The descriptor at `position`, read once: decide on what this returns, never read again.
    #[inline(always)]
    pub fn read(&self, position: u16) -> [u64; 2] {
        // SAFETY: masked, so inside the table, which lies inside the kept region, aligned to 8.
        unsafe {
            let first = self.at(position).cast::<u64>();
            [first.read_volatile(), first.add(1).read_volatile()]
        }
    }

    /// Stores a whole descriptor.
    #[inline(always)]
    pub fn write(&self, position: u16, value: [u64; 2]) {
        // SAFETY: as for `read`.
        unsafe {
            let first = self.at(position).cast::<u64>();
            first.write_volatile(value[0]);
            first.add(1).write_volatile(value[1]);
        }
    }

    /// Stores the first half of a descriptor and leaves the second as it is.
    #[inline(always)]
    pub fn write_first(&self, position: u16, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.at(position).cast::<u64>().write_volatile(value) }
    }

    #[inline(always)]
    fn at(&self, position: u16) -> *mut [u64; 2] {
        // SAFETY: the mask keeps the offset inside the table.
        unsafe { self.place.as_ptr().add(position as usize & self.mask) }
    }
}

const PAGE: usize = 4096;
const HUGE_PAGE: u64 = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    use crate::memory_budget::MemoryBudget;

    fn region(len: u64) -> (Region, Arc<Health>) {
        let health = Arc::new(Health::default());
        (Region::create("test", len, &health).unwrap(), health)
    }

    #[test]
    fn nothing_outside_a_region_can_be_named() {
        let (region, _) = region(4096);
        assert!(region.span(4095, 1).is_some());
        assert!(region.span(4095, 2).is_none());
        assert!(region.span(u32::MAX, u32::MAX).is_none());
        assert!(region.span_mut(4096, 0).is_some());
        assert!(region.index(4094).is_some());
        assert!(region.index(4095).is_none());
        assert!(region.index(1).is_none());
        assert!(region.index(u64::MAX).is_none());
        assert!(region.table(0, 256).is_some());
        assert!(region.table(16, 256).is_none());
        assert!(region.table(0, 255).is_none());
        assert!(region.table(4, 1).is_none());
    }

    #[test]
    fn a_part_of_a_region_ends_where_it_was_cut() {
        let (region, _) = region(8192);
        let part = region.part(4096, 4096).unwrap();
        assert!(region.write_u32(4100, 7).is_some());
        assert_eq!((part.len(), part.read_u32(4)), (4096, Some(7)));
        assert!(part.span_at(4095, 1).is_some() && part.span_mut_at(4095, 1).is_some());
        assert!(part.span_at(4095, 2).is_none() && part.span_mut_at(4095, 2).is_none());
        assert!(part.span_at(u64::MAX, 1).is_none() && part.span_at(u64::MAX - 4095, u32::MAX).is_none());
        assert!(region.part(4096, 4097).is_none());
        assert!(region.part(4096, 0).is_none());
        assert!(region.part(u64::MAX, 1).is_none());
    }

    #[test]
    fn bits_are_added_to_those_that_are_set() {
        let (region, _) = region(4096);
        assert!(region.set_bits(3, 0x80).is_some() && region.set_bits(3, 1).is_some());
        assert_eq!(region.read_u32(0), Some(0x8100_0000));
        assert!(region.set_bits(4096, 1).is_none());
    }

    #[test]
    fn bytes_cross_a_region() {
        let (region, health) = region(4096);
        assert!(Span::from(&b"ferrule"[..]).copy_to(&mut region.span_mut(100, 7).unwrap()));
        let mut out = [0; 7];
        assert!(region.span(100, 7).unwrap().copy_out(&mut out));
        assert_eq!(&out, b"ferrule");
        assert!(!health.is_dead());
    }

    #[test]
    fn a_table_wraps_at_its_length() {
        let (region, _) = region(4096);
        let table = region.table(0, 4).unwrap();
        table.write(1, [7, 8]);
        assert_eq!(table.read(5), [7, 8]);
        table.write_first(1, 9);
        assert_eq!(table.read(65_533), [9, 8]);
    }

    #[test]
    fn a_window_shows_its_own_bytes_and_maps_no_more_pages_than_they_lie_in() {
        let (whole, health) = region(4 * 4096);
        for page in 0..4 {
            assert!(whole.write_u32(page * 4096 + 12, page as u32 + 1).is_some());
        }
        let file = || whole.file().try_clone_to_owned().unwrap();
        let window = Region::map_window(file(), 2 * 4096 + 8, 4096, &health).unwrap();
        assert_eq!((window.len(), window.mapping.len()), (4096, 2 * 4096));
        assert_eq!((window.read_u32(4), window.read_u32(4096 - 4)), (Some(3), Some(0)));
        assert!(window.read_u32(4096).is_none() && window.span_at(4095, 2).is_none());
        assert!(window.write_u32(4092, 9).is_some());
        assert_eq!(whole.read_u32(3 * 4096 + 4), Some(9));
        for (offset, len) in [(4096, 3 * 4096 + 1), (4 * 4096, 1), (u64::MAX, 2), (u64::MAX - 4095, 4096), (0, 0)] {
            assert!(Region::map_window(file(), offset, len, &health).is_err(), "{offset} {len}");
        }
    }

    #[test]
    fn a_region_that_was_populated_has_all_its_pages_and_its_budget_pays() {
        let budget = MemoryBudget::new(1 << 20);
        let region = Region::create("test", 64 * 4096, &Health::within(&budget)).unwrap();
        let populated = || fstat(region.file()).unwrap().st_blocks * 512;
        assert_eq!(populated(), 0);
        region.populate();
        assert_eq!(populated(), 64 * 4096);
        assert_eq!(budget.used(), 64 * 4096);
    }

    #[test]
    fn huge_pages_are_reserved_or_refused() {
        let free = || {
            let number = |name| {
                let file = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
                std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            number("free_hugepages").saturating_sub(number("resv_hugepages"))
        };
        let health = Arc::default();
        assert!(Region::create_huge("test", 1 << 50, &health).is_err(), "no node has a PiB");
        if free() < 2 {
            println!(
                "skipped: huge_pages_are_reserved_or_refused: lacks two free huge pages (echo 8 > /proc/sys/vm/nr_hugepages)"
            );
            return;
        }
        let region = Region::create_huge("test", (2 << 20) + 1, &health).unwrap();
        assert_eq!(region.len(), 4 << 20);
        region.populate();
        assert!(region.write_u32((4 << 20) - 4, 7).is_some() && !health.is_dead());
    }

    #[test]
    fn a_word_is_aligned_and_inside() {
        let (region, _) = region(4096);
        assert!(region.word(4).is_none() && region.word(4096).is_none() && region.word(u64::MAX).is_none());
        let word = region.word(8).unwrap();
        word.store(0x0102_0304_0506_0708);
        assert_eq!((word.load(), region.read_u32(8)), (0x0102_0304_0506_0708, Some(0x0506_0708)));
    }

    #[test]
    fn a_file_shorter_than_announced_is_refused() {
        let file = memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 100).unwrap();
        let error = Region::map(file, 4096, &Arc::default()).err().unwrap();
        assert!(error.to_string().contains("100 bytes"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_and_the_message_says_why() {
        let file = memfd_create(c"sealed", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&file, 4096).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let reading = OwnedFd::from(std::fs::File::open(path).unwrap());
        let error = Region::map(reading, 4096, &Arc::default()).err().unwrap();
        assert!(error.to_string().contains("read-only"), "{error}");
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
        let error = Region::map(file, 4096, &Arc::default()).err().unwrap();
        assert!(error.to_string().contains("sealed against writing"), "{error}");
    }

    #[test]
    fn a_truncated_file_makes_its_region_dead_and_nothing_else() {
        let (other, other_health) = region(8192);
        let file = memfd_create(c"unsealed", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 8192).unwrap();
        let health = Arc::new(Health::default());
        let region = Region::map(file.try_clone().unwrap(), 8192, &health).unwrap();
        assert!(Span::from(&[1; 64][..]).copy_to(&mut region.span_mut(0, 64).unwrap()));
        ftruncate(&file, 0).unwrap();
        let mut out = [9; 64];
        assert!(region.span(0, 64).unwrap().copy_out(&mut out));
        assert!(health.is_dead());
        assert_eq!(out, [0; 64]);
        assert!(other.span(0, 64).unwrap().copy_out(&mut out));
        assert!(!other_health.is_dead());
    }

    #[test]
    fn a_memfd_that_allows_it_is_sealed_against_shrinking() {
        let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&file, 4096).unwrap();
        let _region = Region::map(file.try_clone().unwrap(), 4096, &Arc::default()).unwrap();
        assert!(ftruncate(&file, 0).is_err());
    }
}
