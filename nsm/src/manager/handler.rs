//! A manager's connections: which forwarder they go through.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::identity::IdentitySource;
use crate::monitor::Follower;
use crate::proto::connection::Connection;
use crate::proto::networkservice::NetworkServiceRequest;
use crate::proto::registry::NetworkServiceEndpoint;
use crate::registry::select::forwarders;
use crate::registry::{FORWARDER_SERVICE, FoundEndpoint, LocalRegistry};
use crate::service::{Call, Handler, KeptHops, MechanismFiles, NextHop};
use crate::transport::{DialOptions, Peer};

/// Sends each connection through a forwarder of its node, which finds the endpoint.
pub struct Manager {
    registry: LocalRegistry,
    forwarders: KeptHops,
    /// How long a forwarder that is left has to close what it had.
    leaving: Duration,
    /// By the ids of their connections.
    hops: Mutex<BTreeMap<String, Hop>>,
    /// Since when forwarders can register.
    started: Instant,
}

/// The forwarder of a connection.
struct Hop {
    forwarder: String,
    next: NextHop,
    /// What goes with each call: a forwarder may wait for it, even to close.
    files: Vec<Arc<OwnedFd>>,
    following: AbortHandle,
}

impl Drop for Hop {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Manager {
    /// Of the forwarders in this registry, called as this identity.
    pub fn new(registry: LocalRegistry, identity: IdentitySource, options: DialOptions) -> Self {
        let leaving = options.timeout;
        let forwarders = KeptHops::new(identity, options);
        Self { registry, forwarders, leaving, hops: Mutex::default(), started: Instant::now() }
    }

    /// The forwarders that a connection may go through, the one that it goes through first.
    async fn candidates(&self, connection: &Connection, own: usize) -> Result<Vec<FoundEndpoint>, Status> {
        let name = &connection.network_service;
        let service = self.registry.service(name).await?;
        let service = service.ok_or_else(|| Status::not_found(format!("network service {name} is not found")))?;
        let names = vec![FORWARDER_SERVICE.to_owned()];
        let query = NetworkServiceEndpoint { network_service_names: names, ..NetworkServiceEndpoint::default() };
        let all = self.registry.find_endpoints(&query);
        let endpoints: Vec<_> = all.iter().map(|found| found.endpoint.clone()).collect();
        let fitting = forwarders(&service, FORWARDER_SERVICE, &endpoints, &connection.labels, SystemTime::now());
        let is_fitting = |found: &FoundEndpoint| fitting.iter().any(|fitting| fitting.name == found.endpoint.name);
        let last = next_name(connection, own);
        let is_last = |found: &FoundEndpoint| found.endpoint.name == last;
        let (same, others): (Vec<_>, Vec<_>) = all.into_iter().filter(is_fitting).partition(is_last);
        Ok(same.into_iter().chain(others).collect())
    }

    /// The forwarder of this name. Those of before a manager's start register again soon.
    async fn forwarder(&self, name: &str, until: Instant) -> Option<FoundEndpoint> {
        let names = vec![FORWARDER_SERVICE.to_owned()];
        let query = NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_names: names,
            ..NetworkServiceEndpoint::default()
        };
        let until = until.min(self.started + REGISTERING);
        loop {
            // One whose name begins with this one is another.
            let mut found = self.registry.find_endpoints(&query).into_iter();
            match found.find(|found| found.endpoint.name == name) {
                Some(found) => return Some(found),
                None if Instant::now() >= until => return None,
                None => sleep(REGISTERING_POLL).await,
            }
        }
    }

    /// Closes a connection at the forwarder of a name, or at one that has just come in its place and is about to register.
    async fn close_at_successor(
        &self,
        name: &str,
        connection: Connection,
        files: &[Arc<OwnedFd>],
        until: Instant,
    ) -> Result<(), Status> {
        let patience = until.min(Instant::now() + REGISTERING);
        loop {
            let Some(forwarder) = self.forwarder(name, until).await else { return Ok(()) };
            match self.forwarders.get(&forwarder).await {
                Ok(next) => {
                    return next.close(connection, files, until.saturating_duration_since(Instant::now())).await;
                }
                Err(status) if Instant::now() >= patience => return Err(status),
                // It is registered with the socket of before.
                Err(_) => sleep(REGISTERING_POLL).await,
            }
        }
    }

