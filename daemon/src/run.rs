//! How every daemon runs: signals, what it serves, and its end.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::Phase;
use crate::page::{self, Probes, Render};
use crate::settings::LoadError;

/// Ready when the daemon is to stop.
pub type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a daemon until it ends, on a runtime of its own; SIGTERM and SIGINT are its [`Shutdown`]. An error is logged.
pub fn run<F, E>(serve: impl FnOnce(Shutdown) -> F) -> ExitCode
where
    F: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    let outcome = run_with_signals(serve).map_err(|error| format!("start: {error}"));
    match outcome.and_then(|served| served.map_err(|error| with_sources(&error))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Says on standard error what is wrong with a file of settings: one line for each error, and the exit code.
pub fn refuse_settings(error: &LoadError) -> ExitCode {
    for line in error.lines() {
        eprintln!("{line}");
    }
    ExitCode::from(EX_USAGE)
}

/// Every queue of a wire and every client of a socket holds some descriptors; the soft limit is made for shells.
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}

fn run_with_signals<F: Future>(serve: impl FnOnce(Shutdown) -> F) -> io::Result<F::Output> {
    raise_file_limit();
    let runtime = runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let served = runtime.block_on(async {
        // Heard from here on, so that a stop during the start is kept for later.
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        Ok(serve(Box::pin(shutdown)).await)
    });
    // Whoever is still in the kernel is not waited for.
    runtime.shutdown_background();
    served
}

/// An error with its causes. Those that its own text names already come once.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// What a daemon serves, all of it in step with its phase.
#[derive(Debug)]
pub struct Servers {
    phase: watch::Sender<Phase>,
    tasks: JoinSet<Result<(), String>>,
    page: Option<SocketAddr>,
}

impl Servers {
    /// Nothing yet.
    #[expect(clippy::new_without_default, reason = "a daemon has one, and makes it where it starts")]
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), tasks: JoinSet::new(), page: None }
    }

    /// The same for a daemon that has much to make before it is ready: it is asked meanwhile, and says so.
    pub fn starting() -> Self {
        Self { phase: watch::Sender::new(Phase::Starting), ..Self::new() }
    }

    /// What the daemon is doing, for a server.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Serves something that ends by itself when the phase is [`Phase::Stopped`].
    pub fn serve<E: fmt::Display>(&mut self, server: impl Future<Output = Result<(), E>> + Send + 'static) {
        self.tasks.spawn(async { server.await.map_err(|error| error.to_string()) });
    }

    /// Serves the page for Prometheus and for probes on `listener`.
    pub fn serve_page(&mut self, listener: page::Listener, render: Render) {
        self.serve_page_with(listener, render, Probes::default());
    }

    /// The same for a daemon that knows more of itself than its phase.
    pub fn serve_page_with(&mut self, listener: page::Listener, render: Render, probes: Probes) {
        self.page = Some(listener.address());
        let page = page::serve(listener, render, probes, self.phase());
        self.serve(async { page.await.map_err(|error| format!("serve metrics: {error}")) });
    }

    /// Where the page listens; with port 0 in the settings, the port that was given.
    pub fn page(&self) -> Option<SocketAddr> {
        self.page
    }

    /// Says that all of it is there: in the log, with `summary`, and to systemd.
    pub fn ready(&self, summary: impl fmt::Display) {
        self.serve_from_now_on(format_args!("ready: {summary}"));
    }

    /// The same for a daemon that is ready only when others have done their part: its page says when.
    pub fn started(&self, summary: impl fmt::Display) {
        self.serve_from_now_on(format_args!("started: {summary}"));
    }

    fn serve_from_now_on(&self, summary: fmt::Arguments<'_>) {
        // One that was told to stop meanwhile stays so.
        self.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            if starting {
                *phase = Phase::Serving;
            }
            starting
        });
        if let Some(address) = self.page {
            info!("metrics on http://{address}/metrics");
        }
        info!("{summary}");
        notify(&[NotifyState::Ready]);
    }

    /// Returns when something ended that should not have.
    pub async fn failed(&mut self) -> ServerError {
        ServerError(match self.tasks.join_next().await {
            Some(Ok(Ok(()))) | None => "a server ended by itself".to_owned(),
            Some(Ok(Err(problem))) => problem,
            Some(Err(error)) => error.to_string(),
        })
    }

    /// Takes no more changes from now on.
    pub fn drain(&self) {
        notify(&[NotifyState::Stopping]);
        self.phase.send_replace(Phase::Draining);
    }

    /// Lets clients read their last answers for a while, and stops.
    pub async fn stop(&mut self, grace: Duration) {
        self.phase.send_replace(Phase::Stopped);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(grace, ended).await.is_err() {
            // A client that neither reads nor leaves.
            self.tasks.shutdown().await;
        }
    }
}

/// A server ended while it was needed.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ServerError(String);

/// Tells systemd, if it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot tell systemd");
    }
}

/// Of the runtime: a daemon answers few clients, and what may wait has threads of its own.
const THREADS: usize = 2;
/// The exit code for settings that cannot be used, from `sysexits.h`.
pub const EX_USAGE: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Error)]
    #[error("make /run/x: {0}")]
    struct Named(#[source] io::Error);

    #[derive(Debug, Error)]
    #[error("start")]
    struct Bare(#[source] Named);

    #[test]
    fn a_cause_is_said_once_whether_an_error_names_it_or_not() {
        let error = Bare(Named(io::Error::other("read-only file system")));
        assert_eq!(with_sources(&error), "start: make /run/x: read-only file system");
        assert_eq!(with_sources(&error.0), "make /run/x: read-only file system");
    }
}
