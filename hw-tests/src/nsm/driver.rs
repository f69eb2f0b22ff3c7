//! A client and endpoints that do what a case says: what programs do that are not well, or not ours.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use ferrule_ffi::netns::NetNs;
use ferrule_nsm::files::Inode;
use ferrule_nsm::identity::{IdentitySource, WorkloadSocket};
use ferrule_nsm::path::Place;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::connectioncontext::{ConnectionContext, IpContext};
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use ferrule_nsm::registry::RegistryClient;
use ferrule_nsm::service::{Call, ConnectionServer, Handler, INODE_URL, NextHop};
use ferrule_nsm::transport::{
    Address, Allowed, Connection as Channel, DialOptions, KeptConnection, ListenLimits, Listener, Peer, server,
};
use nix::fcntl::OFlag;
use tokio::runtime::Runtime;
use tonic::Status;

use super::mesh::{Mesh, SERVICE, client_name};
use super::node::MeshNode;
use crate::TIMEOUT;

/// Asks a node's manager for what a case wants.
pub struct Driver {
    runtime: Runtime,
    manager: Address,
    identities: PathBuf,
    /// Where the node is.
    netns: PathBuf,
}

/// A client that a case drives. It refreshes nothing by itself.
pub struct DrivenClient {
    identity: IdentitySource,
    name: String,
}

/// An endpoint that a case drives. It is registered as long as this value lives.
pub struct DrivenEndpoint {
    script: Arc<Mutex<EndpointScript>>,
    _serving: tokio::task::JoinHandle<()>,
}

/// What an endpoint answers.
#[derive(Clone, Default)]
pub struct EndpointScript {
    /// What the next answers have as their mechanisms, one after the other; the last one stays.
    pub mechanisms: Vec<Mechanism>,
    /// What goes with each answer.
    pub files: Vec<Arc<OwnedFd>>,
    /// What its answers say of addresses and the like.
    pub context: ConnectionContext,
    /// How often it was asked, and to close.
    pub asked: usize,
    /// How often it was asked to close something.
    pub closed: usize,
    /// What it was asked for last.
    pub preferences: Vec<Mechanism>,
}

impl Driver {
    /// Of the node that clients of a mesh are on.
    pub fn new(mesh: &mut Mesh) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let identities = mesh.path("identity");
        let node: &MeshNode = mesh.near();
        Ok(Self { runtime, manager: node.manager_url().parse()?, identities, netns: node.place().netns().path() })
    }

    /// The client of a number, which has the identity of that number.
    pub fn client(&self, number: usize) -> Result<DrivenClient> {
        let name = client_name(number);
        Ok(DrivenClient { identity: self.identity(&name)?, name })
    }

    fn identity(&self, name: &str) -> Result<IdentitySource> {
        let socket = WorkloadSocket::at(self.identities.join(format!("{name}.sock")));
        Ok(self.runtime.block_on(socket.identity())?)
    }

    /// Serves an endpoint of the service at an address in the node's namespace, and registers it.
    pub fn endpoint(&self, name: &str, address: &Address, script: EndpointScript) -> Result<DrivenEndpoint> {
        self.endpoint_of("ETHERNET", name, address, script)
    }

    /// The same of a service with this payload.
    pub fn endpoint_of(
        &self,
        payload: &str,
        name: &str,
        address: &Address,
        script: EndpointScript,
    ) -> Result<DrivenEndpoint> {
        let identity = self.identity("nse")?;
        let script = Arc::new(Mutex::new(script));
        let calls = ConnectionServer::new(name, DialOptions::default().token_lifetime, Scripted(Arc::clone(&script)));
        calls.relays().add("spiffe://ferrule.local/fwd-1")?;
        calls.relays().add("spiffe://ferrule.local/nsmgr-1")?;
        let routes = server().add_service(calls.service()).add_service(calls.monitor().service());
        let options = DialOptions { timeout: TIMEOUT, ..DialOptions::default() };
        let kept = KeptConnection::new(self.manager.clone(), identity.clone(), options);
        let registry = RegistryClient::new(kept, TIMEOUT);
        let labels = [(SERVICE.to_owned(), NetworkServiceLabels::default())].into();
        let endpoint = NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_names: vec![SERVICE.to_owned()],
            network_service_labels: labels,
            url: address.to_string(),
            ..NetworkServiceEndpoint::default()
        };
        let service =
            NetworkService { name: SERVICE.to_owned(), payload: payload.to_owned(), ..NetworkService::default() };
        let bind = Listener::bind(address, identity, Allowed::AnyTrusted, ListenLimits::default());
        let listener = NetNs::open(&self.netns)?.run(|| self.runtime.block_on(bind))??;
        self.runtime.block_on(async {
            registry.register_service(&service).await?;
            registry.register(&endpoint, None).await.map(drop)
        })?;
        let serving = async move {
            if let Err(error) = routes.serve_with_incoming(listener.connections()).await {
                tracing::warn!(%error, "a driven endpoint serves no more");
            }
        };
        Ok(DrivenEndpoint { script, _serving: self.runtime.spawn(serving) })
    }

    /// Asks for a connection, new or known, with a mechanism and the file that it names.
    pub fn ask(
        &self,
        client: &DrivenClient,
        connection: Connection,
        mechanism: &Mechanism,
        file: &Arc<OwnedFd>,
    ) -> Result<Connection, Status> {
        self.runtime.block_on(async {
            let message =
                NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![mechanism.clone()] };
            let next = self.dial(client).await?;
            Ok(next.request(message, &[Arc::clone(file)], LIMIT).await?)
        })
    }

    /// Closes one.
    pub fn close(&self, client: &DrivenClient, connection: Connection, file: &Arc<OwnedFd>) -> Result<(), Status> {
        self.runtime.block_on(async {
            let next = self.dial(client).await?;
            next.close(connection, &[Arc::clone(file)], LIMIT).await
        })
    }

    async fn dial(&self, client: &DrivenClient) -> Result<NextHop, Status> {
        let options = DialOptions { timeout: TIMEOUT, ..DialOptions::default() };
        Ok(NextHop::new(Channel::dial(&self.manager, &client.identity.current(), &options).await?))
    }
}

