//! How a thread goes to sleep without missing what is handed to it meanwhile.
//!
//! Two threads, two shared places: the *work* (a queue, a ring's index) and the *flag* (asleep, ring
//! interrupts wanted). Whoever hands over work stores it, fences, and loads the flag; whoever goes to
//! sleep stores the flag, fences, and looks at the work once more. The two fences are in one order, so
//! one of the two sees what the other stored: either the sleeper finds the work, or it is notified.
//! A ring of memif follows the same order with its MASK_INT flag (`memif::ring`).
//! `tests/model.rs` checks it over all interleavings.

use crate::sync::{AtomicBool, Ordering, fence};

/// The flag of a thread that sleeps.
#[derive(Debug, Default)]
pub struct SleepFlag {
    asleep: AtomicBool,
}

impl SleepFlag {
    /// Called by the thread that wants to sleep. It may do so only if `is_there_work`, which is asked
    /// after the flag is up, says no. `true`: sleep, until somebody rings; then call [`Self::awake`].
    pub fn may_sleep(&self, is_there_work: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if is_there_work() {
            self.awake();
            return false;
        }
        true
    }

    /// Called by the thread after it woke up, for whatever reason.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Called by another thread after it has stored work. `true`: ring.
    #[must_use]
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed)
    }
}
