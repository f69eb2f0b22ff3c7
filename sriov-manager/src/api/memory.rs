//! How much memory may be taken by what clients leave half done: answers that they do not read, and requests that they do not end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Status;

use super::refusals::too_many;
use crate::policy::PeerCredentials;

/// What all clients have under way.
#[derive(Debug)]
pub(super) struct Memory {
    /// What there is too much of, and what to do.
    too_much: &'static str,
    /// Of those that are neither root nor our own user: somebody may have very many users in a namespace of his.
    others: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// Room for one of them, until it is done.
#[derive(Debug)]
pub(super) struct Room {
    _of_user: OwnedSemaphorePermit,
    _of_others: Option<OwnedSemaphorePermit>,
}

impl Memory {
    /// Nobody has any of it yet. `too_much`: what there is too much of, and what to do.
    pub fn new(too_much: &'static str) -> Self {
        Self { too_much, others: Arc::new(Semaphore::new(OTHERS_MAX)), users: Mutex::default() }
    }

    /// Room for so many bytes of a user, if there is now.
    pub fn try_room(&self, uid: u32, bytes: usize) -> Option<Room> {
        let units = units(bytes);
        let of_user = self.of_user(uid).try_acquire_many_owned(units).ok()?;
        let of_others = match self.others(uid) {
            Some(others) => Some(others.try_acquire_many_owned(units).ok()?),
            None => None,
        };
        Some(Room { _of_user: of_user, _of_others: of_others })
    }

    /// Room for so many bytes of a user, if there is in time.
    pub async fn room(&self, uid: u32, bytes: usize) -> Result<Room, Status> {
        let units = units(bytes);
        let room = async {
            // In this order: who has too many must not hold what others wait for.
            let of_user = self.of_user(uid).acquire_many_owned(units).await.ok()?;
            let of_others = match self.others(uid) {
                Some(others) => Some(others.acquire_many_owned(units).await.ok()?),
                None => None,
            };
            Some(Room { _of_user: of_user, _of_others: of_others })
        };
        timeout(WAIT, room).await.ok().flatten().ok_or_else(|| {
            let too_much = self.too_much;
            too_many(&format!("the user {uid}, or all but root, have too many {too_much}"))
        })
    }

    fn of_user(&self, uid: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has none under way need not be remembered.
        users.retain(|_, user| Arc::strong_count(user) > 1);
        Arc::clone(users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(USER_MAX))))
    }

    fn others(&self, uid: u32) -> Option<Arc<Semaphore>> {
        let is_own = uid == 0 || uid == PeerCredentials::myself().uid;
        (!is_own).then(|| Arc::clone(&self.others))
    }
}

/// One that is larger than all that there may be has it all.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).clamp(1, USER_MAX)).unwrap_or(u32::MAX)
}

/// Bytes that are counted as one.
const UNIT: usize = 1024;
/// Of one user: 128 MiB.
const USER_MAX: usize = 128 << 10;
/// Of all users but root and our own.
const OTHERS_MAX: usize = 4 * USER_MAX;
/// How long room is waited for.
const WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_read_has_no_room_and_others_have_theirs() {
        let memory = Memory::new("things");
        let all = USER_MAX * UNIT;
        let held = memory.try_room(70_000, all - UNIT).unwrap();
        assert!(memory.try_room(70_000, 2 * UNIT).is_none());
        let others: Vec<_> = (70_001..70_004).map(|uid| memory.try_room(uid, 2 * all).unwrap()).collect();
        assert!(memory.try_room(70_004, 2 * UNIT).is_none(), "they have all of theirs");
        memory.try_room(0, all).expect("root has his own");
        drop(held);
        let again = memory.room(70_000, all).await.unwrap();
        drop((again, others));
        memory.try_room(70_004, all).unwrap();
        assert_eq!(memory.users.lock().unwrap().len(), 1);
    }
}
