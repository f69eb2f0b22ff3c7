//! The daemon without its command line: start, serve, stop.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ferrule_daemon::page::{self, ListenError, Probes};
use ferrule_daemon::reload::reload_on_change;
use ferrule_daemon::settings::Followed;
use ferrule_daemon::{Phase, ServerError, Servers, counted};
use futures_core::future::BoxFuture;
use sriov_manager_client::tokens::Tokens;
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::allocate::{Allocator, CdiMode, DeviceFiles, ToldNodes, keep_trying_refused};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, ConfigFile, Presets};
use crate::counters::Counters;
use crate::device_locks::DeviceLocks;
use crate::duty::{Duty, DutyLock};
use crate::explain;
use crate::host::Host;
use crate::kubelet::{Directory, Endpoints, keep_following};
use crate::leases::Manager;
use crate::metrics::Snapshot;
use crate::networks_file::NetworksFile;
use crate::news::News;
use crate::pod_resources::{PodResources, Witness};
use crate::release::keep_releasing;
use crate::reload::{Reloader, warn_of};
use crate::resources::Resources;
use crate::software::{Forwarder, Place};
use crate::wires::keep_wired;

/// How to run a plugin.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The configuration, which is followed.
    pub file: ConfigFile,
    /// What the command line says of resources that say nothing themselves.
    pub presets: Presets,
    /// The tree that holds `sys`, `proc` and `dev`.
    pub root: PathBuf,
    /// The socket of `sriov-manager`.
    pub manager: PathBuf,
    /// Where to listen for people who ask why.
    pub socket: PathBuf,
    /// The admin socket of `dpdk-forwarder`, which serves software endpoints.
    pub forwarder: PathBuf,
    /// Where sockets of software endpoints are.
    pub software: PathBuf,
    /// The file in which a CNI plugin reads networks.
    pub networks: PathBuf,
    /// The kubelet's directory of device plugins.
    pub plugins: PathBuf,
    /// The kubelet's podresources socket.
    pub pod_resources: PathBuf,
    /// What makes the kubelet's list of pods believed.
    pub witness: Witness,
    /// The directory of the checkpoint and of the lock.
    pub state: PathBuf,
    /// For runtimes and CNI plugins.
    pub files: DeviceFiles,
    /// Directory of tokens of Network Service Mesh.
    pub nsm_tokens: PathBuf,
    /// How containers get device nodes.
    pub cdi: CdiMode,
    /// Where Prometheus and probes may ask; none: nowhere.
    pub metrics: Option<SocketAddr>,
}

/// Runs a plugin until `shutdown` is there. What pods have stays theirs.
pub async fn run(options: DaemonOptions, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut daemon = Daemon::start(options).await?;
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = daemon.failed() => Err(error),
    };
    daemon.stop().await;
    result
}

/// A plugin that runs.
pub struct Daemon {
    allocator: Arc<Allocator>,
    servers: Servers,
    endpoints: Arc<Mutex<Option<Endpoints>>>,
    lock: Arc<Mutex<Option<DutyLock>>>,
    duty: Arc<Duty>,
}

