//! The calls of a process that connections go through: who calls, is it allowed, whose turn is it; then the handler.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::handler::{Answered, Call, Handler};
use super::limits::{MESSAGE_MAX, check_connection, check_request};
use super::table::{ConnectionTable, Held};
use crate::identity::SpiffeIds;
use crate::monitor::Monitor;
use crate::path::{PathError, Place};
use crate::policy::{DENIED, Owner, check_caller, check_signer};
use crate::proto::connection::{Connection, State};
use crate::proto::networkservice::NetworkServiceRequest;
use crate::proto::networkservice::network_service_server::{NetworkService, NetworkServiceServer};
use crate::token::Token;
use crate::trace::{self, CallSpan};
use crate::transport::Peer;

/// Serves connections for a process of some name.
pub struct ConnectionServer<H>(Arc<Serving<H>>);

struct Serving<H> {
    name: String,
    token_lifetime: Duration,
    handler: H,
    relays: SpiffeIds,
    table: Arc<ConnectionTable>,
    monitor: Monitor,
}

impl<H: Handler> ConnectionServer<H> {
    /// For a process whose tokens live so long.
    pub fn new(name: &str, token_lifetime: Duration, handler: H) -> Self {
        let (name, table, monitor) = (name.to_owned(), Arc::default(), Monitor::default());
        Self(Arc::new(Serving { name, token_lifetime, handler, relays: SpiffeIds::default(), table, monitor }))
    }

    /// For a server.
    pub fn service(&self) -> NetworkServiceServer<Self> {
        NetworkServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// What is told of its connections. It must be served as well: without it callers think that the process is gone.
    pub fn monitor(&self) -> &Monitor {
        &self.0.monitor
    }

    /// Who may speak for others: managers and forwarders. A connection that came through one of them is its client's, and another of them
    /// may go on with it; without them it is also theirs.
    pub fn relays(&self) -> &SpiffeIds {
        &self.0.relays
    }

    /// What is behind it.
    pub fn handler(&self) -> &H {
        &self.0.handler
    }
}

impl<H> Clone for ConnectionServer<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[tonic::async_trait]
impl<H: Handler> NetworkService for ConnectionServer<H> {
    async fn request(&self, request: Request<NetworkServiceRequest>) -> Result<Response<Connection>, Status> {
        let incoming = self.0.enter(&request)?;
        let span = CallSpan::served(trace::REQUEST, request.metadata());
        let request = request.into_inner();
        check_request(&request)?;
        let NetworkServiceRequest { connection, mechanism_preferences } = request;
        let mut connection = connection.unwrap_or_default();
        let path = connection.path.iter().flat_map(|path| &path.path_segments);
        let told: Vec<_> = path.map(|segment| segment.id.clone()).collect();
        let place = Place::enter(&mut connection, &self.0.name)?;
        incoming.check(&mut connection, place)?;
        let owner = self.0.owner(&connection, place)?;
        if self.0.table.is_of_another(&connection.id, &owner) {
            tracing::info!(id = connection.id, %owner, "a connection of that id is somebody else's: this is another one");
            place.begin_anew(&mut connection);
        }
        let expires = place.caller_expires(&connection);
        let expires = expires
            .ok_or_else(|| Status::invalid_argument("the previous path segment does not say when it expires"))?;
        let Incoming { peer, limit, .. } = incoming;
        let call = Call {
            connection,
            preferences: mechanism_preferences,
            known: None,
            place,
            peer: Some(peer),
            limit,
            monitor: self.0.monitor.clone(),
            answered: Answered::default(),
        };
        // What was begun is brought to its end, whether or not the caller waits for it. This lives as long as it does.
        let (waits, serving) = (Arc::new(()), Arc::clone(&self.0));
        let is_told = place.own == place.caller || told.contains(&call.connection.id);
        let waiting = (!is_told).then(|| Arc::downgrade(&waits));
        if let Some(span) = &span {
            span.note(&call.connection);
        }
        let answer = tokio::spawn(trace::inside(span.clone(), serving.request(call, owner, expires, waiting))).await;
        drop(waits);
        let answer =
            answer.unwrap_or_else(|error| Err(Status::internal(format!("the request was not finished: {error}"))));
        if let Some(span) = span {
            span.end(&answer);
        }
        answer.map(Response::new)
    }

