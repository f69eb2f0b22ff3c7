//! The registry of a whole mesh, as a manager sees it: what is registered at the manager is registered there under the manager's url, and
//! what others have registered there is known at the manager.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use tonic::{Code, Status};

use super::client::{FoundEndpoint, RegistryClient};
use super::memory::MemoryRegistry;
use super::path::Entered;
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint};

/// A registry elsewhere, of which the one in this process is a part.
pub struct Upstream {
    client: Arc<RegistryClient>,
    local: Arc<MemoryRegistry>,
    /// Where other managers reach ours.
    url: String,
}

impl Upstream {
    /// Of the registry that `client` asks. `url` is where other managers reach ours, `tcp://ADDRESS:PORT`: it is published as it is.
    pub fn new(client: Arc<RegistryClient>, local: Arc<MemoryRegistry>, url: &str) -> Self {
        Self { client, local, url: url.to_owned() }
    }

    /// Follows what others register, for ever. While the registry is gone, what is known of them stays until it runs out.
    pub async fn run(&self) {
        let endpoints = again(|| self.follow_endpoints());
        let services = again(|| self.follow_services());
        tokio::join!(endpoints, services);
    }

    /// Registers an endpoint of ours, for whoever has called us, and says how it is registered there.
    pub(super) async fn register(
        &self,
        endpoint: &NetworkServiceEndpoint,
        entered: &mut Entered,
    ) -> Result<NetworkServiceEndpoint, Status> {
        if is_forwarder(endpoint) {
            // They are their own manager's business.
            return Ok(endpoint.clone());
        }
        let published = NetworkServiceEndpoint { url: self.url.clone(), ..endpoint.clone() };
        let (registered, path) = self.client.register_for(&published, &entered.path).await?;
        entered.path.follow(path);
        Ok(registered)
    }

    /// Takes it out there.
    pub(super) async fn unregister(&self, endpoint: &NetworkServiceEndpoint, entered: &Entered) -> Result<(), Status> {
        if is_forwarder(endpoint) {
            return Ok(());
        }
        let published = NetworkServiceEndpoint { url: self.url.clone(), ..endpoint.clone() };
        self.client.unregister_for(&published, &entered.path).await
    }

    /// The same of a service.
    pub(super) async fn register_service(
        &self,
        service: &NetworkService,
        entered: &mut Entered,
    ) -> Result<NetworkService, Status> {
        let (registered, path) = self.client.register_service_for(service, &entered.path).await?;
        entered.path.follow(path);
        Ok(registered)
    }

    /// The same of a service.
    pub(super) async fn unregister_service(&self, service: &NetworkService, entered: &Entered) -> Result<(), Status> {
        self.client.unregister_service_for(service, &entered.path).await
    }

    /// What is found of another domain: the registry asks that one's.
    pub(super) async fn find_endpoints(&self, query: NetworkServiceEndpoint) -> Result<Vec<FoundEndpoint>, Status> {
        self.client.find_endpoints(query).await
    }

    /// What is found of another domain: the registry asks that one's.
    pub(super) async fn find_services(&self, query: NetworkService) -> Result<Vec<NetworkService>, Status> {
        self.client.find_services(query).await
    }

    async fn follow_endpoints(&self) -> Result<(), Status> {
        let all = NetworkServiceEndpoint::default;
        let (_connection, mut stream) = self.client.watch_endpoints(all()).await?;
        // What is not there any more was taken out while nobody watched.
        let there = self.client.find_endpoints(all()).await?;
        let there: BTreeSet<_> = there.into_iter().map(|found| found.endpoint.name).collect();
        self.local.forget_mirrored_endpoints(|name| !there.contains(name));
        while let Some(told) = stream.message().await? {
            let Some(endpoint) = told.network_service_endpoint else { continue };
            if told.deleted {
                self.local.forget_mirrored_endpoints(|name| name == endpoint.name);
            } else if endpoint.url != self.url && !is_forwarder(&endpoint) {
                let name = endpoint.name.clone();
                if let Err(error) = self.local.mirror_endpoint(endpoint, SystemTime::now()) {
                    tracing::warn!(name, %error, "an endpoint of the registry is not known here");
                }
            }
        }
        Ok(())
    }

    async fn follow_services(&self) -> Result<(), Status> {
        let all = NetworkService::default;
        let (_connection, mut stream) = self.client.watch_services(all()).await?;
        let there = self.client.find_services(all()).await?;
        let there: BTreeSet<_> = there.into_iter().map(|service| service.name).collect();
        self.local.forget_mirrored_services(|name| !there.contains(name));
        while let Some(told) = stream.message().await? {
            let Some(service) = told.network_service else { continue };
            let name = service.name.clone();
            if told.deleted {
                self.local.forget_mirrored_services(|known| known == name);
            } else if let Err(error) = self.local.mirror_service(service) {
                tracing::warn!(name, %error, "a service of the registry is not known here");
            }
        }
        Ok(())
    }
}

/// Whether the registry may be asked again later: what is registered at a manager serves its own node meanwhile.
pub(super) fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

/// Whether a name is of another domain, which only its own registry knows.
pub(super) fn is_interdomain(name: &str) -> bool {
    name.contains('@')
}

/// Whether an endpoint is a forwarder.
pub(super) fn is_forwarder(endpoint: &NetworkServiceEndpoint) -> bool {
    endpoint.network_service_names.iter().any(|name| name == FORWARDER_SERVICE)
}

/// Follows anew whenever it ends.
async fn again<F: Future<Output = Result<(), Status>>>(follow: impl Fn() -> F) {
    loop {
        if let Err(status) = Box::pin(follow()).await {
            tracing::debug!(%status, "the registry is not followed any more");
        }
        sleep(RETRY).await;
    }
}

/// What forwarders are registered as.
pub(crate) const FORWARDER_SERVICE: &str = "forwarder";
const RETRY: Duration = Duration::from_millis(500);