impl DrivenClient {
    /// A connection as it is asked for first.
    pub fn first(&self) -> Result<Connection> {
        let id = format!("{}-0", self.name);
        let mut connection = Connection { id, network_service: SERVICE.to_owned(), ..Connection::default() };
        Place::enter(&mut connection, &self.name)?;
        Ok(connection)
    }
}

impl DrivenEndpoint {
    /// What it answers, and what it was asked.
    pub fn script(&self) -> MutexGuard<'_, EndpointScript> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EndpointScript {
    /// An interface of this name in a namespace, and an address at either end.
    pub fn kernel(netns: &Path, name: &str, addresses: [&str; 2]) -> Result<Self> {
        let file = open(netns)?;
        let mechanism = kernel(&file, name)?;
        Ok(Self { mechanisms: vec![mechanism], files: vec![file], context: context(addresses), ..Self::default() })
    }
}

/// Answers what its script says.
struct Scripted(Arc<Mutex<EndpointScript>>);

#[tonic::async_trait]
impl Handler for Scripted {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        let mut connection = call.connection;
        let (mechanism, context, files) = {
            let mut script = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let last = script.mechanisms.len().saturating_sub(1);
            let mechanism = script.mechanisms.get(script.asked.min(last)).cloned();
            script.asked += 1;
            script.preferences.clone_from(&call.preferences);
            (mechanism, script.context.clone(), script.files.clone())
        };
        let asked = connection.context.take().unwrap_or_default();
        let mtu = [asked.mtu, context.mtu].into_iter().filter(|mtu| *mtu > 0).min().unwrap_or(0);
        connection.context = Some(ConnectionContext { mtu, ..context });
        connection.mechanism = mechanism;
        if let Some(path) = &mut connection.path {
            call.place.trim(path);
        }
        if let Some(passed) = call.peer.as_ref().and_then(Peer::files) {
            for file in files {
                passed.send(file).map_err(|error| Status::unavailable(error.to_string()))?;
            }
        }
        Ok(connection)
    }

    async fn close(&self, _: Call) -> Result<(), Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).closed += 1;
        Ok(())
    }
}

/// A file as it is passed.
pub fn open(path: &Path) -> Result<Arc<OwnedFd>> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
    Ok(Arc::new(opened.with_context(|| format!("open {}", path.display()))?.into()))
}

/// An interface of this name.
pub fn kernel(netns: &Arc<OwnedFd>, name: &str) -> Result<Mechanism> {
    mechanism("KERNEL", netns, &[("name", name)])
}

/// A mechanism of this node, with the file that it names.
pub fn mechanism(kind: &str, file: &Arc<OwnedFd>, parameters: &[(&str, &str)]) -> Result<Mechanism> {
    let mut all: BTreeMap<_, _> =
        parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    all.insert(INODE_URL.to_owned(), Inode::of(file)?.to_string());
    Ok(Mechanism { cls: "LOCAL".to_owned(), r#type: kind.to_owned(), parameters: all })
}

/// An address for the client, and one for the endpoint.
pub fn context([client, endpoint]: [&str; 2]) -> ConnectionContext {
    let of = |address: &str| vec![address.to_owned()];
    let ip = IpContext { src_ip_addrs: of(client), dst_ip_addrs: of(endpoint), ..IpContext::default() };
    ConnectionContext { ip_context: Some(ip), ..ConnectionContext::default() }
}

/// What one call may take. With less than that left of its tokens no connection lasts.
const LIMIT: Duration = Duration::from_secs(10);
