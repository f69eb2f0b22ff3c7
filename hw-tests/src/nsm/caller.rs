//! Calls processes of a mesh as its neighbours do, by hand: well, and badly.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ferrule_nsm::files::Inode;
use ferrule_nsm::identity::{Identity, IdentitySource, WorkloadSocket};
use ferrule_nsm::path::Place;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::proto::registry::{NetworkService, NetworkServiceEndpoint};
use ferrule_nsm::registry::{Registration, RegistryClient};
use ferrule_nsm::service::{ConnectionServer, Handler, INODE_URL, NextHop};
use ferrule_nsm::transport::{
    Address, Allowed, Connection as Channel, DialOptions, KeptConnection, ListenLimits, Listener, server,
};
use nix::fcntl::OFlag;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::TIMEOUT;

/// Somebody of a mesh.
pub struct Caller {
    runtime: Runtime,
    identity: IdentitySource,
}

impl Caller {
    /// Whoever a socket of the Workload API is of.
    pub fn at(socket: PathBuf) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start threads")?;
        let identity = runtime.block_on(WorkloadSocket::at(socket).identity())?;
        Ok(Self { runtime, identity })
    }

    /// Who it is.
    pub fn identity(&self) -> &IdentitySource {
        &self.identity
    }

    /// Where its work runs.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Connects to whoever is at a url.
    pub fn dial(&self, url: &str) -> Result<NextHop> {
        self.runtime.block_on(dial(url, &self.identity.current(), &DialOptions::default()))
    }
}

/// An endpoint of a test's own, of a service of the same name. It ends with this value.
pub struct Served(AbortHandle);

impl Served {
    /// Serves at a socket as `caller` what carries a payload, and waits until it is registered at a manager.
    pub fn start<H: Handler>(
        caller: &Caller,
        (name, payload): (&str, &str),
        socket: PathBuf,
        manager: &str,
        handler: H,
    ) -> Result<Self> {
        let kept = KeptConnection::new(manager.parse()?, caller.identity.clone(), DialOptions::default());
        let registry = Arc::new(RegistryClient::new(kept, REGISTRY_TIMEOUT));
        let (registered, is_registered) = oneshot::channel();
        let (name, payload, identity) = (name.to_owned(), payload.to_owned(), caller.identity.clone());
        let serving = caller.runtime.spawn(async move {
            let calls = ConnectionServer::new(&name, TOKEN_LIFETIME, handler);
            let address = Address::Unix(socket.clone());
            let listener = Listener::bind(&address, identity, Allowed::AnyTrusted, ListenLimits::default()).await?;
            registry.register_service(&NetworkService { name: name.clone(), payload, ..Default::default() }).await?;
            let network_service_names = vec![name.clone()];
            let endpoint = NetworkServiceEndpoint { name, network_service_names, ..NetworkServiceEndpoint::default() };
            let registration = Registration::with_socket(registry, endpoint, &socket)?;
            let mut told = registration.is_registered();
            let telling = async {
                drop(told.wait_for(|is| *is).await);
                let _ = registered.send(());
                pending::<()>().await;
            };
            let routes = server().add_service(calls.service()).add_service(calls.monitor().service());
            tokio::select! {
                served = routes.serve_with_incoming(listener.connections()) => served?,
                () = registration.run(telling) => {}
            }
            anyhow::Ok(())
        });
        let serving = Self(serving.abort_handle());
        let waited = caller.runtime.block_on(async { timeout(TIMEOUT, is_registered).await });
        waited.context("an endpoint is not registered in time")?.context("an endpoint does not serve")?;
        Ok(serving)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects to whoever is at a url.
pub async fn dial(url: &str, identity: &Identity, options: &DialOptions) -> Result<NextHop> {
    let options = DialOptions { timeout: DIAL_MAX, ..options.clone() };
    Ok(NextHop::new(Channel::dial(&url.parse()?, identity, &options).await?))
}

/// A first request of the process `name`, whose connection has this id there.
pub fn request(name: &str, id: &str, service: &str, mechanism: Mechanism) -> NetworkServiceRequest {
    let (id, network_service) = (id.to_owned(), service.to_owned());
    let mut connection = Connection { id, network_service, ..Connection::default() };
    Place::enter(&mut connection, name).expect("a path that is empty has room");
    NetworkServiceRequest { connection: Some(connection), mechanism_preferences: vec![mechanism] }
}

/// A kernel interface of this name, in the namespace of this file.
pub fn kernel(file: &OwnedFd, interface: &str) -> Result<Mechanism> {
    Ok(mechanism("KERNEL", &[(INODE_URL, &Inode::of(file)?.to_string()), ("name", interface)]))
}

/// A mechanism of this node.
pub fn mechanism(kind: &str, parameters: &[(&str, &str)]) -> Mechanism {
    let parameters: BTreeMap<_, _> =
        parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Mechanism { cls: "LOCAL".to_owned(), r#type: kind.to_owned(), parameters }
}

/// A file to be passed.
pub fn file(path: &Path) -> Result<Arc<OwnedFd>> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
    Ok(Arc::new(opened.with_context(|| format!("open {}", path.display()))?.into()))
}

const REGISTRY_TIMEOUT: Duration = Duration::from_secs(5);
const TOKEN_LIFETIME: Duration = Duration::from_mins(10);
/// The machine may be busy.
const DIAL_MAX: Duration = Duration::from_secs(30);
