//! An `sriov-manager` that kills itself at a wanted point of its work, so that the lab can kill it at every one.
//!
//! It is the daemon of the crate with an observer; the program that people run has no such thing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sriov_manager::daemon::{DaemonOptions, run};
use sriov_manager::executor::{Observer, Point, Timeouts};
use sriov_manager::kernel::LiveKernel;
use sriov_manager::policy::Policies;
use sriov_manager::sysfs::Sysfs;
use tracing::level_filters::LevelFilter;

#[derive(Parser)]
struct Flags {
    /// Socket of the API
    #[arg(long)]
    socket: PathBuf,
    /// Directory of the journal
    #[arg(long)]
    state: PathBuf,
    /// At which point, counting from 1
    #[arg(long)]
    die_at: u64,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let flags = Flags::parse();
    tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(std::io::stderr).init();
    let options = DaemonOptions {
        sysfs: Sysfs::default(),
        kernel: Arc::new(LiveKernel),
        state: flags.state,
        socket: flags.socket,
        metrics: None,
        rescan: Duration::from_secs(30),
        policies: Policies::default(),
        file: None,
        timeouts: Timeouts::default(),
        observer: Some(dying_at(flags.die_at)),
    };
    Ok(run(options, std::future::pending()).await?)
}

/// Counts points, and ends the process at the wanted one without a chance to tidy up.
fn dying_at(wanted: u64) -> Observer {
    let passed = AtomicU64::new(0);
    Arc::new(move |point: &Point<'_>| {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == wanted {
            eprintln!("dying at point {wanted}: {point:?}");
            // It cannot be refused: it is our own process.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    })
}
