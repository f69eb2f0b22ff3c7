//! Threads that do nothing but close descriptors: each can be held up by one of them.
//!
//! The peers of one account hold up a few threads at most; what they sent beyond that waits behind their own. An account
//! that holds up none gets a thread, however many the others hold up.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::descriptor_account::DescriptorShare;

/// Closes a descriptor, by and by.
pub(crate) fn close(file: OwnedFd, share: DescriptorShare) {
    CLOSERS.close(file, share);
}

struct Closers {
    queue: Mutex<Queue>,
    more: Condvar,
}

struct Queue {
    files: VecDeque<(OwnedFd, DescriptorShare)>,
    threads: usize,
    idle: usize,
}

impl Queue {
    fn has_closable(&self) -> bool {
        self.files.iter().any(|(_, share)| self.may_close(share))
    }

    /// Whether its account does not hold up its threads already.
    fn may_close(&self, share: &DescriptorShare) -> bool {
        let most = if self.threads > THREADS_MAX { 1 } else { ACCOUNT_THREADS_MAX };
        share.account().closing.load(Ordering::Relaxed) < most
    }

    /// Whether another thread is to be started for this.
    fn wants_thread(&self, share: &DescriptorShare) -> bool {
        let account = share.account();
        let has_none = account.closing.load(Ordering::Relaxed) == 0 && !account.thread_comes.load(Ordering::Relaxed);
        self.files.len() >= self.idle && (self.threads < THREADS_MAX || has_none)
    }

    /// The next that may be closed.
    fn next(&mut self) -> Option<(OwnedFd, DescriptorShare)> {
        let at = self.files.iter().position(|(_, share)| self.may_close(share))?;
        let next = self.files.remove(at)?;
        next.1.account().closing.fetch_add(1, Ordering::Relaxed);
        next.1.account().thread_comes.store(false, Ordering::Relaxed);
        Some(next)
    }
}

impl Closers {
    fn close(&'static self, file: OwnedFd, share: DescriptorShare) {
        let mut queue = self.lock();
        if queue.wants_thread(&share) {
            // If the kernel gives no thread, the next descriptor asks again.
            let started = thread::Builder::new().name("closer".to_owned()).spawn(|| self.run()).is_ok();
            queue.threads += usize::from(started);
            share.account().thread_comes.store(started, Ordering::Relaxed);
        }
        queue.files.push_back((file, share));
        // One that is closing looks for more by itself.
        let is_waited_for = queue.idle > 0;
        drop(queue);
        if is_waited_for {
            self.more.notify_one();
        }
    }

    fn run(&self) {
        let mut queue = self.lock();
        loop {
            if let Some((file, share)) = queue.next() {
                drop(queue);
                drop(file);
                queue = self.lock();
                share.account().closing.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            queue.idle += 1;
            let waited = self.more.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = waited.0;
            queue.idle -= 1;
            // What is left waits for threads that its own account holds up, and which look for more.
            if waited.1.timed_out() && !queue.has_closable() {
                queue.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static CLOSERS: Closers =
    Closers { queue: Mutex::new(Queue { files: VecDeque::new(), threads: 0, idle: 0 }), more: Condvar::new() };
/// Of all accounts, beside one for each account that has no other.
const THREADS_MAX: usize = 64;
/// Of one account.
const ACCOUNT_THREADS_MAX: usize = 4;
/// How long a thread waits for more before it ends.
const IDLE: Duration = Duration::from_millis(200);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::descriptor_account::DescriptorAccount;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Instant;

    use nix::sys::socket::setsockopt;
    use nix::sys::socket::sockopt::Linger;

    /// A socket whose close waits for as long as its far end does not read.
    pub(crate) fn stuck(listener: &TcpListener) -> (OwnedFd, TcpStream) {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        while std::io::Write::write(&mut &near, &[0; 16_384]).is_ok() {}
        near.set_nonblocking(false).unwrap();
        setsockopt(&near, Linger, &libc::linger { l_onoff: 1, l_linger: 1000 }).unwrap();
        (near.into(), far)
    }

    #[test]
    fn many_who_hold_up_their_threads_hold_up_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hostile: Vec<_> = (0..20).map(|_| Arc::new(DescriptorAccount::default())).collect();
        let fars: Vec<_> = (0..=ACCOUNT_THREADS_MAX)
            .flat_map(|_| &hostile)
            .map(|account| {
                let (near, far) = stuck(&listener);
                close(near, account.count());
                far
            })
            .collect();
        let other = Arc::new(DescriptorAccount::default());
        let (reader, writer) = nix::unistd::pipe().unwrap();
        close(writer, other.count());
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
        assert!(hostile.iter().all(|account| account.held() > ACCOUNT_THREADS_MAX));
        drop(fars);
        let deadline = Instant::now() + Duration::from_secs(20);
        while hostile.iter().any(|account| account.held() > 0) {
            assert!(Instant::now() < deadline, "all are closed within 20 s");
            thread::yield_now();
        }
    }

    #[test]
    fn who_holds_up_its_threads_holds_up_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (hostile, other) = (Arc::new(DescriptorAccount::default()), Arc::new(DescriptorAccount::default()));
        let fars: Vec<_> = (0..=THREADS_MAX)
            .map(|_| {
                let (near, far) = stuck(&listener);
                close(near, hostile.count());
                far
            })
            .collect();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        close(writer, other.count());
        // The end of the file comes when nobody has the other end any more.
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
        assert_eq!(hostile.held(), THREADS_MAX + 1);
        // Once nothing holds them up all are closed.
        drop(fars);
        let deadline = Instant::now() + Duration::from_secs(20);
        while hostile.held() + other.held() > 0 {
            assert!(Instant::now() < deadline, "{} and {} are held", hostile.held(), other.held());
            thread::yield_now();
        }
    }
}
