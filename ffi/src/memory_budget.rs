//! How much memory a peer may make us pay for.
//!
//! A page of shared memory is charged to the memory cgroup of whoever populates it, and stays charged for as long as
//! anybody has the file. A peer that sends sparse files and lets us write to them spends our memory, not its own, and
//! one that keeps the files does so once more with each connection. So the pages that *we* populate are counted, per
//! end of a wire: the count outlives connections, and goes down when a file is gone (`file_watch`).
//!
//! A page that the peer populated costs nothing here: it is not even seen. With userfaultfd the
//! kernel tells us of a missing page before it populates it. Where a container may not use that, all that a file has not
//! populated when it is mapped is counted at once, and what its owner punches out later is not seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::sys::inotify::WatchDescriptor;

use crate::userfault;

/// What the memory of one end's peers, one after the other, may make us populate.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: AtomicU64,
    used: AtomicU64,
    /// How many files are watched for it.
    pub(crate) watched: AtomicUsize,
}

impl MemoryBudget {
    /// A budget of so many bytes; huge pages count in their size.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit: AtomicU64::new(limit), used: AtomicU64::new(0), watched: AtomicUsize::new(0) })
    }

    /// For a peer that may cost whatever it likes.
    pub fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }

    /// Whether pages are counted when they are populated, as they should be. The error says what happens instead, and the
    /// cure.
    pub fn counts_pages() -> Result<(), &'static str> {
        userfault::available()
    }

    /// Bytes that there may be.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit. What was charged beyond a lower one stays.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Bytes that we populated in files which somebody still has, and of the page tables of what is mapped.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let limit = self.limit();
        let more = |used: u64| used.checked_add(bytes).filter(|&used| used <= limit);
        self.used.try_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// What the page tables of one mapping were charged with. They end with it.
#[derive(Debug)]
pub(crate) struct PageTableCharge {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl PageTableCharge {
    /// `None`: the budget has not so much.
    pub(crate) fn take(budget: &Arc<MemoryBudget>, bytes: u64) -> Option<Self> {
        budget.take(bytes).then(|| Self { budget: Arc::clone(budget), bytes })
    }
}

impl Drop for PageTableCharge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What one file was charged with. It outlives the mapping, but not the file.
#[derive(Debug)]
pub(crate) struct FileCharge {
    pub(crate) budget: Arc<MemoryBudget>,
    used: AtomicU64,
    /// Bytes of the file: it cannot cost more than all of them.
    len: AtomicU64,
    /// What tells us of the file's end; `None`: nothing does.
    pub(crate) watch: Option<WatchDescriptor>,
}

impl FileCharge {
    pub(crate) fn new(budget: &Arc<MemoryBudget>, watch: Option<WatchDescriptor>) -> Self {
        Self { budget: Arc::clone(budget), used: AtomicU64::new(0), len: AtomicU64::new(0), watch }
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    /// The file is at least so long.
    pub(crate) fn grow(&self, len: u64) {
        self.len.fetch_max(len, Ordering::Relaxed);
    }

    /// Nobody has the file any more.
    pub(crate) fn clear(&self) {
        self.budget.used.fetch_sub(self.used.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Charges all that a file has not populated, unless it was charged with as much; `false`: the budget has not so much.
    pub(crate) fn take_up_to(&self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.used.load(Ordering::Relaxed));
        if !self.budget.take(more) {
            return false;
        }
        self.used.fetch_add(more, Ordering::Relaxed);
        true
    }

    /// Charges a page and says with how many bytes; `None`: the budget has not so much. Async-signal-safe.
    pub(crate) fn take(&self, page: u64) -> Option<u64> {
        if self.used.load(Ordering::Relaxed) + page > self.len.load(Ordering::Relaxed) {
            return Some(0);
        }
        self.budget.take(page).then(|| {
            self.used.fetch_add(page, Ordering::Relaxed);
            page
        })
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        // No more than was not cleared.
        let before = self.used.update(Ordering::Relaxed, Ordering::Relaxed, |used| used.saturating_sub(bytes));
        self.budget.used.fetch_sub(before.min(bytes), Ordering::Relaxed);
    }
}
