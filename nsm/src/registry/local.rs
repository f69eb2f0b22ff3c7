//! A registry in this process, and how its endpoints are reached.

use std::sync::Arc;

use tonic::Status;

use super::client::FoundEndpoint;
use super::memory::MemoryRegistry;
use super::sockets::EndpointSockets;
use super::upstream::{Upstream, is_interdomain};
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint};

/// A registry in memory with the sockets that its endpoints have passed, by itself or as a part of one elsewhere.
#[derive(Clone)]
pub struct LocalRegistry {
    pub(super) memory: Arc<MemoryRegistry>,
    pub(super) sockets: Arc<EndpointSockets>,
    pub(super) upstream: Option<Arc<Upstream>>,
}

impl LocalRegistry {
    /// Of these registrations.
    pub fn new(memory: Arc<MemoryRegistry>) -> Self {
        Self { memory, sockets: Arc::default(), upstream: None }
    }

    /// As a part of another, whose registrations it knows as long as [`Upstream::run`] runs.
    #[must_use]
    pub fn part_of(self, upstream: Arc<Upstream>) -> Self {
        Self { upstream: Some(upstream), ..self }
    }

    /// The service of this name, which may be of another domain.
    pub async fn service(&self, name: &str) -> Result<Option<NetworkService>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let wanted = NetworkService { name: name.to_owned(), ..NetworkService::default() };
        let found = match &self.upstream {
            Some(upstream) if is_interdomain(name) => upstream.find_services(wanted).await?,
            _ => self.find_services(&wanted),
        };
        Ok(found.into_iter().next())
    }

    /// The endpoints that a query means, each with the socket that it has passed.
    pub fn find_endpoints(&self, query: &NetworkServiceEndpoint) -> Vec<FoundEndpoint> {
        let found = self.memory.find_endpoints(query);
        let endpoints = found.iter().filter_map(|told| told.network_service_endpoint.clone());
        endpoints.map(|endpoint| FoundEndpoint { socket: self.sockets.of(&endpoint.url), endpoint }).collect()
    }

    /// The services that a query means.
    pub fn find_services(&self, query: &NetworkService) -> Vec<NetworkService> {
        let found = self.memory.find_services(query);
        found.iter().filter_map(|told| told.network_service.clone()).collect()
    }
}
