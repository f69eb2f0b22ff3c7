//! A process that serves connections, and callers good and bad. No sockets: what a connection shows is put beside each call.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::{Code, Request, Status};

use super::{Call, ConnectionServer, Handler};
use crate::identity::Identity;
use crate::identity::test_identities::Identities;
use crate::proto::connection::{Connection, Mechanism, Path, PathSegment, State};
use crate::proto::networkservice::NetworkServiceRequest;
use crate::proto::networkservice::network_service_server::NetworkService;
use crate::token::Token;
use crate::token::test_tokens::{put, signed_as};
use crate::transport::Peer;

const DEADLINE: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_mins(10);

/// Writes down what it is asked for, and does what the labels say.
#[derive(Clone, Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<String>>>,
    closed: Arc<Notify>,
    go_on: Arc<Notify>,
}

#[tonic::async_trait]
impl Handler for Recorder {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        let mut connection = call.connection;
        let kind = if call.known.is_some() { "refresh" } else { "request" };
        self.seen.lock().unwrap().push(kind.to_owned());
        match connection.labels.get("do").map(String::as_str) {
            Some("fail") => return Err(Status::failed_precondition("no device")),
            Some("wait") => self.go_on.notified().await,
            Some("other") => connection.id = "other".to_owned(),
            Some("panic") => panic!("as asked for"),
            Some("hang") => std::future::pending().await,
            _ => {}
        }
        connection.mechanism = call.preferences.first().cloned();
        Ok(connection)
    }

    async fn close(&self, _: Call) -> Result<(), Status> {
        self.seen.lock().unwrap().push("close".to_owned());
        self.closed.notify_one();
        Err(Status::unavailable("what does not work does not keep the rest from being closed"))
    }

    async fn close_unknown(&self, call: Call) -> Result<(), Status> {
        assert_eq!(call.connection.path.unwrap().index as usize, call.place.own);
        self.seen.lock().unwrap().push("close unknown".to_owned());
        Ok(())
    }
}

/// nsmgr serves, nsc calls; somebody else is there too.
struct Mesh {
    server: ConnectionServer<Recorder>,
    recorder: Recorder,
    nsmgr: Identity,
    nsc: Identity,
    other: Identity,
}

impl Mesh {
    fn new() -> Self {
        let identities = Identities::new("example.org");
        let [nsmgr, nsc, other] = ["/nsmgr", "/nsc", "/other"].map(|path| identities.identity(path));
        let recorder = Recorder::default();
        Self { server: ConnectionServer::new("nsmgr", LIFETIME, recorder.clone()), recorder, nsmgr, nsc, other }
    }

    /// A call of somebody, with a good token.
    fn by<T>(&self, caller: &Identity, message: T) -> Request<T> {
        let token = Token::sign(&caller.svid, self.nsmgr.svid.certificate().id(), LIFETIME, SystemTime::now());
        self.with_token(caller, message, &token)
    }

    fn with_token<T>(&self, caller: &Identity, message: T, token: &Token) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(Peer::seen_by(&self.nsmgr, caller));
        put(request.metadata_mut(), token);
        request
    }

    async fn request(&self, connection: Connection) -> Result<Connection, Status> {
        let request = self.by(&self.nsc, asking(connection));
        timeout(DEADLINE, self.server.request(request)).await.expect("an answer").map(tonic::Response::into_inner)
    }

    async fn close(&self, caller: &Identity, connection: Connection) -> Result<(), Status> {
        let request = self.by(caller, connection);
        timeout(DEADLINE, self.server.close(request)).await.expect("an answer").map(tonic::Response::into_inner)
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.recorder.seen.lock().unwrap())
    }

    fn states(&self) -> Vec<State> {
        self.server.monitor().connections().iter().map(Connection::state).collect()
    }
}

/// As the client sends it first.
fn first() -> Connection {
    let segment = PathSegment { name: "nsc".to_owned(), id: "n".to_owned(), ..PathSegment::default() };
    Connection {
        id: "n".to_owned(),
        path: Some(Path { index: 0, path_segments: vec![segment] }),
        ..Connection::default()
    }
}

