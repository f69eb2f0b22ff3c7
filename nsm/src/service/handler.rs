//! What a process does for the connections that it is asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;

use crate::monitor::Monitor;
use crate::path::Place;
use crate::proto::connection::{Connection, Mechanism};
use crate::transport::Peer;

/// What is behind a [`super::ConnectionServer`]: it has checked who calls, and calls it for one connection after the other.
#[tonic::async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Makes a connection, or refreshes it: the same request again must change nothing. What failed must leave nothing behind, and a
    /// refresh that failed what was there. The answer keeps our id and index.
    async fn request(&self, call: Call) -> Result<Connection, Status>;

    /// Takes down what an earlier request has made. What does not exist any more is no error.
    async fn close(&self, call: Call) -> Result<(), Status>;

    /// Is asked to close what is not known here. Whoever was started again has forgotten what the next process may still have: the path
    /// says who that is. By default there is nothing to be done.
    async fn close_unknown(&self, _call: Call) -> Result<(), Status> {
        Ok(())
    }
}

/// One request, refresh or close.
#[derive(Clone)]
pub struct Call {
    /// What is asked for: id and index are ours, the tokens are in their places. To be closed: what was answered last.
    pub connection: Connection,
    /// What the caller can have at its end, best first.
    pub preferences: Vec<Mechanism>,
    /// What was answered last; none for a new connection.
    pub known: Option<Arc<Connection>>,
    /// Where we are in the path.
    pub place: Place,
    /// Who calls; none when we close by ourselves, since nobody has refreshed it.
    pub peer: Option<Peer>,
    /// How long it may take.
    pub limit: Duration,
    /// What is told of the connection, when it changes between calls.
    pub monitor: Monitor,
    /// When the answer has been told there: what is told before is overwritten by it.
    pub answered: Answered,
}

/// Whether a call was answered. By default it was.
#[derive(Clone, Debug)]
pub struct Answered(watch::Receiver<()>);

impl Answered {
    /// One that waits until the sender is dropped.
    pub(super) fn new() -> (watch::Sender<()>, Self) {
        let (sender, receiver) = watch::channel(());
        (sender, Self(receiver))
    }

    /// Waits until it was. Whoever follows a connection begins then.
    pub async fn wait(mut self) {
        let _ = self.0.changed().await;
    }
}

impl Default for Answered {
    fn default() -> Self {
        Self::new().1
    }
}
