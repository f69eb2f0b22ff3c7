//! A registry's calls.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::limits::RegistrationError;
use super::local::LocalRegistry;
use super::path::Entered;
use crate::feed::{FeedError, Watch};
use crate::proto::registry::network_service_endpoint_registry_server::{
    NetworkServiceEndpointRegistry, NetworkServiceEndpointRegistryServer,
};
use crate::proto::registry::network_service_registry_server::{NetworkServiceRegistry, NetworkServiceRegistryServer};
use crate::proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceQuery, NetworkServiceResponse,
};
use crate::transport::Peer;

/// Answers for a registry: who calls is checked here, what it asks for there.
#[derive(Clone)]
pub struct RegistryServer {
    registry: LocalRegistry,
    token_lifetime: Duration,
}

impl RegistryServer {
    /// For a registry whose tokens live so long.
    pub fn new(registry: LocalRegistry, token_lifetime: Duration) -> Self {
        Self { registry, token_lifetime }
    }

    /// Its calls about endpoints, for a server.
    pub fn endpoints(&self) -> NetworkServiceEndpointRegistryServer<Self> {
        NetworkServiceEndpointRegistryServer::new(self.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Its calls about services, for a server.
    pub fn services(&self) -> NetworkServiceRegistryServer<Self> {
        NetworkServiceRegistryServer::new(self.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn enter<T>(&self, request: Request<T>) -> Result<(Entered, T), Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no certificate"))?;
        let entered = Entered::check(request.metadata(), peer, self.token_lifetime, SystemTime::now())?;
        Ok((entered, request.into_inner()))
    }
}

#[tonic::async_trait]
impl NetworkServiceEndpointRegistry for RegistryServer {
    type FindStream = ReceiverStream<Result<NetworkServiceEndpointResponse, Status>>;

    async fn register(
        &self,
        request: Request<NetworkServiceEndpoint>,
    ) -> Result<Response<NetworkServiceEndpoint>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let (entered, mut endpoint) = self.enter(request)?;
        let socket = self.registry.sockets.receive(&endpoint, peer.as_ref()).await?;
        endpoint.path_ids.clone_from(&entered.path_ids);
        let registered = self.registry.memory.register_endpoint(endpoint, entered.expires, SystemTime::now())?;
        if let Some(socket) = socket {
            self.registry.sockets.keep(socket, &self.registry.memory);
        }
        answer(registered, entered)
    }

    async fn find(&self, request: Request<NetworkServiceEndpointQuery>) -> Result<Response<Self::FindStream>, Status> {
        let files = request.extensions().get::<Peer>().and_then(|peer| peer.files().cloned());
        let query = request.into_inner();
        let endpoint = query.network_service_endpoint.unwrap_or_default();
        let sockets = Arc::clone(&self.registry.sockets);
        let pass = move |told: &NetworkServiceEndpointResponse| match &told.network_service_endpoint {
            Some(endpoint) if !told.deleted => sockets.pass(endpoint, files.as_ref()),
            _ => Ok(()),
        };
        let found = if query.watch {
            following(self.registry.memory.watch_endpoints(endpoint)?, pass)
        } else {
            all(self.registry.memory.find_endpoints(&endpoint), pass)
        };
        Ok(Response::new(found))
    }

    async fn unregister(&self, request: Request<NetworkServiceEndpoint>) -> Result<Response<()>, Status> {
        let (entered, endpoint) = self.enter(request)?;
        self.registry.memory.unregister_endpoint(&endpoint.name, entered.owner())?;
        answer((), entered)
    }
}

#[tonic::async_trait]
impl NetworkServiceRegistry for RegistryServer {
    type FindStream = ReceiverStream<Result<NetworkServiceResponse, Status>>;

    async fn register(&self, request: Request<NetworkService>) -> Result<Response<NetworkService>, Status> {
        let (entered, mut service) = self.enter(request)?;
        service.path_ids.clone_from(&entered.path_ids);
        answer(self.registry.memory.register_service(service)?, entered)
    }

    async fn find(&self, request: Request<NetworkServiceQuery>) -> Result<Response<Self::FindStream>, Status> {
        let query = request.into_inner();
        let service = query.network_service.unwrap_or_default();
        let found = if query.watch {
            following(self.registry.memory.watch_services(service)?, |_| Ok(()))
        } else {
            all(self.registry.memory.find_services(&service), |_| Ok(()))
        };
        Ok(Response::new(found))
    }

    async fn unregister(&self, request: Request<NetworkService>) -> Result<Response<()>, Status> {
        let (entered, service) = self.enter(request)?;
        self.registry.memory.unregister_service(&service.name, entered.owner())?;
        answer((), entered)
    }
}

fn answer<T>(message: T, entered: Entered) -> Result<Response<T>, Status> {
    let mut response = Response::new(message);
    entered.leave(response.metadata_mut())?;
    Ok(response)
}

/// What there is, and then the end. `before` passes what goes beside each.
fn all<T: Clone + Send + Sync + 'static>(
    found: Vec<Arc<T>>,
    before: impl Fn(&T) -> io::Result<()> + Send + Sync + 'static,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, receiver) = mpsc::channel(ANSWERS_AHEAD);
    tokio::spawn(async move {
        for found in found {
            if !send(&sender, &*found, &before).await {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// What there is, and each change, until the caller has had enough.
fn following<T: Clone + Send + Sync + 'static>(
    watch: Watch<Arc<T>>,
    before: impl Fn(&T) -> io::Result<()> + Send + Sync + 'static,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, receiver) = mpsc::channel(ANSWERS_AHEAD);
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                changed = watch.next() => changed,
                () = sender.closed() => return,
            };
            let Some(changed) = changed else {
                let _ = sender.send(Err(FeedError::Unread.into())).await;
                return;
            };
            if !send(&sender, &*changed, &before).await {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Whether more can be sent.
async fn send<T: Clone>(
    sender: &mpsc::Sender<Result<T, Status>>,
    told: &T,
    before: &impl Fn(&T) -> io::Result<()>,
) -> bool {
    let Ok(room) = sender.reserve().await else { return false };
    match before(told) {
        Ok(()) => room.send(Ok(told.clone())),
        Err(error) => {
            room.send(Err(Status::unavailable(format!("cannot pass the socket: {error}"))));
            return false;
        }
    }
    true
}

impl From<RegistrationError> for Status {
    fn from(error: RegistrationError) -> Self {
        let code = match error {
            RegistrationError::Name
            | RegistrationError::Url(_)
            | RegistrationError::Services(..)
            | RegistrationError::TooLarge(..) => Code::InvalidArgument,
            RegistrationError::Owner(..) => Code::PermissionDenied,
            RegistrationError::OwnerFull(..) | RegistrationError::Full(_) => Code::ResourceExhausted,
        };
        Self::new(code, error.to_string())
    }
}

impl From<FeedError> for Status {
    fn from(error: FeedError) -> Self {
        Self::resource_exhausted(error.to_string())
    }
}

/// A registration, with room for what is refused with a reason.
const MESSAGE_MAX: usize = 256 << 10;
/// What waits in the stream of one caller, beside what its window takes.
const ANSWERS_AHEAD: usize = 8;
