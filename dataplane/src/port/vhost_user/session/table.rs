//! The memory table as it is announced, all at once or one region at a time, each with its file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::region::{Health, Region};
use nix::sys::stat::fstat;
use thiserror::Error;

use crate::port::vhost_user::memory::{GuestMemory, MemoryError, MemoryRegion};

/// Every region that was announced, mapped.
#[derive(Default)]
pub struct MemoryTable {
    rows: Vec<(MemoryRegion, Region)>,
    /// All rows, as rings use them; none: there are no rows.
    memory: Option<GuestMemory>,
    health: Arc<Health>,
}

impl MemoryTable {
    /// Without a region.
    pub fn new(health: Arc<Health>) -> Self {
        Self { health, ..Self::default() }
    }

    /// SET_MEM_TABLE: these regions and no others. A refusal changes nothing.
    pub fn set(&mut self, rows: Vec<MemoryRegion>, files: Vec<PeerFile>) -> Result<(), TableError> {
        if rows.is_empty() {
            return Err(MemoryError::Empty.into());
        }
        check_total(&rows)?;
        let rows = rows.into_iter().zip(files);
        let rows = rows.map(|(row, file)| self.map(row, file)).collect::<Result<Vec<_>, _>>()?;
        self.replace(rows)
    }

    /// ADD_MEM_REG: one more.
    pub fn add(&mut self, row: MemoryRegion, file: PeerFile) -> Result<(), TableError> {
        if self.rows.len() >= SLOTS_MAX {
            return Err(TableError::Full);
        }
        let announced: Vec<_> = self.rows.iter().map(|&(row, _)| row).chain([row]).collect();
        check_total(&announced)?;
        let mut rows = self.rows.clone();
        rows.push(self.map(row, file)?);
        self.replace(rows)
    }

    /// REM_MEM_REG: one less, known by its addresses and its size.
    pub fn remove(&mut self, row: MemoryRegion) -> Result<(), TableError> {
        let key = |row: &MemoryRegion| (row.guest, row.user, row.size);
        let Some(at) = self.rows.iter().position(|(other, _)| key(other) == key(&row)) else {
            return Err(TableError::Unknown { row });
        };
        let mut rows = self.rows.clone();
        rows.remove(at);
        self.replace(rows)
    }

    /// What rings use.
    pub fn memory(&self) -> Option<&GuestMemory> {
        self.memory.as_ref()
    }

    /// Each region as it was announced, with its file.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (&MemoryRegion, BorrowedFd<'_>)> {
        self.rows.iter().map(|(announced, region)| (announced, region.file()))
    }

    /// Whether a page of it is missing.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    fn replace(&mut self, rows: Vec<(MemoryRegion, Region)>) -> Result<(), TableError> {
        self.memory = if rows.is_empty() { None } else { Some(GuestMemory::new(rows.clone())?) };
        self.rows = rows;
        Ok(())
    }

    /// Maps a row's file, unless that row is there already: a table that has grown keeps what it had.
    fn map(&self, row: MemoryRegion, file: PeerFile) -> Result<(MemoryRegion, Region), TableError> {
        let failed = |source| TableError::Map { row, source };
        // First: asking another kind of file who it is can block for as long as its owner likes (FUSE).
        let file = file.into_memory().map_err(failed)?;
        let same = |known: &&(MemoryRegion, Region)| known.0 == row && is_same_file(&known.1.file(), &file);
        if let Some(known) = self.rows.iter().find(same) {
            return Ok(known.clone());
        }
        if row.size == 0 {
            return Err(MemoryError::NoBytes { guest: row.guest }.into());
        }
        let region = Region::map_window(file, row.offset, row.size, &self.health).map_err(failed)?;
        Ok((row, region))
    }
}

/// Before anything is mapped: sparse files cost their owner nothing, and all frontends share our address space.
fn check_total(rows: &[MemoryRegion]) -> Result<(), TableError> {
    let bytes = rows.iter().fold(0u64, |sum, row| sum.saturating_add(row.size));
    if bytes > MEMORY_MAX {
        return Err(TableError::TooLarge { bytes });
    }
    Ok(())
}

