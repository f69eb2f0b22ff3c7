//! Watching the next process of a connection.

use tonic::{Status, Streaming};

use crate::proto::connection::monitor_connection_client::MonitorConnectionClient;
use crate::proto::connection::{
    Connection, ConnectionEvent, ConnectionEventType, MonitorScopeSelector, PathSegment, State,
};
use crate::service::{MESSAGE_MAX, check_connection};
use crate::trace::{self, CallSpan};
use crate::transport::Calls;

/// A connection as it is known here, while the next process is watched.
#[derive(Clone, Debug)]
pub struct Follower {
    known: Connection,
    own: usize,
    /// The call that has made the connection.
    span: Option<CallSpan>,
}

impl Follower {
    /// Of a connection that the next process has made: id and index are ours.
    pub fn new(known: Connection) -> Self {
        let own = known.path.as_ref().map_or(0, |path| path.index as usize);
        Self { known, own, span: CallSpan::current() }
    }

    /// Watches, and tells how the connection is after each change. It returns when the next process ends the stream: the connection
    /// is down then. Drop it before the next request of the connection, and before it is closed.
    pub async fn follow(mut self, calls: Calls, mut tell: impl FnMut(Connection)) {
        let ended = match self.open(calls).await {
            Ok(events) => self.read(events, &mut tell).await,
            Err(status) => status,
        };
        tracing::debug!(id = self.known.id, status = %ended, "the next process is not watched any more");
        if let Some(down) = self.down() {
            tell(down);
        }
    }

    async fn open(&self, calls: Calls) -> Result<Streaming<ConnectionEvent>, Status> {
        let segment = self.known.path.as_ref().and_then(|path| path.path_segments.get(self.own));
        let segment = segment.ok_or_else(|| Status::internal("the connection has no segment of ours"))?;
        let wanted = PathSegment { name: segment.name.clone(), id: segment.id.clone(), ..PathSegment::default() };
        let selector = MonitorScopeSelector { path_segments: vec![wanted], network_services: Vec::new() };
        let mut client = MonitorConnectionClient::new(calls).max_decoding_message_size(MESSAGE_MAX);
        Ok(client.monitor_connections(selector).await?.into_inner())
    }

    async fn read(&mut self, mut events: Streaming<ConnectionEvent>, tell: &mut impl FnMut(Connection)) -> Status {
        loop {
            match events.message().await {
                Ok(Some(event)) => {
                    if let Some(changed) = self.translate(event) {
                        if let Some(span) = CallSpan::told(trace::MONITOR, self.span.as_ref()) {
                            span.note(&changed);
                            span.end(&Ok(()));
                        }
                        tell(changed);
                    }
                }
                Ok(None) => return Status::unavailable("the stream ended"),
                Err(status) => return status,
            }
        }
    }

    /// The connection after an event of the next process; `None`: as it was.
    pub fn translate(&mut self, event: ConnectionEvent) -> Option<Connection> {
        let kind = event.r#type();
        let theirs = event.connections.into_values().find(|theirs| self.is_ours(theirs))?;
        if kind == ConnectionEventType::Delete {
            return self.down();
        }
        if kind == ConnectionEventType::InitialStateTransfer {
            // Right after a new choice it still says that one was asked for.
            let is_news = theirs.state() != self.known.state() && theirs.state() != State::ReselectRequested;
            if !is_news {
                return None;
            }
        }
        let mut changed = self.known.clone();
        changed.state = theirs.state;
        changed.context = theirs.context;
        changed.path = theirs.path;
        if let Some(path) = &mut changed.path {
            path.index = u32::try_from(self.own).unwrap_or(u32::MAX);
        }
        if changed == self.known {
            return None;
        }
        self.known = changed.clone();
        Some(changed)
    }

    /// The connection, which does not work any more; `None`: that is known.
    fn down(&mut self) -> Option<Connection> {
        let was_down = self.known.state() == State::Down;
        self.known.set_state(State::Down);
        (!was_down).then(|| self.known.clone())
    }

