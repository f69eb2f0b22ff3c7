//! How much of the manager one user may have at once, and waiting without a thread.
//!
//! A call that waits (for a holder to let go, for another operation on the same VF, for the start) is a task and nothing else, and
//! so is a watch without news. They are counted all the same, from their first moment on. What works has a thread and two permits: one of its user, of whom there are fewer than there are in all, and one of the
//! manager. So nobody's calls keep another's from being worked on, whoever hangs in the kernel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::refusals::too_many;

/// The places of everybody's calls.
#[derive(Debug)]
pub(super) struct Places {
    /// Calls that change something.
    pub changes: Limits,
    /// Calls that ask the kernel something.
    pub questions: Limits,
    pub lists: Limits,
    pub watches: Limits,
}

impl Default for Places {
    fn default() -> Self {
        // Of the 512 threads that tokio has for what may wait, half are for changes, and some for questions that may have to wait
        // for the kernel. Lists wait for nobody, and have their own so that they do not wait for those that do.
        Self {
            changes: Limits::new("changes", 256, CALLS_MAX),
            questions: Limits::new("questions", 64, CALLS_MAX),
            lists: Limits::new("lists", 32, CALLS_MAX),
            watches: Limits::new("watches", 32, WATCHES_MAX),
        }
    }
}

/// What everybody shares.
#[derive(Debug)]
pub(super) struct Limits {
    kind: &'static str,
    /// How many of one user are at work at once.
    share: usize,
    /// How many of one user are at work or wait.
    calls: usize,
    /// At work, of everybody.
    all: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<User>>>,
}

#[derive(Debug)]
struct User {
    /// At work.
    working: Arc<Semaphore>,
    /// At work or waiting.
    calls: Arc<Semaphore>,
}

/// One call of a user.
#[derive(Debug)]
pub(super) struct UserCall {
    all: Arc<Semaphore>,
    user: Arc<User>,
    _place: OwnedSemaphorePermit,
}

/// The right to work. It outlives a call that was cancelled, and so does what is known of its user.
#[derive(Debug)]
pub(super) struct Permits(
    #[expect(dead_code, reason = "held")] [OwnedSemaphorePermit; 2],
    #[expect(dead_code, reason = "held")] Arc<User>,
);

impl Limits {
    /// `working` at once of everybody, a quarter of that of one user, of whom `calls` may be under way.
    pub fn new(kind: &'static str, working: usize, calls: usize) -> Self {
        let share = (working / SHARE).max(1);
        Self { kind, share, calls, all: Arc::new(Semaphore::new(working)), users: Mutex::default() }
    }

    /// Begins a call of a user, unless he has too many.
    pub fn enter(&self, uid: u32) -> Result<UserCall, Status> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has no call under way need not be remembered.
        users.retain(|_, user| Arc::strong_count(user) > 1);
        let share =
            || User { working: Arc::new(Semaphore::new(self.share)), calls: Arc::new(Semaphore::new(self.calls)) };
        let user = Arc::clone(users.entry(uid).or_insert_with(|| Arc::new(share())));
        let place = Arc::clone(&user.calls).try_acquire_owned().map_err(|_| {
            let Self { kind, calls, .. } = self;
            too_many(&format!(
                "the user {uid} has {calls} {kind} under way: end some of them, or wait for their answers"
            ))
        })?;
        Ok(UserCall { all: Arc::clone(&self.all), user, _place: place })
    }
}

impl UserCall {
    /// Waits for the right to work.
    pub async fn permits(&self) -> Result<Permits, Status> {
        let gone = |_| Status::internal("the daemon takes no calls any more");
        // In this order: who has too many at work must not hold what others wait for.
        let own = Arc::clone(&self.user.working).acquire_owned().await.map_err(gone)?;
        let shared = Arc::clone(&self.all).acquire_owned().await.map_err(gone)?;
        Ok(Permits([own, shared], Arc::clone(&self.user)))
    }
}

/// Those that wait for the same thing: one of them looks whether it has come, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queues(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Queues {
    /// Waits until it is our turn to look.
    pub async fn turn(&self, what: &str) -> OwnedMutexGuard<()> {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queues.retain(|_, queue| Arc::strong_count(queue) > 1);
            Arc::clone(queues.entry(what.to_owned()).or_default())
        };
        queue.lock_owned().await
    }
}

/// The share of one user.
const SHARE: usize = 4;
/// A call that waits costs some kilobytes, by the bounds of what it may say (`sizes`).
const CALLS_MAX: usize = 2048;
/// A watch keeps the last list that it told.
const WATCHES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_who_has_all_of_his_share_at_work_leaves_others_theirs() {
        let limits = Places::default().questions;
        let mut held = Vec::new();
        let greedy = limits.enter(1000).unwrap();
        for _ in 0..limits.share {
            held.push(greedy.permits().await.unwrap());
        }
        assert_eq!(greedy.user.working.available_permits(), 0);
        limits.enter(0).unwrap().permits().await.expect("another has his");
        let calls: Vec<_> = (1..CALLS_MAX).map(|_| limits.enter(1000).unwrap()).collect();
        let refused = limits.enter(1000).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop((calls, greedy, held));
        limits.enter(1000).unwrap();
    }
}
