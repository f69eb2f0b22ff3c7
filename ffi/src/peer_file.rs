//! Descriptors that a peer passed, closed without waiting.
//!
//! `close` can block for as long as a peer likes: a socket that lingers waits for its far end, a file
//! of a FUSE file system for its owner. A thread that serves other peers must not be the one that waits,
//! so a descriptor that turned out to be unwanted loses its lingering, and is closed by a thread that
//! nobody waits for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{setsockopt, sockopt::Linger};

use crate::notifier::is_eventfd;

/// A descriptor that a peer passed, and of which nothing is known.
#[derive(Debug)]
pub struct PeerFile(Option<OwnedFd>);

impl PeerFile {
    /// The descriptor as memory: a memfd, tmpfs or hugetlbfs file. Asking and closing never block.
    pub fn into_memory(mut self) -> io::Result<OwnedFd> {
        if !is_memory(self.as_fd()) {
            let problem = "the file is not in memory (a memfd, tmpfs or hugetlbfs file is wanted)";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(self.take())
    }

    /// The descriptor as an eventfd; `None` if it is a pipe, socket or whatever else.
    pub fn into_eventfd(mut self) -> Option<OwnedFd> {
        is_eventfd(self.as_fd()).then(|| self.take())
    }

    fn take(&mut self) -> OwnedFd {
        self.0.take().expect("it is there until the value is consumed")
    }
}

impl From<OwnedFd> for PeerFile {
    fn from(file: OwnedFd) -> Self {
        Self(Some(file))
    }
}

impl AsFd for PeerFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("it is there until the value is consumed").as_fd()
    }
}

impl Drop for PeerFile {
    fn drop(&mut self) {
        // Whatever else closes at once is not worth asking for: a peer can send thousands that are nothing of the kind.
        let Some(file) = self.0.take().filter(|file| !is_memory(file.as_fd())) else { return };
        // Fails on everything that is no socket.
        let _ = setsockopt(&file, Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
        CLOSERS.close(file);
    }
}

/// Whether pages of this file can come from nowhere but memory. The kernel looks at the kind of file
/// only, where `fstatfs` would ask a FUSE file system and wait for its answer.
fn is_memory(file: BorrowedFd<'_>) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok()
}

/// Threads that do nothing but close: each can be held up by one descriptor.
struct Closers {
    queue: Mutex<Queue>,
    more: Condvar,
}

struct Queue {
    files: VecDeque<OwnedFd>,
    threads: usize,
    idle: usize,
}

impl Closers {
    fn close(&'static self, file: OwnedFd) {
        let mut queue = self.lock();
        queue.files.push_back(file);
        if queue.files.len() > queue.idle && queue.threads < THREADS_MAX {
            // If there is no thread to be had, the next descriptor asks again.
            let started = thread::Builder::new().name("closer".to_owned()).spawn(|| self.run());
            queue.threads += usize::from(started.is_ok());
        }
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
            if let Some(file) = queue.files.pop_front() {
                drop(queue);
                drop(file);
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            let waited = self.more.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = waited.0;
            queue.idle -= 1;
            if waited.1.timed_out() && queue.files.is_empty() {
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
/// As many descriptors can be stuck before others wait behind them.
const THREADS_MAX: usize = 64;
/// How long a thread waits for more before it ends.
const IDLE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;

    #[test]
    fn only_memory_is_taken_as_memory_and_only_an_eventfd_as_one() {
        let memory = || PeerFile::from(memfd_create(c"anon_inode:[eventfd]", MFdFlags::MFD_CLOEXEC).unwrap());
        let eventfd = || PeerFile::from(OwnedFd::from(crate::notifier::eventfd().unwrap()));
        assert!(memory().into_memory().is_ok());
        assert!(memory().into_eventfd().is_none());
        assert!(eventfd().into_eventfd().is_some());
        assert!(eventfd().into_memory().is_err());
        for path in ["/proc/self/status", "/dev/zero", "/"] {
            assert!(PeerFile::from(OwnedFd::from(File::open(path).unwrap())).into_memory().is_err(), "{path}");
        }
    }

    #[test]
    fn an_unwanted_descriptor_is_closed_by_another_thread() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(PeerFile::from(writer));
        // The end of the file comes when nobody has the other end any more.
        assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
    }
}
