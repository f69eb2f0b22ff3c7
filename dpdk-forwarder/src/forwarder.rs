//! The daemon without its command line: start, serve, stop.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrule_daemon::page::{self, ListenError};
use ferrule_daemon::{Phase, ServiceSocket, SocketError};
use ferrule_dataplane::{Engine, EngineError};
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::admin;
use crate::config::{Config, WiresFile};
use crate::metrics::Snapshot;
use crate::reload::Reloader;
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
    phase: watch::Sender<Phase>,
    admin: PathBuf,
    metrics: Option<SocketAddr>,
    /// The admin API and the metrics page: they end by themselves when the phase is `Stopped`.
    servers: JoinSet<Result<(), String>>,
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
            Some(address) => Some(page::listen(address).await?),
            None => None,
        };
        let metrics = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let settings = config.settings();
        let wanted = config.wires;
        let wires = spawn_blocking(move || {
            let wires = Wires::new(Engine::start(&settings)?);
            wires.apply(&wanted)?;
            Ok::<_, RunError>(Arc::new(wires))
        })
        .await??;

        let (phase, _) = watch::channel(Phase::Serving);
        let mut servers = JoinSet::new();
        let api = admin::serve(socket, Arc::clone(&wires), phase.subscribe());
        servers.spawn(async { api.await.map_err(|error| error.to_string()) });
        if let Some(listener) = listener {
            let shown = Arc::clone(&wires);
            let render: page::Render = Arc::new(move || Snapshot::take(shown.list(), shown.workers()).render());
            let page = page::serve(listener, render, phase.subscribe());
            servers.spawn(async { page.await.map_err(|error| format!("serve metrics: {error}")) });
        }
        let reloader = Reloader::new(file, hangup, Arc::clone(&wires));
        let keepers = [tokio::spawn(reloader.run()), tokio::spawn(retry(Arc::clone(&wires)))];
        let forwarder = Self { wires, phase, admin: config.admin, metrics, servers, keepers, drain_grace };
        forwarder.announce();
        Ok(forwarder)
    }

    /// Where the metrics page listens; with port 0 in the settings, the port that was given.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Where the admin API listens.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// Returns when a server ended that should not have.
    pub async fn failed(&mut self) -> RunError {
        let problem = match self.servers.join_next().await {
            Some(Ok(Ok(()))) | None => "a server ended by itself".to_owned(),
            Some(Ok(Err(problem))) => problem,
            Some(Err(error)) => error.to_string(),
        };
        RunError::Server(problem)
    }

    /// Drains: refuses changes, lets frames in flight leave, removes every wire, ends.
    pub async fn stop(mut self) {
        info!(grace = ?self.drain_grace, "draining");
        notify(&[NotifyState::Stopping]);
        self.phase.send_replace(Phase::Draining);
        for keeper in &self.keepers {
            keeper.abort();
        }
        let (wires, grace) = (Arc::clone(&self.wires), self.drain_grace);
        if let Err(error) = spawn_blocking(move || wires.drain(grace)).await {
            warn!(%error, "draining failed; the kernel takes back what the process held");
        }
        self.phase.send_replace(Phase::Stopped);
        let ended = async { while self.servers.join_next().await.is_some() {} };
        if timeout(SERVERS_GRACE, ended).await.is_err() {
            // A client that neither reads nor leaves.
            self.servers.shutdown().await;
        }
        info!("stopped");
    }

    fn announce(&self) {
        let admin = self.admin.display();
        let wires = self.wires.list();
        let count = wires.len();
        let noun = if count == 1 { "wire" } else { "wires" };
        info!("admin API on {admin}");
        let metrics = match self.metrics {
            Some(address) => {
                info!("metrics on http://{address}/metrics");
                format!("metrics {address}")
            }
            None => "no metrics".to_owned(),
        };
        info!("ready: {count} {noun}, admin {admin}, {metrics}");
        notify(&[NotifyState::Ready]);
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
    #[error("{0}")]
    Server(String),
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

/// Tells systemd, if it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell systemd");
    }
}

/// How often a wire that could not be made is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// How long clients may take to read their last answers.
const SERVERS_GRACE: Duration = Duration::from_secs(1);