impl Daemon {
    /// Returns when everything that does not need the kubelet or the manager is there.
    pub fn start(options: DaemonOptions) -> BoxFuture<'static, Result<Self, RunError>> {
        // Compiled here, and not again in each program that waits for it.
        Box::pin(Self::start_here(options))
    }

    async fn start_here(options: DaemonOptions) -> Result<Self, RunError> {
        // First of all, so that a hangup during the start is kept for later instead of ending us.
        let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
        let listener = match options.metrics {
            Some(address) => Some(page::Listener::bind(address).await?),
            None => None,
        };
        let ConfigFile { path, contents, config } = options.file.clone();
        warn_of(&path.display().to_string(), &config);
        let allocator = Arc::new(Allocator {
            resources: Resources::new(config),
            manager: Manager::at(&options.manager),
            forwarder: Forwarder::at(&options.forwarder, Place::at(&options.software)),
            pod_resources: PodResources::at(&options.pod_resources, options.witness.clone()),
            host: Host::new(&options.root),
            files: options.files.clone(),
            tokens: Tokens::at(&options.nsm_tokens),
            cdi: options.cdi,
            told: ToldNodes::at(&options.state),
            locks: DeviceLocks::default(),
            counters: Arc::new(Counters::default()),
        });
        let mut daemon = Self {
            allocator: Arc::clone(&allocator),
            servers: Servers::starting(),
            endpoints: Arc::default(),
            lock: Arc::default(),
            duty: Arc::default(),
        };
        if let Some(listener) = listener {
            daemon.serve_page(listener);
        }
        daemon.serve_until_stopped(daemon.work(&options));
        let networks = NetworksFile::at(&options.networks, Place::at(&options.software));
        let file = Followed::new(Config::FILE, path, contents);
        daemon.serve_until_stopped(daemon.reload(file, options.presets, networks, hangup));
        let resources = allocator.resources.names().len();
        daemon.servers.started(format_args!(
            "{}, {}; not ready before the kubelet has opened the list of each",
            counted(resources, "resource"),
            options.plugins.display()
        ));
        Ok(daemon)
    }

    /// Where the metrics page listens; with port 0 in the settings, the port that was given.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.servers.page()
    }

    /// Returns when something ended that should not have.
    pub async fn failed(&mut self) -> RunError {
        self.servers.failed().await.into()
    }

    /// Closes the lists, and then lets the next plugin have its turn.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(self.stop_here())
    }

    async fn stop_here(mut self) {
        info!("stopping; pods keep what they have");
        self.servers.drain();
        if let Some(endpoints) = self.endpoints.lock().await.take() {
            endpoints.stop().await;
        }
        // The next plugin learns from wires what pods have.
        if timeout(SETTLE_WAIT, self.allocator.forwarder.settled()).await.is_err() {
            warn!("a wire is still being made anew; the next plugin makes it, as the configuration says by then");
        }
        self.lock.lock().await.take();
        self.servers.stop(SERVERS_GRACE).await;
        info!("stopped");
    }

    /// Everything but the configuration: first what is slow, then the turn is waited for, then the kubelet is served.
    fn work(&self, options: &DaemonOptions) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
        let (allocator, duty) = (Arc::clone(&self.allocator), Arc::clone(&self.duty));
        let (endpoints, lock) = (Arc::clone(&self.endpoints), Arc::clone(&self.lock));
        let options = options.clone();
        let networks = NetworksFile::at(&options.networks, Place::at(&options.software));
        async move {
            let checkpoint = Checkpoint::new(&options.state, allocator.host.boot_id());
            let changed = Arc::new(Notify::new());
            let mut news = News::new(
                Arc::clone(&allocator),
                &options.manager,
                checkpoint,
                Arc::clone(&changed),
                Arc::clone(&duty),
            );
            news.first().await;
            let telling = news.keep_telling();
            let serving = async {
                match DutyLock::take(&options.state).await {
                    Ok(taken) => *lock.lock().await = Some(taken),
                    // A disk that is full or only to be read costs no pod.
                    Err(error) => {
                        let directory = options.state.display();
                        warn!(%directory, %error, "nobody knows whether another plugin serves this node: it cannot be locked");
                    }
                }
                duty.take();
                // What the plugin before told until its end.
                allocator.told.load();
                allocator.adopt_wires_at_start().await;
                allocator.write_files_at_start().await;
                networks.write(&allocator.resources.config());
                let mut running = endpoints.lock().await;
                let mut all = Endpoints::new(Directory::watch(&options.plugins), Arc::clone(&allocator));
                all.follow().await;
                *running = Some(all);
                drop(running);
                let asked = explain::serve(options.socket.clone(), Arc::clone(&allocator));
                tokio::select! {
                    () = keep_releasing(Arc::clone(&allocator), Arc::clone(&changed)) => {}
                    () = keep_trying_refused(Arc::clone(&allocator)) => {}
                    () = keep_following(Arc::clone(&endpoints), allocator.resources.clone()) => {}
                    () = keep_wired(allocator, changed) => {}
                    () = asked => {}
                }
                Ok(())
            };
            tokio::select! { () = telling => Ok(()), served = serving => served }
        }
    }

    fn reload(
        &self,
        file: Followed,
        presets: Presets,
        networks: NetworksFile,
        hangup: Signal,
    ) -> impl Future<Output = Result<(), Infallible>> + Send + use<> {
        let endpoints = Arc::clone(&self.endpoints);
        let reloader = Reloader { resources: self.allocator.resources.clone(), endpoints, networks, presets };
        async move {
            reload_on_change(Some((file, reloader)), Config::FILE, hangup).await;
            Ok(())
        }
    }

    /// Ends with the daemon, not before it.
    fn serve_until_stopped<E: std::fmt::Display + Send + 'static>(
        &mut self,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let mut phase = self.servers.phase();
        self.servers.serve(async move {
            tokio::select! {
                done = work => done,
                () = stopping(&mut phase) => Ok(()),
            }
        });
    }

    fn serve_page(&mut self, listener: page::Listener) {
        let (allocator, duty) = (Arc::clone(&self.allocator), Arc::clone(&self.duty));
        let render = move || Snapshot::take(&allocator.resources, &allocator.counters, duty.is_ours()).render();
        let (allocator, on_duty, alive) = (Arc::clone(&self.allocator), Arc::clone(&self.duty), Arc::clone(&self.duty));
        let ready = move || ready(&allocator, &on_duty);
        let live = move || match alive.stalled() {
            Some(silent) => Err(format!("nothing was done for {} s", silent.as_secs())),
            None => Ok(()),
        };
        self.servers.serve_page_with(
            listener,
            Arc::new(render),
            Probes { live: Arc::new(live), ready: Arc::new(ready) },
        );
    }
}

/// An error means that the spine is gone, which is a stop as well.
async fn stopping(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| matches!(phase, Phase::Draining | Phase::Stopped)).await;
}

/// Whether the kubelet can give away every resource; or, while another plugin does this, whether this one could take over.
fn ready(allocator: &Allocator, duty: &Duty) -> Result<(), String> {
    if !allocator.resources.is_managed() {
        return Err("sriov-manager has not answered yet, and what it told a plugin before may be old; start it, or look at its log".to_owned());
    }
    if !duty.is_ours() {
        return Ok(());
    }
    if let Some(problem) = allocator.forwarder.problem().filter(|_| allocator.resources.has_software()) {
        return Err(format!("no software endpoint is joined: {problem}"));
    }
    let counts = allocator.counters.all();
    let is_open = |name: &String| counts.get(name).is_some_and(|counts| counts.is_registered);
    let closed: Vec<_> = allocator.resources.names().into_iter().filter(|name| !is_open(name)).collect();
    if closed.is_empty() {
        Ok(())
    } else {
        Err(format!("the kubelet has not opened the list of {}", closed.join(", ")))
    }
}

/// Why a plugin did not start, or ended early.
#[derive(Debug, Error)]
pub enum RunError {
    /// The metrics page cannot listen.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// Signals cannot be heard.
    #[error("listen for SIGHUP: {0}")]
    Signals(io::Error),
    /// A server ended while it was needed.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A forwarder that is there makes a wire anew in milliseconds.
const SETTLE_WAIT: std::time::Duration = std::time::Duration::from_secs(2);
/// How long clients of the page may take at the end.
const SERVERS_GRACE: std::time::Duration = std::time::Duration::from_millis(500);
