//! The daemon without its command line: start, serve, stop.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ferrule_daemon::page::{self, ListenError};
use ferrule_daemon::{Phase, ServiceSocket, SocketError};
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::api;
use crate::config::PoliciesFile;
use crate::hands::{Observer, Timeouts};
use crate::holders;
use crate::kernel::Kernel;
use crate::metrics::Snapshot;
use crate::policy::Policies;
use crate::reload::Reloader;
use crate::sysfs::Sysfs;
use crate::uevent::Uevents;
use crate::vfs::{OpenError, Options, Vfs};

/// How to run a manager.
pub struct DaemonOptions {
    /// The tree.
    pub sysfs: Sysfs,
    /// What acts on it.
    pub kernel: Arc<dyn Kernel>,
    /// The directory of the journal.
    pub state: PathBuf,
    /// Where the API listens.
    pub socket: PathBuf,
    /// Where Prometheus may ask; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How often the tree is looked at without being told.
    pub rescan: Duration,
    /// What there shall be.
    pub policies: Policies,
    /// The file that says so, which is followed; none: it is said once and for all.
    pub file: Option<PoliciesFile>,
    /// How long anything may take.
    pub patience: Timeouts,
    /// Is told of every step.
    pub observer: Option<Observer>,
}

/// Runs a manager until `shutdown` is there. Leases outlive it.
pub async fn run(options: DaemonOptions, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut daemon = Daemon::start(options).await?;
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = daemon.failed() => Err(error),
    };
    daemon.stop().await;
    result
}

/// A manager that serves.
pub struct Daemon {
    vfs: Vfs,
    phase: watch::Sender<Phase>,
    metrics: Option<SocketAddr>,
    servers: JoinSet<Result<(), String>>,
    look: JoinHandle<()>,
}

impl Daemon {
    /// Returns when every VF is in a known state and everything listens.
    pub async fn start(options: DaemonOptions) -> Result<Self, RunError> {
        let DaemonOptions { sysfs, kernel, state, socket: path, metrics, rescan, policies, file, patience, observer } =
            options;
        // First of all, so that a hangup during the start is kept for later instead of ending us.
        let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
        let socket = ServiceSocket::bind("sriov-manager", &path)?;
        let listener = match metrics {
            Some(address) => Some(page::listen(address).await?),
            None => None,
        };
        let metrics = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        if sysfs.is_live() && !holders::sees_every_process(&sysfs) {
            warn!(
                "this is not the machine's first process namespace: who holds a VF outside of it is neither seen nor named, \
                 and only the watchdog helps then; in Kubernetes the pod needs `hostPID: true`"
            );
        }
        // Before the first look, so that nothing happens unheard between the two.
        let uevents = if sysfs.is_live() { hear() } else { None };
        let options = Options { sysfs, kernel, state, policies, patience, observer };
        let vfs = spawn_blocking(move || Vfs::open(options)).await??;

        let (phase, _) = watch::channel(Phase::Serving);
        let mut servers = JoinSet::new();
        let api = api::serve(socket, vfs.clone(), phase.subscribe());
        servers.spawn(async { api.await.map_err(|error| error.to_string()) });
        if let Some(listener) = listener {
            let shown = vfs.clone();
            let render: page::Render = Arc::new(move || Snapshot::take(&shown).render());
            let page = page::serve(listener, render, phase.subscribe());
            servers.spawn(async { page.await.map_err(|error| format!("serve metrics: {error}")) });
        }
        let reloader = Reloader::new(file, hangup, vfs.clone()).run(phase.subscribe());
        servers.spawn(async {
            reloader.await;
            Ok(())
        });
        let look = follow(vfs.clone(), uevents, rescan, phase.subscribe()).map_err(RunError::Thread)?;
        let daemon = Self { vfs, phase, metrics, servers, look };
        daemon.announce(&path);
        Ok(daemon)
    }

    /// The VFs.
    pub fn vfs(&self) -> &Vfs {
        &self.vfs
    }

