//! The programs that are measured: started, connected to, stopped and continued.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferrule_dataplane::memif::endpoint::{Endpoint, EndpointError};
use ferrule_dataplane::spec::{MemifSpec, Role, SocketAddress};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

/// What is measured.
#[derive(Clone, Debug)]
pub enum Program {
    /// Our forwarder.
    Ferrule {
        /// The binary.
        forwarder: PathBuf,
    },
    /// DPDK's test program, forwarding as it is (`io`).
    Testpmd {
        /// Frames it takes at a time.
        burst: u16,
    },
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ferrule { .. } => f.write_str("ferrule"),
            Self::Testpmd { burst } => write!(f, "testpmd burst {burst}"),
        }
    }
}

/// A running program with a memif client of ours at either end. It is stopped unless it has its turn.
pub struct Contender {
    /// What it is.
    pub program: Program,
    /// Where frames go in.
    pub near: Endpoint,
    /// Where they come out.
    pub far: Endpoint,
    child: Running,
    _folder: Folder,
}

impl Contender {
    /// Starts a program with its worker on one CPU and, if it has one, its idle main thread on the other.
    pub fn start(program: Program, worker: usize, other: usize) -> Result<Self, ContenderError> {
        let folder = Folder::new(&program)?;
        let sockets = [0, 1].map(|number| folder.0.join(format!("{number}.sock")));
        let mut command = match &program {
            Program::Ferrule { forwarder } => ferrule(forwarder, &folder, &sockets, worker)?,
            Program::Testpmd { burst } => testpmd(&folder, &sockets, *burst, worker, other),
        };
        let log = fs::File::create(folder.0.join("log"))?;
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let missing = |source| ContenderError::Start { program: program.clone(), source };
        let child = Running(command.spawn().map_err(missing)?);
        let connect = |socket: &Path| {
            let spec = MemifSpec::new(SocketAddress::Path(socket.to_owned()), Role::Client);
            Endpoint::open(&spec, PATIENCE).map_err(|source| {
                let log = fs::read_to_string(folder.0.join("log")).unwrap_or_default();
                ContenderError::Connect { program: program.clone(), source, log }
            })
        };
        let (near, far) = (connect(&sockets[0])?, connect(&sockets[1])?);
        let contender = Self { near, far, program, child, _folder: folder };
        contender.pause()?;
        Ok(contender)
    }

    /// Lets it run.
    pub fn resume(&self) -> Result<(), Errno> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops it where it is.
    pub fn pause(&self) -> Result<(), Errno> {
        self.signal(Signal::SIGSTOP)
    }

    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        kill(Pid::from_raw(self.child.0.id().cast_signed()), signal)
    }
}

/// The forwarder that is asked for, or the one beside this program.
pub fn forwarder(asked: Option<&Path>) -> Result<PathBuf, ContenderError> {
    if let Some(path) = asked {
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe()?.with_file_name("dpdk-forwarder");
    if beside.exists() { Ok(beside) } else { Err(ContenderError::NoForwarder(beside)) }
}

fn ferrule(forwarder: &Path, folder: &Folder, sockets: &[PathBuf; 2], worker: usize) -> io::Result<Command> {
    let end = |socket: &Path| format!("{{ memif: {{ socket: {}, id: 0, role: server }} }}", socket.display());
    let admin = folder.0.join("admin.sock");
    let wires = format!(
        "workers: [{worker}]\nadmin: {}\nwires:\n  - name: bench\n    ends:\n      - {}\n      - {}\n",
        admin.display(),
        end(&sockets[0]),
        end(&sockets[1]),
    );
    let file = folder.0.join("wires.yaml");
    fs::write(&file, wires)?;
    let mut command = Command::new(forwarder);
    command.arg("--config").arg(file);
    Ok(command)
}

fn testpmd(folder: &Folder, sockets: &[PathBuf; 2], burst: u16, worker: usize, other: usize) -> Command {
    let mut command = Command::new("dpdk-testpmd");
    // Main on the generator's CPU, where it waits on its standard input for ever.
    command.args(["--lcores", &format!("0@{other},1@{worker}"), "--no-huge", "-m", "256", "--no-pci"]);
    let prefix = folder.0.file_name().unwrap_or_default();
    command.args(["--no-shconf", "--no-telemetry", "--file-prefix"]).arg(prefix);
    for (number, socket) in sockets.iter().enumerate() {
        let device = format!("net_memif{number},role=server,id=0,socket={},socket-abstract=no", socket.display());
        command.args(["--vdev", &device]);
    }
    command.args(["--", "--forward-mode=io", "--nb-cores=1", "--auto-start", "--total-num-mbufs=16384"]);
    command.args(["--rxd=1024", "--txd=1024", &format!("--burst={burst}")]);
    command
}

/// A folder of a contender's own.
struct Folder(PathBuf);

impl Folder {
    fn new(program: &Program) -> io::Result<Self> {
        let name = format!("ferrule-bench-{}-{}", std::process::id(), program.to_string().replace(' ', "-"));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child process that does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Killed, since it may be stopped; its sockets go with the folder.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a program cannot be measured.
#[derive(Debug, Error)]
pub enum ContenderError {
    /// It is not there.
    #[error("start {program}: {source}; is it installed? (dpdk-testpmd is in Debian's package dpdk-dev)")]
    Start {
        /// Which.
        program: Program,
        /// Why not.
        source: io::Error,
    },
    /// It does not take our memif clients.
    #[error("connect to {program}: {source}; it said:\n{log}")]
    Connect {
        /// Which.
        program: Program,
        /// Why not.
        source: EndpointError,
        /// What it printed.
        log: String,
    },
    /// Ours is not built.
    #[error(
        "there is no forwarder at {0}; build it (`cargo build --release -p dpdk-forwarder`) or name it with --forwarder"
    )]
    NoForwarder(PathBuf),
    /// Files or signals.
    #[error("prepare a contender: {0}")]
    System(#[from] io::Error),
    /// Signals.
    #[error("stop a contender: {0}")]
    Signal(#[from] Errno),
}

/// DPDK takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(20);
