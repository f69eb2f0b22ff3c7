//! The daemon without its command line: start, serve, stop.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ferrule_daemon::page::{self, ListenError};
use ferrule_daemon::{ApiSocket, Phase, ServerError, Servers, ServiceSocket, SocketError, counted};
use futures_core::future::BoxFuture;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::api;
use crate::config::PoliciesFile;
use crate::executor::{Observer, Timeouts};
use crate::holders;
use crate::kernel::Kernel;
use crate::metrics::Snapshot;
use crate::policy::Policies;
use crate::reload;
use crate::sysfs::Sysfs;
use crate::uevent::{News, Uevents};
use crate::vfs::{OpenError, Options, Recovery, Vfs};

/// How to run a manager.
pub struct DaemonOptions {
    /// The tree.
    pub sysfs: Sysfs,
    /// What acts on it.
    pub kernel: Arc<dyn Kernel>,
    /// The directory of the journal.
    pub state: PathBuf,
    /// Where the API listens, and who may use it.
    pub socket: ApiSocket,
    /// Where Prometheus may ask; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How often the tree is looked at without being told.
    pub rescan: Duration,
    /// What there is to be.
    pub policies: Policies,
    /// The file that says so, which is followed; none: it is said once and for all.
    pub file: Option<PoliciesFile>,
    /// How long anything may take.
    pub timeouts: Timeouts,
    /// Is told of every step.
    pub observer: Option<Observer>,
}

/// Runs a manager until `shutdown` is there. Leases outlive it.
pub async fn run(options: DaemonOptions, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut daemon = Daemon::serve(options).await?;
    let recovered = daemon.recovered();
    tokio::pin!(shutdown);
    let result = tokio::select! {
        () = &mut shutdown => Ok(()),
        error = daemon.failed() => Err(error),
        () = recovered => {
            daemon.announce();
            tokio::select! {
                () = shutdown => Ok(()),
                error = daemon.failed() => Err(error),
            }
        }
    };
    daemon.stop().await;
    result
}

/// A manager that serves.
pub struct Daemon {
    vfs: Vfs,
    servers: Servers,
    look: JoinHandle<()>,
    socket: PathBuf,
}

impl Daemon {
    /// [`Daemon::serve`], and waits until every VF is in a known state.
    pub fn start(options: DaemonOptions) -> BoxFuture<'static, Result<Self, RunError>> {
        Box::pin(async move {
            let daemon = Self::serve(options).await?;
            daemon.recovered().await;
            daemon.announce();
            Ok(daemon)
        })
    }

    /// Returns when everything listens. What the journal knows is shown at once, and brought to a known state meanwhile.
    pub fn serve(options: DaemonOptions) -> BoxFuture<'static, Result<Self, RunError>> {
        // Compiled here, and not again in each program that waits for it.
        Box::pin(Self::serve_here(options))
    }

    async fn serve_here(options: DaemonOptions) -> Result<Self, RunError> {
        let DaemonOptions { sysfs, kernel, state, socket: place, metrics, rescan, policies, file, timeouts, observer } =
            options;
        // First of all, so that a hangup during the start is kept for later instead of ending us.
        let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
        if sysfs.is_live() && !holders::sees_every_process(&sysfs) {
            warn!(
                "this is not the machine's first process namespace: who holds a VF outside of it is neither seen nor named, \
                 and only the watchdog helps then; in Kubernetes the pod needs `hostPID: true`"
            );
        }
        // Before the first look, so that nothing happens unheard between the two.
        let uevents = if sysfs.is_live() { hear() } else { None };
        let options = Options { sysfs, kernel, state, policies, timeouts, observer };
        let policies_file = file.as_ref().map(|file| file.path.clone());
        let load = move || -> Result<Vfs, OpenError> {
            let vfs = Vfs::load(options)?;
            vfs.take_policies_from(policies_file.as_deref());
            Ok(vfs)
        };
        let vfs = spawn_blocking(load).await??;
        // Not before the node is ours: whoever reaches the socket is answered.
        let socket = ServiceSocket::bind("sriov-manager", &place.path, &place.access)?;
        let listener = match metrics {
            Some(address) => Some(page::Listener::bind(address).await?),
            None => None,
        };

        let mut servers = Servers::starting();
        servers.serve(api::serve(socket, vfs.clone(), servers.phase()));
        if let Some(listener) = listener {
            let shown = vfs.clone();
            servers.serve_page(listener, Arc::new(move || Snapshot::take(&shown).render()));
        }
        let (mut recovery, mut phase) = (vfs.watch_recovery(), servers.phase());
        let reload = reload::keep_equal(file, hangup, vfs.clone());
        servers.serve(async move {
            let reload = async {
                // Until then the numbers of VFs are those of the start.
                let _ = recovery.wait_for(|recovery| *recovery >= Recovery::Leases).await;
                reload.await;
            };
            // An error means that the spine is gone, which is a stop as well.
            tokio::select! { () = reload => {}, _ = phase.wait_for(|phase| is_over(*phase)) => {} }
            Ok::<_, Infallible>(())
        });
        let look = follow(vfs.clone(), uevents, rescan, servers.phase()).map_err(RunError::Thread)?;
        Ok(Self { vfs, servers, look, socket: place.path })
    }

    /// Returns when every VF is in a known state. A start that is stopped never is.
    pub fn recovered(&self) -> impl Future<Output = ()> + use<> {
        let mut recovery = self.vfs.watch_recovery();
        async move {
            if recovery.wait_for(|recovery| *recovery == Recovery::Done).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The VFs.
    pub fn vfs(&self) -> &Vfs {
        &self.vfs
    }

    /// Where the metrics page listens; with port 0 in the settings, the port that was given.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.servers.page()
    }

    /// Returns when a server ended that should not have.
    pub async fn failed(&mut self) -> RunError {
        self.servers.failed().await.into()
    }

    /// Takes no more changes, lets those under way end, and stops. What does not end in time is finished by the
    /// next start, from the journal.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(self.stop_here())
    }

    async fn stop_here(mut self) {
        info!("stopping; leases stay");
        self.servers.drain();
        self.vfs.close();
        self.servers.stop(SERVERS_GRACE).await;
        // Until they have ended the state directory is ours.
        let look = self.look;
        if timeout(SERVERS_GRACE, spawn_blocking(move || look.join())).await.is_err() {
            warn!("a call into the kernel has not come back; the next start finishes what it was for");
        }
        info!("stopped");
    }

    fn announce(&self) {
        let view = self.vfs.view();
        for warning in &view.warnings {
            warn!("{warning}");
        }
        let leases = view.vfs.iter().filter(|vf| vf.lease.is_some()).count() + view.lost.len();
        let (pfs, vfs) = (counted(view.pfs.len(), "PF"), counted(view.vfs.len(), "VF"));
        let leases = counted(leases, "lease");
        self.servers.ready(format_args!("{pfs}, {vfs}, {leases}, {}", self.socket.display()));
    }
}