    /// Asks one forwarder, and watches the connection there from then on.
    async fn ask(
        &self,
        forwarder: &FoundEndpoint,
        call: &Call,
        files: &MechanismFiles,
        until: Instant,
    ) -> Result<Connection, Status> {
        let mut message = NetworkServiceRequest {
            connection: Some(call.connection.clone()),
            mechanism_preferences: call.preferences.clone(),
        };
        let is_new = next_name(&call.connection, call.place.own) != forwarder.endpoint.name;
        if let (true, Some(connection)) = (is_new, &mut message.connection) {
            // What another forwarder has made is nothing to this one.
            connection.mechanism = None;
        }
        let files = files.all();
        let again = self.hops().get(&call.connection.id).map(|hop| hop.next.clone());
        let asking = self.forwarders.request(forwarder, message, &files, again.as_ref(), call.known.is_none(), until);
        let (next, answer) = Box::pin(asking).await?;
        let before = self.follow(forwarder, next, files, &answer, call);
        if let (Some(before), Some(known)) = (before, &call.known)
            && before.forwarder != forwarder.endpoint.name
        {
            tracing::info!(id = answer.id, from = before.forwarder, to = forwarder.endpoint.name, "another forwarder");
            // It may be gone: then it has nothing to be closed.
            let _ = before.next.close(Connection::clone(known), &before.files, self.leaving).await;
        }
        Ok(answer)
    }

    /// Watches a connection at its forwarder, and gives back what was there before.
    fn follow(
        &self,
        forwarder: &FoundEndpoint,
        next: NextHop,
        files: Vec<Arc<OwnedFd>>,
        answer: &Connection,
        call: &Call,
    ) -> Option<Hop> {
        let calls = next.connection().calls();
        let (monitor, answered) = (call.monitor.clone(), call.answered.clone());
        let follower = Follower::new(answer.clone());
        let following = tokio::spawn(async move {
            answered.wait().await;
            follower.follow(calls, move |changed| monitor.change(changed)).await;
        });
        let hop = Hop { forwarder: forwarder.endpoint.name.clone(), next, files, following: following.abort_handle() };
        self.hops().insert(answer.id.clone(), hop)
    }

    fn hops(&self) -> MutexGuard<'_, BTreeMap<String, Hop>> {
        self.hops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Handler for Manager {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        let until = Instant::now() + call.limit;
        let candidates = self.candidates(&call.connection, call.place.own).await?;
        if candidates.is_empty() {
            return Err(Status::unavailable(
                "no candidates found: no forwarder is registered that this service may have",
            ));
        }
        let mechanisms: Vec<_> = call.connection.mechanism.iter().chain(&call.preferences).cloned().collect();
        let files = MechanismFiles::receive(call.peer.as_ref().and_then(Peer::files), &mechanisms).await?;
        let mut failures = String::new();
        for (at, forwarder) in candidates.iter().enumerate() {
            match self.ask(forwarder, &call, &files, until).await {
                Ok(answer) => return Ok(answer),
                Err(status) => {
                    let (name, problem) = (&forwarder.endpoint.name, status.message());
                    // The last one first, as the Go manager says it.
                    failures = format!("{at}. An error during select forwarder {name} --> {problem}: {failures}");
                }
            }
        }
        Err(Status::unavailable(format!("{failures}all forwarders have failed")))
    }

    async fn close(&self, call: Call) -> Result<(), Status> {
        let Some(hop) = self.hops().remove(&call.connection.id) else { return Ok(()) };
        hop.following.abort();
        if !hop.next.connection().has_ended() {
            return hop.next.close(call.connection, &hop.files, call.limit).await;
        }
        // It was restarted, say: what it still has is its own to find, once it is told.
        let until = Instant::now() + call.limit;
        self.close_at_successor(&hop.forwarder, call.connection, &hop.files, until).await
    }

    /// A manager that came in another one's place knows nothing of its connections, but their forwarders do.
    async fn close_unknown(&self, call: Call) -> Result<(), Status> {
        let until = Instant::now() + call.limit;
        let name = next_name(&call.connection, call.place.own);
        if name.is_empty() {
            return Ok(());
        }
        let name = name.to_owned();
        // Without its file it is closed as well.
        let files = MechanismFiles::receive(call.peer.as_ref().and_then(Peer::files), &call.connection.mechanism);
        let files = files.await.unwrap_or_default().all();
        self.close_at_successor(&name, call.connection, &files, until).await
    }
}

/// The process that comes after us, of last time.
fn next_name(connection: &Connection, own: usize) -> &str {
    let segments = connection.path.as_ref().map_or(&[][..], |path| &path.path_segments);
    segments.get(own + 1).map_or("", |segment| &segment.name)
}

/// So long after its start, or ours, a forwarder may still be about to register again.
const REGISTERING: Duration = Duration::from_secs(5);
const REGISTERING_POLL: Duration = Duration::from_millis(50);
