//! The pages of one mapping that we populate, charged to its end's budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::file_watch;
use crate::health::MemoryLost;
use crate::memory_budget::FileCharge;
use crate::userfault::{self, Populated};

/// Populates the missing pages of one mapping and charges each of them once.
pub(crate) struct Meter {
    charge: Arc<FileCharge>,
    page: usize,
    /// A bit for each page of the mapping: it was charged, and costs nothing when its owner takes it away and it is
    /// populated again.
    charged: Box<[AtomicU64]>,
}

impl Meter {
    /// For a mapping of `len` bytes in pages of `page`.
    pub(crate) fn new(charge: Arc<FileCharge>, len: usize, page: usize) -> Self {
        let words = (len / page).div_ceil(64);
        // From the kernel, which populates a page of it when a bit is set: mappings can be of many TiB.
        let zeros = Box::<[AtomicU64]>::new_zeroed_slice(words);
        // SAFETY: zeros are valid values of an AtomicU64.
        Self { charge, page, charged: unsafe { zeros.assume_init() } }
    }

    /// Populates the page that holds `address`, in the mapping at `base`. Async-signal-safe.
    pub(crate) fn populate(&self, base: usize, address: usize) -> Result<(), MemoryLost> {
        let number = (address - base) / self.page;
        let (word, bit) = (&self.charged[number / 64], 1 << (number % 64));
        let cost = if word.load(Ordering::Relaxed) & bit != 0 { Some(0) } else { self.charge.take(self.page as u64) };
        let cost = cost.ok_or_else(|| MemoryLost::over_budget(self.charge.budget.limit()))?;
        match userfault::populate(base + number * self.page, self.page) {
            Populated::Now => {
                word.fetch_or(bit, Ordering::Relaxed);
                Ok(())
            }
            Populated::Before => {
                self.charge.give_back(cost);
                Ok(())
            }
            Populated::Not(errno) => {
                self.charge.give_back(cost);
                Err(if errno == libc::EFAULT { MemoryLost::Truncated } else { MemoryLost::NotPopulated { errno } })
            }
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        file_watch::release(&self.charge);
    }
}