fn is_same_file(a: &impl AsFd, b: &impl AsFd) -> bool {
    let identity = |file: &dyn AsFd| fstat(file.as_fd()).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

/// Why memory is not taken.
#[derive(Debug, Error)]
pub enum TableError {
    /// The table contradicts itself.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A file that cannot be mapped.
    #[error("map {} bytes at guest address {:#x}: {source}", .row.size, .row.guest)]
    Map {
        /// What for.
        row: MemoryRegion,
        /// Why not.
        source: io::Error,
    },
    /// No room for one more.
    #[error("memory table: it has {SLOTS_MAX} regions, and no more are taken")]
    Full,
    /// More than one frontend may have mapped.
    #[error("memory table: its regions have {bytes} bytes; at most {MEMORY_MAX} are mapped")]
    TooLarge {
        /// How much it would be.
        bytes: u64,
    },
    /// Not in the table.
    #[error("memory table: there is no region of {} bytes at guest address {:#x}", .row.size, .row.guest)]
    Unknown {
        /// What was to be removed.
        row: MemoryRegion,
    },
}

/// The answer to GET_MAX_MEM_SLOTS: each costs us a descriptor and a mapping.
pub const SLOTS_MAX: usize = 64;
/// Bytes that one frontend can have us map. Of 128 TiB of address space, no more than 32 hostile ones take it all.
pub const MEMORY_MAX: u64 = 4 << 40;

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;
    use std::os::fd::OwnedFd;

    const PAGE: u64 = 4096;

    fn file(pages: u64) -> OwnedFd {
        let region = Region::create("guest", pages * PAGE, &Arc::default()).unwrap();
        region.file().try_clone_to_owned().unwrap()
    }

    fn row(page: u64, pages: u64) -> MemoryRegion {
        MemoryRegion { guest: page * PAGE, size: pages * PAGE, user: (1 << 40) + page * PAGE, offset: 0 }
    }

    fn announced(table: &MemoryTable) -> Vec<MemoryRegion> {
        table.memory().into_iter().flat_map(GuestMemory::regions).copied().collect()
    }

    #[test]
    fn regions_come_and_go() {
        let mut table = MemoryTable::default();
        table.set(vec![row(0, 1), row(4, 2)], vec![file(1).into(), file(2).into()]).unwrap();
        table.add(row(2, 1), file(1).into()).unwrap();
        assert_eq!(announced(&table), [row(0, 1), row(2, 1), row(4, 2)]);
        // Where it begins in its file is not asked for (vhost-user, VHOST_USER_REM_MEM_REG).
        table.remove(MemoryRegion { offset: 7, ..row(4, 2) }).unwrap();
        assert_eq!(announced(&table), [row(0, 1), row(2, 1)]);
        assert!(matches!(table.remove(row(4, 2)), Err(TableError::Unknown { .. })));
        table.remove(row(0, 1)).unwrap();
        table.remove(row(2, 1)).unwrap();
        assert!(table.memory().is_none());
    }

    #[test]
    fn a_refused_table_leaves_the_one_before() {
        let mut table = MemoryTable::default();
        table.set(vec![row(0, 1)], vec![file(1).into()]).unwrap();
        assert!(table.set(vec![row(0, 2), row(1, 1)], vec![file(2).into(), file(1).into()]).is_err());
        assert!(table.set(vec![row(0, 2)], vec![file(1).into()]).is_err());
        assert!(table.set(vec![], vec![]).is_err());
        assert!(table.add(row(0, 1), file(1).into()).is_err());
        assert!(table.add(MemoryRegion { size: 0, ..row(9, 1) }, file(1).into()).is_err());
        assert!(table.add(MemoryRegion { offset: u64::MAX, ..row(9, 1) }, file(1).into()).is_err());
        assert_eq!(announced(&table), [row(0, 1)]);
    }

    #[test]
    fn more_memory_than_one_frontend_may_have_is_refused_before_it_is_mapped() {
        let mut table = MemoryTable::default();
        let huge = MemoryRegion { size: MEMORY_MAX, ..row(0, 1) };
        let too_large = |result| matches!(result, Err(TableError::TooLarge { .. }));
        assert!(!too_large(table.set(vec![huge], vec![file(1).into()])));
        assert!(too_large(table.set(vec![MemoryRegion { size: MEMORY_MAX + 1, ..huge }], vec![file(1).into()])));
        table.set(vec![row(0, 1)], vec![file(1).into()]).unwrap();
        assert!(too_large(table.add(MemoryRegion { guest: PAGE, ..huge }, file(1).into())));
    }

    /// As cloud-hypervisor and QEMU announce memory that was plugged: many slots, one behind the other, of one file.
    #[test]
    fn a_guest_of_many_slots_in_one_file_is_taken_whole() {
        const SLOT: u64 = 4 << 30;
        let slots = SLOTS_MAX as u64;
        let memory = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&memory, (slots * SLOT).cast_signed()).unwrap();
        let mut table = MemoryTable::default();
        for slot in 0..slots {
            let at = slot * SLOT;
            let row = MemoryRegion { guest: at, size: SLOT, user: (1 << 40) + at, offset: at };
            table.add(row, memory.try_clone().unwrap().into()).unwrap();
        }
        // Each row shows its own part of the file.
        let places = [0, 47, slots - 1].map(|slot| slot * SLOT + 4096);
        for (mark, place) in (7u32..).zip(places) {
            nix::sys::uio::pwrite(&memory, &mark.to_ne_bytes(), place.cast_signed()).unwrap();
            let (region, offset, guest) = table.memory().unwrap().user((1 << 40) + place, 4).unwrap();
            assert_eq!((region.read_u32(offset), guest), (Some(mark), place));
        }
    }

    #[test]
    fn the_same_region_of_the_same_file_stays_mapped() {
        let mut table = MemoryTable::default();
        let memory = file(1);
        let again = || PeerFile::from(memory.try_clone().unwrap());
        table.set(vec![row(0, 1)], vec![again()]).unwrap();
        let before = table.rows[0].1.file().as_fd().try_clone_to_owned().unwrap();
        table.set(vec![row(0, 1), row(1, 1)], vec![again(), file(1).into()]).unwrap();
        assert!(is_same_file(&table.rows[0].1.file(), &before));
        table.set(vec![row(0, 1)], vec![file(1).into()]).unwrap();
        assert!(!is_same_file(&table.rows[0].1.file(), &before));
    }

    #[test]
    fn a_table_has_an_end() {
        let mut table = MemoryTable::default();
        for page in 0..SLOTS_MAX as u64 {
            table.add(row(page, 1), file(1).into()).unwrap();
        }
        assert!(matches!(table.add(row(1000, 1), file(1).into()), Err(TableError::Full)));
    }
}