    fn is_ours(&self, theirs: &Connection) -> bool {
        let Some(path) = &theirs.path else { return false };
        let index = path.index as usize;
        let known = self.known.path.as_ref().and_then(|path| path.path_segments.get(self.own));
        (index == self.own || index == self.own + 1)
            // It is kept, and told to whoever watches us.
            && check_connection(theirs).is_ok()
            && path.path_segments.get(self.own).map(|segment| &segment.id) == known.map(|segment| &segment.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::SEGMENTS_MAX;
    use crate::proto::connection::{Mechanism, Path};
    use crate::proto::connectioncontext::{ConnectionContext, IpContext, Route};

    /// As fwd knows it (own is 1), or as nse does (own is 2).
    fn connection(id: &str, index: u32) -> Connection {
        let segment =
            |name: &str, id: &str| PathSegment { name: name.to_owned(), id: id.to_owned(), ..PathSegment::default() };
        let path_segments = vec![segment("nsmgr", "a"), segment("fwd", "b"), segment("nse", "c")];
        let mechanism = Some(Mechanism { r#type: id.to_owned(), ..Mechanism::default() });
        Connection { id: id.to_owned(), mechanism, path: Some(Path { index, path_segments }), ..Connection::default() }
    }

    fn event(kind: ConnectionEventType, change: impl FnOnce(&mut Connection)) -> ConnectionEvent {
        let mut theirs = connection("c", 2);
        change(&mut theirs);
        ConnectionEvent { r#type: kind.into(), connections: [("c".to_owned(), theirs)].into() }
    }

    fn update(change: impl FnOnce(&mut Connection)) -> ConnectionEvent {
        event(ConnectionEventType::Update, change)
    }

    #[test]
    fn a_change_below_is_one_of_ours_with_our_id_index_and_mechanism() {
        let mut follower = Follower::new(connection("b", 1));
        let context = ConnectionContext { mtu: 1400, ..ConnectionContext::default() };
        let changed = follower.translate(update(|theirs| theirs.context = Some(context.clone()))).unwrap();
        assert_eq!(changed, Connection { context: Some(context.clone()), ..connection("b", 1) });
        assert_eq!(follower.translate(update(|theirs| theirs.context = Some(context))), None, "it is known");
    }

    #[test]
    fn events_of_other_connections_are_nothing() {
        let mut follower = Follower::new(connection("b", 1));
        let foreign = |theirs: &mut Connection| {
            theirs.set_state(State::Down);
            theirs.path.as_mut().unwrap().path_segments[1].id = "x".to_owned();
        };
        assert_eq!(follower.translate(update(foreign)), None);
        assert_eq!(follower.translate(update(|theirs| theirs.path = None)), None);
        let far = |theirs: &mut Connection| {
            theirs.set_state(State::Down);
            theirs.path.as_mut().unwrap().index = 0;
        };
        assert_eq!(follower.translate(update(far)), None);
        let long = |theirs: &mut Connection| {
            theirs.set_state(State::Down);
            theirs.path.as_mut().unwrap().path_segments.resize(SEGMENTS_MAX + 1, PathSegment::default());
        };
        assert_eq!(follower.translate(update(long)), None);
    }

    #[test]
    fn what_is_too_large_to_be_kept_is_no_news() {
        let mut follower = Follower::new(connection("b", 1));
        let mut with_routes = |count| {
            let src_routes = vec![Route { prefix: "10.0.0.0/8".to_owned(), ..Route::default() }; count];
            let ip_context = Some(IpContext { src_routes, ..IpContext::default() });
            let context = Some(ConnectionContext { ip_context, ..ConnectionContext::default() });
            follower.translate(update(|theirs| theirs.context = context)).is_some()
        };
        assert!(!with_routes(100_000));
        assert!(with_routes(2));
    }

    #[test]
    fn the_first_event_counts_only_if_the_state_is_another() {
        let initial = |state| {
            event(ConnectionEventType::InitialStateTransfer, |theirs| {
                theirs.set_state(state);
                theirs.context = Some(ConnectionContext::default());
            })
        };
        let mut follower = Follower::new(connection("b", 1));
        assert_eq!(follower.translate(initial(State::Up)), None);
        assert_eq!(follower.translate(initial(State::ReselectRequested)), None);
        assert_eq!(follower.translate(initial(State::Down)).unwrap().state(), State::Down);
    }

    #[test]
    fn what_is_deleted_below_is_down() {
        let mut follower = Follower::new(connection("b", 1));
        let deleted = || event(ConnectionEventType::Delete, |_| ());
        assert_eq!(follower.translate(deleted()).unwrap().state(), State::Down);
        assert_eq!(follower.translate(deleted()), None);
        let up = follower.translate(update(|_| ())).unwrap();
        assert_eq!(up.state(), State::Up);
    }
}
