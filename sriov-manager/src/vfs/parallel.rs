//! Several things at the same time, with a limit.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tracing::warn;

/// Does `work` for each item, for a few at the same time: one that waits for the kernel holds up no other.
pub(super) fn for_each_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    share_out(items, AT_ONCE, thread::Builder::new, work);
}

/// The same for all of them at the same time.
pub(super) fn for_each_at_once<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    share_out(items, items.len(), thread::Builder::new, work);
}

/// What a thread that cannot be started would have done, those that are there do, one after the other.
fn share_out<T: Sync>(items: &[T], at_once: usize, thread: impl Fn() -> thread::Builder, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let go_on = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item);
        }
    };
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 1..items.len().min(at_once) {
            match thread().spawn_scoped(scope, go_on) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    warn!(%error, started = threads.len(), "fewer things are done at the same time: a thread cannot be started");
                    break;
                }
            }
        }
        go_on();
        for thread in threads {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    });
}

/// Few enough for the kernel, which does one thing with a PF at a time, and enough that some may hang.
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn each_item_is_worked_on_once_and_one_that_waits_holds_up_no_other() {
        let done = Mutex::new(Vec::new());
        let meeting = Barrier::new(2);
        for_each_parallel(&(0..100).collect::<Vec<_>>(), |&item| {
            // Two that wait for each other end only if both are worked on.
            if item < 2 {
                meeting.wait();
            }
            done.lock().unwrap().push(item);
        });
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_no_thread_can_be_started_for_is_done_all_the_same() {
        let done = Mutex::new(Vec::new());
        // No machine has room for its stack.
        let thread = || thread::Builder::new().stack_size(1 << 60);
        thread().spawn(|| ()).expect_err("such a thread cannot be started");
        share_out(&[1, 2, 3], AT_ONCE, thread, |&item| done.lock().unwrap().push(item));
        assert_eq!(done.into_inner().unwrap(), [1, 2, 3]);
    }
}
