//! One connection to a process that is always called, made again when it ends or our identity changes.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::address::Address;
use super::dial::{Connection, DialError, DialOptions};
use crate::identity::IdentitySource;

/// A connection that is kept. Calls that are under way on an older one end there.
pub struct KeptConnection {
    address: Address,
    identity: IdentitySource,
    options: DialOptions,
    current: Mutex<Option<Connection>>,
}

impl KeptConnection {
    /// To whoever listens at an address; nobody is called yet.
    pub fn new(address: Address, identity: IdentitySource, options: DialOptions) -> Self {
        Self { address, identity, options, current: Mutex::default() }
    }

    /// The connection, made now if there is none, or none of our identity of now: tokens of the old one run out with its certificate.
    pub async fn get(&self) -> Result<Connection, DialError> {
        let mut current = self.current.lock().await;
        let identity = self.identity.current();
        let is_good =
            |connection: &&Connection| !connection.has_ended() && Arc::ptr_eq(connection.peer().svid(), &identity.svid);
        if let Some(connection) = current.as_ref().filter(is_good) {
            return Ok(connection.clone());
        }
        let made = Connection::dial(&self.address, &identity, &self.options).await?;
        Ok(current.insert(made).clone())
    }

    /// The next call gets a new connection: this one shows a certificate that the other side does not sign with any more.
    pub async fn renew(&self) {
        self.current.lock().await.take();
    }
}
