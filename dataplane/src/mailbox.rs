//! How control meets a worker: one bounded mailbox in each direction.
//!
//! Control posts commands; the worker takes them between two rounds, and hands lanes back through the
//! other box, which is the confirmation that it does not touch them any more. Neither side ever waits
//! for a lock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crossbeam_queue::ArrayQueue;
use ferrule_ffi::notifier::eventfd;
use nix::sys::eventfd::EventFd;

use crate::sleep::SleepFlag;

/// A bounded queue whose receiver may sleep.
#[derive(Debug)]
pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    sleep_flag: SleepFlag,
    eventfd: EventFd,
}

impl<T> Mailbox<T> {
    /// Room for `capacity` items.
    pub fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self { queue: ArrayQueue::new(capacity), sleep_flag: SleepFlag::default(), eventfd: eventfd()? })
    }

    /// Puts an item in, or gives it back if the box is full.
    pub fn try_post(&self, item: T) -> Result<(), T> {
        let result = self.queue.push(item);
        if self.sleep_flag.must_wake() {
            // Ours alone, so it never blocks; it could only fail when it has been rung 2^64 times.
            let _ = self.eventfd.write(1);
        }
        result
    }

    /// Takes the oldest item.
    pub fn take(&self) -> Option<T> {
        // Also of an empty queue, `pop` costs a fence.
        if self.queue.is_empty() { None } else { self.queue.pop() }
    }

    /// Whether the receiver may sleep until [`Self::notify_fd`] is readable; it says when it is awake again.
    pub fn may_sleep(&self) -> bool {
        self.sleep_flag.may_sleep(|| !self.queue.is_empty())
    }

    /// The receiver is awake: nobody needs to ring.
    pub fn awake(&self) {
        self.sleep_flag.awake();
    }

    /// What becomes readable, edge by edge, when somebody rings.
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn everything_posted_arrives_in_order_also_through_a_full_box() {
        let mailbox = Arc::new(Mailbox::new(4).unwrap());
        let poster = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                for number in 0..1000 {
                    while mailbox.try_post(number).is_err() {
                        thread::yield_now();
                    }
                }
            })
        };
        let mut expected = 0;
        while expected < 1000 {
            if let Some(number) = mailbox.take() {
                assert_eq!(number, expected);
                expected += 1;
            }
        }
        poster.join().unwrap();
    }

    #[test]
    fn a_receiver_with_mail_may_not_sleep_and_one_asleep_is_rung() {
        let mailbox = Mailbox::new(4).unwrap();
        mailbox.try_post(1).unwrap();
        assert!(!mailbox.may_sleep());
        assert_eq!(mailbox.take(), Some(1));
        assert!(mailbox.may_sleep());
        mailbox.try_post(2).unwrap();
        assert_eq!(mailbox.eventfd.read(), Ok(1));
        mailbox.awake();
        mailbox.try_post(3).unwrap();
        assert!(mailbox.eventfd.read().is_err(), "nobody rings for a receiver that is awake");
    }
}
