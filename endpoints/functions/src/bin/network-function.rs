//! `network-function`: settings, start, run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ferrule_daemon::logging::LogFlags;
use ferrule_daemon::page::parse_address;
use ferrule_daemon::run::refuse_settings;
use ferrule_functions::config::ConfigFile;
use ferrule_functions::daemon::run;
#[cfg(feature = "nsm")]
use ferrule_functions::daemon::run_in_mesh;
#[cfg(feature = "nsm")]
use ferrule_functions::mesh::MeshArgs;

/// Runs a network function between two memif, vhost-user or kernel ends: a firewall, a NAT44, an NPTv6, a passthrough or a gateway.
#[derive(Parser)]
#[command(name = "network-function", version, args_override_self = true)]
struct Flags {
    /// The settings: two ends and a function; with --nsm a function
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Address of the metrics page; overrides the file
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    metrics: Option<SocketAddr>,
    /// Check the settings and exit: 0 if they are good, 64 if not
    #[arg(long)]
    check: bool,
    /// Be an endpoint of Network Service Mesh: a function for each connection, between memif ends that the mesh says
    #[cfg(feature = "nsm")]
    #[arg(long)]
    nsm: bool,
    #[cfg(feature = "nsm")]
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    log: LogFlags,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut file = match ConfigFile::load(&flags.config) {
        Ok(file) => file,
        Err(error) => return refuse_settings(&error),
    };
    if flags.check {
        println!("{}: nothing wrong", file.path.display());
        return ExitCode::SUCCESS;
    }
    let _log = match flags.log.start(env!("CARGO_CRATE_NAME")) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    file.config.metrics = flags.metrics.or(file.config.metrics);
    #[cfg(feature = "nsm")]
    if flags.nsm {
        return ferrule_daemon::run(|shutdown| run_in_mesh(file, flags.mesh, shutdown));
    }
    ferrule_daemon::run(|shutdown| run(file, shutdown))
}
