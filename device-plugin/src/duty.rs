//! One plugin of a node at a time does its work: a kubelet takes no two lists of a resource. The next one waits for the lock of the
//! first with everything else done, and has it the moment the first has closed its lists.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;
use tracing::info;

/// The lock of the plugin that does the work. Let go when dropped.
#[derive(Debug)]
pub struct DutyLock(#[expect(dead_code, reason = "held for as long as it lives")] Flock<File>);

impl DutyLock {
    /// Waits until no other plugin of this node has it.
    pub async fn take(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join("lock");
        // On a disk that is only to be read, the one that is there is as good.
        let file = File::create(&path).or_else(|error| File::open(&path).map_err(|_| error))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Self(lock)),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => return Err(errno.into()),
        };
        info!("another plugin serves this node; this one is ready, and waits for its end");
        let (sender, receiver) = oneshot::channel();
        // A thread of its own: it may wait for days, and whoever gives up does not wait for it.
        thread::Builder::new().name("duty".to_owned()).spawn(move || {
            let locked = Flock::lock(file, FlockArg::LockExclusive);
            let _ = sender.send(locked.map(Self).map_err(|(_, errno)| io::Error::from(errno)));
        })?;
        receiver.await.map_err(io::Error::other)?
    }
}

/// What this process does at the moment.
#[derive(Debug, Default)]
pub struct Duty {
    is_ours: AtomicBool,
    beat: Mutex<Option<Instant>>,
}

impl Duty {
    /// The work is this process's from now on.
    pub fn take(&self) {
        self.is_ours.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn is_ours(&self) -> bool {
        self.is_ours.load(Ordering::Relaxed)
    }

    /// It is seen at work.
    pub fn beat(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// How long it was not seen at work, if that is too long.
    pub fn stalled(&self) -> Option<Duration> {
        let silent = (*self.lock())?.elapsed();
        (silent >= STALLED_AFTER).then_some(silent)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It looks at something each second; only a kernel that does not answer keeps it for so long.
const STALLED_AFTER: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[tokio::test]
    async fn a_lock_that_cannot_be_written_is_taken_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        // To root no file is read-only; this is to be opened, and not to be written.
        fs::create_dir(directory.path().join("lock")).unwrap();
        let _first = DutyLock::take(directory.path()).await.unwrap();
        let mut next = pin!(DutyLock::take(directory.path()));
        assert!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "both would serve");
    }

    #[tokio::test]
    async fn the_next_waits_until_the_first_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let first = DutyLock::take(directory.path()).await.unwrap();
        let mut next = pin!(DutyLock::take(directory.path()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(next.as_mut().poll(&mut context), Poll::Pending));
        drop(first);
        let next = tokio::time::timeout(Duration::from_secs(10), next).await;
        next.expect("it is told").unwrap();
    }
}
