//! The programs that are measured: started, connected to, stopped and continued.

mod ends;
mod error;
mod ferrule;
mod ovs;
mod process;
mod setup;
mod testpmd;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ferrule_dataplane::spec::{MemifSpec, Prealloc, Role, SocketAddress};
use ferrule_endpoints::end::{End, EndSpec};
use ferrule_endpoints::vhost_user::FrontendSpec;
use ferrule_endpoints::virtio::DriverSpec;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

pub use self::ends::Ends;
use self::error::ConnectError;
pub use self::error::DutError;
pub use self::ferrule::forwarder;
use self::process::Process;
use self::setup::RING;
pub use self::setup::{DutSetup, Idle};
use crate::case::EndKind;
use crate::folder::Folder;
use crate::ports::PortPair;

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
    /// Whatever is between two ports, by the name that it is called by.
    Between(String),
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
            Self::Running { .. } | Self::Between(_) => return None,
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
            Self::Between(name) => f.write_str(name),
        }
    }
}

/// A running program with an end of ours at either side. It is stopped unless it has its turn.
pub struct Dut {
    /// What it is.
    pub program: Program,
    /// What it says its version is.
    pub version: String,
    /// How it was started: one line for each command.
    pub commands: Vec<String>,
    /// The ends, in the order of the site's.
    pub ends: Ends,
    log: PathBuf,
    // In this order: the processes go before their folder.
    processes: Vec<Process>,
    _folder: Folder,
}

impl Dut {
    /// Starts a program and connects to it.
    pub fn start(program: &Program, site: &DutSetup, cancel: &AtomicBool) -> Result<Self, DutError> {
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
            Program::Running { .. } | Program::Between(_) => Ok(Vec::new()),
        };
        let processes = processes.map_err(|source| DutError::Start {
            program: program.to_string(),
            source,
            log: fs::read_to_string(&log).unwrap_or_default(),
        })?;
        let commands = processes.iter().map(|process| process.command.clone()).collect();
        let failed = |source| DutError::Connect {
            program: program.to_string(),
            source,
            log: fs::read_to_string(&log).unwrap_or_default(),
        };
        let ends = if let Some(ports) = &site.ports {
            Ends::Ports(Box::new(PortPair::open(ports, cancel).map_err(|error| failed(error.into()))?))
        } else {
            let specs = end_specs(program, site, &sockets);
            let connect = |spec: &EndSpec| connect(spec, timeout(program), &processes, cancel).map_err(failed);
            Ends::Rings(Box::new([connect(&specs[0])?, connect(&specs[1])?]))
        };
        let version = program.version_command().map_or_else(|| "unknown".to_owned(), version);
        let dut = Self { ends, log, program: program.clone(), version, commands, processes, _folder: folder };
        dut.pause()?;
        Ok(dut)
    }

    /// It carries no frame.
    pub fn silence(&self) -> DutError {
        DutError::Silent { program: self.program.to_string(), log: fs::read_to_string(&self.log).unwrap_or_default() }
    }

    /// Lets it run.
    pub fn resume(&self) -> Result<(), Errno> {
        self.processes.iter().try_for_each(Process::resume)
    }

    /// Stops it where it is.
    pub fn pause(&self) -> Result<(), Errno> {
        self.processes.iter().try_for_each(Process::pause)
    }

    /// The threads of a forwarder that runs already which may run on one CPU only, this one. Those that we start have CPUs of
    /// their own.
    pub fn threads_pinned_to(&self, cpu: usize) -> Vec<String> {
        let (Program::Running { .. }, Ends::Rings(ends)) = (&self.program, &self.ends) else { return Vec::new() };
        // None: it is in a PID namespace that is not seen from here.
        let peer = ends.iter().filter_map(|end| getsockopt(&end.control(), PeerCredentials).ok());
        let process = peer.map(|peer| peer.pid()).find(|&pid| pid > 0);
        process.map(|pid| process::threads_pinned_to(pid, cpu)).unwrap_or_default()
    }

    /// CPU time that all its threads have had, if it is ours to know.
    pub fn cpu_time(&self) -> Option<Duration> {
        if self.processes.is_empty() { None } else { self.processes.iter().map(Process::cpu_time).sum() }
    }
}

fn end_specs(program: &Program, site: &DutSetup, sockets: &[SocketAddress; 2]) -> [EndSpec; 2] {
    let spec = |number: usize| match site.ends[number] {
        EndKind::Memif => {
            // The client's memory is the one that a trusted wire passes on.
            let role = if number == 1 && program.is_trusted() { Role::Server } else { Role::Client };
            let spec = MemifSpec::new(sockets[number].clone(), role);
            // Huge pages are no faster: see docs/performance.md.
            let prealloc = Prealloc::SmallPages;
            EndSpec::Memif(MemifSpec { queues: site.queues, ring: RING, buffer: site.buffer, prealloc, ..spec })
        }
        EndKind::Vhost => {
            let rings = DriverSpec { size: RING, buffer: site.buffer, ..DriverSpec::default() };
            EndSpec::Vhost(FrontendSpec { queues: site.queues, rings, ..FrontendSpec::new(sockets[number].clone()) })
        }
        EndKind::Port => unreachable!("a setup of ports has them opened"),
    };
    [spec(0), spec(1)]
}

/// How long a program may take to meet an end of ours. One that runs already is there, or the path is wrong; where we
/// listen, it tries again several times a second.
fn timeout(program: &Program) -> Duration {
    if matches!(program, Program::Running { .. }) { RUNNING_TIMEOUT } else { START_TIMEOUT }
}

/// Tries until it works, a process of the program ends, or the time is over.
///
/// On a thread of its own: a handshake that has begun is not broken off to look at something else, since testpmd does not
/// survive that (it adds the socket that was closed to its epoll, and panics).
fn connect(spec: &EndSpec, timeout: Duration, processes: &[Process], cancel: &AtomicBool) -> Result<End, ConnectError> {
    let (done, outcome) = mpsc::channel();
    let spec = spec.clone();
    thread::spawn(move || {
        // Without a receiver nobody waits any more.
        let _ = done.send(End::open(&spec, timeout));
    });
    loop {
        match outcome.recv_timeout(CHECK_INTERVAL) {
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

/// DPDK takes seconds to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const RUNNING_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often it is checked whether the wait still makes sense.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
