//! One connection to a process that is always called, made again when it ends, or when either side has a new identity.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::{Duration, Instant};

use super::address::Address;
use super::dial::{Connection, DialError, DialOptions};
use crate::identity::IdentitySource;

/// A connection that is kept. Calls that are under way on an older one end there.
pub struct KeptConnection {
    address: Address,
    identity: IdentitySource,
    options: DialOptions,
    /// What the address is a number of.
    _socket: Option<Arc<OwnedFd>>,
    state: Mutex<Tries>,
}

#[derive(Default)]
struct Tries {
    current: Option<Connection>,
    /// The last try, if it failed.
    failed: Option<(Instant, DialError)>,
}

impl KeptConnection {
    /// To whoever listens at an address; nobody is called yet.
    pub fn new(address: Address, identity: IdentitySource, options: DialOptions) -> Self {
        Self { address, identity, options, _socket: None, state: Mutex::default() }
    }

    /// The address is `/proc/self/fd/` and the number of this file, which must be nobody else's as long as it may be dialed.
    #[must_use]
    pub fn by_way_of(self, socket: Option<Arc<OwnedFd>>) -> Self {
        Self { _socket: socket, ..self }
    }

    /// The connection, made now if there is none, or none that is fresh. One that is not fresh is better than none: it does until a
    /// certificate of it has run out. Those who wait for the same try share what came of it.
    pub async fn get(&self) -> Result<Connection, DialError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        let identity = self.identity.current();
        if let Some(connection) = state.current.as_ref().filter(|connection| connection.is_fresh(&identity)) {
            return Ok(connection.clone());
        }
        let old = state.current.take_if(|connection| !connection.is_usable());
        drop(old);
        let shared =
            state.failed.as_ref().filter(|(at, _)| *at >= asked || (state.current.is_some() && at.elapsed() < RETRY));
        let error = match shared {
            Some((_, error)) => error.clone(),
            None => match Connection::dial(&self.address, &identity, &self.options).await {
                Ok(made) => {
                    state.failed = None;
                    return Ok(state.current.insert(made).clone());
                }
                Err(error) => {
                    state.failed = Some((Instant::now(), error.clone()));
                    error
                }
            },
        };
        state.current.clone().ok_or(error)
    }

    /// Whether there is none, and nobody is waiting for one.
    pub fn is_idle(&self) -> bool {
        let state = self.state.try_lock();
        state.is_ok_and(|state| state.current.as_ref().is_none_or(Connection::has_ended))
    }

    /// The next call gets a new connection: over this one the other side has denied, with a certificate that it does not sign with any
    /// more, or has not answered.
    pub async fn renew(&self, used: &Connection) {
        self.state.lock().await.current.take_if(|current| current.is_same(used));
    }
}

/// Nobody waits for another try that often while an old connection still does.
const RETRY: Duration = Duration::from_secs(1);
