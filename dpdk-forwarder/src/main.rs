//! `dpdk-forwarder`: configuration, start, run, drain.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use dpdk_forwarder::config::{Config, LoadError, WiresFile};
use dpdk_forwarder::{Options, run};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, level_filters::LevelFilter, warn};

/// Joins memif, vhost-user and kernel interfaces by virtual wires.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// The wires file; without it the forwarder starts with no wires
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Socket of the admin API; overrides the file
    #[arg(long, value_name = "PATH")]
    admin: Option<PathBuf>,
    /// Address of the metrics page; overrides the file
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log: LogFormat,
    /// The least level that is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
    /// Check the wires file and exit: 0 if it is good, 64 if not
    #[arg(long, requires = "config")]
    check: bool,
    /// How long frames in flight may take to leave at the end
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    drain_grace: Duration,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let file = match flags.config.as_deref().map(WiresFile::load).transpose() {
        Ok(file) => file,
        Err(error) => return refuse(&error),
    };
    if let (true, Some(file)) = (flags.check, &file) {
        println!("{}: {} wires, nothing wrong", file.path.display(), file.config.wires.len());
        return ExitCode::SUCCESS;
    }
    let log = tracing_subscriber::fmt().with_max_level(flags.log_level).with_writer(std::io::stderr);
    match flags.log {
        LogFormat::Text => log.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    let mut config = file.as_ref().map_or_else(Config::default, |file| file.config.clone());
    config.admin = flags.admin.unwrap_or(config.admin);
    config.metrics = flags.metrics.or(config.metrics);
    match serve(Options { config, file, drain_grace: flags.drain_grace }) {
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
async fn serve(options: Options) -> anyhow::Result<()> {
    // Every queue of every wire holds some descriptors; the soft limit is made for shells.
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
    // Heard from here on, so that a stop during the start is kept for later.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(run(options, shutdown).await?)
}

/// The exit code for a configuration that cannot be used, from `sysexits.h`.
const EX_USAGE: u8 = 64;