    async fn close(&self, request: Request<Connection>) -> Result<Response<()>, Status> {
        let incoming = self.0.enter(&request)?;
        let span = CallSpan::served(trace::CLOSE, request.metadata());
        let mut connection = request.into_inner();
        check_connection(&connection)?;
        let place = Place::enter(&mut connection, &self.0.name)?;
        if let Some(span) = &span {
            span.note(&connection);
        }
        let serving = Arc::clone(&self.0);
        let answer = tokio::spawn(trace::inside(span.clone(), serving.close(connection, place, incoming))).await;
        let answer =
            answer.unwrap_or_else(|error| Err(Status::internal(format!("the close was not finished: {error}"))));
        if let Some(span) = span {
            span.end(&answer);
        }
        answer.map(Response::new)
    }
}

impl<H: Handler> Serving<H> {
    /// Who calls.
    fn enter<T>(&self, request: &Request<T>) -> Result<Incoming, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no certificate"))?.clone();
        let theirs = Token::from_headers(request.metadata(), peer.certificate());
        let theirs = theirs.map_err(|error| Status::permission_denied(format!("{DENIED}: {error}")))?;
        let now = SystemTime::now();
        let ours = Token::sign(peer.svid(), peer.certificate().id(), self.token_lifetime, now);
        Ok(Incoming { peer, theirs, ours, now, limit: limit(request.metadata()) })
    }

    /// Whose a connection is, as far as the tokens before us say it.
    fn owner(&self, connection: &Connection, place: Place) -> Result<Owner, Status> {
        Ok(Owner::of(&connection.path.clone().unwrap_or_default(), place, &self.relays)?)
    }

    /// `waits` is there as long as the caller is; none: the caller knows the id that the connection has here, and asks for it again.
    async fn request(
        self: Arc<Self>,
        mut call: Call,
        owner: Owner,
        expires: SystemTime,
        waits: Option<Weak<()>>,
    ) -> Result<Connection, Status> {
        let mut held = self.table.hold(&call.connection.id, &owner).await?;
        // Time to close it is kept.
        let closes = expires.checked_sub(call.limit).unwrap_or(expires);
        let closed_before = held.entry().closes;
        // Whoever was about to close it because nobody refreshed it comes too late.
        held.stop_timer();
        if call.connection.state() == State::ReselectRequested {
            self.close_held(&mut held, call.peer.clone(), call.limit).await;
            call.connection.set_state(State::Up);
        }
        call.known.clone_from(&held.entry().known);
        let is_first = call.known.is_none();
        let (_answering, answered) = Answered::new();
        call.answered = answered;
        let (place, id, peer) = (call.place, call.connection.id.clone(), call.peer.clone());
        let mut answer = match self.made(call).await {
            Ok(answer) => answer,
            Err(status) => {
                self.monitor.down(&id);
                // It lives no longer for it.
                self.start_timer(&mut held, closed_before.unwrap_or(closes));
                return Err(status);
            }
        };
        answer.set_state(State::Up);
        let entry = held.entry();
        entry.known = Some(Arc::new(answer.clone()));
        entry.caller = peer.map(|peer| peer.certificate().id().clone());
        if is_first && waits.is_some_and(|waits| waits.strong_count() == 0) {
            // It has not heard which id the connection has here, and so can never close it.
            tracing::info!(id, "whoever asked for the connection has gone: it is closed");
            self.close_held(&mut held, None, CLOSE_LIMIT).await;
            return Err(Status::cancelled("whoever asked for the connection has gone"));
        }
        self.start_timer(&mut held, closes);
        self.monitor.update(answer.clone());
        place.leave(&mut answer)?;
        Ok(answer)
    }

