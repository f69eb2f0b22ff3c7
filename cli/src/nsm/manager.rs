//! `ferrule nsm manager`: the manager of a node, with a registry in memory; `ferrule nsm registry`: a registry of several nodes.

use std::future::pending;
use std::sync::Arc;

use clap::Args;
use ferrule_nsm::identity::IdentitySource;
use ferrule_nsm::manager::Manager;
use ferrule_nsm::process::{MANAGER_DEFAULT, ProcessArgs, REGISTRY_TIMEOUT, Trusted};
use ferrule_nsm::registry::{LocalRegistry, MemoryRegistry, RegistryClient, RegistryLimits, RegistryServer, Upstream};
use ferrule_nsm::service::ConnectionServer;
use ferrule_nsm::transport::{Address, Allowed, DialOptions, KeptConnection, ListenLimits, Listener, server};
use tokio::task::JoinSet;

use super::{NsmError, StopSignal};

/// Options of `ferrule nsm manager`.
#[derive(Debug, Args)]
pub(super) struct ManagerArgs {
    /// Its name, which no other manager has
    #[arg(long, env = "NSM_NAME", default_value = "nsmgr")]
    name: String,
    /// Where it listens; with another registry also where other nodes reach it, as in `tcp://192.0.2.1:5001`
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URL", value_delimiter = ',', default_value = MANAGER_DEFAULT)]
    listen_on: Vec<String>,
    /// The registry of all nodes; by default there is this node alone
    #[arg(long, env = "NSM_REGISTRY_URL", value_name = "URL")]
    registry_url: Option<String>,
    #[command(flatten)]
    trusted: Trusted,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Options of `ferrule nsm registry`.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Where it listens
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URL")]
    listen_on: String,
    /// Managers, which register for others: a SPIFFE ID, or all below one
    #[arg(long = "relay", value_name = "ID")]
    relays: Vec<String>,
    #[command(flatten)]
    process: ProcessArgs,
}

/// What a manager is.
pub(super) struct Managing<'a> {
    pub(super) name: &'a str,
    pub(super) addresses: &'a [Address],
    pub(super) trusted: &'a Trusted,
    /// The registry of all nodes.
    pub(super) registry: Option<Address>,
}

pub(super) async fn run(args: ManagerArgs, stop: StopSignal) -> Result<(), NsmError> {
    let identity = args.process.identity().await?;
    let addresses = args.listen_on.iter().map(|url| url.parse()).collect::<Result<Vec<Address>, _>>()?;
    let registry = args.registry_url.as_deref().map(str::parse).transpose()?;
    let managing = Managing { name: &args.name, addresses: &addresses, trusted: &args.trusted, registry };
    Box::pin(serve(managing, identity, args.process.dial_options(), &stop)).await
}

/// Serves at all addresses until `stop`.
pub(super) async fn serve(
    managing: Managing<'_>,
    identity: IdentitySource,
    options: DialOptions,
    stop: &StopSignal,
) -> Result<(), NsmError> {
    let Managing { name, addresses, trusted, registry: above } = managing;
    let memory = Arc::new(MemoryRegistry::new(RegistryLimits::default()));
    let mut registry = LocalRegistry::new(Arc::clone(&memory));
    let mut following = None;
    if let Some(above) = above {
        let url = addresses.iter().find(|address| matches!(address, Address::Tcp(_)));
        let url = url.ok_or_else(|| NsmError::NoNode(name.to_owned()))?.to_string();
        let kept = KeptConnection::new(above, identity.clone(), options.clone());
        let client = Arc::new(RegistryClient::new(kept, REGISTRY_TIMEOUT));
        let upstream = Arc::new(Upstream::new(client, Arc::clone(&memory), &url));
        registry = registry.part_of(Arc::clone(&upstream));
        following = Some(upstream);
    }
    let token_lifetime = options.token_lifetime;
    let manager = Manager::new(registry.clone(), identity.clone(), options);
    let calls = ConnectionServer::new(name, token_lifetime, manager);
    trusted.tell(&calls)?;
    let registry = RegistryServer::new(registry, token_lifetime);
    for relay in &trusted.relays {
        registry.relays().add(relay)?;
        registry.forwarders().add(relay)?;
    }
    let mut serving = JoinSet::new();
    for address in addresses {
        let listener = Listener::bind(address, identity.clone(), Allowed::AnyTrusted, ListenLimits::default()).await?;
        let routes = server()
            .add_service(calls.service())
            .add_service(calls.monitor().service())
            .add_service(registry.endpoints())
            .add_service(registry.services());
        serving.spawn(async move { routes.serve_with_incoming(listener.connections()).await });
        println!("manager {name} on {address}");
    }
    let follow = async {
        match &following {
            Some(upstream) => upstream.run().await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = stop.future() => Ok(()),
        () = follow => Ok(()),
        () = memory.run() => Ok(()),
        Some(ended) = serving.join_next() => Ok(ended.map_err(std::io::Error::other)??),
    }
}

/// Serves a registry until `stop`.
pub(super) async fn run_registry(args: RegistryArgs, stop: StopSignal) -> Result<(), NsmError> {
    let identity = args.process.identity().await?;
    let memory = Arc::new(MemoryRegistry::new(RegistryLimits::default()));
    let registry = RegistryServer::new(LocalRegistry::new(Arc::clone(&memory)), args.process.token_lifetime);
    for relay in &args.relays {
        registry.relays().add(relay)?;
    }
    let address: Address = args.listen_on.parse()?;
    let listener = Listener::bind(&address, identity, Allowed::AnyTrusted, ListenLimits::default()).await?;
    let routes = server().add_service(registry.endpoints()).add_service(registry.services());
    println!("registry on {address}");
    tokio::select! {
        () = stop.future() => Ok(()),
        () = memory.run() => Ok(()),
        served = routes.serve_with_incoming(listener.connections()) => Ok(served?),
    }
}
