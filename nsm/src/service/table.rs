//! The connections of a process: what was answered last, and one call at a time for each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use std::time::SystemTime;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::AbortHandle;
use tonic::Status;

use crate::identity::SpiffeId;
use crate::policy::{Denied, Owner};
use crate::proto::connection::Connection;
use crate::quota::{Quota, Share};

/// All connections, by the ids that this process knows them by.
pub(super) struct ConnectionTable {
    slots: StdMutex<BTreeMap<String, Slot>>,
    quota: Arc<Quota>,
}

/// One connection, or what may become one. Whose it is, is known before its turn comes.
struct Slot {
    owner: Owner,
    entry: Arc<Mutex<Entry>>,
    _share: Share,
}

/// What is known of it.
#[derive(Default)]
pub(super) struct Entry {
    /// What was answered last.
    pub(super) known: Option<Arc<Connection>>,
    /// Who asked last.
    pub(super) caller: Option<SpiffeId>,
    /// Closes it when nobody refreshes it.
    pub(super) timer: Option<AbortHandle>,
    /// When it does.
    pub(super) closes: Option<SystemTime>,
    /// Nobody finds it any more: who has waited for it looks again.
    is_gone: bool,
}

/// A connection that nobody else works on.
pub(super) struct Held {
    table: Arc<ConnectionTable>,
    id: String,
    entry: OwnedMutexGuard<Entry>,
}

impl Default for ConnectionTable {
    fn default() -> Self {
        Self { slots: StdMutex::default(), quota: Quota::new(CONNECTIONS_MAX, CONNECTIONS_OF_ONE_MAX) }
    }
}

impl ConnectionTable {
    /// Waits for its turn with a connection of this owner, known or not.
    pub(super) async fn hold(self: &Arc<Self>, id: &str, owner: &Owner) -> Result<Held, Status> {
        loop {
            let entry = {
                let mut slots = self.lock();
                if !slots.contains_key(id) {
                    let share = self.quota.take(owner.account())?;
                    let slot = Slot { owner: owner.clone(), entry: Arc::default(), _share: share };
                    slots.insert(id.to_owned(), slot);
                }
                slots[id].entry_for(Some(owner))?
            };
            if let Some(held) = self.turn(id, entry).await {
                return Ok(held);
            }
        }
    }

    /// Waits for its turn with a connection that is known, of this owner if there is one. `None`: it is not known.
    pub(super) async fn find(self: &Arc<Self>, id: &str, owner: Option<&Owner>) -> Result<Option<Held>, Status> {
        let Some(entry) = self.lock().get(id).map(|slot| slot.entry_for(owner)).transpose()? else { return Ok(None) };
        Ok(self.turn(id, entry).await)
    }

    /// Whether there is one of somebody else.
    pub(super) fn is_of_another(&self, id: &str, owner: &Owner) -> bool {
        self.lock().get(id).is_some_and(|slot| slot.owner != *owner)
    }

    /// Whether there is one, or may soon be.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    async fn turn(self: &Arc<Self>, id: &str, entry: Arc<Mutex<Entry>>) -> Option<Held> {
        let entry = entry.lock_owned().await;
        (!entry.is_gone).then(|| Held { table: Arc::clone(self), id: id.to_owned(), entry })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn entry_for(&self, owner: Option<&Owner>) -> Result<Arc<Mutex<Entry>>, Status> {
        if let Some(owner) = owner
            && *owner != self.owner
        {
            return Err(Denied::Owner(self.owner.clone(), owner.clone()).into());
        }
        if Arc::strong_count(&self.entry) > TURNS_MAX {
            return Err(Status::resource_exhausted("too many calls wait for this connection already"));
        }
        Ok(Arc::clone(&self.entry))
    }
}

impl Held {
    pub(super) fn entry(&mut self) -> &mut Entry {
        &mut self.entry
    }

    /// Stops the timer, if there is one.
    pub(super) fn stop_timer(&mut self) {
        if let Some(timer) = self.entry.timer.take() {
            timer.abort();
        }
    }
}

impl Drop for Held {
    /// What is no connection is forgotten.
    fn drop(&mut self) {
        if self.entry.known.is_none() {
            self.stop_timer();
            self.entry.is_gone = true;
            self.table.lock().remove(&self.id);
        }
    }
}

/// A node's pods, many times over.
pub(crate) const CONNECTIONS_MAX: usize = 8 << 10;
/// A client has a few; a manager that is not known as one counts for all of its clients.
const CONNECTIONS_OF_ONE_MAX: usize = 2 << 10;
/// A caller waits for its answer before it asks again; after a failure several may ask at once.
const TURNS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SpiffeIds;

    fn owner(name: &str) -> Owner {
        Owner::new(vec![name.to_owned()], &SpiffeIds::default())
    }

    #[tokio::test]
    async fn one_at_a_time_and_what_is_no_connection_is_forgotten() {
        let table = Arc::new(ConnectionTable::default());
        let held = table.hold("a", &owner("nsc")).await.unwrap();
        let waiting = tokio::spawn({
            let table = Arc::clone(&table);
            async move { table.hold("a", &owner("nsc")).await.map(|mut held| held.entry().known = Some(Arc::default())) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap().unwrap();
        assert!(table.hold("a", &owner("nsc")).await.unwrap().entry().known.is_some());
        drop(table.hold("b", &owner("nsc")).await.unwrap());
        assert!(table.find("b", None).await.unwrap().is_none());
        assert_eq!(table.len(), 1);
    }

    #[tokio::test]
    async fn whoever_does_not_own_a_connection_is_refused_before_its_turn() {
        let table = Arc::new(ConnectionTable::default());
        let _held = table.hold("a", &owner("nsc")).await.unwrap();
        assert_eq!(table.hold("a", &owner("x")).await.err().unwrap().code(), tonic::Code::PermissionDenied);
        assert_eq!(table.find("a", Some(&owner("x"))).await.err().unwrap().code(), tonic::Code::PermissionDenied);
    }

    #[tokio::test]
    async fn waiting_calls_of_one_connection_and_connections_of_one_caller_are_bounded() {
        let table = Arc::new(ConnectionTable::default());
        let _held = table.hold("a", &owner("nsc")).await.unwrap();
        let waiting: Vec<_> = (0..2 * TURNS_MAX)
            .map(|_| {
                let table = Arc::clone(&table);
                tokio::spawn(async move { table.hold("a", &owner("nsc")).await.map(drop) })
            })
            .collect();
        let mut refused = 0;
        while refused < TURNS_MAX {
            tokio::task::yield_now().await;
            refused = waiting.iter().filter(|task| task.is_finished()).count();
        }
        assert!(refused < waiting.len());
        let mut full = Vec::new();
        let status = loop {
            match table.hold(&full.len().to_string(), &owner("greedy")).await {
                Ok(held) => full.push(held),
                Err(status) => break status,
            }
        };
        assert_eq!((status.code(), full.len()), (tonic::Code::ResourceExhausted, CONNECTIONS_OF_ONE_MAX));
        table.hold("b", &owner("nsc")).await.expect("others have theirs");
    }
}
