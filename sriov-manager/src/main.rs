//! `sriov-manager`: configuration, start, run, stop.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use ferrule_daemon::logging::LogFlags;
use ferrule_daemon::page::parse_address;
use ferrule_daemon::run::refuse_settings;
use ferrule_daemon::{SocketFlags, counted};
use prost::Message;
use sriov_manager::Driver;
use sriov_manager::config::PoliciesFile;
use sriov_manager::daemon::{DaemonOptions, run};
use sriov_manager::executor::Timeouts;
use sriov_manager::kernel::{Kernel, LiveKernel};
use sriov_manager::look;
use sriov_manager::sysfs::Sysfs;

/// Owns every SR-IOV VF of a node: makes, binds, lends, cleans and restores them.
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Flags {
    /// The policies file; without it there are no pools, and VFs are lent by their addresses
    #[arg(long, alias = "config-file", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketFlags,
    /// Directory of the journal; overrides the file
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Address of the metrics page; overrides the file
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    metrics: Option<SocketAddr>,
    /// Time between two looks at all devices while the kernel reports no change; overrides the file
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    rescan: Option<Duration>,
    /// The directory that holds `sys`, `proc` and `dev`
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// How long one call into the kernel may take before its VF is called stuck
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = humantime::parse_duration)]
    call_timeout: Duration,
    #[command(flatten)]
    log: LogFlags,
    /// Check the policies file and exit: 0 if it is good, 64 if not
    #[arg(long, requires = "config")]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is done in place of serving.
#[derive(Subcommand)]
enum Command {
    /// Say what the tree below --root shows, as a message of the API: for `ferrule vf --root`
    #[command(subcommand)]
    Look(Look),
}

/// What can be asked of a tree.
#[derive(Subcommand)]
enum Look {
    /// Every PF and VF: a `ListResponse`
    List,
    /// Why a VF cannot be borrowed: an `ExplainResponse`
    Explain {
        /// The VF, by address or by a name of its interface
        vf: String,
        /// The driver that it would be borrowed for: kernel, vfio-pci or none
        #[arg(long, value_name = "DRIVER", default_value = "kernel")]
        driver: Driver,
    },
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(Command::Look(what)) = flags.command {
        return look(&Sysfs::new(flags.root), what);
    }
    let file = match flags.config.as_deref().map(PoliciesFile::load).transpose() {
        Ok(file) => file,
        Err(error) => return refuse_settings(&error),
    };
    let config = file.as_ref().map(|file| file.config.clone()).unwrap_or_default();
    if flags.check {
        let is_empty = file.as_ref().is_some_and(PoliciesFile::is_empty);
        let path = file.map(|file| file.path).unwrap_or_default();
        let (path, pools) = (path.display(), counted(config.policies.pools.len(), "pool"));
        if is_empty {
            println!("warning: {path}: the file is empty");
        }
        println!("{path}: {pools}{}", if is_empty { "" } else { ", nothing wrong" });
        return ExitCode::SUCCESS;
    }
    let _log = match flags.log.start(env!("CARGO_CRATE_NAME")) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    let options = DaemonOptions {
        sysfs: Sysfs::new(&flags.root),
        kernel: Arc::new(LiveKernel),
        state: flags.state.clone().unwrap_or(config.state),
        socket: config.socket.with(flags.socket),
        metrics: flags.metrics.or(config.metrics),
        rescan: flags.rescan.unwrap_or(config.rescan),
        policies: config.policies,
        file,
        timeouts: Timeouts { call: flags.call_timeout, ..Timeouts::default() },
        observer: None,
    };
    ferrule_daemon::run(|shutdown| run(options, shutdown))
}

fn look(sysfs: &Sysfs, what: Look) -> ExitCode {
    if io::stdout().is_terminal() {
        eprintln!("look: a message for programs; `ferrule vf --root` shows it");
        return ExitCode::FAILURE;
    }
    let message = match what {
        Look::List => look::list(sysfs).map(|list| list.encode_to_vec()),
        Look::Explain { vf, driver } => {
            // A made-up tree has interfaces that this kernel does not know.
            let kernel = sysfs.is_live().then_some(&LiveKernel as &dyn Kernel);
            look::explain(sysfs, kernel, &vf, driver).map(|reasons| reasons.encode_to_vec())
        }
    };
    let written = message
        .map_err(|error| error.to_string())
        .and_then(|message| io::stdout().write_all(&message).map_err(|error| format!("write the answer: {error}")));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
