//! `ferrule nsm endpoint`: a service whose ends are kernel interfaces.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use ferrule_nsm::endpoint::KernelEndpoint;
use ferrule_nsm::identity::IdentitySource;
use ferrule_nsm::proto::registry::{NetworkService, NetworkServiceEndpoint, NetworkServiceLabels};
use ferrule_nsm::registry::{Registration, RegistryClient};
use ferrule_nsm::service::ConnectionServer;
use ferrule_nsm::transport::{Address, Allowed, ListenLimits, Listener, server};
use sriov_manager_client::tokens::tokens_of_variables;
use tokio::time::sleep;

use super::identities::make_directory;
use super::process::{MANAGER_DEFAULT, ProcessArgs, Trusted};
use super::{NsmError, StopSignal, open_namespace};

/// Options of `ferrule nsm endpoint`.
#[derive(Clone, Debug, Args)]
pub(super) struct EndpointArgs {
    /// Its name, which no other endpoint has
    #[arg(long, env = "NSM_NAME", default_value = "nse")]
    pub(super) name: String,
    /// The services that it offers
    #[arg(long = "service", env = "NSM_SERVICE_NAMES", value_name = "NAME", value_delimiter = ',', required = true)]
    pub(super) services: Vec<String>,
    /// Addresses for both ends come out of these, one pair of each
    #[arg(long = "prefix", env = "NSM_CIDR_PREFIX", value_name = "PREFIX", value_delimiter = ',', required = true)]
    pub(super) prefixes: Vec<ipnet::IpNet>,
    /// Labels by which its services choose it, `name:value`
    #[arg(long = "label", env = "NSM_LABELS", value_name = "NAME:VALUE", value_delimiter = ',', value_parser = label)]
    pub(super) labels: Vec<(String, String)>,
    /// What its connections carry: ETHERNET or IP
    #[arg(long, env = "NSM_PAYLOAD", default_value = "ETHERNET")]
    pub(super) payload: String,
    /// The manager of the node
    #[arg(long, env = "NSM_CONNECT_TO", value_name = "URL", default_value = MANAGER_DEFAULT)]
    pub(super) connect_to: String,
    /// Where it listens; its file is passed on, and the path means nothing to others
    #[arg(long, value_name = "PATH")]
    pub(super) listen_on: Option<PathBuf>,
    /// Where its ends are
    #[arg(long, value_name = "PATH", default_value = "/proc/self/ns/net")]
    pub(super) netns: PathBuf,
    #[command(flatten)]
    pub(super) trusted: Trusted,
    #[command(flatten)]
    pub(super) process: ProcessArgs,
}

pub(super) async fn run(args: EndpointArgs, stop: StopSignal) -> Result<(), NsmError> {
    let identity = args.process.identity().await?;
    Box::pin(serve(args, identity, stop)).await
}

/// Serves until `stop`, then is unregistered.
pub(super) async fn serve(args: EndpointArgs, identity: IdentitySource, stop: StopSignal) -> Result<(), NsmError> {
    let path = args.listen_on.clone().unwrap_or_else(|| format!("{RUN}/endpoint-{}.sock", args.name).into());
    path.parent().map_or(Ok(()), make_directory)?;
    // Those of all names: they are of the endpoint's own pod.
    let tokens = tokens_of_variables(std::env::vars_os()).flat_map(|(_, tokens)| tokens).collect();
    let handler = KernelEndpoint::new(open_namespace(&args.netns)?, &args.prefixes)?.with_tokens(tokens);
    let calls = ConnectionServer::new(&args.name, args.process.token_lifetime, handler);
    args.trusted.tell(&calls)?;
    let address = Address::Unix(path.clone());
    let listener = Listener::bind(&address, identity.clone(), Allowed::AnyTrusted, ListenLimits::default()).await?;
    let registry = args.process.registry(&args.connect_to, identity)?;
    let registration = Registration::with_socket(Arc::clone(&registry), registration(&args), &path)?;
    let routes = server().add_service(calls.service()).add_service(calls.monitor().service());
    let registering = async {
        Box::pin(register_services(&args, &registry)).await;
        let mut registered = registration.is_registered();
        let telling = async {
            while registered.changed().await.is_ok() {
                let is_registered = *registered.borrow_and_update();
                if is_registered {
                    // Who registers us anew may have been started again, and know the services no more.
                    Box::pin(register_services(&args, &registry)).await;
                }
                let word = if is_registered { "registered" } else { "not registered" };
                println!("endpoint {} of {}: {word}", args.name, args.services.join(", "));
            }
        };
        tokio::select! {
            () = registration.run(stop.future()) => {}
            () = telling => {}
        }
    };
    tokio::select! {
        served = routes.serve_with_incoming(listener.connections()) => Ok(served?),
        () = registering => Ok(()),
        // Nobody may have let us register yet.
        () = async { stop.clone().wait().await; sleep(UNREGISTER_MAX).await } => Ok(()),
    }
}

async fn register_services(args: &EndpointArgs, registry: &RegistryClient) {
    for service in &args.services {
        let service =
            NetworkService { name: service.clone(), payload: args.payload.clone(), ..NetworkService::default() };
        while let Err(status) = Box::pin(registry.register_service(&service)).await {
            eprintln!("service {} is not registered, trying again: {}", service.name, status.message());
            sleep(RETRY).await;
        }
    }
}

fn registration(args: &EndpointArgs) -> NetworkServiceEndpoint {
    let labels = NetworkServiceLabels { labels: args.labels.iter().cloned().collect() };
    NetworkServiceEndpoint {
        name: args.name.clone(),
        network_service_names: args.services.clone(),
        network_service_labels: args.services.iter().map(|service| (service.clone(), labels.clone())).collect(),
        ..NetworkServiceEndpoint::default()
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}`; `name:value` is wanted"))?;
    Ok((name.to_owned(), value.to_owned()))
}

const RUN: &str = "/run/ferrule";
const RETRY: std::time::Duration = std::time::Duration::from_millis(200);
/// A registration is taken out within the time of one call.
const UNREGISTER_MAX: std::time::Duration = std::time::Duration::from_secs(6);
