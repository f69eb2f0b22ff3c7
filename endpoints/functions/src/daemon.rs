//! The daemon without its command line: functions that follow their settings, and a page that shows what they count.

use std::sync::Arc;
#[cfg(feature = "nsm")]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ferrule_daemon::page::{self, ListenError, Probe, Probes};
use ferrule_daemon::reload::{Reload, reload_on_change};
use ferrule_daemon::settings::{Cause, FileSettings, Followed};
use ferrule_daemon::{ApiSocket, ServerError, Servers, ServiceSocket, SocketError, grpc};
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tonic::service::Routes;
use tracing::{error, info, warn};

use self::metrics::Snapshot;
use crate::config::{Config, ConfigFile, HopEnd};
use crate::function::Side;
use crate::hop::{HopError, HopEvent};
#[cfg(feature = "nsm")]
use crate::mesh::{self, MeshArgs, MeshError};
use crate::running::Functions;

mod metrics;

/// Runs one function between the two ends of its settings until `shutdown` is there.
pub async fn run(file: ConfigFile, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut daemon = Daemon::start(file).await?;
    let config = &daemon.reloader.started;
    let ends = config.ends.as_ref().ok_or(RunError::NoEnds)?.each_ref().map(HopEnd::spec);
    daemon.functions.start(ALONE, config.link(), ends, Box::new(Clone::clone), say)?;
    let functions = Arc::clone(&daemon.functions);
    let ready = move || {
        let alone = functions.get(ALONE).ok_or("the function has ended")?;
        let counters = alone.hop().counters();
        match Side::BOTH.into_iter().find(|side| !counters.sides[side.index()].is_connected()) {
            Some(side) => Err(format!("nobody is at the {}'s end", side.word())),
            None => Ok(()),
        }
    };
    daemon.serve(Arc::new(ready));
    let functions = Arc::clone(&daemon.functions);
    let serving = async move {
        tokio::select! {
            () = shutdown => Ok(()),
            () = died(&functions) => Err(RunError::Died),
        }
    };
    daemon.until(serving).await
}

/// Runs a function for each connection that the mesh asks for, until `shutdown` is there.
#[cfg(feature = "nsm")]
pub async fn run_in_mesh(
    file: ConfigFile,
    args: MeshArgs,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    let mut daemon = Daemon::start(file).await?;
    let config = &daemon.reloader.started;
    if config.ends.is_some() {
        return Err(RunError::Ends);
    }
    let registered = Arc::new(AtomicBool::new(false));
    let is_registered = Arc::clone(&registered);
    let serving = mesh::serve(config.name.clone(), args, Arc::clone(&daemon.functions), shutdown, move |is| {
        registered.store(is, Relaxed);
    });
    let ready =
        move || if is_registered.load(Relaxed) { Ok(()) } else { Err("no manager has registered it".to_owned()) };
    daemon.serve(Arc::new(ready));
    daemon.until(async { Ok(serving.await?) }).await
}

/// What both have.
struct Daemon {
    functions: Arc<Functions>,
    listener: Option<page::Listener>,
    servers: Servers,
    socket: Option<ServiceSocket>,
    followed: Followed,
    reloader: Reloader,
    hangup: Signal,
}

impl Daemon {
    async fn start(file: ConfigFile) -> Result<Self, RunError> {
        // First of all, so that a hangup during the start is kept for later instead of ending us.
        let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
        let ConfigFile { path, contents, config } = file;
        let listener = match config.metrics {
            Some(address) => Some(page::Listener::bind(address).await?),
            None => None,
        };
        let bind = |socket: &ApiSocket| ServiceSocket::bind("network-function", &socket.path, &socket.access);
        let socket = config.socket.as_ref().map(bind).transpose()?;
        let functions = Arc::new(Functions::new(config.function.clone()));
        let followed = Followed::new(Config::FILE, path, contents);
        let reloader = Reloader { started: config, functions: Arc::clone(&functions) };
        Ok(Self { functions, listener, servers: Servers::new(), socket, followed, reloader, hangup })
    }

