//! The programs that are measured: started, connected to, stopped and continued.

mod ferrule;
mod ovs;
mod process;
mod testpmd;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use ferrule_dataplane::spec::{MemifSpec, Role, SocketAddress};
use ferrule_endpoints::end::{End, EndError, EndSpec};
use ferrule_endpoints::vhost_user::FrontendSpec;
use ferrule_endpoints::virtio::DriverSpec;
use nix::errno::Errno;
use thiserror::Error;

pub use self::ferrule::forwarder;
use self::process::Process;
use crate::case::Kind;
use crate::folder::Folder;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Our forwarder.
    Ferrule {
        /// The binary.
        forwarder: PathBuf,
        /// Whether its wire is a trusted one.
        trusted: bool,
    },
    /// DPDK's test program, forwarding as it is (`io`).
    Testpmd {
        /// Frames it takes at a time.
        burst: u16,
    },
    /// Open vSwitch with DPDK, and one flow for each direction.
    Ovs,
    /// A forwarder that runs already, and is not ours to stop.
    Running {
        /// Where its two ends are.
        sockets: [SocketAddress; 2],
        /// Whether its second end is a memif client, and we are to listen there.
        trusted: bool,
    },
}

impl Program {
    /// The command that tells its version.
    fn version_command(&self) -> Option<Command> {
        let (binary, args): (_, &[&str]) = match self {
            Self::Ferrule { forwarder, .. } => (forwarder.as_path(), &["--version"]),
            // It knows no --version, and tells it on its way to the help.
            Self::Testpmd { .. } => {
                (Path::new("dpdk-testpmd"), &["-v", "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "--help"])
            }
            Self::Ovs => (Path::new(ovs::DAEMON), &["--version"]),
            Self::Running { .. } => return None,
        };
        let mut command = Command::new(binary);
        command.args(args);
        Some(command)
    }

    fn is_trusted(&self) -> bool {
        matches!(self, Self::Ferrule { trusted: true, .. } | Self::Running { trusted: true, .. })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ferrule { trusted, .. } => f.write_str(if *trusted { "ferrule trusted" } else { "ferrule" }),
            Self::Testpmd { burst } => write!(f, "testpmd burst {burst}"),
            Self::Ovs => f.write_str("ovs-dpdk"),
            Self::Running { .. } => f.write_str("running forwarder"),
        }
    }
}

/// What a program is to join, and where it is to run.
#[derive(Clone, Debug)]
pub struct Site {
    /// The ends.
    pub ends: [Kind; 2],
    /// Queues of each end.
    pub queues: u16,
    /// Bytes of each buffer of ours.
    pub buffer: u32,
    /// The CPUs for workers.
    pub workers: Vec<usize>,
    /// The CPU for everything else: the generator's.
    pub other: usize,
    /// What our forwarder's workers do without work.
    pub idle: Idle,
}

/// What a worker does without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Idle {
    /// It sleeps, as it does unless its configuration says otherwise
    Adaptive,
    /// It looks for work for ever, as testpmd and OVS do
    Poll,
}

/// A running program with an end of ours at either side. It is stopped unless it has its turn.
pub struct Contender {
    /// What it is.
    pub program: Program,
    /// What it says its version is.
    pub version: String,
    /// How it was started: one line for each command.
    pub commands: Vec<String>,
    /// The ends, in the order of the site's.
    pub ends: [End; 2],
    // In this order: the processes go before their folder.
    processes: Vec<Process>,
    _folder: Folder,
}

impl Contender {
    /// Starts a program and connects to it.
    pub fn start(program: &Program, site: &Site, cancel: &AtomicBool) -> Result<Self, ContenderError> {
        let folder = Folder::new(&std::env::temp_dir())?;
        let sockets = match program {
            Program::Running { sockets, .. } => sockets.clone(),
            _ => [0, 1].map(|number| SocketAddress::Path(folder.join(&format!("{number}.sock")))),
        };
        let log = folder.join("log");
        let processes = match program {
            Program::Ferrule { forwarder, trusted } => ferrule::start(forwarder, *trusted, site, &folder, &sockets),
            Program::Testpmd { burst } => testpmd::start(*burst, site, &folder, &sockets),
            Program::Ovs => ovs::start(site, &folder, &sockets, cancel),
            Program::Running { .. } => Ok(Vec::new()),
        };
        let processes = processes.map_err(|source| ContenderError::Start {
            program: program.to_string(),
            source,
            log: fs::read_to_string(&log).unwrap_or_default(),
        })?;
        let commands = processes.iter().map(|process| process.command.clone()).collect();
        let specs = end_specs(program, site, &sockets);
        let [near, far] = specs.each_ref().map(|spec| {
            connect(spec, &processes, cancel).map_err(|source| ContenderError::Connect {
                program: program.to_string(),
                source,
                log: fs::read_to_string(&log).unwrap_or_default(),
            })
        });
        let version = program.version_command().map_or_else(|| "unknown".to_owned(), version);
        let contender =
            Self { ends: [near?, far?], program: program.clone(), version, commands, processes, _folder: folder };
        contender.pause()?;
        Ok(contender)
    }

