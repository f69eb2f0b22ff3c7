//! A number that one thread adds to, and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Such a number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, as the only one who does.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    /// Takes away, as the only one who changes it.
    pub fn subtract(&self, less: u64) {
        self.set(self.get().saturating_sub(less));
    }

    /// Becomes that, by the only one who changes it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
