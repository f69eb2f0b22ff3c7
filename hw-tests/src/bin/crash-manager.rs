//! An `sriov-manager` that kills itself at a wanted point of its work, so that the lab can kill it at every one.
//!
//! It is the daemon of the crate with an observer; the program that people run has no such thing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use ferrule_daemon::ApiSocket;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sriov_manager::daemon::{DaemonOptions, run};
use sriov_manager::executor::{Observer, Point, Timeouts};
use sriov_manager::kernel::LiveKernel;
use sriov_manager::plan::Step;
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
    /// At which point it dies, counting from 1
    #[arg(long)]
    die_at: Option<u64>,
    /// It makes this file when it is about to unbind a VF, and goes on when the file is gone
    #[arg(long)]
    pause_before_unbind: Option<PathBuf>,
    /// How long one call into the kernel may take
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    call_timeout: Duration,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(std::io::stderr).init();
    let options = DaemonOptions {
        sysfs: Sysfs::default(),
        kernel: Arc::new(LiveKernel),
        state: flags.state,
        socket: ApiSocket::at(flags.socket),
        metrics: None,
        rescan: Duration::from_secs(30),
        policies: Policies::default(),
        file: None,
        timeouts: Timeouts { call: flags.call_timeout, ..Timeouts::default() },
        observer: Some(observer(flags.die_at, flags.pause_before_unbind)),
    };
    ferrule_daemon::run(|shutdown| run(options, shutdown))
}

/// Counts points, and ends the process at the wanted one without a chance to tidy up.
fn observer(die_at: Option<u64>, pause_before_unbind: Option<PathBuf>) -> Observer {
    let passed = AtomicU64::new(0);
    Arc::new(move |point: &Point<'_>| {
        let number = passed.fetch_add(1, Ordering::Relaxed) + 1;
        if die_at == Some(number) {
            eprintln!("dying at point {number}: {point:?}");
            // It cannot be refused: it is our own process.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
        if let (Some(file), Point::Before(Step::Unbind { .. })) = (&pause_before_unbind, point)
            && std::fs::write(file, "").is_ok()
        {
            // Whoever waits may put a folder in its place, so that no later unbind pauses.
            while file.is_file() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    })
}
