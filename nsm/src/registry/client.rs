//! Asking a registry, or the manager that stands for it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Request, Status, Streaming};

use super::path::RegistryPath;
use crate::files::Inode;
use crate::policy::is_token_denied;
use crate::proto::registry::network_service_endpoint_registry_client::NetworkServiceEndpointRegistryClient;
use crate::proto::registry::network_service_registry_client::NetworkServiceRegistryClient;
use crate::proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceQuery, NetworkServiceResponse,
};
use crate::transport::{Address, AddressError, Calls, Connection, DialError, KeptConnection, ran_out};

/// Asks a registry over one kept connection.
pub struct RegistryClient {
    connection: KeptConnection,
    timeout: Duration,
    /// Questions that may be asked now.
    finds: Semaphore,
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
        Self { connection, timeout, finds: Semaphore::new(FINDS_MAX) }
    }

    /// Registers an endpoint, and says how it is registered. A socket goes with it, if its url names one.
    pub async fn register(
        &self,
        endpoint: &NetworkServiceEndpoint,
        socket: Option<&Arc<OwnedFd>>,
    ) -> Result<NetworkServiceEndpoint, Status> {
        // The server keeps the earlier of what we say and what it thinks: what it said last time would never grow.
        let endpoint = &NetworkServiceEndpoint { expiration_time: None, ..endpoint.clone() };
        let call = move |connection: Connection| async move {
            pass(&connection, socket)?;
            let request = with_path(endpoint.clone(), &RegistryPath::default(), self.timeout)?;
            Ok(endpoints(&connection).register(request).await?.into_inner())
        };
        self.call(call).await
    }

    /// Takes an endpoint out. Do so before its socket goes: whoever passes its file on must still find it.
    pub async fn unregister(
        &self,
        endpoint: &NetworkServiceEndpoint,
        socket: Option<&Arc<OwnedFd>>,
    ) -> Result<(), Status> {
        let call = move |connection: Connection| async move {
            pass(&connection, socket)?;
            let request = with_path(endpoint.clone(), &RegistryPath::default(), self.timeout)?;
            endpoints(&connection).unregister(request).await.map(drop)
        };
        self.call(call).await
    }

    /// Registers a service, and says how it is registered.
    pub async fn register_service(&self, service: &NetworkService) -> Result<NetworkService, Status> {
        let (registered, _) = self.register_service_for(service, &RegistryPath::default()).await?;
        Ok(registered)
    }

    /// Takes a service out.
    pub async fn unregister_service(&self, service: &NetworkService) -> Result<(), Status> {
        self.unregister_service_for(service, &RegistryPath::default()).await
    }

    /// Registers an endpoint for another, whose way to us the path is. The answer has the rest of the way.
    pub(super) async fn register_for(
        &self,
        endpoint: &NetworkServiceEndpoint,
        path: &RegistryPath,
    ) -> Result<(NetworkServiceEndpoint, Option<RegistryPath>), Status> {
        let endpoint = &NetworkServiceEndpoint { expiration_time: None, ..endpoint.clone() };
        let call = move |connection: Connection| async move {
            let request = with_path(endpoint.clone(), path, self.timeout)?;
            let answer = endpoints(&connection).register(request).await?;
            let path = RegistryPath::read(answer.metadata());
            Ok((answer.into_inner(), path))
        };
        self.call(call).await
    }

    /// Takes an endpoint of another out.
    pub(super) async fn unregister_for(
        &self,
        endpoint: &NetworkServiceEndpoint,
        path: &RegistryPath,
    ) -> Result<(), Status> {
        let call = move |connection: Connection| async move {
            let request = with_path(endpoint.clone(), path, self.timeout)?;
            endpoints(&connection).unregister(request).await.map(drop)
        };
        self.call(call).await
    }

    /// Registers a service for another.
    pub(super) async fn register_service_for(
        &self,
        service: &NetworkService,
        path: &RegistryPath,
    ) -> Result<(NetworkService, Option<RegistryPath>), Status> {
        let call = move |connection: Connection| async move {
            let request = with_path(service.clone(), path, self.timeout)?;
            let answer = services(&connection).register(request).await?;
            let path = RegistryPath::read(answer.metadata());
            Ok((answer.into_inner(), path))
        };
        self.call(call).await
    }

    /// Takes a service of another out.
    pub(super) async fn unregister_service_for(
        &self,
        service: &NetworkService,
        path: &RegistryPath,
    ) -> Result<(), Status> {
        let call = move |connection: Connection| async move {
            let request = with_path(service.clone(), path, self.timeout)?;
            services(&connection).unregister(request).await.map(drop)
        };
        self.call(call).await
    }

    /// The endpoints that a query means. One whose socket does not come is left out: others are none the worse for it.
    pub async fn find_endpoints(&self, query: NetworkServiceEndpoint) -> Result<Vec<FoundEndpoint>, Status> {
        let _turn = self.find_turn().await?;
        let query = &query;
        let call = move |connection: Connection| async move {
            let mut stream = stream_endpoints(&connection, query, false).await?;
            let mut found = Vec::new();
            while let Some(response) = stream.message().await? {
                if let Some(endpoint) = response.network_service_endpoint.filter(|_| !response.deleted) {
                    if found.len() >= FOUND_MAX {
                        return Err(Status::resource_exhausted(format!("more than {FOUND_MAX} endpoints were found")));
                    }
                    found.push(endpoint);
                }
            }
            Ok(FoundEndpoint::receive_all(found, &connection).await)
        };
        self.call(call).await
    }

    /// The services that a query means.
    pub async fn find_services(&self, query: NetworkService) -> Result<Vec<NetworkService>, Status> {
        let _turn = self.find_turn().await?;
        let query = &query;
        let call = move |connection: Connection| async move {
            let mut stream = stream_services(&connection, query, false).await?;
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
        };
        self.call(call).await
    }

    pub(super) async fn watch_endpoints(
        &self,
        query: NetworkServiceEndpoint,
    ) -> Result<(Connection, Streaming<NetworkServiceEndpointResponse>), Status> {
        let query = &query;
        let call = move |connection: Connection| async move {
            let stream = stream_endpoints(&connection, query, true).await?;
            Ok((connection, stream))
        };
        self.call(call).await
    }

    pub(super) async fn watch_services(
        &self,
        query: NetworkService,
    ) -> Result<(Connection, Streaming<NetworkServiceResponse>), Status> {
        let query = &query;
        let call = move |connection: Connection| async move {
            let stream = stream_services(&connection, query, true).await?;
            Ok((connection, stream))
        };
        self.call(call).await
    }

    /// The connection of now.
    pub async fn connection(&self) -> Result<Connection, DialError> {
        self.connection.get().await
    }

    /// How long a call has.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A registry refuses whoever asks very much at once: what is beyond that waits here.
    async fn find_turn(&self) -> Result<SemaphorePermit<'_>, Status> {
        let late = || Status::deadline_exceeded(format!("others have asked the registry first for {:?}", self.timeout));
        let turn = timeout(self.timeout, self.finds.acquire()).await.map_err(|_| late())?;
        // It is never closed.
        turn.map_err(|error| Status::internal(error.to_string()))
    }

    /// Makes a call within its time. One that is denied is made once more over a new connection: over the old one the other side may show
    /// a certificate that it does not use any more. One that is not answered costs the connection.
    async fn call<T, F>(&self, call: impl Fn(Connection) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let until = Instant::now() + self.timeout;
        let late = |_| Status::deadline_exceeded(format!("the registry has not answered within {:?}", self.timeout));
        let mut is_again = false;
        loop {
            let connection = timeout_at(until, self.connection.get()).await.map_err(late)??;
            let status = match timeout_at(until, call(connection.clone())).await.map_err(late) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => ran_out(status),
                Err(status) => status,
            };
            let is_denied = is_token_denied(&status);
            if is_denied || status.code() == Code::DeadlineExceeded {
                self.connection.renew(&connection).await;
            }
            if !is_denied || std::mem::replace(&mut is_again, true) {
                return Err(status);
            }
        }
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

    /// With its socket, which comes beside the message if it is named in it, until `deadline`. `None`: it has not come.
    pub(super) async fn receive(
        endpoint: NetworkServiceEndpoint,
        connection: &Connection,
        deadline: Instant,
    ) -> Option<Self> {
        let (Ok(inode), Some(files)) = (endpoint.url.parse::<Inode>(), connection.peer().files()) else {
            return Some(Self { endpoint, socket: None });
        };
        match files.receive(inode, deadline.saturating_duration_since(Instant::now())).await {
            Ok(socket) => Some(Self { endpoint, socket: Some(socket) }),
            Err(error) => {
                tracing::warn!(name = endpoint.name, %error, "an endpoint is left out: its socket was not passed");
                None
            }
        }
    }

    /// All of them, within the time of one.
    async fn receive_all(endpoints: Vec<NetworkServiceEndpoint>, connection: &Connection) -> Vec<Self> {
        let deadline = Instant::now() + FILE_TIMEOUT;
        let mut found = Vec::new();
        for endpoint in endpoints {
            found.extend(Self::receive(endpoint, connection, deadline).await);
        }
        found
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

fn with_path<T>(message: T, path: &RegistryPath, timeout: Duration) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    path.write(request.metadata_mut())?;
    request.set_timeout(timeout);
    Ok(request)
}

