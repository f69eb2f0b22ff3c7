//! A whole mesh over real sockets, for tests: manager with its registry, forwarders, an endpoint.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::server::Router;

use crate::endpoint::Endpoint;
use crate::files::Inode;
use crate::identity::test_identities::Identities;
use crate::identity::{Identity, IdentitySource};
use crate::manager::Manager;
use crate::monitor::Follower;
use crate::path::Place;
use crate::proto::connection::{Connection, Mechanism};
use crate::proto::networkservice::NetworkServiceRequest;
use crate::proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use crate::registry::{LocalRegistry, MemoryRegistry, RegistryClient, RegistryLimits, RegistryServer, Upstream};
use crate::service::{Call, ConnectionServer, Handler, INODE_URL, MechanismFiles, NextHop};
use crate::test_process::TestProcess;
use crate::transport::{
    Address, Allowed, Connection as Channel, DialOptions, KeptConnection, ListenLimits, Listener, Peer, server,
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_mins(10);

/// How a forwarder answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// Nothing that is asked for.
    Refuses,
    /// The same, since the client may not have it.
    Denies,
    /// All that is asked for, with a path that nobody believes.
    Lies,
}

/// Joins nothing, but calls the endpoint as a forwarder does.
struct TestForwarder {
    registry: Arc<RegistryClient>,
    identity: IdentitySource,
    manner: Manner,
    hops: Mutex<BTreeMap<String, TestHop>>,
}

/// What it has below: the next process, the connection there, and who follows it.
struct TestHop {
    next: NextHop,
    below: Connection,
    following: AbortHandle,
}

impl Drop for TestHop {
    fn drop(&mut self) {
        self.following.abort();
    }
}

#[tonic::async_trait]
impl Handler for TestForwarder {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        match self.manner {
            Manner::Refuses => return Err(Status::failed_precondition("no token ID provided")),
            Manner::Denies => return Err(Status::permission_denied("the namespace is not the client's")),
            Manner::Honest | Manner::Lies => {}
        }
        let theirs = call.preferences.first().cloned().unwrap_or_default();
        let files = MechanismFiles::receive(call.peer.as_ref().and_then(Peer::files), [&theirs]).await?;
        // What comes from another node names none.
        if theirs.parameters.contains_key(INODE_URL) {
            files.of(&theirs).ok_or_else(|| Status::invalid_argument("no namespace"))?;
        }
        let network_service_names = vec![call.connection.network_service.clone()];
        let query = NetworkServiceEndpoint { network_service_names, ..NetworkServiceEndpoint::default() };
        let found = self.registry.find_endpoints(query).await?;
        let endpoint = found.first().ok_or_else(|| Status::not_found("no endpoint"))?;
        let next = dial(&endpoint.address().unwrap(), &self.identity.current()).await;
        let mut connection = call.connection;
        connection.mechanism = None;
        let mechanism_preferences = vec![mechanism(BTreeMap::new())];
        let message = NetworkServiceRequest { connection: Some(connection), mechanism_preferences };
        let mut answer = next.request(message, &[], call.limit).await?;
        let below = answer.clone();
        answer.mechanism = Some(theirs);
        let (follower, calls) = (Follower::new(answer.clone()), next.connection().calls());
        let following = tokio::spawn(async move {
            call.answered.wait().await;
            follower.follow(calls, move |changed| call.monitor.change(changed)).await;
        });
        let hop = TestHop { next, below, following: following.abort_handle() };
        self.hops.lock().unwrap().insert(answer.id.clone(), hop);
        if let (Manner::Lies, Some(path)) = (self.manner, &mut answer.path) {
            path.path_segments[3].token.clear();
        }
        Ok(answer)
    }

    async fn close(&self, call: Call) -> Result<(), Status> {
        let hop = self.hops.lock().unwrap().remove(&call.connection.id).expect("it was made");
        hop.next.close(hop.below.clone(), &[], call.limit).await
    }
}

/// All but the client in processes of their own.
pub(crate) struct Mesh {
    pub(crate) identities: Identities,
    directory: PathBuf,
    /// Of each process one at a time, as it shows to whoever it calls and whoever calls it.
    sources: BTreeMap<String, (watch::Sender<Identity>, IdentitySource)>,
    processes: BTreeMap<&'static str, TestProcess>,
    pub(crate) namespace: Arc<OwnedFd>,
}

impl Mesh {
    fn new(directory: &Path) -> Self {
        Self {
            identities: Identities::new("example.org"),
            directory: directory.to_owned(),
            sources: BTreeMap::new(),
            processes: BTreeMap::new(),
            namespace: Arc::new(path("/proc/self/ns/net".as_ref())),
        }
    }

    /// One node, with an endpoint of the service vpn, which has two addresses.
    pub(crate) async fn with_endpoint(directory: &Path) -> Self {
        let mut mesh = Self::new(directory);
        let registry = LocalRegistry::new(Arc::new(MemoryRegistry::new(RegistryLimits::default())));
        mesh.manager("nsmgr", registry, &[mesh.address("nsmgr")]).await;
        mesh.endpoint("nse", "nsmgr").await;
        mesh
    }

