//! How a thread goes to sleep without missing what is handed to it meanwhile.
//!
//! Two threads, two shared places: the *work* (a queue, a ring's index) and the *flag* (asleep, ring
//! interrupts wanted). Whoever hands over work stores it, fences, and loads the flag; whoever goes to
//! sleep stores the flag, fences, and looks at the work once more. The two fences are in one order, so
//! one of the two sees what the other stored: either the sleeper finds the work, or it is rung.
//! A ring of memif follows the same order with its MASK_INT flag (`memif::ring`).

use crate::sync::{AtomicBool, Ordering, fence};

/// The flag of a thread that sleeps.
#[derive(Debug, Default)]
pub struct Doorbell {
    asleep: AtomicBool,
}

impl Doorbell {
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
    pub fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use crate::sync::AtomicUsize;
    use loom::sync::Arc;
    use loom::thread;

    /// Everything that the two sides share; `rung` stands for the eventfd.
    #[derive(Default)]
    struct Shared {
        doorbell: Doorbell,
        work: AtomicUsize,
        rung: AtomicBool,
    }

    #[test]
    fn work_is_either_seen_before_sleep_or_rung_for() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            let poster = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.work.store(1, Ordering::Release);
                    if shared.doorbell.must_ring() {
                        shared.rung.store(true, Ordering::Release);
                    }
                })
            };
            let sleeps = shared.doorbell.may_sleep(|| shared.work.load(Ordering::Acquire) != 0);
            poster.join().unwrap();
            let rung = shared.rung.load(Ordering::Acquire);
            assert!(!sleeps || rung, "asleep with work and nobody to wake it");
        });
    }

    #[test]
    fn of_two_posters_at_least_one_rings() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            let posters = [(); 2].map(|()| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.work.fetch_add(1, Ordering::Release);
                    if shared.doorbell.must_ring() {
                        shared.rung.store(true, Ordering::Release);
                    }
                })
            });
            let sleeps = shared.doorbell.may_sleep(|| shared.work.load(Ordering::Acquire) != 0);
            posters.map(|poster| poster.join().unwrap());
            assert!(!sleeps || shared.rung.load(Ordering::Acquire));
        });
    }
}
