//! A registry in this process, and how its endpoints are reached.

use std::sync::Arc;

use super::client::FoundEndpoint;
use super::memory::MemoryRegistry;
use super::sockets::EndpointSockets;
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint};

/// A registry in memory with the sockets that its endpoints have passed.
#[derive(Clone)]
pub struct LocalRegistry {
    pub(super) memory: Arc<MemoryRegistry>,
    pub(super) sockets: Arc<EndpointSockets>,
}

impl LocalRegistry {
    /// Of these registrations.
    pub fn new(memory: Arc<MemoryRegistry>) -> Self {
        Self { memory, sockets: Arc::default() }
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