    /// Serves the page and the API, where the settings want them.
    fn serve(&mut self, ready: Probe) {
        if let Some(listener) = self.listener.take() {
            let (name, shown) = (self.reloader.started.name.clone(), Arc::clone(&self.functions));
            let render = move || Snapshot::take(&name, &shown).render();
            self.servers.serve_page_with(listener, Arc::new(render), Probes { ready, ..Probes::default() });
        }
        if let Some(socket) = self.socket.take() {
            let phase = self.servers.phase();
            let traces = ferrule_trace::server::service(Arc::clone(&self.functions), phase.clone());
            self.servers.serve(grpc::serve(socket, Routes::new(traces), DESCRIPTORS, NAMES, phase));
        }
        self.servers.ready(format_args!("{} `{}`", self.reloader.started.word(), self.reloader.started.name));
    }

    /// Runs until `serving` has ended, or something that should not have.
    async fn until(self, serving: impl Future<Output = Result<(), RunError>>) -> Result<(), RunError> {
        let Self { functions, mut servers, followed, reloader, hangup, .. } = self;
        let has_servers = servers.page().is_some() || reloader.started.socket.is_some();
        let failed = async {
            // Without a page and an API there is no server that could end.
            if has_servers { servers.failed().await } else { std::future::pending().await }
        };
        let result = tokio::select! {
            served = serving => served,
            error = failed => Err(error.into()),
            () = reload_on_change(Some((followed, reloader)), Config::FILE, hangup) => Ok(()),
        };
        servers.stop(STOP_GRACE).await;
        // Their threads are waited for.
        let _ = spawn_blocking(move || drop(functions)).await;
        result
    }
}

/// Why the daemon ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// No signals can be had.
    #[error("listen for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The page.
    #[error(transparent)]
    Page(#[from] ListenError),
    /// The API.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The hop.
    #[error(transparent)]
    Hop(#[from] HopError),
    /// A thread of the hop ended.
    #[error("a thread of the function ended by itself; its panic is above")]
    Died,
    /// It would be between nothing.
    #[error("the settings have no ends; add `client` and `network`, or have the mesh say them with --nsm")]
    NoEnds,
    /// Two would say what its ends are.
    #[cfg(feature = "nsm")]
    #[error("the settings have ends, and with --nsm the mesh says what they are; remove `client` and `network`")]
    Ends,
    /// The mesh.
    #[cfg(feature = "nsm")]
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// Something ended that should not have.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Returns when a thread of the function has ended.
async fn died(functions: &Functions) {
    while functions.all().iter().all(|(_, running)| running.hop().is_alive()) {
        tokio::time::sleep(LOOK).await;
    }
}

fn say(side: Side, event: HopEvent) {
    let side = side.word();
    match event {
        HopEvent::Connected { agreement } => info!(side, "connected: {agreement}"),
        HopEvent::Gone { reason } => warn!(side, "the peer has gone ({reason}); waiting for the next one"),
        HopEvent::Waiting { reason } => info!(side, "no peer yet: {reason}; trying again"),
    }
}

struct Reloader {
    started: Config,
    functions: Arc<Functions>,
}

impl Reload for Reloader {
    async fn reload(&mut self, file: &mut Followed, cause: Cause) {
        let path = file.path().to_owned();
        let path = path.display();
        let contents = match file.read(cause) {
            Ok(Some(contents)) => contents,
            Ok(None) => return,
            Err(error) => return warn!(file = %path, %error, "cannot read the settings; they stay as they are"),
        };
        let config = match Config::from_bytes(file.path(), &contents) {
            Ok(config) => config,
            Err(wrong) => {
                for line in wrong.lines() {
                    error!("{line}");
                }
                return error!(file = %path, "settings refused; they stay as they are");
            }
        };
        for setting in self.started.needs_restart(&config) {
            warn!(file = %path, "{setting} is another one now; that needs a restart");
        }
        let functions = Arc::clone(&self.functions);
        // A queue of orders may be full for a moment.
        let dead = spawn_blocking(move || functions.adopt(&config.function)).await;
        if !dead.is_ok_and(|dead| dead.is_empty()) {
            error!(file = %path, "the function's thread has ended; start it again");
        }
    }
}

const DESCRIPTORS: &[&[u8]] = &[ferrule_trace::v1::DESCRIPTORS];
const NAMES: &[&str] = &["", ferrule_trace::v1::trace_server::SERVICE_NAME];
/// What a function without a mesh is called.
const ALONE: &str = "";
/// Between two looks at the threads.
const LOOK: Duration = Duration::from_millis(500);
/// How long a client of the page may take to read its last answer.
const STOP_GRACE: Duration = Duration::from_millis(500);
