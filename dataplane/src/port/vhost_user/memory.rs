//! The guest's memory as its frontend announced it (SET_MEM_TABLE, ADD_MEM_REG).
//!
//! Descriptors name guest addresses, the frontend itself names user addresses (those of its own process); both lead
//! into regions that are mapped here. A range is looked up as a whole: no part of it may lie outside (CVE-2018-1059).

use std::sync::Arc;

use ferrule_ffi::region::Region;
use ferrule_ffi::span::{Span, SpanMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One region of the memory table, as announced.
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
pub struct GuestMemory(Arc<[GuestRegion]>);

struct GuestRegion {
    guest: u64,
    user: u64,
    /// Exactly the bytes of this region.
    mapped: Region,
    announced: MemoryRegion,
}

impl GuestMemory {
    /// Whether this is the same table.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Puts a table together. Each region comes with the window of its file: `size` bytes from `offset` on.
    pub fn new(regions: Vec<(MemoryRegion, Region)>) -> Result<Self, MemoryError> {
        if regions.is_empty() {
            return Err(MemoryError::Empty);
        }
        if regions.len() > REGIONS_MAX {
            return Err(MemoryError::TooMany { regions: regions.len() });
        }
        let checked = regions.into_iter().map(|(announced, window)| GuestRegion::new(announced, &window));
        let mut regions = checked.collect::<Result<Vec<_>, _>>()?;
        regions.sort_by_key(|region| region.guest);
        for pair in regions.windows(2) {
            // No end wraps: `GuestRegion::new` saw to that.
            if pair[0].guest + pair[0].announced.size > pair[1].guest {
                return Err(MemoryError::Overlap { first: pair[0].guest, second: pair[1].guest });
            }
        }
        Ok(Self(regions.into()))
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> impl Iterator<Item = &MemoryRegion> {
        self.0.iter().map(|region| &region.announced)
    }

    /// A look at it that begins with the region of the last hit.
    #[inline(always)]
    pub(crate) fn cached(&self, number: usize) -> CachedRegion<'_> {
        // No table is empty, and `number` is of this one.
        let number = if number < self.0.len() { number } else { 0 };
        CachedRegion { regions: &self.0, region: &self.0[number], number }
    }

    /// How many of the `len` bytes from a guest address on lie in one region; none: not even the first.
    pub(crate) fn reach(&self, address: u64, len: u32) -> Option<u32> {
        let region = &self.0[self.find(address)?];
        // At most `len`, so it fits.
        Some((region.announced.size - (address - region.guest)).min(u64::from(len)) as u32)
    }

    /// Where `len` bytes from a user address on lie: the region's bytes, the offset in them, the guest address.
    pub(crate) fn user(&self, address: u64, len: u64) -> Option<(&Region, u64, u64)> {
        let region = self.0.iter().find(|region| {
            let offset = address.wrapping_sub(region.user);
            offset < region.announced.size && len <= region.announced.size - offset
        })?;
        let offset = address - region.user;
        Some((&region.mapped, offset, region.guest + offset))
    }

    #[cold]
    fn find(&self, address: u64) -> Option<usize> {
        self.0.iter().position(|region| address.wrapping_sub(region.guest) < region.announced.size)
    }
}

/// A look at guest memory. Descriptors that follow each other mostly lead into the same region, which is tried first.
pub(crate) struct CachedRegion<'a> {
    regions: &'a [GuestRegion],
    region: &'a GuestRegion,
    /// Which region that is.
    pub(crate) number: usize,
}

impl<'a> CachedRegion<'a> {
    /// `len` bytes from a guest address on, to copy from; none if they do not all lie in one region.
    #[inline(always)]
    pub(crate) fn span(&mut self, address: u64, len: u32) -> Option<Span<'a>> {
        if let Some(span) = self.region.mapped.span_at(address.wrapping_sub(self.region.guest), len) {
            return Some(span);
        }
        self.find(address)?;
        self.region.mapped.span_at(address - self.region.guest, len)
    }

    /// `len` bytes from a guest address on, to copy to; none if they do not all lie in one region.
    #[inline(always)]
    pub(crate) fn span_mut(&mut self, address: u64, len: u32) -> Option<SpanMut<'a>> {
        if let Some(span) = self.region.mapped.span_mut_at(address.wrapping_sub(self.region.guest), len) {
            return Some(span);
        }
        self.find(address)?;
        self.region.mapped.span_mut_at(address - self.region.guest, len)
    }

    #[cold]
    fn find(&mut self, address: u64) -> Option<()> {
        self.number =
            self.regions.iter().position(|region| address.wrapping_sub(region.guest) < region.announced.size)?;
        self.region = &self.regions[self.number];
        Some(())
    }
}

impl GuestRegion {
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
        let mapped = window.part(0, size).ok_or(MemoryError::Short { announced, held })?;
        Ok(Self { guest, user, mapped, announced })
    }
}

/// Why a memory table is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// No regions.
    #[error("memory table: it has no regions")]
    Empty,
    /// Too many regions.
    #[error("memory table: {regions} regions; at most {REGIONS_MAX} are taken")]
    TooMany {
        /// How many.
        regions: usize,
    },
    /// A region of no bytes.
    #[error("memory table: the region at guest address {guest:#x} has no bytes")]
    NoBytes {
        /// Its guest address.
        guest: u64,
    },
    /// A region that goes beyond the end of one of its address spaces.
    #[error("memory table: {announced:x?} wraps around")]
    Wraps {
        /// The region.
        announced: MemoryRegion,
    },
    /// A region that its file is too short for.
    #[error("memory table: {announced:x?} needs more than the {held} bytes that are mapped of its file")]
    Short {
        /// The region.
        announced: MemoryRegion,
        /// Bytes that are mapped.
        held: u64,
    },
    /// Two regions share guest addresses.
    #[error("memory table: the regions at guest addresses {first:#x} and {second:#x} overlap")]
    Overlap {
        /// The guest address of one.
        first: u64,
        /// The guest address of the other.
        second: u64,
    },
}

/// Rows of one table: as many as rust-vmm's frontends send memory slots (docs of VHOST_USER_GET_MAX_MEM_SLOTS).
pub const REGIONS_MAX: usize = 509;
