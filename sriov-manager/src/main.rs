//! `sriov-manager`: configuration, start, run, stop.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use sriov_manager::config::Config;
use sriov_manager::daemon::{DaemonOptions, run};
use sriov_manager::document::LoadError;
use sriov_manager::hands::{Observer, Patience};
use sriov_manager::kernel::LiveKernel;
use sriov_manager::sysfs::Sysfs;
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;
use tracing::level_filters::LevelFilter;

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
    /// Die like under SIGKILL at the point of that number, counting from 1 (a build for the lab only)
    #[cfg(feature = "crash-points")]
    #[arg(long, value_name = "N")]
    die_at: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match flags.config.as_deref().map(Config::load).transpose() {
        Ok(config) => config.unwrap_or_default(),
        Err(error) => return refuse(&error),
    };
    if flags.check {
        println!("{} pools, nothing wrong", config.policies.pools.len());
        return ExitCode::SUCCESS;
    }
    let log = tracing_subscriber::fmt().with_max_level(flags.log_level).with_writer(std::io::stderr);
    match flags.log {
        LogFormat::Text => log.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    let options = DaemonOptions {
        sysfs: Sysfs::new(&flags.root),
        kernel: Arc::new(LiveKernel),
        state: flags.state.clone().unwrap_or(config.state),
        socket: flags.socket.clone().unwrap_or(config.socket),
        metrics: flags.metrics.or(config.metrics),
        rescan: flags.rescan.unwrap_or(config.rescan),
        policies: config.policies,
        patience: Patience { call: flags.patience, ..Patience::default() },
        observer: observer(&flags),
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

#[tokio::main(worker_threads = 2)]
async fn serve(options: DaemonOptions) -> anyhow::Result<()> {
    // Heard from here on, so that a stop during the start is kept for later.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(run(options, shutdown).await?)
}

#[cfg(not(feature = "crash-points"))]
fn observer(_: &Flags) -> Option<Observer> {
    None
}

/// Counts points, and ends the process at the wanted one without a chance to tidy up.
#[cfg(feature = "crash-points")]
fn observer(flags: &Flags) -> Option<Observer> {
    use std::sync::atomic::{AtomicU64, Ordering};
    let die_at = flags.die_at?;
    let passed = AtomicU64::new(0);
    Some(Arc::new(move |point: &sriov_manager::hands::Point<'_>| {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == die_at {
            eprintln!("dying at point {die_at}: {point:?}");
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }))
}

/// The exit code for a configuration that cannot be used, from `sysexits.h`.
const EX_USAGE: u8 = 64;
