//! A registry's calls.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::client::FoundEndpoint;
use super::limits::{RegistrationError, check_endpoint};
use super::local::LocalRegistry;
use super::path::Entered;
use super::upstream::{is_away, is_forwarder, is_interdomain};
use crate::feed::{FeedError, Watch};
use crate::files::Inode;
use crate::identity::SpiffeIds;
use crate::proto::registry::network_service_endpoint_registry_server::{
    NetworkServiceEndpointRegistry, NetworkServiceEndpointRegistryServer,
};
use crate::proto::registry::network_service_registry_server::{NetworkServiceRegistry, NetworkServiceRegistryServer};
use crate::proto::registry::{
    NetworkService, NetworkServiceEndpoint, NetworkServiceEndpointQuery, NetworkServiceEndpointResponse,
    NetworkServiceQuery, NetworkServiceResponse,
};
use crate::quota::{Quota, Share};
use crate::transport::Peer;

/// Answers for a registry: who calls is checked here, what it asks for there.
#[derive(Clone)]
pub struct RegistryServer {
    registry: LocalRegistry,
    token_lifetime: Duration,
    relays: SpiffeIds,
    forwarders: SpiffeIds,
    finds: Arc<Quota>,
}

impl RegistryServer {
    /// For a registry whose tokens live so long.
    pub fn new(registry: LocalRegistry, token_lifetime: Duration) -> Self {
        let finds = Quota::new(FINDS_MAX, FINDS_OF_ONE_MAX);
        let (relays, forwarders) = (SpiffeIds::default(), SpiffeIds::default());
        Self { registry, token_lifetime, relays, forwarders, finds }
    }

    /// Who may register for others: managers. What comes through one of them is its client's, and another of them may go on with it;
    /// without them it is also theirs.
    pub fn relays(&self) -> &SpiffeIds {
        &self.relays
    }

    /// Who may register forwarders, if any are named: through one of these go the connections of all clients of the node.
    pub fn forwarders(&self) -> &SpiffeIds {
        &self.forwarders
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
        let peer = caller(&request)?;
        let now = SystemTime::now();
        let entered = Entered::check(request.metadata(), &peer, &self.relays, self.token_lifetime, now)?;
        Ok((entered, request.into_inner()))
    }

    /// Whether all whom a registration comes from may have forwarders.
    fn check_forwarder(&self, endpoint: &NetworkServiceEndpoint, entered: &Entered) -> Result<(), Status> {
        // The last one is us.
        let callers = entered.path_ids.split_last().map_or(&[][..], |(_, callers)| callers);
        let stranger = callers.iter().find(|id| !self.forwarders.contains(id));
        match stranger.filter(|_| is_forwarder(endpoint) && !self.forwarders.is_empty()) {
            Some(stranger) => Err(Status::permission_denied(format!(
                "{stranger} is none of those who may register a forwarder here: name it to the manager (--relay)"
            ))),
            None => Ok(()),
        }
    }

    fn register_here(
        &self,
        endpoint: NetworkServiceEndpoint,
        socket: Option<(Inode, Arc<OwnedFd>)>,
        entered: &Entered,
    ) -> Result<NetworkServiceEndpoint, RegistrationError> {
        let LocalRegistry { memory, sockets, .. } = &self.registry;
        let inode = socket.as_ref().map(|(inode, _)| *inode);
        if let Some(socket) = socket {
            sockets.keep(socket);
        }
        let registered = memory.register_endpoint(endpoint, &entered.owner, entered.expires, SystemTime::now());
        if inode.is_some() {
            sockets.settle(inode, memory);
        }
        registered
    }

    /// One more answer of several messages, for whoever calls with this query.
    fn enter_find<T>(&self, request: &Request<T>) -> Result<(Peer, Share), Status>
    where
        T: Message,
    {
        if request.get_ref().encoded_len() > QUERY_MAX {
            return Err(Status::invalid_argument(format!("a query has at most {QUERY_MAX} bytes")));
        }
        let peer = caller(request)?;
        let share = self.finds.take(peer.certificate().id().as_str())?;
        Ok((peer, share))
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
        let (mut entered, mut endpoint) = self.enter(request)?;
        check_endpoint(&endpoint)?;
        self.check_forwarder(&endpoint, &entered)?;
        let LocalRegistry { sockets, upstream, .. } = &self.registry;
        let socket = sockets.receive(&endpoint, peer.as_ref()).await?;
        endpoint.path_ids.clone_from(&entered.path_ids);
        let Some(upstream) = upstream else { return answer(self.register_here(endpoint, socket, &entered)?, entered) };
        match upstream.register(&endpoint, &mut entered).await {
            Ok(there) => {
                let limit =
                    |time: Timestamp| SystemTime::try_from(time).unwrap_or(entered.expires).min(entered.expires);
                entered.expires = there.expiration_time.map_or(entered.expires, limit);
                endpoint.path_ids = there.path_ids;
                answer(self.register_here(endpoint, socket, &entered)?, entered)
            }
            Err(status) => {
                // It serves its own node meanwhile.
                if is_away(&status) {
                    self.register_here(endpoint, socket, &entered)?;
                }
                Err(status)
            }
        }
    }

