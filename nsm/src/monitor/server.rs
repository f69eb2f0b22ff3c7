//! The connections of a process, shown to whoever watches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::selector::selects;
use crate::feed::{Feed, FeedError, FeedLimits, Watch};
use crate::identity::SpiffeIds;
use crate::path::SEGMENTS_MAX;
use crate::proto::connection::monitor_connection_server::{MonitorConnection, MonitorConnectionServer};
use crate::proto::connection::{Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, State};
use crate::service::CONNECTIONS_MAX;
use crate::token::Claims;
use crate::transport::Peer;

/// What a process tells of its connections: whoever made one watches it, and heals it when it is down. A watcher is told of the
/// connections whose path it is in itself, unless it is an observer.
#[derive(Clone)]
pub struct Monitor(Arc<Watched>);

struct Watched {
    connections: Mutex<BTreeMap<String, Arc<Told>>>,
    feed: Feed<Arc<Told>>,
    observers: SpiffeIds,
}

struct Told {
    kind: ConnectionEventType,
    connection: Connection,
    /// Whose tokens are in its path.
    members: Vec<String>,
    size: usize,
}

impl Default for Monitor {
    fn default() -> Self {
        let (connections, observers) = Default::default();
        Self(Arc::new(Watched { connections, feed: Feed::new(LIMITS), observers }))
    }
}

impl Monitor {
    /// For a server.
    pub fn service(&self) -> MonitorConnectionServer<Self> {
        MonitorConnectionServer::new(self.clone()).max_decoding_message_size(SELECTOR_SIZE_MAX)
    }

    /// Who may watch all connections. The tokens of others are not shown to them.
    pub fn observers(&self) -> &SpiffeIds {
        &self.0.observers
    }

    /// A connection was made or refreshed. Its id and index are those of this process.
    pub fn update(&self, connection: Connection) {
        self.0.tell(&mut self.0.lock(), connection);
    }

    /// A connection was changed by the processes behind; nothing, if it is closed by now.
    pub fn change(&self, connection: Connection) {
        let mut connections = self.0.lock();
        if connections.contains_key(&connection.id) {
            self.0.tell(&mut connections, connection);
        }
    }

    /// A connection does not work any more, or could not be refreshed.
    pub fn down(&self, id: &str) {
        let mut connections = self.0.lock();
        if let Some(mut connection) = connections.get(id).map(|told| told.connection.clone()) {
            connection.set_state(State::Down);
            self.0.tell(&mut connections, connection);
        }
    }

    /// A connection was closed.
    pub fn delete(&self, id: &str) {
        let mut connections = self.0.lock();
        let Some(told) = connections.remove(id) else { return };
        let mut connection = told.connection.clone();
        connection.set_state(State::Up);
        self.0.feed.publish(id, &Arc::new(Told::new(ConnectionEventType::Delete, connection)));
    }

    /// The connections of now, by their ids.
    pub fn connections(&self) -> Vec<Connection> {
        self.0.lock().values().map(|told| told.connection.clone()).collect()
    }

    /// What a watcher is told first, and what tells it the rest.
    fn watch(&self, selector: MonitorScopeSelector, watcher: Viewer) -> Result<(First, Watch<Arc<Told>>), FeedError> {
        let connections = self.0.lock();
        let who = watcher.id.clone();
        let wants = move |told: &Arc<Told>| watcher.may_see(told) && selects(&selector, &told.connection);
        let first = First(connections.values().filter(|told| wants(told)).cloned().collect());
        Ok((first, self.0.feed.watch(&who, [], wants)?))
    }
}

#[tonic::async_trait]
impl MonitorConnection for Monitor {
    type MonitorConnectionsStream = ReceiverStream<Result<ConnectionEvent, Status>>;

