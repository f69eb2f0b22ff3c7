//! The daemon without its command line: a hop that follows its settings, and a page that shows what it counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferrule_daemon::page::{self, ListenError, Probes};
use ferrule_daemon::reload::{Reload, reload_on_change};
use ferrule_daemon::settings::{Cause, FileSettings, Followed};
use ferrule_daemon::{ServerError, Servers};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use self::metrics::Snapshot;
use crate::any::{AnyCounters, AnyFunction};
use crate::config::{Config, ConfigFile, HopEnd};
use crate::function::Side;
use crate::hop::{Hop, HopError, HopEvent};

mod metrics;

/// Runs a hop until `shutdown` is there.
pub async fn run(file: ConfigFile, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    // First of all, so that a hangup during the start is kept for later instead of ending us.
    let hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
    let ConfigFile { path, contents, config } = file;
    let listener = match config.metrics {
        Some(address) => Some(page::Listener::bind(address).await?),
        None => None,
    };
    let function = AnyFunction::new(config.link(), &config.function);
    let counters = Arc::new(Mutex::new(function.counters()));
    let specs = config.ends.each_ref().map(HopEnd::spec);
    let hop = Arc::new(Hop::start(function, specs, say)?);
    let mut servers = Servers::new();
    if let Some(listener) = listener {
        let (name, counted, shown) = (config.name.clone(), Arc::clone(hop.counters()), Arc::clone(&counters));
        let ends = Arc::clone(&counted);
        let render = move || Snapshot::take(&name, &counted, read(&shown)).render();
        let ready = move || match Side::BOTH.into_iter().find(|side| !ends.sides[side.index()].is_connected()) {
            Some(side) => Err(format!("nobody is at the {}'s end", side.word())),
            None => Ok(()),
        };
        let probes = Probes { ready: Arc::new(ready), ..Probes::default() };
        servers.serve_page_with(listener, Arc::new(render), probes);
    }
    servers.ready(format_args!("{} `{}`", word(&config), config.name));
    let followed = Followed::new(Config::FILE, path, contents);
    let reloader = Reloader { started: config, hop: Arc::clone(&hop), counters };
    let has_page = servers.page().is_some();
    let failed = async {
        // Without a page there is no server that could end.
        if has_page { servers.failed().await } else { std::future::pending().await }
    };
    let result = tokio::select! {
        () = shutdown => Ok(()),
        error = failed => Err(error.into()),
        () = died(&hop) => Err(RunError::Died),
        () = reload_on_change(Some((followed, reloader)), Config::FILE, hangup) => Ok(()),
    };
    servers.stop(STOP_GRACE).await;
    // Its threads are waited for.
    let _ = spawn_blocking(move || drop(hop)).await;
    result
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
    /// The hop.
    #[error(transparent)]
    Hop(#[from] HopError),
    /// A thread of the hop ended.
    #[error("a thread of the function ended by itself; its panic is above")]
    Died,
    /// Something ended that should not have.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Returns when a thread of the hop has ended.
async fn died(hop: &Hop<AnyFunction>) {
    while hop.is_alive() {
        tokio::time::sleep(LOOK).await;
    }
}

fn word(config: &Config) -> &'static str {
    use crate::config::FunctionSettings::{Firewall, Gateway, Nat44, Passthrough};
    match config.function {
        Passthrough => "passthrough",
        Firewall { .. } => "firewall",
        Nat44(_) => "nat44",
        Gateway => "gateway",
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

fn read(counters: &Mutex<AnyCounters>) -> AnyCounters {
    counters.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

struct Reloader {
    started: Config,
    hop: Arc<Hop<AnyFunction>>,
    counters: Arc<Mutex<AnyCounters>>,
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
        let (hop, counters) = (Arc::clone(&self.hop), Arc::clone(&self.counters));
        let adopt = move |function: &mut AnyFunction| {
            if function.adopt(&config.function) {
                *counters.lock().unwrap_or_else(PoisonError::into_inner) = function.counters();
                info!("settings applied; sessions stay that they allow");
            }
        };
        // The queue of orders may be full for a moment.
        if !spawn_blocking(move || hop.order(adopt)).await.unwrap_or(false) {
            error!(file = %path, "the function's thread has ended; start it again");
        }
    }
}

/// Between two looks at the threads.
const LOOK: Duration = Duration::from_millis(500);
/// How long a client of the page may take to read its last answer.
const STOP_GRACE: Duration = Duration::from_millis(500);