    async fn find(&self, request: Request<NetworkServiceEndpointQuery>) -> Result<Response<Self::FindStream>, Status> {
        let (peer, share) = self.enter_find(&request)?;
        let files = peer.files().cloned();
        let query = request.into_inner();
        let endpoint = query.network_service_endpoint.unwrap_or_default();
        let sockets = Arc::clone(&self.registry.sockets);
        let pass = move |told: &NetworkServiceEndpointResponse| match &told.network_service_endpoint {
            Some(endpoint) if !told.deleted => sockets.pass(endpoint, files.as_ref()),
            _ => Ok(()),
        };
        let found = if query.watch {
            following(self.registry.memory.watch_endpoints(peer.certificate().id().as_str(), endpoint)?, pass)
        } else {
            let found = match &self.registry.upstream {
                Some(upstream) if names_other_domain(&endpoint) => {
                    let found = upstream.find_endpoints(endpoint).await?;
                    let told = |found: FoundEndpoint| NetworkServiceEndpointResponse {
                        network_service_endpoint: Some(found.endpoint),
                        deleted: false,
                    };
                    found.into_iter().map(told).map(Arc::new).collect()
                }
                _ => self.registry.memory.find_endpoints(&endpoint),
            };
            all(found, pass, share)
        };
        Ok(Response::new(found))
    }

    async fn unregister(&self, request: Request<NetworkServiceEndpoint>) -> Result<Response<()>, Status> {
        let (entered, endpoint) = self.enter(request)?;
        if let Some(upstream) = &self.registry.upstream
            && let Err(status) = upstream.unregister(&endpoint, &entered).await
        {
            tracing::warn!(name = endpoint.name, %status, "not unregistered at the registry: it runs out by itself");
        }
        self.registry.memory.unregister_endpoint(&endpoint.name, &entered.owner)?;
        self.registry.sockets.settle(None, &self.registry.memory);
        answer((), entered)
    }
}

#[tonic::async_trait]
impl NetworkServiceRegistry for RegistryServer {
    type FindStream = ReceiverStream<Result<NetworkServiceResponse, Status>>;

    async fn register(&self, request: Request<NetworkService>) -> Result<Response<NetworkService>, Status> {
        let (mut entered, mut service) = self.enter(request)?;
        service.path_ids.clone_from(&entered.path_ids);
        let memory = &self.registry.memory;
        let Some(upstream) = &self.registry.upstream else {
            return answer(memory.register_service(service, &entered.owner)?, entered);
        };
        match upstream.register_service(&service, &mut entered).await {
            Ok(there) => answer(memory.register_service(there, &entered.owner)?, entered),
            Err(status) => {
                if is_away(&status) {
                    memory.register_service(service, &entered.owner)?;
                }
                Err(status)
            }
        }
    }

    async fn find(&self, request: Request<NetworkServiceQuery>) -> Result<Response<Self::FindStream>, Status> {
        let (peer, share) = self.enter_find(&request)?;
        let query = request.into_inner();
        let service = query.network_service.unwrap_or_default();
        let found = if query.watch {
            let who = peer.certificate().id().as_str();
            following(self.registry.memory.watch_services(who, service)?, |_| Ok(()))
        } else {
            let found = match &self.registry.upstream {
                Some(upstream) if is_interdomain(&service.name) => {
                    let found = upstream.find_services(service).await?;
                    let told = |service| NetworkServiceResponse { network_service: Some(service), deleted: false };
                    found.into_iter().map(told).map(Arc::new).collect()
                }
                _ => self.registry.memory.find_services(&service),
            };
            all(found, |_| Ok(()), share)
        };
        Ok(Response::new(found))
    }

    async fn unregister(&self, request: Request<NetworkService>) -> Result<Response<()>, Status> {
        let (entered, service) = self.enter(request)?;
        if let Some(upstream) = &self.registry.upstream {
            upstream.unregister_service(&service, &entered).await?;
        }
        self.registry.memory.unregister_service(&service.name, &entered.owner)?;
        answer((), entered)
    }
}

fn names_other_domain(query: &NetworkServiceEndpoint) -> bool {
    is_interdomain(&query.name) || query.network_service_names.iter().any(|name| is_interdomain(name))
}

fn answer<T>(message: T, entered: Entered) -> Result<Response<T>, Status> {
    let mut response = Response::new(message);
    entered.leave(response.metadata_mut())?;
    Ok(response)
}

fn caller<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Status::unauthenticated("the connection has no certificate"))
}

/// What there is, and then the end. `before` passes what goes beside each. Whoever does not read it is let go.
fn all<T: Clone + Send + Sync + 'static>(
    found: Vec<Arc<T>>,
    before: impl Fn(&T) -> io::Result<()> + Send + Sync + 'static,
    share: Share,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, receiver) = mpsc::channel(ANSWERS_AHEAD + 1);
    // An end without an error would say that this was all.
    let last = sender.clone().try_reserve_owned();
    tokio::spawn(async move {
        for found in found {
            match timeout(UNREAD_MAX, send(&sender, &*found, &before)).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    let status = Status::deadline_exceeded(format!("the answer was not read for {UNREAD_MAX:?}"));
                    drop(last.map(|last| last.send(Err(status))));
                    break;
                }
            }
        }
        drop(share);
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
            | RegistrationError::TooMany(..)
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
/// Answers under way, beside those who watch.
const FINDS_MAX: usize = 1 << 10;
const FINDS_OF_ONE_MAX: usize = 256;
const QUERY_MAX: usize = 4 << 10;
const UNREAD_MAX: Duration = Duration::from_secs(30);
