//! What a registry says, kept here: watching costs it less than being asked for each connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::client::{FILE_TIMEOUT, FoundEndpoint, RegistryClient};
use super::select::{is_endpoint, is_service};
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint};

/// Where an answer may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// From what was told, which may be a moment old. What is not known is asked for.
    Known,
    /// From the registry itself.
    Anew,
}

/// Answers from what it has seen while it watches all of a registry, and asks the registry while it does not.
pub struct RegistryCache {
    client: Arc<RegistryClient>,
    endpoints: KnownTable<FoundEndpoint>,
    services: KnownTable<NetworkService>,
}

impl RegistryCache {
    /// Knows nothing yet: [`Self::run`] must run.
    pub fn new(client: Arc<RegistryClient>) -> Self {
        Self { client, endpoints: KnownTable::default(), services: KnownTable::default() }
    }

    /// The endpoints that a query means.
    pub async fn find_endpoints(
        &self,
        query: NetworkServiceEndpoint,
        lookup: Lookup,
    ) -> Result<Vec<FoundEndpoint>, Status> {
        match self.endpoints.find(lookup, |found| is_endpoint(&query, &found.endpoint)) {
            Some(found) => Ok(found),
            None => self.client.find_endpoints(query).await,
        }
    }

    /// The services that a query means.
    pub async fn find_services(&self, query: NetworkService, lookup: Lookup) -> Result<Vec<NetworkService>, Status> {
        match self.services.find(lookup, |service| is_service(&query, service)) {
            Some(found) => Ok(found),
            None => self.client.find_services(query).await,
        }
    }

    /// Waits until it knows all.
    pub async fn known(&self) {
        tokio::join!(self.endpoints.known(), self.services.known());
    }

    /// Watches, for ever. When the registry goes, what it said is nothing any more.
    pub async fn run(&self) {
        let endpoints = again(&self.endpoints, || self.follow_endpoints());
        let services = again(&self.services, || self.follow_services());
        tokio::join!(endpoints, services);
    }

    async fn follow_endpoints(&self) -> Result<(), Status> {
        let all = NetworkServiceEndpoint::default;
        let (connection, mut stream) = self.client.watch_endpoints(all()).await?;
        // Nothing in the stream says where what there is ends: an answer to the same question does.
        let mut first = std::pin::pin!(self.client.find_endpoints(all()));
        let mut is_first_due = true;
        // Sockets that come a little later than what names them. They keep nothing else waiting.
        let mut receiving = JoinSet::new();
        let mut newest: BTreeMap<String, Id> = BTreeMap::new();
        loop {
            let told = tokio::select! {
                biased;
                told = stream.message() => told?,
                Some(received) = receiving.join_next_with_id() => {
                    let Ok((id, ReceivedSocket { name, found })) = received else { continue };
                    // What was said of it since is newer.
                    if newest.get(&name) == Some(&id) {
                        newest.remove(&name);
                        self.endpoints.tell(name, found)?;
                    }
                    continue;
                }
                found = &mut first, if is_first_due => {
                    is_first_due = false;
                    self.endpoints.complete(found?.into_iter().map(|found| (found.endpoint.name.clone(), found)));
                    continue;
                }
            };
            let Some(told) = told else { return Ok(()) };
            let Some(endpoint) = told.network_service_endpoint else { continue };
            let name = endpoint.name.clone();
            newest.remove(&name);
            if told.deleted {
                self.endpoints.tell(name, None)?;
                continue;
            }
            if receiving.len() >= KNOWN_MAX {
                return Err(Status::resource_exhausted("too many sockets were named and not passed"));
            }
            let (connection, deadline) = (connection.clone(), Instant::now() + FILE_TIMEOUT);
            let receive = {
                let name = name.clone();
                async move { ReceivedSocket { name, found: FoundEndpoint::receive(endpoint, &connection, deadline).await } }
            };
            newest.insert(name, receiving.spawn(receive).id());
        }
    }

    async fn follow_services(&self) -> Result<(), Status> {
        let all = NetworkService::default;
        let (_connection, mut stream) = self.client.watch_services(all()).await?;
        let mut first = std::pin::pin!(self.client.find_services(all()));
        let mut is_first_due = true;
        loop {
            let told = tokio::select! {
                biased;
                told = stream.message() => told?,
                found = &mut first, if is_first_due => {
                    is_first_due = false;
                    self.services.complete(found?.into_iter().map(|found| (found.name.clone(), found)));
                    continue;
                }
            };
            let Some(told) = told else { return Ok(()) };
            let Some(service) = told.network_service else { continue };
            self.services.tell(service.name.clone(), (!told.deleted).then_some(service))?;
        }
    }
}

