//! A client of the mesh: it asks for a connection, refreshes it, and heals it.

mod lifetime;
mod liveness;
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
pub use liveness::{Liveness, Ping};
pub(crate) use wanted::TOKEN;
pub use wanted::Wanted;

/// Keeps one connection, through a manager, until it is told to stop.
pub struct Client {
    name: String,
    manager: KeptConnection,
    wanted: Wanted,
    /// What one call may take. With less than 0.8 of the tokens' lifetime left nothing lasts.
    timeout: Duration,
    liveness: Option<Box<dyn Liveness>>,
    connection: watch::Sender<Option<Arc<Connection>>>,
}

impl Client {
    /// A process of this name, which no other client of the manager has: connections are named after it.
    pub fn new(name: &str, manager: KeptConnection, wanted: Wanted, timeout: Duration) -> Self {
        let (name, connection) = (name.to_owned(), watch::Sender::new(None));
        Self { name, manager, wanted, timeout, liveness: None, connection }
    }

    /// Looks at the data path too: another connection is made when it is dead, and none as long as it is not.
    #[must_use]
    pub fn checked_by(self, liveness: impl Liveness) -> Self {
        Self { liveness: Some(Box::new(liveness)), ..self }
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
        // How often it has failed, and how often the data path was dead, one after the other.
        let (mut failures, mut deaths) = (0, 0);
        loop {
            let another = deaths > 0 || (failures >= SAME_TRIES && !self.carries_packets().await);
            match self.ask(another).await {
                Ok(next) => {
                    failures = 0;
                    if self.wait(&next).await {
                        sleep(pause_after(deaths)).await;
                        deaths = deaths.saturating_add(1);
                    } else {
                        deaths = 0;
                    }
                }
                Err(status) => {
                    tracing::warn!(name = self.name, %status, "no connection, asking again");
                    sleep(pause_after(failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Asks for the connection as it is, or for another one.
    async fn ask(&self, another: bool) -> Result<NextHop, Status> {
        let known = self.connection.borrow().clone();
        if another && known.is_some() {
            tracing::info!(name = self.name, "the connection does not heal: another one is made");
            self.close().await;
        }
        let (next, answer) = self.ask_once(known.as_deref(), another).await?;
        self.connection.send_replace(Some(Arc::new(answer)));
        Ok(next)
    }

    async fn ask_once(&self, known: Option<&Connection>, another: bool) -> Result<(NextHop, Connection), Status> {
        let mut connection = known.cloned().unwrap_or_else(|| self.wanted.connection(&self.name));
        let place = Place::enter(&mut connection, &self.name)?;
        let own = connection.path.as_mut().and_then(|path| path.path_segments.get_mut(place.own));
        if let Some(own) = own {
            own.metrics.insert("client_interface".to_owned(), self.wanted.interface());
        }
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
            if let Some(made) = error.made.clone().filter(|_| known.is_none() || another) {
                // It says no more than the error does.
                let _ = next.close(*made, self.wanted.files(), self.timeout).await;
            }
            if matches!(error.status.code(), Code::PermissionDenied | Code::DeadlineExceeded) {
                // The manager has a new certificate, perhaps, or its node is gone.
                self.manager.renew(next.connection()).await;
            }
        }
        Ok((next, asked?))
    }

    /// Returns when the connection must be refreshed, is said to be down, or the manager is gone; and whether the data path is dead.
    async fn wait(&self, next: &NextHop) -> bool {
        let Some(known) = self.connection.borrow().clone() else { return false };
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
            () = sleep(refresh_after(&known)) => false,
            () = until_bad => false,
            // What it has told last is still to be read.
            () = async { following.await; pending().await } => false,
            () = self.until_dead(&known) => true,
        }
    }

    async fn until_dead(&self, known: &Connection) {
        let Some(liveness) = &self.liveness else { return pending().await };
        loop {
            sleep(LIVENESS_PAUSE).await;
            if !liveness.is_alive(known).await {
                return;
            }
        }
    }

    /// Whether it is known to.
    async fn carries_packets(&self) -> bool {
        let known = self.connection.borrow().clone();
        match (&self.liveness, known) {
            (Some(liveness), Some(known)) => liveness.is_alive(&known).await,
            _ => false,
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

/// Before the next try: a little longer each time.
fn pause_after(failures: u32) -> Duration {
    RETRY_MAX.min(RETRY_MIN * 2u32.saturating_pow(failures))
}

/// So often the same connection is asked for before another one is.
const SAME_TRIES: u32 = 6;
const LIVENESS_PAUSE: Duration = Duration::from_millis(200);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
