//! The connections of a process, shown to whoever watches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::selector::selects;
use crate::feed::{Feed, FeedError, FeedLimits, Watch};
use crate::path::SEGMENTS_MAX;
use crate::proto::connection::monitor_connection_server::{MonitorConnection, MonitorConnectionServer};
use crate::proto::connection::{Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, State};

/// What a process tells of its connections: whoever made one watches it, and heals it when it is down.
#[derive(Clone)]
pub struct Monitor(Arc<Watched>);

struct Watched {
    connections: Mutex<BTreeMap<String, Arc<Told>>>,
    feed: Feed<Arc<Told>>,
}

struct Told {
    kind: ConnectionEventType,
    connection: Connection,
}

impl Default for Monitor {
    fn default() -> Self {
        Self(Arc::new(Watched { connections: Mutex::default(), feed: Feed::new(LIMITS) }))
    }
}

impl Monitor {
    /// For a server.
    pub fn service(&self) -> MonitorConnectionServer<Self> {
        MonitorConnectionServer::new(self.clone()).max_decoding_message_size(SELECTOR_SIZE_MAX)
    }

    /// A connection was made, refreshed, or has changed. Its id and index are those of this process.
    pub fn update(&self, connection: Connection) {
        let told = Arc::new(Told { kind: ConnectionEventType::Update, connection });
        let mut connections = self.0.lock();
        self.0.feed.publish(&told.connection.id, &told);
        connections.insert(told.connection.id.clone(), told);
    }

    /// A connection does not work any more, or could not be refreshed.
    pub fn down(&self, id: &str) {
        let known = self.0.lock().get(id).map(|told| told.connection.clone());
        if let Some(mut connection) = known {
            connection.set_state(State::Down);
            self.update(connection);
        }
    }

    /// A connection was closed.
    pub fn delete(&self, id: &str) {
        let mut connections = self.0.lock();
        let Some(told) = connections.remove(id) else { return };
        let mut connection = told.connection.clone();
        connection.set_state(State::Up);
        self.0.feed.publish(id, &Arc::new(Told { kind: ConnectionEventType::Delete, connection }));
    }

    /// The connections of now, by their ids.
    pub fn connections(&self) -> Vec<Connection> {
        self.0.lock().values().map(|told| told.connection.clone()).collect()
    }

    /// What a watcher is told first, and what tells it the rest.
    fn watch(&self, selector: MonitorScopeSelector) -> Result<(Vec<ConnectionEvent>, Watch<Arc<Told>>), FeedError> {
        let connections = self.0.lock();
        let selected: Vec<_> = connections.values().filter(|told| selects(&selector, &told.connection)).collect();
        let mut first: Vec<_> = selected
            .chunks(INITIAL_MAX)
            .map(|part| event(ConnectionEventType::InitialStateTransfer, part.iter().map(|told| &told.connection)))
            .collect();
        if first.is_empty() {
            first.push(event(ConnectionEventType::InitialStateTransfer, []));
        }
        let watch = self.0.feed.watch([], move |told| selects(&selector, &told.connection))?;
        Ok((first, watch))
    }
}

#[tonic::async_trait]
impl MonitorConnection for Monitor {
    type MonitorConnectionsStream = ReceiverStream<Result<ConnectionEvent, Status>>;

