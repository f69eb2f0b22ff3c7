//! An endpoint in the middle of a chain: it serves a connection, and asks for what comes next under labels of its own.
//!
//! Whoever called it is answered what the end of the chain says, as the functions in Go do it (`passthrough`): addresses, routes and names come through it, and so
//! does the news that something behind it is down.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Status;

use super::memif::{MEMIF, MemifEnds, memif_socket};
use crate::identity::IdentitySource;
use crate::monitor::Follower;
use crate::proto::connection::{Connection, Mechanism};
use crate::proto::connectioncontext::ConnectionContext;
use crate::proto::networkservice::NetworkServiceRequest;
use crate::proto::registry::NetworkServiceEndpoint;
use crate::registry::FoundEndpoint;
use crate::service::{Call, Handler, KeptHops, NextHop, limit_mtu, time_to_close};
use crate::transport::{Address, DialOptions, Peer};

/// What stands between the two ends of a connection.
#[tonic::async_trait]
pub trait Between: Send + Sync + 'static {
    /// What is asked for behind it, when this was asked for in front.
    fn ask(&self, asked: &Connection) -> Result<ConnectionContext, Status> {
        Ok(asked.context.clone().unwrap_or_default())
    }

    /// What whoever asked for the connection of this id is answered, when this was answered behind it. It is asked so before it joins anything.
    fn answer(&self, _id: &str, behind: ConnectionContext) -> ConnectionContext {
        behind
    }

    /// Stands between two memif sockets in the program's namespace from now on: it listens at the first, and connects to the second. It may stand between
    /// others already: those go on that are the same.
    async fn join(&self, connection: &Connection, sockets: [&str; 2]) -> Result<(), Status>;

    /// Stands there no more.
    async fn part(&self, id: &str);
}

/// Serves connections with memif ends, and asks a manager for what comes next.
pub struct MiddleEndpoint<B> {
    between: Arc<B>,
    ends: MemifEnds,
    labels: BTreeMap<String, String>,
    hops: KeptHops,
    manager: FoundEndpoint,
    made: Mutex<BTreeMap<String, Made>>,
}

/// What lies behind us of a connection.
struct Made {
    next: NextHop,
    /// As the manager has answered it, in our place.
    behind: Connection,
    following: AbortHandle,
}

impl Drop for Made {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl<B: Between> MiddleEndpoint<B> {
    /// With ends in a namespace; the manager at an address is asked as this identity, under these labels.
    pub fn new(
        between: Arc<B>,
        ends: MemifEnds,
        labels: BTreeMap<String, String>,
        manager: &Address,
        identity: IdentitySource,
        options: DialOptions,
    ) -> Self {
        let endpoint = NetworkServiceEndpoint { url: manager.to_string(), ..NetworkServiceEndpoint::default() };
        let manager = FoundEndpoint { endpoint, socket: None };
        Self { between, ends, labels, hops: KeptHops::new(identity, options), manager, made: Mutex::default() }
    }

    /// Asks for what comes next: for the same again, or for another one if that is not there any more.
    async fn ask(
        &self,
        call: &Call,
        before: Option<(NextHop, Connection)>,
        until: Instant,
    ) -> Result<(NextHop, Connection), Status> {
        let mut connection = call.connection.clone();
        connection.context = Some(self.between.ask(&call.connection)?);
        connection.labels.clone_from(&self.labels);
        connection.network_service_endpoint_name.clear();
        connection.mechanism = None;
        let again = before.as_ref().map(|(next, _)| next);
        if let Some((_, before)) = &before {
            let mut same = connection.clone();
            same.network_service_endpoint_name.clone_from(&before.network_service_endpoint_name);
            same.mechanism.clone_from(&before.mechanism);
            match self.ask_for(same, again, false, until).await {
                Ok(answered) => return Ok(answered),
                Err(status) => {
                    let name = &before.network_service_endpoint_name;
                    tracing::info!(id = connection.id, name, %status, "what comes next is gone: another one is chosen");
                }
            }
        }
        self.ask_for(connection, again, again.is_none(), until).await
    }

    async fn ask_for(
        &self,
        connection: Connection,
        again: Option<&NextHop>,
        is_first: bool,
        until: Instant,
    ) -> Result<(NextHop, Connection), Status> {
        let mechanism_preferences = vec![self.ends.wanted()];
        let message = NetworkServiceRequest { connection: Some(connection), mechanism_preferences };
        Box::pin(self.hops.request(&self.manager, message, &self.files(), again, is_first, until)).await
    }

    /// Puts the function between the two ends. What the caller is answered.
    async fn join(&self, call: &Call, behind: &Connection) -> Result<Connection, Status> {
        let theirs = behind.mechanism.as_ref().and_then(memif_socket);
        let theirs = theirs.ok_or_else(|| Status::internal("what comes next is no memif with a socket"))?;
        let ours = self.ends.served(&behind.id)?;
        let served = memif_socket(&ours).unwrap_or_default().to_owned();
        let mut answer = behind.clone();
        answer_in_front(&*self.between, &mut answer, mtu_of(&call.connection));
        self.between.join(&call.connection, [&served, theirs]).await?;
        if let Some(segment) = answer.path.as_mut().and_then(|path| path.path_segments.get_mut(call.place.own)) {
            let ends = [("server_interface", served.as_str()), ("client_interface", theirs)];
            segment.metrics = ends.map(|(key, socket)| (key.to_owned(), format!("{MEMIF}/{socket}"))).into();
        }
        answer.labels.clone_from(&call.connection.labels);
        answer.network_service_endpoint_name.clone_from(&call.connection.network_service_endpoint_name);
        answer.mechanism = Some(ours);
        Ok(answer)
    }

