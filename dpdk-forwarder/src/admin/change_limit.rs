//! How many changes are under way at a time: each has a thread, and the wires of a file system that hangs keep it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Room for so many changes. Others wait for it as long as one ends now and then; when none does, they are refused, and
/// at once until one has ended.
pub(super) struct ChangeLimit {
    most: usize,
    room: Arc<Semaphore>,
    /// How many changes have ended.
    ended: Arc<AtomicU64>,
    /// How many had when somebody waited in vain.
    stuck_at: AtomicU64,
}

impl ChangeLimit {
    pub fn new(most: usize) -> Self {
        let room = Arc::new(Semaphore::new(most));
        Self { most, room, ended: Arc::default(), stuck_at: AtomicU64::new(NEVER) }
    }

    /// Waits for room.
    ///
    /// # Errors
    /// All of it is taken, and no change has ended for a while.
    pub async fn begin(&self) -> Result<ChangeUnderWay, NoRoomError> {
        let mut room = pin!(Arc::clone(&self.room).acquire_owned());
        loop {
            let ended = self.ended.load(Ordering::Relaxed);
            let is_stuck = self.stuck_at.load(Ordering::Relaxed) == ended;
            match timeout(if is_stuck { Duration::ZERO } else { STUCK_AFTER }, &mut room).await {
                Ok(room) => {
                    let room = room.expect("nobody closes it");
                    return Ok(ChangeUnderWay { _room: room, ended: Arc::clone(&self.ended) });
                }
                Err(_) if self.ended.load(Ordering::Relaxed) == ended => {
                    self.stuck_at.store(ended, Ordering::Relaxed);
                    return Err(NoRoomError(self.most));
                }
                Err(_) => {}
            }
        }
    }
}

/// A change, until it is done.
pub(super) struct ChangeUnderWay {
    _room: OwnedSemaphorePermit,
    ended: Arc<AtomicU64>,
}

impl Drop for ChangeUnderWay {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// So many changes are under way, and none ends.
#[derive(Debug, Error)]
#[error(
    "{0} changes are under way, and none has ended for {seconds} s: a file system or the kernel does not answer below the sockets or \
     namespaces of their wires; remove those, or ask again later",
    seconds = STUCK_AFTER.as_secs()
)]
pub(super) struct NoRoomError(usize);

/// Far longer than a change takes that waits for nothing.
const STUCK_AFTER: Duration = Duration::from_secs(3);
const NEVER: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_waits_while_changes_end_and_is_refused_when_none_does() {
        let limit = Arc::new(ChangeLimit::new(2));
        let (first, second) = (limit.begin().await.unwrap(), limit.begin().await.unwrap());
        let waiting = tokio::spawn({
            let limit = Arc::clone(&limit);
            async move { limit.begin().await }
        });
        drop(first);
        let third = waiting.await.unwrap().unwrap();
        let error = limit.begin().await.err().unwrap().to_string();
        assert!(error.contains("2 changes are under way"), "{error}");
        let refused_at_once = async {
            for _ in 0..1000 {
                assert!(limit.begin().await.is_err());
            }
        };
        timeout(1000 * STUCK_AFTER / 2, refused_at_once).await.unwrap();
        drop(second);
        let _fourth = limit.begin().await.unwrap();
        drop(third);
        let _fifth = limit.begin().await.unwrap();
    }
}
