//! The sleep protocol over all interleavings of its threads, by the model checker loom.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}
#[path = "../src/sleep.rs"]
mod sleep;

use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use sleep::SleepFlag;
use sync::{AtomicBool, Ordering};

/// Everything that the two sides share; `rung` stands for the eventfd.
#[derive(Default)]
struct Shared {
    sleep_flag: SleepFlag,
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
                if shared.sleep_flag.must_wake() {
                    shared.rung.store(true, Ordering::Release);
                }
            })
        };
        let sleeps = shared.sleep_flag.may_sleep(|| shared.work.load(Ordering::Acquire) != 0);
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
                if shared.sleep_flag.must_wake() {
                    shared.rung.store(true, Ordering::Release);
                }
            })
        });
        let sleeps = shared.sleep_flag.may_sleep(|| shared.work.load(Ordering::Acquire) != 0);
        for poster in posters {
            poster.join().unwrap();
        }
        assert!(!sleeps || shared.rung.load(Ordering::Acquire));
    });
}
