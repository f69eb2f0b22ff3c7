//! The identity of now.

use std::sync::Arc;

use tokio::sync::watch;

use super::bundles::Bundles;
use super::svid::Svid;

/// Who we are and whom we trust, of one moment. Connections keep the one that they were made with.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What we show.
    pub svid: Arc<Svid>,
    /// Whom we believe.
    pub bundles: Arc<Bundles>,
}

/// The identity of now. Whoever makes it sets it anew at each rotation.
#[derive(Clone, Debug)]
pub struct IdentitySource(watch::Receiver<Identity>);

impl IdentitySource {
    /// With the one that sets it.
    pub fn new(first: Identity) -> (watch::Sender<Identity>, Self) {
        let (sender, receiver) = watch::channel(first);
        (sender, Self(receiver))
    }

    /// The newest.
    pub fn current(&self) -> Identity {
        self.0.borrow().clone()
    }

    /// Waits for the next one, and gives it. One that was set after the last call, or after this value was made, counts. `None`: none
    /// will come.
    pub async fn next(&mut self) -> Option<Identity> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }
}
