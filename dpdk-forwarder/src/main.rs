//! `dpdk-forwarder`: configuration, start, run, drain.

use std::net::SocketAddr;
use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use dpdk_forwarder::config::{Chains, Config, WiresFile, file_path};
use dpdk_forwarder::nsm::Environment;
use dpdk_forwarder::{Options, run};
use ferrule_daemon::logging::LogFlags;
use ferrule_daemon::page::parse_address;
use ferrule_daemon::run::refuse_settings;
use ferrule_daemon::{SocketFlags, counted};
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;

/// Joins memif, vhost-user and kernel interfaces, VFs and other DPDK devices by virtual wires.
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Flags {
    /// The wires file; without it the forwarder starts with no wires
    #[arg(long, alias = "config-file", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketFlags,
    /// Address of the metrics page; overrides the file
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    metrics: Option<SocketAddr>,
    /// File in which wires of the admin API are kept for the next start; overrides the file
    #[arg(long, value_name = "PATH", value_parser = file_path)]
    journal: Option<PathBuf>,
    #[command(flatten)]
    log: LogFlags,
    /// Check the wires file and exit: 0 if it is good, 64 if not
    #[arg(long, requires = "config")]
    check: bool,
    /// How long frames in flight may take to leave at the end
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    drain_grace: Duration,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let file = match flags.config.as_deref().map(WiresFile::load).transpose() {
        Ok(file) => file,
        Err(error) => return refuse_settings(&error),
    };
    if let (true, Some(file)) = (flags.check, &file) {
        let (path, wires) = (file.path.display(), counted(file.config.wires.len(), "wire"));
        let warnings = warnings(file);
        for warning in &warnings {
            println!("warning: {path}: {warning}");
        }
        println!("{path}: {wires}{}", if warnings.is_empty() { ", nothing wrong" } else { "" });
        return ExitCode::SUCCESS;
    }
    let _log = match flags.log.start(env!("CARGO_CRATE_NAME")) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut config = file.as_ref().map_or_else(Config::default, |file| file.config.clone());
    let mut by_flag = flags.socket.given();
    by_flag.extend(flags.metrics.map(|_| "metrics"));
    by_flag.extend(flags.journal.as_ref().map(|_| "journal"));
    config.socket = config.socket.with(flags.socket);
    config.metrics = flags.metrics.or(config.metrics);
    config.journal = flags.journal.or(config.journal);
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    match Environment::read(config.nsm.take(), environment) {
        Ok(Environment { settings, ignored }) => {
            for line in ignored {
                tracing::info!("{line}");
            }
            config.nsm = settings;
        }
        Err(wrong) => {
            for line in wrong {
                eprintln!("{line}");
            }
            return ExitCode::from(EX_USAGE);
        }
    }
    by_flag.push("nsm");
    let options = Options { config, file, by_flag, drain_grace: flags.drain_grace };
    ferrule_daemon::run(|shutdown| run(options, shutdown))
}

/// What is no error of the file, and not what somebody wants on this machine.
fn warnings(file: &WiresFile) -> Vec<String> {
    let mut warnings = Vec::new();
    if file.is_empty() {
        warnings.push("the file is empty".to_owned());
    }
    warnings.extend(file.config.chains.iter().flat_map(Chains::warnings).cloned());
    if let Ok(usable) = sched_getaffinity(Pid::from_raw(0)) {
        let is_usable = |cpu: usize| usable.is_set(cpu).unwrap_or(false);
        let missing = file.config.workers.iter().filter(|&&cpu| !is_usable(cpu));
        warnings.extend(missing.map(|cpu| {
            format!("workers: this machine has no CPU {cpu} that this process may use; `taskset --cpu-list --pid $$` shows those")
        }));
    }
    warnings
}

/// The exit code for settings that cannot be used, from `sysexits.h`.
const EX_USAGE: u8 = 64;