    /// Lets it run.
    pub fn resume(&self) -> Result<(), Errno> {
        self.processes.iter().try_for_each(Process::resume)
    }

    /// Stops it where it is.
    pub fn pause(&self) -> Result<(), Errno> {
        self.processes.iter().try_for_each(Process::pause)
    }

    /// CPU time that all its threads have had, if it is ours to know.
    pub fn cpu_time(&self) -> Option<Duration> {
        if self.processes.is_empty() { None } else { self.processes.iter().map(Process::cpu_time).sum() }
    }
}

fn end_specs(program: &Program, site: &Site, sockets: &[SocketAddress; 2]) -> [EndSpec; 2] {
    let spec = |number: usize| match site.ends[number] {
        Kind::Memif => {
            // The client's memory is the one that a trusted wire passes on.
            let role = if number == 1 && program.is_trusted() { Role::Server } else { Role::Client };
            let spec = MemifSpec::new(sockets[number].clone(), role);
            EndSpec::Memif(MemifSpec { queues: site.queues, ring: RING, buffer: site.buffer, ..spec })
        }
        Kind::Vhost => {
            let rings = DriverSpec { size: RING, buffer: site.buffer, ..DriverSpec::default() };
            EndSpec::Vhost(FrontendSpec { queues: site.queues, rings, ..FrontendSpec::new(sockets[number].clone()) })
        }
    };
    [spec(0), spec(1)]
}

/// Tries until it works, a process of the program ends, or somebody loses patience.
///
/// On a thread of its own: a handshake that has begun is not broken off to look at something else, since testpmd does not
/// survive that (it adds the socket that was closed to its epoll, and panics).
fn connect(spec: &EndSpec, processes: &[Process], cancel: &AtomicBool) -> Result<End, ConnectError> {
    let (done, outcome) = mpsc::channel();
    let spec = spec.clone();
    thread::spawn(move || {
        // Without a receiver nobody waits any more.
        let _ = done.send(End::open(&spec, PATIENCE));
    });
    loop {
        match outcome.recv_timeout(LOOK) {
            Ok(end) => return Ok(end?),
            Err(RecvTimeoutError::Disconnected) => return Err(ConnectError::Cancelled),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if cancel.load(Relaxed) {
            return Err(ConnectError::Cancelled);
        }
        if let Some(process) = processes.iter().find(|process| process.has_ended()) {
            return Err(ConnectError::Ended(process.command.clone()));
        }
    }
}

/// The line that says most.
fn version(mut command: Command) -> String {
    let Ok(output) = command.output() else { return "unknown".to_owned() };
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    let line = text.lines().find(|line| line.contains("RTE Version")).or_else(|| text.lines().next());
    line.unwrap_or("unknown").trim().trim_start_matches("EAL: RTE Version: ").replace('\'', "")
}

/// Why a program cannot be measured.
#[derive(Debug, Error)]
pub enum ContenderError {
    /// It is not there.
    #[error("start {program}: {source}{}", said(.log))]
    Start {
        /// Which.
        program: String,
        /// Why not.
        source: StartError,
        /// What it printed.
        log: String,
    },
    /// It does not take our ends.
    #[error("connect to {program}: {source}{}", said(.log))]
    Connect {
        /// Which.
        program: String,
        /// Why not.
        source: ConnectError,
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
    /// There is nobody to connect to.
    #[error("`{0}` has ended")]
    Ended(String),
    /// Somebody wanted that.
    #[error("interrupted")]
    Cancelled,
}

/// The end of what a program printed.
fn said(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    if last.is_empty() { String::new() } else { format!("; it said last:\n  {}", last.join("\n  ")) }
}

/// Slots of every ring of ours.
const RING: u32 = 1024;
/// DPDK takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at whether the wait still makes sense.
const LOOK: Duration = Duration::from_millis(100);
const LOG_LINES: usize = 20;