    /// Watches what comes next, and tells whoever watches us.
    fn follow(&self, next: &NextHop, answer: &Connection, call: &Call) -> AbortHandle {
        let (calls, monitor, answered) = (next.connection().calls(), call.monitor.clone(), call.answered.clone());
        let (between, follower, mtu) = (Arc::clone(&self.between), Follower::new(answer.clone()), mtu_of(answer));
        let following = tokio::spawn(async move {
            answered.wait().await;
            let tell = move |mut changed: Connection| {
                answer_in_front(&*between, &mut changed, mtu);
                monitor.change(changed);
            };
            follower.follow(calls, tell).await;
        });
        following.abort_handle()
    }

    /// Whoever comes next may wait for the namespace, also to close.
    fn files(&self) -> [Arc<OwnedFd>; 1] {
        [Arc::clone(self.ends.file())]
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<String, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has what was answered behind become what is answered in front, whose links carry packets of so many bytes.
fn answer_in_front(between: &impl Between, connection: &mut Connection, mtu: u32) {
    // Whoever has answered may have said more than it was asked for, or nothing: what stands between is to know what both sides carry.
    limit_mtu(connection, mtu);
    let behind = connection.context.take().unwrap_or_default();
    connection.context = Some(between.answer(&connection.id, behind));
    limit_mtu(connection, mtu);
}

/// 0: nobody has said.
fn mtu_of(connection: &Connection) -> u32 {
    connection.context.as_ref().map_or(0, |context| context.mtu)
}

#[tonic::async_trait]
impl<B: Between> Handler for MiddleEndpoint<B> {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        let until = Instant::now() + call.limit;
        let is_memif = |mechanism: &Mechanism| mechanism.r#type == MEMIF;
        if !call.connection.mechanism.iter().chain(&call.preferences).any(is_memif) {
            return Err(Status::unimplemented(
                "cannot support any of the requested mechanism: this endpoint has MEMIF only",
            ));
        }
        let files = call.peer.as_ref().and_then(Peer::files);
        let files = files.ok_or_else(|| {
            Status::failed_precondition("a namespace cannot be passed over TCP: connect to the endpoint's Unix socket")
        })?;
        let id = call.connection.id.clone();
        let before = self.made().get(&id).map(|made| (made.next.clone(), made.behind.clone()));
        let is_first = before.is_none();
        let asked = self.ask(&call, before, until).await;
        let joined = match &asked {
            Ok((_, behind)) => self.join(&call, behind).await,
            Err(status) => Err(status.clone()),
        };
        let passed = joined.and_then(|answer| {
            let cannot = |error| Status::unavailable(format!("cannot pass the namespace: {error}"));
            files.send(Arc::clone(self.ends.file())).map(|_| answer).map_err(cannot)
        });
        match (asked, passed) {
            (Ok((next, behind)), Ok(answer)) => {
                let following = self.follow(&next, &answer, &call);
                self.made().insert(id, Made { next, behind, following });
                Ok(answer)
            }
            (asked, passed) => {
                if is_first {
                    self.between.part(&id).await;
                    if let Ok((_, behind)) = asked {
                        // It says no more than the error does.
                        let until = Instant::now() + time_to_close(until);
                        let _ = Box::pin(self.hops.close(&self.manager, behind, &self.files(), until)).await;
                    }
                }
                passed
            }
        }
    }

    async fn close(&self, call: Call) -> Result<(), Status> {
        let until = Instant::now() + call.limit;
        let id = &call.connection.id;
        let made = self.made().remove(id);
        self.between.part(id).await;
        let Some(made) = made else { return Ok(()) };
        made.following.abort();
        Box::pin(self.hops.close(&self.manager, made.behind.clone(), &self.files(), until)).await
    }

    /// What a program that was killed has asked for is there still.
    async fn close_unknown(&self, call: Call) -> Result<(), Status> {
        let until = Instant::now() + call.limit;
        let segments = call.connection.path.as_ref().map_or(0, |path| path.path_segments.len());
        if segments <= call.place.own + 1 {
            return Ok(());
        }
        let mut connection = call.connection;
        connection.labels.clone_from(&self.labels);
        connection.network_service_endpoint_name.clear();
        connection.mechanism = Some(self.ends.wanted());
        Box::pin(self.hops.close(&self.manager, connection, &self.files(), until)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it says of its own has this MTU; 0: it says what was said behind it.
    struct Says(u32);

    #[tonic::async_trait]
    impl Between for Says {
        fn answer(&self, _: &str, behind: ConnectionContext) -> ConnectionContext {
            if self.0 == 0 { behind } else { ConnectionContext { mtu: self.0, ..behind } }
        }

        async fn join(&self, _: &Connection, _: [&str; 2]) -> Result<(), Status> {
            Ok(())
        }

        async fn part(&self, _: &str) {}
    }

    #[test]
    fn the_answer_carries_no_more_than_either_side_and_the_function() {
        let answered = |own: u32, behind: u32, asked: u32| {
            let context = ConnectionContext { mtu: behind, ..ConnectionContext::default() };
            let mut connection = Connection { context: Some(context), ..Connection::default() };
            answer_in_front(&Says(own), &mut connection, asked);
            mtu_of(&connection)
        };
        assert_eq!(answered(0, 1446, 0), 1446, "of what is behind");
        assert_eq!(answered(0, 1446, 1500), 1446);
        assert_eq!(answered(0, 1500, 1446), 1446, "whoever has answered has said more than it was asked for");
        assert_eq!(answered(0, 0, 1446), 1446, "or nothing");
        assert_eq!(answered(1400, 1446, 1500), 1400);
        assert_eq!(answered(0, 0, 0), 0);
    }
}
