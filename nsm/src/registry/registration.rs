//! An endpoint that stays registered as long as its process wants.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::client::RegistryClient;
use crate::files::Inode;
use crate::proto::registry::NetworkServiceEndpoint;
use crate::transport::Connection;

/// A registration that is refreshed, and made anew when the connection to the registry is lost.
pub struct Registration {
    client: Arc<RegistryClient>,
    endpoint: NetworkServiceEndpoint,
    socket: Option<Arc<OwnedFd>>,
    is_registered: watch::Sender<bool>,
}

impl Registration {
    /// Of this endpoint, with its socket if its url names one.
    pub fn new(client: Arc<RegistryClient>, endpoint: NetworkServiceEndpoint, socket: Option<Arc<OwnedFd>>) -> Self {
        Self { client, endpoint, socket, is_registered: watch::Sender::new(false) }
    }

    /// Of an endpoint that listens at this path. Its socket is passed: it is reached wherever it is mounted.
    ///
    /// # Errors
    /// There is no socket.
    pub fn with_socket(
        client: Arc<RegistryClient>,
        endpoint: NetworkServiceEndpoint,
        path: &Path,
    ) -> std::io::Result<Self> {
        let socket = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let url = Inode::of(&socket)?.to_string();
        Ok(Self::new(client, NetworkServiceEndpoint { url, ..endpoint }, Some(Arc::new(socket))))
    }

    /// Whether it is registered now, and each change.
    pub fn is_registered(&self) -> watch::Receiver<bool> {
        self.is_registered.subscribe()
    }

    /// Keeps it registered until `stop`, then takes it out, within the time of one call.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.keep() => {}
            () = stop => {}
        }
        let gone = self.client.unregister(&self.endpoint, self.socket.as_ref());
        match timeout(self.client.timeout(), gone).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) => {
                tracing::warn!(name = self.endpoint.name, %status, "not unregistered: it runs out by itself");
            }
            Err(_) => tracing::warn!(name = self.endpoint.name, "not unregistered in time: it runs out by itself"),
        }
        self.is_registered.send_replace(false);
    }

    async fn keep(&self) {
        loop {
            match self.register_once().await {
                Ok((connection, wait)) => {
                    self.is_registered.send_replace(true);
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = connection.ended() => {}
                    }
                }
                Err(status) => {
                    self.is_registered.send_replace(false);
                    tracing::warn!(name = self.endpoint.name, %status, "not registered, trying again");
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn register_once(&self) -> Result<(Connection, Duration), tonic::Status> {
        let registered = self.client.register(&self.endpoint, self.socket.as_ref()).await?;
        let connection = self.client.connection().await?;
        let expires = registered.expiration_time.and_then(|time| SystemTime::try_from(time).ok());
        Ok((connection, refresh_after(expires, SystemTime::now(), self.client.timeout())))
    }
}

/// When to register again: a manager forgets a registration by the time of one call before it runs out.
fn refresh_after(expires: Option<SystemTime>, now: SystemTime, call: Duration) -> Duration {
    let left = expires.map_or(UNKNOWN, |expires| expires.duration_since(now).unwrap_or_default());
    (left.saturating_sub(call) * 2 / 3).clamp(RETRY, REFRESH_MAX)
}

const RETRY: Duration = Duration::from_millis(200);
/// The registry does not say when: as most do.
const UNKNOWN: Duration = Duration::from_mins(1);
const REFRESH_MAX: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_comes_before_the_manager_forgets() {
        let now = SystemTime::now();
        let after = |seconds: u64| refresh_after(Some(now + Duration::from_secs(seconds)), now, Duration::from_secs(5));
        assert_eq!(after(65), Duration::from_secs(40));
        assert_eq!(after(5), RETRY);
        assert_eq!(refresh_after(Some(now - Duration::from_secs(1)), now, Duration::ZERO), RETRY);
        assert_eq!(refresh_after(None, now, Duration::ZERO), Duration::from_secs(40));
    }
}
