//! The connections of a process: what was answered last, and one call at a time for each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use std::time::SystemTime;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::AbortHandle;
use tonic::Status;

use crate::identity::SpiffeId;
use crate::proto::connection::Connection;

/// All connections, by the ids that this process knows them by.
#[derive(Default)]
pub(super) struct ConnectionTable(StdMutex<BTreeMap<String, Arc<Mutex<Entry>>>>);

/// One connection, or what may become one.
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

impl ConnectionTable {
    /// Waits for its turn with a connection, known or not.
    pub(super) async fn hold(self: &Arc<Self>, id: &str) -> Result<Held, Status> {
        loop {
            let entry = {
                let mut entries = self.lock();
                if entries.len() >= CONNECTIONS_MAX && !entries.contains_key(id) {
                    return Err(Status::resource_exhausted(format!("there are {CONNECTIONS_MAX} connections already")));
                }
                let entry = Arc::clone(entries.entry(id.to_owned()).or_default());
                if Arc::strong_count(&entry) > TURNS_MAX {
                    return Err(Status::resource_exhausted("too many calls wait for this connection already"));
                }
                entry
            };
            let entry = entry.lock_owned().await;
            if !entry.is_gone {
                return Ok(Held { table: Arc::clone(self), id: id.to_owned(), entry });
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Mutex<Entry>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
const CONNECTIONS_MAX: usize = 8 << 10;
/// A caller waits for its answer before it asks again; after a failure several may ask at once.
const TURNS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_what_is_no_connection_is_forgotten() {
        let table = Arc::new(ConnectionTable::default());
        let held = table.hold("a").await.unwrap();
        let waiting = tokio::spawn({
            let table = Arc::clone(&table);
            async move { table.hold("a").await.map(|mut held| held.entry().known = Some(Arc::default())) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap().unwrap();
        assert!(table.hold("a").await.unwrap().entry().known.is_some());
        drop(table.hold("b").await.unwrap());
        assert_eq!(table.len(), 1);
    }

    #[tokio::test]
    async fn waiting_calls_of_one_connection_and_connections_are_bounded() {
        let table = Arc::new(ConnectionTable::default());
        let _held = table.hold("a").await.unwrap();
        let waiting: Vec<_> = (0..2 * TURNS_MAX)
            .map(|_| {
                let table = Arc::clone(&table);
                tokio::spawn(async move { table.hold("a").await.map(drop) })
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
            match table.hold(&full.len().to_string()).await {
                Ok(held) => full.push(held),
                Err(status) => break status,
            }
        };
        assert_eq!((status.code(), full.len()), (tonic::Code::ResourceExhausted, CONNECTIONS_MAX - 1));
    }
}