fn doing(what: &str, mut connection: Connection) -> Connection {
    connection.labels.insert("do".to_owned(), what.to_owned());
    connection
}

fn asking(connection: Connection) -> NetworkServiceRequest {
    let mechanism = Mechanism { cls: "LOCAL".to_owned(), r#type: "KERNEL".to_owned(), ..Mechanism::default() };
    NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![mechanism] }
}

#[tokio::test]
async fn a_connection_is_made_refreshed_shown_and_closed() {
    let mesh = Mesh::new();
    let answer = mesh.request(first()).await.unwrap();
    let path = answer.path.as_ref().unwrap();
    assert_eq!((answer.id.as_str(), path.index, path.path_segments.len()), ("n", 0, 2));
    assert_eq!(answer.mechanism.as_ref().unwrap().r#type, "KERNEL");
    let shown = mesh.server.monitor().connections();
    assert_eq!((&shown[0].id, shown[0].path.as_ref().unwrap().index), (&path.path_segments[1].id, 1));
    let again = mesh.request(answer.clone()).await.unwrap();
    assert_eq!(again.path.as_ref().unwrap().path_segments[1].id, path.path_segments[1].id);
    mesh.close(&mesh.nsc, again.clone()).await.unwrap();
    mesh.close(&mesh.nsc, again).await.unwrap();
    assert_eq!(mesh.seen(), ["request", "refresh", "close", "close unknown"], "the second close is of nothing here");
    assert!(mesh.states().is_empty());
}

#[tokio::test]
async fn a_request_that_fails_leaves_nothing_and_a_refresh_that_fails_what_was_there() {
    let mesh = Mesh::new();
    assert_eq!(mesh.request(doing("fail", first())).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(mesh.request(doing("other", first())).await.unwrap_err().code(), Code::Internal);
    assert!(mesh.states().is_empty());
    let answer = mesh.request(first()).await.unwrap();
    assert_eq!(mesh.request(doing("fail", answer.clone())).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(mesh.states(), [State::Down]);
    mesh.request(answer).await.unwrap();
    assert_eq!(mesh.states(), [State::Up]);
    assert_eq!(
        mesh.seen(),
        ["request", "request", "close", "request", "refresh", "refresh"],
        "what is unsure is closed"
    );
}

#[tokio::test]
async fn what_a_handler_has_begun_and_not_finished_is_closed() {
    let mesh = Mesh::new();
    assert_eq!(mesh.request(doing("panic", first())).await.unwrap_err().code(), Code::Internal);
    let mut request = mesh.by(&mesh.nsc, asking(doing("hang", first())));
    request.metadata_mut().insert("grpc-timeout", "1m".parse().unwrap());
    let late = timeout(DEADLINE, mesh.server.request(request)).await.expect("an answer").unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(mesh.seen(), ["request", "close", "request", "close"]);
    assert!(mesh.states().is_empty());
}

#[tokio::test]
async fn a_refresh_that_is_not_finished_does_not_make_a_connection_live_for_ever() {
    let mesh = Mesh::new();
    let lifetime = Duration::from_secs(4);
    let with_limit = |connection| {
        let mut request = mesh.by(&mesh.nsc, asking(connection));
        let own = mesh.nsmgr.svid.certificate().id();
        put(request.metadata_mut(), &Token::sign(&mesh.nsc.svid, own, lifetime, SystemTime::now()));
        request.metadata_mut().insert("grpc-timeout", "1S".parse().unwrap());
        request
    };
    let answer = mesh.server.request(with_limit(first())).await.unwrap().into_inner();
    let failed = mesh.server.request(with_limit(doing("panic", answer))).await.unwrap_err();
    assert_eq!(failed.code(), Code::Internal);
    assert_eq!(mesh.states(), [State::Down]);
    timeout(DEADLINE, mesh.recorder.closed.notified()).await.expect("a close");
    assert_eq!(mesh.seen(), ["request", "refresh", "close"]);
}

#[tokio::test]
async fn a_time_that_is_long_over_is_no_fault_of_the_connection() {
    let mesh = Mesh::new();
    let mut request = mesh.by(&mesh.nsc, asking(first()));
    let earliest = "-292277022657-01-27T08:30:00Z".parse().unwrap();
    request.metadata_mut().insert("nsm-client-token-expires", earliest);
    // It is closed at once, or refused; nothing of it stays.
    let answer = timeout(DEADLINE, mesh.server.request(request)).await.expect("an answer");
    if answer.is_ok() {
        timeout(DEADLINE, mesh.recorder.closed.notified()).await.expect("a close");
    }
    timeout(DEADLINE, async {
        while !mesh.states().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is shown no more");
}

#[tokio::test]
async fn a_new_choice_closes_what_was_there() {
    let mesh = Mesh::new();
    let mut answer = mesh.request(first()).await.unwrap();
    answer.set_state(State::ReselectRequested);
    assert_eq!(mesh.request(answer).await.unwrap().state(), State::Up);
    assert_eq!(mesh.seen(), ["request", "close", "request"]);
}

#[tokio::test]
async fn what_nobody_refreshes_is_closed() {
    let mesh = Mesh::new();
    let mut request = mesh.by(&mesh.nsc, asking(first()));
    // The token's time, less the time that the call has: nothing is left.
    let token =
        Token::sign(&mesh.nsc.svid, mesh.nsmgr.svid.certificate().id(), Duration::from_secs(2), SystemTime::now());
    put(request.metadata_mut(), &token);
    request.metadata_mut().insert("grpc-timeout", "2S".parse().unwrap());
    mesh.server.request(request).await.unwrap();
    timeout(DEADLINE, mesh.recorder.closed.notified()).await.expect("a close");
    assert_eq!(mesh.seen(), ["request", "close"]);
    timeout(DEADLINE, async {
        while !mesh.states().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is shown no more");
}

#[tokio::test]
async fn a_request_goes_on_when_its_caller_goes_and_the_next_one_waits() {
    let mesh = Mesh::new();
    let answer = mesh.request(first()).await.unwrap();
    let waiting = mesh.server.request(mesh.by(&mesh.nsc, asking(doing("wait", answer.clone()))));
    let gone = timeout(Duration::from_millis(10), waiting).await;
    assert!(gone.is_err(), "the caller has gone");
    let (next, ()) = tokio::join!(mesh.request(answer), async { mesh.recorder.go_on.notify_one() });
    next.unwrap();
    assert_eq!(mesh.seen(), ["request", "refresh", "refresh"]);
    assert_eq!(mesh.states(), [State::Up]);
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_closed_when_it_is_made_unless_its_id_is_known() {
    let mesh = Mesh::new();
    let go = async |mesh: &Mesh, connection: Connection| {
        let waiting = mesh.server.request(mesh.by(&mesh.nsc, asking(doing("wait", connection))));
        let gone = timeout(Duration::from_millis(10), waiting).await;
        assert!(gone.is_err(), "the caller has gone");
        mesh.recorder.go_on.notify_one();
    };
    go(&mesh, first()).await;
    timeout(DEADLINE, mesh.recorder.closed.notified()).await.expect("a close");
    assert_eq!(mesh.seen(), ["request", "close"]);
    assert!(mesh.states().is_empty());
    // Who comes in our place has forgotten a connection, but its client has not: it asks again.
    let answer = mesh.request(first()).await.unwrap();
    let forgetful = Mesh { server: ConnectionServer::new("nsmgr", LIFETIME, mesh.recorder.clone()), ..mesh };
    go(&forgetful, answer.clone()).await;
    let made = async {
        while forgetful.states().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, made).await.expect("it stays");
    forgetful.request(answer).await.unwrap();
    assert_eq!(forgetful.seen(), ["request", "request", "refresh"]);
}

#[tokio::test]
async fn callers_that_are_not_believed_are_refused_and_leave_nothing() {
    let mesh = Mesh::new();
    let own = mesh.nsmgr.svid.certificate().id();
    let now = SystemTime::now();
    let signed = |by: &Identity, lifetime| Token::sign(&by.svid, own, lifetime, now);
    let foreign =
        Token { text: signed_as(&mesh.nsc.svid, "spiffe://example.org/other", own.as_str()), expires: now + LIFETIME };
    let elsewhere = Token::sign(&mesh.nsc.svid, mesh.other.svid.certificate().id(), LIFETIME, now);
    for (what, token) in [
        ("run out", signed(&mesh.nsc, Duration::ZERO)),
        ("another key", signed(&mesh.other, LIFETIME)),
        ("another name", foreign),
        ("for another", elsewhere),
        ("none", Token { text: "x.y.z".to_owned(), expires: now + LIFETIME }),
    ] {
        let refused = mesh.server.request(mesh.with_token(&mesh.nsc, asking(first()), &token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{what}: {refused}");
        assert!(refused.message().starts_with("no sufficient privileges"), "{refused}");
    }
    let mut without = Request::new(asking(first()));
    without.extensions_mut().insert(Peer::seen_by(&mesh.nsmgr, &mesh.nsc));
    assert_eq!(mesh.server.request(without).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(mesh.request(Connection::default()).await.unwrap_err().code(), Code::PermissionDenied, "an empty path");
    assert!(mesh.seen().is_empty() && mesh.states().is_empty());
}

#[tokio::test]
async fn a_close_of_what_is_not_known_is_ok_and_goes_on_only_for_whoever_is_believed() {
    let mesh = Mesh::new();
    let mut made = first();
    made.path.as_mut().unwrap().path_segments.push(PathSegment {
        name: "nsmgr".to_owned(),
        id: "m".to_owned(),
        ..PathSegment::default()
    });
    mesh.close(&mesh.nsc, made.clone()).await.unwrap();
    assert_eq!(mesh.seen(), ["close unknown"]);
    let elsewhere = Token::sign(&mesh.nsc.svid, mesh.other.svid.certificate().id(), LIFETIME, SystemTime::now());
    mesh.server.close(mesh.with_token(&mesh.nsc, made, &elsewhere)).await.unwrap();
    assert!(mesh.seen().is_empty() && mesh.states().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let mesh = Mesh::new();
    let mut index = first();
    index.path.as_mut().unwrap().index = 5;
    let mut id = first();
    id.id = "x".to_owned();
    let mut long = first();
    long.path.as_mut().unwrap().path_segments.resize(65, PathSegment::default());
    let mut labels = first();
    labels.labels = (0..1000).map(|at| (at.to_string(), "x".repeat(100))).collect();
    for connection in [index, id, long, labels] {
        assert_eq!(mesh.request(connection).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert!(mesh.seen().is_empty());
}

#[tokio::test]
async fn a_connection_is_its_clients() {
    let mesh = Mesh::new();
    let answer = mesh.request(first()).await.unwrap();
    // Somebody else has learned its ids, from a monitor say.
    let stolen = || answer.clone();
    let own = mesh.server.request(mesh.by(&mesh.other, asking(stolen()))).await.unwrap().into_inner();
    assert_ne!(own_id(&own), own_id(&answer), "it has one of its own");
    assert_eq!(mesh.close(&mesh.other, stolen()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(mesh.seen(), ["request", "request"]);
    mesh.close(&mesh.other, own).await.unwrap();
    assert_eq!(mesh.seen(), ["close"]);
    assert_eq!(mesh.states(), [State::Up]);
    mesh.close(&mesh.nsc, answer).await.unwrap();
}

/// Of the manager, in a connection that its client has asked for.
fn own_id(answer: &Connection) -> String {
    answer.path.as_ref().unwrap().path_segments[1].id.clone()
}

/// Somebody in the path before us, with a token for the next one.
fn segment_of(name: &str, id: &str, by: &Identity, subject: &str, audience: &str) -> PathSegment {
    let [subject, audience] = [subject, audience].map(|name| format!("spiffe://example.org/{name}"));
    let token = signed_as(&by.svid, &subject, &audience);
    PathSegment { name: name.to_owned(), id: id.to_owned(), token, ..PathSegment::default() }
}

/// A connection that `caller` says has come to it from nsc: to us it is what nsc has made.
fn said_to_be_of_nsc(answer: &Connection, caller: &str, by: &Identity) -> Connection {
    let own = answer.path.as_ref().unwrap().path_segments[1].clone();
    let path_segments = vec![
        segment_of("nsc", "n", by, "nsc", caller),
        PathSegment { name: caller.to_owned(), id: "x".to_owned(), ..PathSegment::default() },
        own,
    ];
    Connection { id: "x".to_owned(), path: Some(Path { index: 1, path_segments }), ..answer.clone() }
}

#[tokio::test]
async fn nobody_takes_a_connection_over_by_saying_that_it_came_from_its_client() {
    let mesh = Mesh::new();
    let answer = mesh.request(first()).await.unwrap();
    let forged = said_to_be_of_nsc(&answer, "other", &mesh.other);
    let mut reselected = forged.clone();
    reselected.set_state(State::ReselectRequested);
    for asked in [forged.clone(), reselected] {
        let own = mesh.server.request(mesh.by(&mesh.other, asking(asked))).await.unwrap().into_inner();
        assert_ne!(own.path.unwrap().path_segments[2].id, own_id(&answer), "it has one of its own");
    }
    assert_eq!(mesh.close(&mesh.other, forged).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(mesh.seen(), ["request", "request", "request"], "nothing was refreshed or closed");
    assert!(mesh.server.monitor().connections().iter().any(|shown| shown.id == own_id(&answer)));
}

#[tokio::test]
async fn who_may_speak_for_others_goes_on_with_their_connections_and_with_no_others() {
    let mesh = Mesh::new();
    mesh.server.relays().add("spiffe://example.org/other").unwrap();
    let answer = mesh.request(first()).await.unwrap();
    // A forwarder has come between, say.
    let asked = said_to_be_of_nsc(&answer, "other", &mesh.other);
    mesh.server.request(mesh.by(&mesh.other, asking(asked.clone()))).await.unwrap();
    assert_eq!(mesh.seen(), ["request", "refresh"]);
    let mut elses = asked.clone();
    elses.path.as_mut().unwrap().path_segments[0] = segment_of("nsc", "n", &mesh.other, "third", "other");
    let other = mesh.server.request(mesh.by(&mesh.other, asking(elses))).await.unwrap().into_inner();
    assert_ne!(other.path.unwrap().path_segments[2].id, own_id(&answer));
    mesh.close(&mesh.other, asked).await.unwrap();
    assert_eq!(mesh.seen(), ["request", "close"]);
}

#[tokio::test]
async fn whoever_asked_last_may_close_with_a_stale_path_and_nobody_else() {
    let mesh = Mesh::new();
    // A manager before us, whose client's token has run out meanwhile.
    let segment = |name: &str, token: String| PathSegment {
        name: name.to_owned(),
        id: name.to_owned(),
        token,
        ..PathSegment::default()
    };
    let client =
        |lifetime| Token::sign(&mesh.other.svid, mesh.nsc.svid.certificate().id(), lifetime, SystemTime::now()).text;
    let path = |lifetime| Path {
        index: 1,
        path_segments: vec![segment("client", client(lifetime)), segment("manager", String::new())],
    };
    let asked = |lifetime| Connection { id: "manager".to_owned(), path: Some(path(lifetime)), ..Connection::default() };
    let answer = mesh.request(asked(LIFETIME)).await.unwrap();
    let mut stale = answer.clone();
    stale.path.as_mut().unwrap().path_segments[0].token = client(Duration::ZERO);
    assert_eq!(mesh.close(&mesh.other, stale.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(mesh.seen(), ["request"]);
    mesh.close(&mesh.nsc, stale).await.unwrap();
    assert_eq!(mesh.seen(), ["close"]);
}
