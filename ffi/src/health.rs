//! Whether the memory of one peer can still be used, and what it may cost us.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use crate::memory_budget::MemoryBudget;

/// Whether the memory of one peer is still there. One for all regions of a port.
#[derive(Debug, Default)]
pub struct Health {
    /// 0: alive; the others are in `lose`.
    state: AtomicU8,
    errno: AtomicI32,
    budget: Option<Arc<MemoryBudget>>,
}

impl Health {
    /// Of a peer whose memory may make us populate as many pages as `budget` has room for.
    pub fn within(budget: &Arc<MemoryBudget>) -> Arc<Self> {
        Arc::new(Self { budget: Some(Arc::clone(budget)), ..Self::default() })
    }

    /// Whether the memory was lost when it was used.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.state.load(Ordering::Relaxed) != ALIVE
    }

    /// The memory is there, or why not.
    #[inline]
    pub fn check(&self) -> Result<(), MemoryLost> {
        if self.is_dead() { Err(self.cause().unwrap_or(MemoryLost::Truncated)) } else { Ok(()) }
    }

    /// Why the memory was lost; `None`: it is there.
    pub fn cause(&self) -> Option<MemoryLost> {
        match self.state.load(Ordering::Acquire) {
            ALIVE => None,
            OVER_BUDGET => Some(MemoryLost::over_budget(self.budget.as_ref().map_or(0, |budget| budget.limit()))),
            NOT_POPULATED => Some(MemoryLost::NotPopulated { errno: self.errno.load(Ordering::Relaxed) }),
            _ => Some(MemoryLost::Truncated),
        }
    }

    /// What pages that we populate are charged to; `None`: nobody counts.
    pub(crate) fn budget(&self) -> Option<&Arc<MemoryBudget>> {
        self.budget.as_ref()
    }

    /// The first cause stays. Async-signal-safe.
    pub(crate) fn lose(&self, lost: MemoryLost) {
        let state = match lost {
            MemoryLost::Truncated => TRUNCATED,
            MemoryLost::OverBudget { .. } => OVER_BUDGET,
            MemoryLost::NotPopulated { errno } => {
                self.errno.store(errno, Ordering::Relaxed);
                NOT_POPULATED
            }
        };
        let _ = self.state.compare_exchange(ALIVE, state, Ordering::Release, Ordering::Relaxed);
    }
}

/// Why the memory of a peer cannot be used any more. All fields have 32 bits: it is a part of results that the data path
/// moves, by loads that must not be wider than the stores before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLost {
    /// The file ends before the page.
    Truncated,
    /// One more page that we would have to populate is more than the budget has.
    OverBudget {
        /// KiB of the budget.
        limit_kib: u32,
    },
    /// The kernel has no page.
    NotPopulated {
        /// What it said.
        errno: i32,
    },
}

impl MemoryLost {
    /// One page more than a budget of `limit` bytes has.
    pub(crate) fn over_budget(limit: u64) -> Self {
        Self::OverBudget { limit_kib: u32::try_from(limit >> 10).unwrap_or(u32::MAX) }
    }
}

impl fmt::Display for MemoryLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("its shared memory was truncated while in use"),
            Self::OverBudget { limit_kib } => write!(
                f,
                "its memory limit of {} MiB is used up: that much of its shared memory had no pages until we used it; \
                 raise `memory:` of the end",
                limit_kib >> 10
            ),
            Self::NotPopulated { errno } => write!(
                f,
                "a page of its shared memory cannot be populated: {} (is the node out of memory or huge pages?)",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

impl std::error::Error for MemoryLost {}

const ALIVE: u8 = 0;
const TRUNCATED: u8 = 1;
const OVER_BUDGET: u8 = 2;
const NOT_POPULATED: u8 = 3;
