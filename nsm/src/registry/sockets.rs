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
pub(super) struct EndpointSockets(Mutex<BTreeMap<Inode, KeptSocket>>);

struct KeptSocket {
    socket: Arc<OwnedFd>,
    /// Registrations under way that name it.
    registering: usize,
}

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

    /// Keeps it for a registration that follows: whoever is told of that finds it here. [`Self::settle`] comes after.
    pub(super) fn keep(&self, (inode, socket): (Inode, Arc<OwnedFd>)) {
        let mut sockets = self.lock();
        let kept = sockets.entry(inode).or_insert_with(|| KeptSocket { socket: Arc::clone(&socket), registering: 0 });
        kept.socket = socket;
        kept.registering += 1;
    }

    /// A registration was made, or not. Sockets that none names any more are forgotten.
    pub(super) fn settle(&self, registered: Option<Inode>, registry: &MemoryRegistry) {
        // Locked first: what is registered from now on has its socket in here by then.
        let mut sockets = self.lock();
        if let Some(kept) = registered.and_then(|inode| sockets.get_mut(&inode)) {
            kept.registering = kept.registering.saturating_sub(1);
        }
        let endpoints = registry.find_endpoints(&NetworkServiceEndpoint::default());
        let urls = endpoints.iter().filter_map(|told| told.network_service_endpoint.as_ref());
        let named: BTreeSet<Inode> = urls.filter_map(|endpoint| endpoint.url.parse().ok()).collect();
        sockets.retain(|inode, kept| kept.registering > 0 || named.contains(inode));
    }

    /// Passes the socket of an endpoint that was found, if it has one.
    pub(super) fn pass(&self, endpoint: &NetworkServiceEndpoint, files: Option<&Files>) -> std::io::Result<()> {
        if let (Some(socket), Some(files)) = (self.of(&endpoint.url), files) {
            files.send(socket)?;
        }
        Ok(())
    }

    /// One that was passed and is still named.
    pub(super) fn of(&self, url: &str) -> Option<Arc<OwnedFd>> {
        self.lock().get(&url.parse().ok()?).map(|kept| Arc::clone(&kept.socket))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Inode, KeptSocket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It comes with the call, or not at all.
const FILE_TIMEOUT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::identity::SpiffeIds;
    use crate::policy::Owner;
    use crate::registry::RegistryLimits;

    fn socket() -> (Inode, Arc<OwnedFd>) {
        let file = tempfile::tempfile().map(OwnedFd::from).unwrap();
        (Inode::of(&file).unwrap(), Arc::new(file))
    }

    #[test]
    fn a_socket_is_kept_while_its_registration_is_made_and_as_long_as_it_lasts() {
        let (sockets, registry) = (EndpointSockets::default(), MemoryRegistry::new(RegistryLimits::default()));
        let owner = Owner::new(vec!["a".to_owned()], &SpiffeIds::default());
        let [(first, first_socket), (second, second_socket)] = [socket(), socket()];
        sockets.keep((first, first_socket));
        sockets.keep((second, second_socket));
        // The second one is registered while the first one is about to be.
        let endpoint = |inode: Inode| NetworkServiceEndpoint {
            name: inode.to_string(),
            url: inode.to_string(),
            ..NetworkServiceEndpoint::default()
        };
        let now = SystemTime::now();
        let register = |inode| {
            registry.register_endpoint(endpoint(inode), &owner, now + Duration::from_mins(1), now).unwrap();
            sockets.settle(Some(inode), &registry);
        };
        register(second);
        assert!(sockets.of(&first.to_string()).is_some(), "it is not registered yet");
        register(first);
        assert!(sockets.of(&first.to_string()).is_some() && sockets.of(&second.to_string()).is_some());
        registry.unregister_endpoint(&first.to_string(), &owner).unwrap();
        sockets.settle(None, &registry);
        assert!(sockets.of(&first.to_string()).is_none() && sockets.of(&second.to_string()).is_some());
        let (refused, socket) = socket();
        sockets.keep((refused, socket));
        sockets.settle(Some(refused), &registry);
        assert!(sockets.of(&refused.to_string()).is_none());
    }
}
