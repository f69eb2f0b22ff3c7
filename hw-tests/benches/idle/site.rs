//! A forwarder with wires, and our ends of them.

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ferrule_dataplane::spec::{MemifSpec, Role, SocketAddress};
use ferrule_endpoints::end::End;
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::vhost_user::{Frontend, FrontendSpec};
use ferrule_endpoints::virtio::DriverSpec;
use ferrule_hw_tests::TIMEOUT;
use ferrule_hw_tests::process::Process;

/// What both ends of a wire are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Servers of memif.
    Memif,
    /// Devices of vhost-user.
    Vhost,
}

/// The kinds that are measured.
pub const KINDS: [Kind; 2] = [Kind::Memif, Kind::Vhost];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memif => "memif",
            Self::Vhost => "vhost-user",
        })
    }
}

/// A forwarder with a worker on CPU 0, whose wires are connected at both ends.
pub struct Site {
    /// Two for each wire, one wire after the other.
    pub ends: Vec<End>,
    /// The forwarder.
    pub daemon: Process,
    /// How long it took to start.
    pub ready: Duration,
    /// How long it took to connect all ends.
    pub connected: Duration,
    _folder: tempfile::TempDir,
}

impl Site {
    /// Starts it, with so many wires, the first of which has rings and buffers of the usual size; the others are
    /// to stay quiet and have small ones.
    pub fn start(program: &Path, kind: Kind, wires: usize) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("wires.yaml");
        fs::write(&file, wires_file(kind, wires, folder.path()))?;
        let started = Instant::now();
        let mut command = Command::new(program);
        command.arg("--config").arg(&file).arg("--admin").arg(folder.path().join("admin.sock"));
        let daemon = Process::start(command.args(["--log-level", "info"]));
        daemon.wait_for("ready: ");
        let ready = started.elapsed();
        let connecting = Instant::now();
        let ends = (0..2 * wires).map(|number| open(kind, number, folder.path())).collect::<Result<_, _>>()?;
        Ok(Self { ends, daemon, ready, connected: connecting.elapsed(), _folder: folder })
    }
}

/// A vhost-user end needs a socket of its own; memif ends share one.
fn socket(kind: Kind, number: usize, folder: &Path) -> SocketAddress {
    SocketAddress::Path(match kind {
        Kind::Memif => folder.join("memif.sock"),
        Kind::Vhost => folder.join(format!("{number}.sock")),
    })
}

fn wires_file(kind: Kind, wires: usize, folder: &Path) -> String {
    let end = |number| {
        let socket = socket(kind, number, folder);
        match kind {
            Kind::Memif => format!("{{memif: {{socket: {socket}, id: {number}, role: server}}}}"),
            Kind::Vhost => format!("{{vhost-user: {{socket: {socket}, role: server}}}}"),
        }
    };
    let wire = |n| format!("  - {{name: wire-{n}, ends: [{}, {}]}}\n", end(2 * n), end(2 * n + 1));
    let list = if wires == 0 { " []\n".to_owned() } else { format!("\n{}", (0..wires).map(wire).collect::<String>()) };
    format!("workers: [{WORKER}]\nwires:{list}")
}

fn open(kind: Kind, number: usize, folder: &Path) -> Result<End, Box<dyn Error>> {
    let socket = socket(kind, number, folder);
    let (ring, buffer) = if number < 2 { BUSY } else { QUIET };
    Ok(match kind {
        Kind::Memif => {
            let spec = MemifSpec { id: number as u32, ring, buffer, ..MemifSpec::new(socket, Role::Client) };
            End::Memif(Endpoint::open(&spec, TIMEOUT)?)
        }
        Kind::Vhost => {
            let rings = DriverSpec { size: ring, buffer, ..DriverSpec::default() };
            End::Vhost(Frontend::open(&FrontendSpec { rings, ..FrontendSpec::new(socket) }, TIMEOUT)?)
        }
    })
}

/// The worker's CPU.
const WORKER: usize = 0;
/// Where the generator runs.
pub const GENERATOR: usize = 1;
/// Slots of a ring, and bytes of a buffer.
const BUSY: (u32, u32) = (1024, 2048);
const QUIET: (u32, u32) = (256, 2048);
