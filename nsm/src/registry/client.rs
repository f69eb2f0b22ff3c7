//! Asking a registry, or the manager that stands for it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use super::path::RegistryPath;
use crate::files::Inode;
use crate::proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use crate::proto::registry::network_service_registry_client::NetworkServiceRegistryClient;
use crate::proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceQuery, NetworkServiceResponse,
};
use crate::transport::{Address, AddressError, Calls, Connection, DialError, KeptConnection};

/// Asks a registry over one kept connection.
pub struct RegistryClient {
    connection: KeptConnection,
    timeout: Duration,
}

/// An endpoint that was found, with its socket, if that was passed.
#[derive(Clone, Debug)]
pub struct FoundEndpoint {
    /// As it is registered.
    pub endpoint: NetworkServiceEndpoint,
    /// Its socket's file, if its url names one: `/proc/self/fd/N` leads there, wherever it is mounted.
    pub socket: Option<Arc<OwnedFd>>,
}

impl RegistryClient {
    /// Over this connection. A call has `timeout`, which should be short: a manager forgets a registration so long before it runs out.
    pub fn new(connection: KeptConnection, timeout: Duration) -> Self {
        Self { connection, timeout }
    }

    /// Registers an endpoint, and says how it is registered. A socket goes with it, if its url names one.
    pub async fn register(
        &self,
        endpoint: &NetworkServiceEndpoint,
        socket: Option<&Arc<OwnedFd>>,
    ) -> Result<NetworkServiceEndpoint, Status> {
        let connection = self.connection().await?;
        let mut endpoint = endpoint.clone();
        // The server keeps the earlier of what we say and what it thinks: what it said last time would never grow.
        endpoint.expiration_time = None;
        pass(&connection, socket)?;
        let request = with_path(endpoint, self.timeout)?;
        let mut client = endpoints(&connection);
        Ok(self.within(client.register(request)).await?.into_inner())
    }

    /// Takes an endpoint out. Do so before its socket goes: whoever passes its file on must still find it.
    pub async fn unregister(
        &self,
        endpoint: &NetworkServiceEndpoint,
        socket: Option<&Arc<OwnedFd>>,
    ) -> Result<(), Status> {
        let connection = self.connection().await?;
        pass(&connection, socket)?;
        let request = with_path(endpoint.clone(), self.timeout)?;
        let mut client = endpoints(&connection);
        self.within(client.unregister(request)).await.map(drop)
    }

    /// Registers a service, and says how it is registered.
    pub async fn register_service(&self, service: &NetworkService) -> Result<NetworkService, Status> {
        let connection = self.connection().await?;
        let request = with_path(service.clone(), self.timeout)?;
        let mut client = services(&connection);
        Ok(self.within(client.register(request)).await?.into_inner())
    }

    /// The endpoints that a query means.
    pub async fn find_endpoints(&self, query: NetworkServiceEndpoint) -> Result<Vec<FoundEndpoint>, Status> {
        self.within(async {
            let (connection, mut stream) = self.stream_endpoints(query, false).await?;
            let mut found = Vec::new();
            while let Some(response) = stream.message().await? {
                if let Some(endpoint) = response.network_service_endpoint.filter(|_| !response.deleted) {
                    if found.len() >= FOUND_MAX {
                        return Err(Status::resource_exhausted(format!("more than {FOUND_MAX} endpoints were found")));
                    }
                    found.push(FoundEndpoint::receive(endpoint, &connection).await?);
                }
            }
            Ok(found)
        })
        .await
    }

    /// The services that a query means.
    pub async fn find_services(&self, query: NetworkService) -> Result<Vec<NetworkService>, Status> {
        self.within(async {
            let (_, mut stream) = self.stream_services(query, false).await?;
            let mut found = Vec::new();
            while let Some(response) = stream.message().await? {
                if let Some(service) = response.network_service.filter(|_| !response.deleted) {
                    if found.len() >= FOUND_MAX {
                        return Err(Status::resource_exhausted(format!("more than {FOUND_MAX} services were found")));
                    }
                    found.push(service);
                }
            }
            Ok(found)
        })
        .await
    }

