//! A file mapped into our address space, under guard, for as long as a region of it is used.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc::off_t;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};

use crate::file_watch::charge_of;
use crate::guard::Guarded;
use crate::health::{Health, MemoryLost};
use crate::memory_budget::{MemoryBudget, PageTableCharge};
use crate::meter::Meter;
use crate::userfault;

/// The mapping that all clones of a region share.
pub(crate) struct Mapping {
    base: NonNull<libc::c_void>,
    len: usize,
    /// Where in the file it begins.
    first: u64,
    file: OwnedFd,
    guarded: Option<Guarded>,
    /// What its page tables were charged with, until it is unmapped.
    tables: Option<PageTableCharge>,
}

// SAFETY: base and len never change, and only `drop` uses them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the pages that `len` bytes of a file, from `offset` on, lie in; what we populate of them is charged to the
    /// budget of `health`, if it has one.
    pub(crate) fn metered_by(file: OwnedFd, offset: u64, len: u64, health: &Arc<Health>) -> io::Result<Self> {
        // Without a reservation: mapping a sparse file of huge pages would take as many from the node at once.
        Self::new(file, offset, len, MapFlags::MAP_NORESERVE)?.metered_and_guarded(health)
    }

    /// The same of a file of ours in huge pages, all of which the node keeps for it from now on.
    pub(crate) fn reserved(file: OwnedFd, len: u64, health: &Arc<Health>) -> io::Result<Self> {
        Self::new(file, 0, len, MapFlags::empty())?.metered_and_guarded(health)
    }

    fn metered_and_guarded(mut self, health: &Arc<Health>) -> io::Result<Self> {
        let budget = health.budget();
        self.tables = budget.map(|budget| self.charge_page_tables(budget)).transpose()?;
        self.guard(health, |mapping, page| {
            budget.map(|budget| mapping.metered(budget, page)).transpose().map(Option::flatten)
        })
    }

    fn new(file: OwnedFd, offset: u64, len: u64, reserve: MapFlags) -> io::Result<Self> {
        let end = offset.checked_add(len).ok_or_else(too_large)?;
        let stat = fstat(&file)?;
        // hugetlbfs maps and unmaps whole pages of its own size only, and at offsets that are multiples of it.
        let block = u64::try_from(stat.st_blksize).unwrap_or(PAGE).max(PAGE);
        let first = offset - offset % block;
        let mapped = (end - first).checked_next_multiple_of(block).and_then(|len| usize::try_from(len).ok());
        let mapped = mapped.and_then(NonZeroUsize::new).ok_or_else(too_large)?;
        let from = off_t::try_from(first).map_err(|_| too_large())?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | reserve;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap(None, mapped, prot, flags, &file, from) }.map_err(|errno| {
            let why = match errno {
                Errno::EACCES => " (was it opened read-only?)",
                Errno::EPERM => " (is it sealed against writing?)",
                Errno::ENOMEM => " (is vm.max_map_count or a limit of memory reached?)",
                _ => "",
            };
            io::Error::new(io::Error::from(errno).kind(), format!("map it for reading and writing: {errno}{why}"))
        })?;
        // A core file of ours is no place for tenants' memory.
        // SAFETY: the mapping was made above; only what a core file holds depends on it.
        let _ = unsafe { madvise(base, mapped.get(), MmapAdvise::MADV_DONTDUMP) };
        Ok(Self { base: base.cast(), len: mapped.get(), first, file, guarded: None, tables: None })
    }

    /// With the guard, which every mapping has before anybody uses it.
    fn guard(
        mut self,
        health: &Arc<Health>,
        meter: impl FnOnce(&Self, usize) -> io::Result<Option<Meter>>,
    ) -> io::Result<Self> {
        let meter = meter(&self, page_size(&self.file)?)?;
        let base = self.base.as_ptr() as usize;
        self.guarded = Some(Guarded::new(base, self.len, Arc::clone(health), meter)?);
        Ok(self)
    }

    /// Charges the page tables that the mapping may come to have. Nothing tells when one is made: its owner can populate
    /// all of a sparse file, at its own cost, and have us touch one page of each table.
    fn charge_page_tables(&self, budget: &Arc<MemoryBudget>) -> io::Result<PageTableCharge> {
        let page = page_size(&self.file)?;
        let bytes = page_tables(self.len, page);
        PageTableCharge::take(budget, bytes).ok_or_else(|| {
            let (mapped, page, tables, limit) = (self.len >> 20, page >> 10, bytes.div_ceil(1 << 20), budget.limit() >> 20);
            let text = format!(
                "mapping {mapped} MiB of it in pages of {page} KiB may take {tables} MiB of page tables, which its memory \
                 limit of {limit} MiB has no room for; raise `memory:` of the end, or have the peer use huge pages"
            );
            io::Error::new(io::ErrorKind::QuotaExceeded, text)
        })
    }

    /// What counts the pages that we populate; none where the kernel does not tell: then all that may ever be populated
    /// is charged now.
    fn metered(&self, budget: &Arc<MemoryBudget>, page: usize) -> io::Result<Option<Meter>> {
        let stat = fstat(&self.file)?;
        // Its owner may have cut it since it was looked at: it is as long as what is mapped of it.
        let size = stat.st_size.cast_unsigned().max(self.first + self.len as u64);
        let blocks = stat.st_blocks.cast_unsigned();
        let charge = charge_of(self.file.as_fd(), budget, page);
        charge.grow(size.next_multiple_of(page as u64));
        let meter = Meter::new(Arc::clone(&charge), self.len, page);
        let Err(error) = userfault::register(self.base.as_ptr() as usize, self.len, page) else {
            return Ok(Some(meter));
        };
        let missing = size.saturating_sub(blocks * STAT_BLOCK);
        if charge.take_up_to(missing) {
            return Ok(None);
        }
        let lost = MemoryLost::over_budget(budget.limit());
        let text = format!("{} MiB of its file have no pages yet: {lost} ({error})", missing >> 20);
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, text))
    }

    /// Where the byte at `offset` of the file is.
    pub(crate) fn place(&self, offset: u64) -> NonNull<u8> {
        // SAFETY: only called with the offset that the mapping was made for, which is inside of it.
        unsafe { self.base.cast::<u8>().add((offset - self.first) as usize) }
    }

    /// How many bytes are mapped: whole pages.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The guard goes first: it must never name memory that somebody else maps.
        self.guarded = None;
        // SAFETY: our own mapping; every Region, Index, Table and Span of it is gone.
        let _ = unsafe { munmap(self.base, self.len) };
        // Not before its page tables are gone.
        self.tables = None;
    }
}