fn hear() -> Option<Uevents> {
    Uevents::open()
        .inspect_err(|error| warn!(%error, "no uevents can be heard: changes are seen at the next look only"))
        .ok()
}

fn is_over(phase: Phase) -> bool {
    matches!(phase, Phase::Draining | Phase::Stopped)
}

/// Finishes the start; then looks at the tree when something happened, and now and then, and whether leases are at their end.
/// What could not be finished before is gone on with in threads of their own: it may have to wait for the kernel, and news does
/// not.
fn follow(
    vfs: Vfs,
    mut uevents: Option<Uevents>,
    rescan: Duration,
    phase: watch::Receiver<Phase>,
) -> io::Result<JoinHandle<()>> {
    let (reconcile, reconciler) = worker(&vfs, "reconcile", Vfs::reconcile)?;
    // A number of VFs may take minutes, and leases end meanwhile.
    let (end, ender) = worker(&vfs, "ends", Vfs::release_ended)?;
    let work = move || {
        while !ends_whole("start", || vfs.recover()) && !is_over(*phase.borrow()) {
            thread::sleep(START_AGAIN);
        }
        let (mut left, mut ends) = (rescan, ENDS_EVERY);
        let (mut news, mut since) = (News::default(), Instant::now());
        while !is_over(*phase.borrow()) {
            if news.is_empty() {
                since = Instant::now();
            }
            // Short, so that a stop is seen.
            let timeout = left.min(if news.is_empty() { LOOK_UP } else { HELD_UP });
            let heard = if let Some(socket) = &mut uevents {
                socket.wait(timeout).unwrap_or_else(|error| {
                    warn!(%error, "uevents cannot be heard any more: changes are seen at the next look only");
                    uevents = None;
                    News { is_more: true, ..News::default() }
                })
            } else {
                thread::sleep(timeout);
                News::default()
            };
            (left, ends) = (left.saturating_sub(timeout), ends.saturating_sub(timeout));
            news.extend(heard);
            news.is_more |= vfs.take_returned() || left.is_zero();
            // Most news are of what an operation does, which somebody waits for.
            let is_held_up = !left.is_zero() && vfs.works_on(&news) && since.elapsed() < HELD_UP_MAX;
            let is_due = !news.is_empty() && !is_held_up;
            if is_due {
                let news = std::mem::take(&mut news);
                if news.is_more {
                    left = rescan;
                }
                ends_whole("look", || vfs.look_for(&news));
            }
            let may_end = ends.is_zero() && vfs.has_leases_that_end();
            if ends.is_zero() {
                ends = ENDS_EVERY;
            }
            // A turn that is asked for already is soon enough.
            if is_due {
                let _ = reconcile.try_send(());
            }
            if may_end {
                let _ = end.try_send(());
            }
        }
        drop((reconcile, end));
        // Here is only to be waited.
        let _ = (reconciler.join(), ender.join());
    };
    thread::Builder::new().name("look".to_owned()).spawn(work)
}

/// A thread that does something whenever it is asked to, until nobody can ask any more.
fn worker(vfs: &Vfs, name: &'static str, work: fn(&Vfs)) -> io::Result<(SyncSender<()>, JoinHandle<()>)> {
    let (ask, asked) = sync_channel(1);
    let vfs = vfs.clone();
    let turn = move |()| {
        ends_whole(name, || work(&vfs));
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || asked.iter().for_each(turn))?;
    Ok((ask, thread))
}

/// Does something of which a panic ends this turn alone: nobody else would do the next one. Whatever panics leaves every fact whole,
/// and locks nothing.
fn ends_whole(what: &str, work: impl FnOnce()) -> bool {
    let done = catch_unwind(AssertUnwindSafe(work));
    if done.is_err() {
        error!(what, "it died of a fault of this program, told above, and is tried again");
    }
    done.is_ok()
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
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// How often it is looked whether to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// And while news wait for the end of an operation.
const HELD_UP: Duration = Duration::from_millis(10);
/// They wait for no longer.
const HELD_UP_MAX: Duration = Duration::from_millis(200);
/// A start that died is tried again after so long.
const START_AGAIN: Duration = Duration::from_millis(500);
/// How often it is looked whether what leases are for is gone.
const ENDS_EVERY: Duration = Duration::from_millis(500);
/// How long operations under way and clients may take at the end.
const SERVERS_GRACE: Duration = Duration::from_secs(5);
