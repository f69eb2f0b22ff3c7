//! Who comes next on the way of a connection: known from the registry, which is watched, and called over a connection that is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ferrule_nsm::identity::IdentitySource;
use ferrule_nsm::proto::connection::Connection;
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::proto::registry::{NetworkService, NetworkServiceEndpoint};
use ferrule_nsm::registry::select::candidates;
use ferrule_nsm::registry::{FoundEndpoint, Lookup, RegistryCache};
use ferrule_nsm::service::{KeptHops, NextHop};
use ferrule_nsm::transport::DialOptions;
use tokio::time::Instant;
use tonic::Status;

/// Finds and calls endpoints, and managers of other nodes.
pub(super) struct NextHops {
    registry: Arc<RegistryCache>,
    kept: KeptHops,
    /// When each endpoint was last put first: who waits longest is next.
    last_asked: Mutex<LastAsked>,
}

/// Who may be next.
pub(super) struct Candidates {
    /// Best first.
    pub(super) endpoints: Vec<FoundEndpoint>,
    /// What the service says that its connections carry; none: it was chosen before.
    pub(super) payload: Option<String>,
}

impl Candidates {
    /// Whether one of them is reached elsewhere than all of the others.
    pub(super) fn differ_from(&self, others: &Self) -> bool {
        let place = |found: &FoundEndpoint| (found.endpoint.name.clone(), found.endpoint.url.clone());
        let known: BTreeSet<_> = others.endpoints.iter().map(place).collect();
        self.endpoints.iter().any(|found| !known.contains(&place(found)))
    }
}

impl NextHops {
    pub(super) fn new(registry: Arc<RegistryCache>, identity: IdentitySource, options: DialOptions) -> Self {
        Self { registry, kept: KeptHops::new(identity, options), last_asked: Mutex::default() }
    }

    /// Those that a connection may have: the one that it names, or those of its service.
    pub(super) async fn candidates(&self, connection: &Connection, lookup: Lookup) -> Result<Candidates, Status> {
        let name = &connection.network_service_endpoint_name;
        if !name.is_empty() {
            return Ok(Candidates { endpoints: vec![Box::pin(self.find(name, lookup)).await?], payload: None });
        }
        let service = &connection.network_service;
        let query = NetworkService { name: service.clone(), ..NetworkService::default() };
        let found = Box::pin(self.registry.find_services(query, lookup)).await?;
        let found = found.into_iter().find(|found| found.name == *service);
        let found = found
            .filter(|_| !service.is_empty())
            .ok_or_else(|| Status::not_found(format!("network service {service} is not found")))?;
        let names = vec![service.clone()];
        let query = NetworkServiceEndpoint { network_service_names: names, ..NetworkServiceEndpoint::default() };
        let mut all = Box::pin(self.registry.find_endpoints(query, lookup)).await?;
        let registered: Vec<_> = all.iter().map(|found| found.endpoint.clone()).collect();
        let fitting = candidates(&found, &registered, &connection.labels, SystemTime::now());
        all.retain(|found| fitting.iter().any(|fitting| fitting.name == found.endpoint.name));
        if all.is_empty() {
            return Err(Status::not_found(format!("network service {service} has no endpoint for this client")));
        }
        let names: Vec<_> = all.iter().map(|found| found.endpoint.name.as_str()).collect();
        let next = self.last_asked.lock().unwrap_or_else(PoisonError::into_inner).next(&names);
        all.rotate_left(next);
        Ok(Candidates { endpoints: all, payload: Some(found.payload) })
    }

    /// The endpoint of this name.
    async fn find(&self, name: &str, lookup: Lookup) -> Result<FoundEndpoint, Status> {
        let query = NetworkServiceEndpoint { name: name.to_owned(), ..NetworkServiceEndpoint::default() };
        let found = Box::pin(self.registry.find_endpoints(query, lookup)).await?;
        let found = found.into_iter().find(|found| found.endpoint.name == name);
        found.ok_or_else(|| Status::not_found(format!("network service endpoint {name} is not found")))
    }

    /// Asks an endpoint, over the connection that was there before, if it still serves.
    pub(super) async fn request(
        &self,
        endpoint: &FoundEndpoint,
        message: NetworkServiceRequest,
        files: &[Arc<OwnedFd>],
        before: Option<&NextHop>,
        until: Instant,
    ) -> Result<(NextHop, Connection), Status> {
        self.kept.request(endpoint, message, files, before, before.is_none(), until).await
    }

    /// Closes a connection at an endpoint, which may have been started again, or be gone.
    pub(super) async fn close(
        &self,
        next: &NextHop,
        endpoint: &str,
        below: Connection,
        files: &[Arc<OwnedFd>],
        until: Instant,
    ) -> Result<(), Status> {
        if self.kept.is_good(next) {
            return Box::pin(next.close(below, files, until.saturating_duration_since(Instant::now()))).await;
        }
        let Ok(found) = Box::pin(self.find(endpoint, Lookup::Anew)).await else { return Ok(()) };
        Box::pin(self.kept.close(&found, below, files, until)).await
    }

    /// Closes a connection that only its endpoint may still know.
    pub(super) async fn close_unknown(&self, connection: Connection, until: Instant) -> Result<(), Status> {
        let name = &connection.network_service_endpoint_name;
        if name.is_empty() {
            return Ok(());
        }
        let Ok(found) = Box::pin(self.find(name, Lookup::Anew)).await else { return Ok(()) };
        Box::pin(self.kept.close(&found, connection, &[], until)).await
    }
}

/// Who was asked when. That is known of each endpoint, not of a service: the functions of a chain are endpoints of one service, of which a
/// client may have some only.
#[derive(Debug, Default)]
struct LastAsked {
    when: BTreeMap<String, u64>,
    now: u64,
}

impl LastAsked {
    /// Which of these has waited longest, the first one of several. It has its turn with that.
    fn next(&mut self, endpoints: &[&str]) -> usize {
        let waiting_since = |at: &usize| self.when.get(endpoints[*at]).copied().unwrap_or_default();
        let next = (0..endpoints.len()).min_by_key(waiting_since).unwrap_or_default();
        let Some(name) = endpoints.get(next) else { return 0 };
        if self.when.len() >= TURNS_MAX && !self.when.contains_key(*name) {
            self.when.clear();
        }
        self.now += 1;
        self.when.insert((*name).to_owned(), self.now);
        next
    }
}

/// Endpoints whose turn is remembered. Of more than that, some are asked more often than others.
const TURNS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns_also_when_others_of_their_service_are_asked_between() {
        let mut asked = LastAsked::default();
        let mut chosen = Vec::new();
        for _ in 0..3 {
            // A chain: a function that is alone, one of which there are two, and its end.
            for hop in [&["firewall"][..], &["passthrough-a", "passthrough-b"], &["gateway"]] {
                chosen.push(hop[asked.next(hop)]);
            }
        }
        let passthroughs: Vec<_> = chosen.into_iter().filter(|name| name.starts_with("passthrough")).collect();
        assert_eq!(passthroughs, ["passthrough-a", "passthrough-b", "passthrough-a"]);
    }

    #[test]
    fn three_take_turns_and_a_new_one_is_next() {
        let mut asked = LastAsked::default();
        let mut all = vec!["a", "b", "c"];
        let mut chosen: Vec<_> = (0..4).map(|_| all[asked.next(&all)]).collect();
        all.push("d");
        chosen.extend((0..3).map(|_| all[asked.next(&all)]));
        assert_eq!(chosen, ["a", "b", "c", "a", "d", "b", "c"]);
    }
}