/// Bytes that the page tables of a mapping take at most, with the bit that the meter keeps for each page. What is
/// smaller than one table is left out: a peer has only so many regions.
fn page_tables(len: usize, page: usize) -> u64 {
    let bits = (len / page) as u64 * (8 * size_of::<u64>() as u64 + 1);
    let bytes = bits / 8;
    bytes - bytes % PAGE
}

/// The pages of a file in memory.
fn page_size(file: &OwnedFd) -> io::Result<usize> {
    let stat = fstatfs(file)?;
    let is_huge = stat.filesystem_type() == HUGETLBFS_MAGIC;
    Ok(if is_huge { usize::try_from(stat.block_size()).unwrap_or(PAGE as usize) } else { PAGE as usize })
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the region is larger than the address space")
}

const PAGE: u64 = 4096;
/// What `stat` counts in.
const STAT_BLOCK: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;
    use std::time::{Duration, Instant};

    use crate::region::Region;
    use crate::span::Span;

    const MIB: u64 = 1 << 20;

    fn sparse(len: u64) -> OwnedFd {
        let file = memfd_create(c"sparse", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, len.cast_signed()).unwrap();
        file
    }

    /// Region, health and budget of a peer with `limit` whose file this is.
    fn mapped(file: &OwnedFd, len: u64, budget: &Arc<MemoryBudget>) -> io::Result<(Region, Arc<Health>)> {
        let health = Health::within(budget);
        let region = Region::map(file.try_clone()?, len, &health)?;
        Ok((region, health))
    }

    fn touch(region: &Region, page: u64) {
        assert!(Span::from(&b"x"[..]).copy_to(&mut region.span_mut_at(page * PAGE, 1).unwrap()));
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "not within 20 s: {what}");
            std::thread::yield_now();
        }
    }

    fn is_available(test: &str) -> bool {
        let available = userfault::available();
        if let Err(problem) = available {
            println!("skipped: {test}: {problem}");
        }
        available.is_ok()
    }

    #[test]
    fn only_pages_that_we_populate_are_charged_and_each_once() {
        if !is_available("only_pages_that_we_populate_are_charged_and_each_once") {
            return;
        }
        let file = sparse(MIB);
        // The peer's own pages: the first 16.
        fallocate(&file, FallocateFlags::empty(), 0, 16 * PAGE.cast_signed()).unwrap();
        let budget = MemoryBudget::new(MIB);
        let (region, health) = mapped(&file, MIB, &budget).unwrap();
        (0..16).for_each(|page| touch(&region, page));
        assert_eq!(budget.used(), 0);
        touch(&region, 100);
        touch(&region, 100);
        let mut byte = [9];
        assert!(region.span_at(200 * PAGE, 1).unwrap().copy_out(&mut byte));
        assert_eq!((byte, budget.used()), ([0], 2 * PAGE));
        // Taken away and used again: no page more than before.
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, punch, 100 * PAGE.cast_signed(), PAGE.cast_signed()).unwrap();
        touch(&region, 100);
        assert_eq!((budget.used(), health.cause()), (2 * PAGE, None));
        // Another mapping of the same file by the same end pays for what is missing only.
        let (again, _) = mapped(&file, MIB, &budget).unwrap();
        touch(&again, 100);
        touch(&again, 101);
        assert_eq!(budget.used(), 3 * PAGE);
    }

    #[test]
    fn one_page_too_many_loses_the_memory_and_nothing_else() {
        if !is_available("one_page_too_many_loses_the_memory_and_nothing_else") {
            return;
        }
        let (file, other) = (sparse(MIB), sparse(MIB));
        let (budget, others) = (MemoryBudget::new(4 * PAGE), MemoryBudget::new(4 * PAGE));
        let (region, health) = mapped(&file, MIB, &budget).unwrap();
        let (bystander, alive) = mapped(&other, MIB, &others).unwrap();
        (0..4).for_each(|page| touch(&region, page));
        assert!(!health.is_dead());
        touch(&region, 4);
        assert_eq!(health.cause(), Some(MemoryLost::over_budget(4 * PAGE)));
        touch(&bystander, 0);
        assert_eq!((alive.cause(), others.used()), (None, PAGE));
        assert_eq!(budget.used(), 4 * PAGE);
    }

    #[test]
    fn a_charge_lasts_as_long_as_anybody_has_the_file() {
        if !is_available("a_charge_lasts_as_long_as_anybody_has_the_file") {
            return;
        }
        let budget = MemoryBudget::new(8 * PAGE);
        let keep = [sparse(MIB), sparse(MIB)];
        for file in &keep {
            let (region, health) = mapped(file, MIB, &budget).unwrap();
            (0..3).for_each(|page| touch(&region, page));
            assert!(!health.is_dead());
        }
        // Both connections are over, and their pages are still ours to pay.
        assert_eq!(budget.used(), 6 * PAGE);
        let third = sparse(MIB);
        let (region, health) = mapped(&third, MIB, &budget).unwrap();
        (0..3).for_each(|page| touch(&region, page));
        assert!(health.is_dead());
        drop((region, third));
        drop(keep);
        until("the charge goes with the files", || budget.used() == 0);
        until("the watches go with the files", || budget.watched.load(std::sync::atomic::Ordering::Relaxed) == 0);
    }

    #[test]
    fn a_system_call_finds_the_missing_pages_once_they_were_touched() {
        if !is_available("a_system_call_finds_the_missing_pages_once_they_were_touched") {
            return;
        }
        let file = sparse(MIB);
        let budget = MemoryBudget::new(MIB);
        let (region, health) = mapped(&file, MIB, &budget).unwrap();
        let span = region.span_at(PAGE - 10, 20).unwrap();
        // SAFETY: the span is readable for its length; only then does the kernel read it.
        let bytes = unsafe { std::slice::from_raw_parts(span.as_ptr(), span.len()) };
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        assert_eq!(nix::unistd::write(&writer, bytes), Err(Errno::EFAULT));
        span.touch();
        assert_eq!(nix::unistd::write(&writer, bytes), Ok(20));
        assert_eq!((budget.used(), health.cause()), (2 * PAGE, None));
    }

    #[test]
    fn huge_pages_are_charged_in_their_size() {
        let test = "huge_pages_are_charged_in_their_size";
        let free =
            std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or_default();
        if free.trim().parse().unwrap_or(0) < 2 {
            println!("skipped: {test}: lacks two free huge pages (echo 8 > /proc/sys/vm/nr_hugepages)");
            return;
        }
        if !is_available(test) {
            return;
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        let file = memfd_create(c"huge", flags).unwrap();
        // Nothing is reserved: far more than the machine has.
        ftruncate(&file, 1 << 40).unwrap();
        let tables = page_tables(1 << 40, 2 << 20);
        let limit = tables + 4 * MIB;
        let budget = MemoryBudget::new(limit);
        let (region, health) = mapped(&file, 1 << 40, &budget).unwrap();
        touch(&region, 0);
        touch(&region, 511);
        assert_eq!((budget.used() - tables, health.cause()), (2 * MIB, None));
        touch(&region, 512);
        assert_eq!((budget.used() - tables, health.cause()), (4 * MIB, None));
        touch(&region, 1024);
        assert_eq!(health.cause(), Some(MemoryLost::over_budget(limit)));
    }

    #[test]
    fn page_tables_are_charged_until_the_memory_is_unmapped() {
        const GIB: u64 = 1 << 30;
        // Large enough that what other tests of this process do is small beside it.
        const LEN: u64 = 8 * GIB;
        let file = sparse(LEN);
        // The peer's own pages, one for each table: only the tables are ours to pay.
        for table in 0..LEN / (2 * MIB) {
            let start = (table * 2 * MIB).cast_signed();
            fallocate(&file, FallocateFlags::empty(), start, PAGE.cast_signed()).unwrap();
        }
        let budget = MemoryBudget::new(20 * MIB);
        let before = page_tables_of_this_process();
        let (region, health) = mapped(&file, LEN, &budget).unwrap();
        (0..LEN / (2 * MIB)).for_each(|table| touch(&region, table * 512));
        let (grown, charged) = (page_tables_of_this_process().saturating_sub(before), budget.used());
        assert_eq!(health.cause(), None);
        assert!(charged >= 16 * MIB && grown > charged * 9 / 10, "charged {charged}, {grown} in use");
        drop(region);
        assert_eq!(budget.used(), 0);
        let error = mapped(&sparse(64 * GIB), 64 * GIB, &budget).err().unwrap();
        assert!(error.to_string().contains("may take 130 MiB of page tables"), "{error}");
        assert_eq!(budget.used(), 0);
    }

    /// `VmPTE` of /proc/self/status, in bytes.
    fn page_tables_of_this_process() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn a_file_with_two_names_cannot_say_that_it_is_gone() {
        if !is_available("a_file_with_two_names_cannot_say_that_it_is_gone") {
            return;
        }
        let [first, second] = ["a", "b"].map(|name| format!("/dev/shm/ferrule-{}-{name}", std::process::id()));
        let file = std::fs::File::create_new(&first).and_then(|file| {
            file.set_len(MIB)?;
            std::fs::hard_link(&first, &second)?;
            std::fs::OpenOptions::new().read(true).write(true).open(&first)
        });
        let budget = MemoryBudget::new(MIB);
        let used = file.and_then(|file| mapped(&file.into(), MIB, &budget));
        let used = used.inspect(|(region, _)| touch(region, 0));
        let gone = [&first, &second].map(std::fs::remove_file);
        let (_region, health) = used.unwrap();
        assert!(gone.iter().all(Result::is_ok));
        // An event of another file, which comes later, has been seen: so has this one's, had there been any.
        let (other, others) = (sparse(MIB), MemoryBudget::new(MIB));
        let (watched, _) = mapped(&other, MIB, &others).unwrap();
        touch(&watched, 0);
        drop((watched, other));
        until("the charge of a memfd goes with it", || others.used() == 0);
        assert_eq!((budget.used(), health.cause()), (PAGE, None));
    }

    #[test]
    fn a_truncated_file_is_told_from_a_missing_page() {
        let file = sparse(MIB);
        let budget = MemoryBudget::new(MIB);
        let (region, health) = mapped(&file, MIB, &budget).unwrap();
        ftruncate(&file, 0).unwrap();
        touch(&region, 7);
        assert_eq!((health.cause(), budget.used()), (Some(MemoryLost::Truncated), 0));
    }

    #[test]
    fn without_userfaultfd_all_that_is_missing_is_charged_at_once() {
        userfault::tests::DENIED.set(true);
        let (budget, file) = (MemoryBudget::new(MIB), sparse(MIB));
        fallocate(&file, FallocateFlags::empty(), 0, 16 * PAGE.cast_signed()).unwrap();
        let first = mapped(&file, MIB, &budget).unwrap();
        assert_eq!(budget.used(), MIB - 16 * PAGE);
        let _again = mapped(&file, MIB, &budget).unwrap();
        assert_eq!(budget.used(), MIB - 16 * PAGE);
        let error = mapped(&sparse(MIB), MIB, &budget).err().unwrap();
        assert!(error.to_string().contains("raise `memory:`"), "{error}");
        drop((first, file));
    }

    #[test]
    fn peers_memory_is_in_no_core_file() {
        let file = sparse(64 * PAGE);
        let region = Region::map(file, 64 * PAGE, &Arc::default()).unwrap();
        let own = Region::create("own", 64 * PAGE, &Arc::default()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for region in [&region, &own] {
            let start = format!("{:x}-", region.place(0, 1, 1).unwrap().as_ptr() as usize);
            let flags =
                maps.lines().skip_while(|line| !line.starts_with(&start)).find(|line| line.starts_with("VmFlags:"));
            assert!(flags.unwrap().split(' ').any(|flag| flag == "dd"), "{flags:?}");
        }
    }
}