    /// What the handler makes of a call. What it begins for a new connection and does not finish as it should is closed.
    async fn made(self: &Arc<Self>, call: Call) -> Result<Connection, Status> {
        let (place, id, limit) = (call.place, call.connection.id.clone(), call.limit);
        let unfinished = call.known.is_none().then(|| call.clone());
        let serving = Arc::clone(self);
        let work = async move { serving.handler.request(call).await };
        let mut working = tokio::spawn(trace::inside(CallSpan::current(), work));
        let status = match timeout(limit + GRACE, &mut working).await {
            Ok(Ok(Err(status))) => return Err(status),
            Ok(Ok(Ok(answer))) => {
                let index = answer.path.as_ref().map(|path| path.index as usize);
                if answer.id == id && index == Some(place.own) {
                    return Ok(answer);
                }
                Status::internal("the answer has another id or index")
            }
            Ok(Err(error)) => Status::internal(format!("the request was not finished: {error}")),
            Err(_) => {
                working.abort();
                // It must not go on while what it has begun is closed.
                let _ = working.await;
                Status::deadline_exceeded(format!("{} has not made the connection within {limit:?}", self.name))
            }
        };
        if let Some(call) = unfinished {
            self.close_by_handler(call).await;
        }
        Err(status)
    }

    async fn close(self: Arc<Self>, mut asked: Connection, place: Place, incoming: Incoming) -> Result<(), Status> {
        if !self.table.knows(&asked.id) {
            self.close_unknown(asked, place, incoming).await;
            return Ok(());
        }
        // What lies further left may have run out meanwhile: whoever asked for it last may always give it back.
        let judged = incoming.check(&mut asked, place);
        let owner = self.owner(&asked, place)?;
        let Some(mut held) = self.table.find(&asked.id, Some(&owner)).await? else { return Ok(()) };
        let is_caller = held.entry().caller.as_ref() == Some(incoming.peer.certificate().id());
        let segments = asked.path.as_ref().map_or(&[][..], |path| &path.path_segments);
        if !is_caller || check_signer(segments, place.caller, incoming.peer.certificate()).is_err() {
            judged?;
        }
        self.close_held(&mut held, Some(incoming.peer), incoming.limit).await;
        Ok(())
    }

    /// What is not known is closed, whoever asks. For whoever is believed the handler has what others may still have closed as well.
    async fn close_unknown(&self, mut asked: Connection, place: Place, incoming: Incoming) {
        let owner = incoming.check(&mut asked, place).and_then(|()| self.owner(&asked, place));
        let Ok(owner) = owner else { return };
        // Nobody makes it meanwhile.
        let Ok(mut held) = self.table.hold(&asked.id, &owner).await else { return };
        let Incoming { peer, limit, .. } = incoming;
        if held.entry().known.is_some() {
            return self.close_held(&mut held, Some(peer), limit).await;
        }
        let id = asked.id.clone();
        let call = Call {
            connection: asked,
            preferences: Vec::new(),
            known: None,
            place,
            peer: Some(peer),
            limit,
            monitor: self.monitor.clone(),
            answered: Answered::default(),
        };
        tell_of_close(&id, limit, timeout(limit + GRACE, self.handler.close_unknown(call)).await);
    }

    /// Closes what is there. What the handler could not take down is gone here all the same: nobody would ask again.
    async fn close_held(&self, held: &mut Held, peer: Option<Peer>, limit: Duration) {
        held.stop_timer();
        let Some(known) = held.entry().known.take() else { return };
        let own = known.path.as_ref().map_or(0, |path| path.index as usize);
        let place = Place { own, caller: own.saturating_sub(1) };
        let connection = Connection::clone(&known);
        let call = Call {
            connection,
            preferences: Vec::new(),
            known: Some(Arc::clone(&known)),
            place,
            peer,
            limit,
            monitor: self.monitor.clone(),
            answered: Answered::default(),
        };
        self.close_by_handler(call).await;
        self.monitor.delete(&known.id);
    }