/// An endpoint whose socket came, or did not.
struct ReceivedSocket {
    name: String,
    found: Option<FoundEndpoint>,
}

/// Follows anew whenever it ends, a little later each time that nothing came of it.
async fn again<V, F: Future<Output = Result<(), Status>>>(table: &KnownTable<V>, follow: impl Fn() -> F) {
    let mut delay = RETRY_MIN;
    loop {
        if let Err(status) = Box::pin(follow()).await {
            tracing::debug!(%status, "the registry is not watched any more");
        }
        delay = if table.forget() { RETRY_MIN } else { (delay * 2).min(RETRY_MAX) };
        sleep(delay).await;
    }
}

/// What is known of one kind, by name.
struct KnownTable<V> {
    /// None: deleted since the watch began.
    told: Mutex<BTreeMap<String, Option<V>>>,
    is_complete: watch::Sender<bool>,
}

impl<V> Default for KnownTable<V> {
    fn default() -> Self {
        Self { told: Mutex::default(), is_complete: watch::Sender::new(false) }
    }
}

impl<V> KnownTable<V> {
    /// What fits, if all is known and something fits: what was registered a moment ago may not have been told yet.
    fn find(&self, lookup: Lookup, fits: impl Fn(&V) -> bool) -> Option<Vec<V>>
    where
        V: Clone,
    {
        let told = self.lock();
        let may_answer = lookup == Lookup::Known && *self.is_complete.borrow();
        let found = || told.values().flatten().filter(|value| fits(value)).cloned().collect::<Vec<_>>();
        may_answer.then(found).filter(|found| !found.is_empty())
    }

    fn tell(&self, name: String, value: Option<V>) -> Result<(), Status> {
        let mut told = self.lock();
        if value.is_none() && *self.is_complete.borrow() {
            told.remove(&name);
        } else {
            told.insert(name, value);
        }
        if told.len() > KNOWN_MAX {
            return Err(Status::resource_exhausted(format!("the registry has more than {KNOWN_MAX} entries")));
        }
        Ok(())
    }

    /// Adds what was there when the watch began. What the watch has told since is newer.
    fn complete(&self, all: impl Iterator<Item = (String, V)>) {
        let mut told = self.lock();
        for (name, value) in all {
            told.entry(name).or_insert(Some(value));
        }
        told.retain(|_, value| value.is_some());
        self.is_complete.send_replace(true);
    }

    /// Knows nothing any more; whether it knew all.
    fn forget(&self) -> bool {
        let mut told = self.lock();
        told.clear();
        self.is_complete.send_replace(false)
    }

    async fn known(&self) {
        let _ = self.is_complete.subscribe().wait_for(|is_complete| *is_complete).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<V>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const KNOWN_MAX: usize = 32 << 10;
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_since_the_watch_began_is_newer_than_the_first_answer() {
        let table = KnownTable::default();
        table.tell("gone".to_owned(), None).unwrap();
        table.tell("new".to_owned(), Some(2)).unwrap();
        assert_eq!(table.find(Lookup::Known, |_| true), None, "not all is known");
        table.complete([("gone", 1), ("new", 1), ("old", 1)].map(|(name, value)| (name.to_owned(), value)).into_iter());
        assert_eq!(table.find(Lookup::Known, |_| true), Some(vec![2, 1]));
        table.tell("old".to_owned(), None).unwrap();
        assert_eq!(table.find(Lookup::Known, |_| true), Some(vec![2]));
        assert_eq!(table.find(Lookup::Known, |value| *value == 7), None, "it may have come a moment ago");
        assert_eq!(table.find(Lookup::Anew, |_| true), None);
        assert!(table.forget());
        assert_eq!(table.find(Lookup::Known, |_| true), None);
        assert!(!table.forget());
    }

    #[test]
    fn a_registry_without_bound_is_not_kept() {
        let table = KnownTable::default();
        let refused = (0..=KNOWN_MAX).find_map(|name| table.tell(name.to_string(), Some(())).err());
        assert_eq!(refused.unwrap().code(), tonic::Code::ResourceExhausted);
    }
}
