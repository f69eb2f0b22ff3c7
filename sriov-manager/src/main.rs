//! `sriov-manager`: configuration, start, run, stop.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ferrule_daemon::settings::LoadError;
use sriov_manager::config::PoliciesFile;
use sriov_manager::daemon::{DaemonOptions, run};
use sriov_manager::hands::Timeouts;
use sriov_manager::kernel::LiveKernel;
use sriov_manager::sysfs::Sysfs;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Owns every SR-IOV VF of a node: makes, binds, lends, cleans and restores them.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// The policies file; without it there are no pools, and VFs are lent by their addresses
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Socket of the API; overrides the file
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory of the journal; overrides the file
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Address of the metrics page; overrides the file
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// How often devices are looked at without news of the kernel; overrides the file
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    rescan: Option<Duration>,
    /// The directory that holds `sys`, `proc` and `dev`
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// How long one call into the kernel may take before its VF is called stuck
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log: LogFormat,
    /// The least level that is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
    /// Check the policies file and exit: 0 if it is good, 64 if not
    #[arg(long, requires = "config")]
    check: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let file = match flags.config.as_deref().map(PoliciesFile::load).transpose() {
        Ok(file) => file,
        Err(error) => return refuse(&error),
    };
    let config = file.as_ref().map(|file| file.config.clone()).unwrap_or_default();
    if flags.check {
        println!("{} pools, nothing wrong", config.policies.pools.len());
        return ExitCode::SUCCESS;
    }
    log(flags.log, flags.log_level);
    let options = DaemonOptions {
        sysfs: Sysfs::new(&flags.root),
        kernel: Arc::new(LiveKernel),
        state: flags.state.clone().unwrap_or(config.state),
        socket: flags.socket.clone().unwrap_or(config.socket),
        metrics: flags.metrics.or(config.metrics),
        rescan: flags.rescan.unwrap_or(config.rescan),
        policies: config.policies,
        file,
        patience: Timeouts { call: flags.patience, ..Timeouts::default() },
        observer: None,
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(error: &LoadError) -> ExitCode {
    for line in error.lines() {
        eprintln!("{line}");
    }
    ExitCode::from(EX_USAGE)
}

fn serve(options: DaemonOptions) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(async {
        // Heard from here on, so that a stop during the start is kept for later.
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        Ok(run(options, shutdown).await?)
    });
    // Whoever is still in the kernel is not waited for: the next start knows from the journal what it was about.
    runtime.shutdown_background();
    served
}

/// What we say at every level asked for, what libraries say from `info` on.
fn log(format: LogFormat, level: LevelFilter) {
    let filter = Targets::new().with_default(level.min(LevelFilter::INFO)).with_target("sriov_manager", level);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(lines.with_target(false).with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(lines.json()).init(),
    }
}

/// The exit code for a configuration that cannot be used, from `sysexits.h`.
const EX_USAGE: u8 = 64;