async fn stream_endpoints(
    connection: &Connection,
    query: &NetworkServiceEndpoint,
    watch: bool,
) -> Result<Streaming<NetworkServiceEndpointResponse>, Status> {
    let query = NetworkServiceEndpointQuery { network_service_endpoint: Some(query.clone()), watch };
    Ok(endpoints(connection).find(query).await?.into_inner())
}

async fn stream_services(
    connection: &Connection,
    query: &NetworkService,
    watch: bool,
) -> Result<Streaming<NetworkServiceResponse>, Status> {
    let query = NetworkServiceQuery { network_service: Some(query.clone()), watch };
    Ok(services(connection).find(query).await?.into_inner())
}

fn endpoints(connection: &Connection) -> NetworkServiceEndpointRegistryClient<Calls> {
    NetworkServiceEndpointRegistryClient::new(connection.calls()).max_decoding_message_size(MESSAGE_MAX)
}

fn services(connection: &Connection) -> NetworkServiceRegistryClient<Calls> {
    NetworkServiceRegistryClient::new(connection.calls()).max_decoding_message_size(MESSAGE_MAX)
}

/// One registration.
const MESSAGE_MAX: usize = 256 << 10;
/// Half of what a registry of ours answers one caller at once.
const FINDS_MAX: usize = 128;
/// As many as a registry of ours keeps.
const FOUND_MAX: usize = 16 << 10;
/// It comes with the message, or not at all.
pub(super) const FILE_TIMEOUT: Duration = Duration::from_millis(500);