    /// Two nodes with a manager and a forwarder each, and a registry. The endpoint is on the second one.
    pub(crate) async fn of_two_nodes(directory: &Path) -> Self {
        let mut mesh = Self::new(directory);
        mesh.start_registry().await;
        for (manager, forwarder) in [("nsmgr-1", "fwd-1"), ("nsmgr-2", "fwd-2")] {
            // The test for whether a port is free is to listen there: the url is published before somebody listens.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let public = Address::Tcp(format!("127.0.0.1:{port}"));
            let client = mesh.registry_at(manager, "registry", Duration::from_secs(2));
            let memory = Arc::new(MemoryRegistry::new(RegistryLimits::default()));
            let upstream = Arc::new(Upstream::new(client, Arc::clone(&memory), &public.to_string()));
            let registry = LocalRegistry::new(memory).part_of(Arc::clone(&upstream));
            mesh.manager(manager, registry, &[mesh.address(manager), public]).await;
            mesh.processes[manager].spawn(async move { upstream.run().await });
            mesh.forwarder_at(forwarder, manager, Manner::Honest).await;
        }
        mesh.endpoint("nse", "nsmgr-2").await;
        mesh
    }

    /// The registry of all nodes.
    pub(crate) async fn start_registry(&mut self) {
        let registry = LocalRegistry::new(Arc::new(MemoryRegistry::new(RegistryLimits::default())));
        let calls = RegistryServer::new(registry, LIFETIME);
        calls.relays().add("spiffe://example.org/nsmgr-1").unwrap();
        calls.relays().add("spiffe://example.org/nsmgr-2").unwrap();
        let router = server().add_service(calls.endpoints()).add_service(calls.services());
        self.serve("registry", &[self.address("registry")], router).await;
    }

    async fn manager(&mut self, name: &'static str, registry: LocalRegistry, addresses: &[Address]) {
        let source = self.source(name);
        let calls = ConnectionServer::new(name, LIFETIME, Manager::new(registry.clone(), source, patient()));
        let registry = RegistryServer::new(registry, LIFETIME);
        for name in RELAYS.into_iter().chain(["a-liar"]) {
            registry.forwarders().add(&format!("spiffe://example.org/{name}")).unwrap();
        }
        let router = router(&calls).add_service(registry.endpoints()).add_service(registry.services());
        self.serve(name, addresses, router).await;
    }

    async fn endpoint(&mut self, name: &'static str, manager: &str) {
        let handler = Endpoint::new(Arc::clone(&self.namespace), &["10.0.0.0/31".parse().unwrap()]).unwrap();
        let calls = ConnectionServer::new(name, LIFETIME, handler);
        self.serve(name, &[self.address(name)], router(&calls)).await;
        self.register_endpoint(name, manager).await;
    }

    async fn register_endpoint(&mut self, name: &str, manager: &str) {
        let registry = self.registry_at(name, manager, DEADLINE);
        registry.register_service(&NetworkService { name: "vpn".to_owned(), ..Default::default() }).await.unwrap();
        registry.register(&registration(name, "vpn", &self.address(name).to_string()), None).await.unwrap();
    }

    /// Kills the manager. Another one comes in its place, which knows the endpoint only.
    pub(crate) async fn replace_manager(&mut self) {
        self.kill("nsmgr").await;
        let registry = LocalRegistry::new(Arc::new(MemoryRegistry::new(RegistryLimits::default())));
        self.manager("nsmgr", registry, &[self.address("nsmgr")]).await;
        self.register_endpoint("nse", "nsmgr").await;
    }

    /// A forwarder that passes its socket when it registers.
    pub(crate) async fn forwarder(&mut self, name: &'static str, manner: Manner) {
        self.forwarder_at(name, "nsmgr", manner).await;
    }

    async fn forwarder_at(&mut self, name: &'static str, manager: &str, manner: Manner) {
        let registry = self.serve_forwarder(name, manager, manner).await;
        self.register_forwarder(name, &registry).await.unwrap();
    }

    /// One that is not registered, and the registry that it uses.
    pub(crate) async fn serve_forwarder(
        &mut self,
        name: &'static str,
        manager: &str,
        manner: Manner,
    ) -> Arc<RegistryClient> {
        let registry = self.registry_at(name, manager, DEADLINE);
        let identity = self.source(name);
        let handler = TestForwarder { registry: Arc::clone(&registry), identity, manner, hops: Mutex::default() };
        let calls = ConnectionServer::new(name, LIFETIME, handler);
        self.serve(name, &[self.address(name)], router(&calls)).await;
        registry
    }

