//! `ferrule nsm`: Network Service Mesh on this machine: shown, run as a whole, and each of its processes alone.
//!
//! Each process takes the environment of the program in Go that it can take the place of.
//! Modules: `show` (services, endpoints, connections), `manager`, `client`, `endpoint`, `memifs` (who answers there),
//! `identities` (the Workload API), `up` (all of them, with a forwarder), `probe` (whether one of them serves), `vfio` (a client's nodes).

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use clap::{Args, Subcommand};
use ferrule_daemon::logging::LogFlags;
use ferrule_nsm::endpoint::OfferError;
use ferrule_nsm::identity::{AuthorityError, ServeError, SpiffeIdError, WorkloadError};
use ferrule_nsm::process::ProcessError;
use ferrule_nsm::trace::{self, TraceError};
use ferrule_nsm::transport::{AddressError, DialError, ListenError};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::CliError;

mod client;
mod endpoint;
mod identities;
mod manager;
mod memifs;
mod probe;
mod show;
mod up;
mod url;
mod vfio;

pub use probe::arguments;

/// Options of `ferrule nsm`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NsmArgs {
    #[command(flatten)]
    show: show::ShowArgs,
    #[command(subcommand)]
    command: Option<NsmCommand>,
}

/// What can be run.
#[derive(Debug, Subcommand)]
enum NsmCommand {
    /// Run a whole mesh on this machine until Ctrl-C: identities, registry, manager and forwarder
    Up(up::UpArgs),
    /// Ask for a connection, keep it until Ctrl-C, then close it
    Client(client::ClientArgs),
    /// Offer a service whose ends are kernel interfaces or memifs of a namespace, or VFs
    Endpoint(endpoint::EndpointArgs),
    /// Manage the connections of this node; without another registry it has one of its own
    Manager(manager::ManagerArgs),
    /// Keep what endpoints of several nodes register
    Registry(manager::RegistryArgs),
    /// Give identities: a SPIFFE Workload API with a socket for each
    Identities(identities::IdentitiesArgs),
    /// Ask a process whether it serves; a kubelet does so
    Probe(probe::ProbeArgs),
}

/// Does what was asked for.
pub async fn run(args: NsmArgs) -> Result<(), CliError> {
    // What runs on tells what becomes of it: why a connection is refused, say.
    let runs_on = !matches!(args.command, None | Some(NsmCommand::Probe(_)));
    let log = runs_on.then(|| LogFlags::default().start(env!("CARGO_PKG_NAME")));
    let _log = log.transpose().map_err(NsmError::from)?;
    let variable = |name: &str| std::env::var(name).ok();
    let traces_to = trace::endpoint_of_environment(variable).filter(|_| runs_on);
    let name = variable("NSM_NAME").unwrap_or_else(|| "ferrule-nsm".to_owned());
    let _traces = traces_to.map(|endpoint| trace::start(&endpoint, &name)).transpose().map_err(NsmError::from)?;
    match args.command {
        None => Box::pin(show::run(&args.show)).await?,
        Some(NsmCommand::Up(args)) => Box::pin(up::run(args)).await?,
        Some(NsmCommand::Client(args)) => Box::pin(client::run(args, stopped()?)).await?,
        Some(NsmCommand::Endpoint(args)) => Box::pin(endpoint::run(args, stopped()?)).await?,
        Some(NsmCommand::Manager(args)) => Box::pin(manager::run(args, stopped()?)).await?,
        Some(NsmCommand::Registry(args)) => Box::pin(manager::run_registry(args, stopped()?)).await?,
        Some(NsmCommand::Probe(args)) => Box::pin(probe::run(args)).await?,
        Some(NsmCommand::Identities(args)) => Box::pin(identities::run(&args, stopped()?)).await?,
    }
    Ok(())
}

/// Ends when a process is to end. Any number of tasks may wait for it.
#[derive(Clone, Debug)]
struct StopSignal(watch::Receiver<bool>);

impl StopSignal {
    async fn wait(mut self) {
        // An error means that nobody is there to say it any more.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    fn future(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.clone().wait())
    }
}

/// A stop that comes with Ctrl-C or SIGTERM.
fn stopped() -> Result<StopSignal, NsmError> {
    let (sender, receiver) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        sender.send_replace(true);
    });
    Ok(StopSignal(receiver))
}

/// Why a process of the mesh does not run.
#[derive(Debug, Error)]
pub enum NsmError {
    /// A name is none.
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
    /// Traces cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// No identities can be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A socket for identities cannot be served.
    #[error(transparent)]
    Identities(#[from] ServeError),
    /// There is no identity for us.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// An address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody is there.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It has no identity, or nobody to call.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// An endpoint does not serve.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// A pod has no VF of this kind.
    #[error(
        "no token of {0} is in the environment: the container asks for the resource {0} (`limits`), and has NSM_SRIOV_TOKENS_{0} then"
    )]
    NoToken(String),
    /// Somebody said no.
    #[error("{what}: {}", status.message())]
    Refused {
        /// What was asked for.
        what: String,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// It does not do what it is there for.
    #[error("{0} does not serve: {1}")]
    NotServing(String, String),
    /// Nobody could reach it.
    #[error(
        "manager {0} has a registry of several nodes, and listens at no tcp://ADDRESS:PORT where other nodes reach it"
    )]
    NoNode(String),
    /// A server failed.
    #[error("a server of the mesh failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// What is wanted is no connection.
    #[error(transparent)]
    Url(#[from] url::UrlError),
    /// A file is not there, or not what it should be.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program could not be run, or failed.
    #[error("{program}: {problem}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        problem: String,
    },
    /// The system said no.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl NsmError {
    fn refused(what: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        let what = what.into();
        |status| Self::Refused { what, status: Box::new(status) }
    }

    fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

/// A namespace as it is passed.
fn open_namespace(path: &std::path::Path) -> Result<Arc<std::os::fd::OwnedFd>, NsmError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH).open(path);
    Ok(Arc::new(opened.map_err(NsmError::file("open the namespace", path))?.into()))
}
