//! The daemon without its command line: start, serve, stop.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_daemon::page::{self, ListenError};
use ferrule_daemon::{ServerError, Servers, ServiceSocket, SocketError, counted};
use ferrule_dataplane::engine::{Event, Health};
use ferrule_dataplane::port::kernel::{InterfaceOwner, InterfaceOwnerError};
use ferrule_dataplane::{Engine, EngineError};
use ferrule_ffi::memory_budget::MemoryBudget;
use futures_core::future::BoxFuture;
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::admin;
use crate::config::{Config, WiresFile};
use crate::identity::{self, IdentityError};
use crate::journal::{Journal, JournalError};
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
    /// Names of the settings that the command line gave: those of the file mean nothing, at a reload either.
    pub by_flag: Vec<&'static str>,
    /// How long frames in flight may take to leave at the end.
    pub drain_grace: Duration,
}

/// Runs a forwarder until `shutdown` is there, then drains it. A stop does not wait for wires that are being made.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut forwarder = Forwarder::launch(options).await?;
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = forwarder.serve() => Err(error),
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
    /// It has ended once the first wires were all made or tried.
    first: Option<JoinHandle<()>>,
    /// What follows the file, and the hangups that came meanwhile, for when the first wires are there.
    follow: Option<(Option<WiresFile>, Vec<&'static str>, Signal)>,
    /// Reload, retry and the leases of wires that are gone: they are cut off when draining begins.
    keepers: Vec<JoinHandle<()>>,
    /// Ends with the name of a thread of the engine that died.
    death: oneshot::Receiver<String>,
    drain_grace: Duration,
}

