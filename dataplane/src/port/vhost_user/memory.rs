//! The guest's memory as its frontend announced it (SET_MEM_TABLE, ADD_MEM_REG).
//!
//! Descriptors name guest addresses, the frontend itself names user addresses (those of its own process); both lead
//! into regions that are mapped here. A range is looked up as a whole: no part of it may lie outside (CVE-2018-1059).

use std::sync::Arc;

use ferrule_ffi::region::Region;
use ferrule_ffi::span::{Span, SpanMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One row of the memory table, as announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Its first guest address.
    pub guest: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its first address in the frontend's process.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// All of a guest's memory. Clones share it; it never changes: another table is another value.
#[derive(Clone)]
pub struct GuestMemory(Arc<[Row]>);

struct Row {
    guest: u64,
    user: u64,
    /// Exactly the bytes of this row.
    region: Region,
    announced: MemoryRegion,
}

impl GuestMemory {
    /// Puts a table together. Each region is the window of its row's file: `size` bytes from `offset` on.
    pub fn new(rows: Vec<(MemoryRegion, Region)>) -> Result<Self, MemoryError> {
        if rows.is_empty() {
            return Err(MemoryError::Empty);
        }
        if rows.len() > ROWS_MAX {
            return Err(MemoryError::TooMany { rows: rows.len() });
        }
        let checked = rows.into_iter().map(|(announced, window)| Row::new(announced, &window));
        let mut rows = checked.collect::<Result<Vec<_>, _>>()?;
        rows.sort_by_key(|row| row.guest);
        for pair in rows.windows(2) {
            // No end wraps: `Row::new` saw to that.
            if pair[0].guest + pair[0].announced.size > pair[1].guest {
                return Err(MemoryError::Overlap { first: pair[0].guest, second: pair[1].guest });
            }
        }
        Ok(Self(rows.into()))
    }

    /// The rows, by guest address.
    pub fn rows(&self) -> impl Iterator<Item = &MemoryRegion> {
        self.0.iter().map(|row| &row.announced)
    }

    /// A look at it that begins with the row of the last hit.
    #[inline(always)]
    pub(crate) fn cached(&self, number: usize) -> CachedRegion<'_> {
        // No table is empty, and `number` is of this one.
        let number = if number < self.0.len() { number } else { 0 };
        CachedRegion { rows: &self.0, row: &self.0[number], number }
    }

    /// How many of the `len` bytes from a guest address on lie in one row; none: not even the first.
    pub(crate) fn reach(&self, address: u64, len: u32) -> Option<u32> {
        let row = &self.0[self.find(address)?];
        // At most `len`, so it fits.
        Some((row.announced.size - (address - row.guest)).min(u64::from(len)) as u32)
    }

    /// Where `len` bytes from a user address on lie: the row's bytes, the offset in them, the guest address.
    pub(crate) fn user(&self, address: u64, len: u64) -> Option<(&Region, u64, u64)> {
        let row = self.0.iter().find(|row| {
            let offset = address.wrapping_sub(row.user);
            offset < row.announced.size && len <= row.announced.size - offset
        })?;
        let offset = address - row.user;
        Some((&row.region, offset, row.guest + offset))
    }

    #[cold]
    fn find(&self, address: u64) -> Option<usize> {
        self.0.iter().position(|row| address.wrapping_sub(row.guest) < row.announced.size)
    }
}

/// A look at guest memory. Descriptors that follow each other mostly lead into the same row, which is tried first.
pub(crate) struct CachedRegion<'a> {
    rows: &'a [Row],
    row: &'a Row,
    /// Which row that is.
    pub(crate) number: usize,
}

impl<'a> CachedRegion<'a> {
    /// `len` bytes from a guest address on, to copy from; none if they do not all lie in one row.
    #[inline(always)]
    pub(crate) fn span(&mut self, address: u64, len: u32) -> Option<Span<'a>> {
        if let Some(span) = self.row.region.span_at(address.wrapping_sub(self.row.guest), len) {
            return Some(span);
        }
        self.find(address)?;
        self.row.region.span_at(address - self.row.guest, len)
    }

    /// `len` bytes from a guest address on, to copy to; none if they do not all lie in one row.
    #[inline(always)]
    pub(crate) fn span_mut(&mut self, address: u64, len: u32) -> Option<SpanMut<'a>> {
        if let Some(span) = self.row.region.span_mut_at(address.wrapping_sub(self.row.guest), len) {
            return Some(span);
        }
        self.find(address)?;
        self.row.region.span_mut_at(address - self.row.guest, len)
    }

    #[cold]
    fn find(&mut self, address: u64) -> Option<()> {
        self.number = self.rows.iter().position(|row| address.wrapping_sub(row.guest) < row.announced.size)?;
        self.row = &self.rows[self.number];
        Some(())
    }
}

impl Row {
    fn new(announced: MemoryRegion, window: &Region) -> Result<Self, MemoryError> {
        let MemoryRegion { guest, size, user, offset } = announced;
        if size == 0 {
            return Err(MemoryError::NoBytes { guest });
        }
        let wraps = [guest, user, offset].into_iter().any(|start| start.checked_add(size).is_none());
        if wraps {
            return Err(MemoryError::Wraps { announced });
        }
        let held = window.len() as u64;
        let region = window.part(0, size).ok_or(MemoryError::Short { announced, held })?;
        Ok(Self { guest, user, region, announced })
    }
}

/// Why a memory table is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// No rows.
    #[error("memory table: it has no regions")]
    Empty,
    /// Too many rows.
    #[error("memory table: {rows} regions; at most {ROWS_MAX} are taken")]
    TooMany {
        /// How many.
        rows: usize,
    },
    /// A row of no bytes.
    #[error("memory table: the region at guest address {guest:#x} has no bytes")]
    NoBytes {
        /// Its guest address.
        guest: u64,
    },
    /// A row that goes beyond the end of one of its address spaces.
    #[error("memory table: {announced:x?} wraps around")]
    Wraps {
        /// The row.
        announced: MemoryRegion,
    },
    /// A row that its file is too short for.
    #[error("memory table: {announced:x?} needs more than the {held} bytes that are mapped of its file")]
    Short {
        /// The row.
        announced: MemoryRegion,
        /// Bytes that are mapped.
        held: u64,
    },
    /// Two rows share guest addresses.
    #[error("memory table: the regions at guest addresses {first:#x} and {second:#x} overlap")]
    Overlap {
        /// The guest address of one.
        first: u64,
        /// The guest address of the other.
        second: u64,
    },
}

/// Rows of one table: as many as rust-vmm's frontends send memory slots (docs of VHOST_USER_GET_MAX_MEM_SLOTS).
pub const ROWS_MAX: usize = 509;