    async fn monitor_connections(
        &self,
        request: Request<MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no certificate"))?;
        let id = peer.certificate().id().to_string();
        let watcher = Viewer { is_observer: self.0.observers.contains(&id), id };
        let selector = request.into_inner();
        if selector.path_segments.len() > SEGMENTS_MAX || selector.network_services.len() > SEGMENTS_MAX {
            return Err(Status::invalid_argument(format!(
                "a selector has at most {SEGMENTS_MAX} segments and services"
            )));
        }
        let (first, watch) = self.watch(selector, watcher.clone())?;
        let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
        tokio::spawn(tell(first, watch, watcher, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Who watches.
#[derive(Clone)]
struct Viewer {
    id: String,
    is_observer: bool,
}

impl Viewer {
    fn may_see(&self, told: &Told) -> bool {
        self.is_observer || told.members.contains(&self.id)
    }

    /// An event as this one may see it: with tokens only of connections that it is part of.
    fn event<'a>(&self, kind: ConnectionEventType, told: impl IntoIterator<Item = &'a Arc<Told>>) -> ConnectionEvent {
        let shown = |told: &Arc<Told>| {
            let mut connection = told.connection.clone();
            if !told.members.contains(&self.id) {
                let segments = connection.path.iter_mut().flat_map(|path| &mut path.path_segments);
                segments.for_each(|segment| segment.token.clear());
            }
            (connection.id.clone(), connection)
        };
        ConnectionEvent { r#type: kind.into(), connections: told.into_iter().map(shown).collect() }
    }
}

/// The connections that there are when somebody begins to watch. They are no copies: one who does not read costs little.
struct First(Vec<Arc<Told>>);

impl First {
    /// In parts that fit into messages, at least one.
    fn parts(&self) -> impl Iterator<Item = &[Arc<Told>]> {
        let mut rest = Some(&self.0[..]);
        std::iter::from_fn(move || {
            let left = rest.take()?;
            let mut size = 0;
            let fits = |told: &&Arc<Told>| {
                size += told.size;
                size <= INITIAL_SIZE_MAX
            };
            let count = left.iter().take_while(fits).count().max(1).min(left.len());
            let (part, behind) = left.split_at(count);
            rest = (!behind.is_empty()).then_some(behind);
            Some(part)
        })
    }
}

/// Sends all that there is to tell, until nobody wants it.
async fn tell(
    first: First,
    watch: Watch<Arc<Told>>,
    watcher: Viewer,
    sender: mpsc::Sender<Result<ConnectionEvent, Status>>,
) {
    for part in first.parts() {
        // Made when there is room for it, and not before.
        let Ok(room) = sender.reserve().await else { return };
        room.send(Ok(watcher.event(ConnectionEventType::InitialStateTransfer, part)));
    }
    drop(first);
    loop {
        let told = tokio::select! {
            told = watch.next() => told,
            () = sender.closed() => return,
        };
        let is_last = told.is_none();
        let told = told.map(|told| watcher.event(told.kind, [&told])).ok_or_else(|| FeedError::Unread.into());
        if sender.send(told).await.is_err() || is_last {
            return;
        }
    }
}

impl Told {
    fn new(kind: ConnectionEventType, connection: Connection) -> Self {
        let segments = connection.path.iter().flat_map(|path| &path.path_segments);
        let members = segments.filter_map(|segment| Claims::parse(&segment.token).ok()).map(|claims| claims.subject);
        Self { kind, members: members.collect(), size: connection.encoded_len() + ENTRY_SIZE, connection }
    }
}

impl Watched {
    fn tell(&self, connections: &mut BTreeMap<String, Arc<Told>>, connection: Connection) {
        let told = Arc::new(Told::new(ConnectionEventType::Update, connection));
        self.feed.publish(&told.connection.id, &told);
        connections.insert(told.connection.id.clone(), told);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Told>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever is before us may be one process for all connections, and watches each by itself: one that is not watched is taken for lost.
const LIMITS: FeedLimits =
    FeedLimits { watchers: 2 * CONNECTIONS_MAX, watchers_of_one: CONNECTIONS_MAX, unread: 8 << 10 };
/// Programs in Go take messages of 4 MiB; this, and one connection more.
const INITIAL_SIZE_MAX: usize = 1 << 20;
/// What a connection takes beside itself, with its id.
const ENTRY_SIZE: usize = 600;
const EVENTS_AHEAD: usize = 8;
const SELECTOR_SIZE_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;
    use crate::identity::Identity;
    use crate::identity::test_identities::Identities;
    use crate::proto::connection::{Path, PathSegment};
    use crate::token::test_tokens::signed_as;

    /// A process whose connections are watched, by whoever is in their path.
    struct Mesh {
        monitor: Monitor,
        fwd: Identity,
        nsmgr: Identity,
        other: Identity,
    }

    impl Mesh {
        fn new() -> Self {
            let identities = Identities::new("example.org");
            let [fwd, nsmgr, other] = ["/fwd", "/nsmgr", "/other"].map(|path| identities.identity(path));
            Self { monitor: Monitor::default(), fwd, nsmgr, other }
        }

        fn connection(&self, id: &str) -> Connection {
            let token = signed_as(&self.nsmgr.svid, "spiffe://example.org/nsmgr", "spiffe://example.org/fwd");
            let before = PathSegment { name: "nsmgr".to_owned(), token, ..PathSegment::default() };
            let segment = PathSegment { name: "fwd".to_owned(), id: id.to_owned(), ..PathSegment::default() };
            let path = Some(Path { index: 1, path_segments: vec![before, segment] });
            Connection { id: id.to_owned(), path, ..Connection::default() }
        }

        async fn watch_as(&self, who: &Identity, selector: MonitorScopeSelector) -> Result<Events, Status> {
            let mut request = Request::new(selector);
            request.extensions_mut().insert(Peer::seen_by(&self.fwd, who));
            self.monitor.monitor_connections(request).await.map(Response::into_inner)
        }

        async fn watch(&self, selector: MonitorScopeSelector) -> Events {
            self.watch_as(&self.nsmgr, selector).await.unwrap()
        }
    }

    fn selector(id: &str) -> MonitorScopeSelector {
        let segment = PathSegment { id: id.to_owned(), ..PathSegment::default() };
        MonitorScopeSelector { path_segments: vec![segment], network_services: Vec::new() }
    }

    type Events = ReceiverStream<Result<ConnectionEvent, Status>>;

    async fn next(events: &mut Events) -> (ConnectionEventType, Vec<(String, State)>) {
        let event = events.next().await.unwrap().unwrap();
        let connections = event.connections.iter().map(|(id, connection)| (id.clone(), connection.state())).collect();
        (event.r#type(), connections)
    }

    fn only(id: &str, state: State) -> Vec<(String, State)> {
        vec![(id.to_owned(), state)]
    }

    #[tokio::test]
    async fn a_watcher_is_told_of_what_there_is_even_if_that_is_nothing_then_of_changes() {
        let mesh = Mesh::new();
        let monitor = &mesh.monitor;
        let mut events = mesh.watch(selector("a")).await;
        assert_eq!(next(&mut events).await, (ConnectionEventType::InitialStateTransfer, Vec::new()));
        monitor.update(mesh.connection("b"));
        monitor.update(mesh.connection("a"));
        assert_eq!(next(&mut events).await, (ConnectionEventType::Update, only("a", State::Up)));
        monitor.down("a");
        assert_eq!(next(&mut events).await, (ConnectionEventType::Update, only("a", State::Down)));
        monitor.delete("a");
        assert_eq!(next(&mut events).await, (ConnectionEventType::Delete, only("a", State::Up)));
        let mut later = mesh.watch(MonitorScopeSelector::default()).await;
        assert_eq!(next(&mut later).await, (ConnectionEventType::InitialStateTransfer, only("b", State::Up)));
        assert_eq!(monitor.connections().len(), 1);
    }

    #[test]
    fn what_is_closed_is_not_changed_any_more() {
        let mesh = Mesh::new();
        mesh.monitor.update(mesh.connection("a"));
        mesh.monitor.delete("a");
        mesh.monitor.change(mesh.connection("a"));
        mesh.monitor.down("a");
        assert!(mesh.monitor.connections().is_empty());
    }

    #[tokio::test]
    async fn only_who_is_in_its_path_sees_a_connection_and_an_observer_sees_no_tokens() {
        let mesh = Mesh::new();
        mesh.monitor.update(mesh.connection("a"));
        let all = MonitorScopeSelector::default;
        let token = async |events: &mut Events| {
            let mut event = events.next().await.unwrap().unwrap();
            event.connections.remove("a").map(|found| found.path.unwrap().path_segments[0].token.clone())
        };
        let mut stranger = mesh.watch_as(&mesh.other, all()).await.unwrap();
        assert_eq!(token(&mut stranger).await, None);
        assert!(token(&mut mesh.watch(all()).await).await.is_some_and(|token| !token.is_empty()));
        mesh.monitor.observers().add("spiffe://example.org/other").unwrap();
        let mut observer = mesh.watch_as(&mesh.other, all()).await.unwrap();
        assert_eq!(token(&mut observer).await.as_deref(), Some(""));
        mesh.monitor.down("a");
        assert_eq!(token(&mut observer).await.as_deref(), Some(""));
        // Of all that, the stranger learns the first thing that is its own.
        let mut own = mesh.connection("own");
        let token = signed_as(&mesh.other.svid, "spiffe://example.org/other", "spiffe://example.org/fwd");
        own.path.as_mut().unwrap().path_segments[0].token = token;
        mesh.monitor.update(own);
        assert_eq!(next(&mut stranger).await, (ConnectionEventType::Update, only("own", State::Up)));
        let nobody = mesh.monitor.monitor_connections(Request::new(all())).await.err().unwrap();
        assert_eq!(nobody.code(), tonic::Code::Unauthenticated);
    }

    #[tokio::test]
    async fn many_connections_come_in_several_messages_none_of_which_is_too_large() {
        let mesh = Mesh::new();
        for number in 0..100 {
            let labels = [("long".to_owned(), "x".repeat(100 << 10))].into();
            mesh.monitor.update(Connection { labels, ..mesh.connection(&number.to_string()) });
        }
        let mut events = mesh.watch(MonitorScopeSelector::default()).await;
        let (mut messages, mut connections) = (0, 0);
        while connections < 100 {
            let event = events.next().await.unwrap().unwrap();
            assert_eq!(event.r#type(), ConnectionEventType::InitialStateTransfer);
            assert!(event.encoded_len() <= INITIAL_SIZE_MAX, "{}", event.encoded_len());
            (messages, connections) = (messages + 1, connections + event.connections.len());
        }
        assert_eq!((messages, connections), (10, 100));
    }

    #[tokio::test]
    async fn a_watcher_that_never_reads_costs_no_copies_and_no_more_than_there_are_connections() {
        let mesh = Mesh::new();
        for number in 0..100 {
            mesh.monitor.update(Connection {
                labels: [("long".to_owned(), "x".repeat(100 << 10))].into(),
                ..mesh.connection(&number.to_string())
            });
        }
        let watcher = Viewer { id: "spiffe://example.org/nsmgr".to_owned(), is_observer: false };
        let (first, _watch) = mesh.monitor.watch(MonitorScopeSelector::default(), watcher).unwrap();
        assert!(first.0.iter().all(|told| Arc::strong_count(told) == 2), "they are shared");
        let mut events = mesh.watch(selector("a")).await;
        let changed = mesh.connection("a");
        for _ in 0..10_000 {
            mesh.monitor.update(changed.clone());
        }
        mesh.monitor.down("a");
        // All the changes that it has not read are one.
        let mut seen = Vec::new();
        while seen.last().is_none_or(|(_, connections): &(_, Vec<_>)| *connections != only("a", State::Down)) {
            seen.push(next(&mut events).await);
        }
        assert!(seen.len() <= EVENTS_AHEAD + 3, "{}", seen.len());
    }

    #[tokio::test]
    async fn a_watcher_that_leaves_is_forgotten_and_one_that_reads_nothing_of_very_much_is_told() {
        let mesh = Mesh::new();
        let gone = mesh.watch(MonitorScopeSelector::default()).await;
        drop(gone);
        let mut events = mesh.watch(MonitorScopeSelector::default()).await;
        for number in 0..LIMITS.unread + EVENTS_AHEAD + 3 {
            mesh.monitor.update(mesh.connection(&number.to_string()));
        }
        let last = loop {
            if let Err(status) = events.next().await.unwrap() {
                break status;
            }
        };
        assert_eq!(last.code(), tonic::Code::ResourceExhausted);
        assert_eq!(mesh.monitor.0.feed.watcher_count(), 0);
    }

    #[tokio::test]
    async fn one_watcher_leaves_room_for_others() {
        let mesh = Mesh::new();
        let mut open = Vec::new();
        let refused = loop {
            match mesh.watch_as(&mesh.other, selector("a")).await {
                Ok(events) => open.push(events),
                Err(status) => break status,
            }
        };
        assert_eq!((refused.code(), open.len()), (tonic::Code::ResourceExhausted, LIMITS.watchers_of_one));
        mesh.watch(selector("a")).await;
    }

    #[tokio::test]
    async fn a_selector_without_bound_is_refused() {
        let mesh = Mesh::new();
        let segments = vec![PathSegment::default(); SEGMENTS_MAX + 1];
        let selector = MonitorScopeSelector { path_segments: segments, network_services: Vec::new() };
        let refused = mesh.watch_as(&mesh.nsmgr, selector).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