impl Forwarder {
    /// Returns when every listener listens and every wire was made or tried.
    pub fn start(options: Options) -> BoxFuture<'static, Result<Self, RunError>> {
        Box::pin(async move {
            let mut forwarder = Self::launch(options).await?;
            forwarder.ready().await?;
            Ok(forwarder)
        })
    }

    /// Returns when the admin API and the metrics page answer; the wires are made meanwhile.
    pub fn launch(options: Options) -> BoxFuture<'static, Result<Self, RunError>> {
        // Compiled here, and not again in each program that waits for it.
        Box::pin(Self::launch_here(options))
    }

    async fn launch_here(options: Options) -> Result<Self, RunError> {
        let Options { config, file, by_flag, drain_grace } = options;
        // First of all, so that a hangup during the start is kept for later instead of ending us.
        let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
        // Before any wire is touched: another forwarder at this socket means that we are the wrong one.
        let socket = ServiceSocket::bind("forwarder", &config.socket.path, &config.socket.access)?;
        let listener = match config.metrics {
            Some(address) => Some(page::Listener::bind(address).await?),
            None => None,
        };
        reload::tell_chains(&config);
        let (settings, journal, nsm) = (config.settings(), config.journal.clone(), config.nsm.clone());
        ferrule_ethdev::configure(config.dpdk);
        // By it the next forwarder at this socket finds the interfaces that a killed one left.
        let admin = config.socket.path.clone();
        let owner = admin.with_extension("id");
        let (wires, starting) = spawn_blocking(move || {
            let path = journal;
            let journal = path.as_deref().map(Journal::open).transpose()?;
            let identity = path.as_deref().map(identity::of_journal).transpose()?;
            ferrule_ethdev::configure_leases(config.lease_settings(identity.as_deref()));
            let engine = Engine::start_as(&settings, InterfaceOwner::open(&owner)?)?;
            let wires = Arc::new(Wires::new(engine, journal));
            // Before the admin API takes changes: file and journal come first.
            let starting = wires.start(&config.wires);
            Ok::<_, RunError>((wires, starting))
        })
        .await??;

        let mut servers = Servers::starting();
        info!("admin API on {}", admin.display());
        servers.serve(admin::serve(socket, Arc::clone(&wires), servers.phase()));
        if let Some(listener) = listener {
            let shown = Arc::clone(&wires);
            let render = move || {
                let is_file_refused = !shown.file_problems().is_empty();
                Snapshot::take(shown.list(), shown.workers(), is_file_refused).render()
            };
            servers.serve_page(listener, Arc::new(render));
        }
        if let Some(nsm) = nsm {
            servers.serve(crate::nsm::serve(nsm, Arc::clone(&wires), servers.phase()));
        }
        if let Err(reason) = MemoryBudget::counts_pages() {
            warn!(reason, "the `memory` limits of ends are not exact");
        }
        let death = watch_engine(&wires).map_err(RunError::Threads)?;
        let first = {
            let wires = Arc::clone(&wires);
            spawn_blocking(move || wires.finish_start(starting))
        };
        let (first, follow) = (Some(first), Some((file, by_flag, hangup)));
        Ok(Self { wires, admin, servers, first, follow, keepers: Vec::new(), death, drain_grace })
    }

    /// Returns when every wire was made or tried, or something ended that should not have.
    pub fn ready(&mut self) -> BoxFuture<'_, Result<(), RunError>> {
        Box::pin(self.ready_here())
    }

    async fn ready_here(&mut self) -> Result<(), RunError> {
        let Self { first, servers, death, .. } = self;
        if let Some(first) = first {
            tokio::select! {
                made = first => made?,
                error = failed(servers, death) => return Err(error),
            }
        }
        self.first = None;
        if let Some((file, by_flag, hangup)) = self.follow.take() {
            let reload = reload::keep_equal(file, by_flag, hangup, Arc::clone(&self.wires));
            let (retry, leases) = (retry(Arc::clone(&self.wires)), give_leases_back(Arc::clone(&self.wires)));
            self.keepers = vec![tokio::spawn(reload), tokio::spawn(retry), tokio::spawn(leases)];
            self.announce();
        }
        Ok(())
    }

    /// Makes the first wires, serves, and returns when something ended that should not have.
    async fn serve(&mut self) -> RunError {
        match self.ready().await {
            Ok(()) => self.failed().await,
            Err(error) => error,
        }
    }

    /// Where the metrics page listens; with port 0 in the settings, the port that was given.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.servers.page()
    }

    /// Where the admin API listens.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// Returns when something ended that should not have: a server, or a thread of the engine.
    pub async fn failed(&mut self) -> RunError {
        failed(&mut self.servers, &mut self.death).await
    }

    /// Drains: refuses changes, lets frames in flight leave, removes every wire, ends.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(self.stop_here())
    }

    async fn stop_here(mut self) {
        info!(grace = ?self.drain_grace, "draining");
        // Health says so before anything else happens.
        self.servers.drain();
        self.wires.refuse_changes();
        for keeper in &self.keepers {
            keeper.abort();
        }
        let (wires, grace) = (Arc::clone(&self.wires), self.drain_grace);
        // On a thread of its own: changes that wait for their turn may have all of the others.
        let (sender, drained) = oneshot::channel();
        let drain = move || {
            wires.drain(grace);
            // Waited for below.
            let _ = sender.send(());
        };
        let started = std::thread::Builder::new().name("drain".to_owned()).spawn(drain);
        if let Err(error) = &started {
            warn!(%error, "no thread to drain in; the kernel takes back what the process held");
        } else if drained.await.is_err() {
            warn!("draining failed; the kernel takes back what the process held");
        }
        self.servers.stop(SERVERS_GRACE).await;
        // The last task of a client may end a moment later than its server: the next forwarder finds the journal and the owner free.
        let until = Instant::now() + LETTING_GO;
        while Arc::strong_count(&self.wires) > 1 && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        info!("stopped");
    }

    fn announce(&self) {
        let admin = self.admin.display();
        let wires = self.wires.list();
        let failed = wires.iter().filter(|wire| wire.status.has_failed()).count();
        let failed = if failed == 0 { String::new() } else { format!(", {failed} of them failed") };
        let wires = counted(wires.len(), "wire");
        let metrics = self.metrics().map_or_else(|| "no metrics".to_owned(), |address| format!("metrics {address}"));
        self.servers.ready(format_args!("{wires}{failed}, admin {admin}, {metrics}"));
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
    /// Another forwarder is the owner of these interfaces.
    #[error(transparent)]
    Owner(#[from] InterfaceOwnerError),
    /// The workers could not be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Nobody could tell it from others.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A thread of the engine panicked: its supervisor is to start the process again.
    #[error("the engine's thread `{0}` died; start the forwarder again, and report the lines before this one")]
    ThreadDied(String),
    /// No thread can be had.
    #[error("start a thread: {0}")]
    Threads(std::io::Error),
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

async fn failed(servers: &mut Servers, death: &mut oneshot::Receiver<String>) -> RunError {
    tokio::select! {
        error = servers.failed() => error.into(),
        Ok(thread) = death => RunError::ThreadDied(thread),
    }
}

/// Has the first death of a thread of the engine told. What else happens is for the API's watchers.
fn watch_engine(wires: &Arc<Wires>) -> std::io::Result<oneshot::Receiver<String>> {
    let (sender, death) = oneshot::channel();
    let events = wires.subscribe(EVENTS_MAX);
    // Not held: the engine ends with the last who holds it, and this thread with the engine.
    let wires = Arc::downgrade(wires);
    std::thread::Builder::new().name("engine-watch".to_owned()).spawn(move || {
        let dead = loop {
            let health = || wires.upgrade().map(|wires| wires.health());
            match (events.next_event(), health()) {
                (Some(Event::ThreadDied { thread }), _) | (_, Some(Health::ThreadDied { thread })) => break thread,
                (Some(Event::Wire { .. } | Event::Lagged(_)), _) => {}
                // The control thread tells everybody, but not of its own end.
                (None, _) => break "control".to_owned(),
            }
        };
        // Nobody listens any more when the forwarder has stopped.
        let _ = sender.send(dead);
    })?;
    Ok(death)
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

/// Gives back the VFs that no wire wants any more. Never ends by itself. When the forwarder stops, wires go and leases stay.
async fn give_leases_back(wires: Arc<Wires>) {
    let leases = ferrule_ethdev::leases();
    let shown = Arc::downgrade(&wires);
    leases.keep_what(Arc::new(move || shown.upgrade().map(|wires| wires.wanted_leases())));
    loop {
        let given = spawn_blocking(|| leases.give_back()).await;
        if let Err(error) = given {
            warn!(%error, "giving back VFs failed");
        }
        // Once more after a while: the manager may not have been there.
        let _ = timeout(RETRY_INTERVAL, wires.leases_changed()).await;
    }
}

/// Of the engine, that were not looked at yet.
const EVENTS_MAX: usize = 256;
/// How often a wire that could not be made, or a lease that could not be given back, is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// How long clients may take to read their last answers.
const SERVERS_GRACE: Duration = Duration::from_secs(1);
/// How long tasks of clients that end are waited for, and how often that is looked at.
const LETTING_GO: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use ferrule_daemon::ApiSocket;

    use super::*;

    #[tokio::test]
    async fn a_thread_that_dies_while_wires_are_made_is_seen_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { socket: ApiSocket::at(directory.path().join("admin.sock")), ..Config::default() };
        let options = Options { config, file: None, by_flag: Vec::new(), drain_grace: Duration::ZERO };
        let mut forwarder = Forwarder::launch(options).await.unwrap();
        let (sender, death) = oneshot::channel();
        // Wires that are never made.
        (forwarder.first, forwarder.death) = (Some(tokio::spawn(std::future::pending())), death);
        sender.send("worker-0".to_owned()).unwrap();
        let error = timeout(Duration::from_secs(20), forwarder.ready()).await.expect("it is seen");
        assert!(matches!(error, Err(RunError::ThreadDied(thread)) if thread == "worker-0"));
        forwarder.stop().await;
    }
}