    async fn close_by_handler(&self, call: Call) {
        let (id, limit) = (call.connection.id.clone(), call.limit);
        tell_of_close(&id, limit, timeout(limit + GRACE, self.handler.close(call)).await);
    }

    /// Closes a connection when its caller's token runs out: nobody has refreshed it.
    fn start_timer(self: &Arc<Self>, held: &mut Held, closes: SystemTime) {
        let Some(id) = held.entry().known.as_ref().map(|known| known.id.clone()) else { return };
        let serving = Arc::clone(self);
        let timer = tokio::spawn(async move {
            sleep(closes.duration_since(SystemTime::now()).unwrap_or_default()).await;
            // From here on nobody may stop it half-way: it stops itself when it is not the newest any more.
            tokio::spawn(serving.time_out(id, closes));
        });
        held.entry().timer = Some(timer.abort_handle());
        held.entry().closes = Some(closes);
    }

    async fn time_out(self: Arc<Self>, id: String, closes: SystemTime) {
        let mut held = loop {
            match self.table.find(&id, None).await {
                Ok(Some(held)) => break held,
                Ok(None) => return,
                // Many calls wait for it: one of them refreshes it, or it is closed after them.
                Err(_) => sleep(TURN_RETRY).await,
            }
        };
        if held.entry().closes == Some(closes) && held.entry().timer.is_some() {
            tracing::info!(id, "nobody has refreshed the connection: it is closed");
            self.close_held(&mut held, None, CLOSE_LIMIT).await;
        }
    }
}

/// A call whose peer is known, and not yet judged.
struct Incoming {
    peer: Peer,
    theirs: Option<Token>,
    ours: Token,
    now: SystemTime,
    limit: Duration,
}

impl Incoming {
    /// Puts the tokens into the path, and judges what is there then.
    fn check(&self, connection: &mut Connection, place: Place) -> Result<(), Status> {
        place.put_tokens(connection, self.theirs.as_ref(), &self.ours);
        let path = connection.path.get_or_insert_default();
        Ok(check_caller(path, place, self.peer.certificate(), self.now)?)
    }
}

fn tell_of_close(id: &str, limit: Duration, closed: Result<Result<(), Status>, Elapsed>) {
    match closed {
        Ok(Ok(())) => {}
        Ok(Err(status)) => tracing::warn!(id, %status, "the connection was not closed cleanly"),
        Err(_) => tracing::warn!(id, ?limit, "the connection was not closed in time"),
    }
}

/// How long the close of what a call has begun may take: what is left of the call's time, and never too little.
pub fn time_to_close(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(CLOSE_MIN)
}

/// How long the caller waits.
fn limit(headers: &MetadataMap) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse_timeout);
    asked.map_or(LIMIT_DEFAULT, |asked| asked.min(LIMIT_MAX))
}

/// Up to 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_hours(count),
        "M" => Duration::from_mins(count),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

impl From<PathError> for Status {
    fn from(error: PathError) -> Self {
        Self::new(Code::InvalidArgument, error.to_string())
    }
}

/// As the Go programs wait.
const LIMIT_DEFAULT: Duration = Duration::from_secs(15);
const LIMIT_MAX: Duration = Duration::from_mins(2);
const CLOSE_LIMIT: Duration = Duration::from_secs(15);
const TURN_RETRY: Duration = Duration::from_millis(200);
/// A handler keeps to its limit by itself, and takes back what it has begun: this is for one that hangs.
const GRACE: Duration = Duration::from_secs(5);
/// Less than [`GRACE`].
const CLOSE_MIN: Duration = Duration::from_secs(4);
