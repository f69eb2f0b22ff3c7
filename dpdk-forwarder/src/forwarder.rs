//! The daemon without its command line: start, serve, stop.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrule_daemon::page::{self, ListenError};
use ferrule_daemon::{ServerError, Servers, ServiceSocket, SocketError};
use ferrule_dataplane::{Engine, EngineError};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::admin;
use crate::config::{Config, WiresFile};
use crate::metrics::Snapshot;
use crate::reload;
use crate::wires::Wires;

/// How to run a forwarder.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings and the first wires: those of the file, where the command line does not override them.
    pub config: Config,
    /// The file to follow; none: wires come from the admin API alone.
    pub file: Option<WiresFile>,
    /// How long frames in flight may take to leave at the end.
    pub drain_grace: Duration,
}

/// Runs a forwarder until `shutdown` is there, then drains it.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut forwarder = Forwarder::start(options).await?;
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = forwarder.failed() => Err(error),
    };
    forwarder.stop().await;
    result
}

/// A forwarder that serves.
pub struct Forwarder {
    wires: Arc<Wires>,
    admin: PathBuf,
    /// The admin API and the metrics page.
    servers: Servers,
    /// Reload and retry: they are cut off when draining begins.
    keepers: [JoinHandle<()>; 2],
    drain_grace: Duration,
}

impl Forwarder {
    /// Returns when every listener listens and every wire was made or tried.
    pub async fn start(options: Options) -> Result<Self, RunError> {
        let Options { config, file, drain_grace } = options;
        // First of all, so that a hangup during the start is kept for later instead of ending us.
        let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
        // Before any wire is touched: another forwarder at this socket means that we are the wrong one.
        let socket = ServiceSocket::bind("forwarder", &config.admin)?;
        let listener = match config.metrics {
            Some(address) => Some(page::Listener::bind(address).await?),
            None => None,
        };
        let settings = config.settings();
        let wanted = config.wires;
        let wires = spawn_blocking(move || {
            let wires = Wires::new(Engine::start(&settings)?);
            wires.apply(&wanted)?;
            Ok::<_, RunError>(Arc::new(wires))
        })
        .await??;

        let mut servers = Servers::new();
        servers.serve(admin::serve(socket, Arc::clone(&wires), servers.phase()));
        if let Some(listener) = listener {
            let shown = Arc::clone(&wires);
            servers.serve_page(listener, Arc::new(move || Snapshot::take(shown.list(), shown.workers()).render()));
        }
        let reload = reload::keep_equal(file, hangup, Arc::clone(&wires));
        let keepers = [tokio::spawn(reload), tokio::spawn(retry(Arc::clone(&wires)))];
        let forwarder = Self { wires, admin: config.admin, servers, keepers, drain_grace };
        forwarder.announce();
        Ok(forwarder)
    }

    /// Where the metrics page listens; with port 0 in the settings, the port that was given.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.servers.page()
    }

    /// Where the admin API listens.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// Returns when a server ended that should not have.
    pub async fn failed(&mut self) -> RunError {
        self.servers.failed().await.into()
    }

    /// Drains: refuses changes, lets frames in flight leave, removes every wire, ends.
    pub async fn stop(mut self) {
        info!(grace = ?self.drain_grace, "draining");
        self.servers.drain();
        for keeper in &self.keepers {
            keeper.abort();
        }
        let (wires, grace) = (Arc::clone(&self.wires), self.drain_grace);
        if let Err(error) = spawn_blocking(move || wires.drain(grace)).await {
            warn!(%error, "draining failed; the kernel takes back what the process held");
        }
        self.servers.stop(SERVERS_GRACE).await;
        info!("stopped");
    }

    fn announce(&self) {
        let admin = self.admin.display();
        let wires = self.wires.list();
        let count = wires.len();
        let noun = if count == 1 { "wire" } else { "wires" };
        info!("admin API on {admin}");
        let metrics = self.metrics().map_or_else(|| "no metrics".to_owned(), |address| format!("metrics {address}"));
        self.servers.ready(format_args!("{count} {noun}, admin {admin}, {metrics}"));
    }
}

/// Why a forwarder did not start, or ended early.
#[derive(Debug, Error)]
pub enum RunError {
    /// The admin API cannot listen.
    #[error(transparent)]
    Admin(#[from] SocketError),
    /// The metrics page cannot listen.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// The workers could not be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The wires could not be applied at all.
    #[error(transparent)]
    Wires(#[from] crate::wires::ChangeError),
    /// A thread of ours failed.
    #[error("start the wires: {0}")]
    Thread(#[from] JoinError),
    /// No signals can be heard.
    #[error("listen for signals: {0}")]
    Signals(std::io::Error),
    /// A server ended while it was needed.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Tries wires again that could not be made. Never ends by itself.
async fn retry(wires: Arc<Wires>) {
    let mut ticks = interval(RETRY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is due at once, and the wires were just tried.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let wires = Arc::clone(&wires);
        if let Err(error) = spawn_blocking(move || wires.retry()).await {
            warn!(%error, "trying wires again failed");
        }
    }
}

/// How often a wire that could not be made is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// How long clients may take to read their last answers.
const SERVERS_GRACE: Duration = Duration::from_secs(1);
