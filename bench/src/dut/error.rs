//! Why a program cannot be measured.

use std::io;
use std::path::PathBuf;

use ferrule_endpoints::end::EndError;
use nix::errno::Errno;
use thiserror::Error;

use crate::ports::PortsError;

/// Why a program cannot be measured.
#[derive(Debug, Error)]
pub enum DutError {
    /// It is not there.
    #[error("start {program}: {source}{}", last_lines(.log))]
    Start {
        /// Which.
        program: String,
        /// Why not.
        source: StartError,
        /// What it printed.
        log: String,
    },
    /// It does not take our ends.
    #[error("connect to {program}: {source}{}", last_lines(.log))]
    Connect {
        /// Which.
        program: String,
        /// Why not.
        source: ConnectError,
        /// What it printed.
        log: String,
    },
    /// It is there, and nothing comes through.
    #[error("no frame comes through {program}: are the ports joined with it, and their links up?{}", last_lines(.log))]
    Silent {
        /// Which.
        program: String,
        /// What it printed.
        log: String,
    },
    /// Ours is not built.
    #[error(
        "there is no forwarder at {0}; build it (`cargo build --release -p dpdk-forwarder`) or name it with --forwarder"
    )]
    NoForwarder(PathBuf),
    /// Files.
    #[error("prepare a folder for a program: {0}")]
    System(#[from] io::Error),
    /// Signals.
    #[error("stop a program: {0}")]
    Signal(#[from] Errno),
}

/// Why a program did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No such program.
    #[error("{program} is not installed; it is in Debian's package {package} (`make need-bench` installs it)")]
    Missing {
        /// Its name.
        program: String,
        /// Where it comes from.
        package: &'static str,
    },
    /// It does not do what it is told to.
    #[error("`{command}` failed: {problem}")]
    Command {
        /// What was run.
        command: String,
        /// Why not.
        problem: String,
    },
    /// It cannot do this at all.
    #[error("{0}")]
    Unable(&'static str),
    /// Files.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// It did not come about in time.
    #[error(transparent)]
    End(#[from] EndError),
    /// There are no ports.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// There is nobody to connect to.
    #[error("`{0}` has ended")]
    Ended(String),
    /// Somebody wanted that.
    #[error("interrupted")]
    Cancelled,
}

/// The end of what a program printed.
fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    if last.is_empty() { String::new() } else { format!("; the last lines of its log:\n  {}", last.join("\n  ")) }
}

const LOG_LINES: usize = 20;