    /// Where the metrics page listens; with port 0 in the settings, the port that was given.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Returns when a server ended that should not have.
    pub async fn failed(&mut self) -> RunError {
        RunError::Server(match self.servers.join_next().await {
            Some(Ok(Ok(()))) | None => "a server ended by itself".to_owned(),
            Some(Ok(Err(problem))) => problem,
            Some(Err(error)) => error.to_string(),
        })
    }

    /// Takes no more changes, lets those under way end, and stops. What does not end in time is finished by the
    /// next start, from the journal.
    pub async fn stop(mut self) {
        info!("stopping; leases stay");
        notify(&[NotifyState::Stopping]);
        self.phase.send_replace(Phase::Draining);
        self.phase.send_replace(Phase::Stopped);
        self.vfs.close();
        let ended = async { while self.servers.join_next().await.is_some() {} };
        if timeout(SERVERS_GRACE, ended).await.is_err() {
            self.servers.shutdown().await;
        }
        // Until they have ended the state directory is ours.
        let look = self.look;
        if timeout(SERVERS_GRACE, spawn_blocking(move || look.join())).await.is_err() {
            warn!("a call into the kernel has not come back; the next start finishes what it was for");
        }
        info!("stopped");
    }

    fn announce(&self, socket: &std::path::Path) {
        let view = self.vfs.view();
        let leases = view.vfs.iter().filter(|vf| vf.lease.is_some()).count() + view.lost.len();
        if let Some(address) = self.metrics {
            info!("metrics on http://{address}/metrics");
        }
        info!("ready: {} PFs, {} VFs, {leases} leases, {}", view.pfs.len(), view.vfs.len(), socket.display());
        notify(&[NotifyState::Ready]);
    }
}

fn hear() -> Option<Uevents> {
    Uevents::open()
        .inspect_err(|error| warn!(%error, "no uevents can be heard: changes are seen at the next look only"))
        .ok()
}

/// Looks at the tree when something happened, and now and then. What could not be finished before is gone on with in
/// a thread of its own: it may have to wait for the kernel, and news shall not.
fn follow(
    vfs: Vfs,
    mut uevents: Option<Uevents>,
    rescan: Duration,
    phase: watch::Receiver<Phase>,
) -> io::Result<JoinHandle<()>> {
    let (tend, tended) = sync_channel::<()>(1);
    let tender = vfs.clone();
    let tender = move || tended.iter().for_each(|()| tender.tend());
    let tender = thread::Builder::new().name("tend".to_owned()).spawn(tender)?;
    let work = move || {
        let mut left = rescan;
        while *phase.borrow() == Phase::Serving {
            // Short, so that a stop is seen.
            let patience = left.min(LOOK_UP);
            let heard = if let Some(socket) = &mut uevents {
                socket.wait(patience).unwrap_or_else(|error| {
                    warn!(%error, "uevents cannot be heard any more: changes are seen at the next look only");
                    uevents = None;
                    false
                })
            } else {
                thread::sleep(patience);
                false
            };
            left = left.saturating_sub(patience);
            if heard || left.is_zero() {
                vfs.look();
                // A look that is asked for already is soon enough.
                let _ = tend.try_send(());
                left = rescan;
            }
        }
        drop(tend);
        // A panic there was told; here is only to be waited.
        let _ = tender.join();
    };
    thread::Builder::new().name("look".to_owned()).spawn(work)
}

/// Tells systemd, if it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell systemd");
    }
}

/// Why a manager did not start, or ended early.
#[derive(Debug, Error)]
pub enum RunError {
    /// The API cannot listen.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The metrics page cannot listen.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// The VFs cannot be owned.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Signals cannot be heard.
    #[error("listen for SIGHUP: {0}")]
    Signals(io::Error),
    /// A thread could not be started.
    #[error("start a thread: {0}")]
    Thread(io::Error),
    /// The start itself failed.
    #[error("start: {0}")]
    Start(#[from] JoinError),
    /// A server ended while it was needed.
    #[error("{0}")]
    Server(String),
}

/// How often it is looked whether to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// How long operations under way and clients may take at the end.
const SERVERS_GRACE: Duration = Duration::from_secs(5);