    pub(super) async fn stream_endpoints(
        &self,
        query: NetworkServiceEndpoint,
        watch: bool,
    ) -> Result<(Connection, Streaming<NetworkServiceEndpointResponse>), Status> {
        let connection = self.connection().await?;
        let query = NetworkServiceEndpointQuery { network_service_endpoint: Some(query), watch };
        let stream = endpoints(&connection).find(query).await?.into_inner();
        Ok((connection, stream))
    }

    pub(super) async fn stream_services(
        &self,
        query: NetworkService,
        watch: bool,
    ) -> Result<(Connection, Streaming<NetworkServiceResponse>), Status> {
        let connection = self.connection().await?;
        let query = NetworkServiceQuery { network_service: Some(query), watch };
        let stream = services(&connection).find(query).await?.into_inner();
        Ok((connection, stream))
    }

    /// The connection of now.
    pub async fn connection(&self) -> Result<Connection, DialError> {
        self.connection.get().await
    }

    /// How long a call has.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) async fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let late = || Status::deadline_exceeded(format!("the registry has not answered within {:?}", self.timeout));
        timeout(self.timeout, call).await.unwrap_or_else(|_| Err(late()))
    }
}

impl FoundEndpoint {
    /// Where it is reached from here.
    pub fn address(&self) -> Result<Address, AddressError> {
        match &self.socket {
            Some(socket) => Ok(Address::Unix(format!("/proc/self/fd/{}", socket.as_raw_fd()).into())),
            None => self.endpoint.url.parse(),
        }
    }

    /// With its socket, which comes beside the message if it is named in it.
    pub(super) async fn receive(endpoint: NetworkServiceEndpoint, connection: &Connection) -> Result<Self, Status> {
        let (Ok(inode), Some(files)) = (endpoint.url.parse::<Inode>(), connection.peer().files()) else {
            return Ok(Self { endpoint, socket: None });
        };
        let socket = files.receive(inode, FILE_TIMEOUT).await;
        let socket =
            socket.map_err(|error| Status::unavailable(format!("the socket of {}: {error}", endpoint.name)))?;
        Ok(Self { endpoint, socket: Some(socket) })
    }
}

impl From<DialError> for Status {
    fn from(error: DialError) -> Self {
        Self::new(Code::Unavailable, error.to_string())
    }
}

fn pass(connection: &Connection, socket: Option<&Arc<OwnedFd>>) -> Result<(), Status> {
    let Some(socket) = socket else { return Ok(()) };
    let files = connection.peer().files();
    let files =
        files.ok_or_else(|| Status::failed_precondition("a socket cannot be passed over TCP: register its path"))?;
    let passed = files.send(Arc::clone(socket)).map(drop);
    passed.map_err(|error| Status::unavailable(format!("cannot pass the socket: {error}")))
}

fn with_path<T>(message: T, timeout: Duration) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    RegistryPath::default().write(request.metadata_mut())?;
    request.set_timeout(timeout);
    Ok(request)
}

fn endpoints(connection: &Connection) -> NetworkServiceEndpointRegistryClient<Calls> {
    NetworkServiceEndpointRegistryClient::new(connection.calls()).max_decoding_message_size(MESSAGE_MAX)
}

fn services(connection: &Connection) -> NetworkServiceRegistryClient<Calls> {
    NetworkServiceRegistryClient::new(connection.calls()).max_decoding_message_size(MESSAGE_MAX)
}

/// One registration.
const MESSAGE_MAX: usize = 256 << 10;
/// As many as a registry of ours keeps.
const FOUND_MAX: usize = 16 << 10;
/// It comes with the message, or not at all.
const FILE_TIMEOUT: Duration = Duration::from_millis(500);
