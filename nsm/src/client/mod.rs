//! A client of the mesh: it asks for a connection, refreshes it, and heals it.

mod lifetime;
mod wanted;

#[cfg(test)]
mod tests;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::monitor::Follower;
use crate::path::Place;
use crate::proto::connection::{Connection, State};
use crate::proto::networkservice::NetworkServiceRequest;
use crate::service::NextHop;
use crate::transport::KeptConnection;

use lifetime::refresh_after;
pub use wanted::Wanted;

/// Keeps one connection, through a manager, until it is told to stop.
pub struct Client {
    name: String,
    manager: KeptConnection,
    wanted: Wanted,
    /// What one call may take. With less than 0.8 of the tokens' lifetime left nothing lasts.
    timeout: Duration,
    connection: watch::Sender<Option<Arc<Connection>>>,
}

impl Client {
    /// A process of this name, which no other client of the manager has: connections are named after it.
    pub fn new(name: &str, manager: KeptConnection, wanted: Wanted, timeout: Duration) -> Self {
        Self { name: name.to_owned(), manager, wanted, timeout, connection: watch::Sender::new(None) }
    }

    /// The connection as it was answered last, and each change; none: there is none now.
    pub fn connection(&self) -> watch::Receiver<Option<Arc<Connection>>> {
        self.connection.subscribe()
    }

    /// Keeps the connection until `stop`, then closes it.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.keep() => {}
            () = stop => {}
        }
        self.close().await;
    }

    async fn keep(&self) {
        let mut failures = 0;
        loop {
            match self.ask(failures).await {
                Ok(next) => {
                    failures = 0;
                    self.wait(&next).await;
                }
                Err(status) => {
                    tracing::warn!(name = self.name, %status, "no connection, asking again");
                    sleep(RETRY_MAX.min(RETRY_MIN * 2u32.saturating_pow(failures))).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Asks for the connection as it is. When that has failed several times, for another one.
    async fn ask(&self, failures: u32) -> Result<NextHop, Status> {
        let known = self.connection.borrow().clone();
        let another = failures >= SAME_TRIES;
        if another && known.is_some() {
            tracing::info!(name = self.name, failures, "the connection does not heal: another endpoint is chosen");
            self.close().await;
        }
        let (next, answer) = self.ask_once(known.as_deref(), another).await?;
        self.connection.send_replace(Some(Arc::new(answer)));
        Ok(next)
    }

    async fn ask_once(&self, known: Option<&Connection>, another: bool) -> Result<(NextHop, Connection), Status> {
        let mut connection = known.cloned().unwrap_or_else(|| self.wanted.connection(&self.name));
        Place::enter(&mut connection, &self.name)?;
        connection.set_state(State::Up);
        if another {
            connection.set_state(State::ReselectRequested);
            connection.mechanism = None;
            connection.network_service_endpoint_name.clear();
        }
        let mechanism_preferences = vec![self.wanted.mechanism()];
        let message = NetworkServiceRequest { connection: Some(connection), mechanism_preferences };
        let next = NextHop::new(self.manager.get().await?);
        let asked = next.request(message, self.wanted.files(), self.timeout).await;
        if let Err(error) = &asked {
            if let Some(made) = error.made.clone().filter(|_| known.is_none()) {
                // It says no more than the error does.
                let _ = next.close(*made, self.wanted.files(), self.timeout).await;
            }
            if error.status.code() == Code::PermissionDenied {
                // The manager has a new certificate, perhaps.
                self.manager.renew().await;
            }
        }
        Ok((next, asked?))
    }

    /// Returns when the connection must be refreshed, is said to be down, or the manager is gone.
    async fn wait(&self, next: &NextHop) {
        let Some(known) = self.connection.borrow().clone() else { return };
        let (sender, mut told) = mpsc::unbounded_channel();
        let follower = Follower::new(Connection::clone(&known));
        let following = follower.follow(next.connection().calls(), move |changed| drop(sender.send(changed)));
        let until_bad = async {
            while let Some(changed) = told.recv().await {
                let state = changed.state();
                self.connection.send_replace(Some(Arc::new(changed)));
                if matches!(state, State::Down | State::RefreshRequested) {
                    return;
                }
            }
        };
        tokio::select! {
            () = sleep(refresh_after(&known)) => {}
            () = until_bad => {}
            // What it has told last is still to be read.
            () = async { following.await; pending().await } => {}
        }
    }

    async fn close(&self) {
        let Some(known) = self.connection.send_replace(None) else { return };
        let closed = async {
            let next = NextHop::new(self.manager.get().await?);
            next.close(Connection::clone(&known), self.wanted.files(), self.timeout).await
        };
        if let Err(status) = closed.await {
            tracing::warn!(name = self.name, %status, "not closed: it runs out by itself");
        }
    }
}

/// So often the same connection is asked for before another one is.
const SAME_TRIES: u32 = 6;
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