    /// As it does again when its manager was replaced.
    pub(crate) async fn register_forwarder(&self, name: &str, registry: &RegistryClient) -> Result<(), Status> {
        let socket = Arc::new(path(&self.directory.join(name)));
        let mut registration = registration(name, "forwarder", &Inode::of(&socket).unwrap().to_string());
        let labels = NetworkServiceLabels { labels: [("p2p".to_owned(), "true".to_owned())].into() };
        registration.network_service_labels.insert("forwarder".to_owned(), labels);
        registry.register(&registration, Some(&socket)).await.map(drop)
    }

    async fn serve(&mut self, name: &'static str, addresses: &[Address], router: Router) {
        let process = TestProcess::new();
        for address in addresses {
            let (source, bound, router) = (self.source(name), address.clone(), router.clone());
            let bound = process.spawn(async move {
                Listener::bind(&bound, source, Allowed::AnyTrusted, ListenLimits::default()).await.unwrap()
            });
            let listener = bound.await.unwrap();
            process.spawn(async move { router.serve_with_incoming(listener.connections()).await.unwrap() });
        }
        self.processes.insert(name, process);
    }

    /// Kills a process, and waits until its socket is free.
    pub(crate) async fn kill(&mut self, name: &str) {
        self.processes.remove(name);
        let going = async {
            while self.directory.join(name).exists() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, going).await.expect("the socket's file goes");
    }

    /// Gives a process a new certificate and a new key, of the same name.
    pub(crate) fn rotate(&mut self, name: &str) {
        let new = self.identities.identity(&format!("/{name}"));
        self.sources[name].0.send_replace(new);
    }

    pub(crate) fn source(&mut self, name: &str) -> IdentitySource {
        let new = || IdentitySource::new(self.identities.identity(&format!("/{name}")));
        self.sources.entry(name.to_owned()).or_insert_with(new).1.clone()
    }

    pub(crate) fn registry_at(&mut self, name: &str, at: &str, timeout: Duration) -> Arc<RegistryClient> {
        let kept = KeptConnection::new(self.address(at), self.source(name), patient());
        Arc::new(RegistryClient::new(kept, timeout))
    }

    pub(crate) fn address(&self, name: &str) -> Address {
        Address::Unix(self.directory.join(name))
    }

    pub(crate) async fn client(&self) -> NextHop {
        self.client_at("nsmgr").await
    }

    pub(crate) async fn client_at(&self, manager: &str) -> NextHop {
        dial(&self.address(manager), &self.identities.identity("/nsc")).await
    }

    /// The client asks the manager.
    pub(crate) async fn ask(&self, client: &NextHop, connection: Connection) -> Result<Connection, Status> {
        let url = Inode::of(&self.namespace).unwrap().to_string();
        let mechanism_preferences = vec![mechanism([(INODE_URL.to_owned(), url)].into())];
        let message = NetworkServiceRequest { connection: Some(connection), mechanism_preferences };
        Ok(client.request(message, &[Arc::clone(&self.namespace)], DEADLINE).await?)
    }

    pub(crate) async fn close(&self, client: &NextHop, connection: Connection) {
        client.close(connection, &[Arc::clone(&self.namespace)], DEADLINE).await.unwrap();
    }
}

/// Managers and forwarders.
const RELAYS: [&str; 11] =
    ["nsmgr", "nsmgr-1", "nsmgr-2", "fwd", "fwd-1", "fwd-2", "other", "third", "a-fwd", "b-fwd", "c-fwd"];

/// They may go on with each other's connections.
fn router<H: Handler>(calls: &ConnectionServer<H>) -> Router {
    for name in RELAYS {
        calls.relays().add(&format!("spiffe://example.org/{name}")).unwrap();
    }
    server().add_service(calls.service()).add_service(calls.monitor().service())
}

pub(crate) fn patient() -> DialOptions {
    DialOptions { timeout: DEADLINE, ..DialOptions::default() }
}

async fn dial(address: &Address, identity: &Identity) -> NextHop {
    NextHop::new(Channel::dial(address, identity, &patient()).await.unwrap())
}

fn path(name: &Path) -> OwnedFd {
    open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub(crate) fn mechanism(parameters: BTreeMap<String, String>) -> Mechanism {
    Mechanism { cls: "LOCAL".to_owned(), r#type: "KERNEL".to_owned(), parameters }
}

fn registration(name: &str, service: &str, url: &str) -> NetworkServiceEndpoint {
    let (name, url) = (name.to_owned(), url.to_owned());
    NetworkServiceEndpoint { name, network_service_names: vec![service.to_owned()], url, ..Default::default() }
}

pub(crate) fn first(id: &str) -> Connection {
    let (id, network_service) = (id.to_owned(), "vpn".to_owned());
    let mut connection = Connection { id, network_service, ..Connection::default() };
    Place::enter(&mut connection, "nsc").unwrap();
    connection
}

pub(crate) fn way(connection: &Connection) -> Vec<(String, String)> {
    let segments = &connection.path.as_ref().unwrap().path_segments;
    segments.iter().map(|segment| (segment.name.clone(), segment.id.clone())).collect()
}
