//! The sockets of endpoints that pass them: their paths mean nothing elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::Status;

use super::memory::MemoryRegistry;
use crate::files::{Files, Inode, InodeError};
use crate::proto::registry::NetworkServiceEndpoint;
use crate::transport::Peer;

/// The sockets that endpoints passed with their registrations, as long as these last.
#[derive(Default)]
pub(super) struct EndpointSockets(Mutex<BTreeMap<Inode, Arc<OwnedFd>>>);

impl EndpointSockets {
    /// The socket that a registration names, received. `None`: its url is a path or a port.
    pub(super) async fn receive(
        &self,
        endpoint: &NetworkServiceEndpoint,
        peer: Option<&Peer>,
    ) -> Result<Option<(Inode, Arc<OwnedFd>)>, Status> {
        if !endpoint.url.starts_with("inode:") {
            return Ok(None);
        }
        let refused = |problem: String| Status::invalid_argument(format!("the url of {}: {problem}", endpoint.name));
        let inode: Inode = endpoint.url.parse().map_err(|error: InodeError| refused(error.to_string()))?;
        let files = peer.and_then(Peer::files);
        let files = files.ok_or_else(|| refused("a socket cannot be passed over TCP: register its path".to_owned()))?;
        let socket = files.receive(inode, FILE_TIMEOUT).await.map_err(|error| refused(error.to_string()))?;
        Ok(Some((inode, socket)))
    }

    /// Keeps it, and forgets those that no endpoint of the registry names any more.
    pub(super) fn keep(&self, (inode, socket): (Inode, Arc<OwnedFd>), registry: &MemoryRegistry) {
        let registered = registry.find_endpoints(&NetworkServiceEndpoint::default());
        let urls = registered.iter().filter_map(|told| told.network_service_endpoint.as_ref());
        let named: BTreeSet<Inode> = urls.filter_map(|endpoint| endpoint.url.parse().ok()).collect();
        let mut sockets = self.lock();
        sockets.insert(inode, socket);
        sockets.retain(|inode, _| named.contains(inode));
    }

    /// Passes the socket of an endpoint that was found, if it has one.
    pub(super) fn pass(&self, endpoint: &NetworkServiceEndpoint, files: Option<&Files>) -> std::io::Result<()> {
        let socket = endpoint.url.parse().ok().and_then(|inode: Inode| self.lock().get(&inode).cloned());
        if let (Some(socket), Some(files)) = (socket, files) {
            files.send(socket)?;
        }
        Ok(())
    }

    /// One that was passed and is still named.
    pub(super) fn of(&self, url: &str) -> Option<Arc<OwnedFd>> {
        self.lock().get(&url.parse().ok()?).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Inode, Arc<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It comes with the call, or not at all.
const FILE_TIMEOUT: Duration = Duration::from_millis(500);
