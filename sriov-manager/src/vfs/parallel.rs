//! Several things at the same time, with a limit.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Does `work` for each item, for a few at the same time: one that waits for the kernel holds up no other.
pub(super) fn for_each_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let go_on = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (1..items.len().min(AT_ONCE)).map(|_| scope.spawn(go_on)).collect();
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
}
