//! `ferrule demo`: the main job on this machine with real packets, and whether they all arrived.
//!
//! It starts a forwarder of its own, gives it wires between two namespaces that it makes, and removes everything again,
//! whatever happens. No frame leaves the machine.
//!
//! In reading order: `needs` (what a machine must have), `testbed` (what is made and removed), `plan` (the wires),
//! `daemon` (a child process), `responder` (who answers on a memif end), `steps` (what is done, in order), `ping`,
//! `tcp` and `rate` (the traffic), `counters` (what the forwarder counted, against what its peers did), `report`. And `pod`: the same
//! for two pods that get their ends from a device plugin; `chain`: service chains, whose hops are wires.

use std::fmt;
use std::io::Write as _;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use clap::{Args, Subcommand};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use crate::CliError;

mod chain;
mod counters;
mod daemon;
mod needs;
mod ping;
mod plan;
mod pod;
mod rate;
mod report;
mod responder;
mod steps;
mod tcp;
mod testbed;

/// Options of `ferrule demo`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    /// What else to show; without it, wires.
    #[command(subcommand)]
    what: Option<DemoCommand>,
    /// Print the result as JSON, and the progress on standard error
    #[arg(long)]
    json: bool,
    /// The forwarder to start; without it, the `dpdk-forwarder` beside this program
    #[arg(long, value_name = "PATH")]
    forwarder: Option<PathBuf>,
}

/// What else can be shown.
#[derive(Debug, Subcommand)]
pub enum DemoCommand {
    /// Two pods get endpoints from the device plugin, as a kubelet gives them, and the forwarder joins them
    Pod(pod::PodDemoArgs),
    /// Two clients reach a VPN gateway through a firewall and three passthroughs, each a process, each hop a wire
    SecureIntranet(chain::ChainDemoArgs),
    /// A client reaches a web server through a NAT44; the server's own log sees an address of the pool
    Nat(chain::ChainDemoArgs),
}

/// Shows it, and fails unless every check passed.
pub async fn run(args: DemoArgs) -> Result<(), CliError> {
    match args.what {
        Some(DemoCommand::Pod(args)) => return pod::run(args).await,
        Some(DemoCommand::SecureIntranet(args)) => return chain::run(args, chain::ChainDemo::SecureIntranet).await,
        Some(DemoCommand::Nat(args)) => return chain::run(args, chain::ChainDemo::Nat).await,
        None => {}
    }
    let (json, progress) = (args.json, Progress::new(args.json));
    let work = move |handle: &Handle, stop: &Stop| steps::run(args.forwarder, handle, stop, progress);
    let report = attend(progress, work).await?;
    let text = if json { report.json() } else { report.text() };
    let written = std::io::stdout().write_all(text.as_bytes());
    // A reader that left does not make it a success.
    report.verdict()?;
    Ok(written?)
}

/// Does the work, which blocks, and tells it when a person or the system wants the end of it.
async fn attend<T: Send + 'static>(
    progress: Progress,
    work: impl FnOnce(&Handle, &Stop) -> T + Send + 'static,
) -> Result<T, CliError> {
    let stop = Stop::default();
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal).into_iter();
    let mut next = || signals.next().expect("three signals were asked for");
    let (mut interrupt, mut terminate, mut hangup) = (next()?, next()?, next()?);
    let (handle, at_work) = (Handle::current(), stop.clone());
    let mut work = tokio::task::spawn_blocking(move || work(&handle, &at_work));
    loop {
        tokio::select! {
            done = &mut work => return Ok(done.unwrap_or_else(|error| resume_unwind(error.into_panic()))),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        progress.say("told to stop: removing everything");
        stop.0.store(true, Relaxed);
    }
}

/// Prints what is being done.
#[derive(Clone, Copy, Debug)]
struct Progress {
    started: Instant,
    to_stderr: bool,
}

impl Progress {
    fn new(to_stderr: bool) -> Self {
        Self { started: Instant::now(), to_stderr }
    }

    fn say(self, what: impl fmt::Display) {
        let line = format!("{:5.1} s  {what}\n", self.started.elapsed().as_secs_f64());
        // A reader that left misses nothing that it wanted.
        let _ = if self.to_stderr {
            std::io::stderr().write_all(line.as_bytes())
        } else {
            std::io::stdout().write_all(line.as_bytes())
        };
    }
}

/// Whether a person or the system wants the end of it.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn check(&self) -> Result<(), DemoError> {
        if self.0.load(Relaxed) { Err(DemoError::Interrupted) } else { Ok(()) }
    }
}

/// Why the demo did not come to its end, or came to a bad one.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The machine lacks something.
    #[error("the demo cannot run here: {}", .0.join("; "))]
    Needs(Vec<String>),
    /// A piece of the testbed could not be made.
    #[error("{tried}: {problem}")]
    Testbed {
        /// What was tried, on what.
        tried: String,
        /// Why it failed.
        problem: String,
    },
    /// A daemon did not start, or did not do what it was told.
    #[error("{name} {}: {problem}", program.display())]
    Daemon {
        /// Which.
        name: &'static str,
        /// Its program.
        program: PathBuf,
        /// What it did instead.
        problem: String,
    },
    /// A signal came.
    #[error("stopped by a signal; everything was removed")]
    Interrupted,
    /// A step of the demo with pods failed; it was told already.
    #[error("{step}: {problem}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        problem: String,
    },
    /// Checks of a service chain failed; each was told already.
    #[error("{} of {checked} checks failed: {}", failed.len(), failed.join(", "))]
    Checks {
        /// Names of the checks that failed.
        failed: Vec<&'static str>,
        /// How many checks there were.
        checked: usize,
    },
    /// Checks failed; each was told already.
    #[error("{} of {checked} wires failed: {}", failed.len(), failed.join(", "))]
    Failed {
        /// Names of the wires that failed.
        failed: Vec<&'static str>,
        /// How many wires there are.
        checked: usize,
    },
}

impl DemoError {
    fn testbed(tried: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::Testbed { tried: tried.into(), problem: problem.to_string() }
    }
}