    async fn monitor_connections(
        &self,
        request: Request<MonitorScopeSelector>,
    ) -> Result<Response<Self::MonitorConnectionsStream>, Status> {
        let selector = request.into_inner();
        if selector.path_segments.len() > SEGMENTS_MAX || selector.network_services.len() > SEGMENTS_MAX {
            return Err(Status::invalid_argument(format!(
                "a selector has at most {SEGMENTS_MAX} segments and services"
            )));
        }
        let (first, watch) = self.watch(selector)?;
        let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
        tokio::spawn(tell(first, watch, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends all that there is to tell, until nobody wants it.
async fn tell(
    first: Vec<ConnectionEvent>,
    watch: Watch<Arc<Told>>,
    sender: mpsc::Sender<Result<ConnectionEvent, Status>>,
) {
    for event in first {
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
    loop {
        let told = tokio::select! {
            told = watch.next() => told,
            () = sender.closed() => return,
        };
        let is_last = told.is_none();
        let told = told.map(|told| event(told.kind, [&told.connection])).ok_or_else(|| FeedError::Unread.into());
        if sender.send(told).await.is_err() || is_last {
            return;
        }
    }
}

fn event<'a>(kind: ConnectionEventType, connections: impl IntoIterator<Item = &'a Connection>) -> ConnectionEvent {
    let by_id = connections.into_iter().map(|connection| (connection.id.clone(), connection.clone()));
    ConnectionEvent { r#type: kind.into(), connections: by_id.collect() }
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Told>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A manager watches each of its connections by itself.
const LIMITS: FeedLimits = FeedLimits { watchers_max: 8 << 10, unread_max: 8 << 10 };
/// Programs in Go take messages of 4 MiB, and a connection has some 4 KiB.
const INITIAL_MAX: usize = 512;
const EVENTS_AHEAD: usize = 8;
const SELECTOR_SIZE_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;
    use crate::proto::connection::{Path, PathSegment};

    fn connection(id: &str) -> Connection {
        let segment = PathSegment { name: "fwd".to_owned(), id: id.to_owned(), ..PathSegment::default() };
        let path = Some(Path { index: 0, path_segments: vec![segment] });
        Connection { id: id.to_owned(), path, ..Connection::default() }
    }

    fn selector(id: &str) -> MonitorScopeSelector {
        let segment = PathSegment { id: id.to_owned(), ..PathSegment::default() };
        MonitorScopeSelector { path_segments: vec![segment], network_services: Vec::new() }
    }

    type Events = ReceiverStream<Result<ConnectionEvent, Status>>;

    async fn watch(monitor: &Monitor, selector: MonitorScopeSelector) -> Events {
        monitor.monitor_connections(Request::new(selector)).await.unwrap().into_inner()
    }

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
        let monitor = Monitor::default();
        let mut events = watch(&monitor, selector("a")).await;
        assert_eq!(next(&mut events).await, (ConnectionEventType::InitialStateTransfer, Vec::new()));
        monitor.update(connection("b"));
        monitor.update(connection("a"));
        assert_eq!(next(&mut events).await, (ConnectionEventType::Update, only("a", State::Up)));
        monitor.down("a");
        assert_eq!(next(&mut events).await, (ConnectionEventType::Update, only("a", State::Down)));
        monitor.delete("a");
        assert_eq!(next(&mut events).await, (ConnectionEventType::Delete, only("a", State::Up)));
        let mut later = watch(&monitor, MonitorScopeSelector::default()).await;
        assert_eq!(next(&mut later).await, (ConnectionEventType::InitialStateTransfer, only("b", State::Up)));
        assert_eq!(monitor.connections().len(), 1);
    }

    #[tokio::test]
    async fn many_connections_come_in_several_messages() {
        let monitor = Monitor::default();
        for number in 0..=INITIAL_MAX {
            monitor.update(connection(&number.to_string()));
        }
        let mut events = watch(&monitor, MonitorScopeSelector::default()).await;
        let [first, second] = [next(&mut events).await, next(&mut events).await];
        assert_eq!((first.0, first.1.len()), (ConnectionEventType::InitialStateTransfer, INITIAL_MAX));
        assert_eq!((second.0, second.1.len()), (ConnectionEventType::InitialStateTransfer, 1));
    }

    #[tokio::test]
    async fn a_watcher_that_never_reads_costs_no_more_than_there_are_connections() {
        let monitor = Monitor::default();
        let mut events = watch(&monitor, MonitorScopeSelector::default()).await;
        for _ in 0..100_000 {
            monitor.update(connection("a"));
        }
        monitor.down("a");
        // All the changes that it has not read are one.
        let mut seen = Vec::new();
        while seen.last().is_none_or(|(_, connections): &(_, Vec<_>)| *connections != only("a", State::Down)) {
            seen.push(next(&mut events).await);
        }
        assert!(seen.len() <= EVENTS_AHEAD + 3, "{}", seen.len());
    }

    #[tokio::test]
    async fn a_watcher_that_leaves_is_forgotten_and_one_that_reads_nothing_of_very_much_is_told() {
        let monitor = Monitor::default();
        let gone = watch(&monitor, MonitorScopeSelector::default()).await;
        drop(gone);
        let mut events = watch(&monitor, MonitorScopeSelector::default()).await;
        for number in 0..LIMITS.unread_max + EVENTS_AHEAD + 3 {
            monitor.update(connection(&number.to_string()));
        }
        let last = loop {
            if let Err(status) = events.next().await.unwrap() {
                break status;
            }
        };
        assert_eq!(last.code(), tonic::Code::ResourceExhausted);
        assert_eq!(monitor.0.feed.watcher_count(), 0);
    }

    #[tokio::test]
    async fn a_selector_without_bound_is_refused() {
        let segments = vec![PathSegment::default(); SEGMENTS_MAX + 1];
        let selector = MonitorScopeSelector { path_segments: segments, network_services: Vec::new() };
        let refused = Monitor::default().monitor_connections(Request::new(selector)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
