//! `ferrule nsm manager`: the manager of a node, with a registry in memory.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ferrule_nsm::identity::IdentitySource;
use ferrule_nsm::manager::Manager;
use ferrule_nsm::registry::{LocalRegistry, MemoryRegistry, RegistryLimits, RegistryServer};
use ferrule_nsm::service::ConnectionServer;
use ferrule_nsm::transport::{Address, Allowed, DialOptions, ListenLimits, Listener, server};

use super::process::{MANAGER_DEFAULT, ProcessArgs};
use super::{NsmError, Stop};

/// Options of `ferrule nsm manager`.
#[derive(Debug, Args)]
pub(super) struct ManagerArgs {
    /// Its name, which no other manager has
    #[arg(long, env = "NSM_NAME", default_value = "nsmgr")]
    name: String,
    /// Where it listens
    #[arg(long, env = "NSM_LISTEN_ON", value_name = "URL", value_delimiter = ',', default_value = MANAGER_DEFAULT)]
    listen_on: Vec<String>,
    #[command(flatten)]
    process: ProcessArgs,
}

pub(super) async fn run(args: ManagerArgs, stop: Stop) -> Result<(), NsmError> {
    let identity = args.process.identity().await?;
    let addresses = args.listen_on.iter().map(|url| url.parse()).collect::<Result<Vec<Address>, _>>()?;
    serve(&args.name, &addresses, identity, args.process.dial_options(), args.process.token_lifetime, &stop).await
}

/// Serves at all addresses until `stop`.
pub(super) async fn serve(
    name: &str,
    addresses: &[Address],
    identity: IdentitySource,
    options: DialOptions,
    token_lifetime: Duration,
    stop: &Stop,
) -> Result<(), NsmError> {
    let registry = LocalRegistry::new(Arc::new(MemoryRegistry::new(RegistryLimits::default())));
    let manager = Manager::new(registry.clone(), identity.clone(), options);
    let calls = ConnectionServer::new(name, token_lifetime, manager);
    let registry = RegistryServer::new(registry, token_lifetime);
    let mut serving = tokio::task::JoinSet::new();
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
    tokio::select! {
        () = stop.future() => Ok(()),
        Some(ended) = serving.join_next() => Ok(ended.map_err(std::io::Error::other)??),
    }
}
