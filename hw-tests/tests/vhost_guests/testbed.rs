//! Guests whose NIC is a vhost-user socket.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrule_dataplane::spec::{EndSpec, Role, VhostUserSpec};
use ferrule_dataplane::{Engine, Settings};
use ferrule_hw_tests::need;
use ferrule_hw_tests::vm::image::Image;
use ferrule_hw_tests::vm::job::Job;
use ferrule_hw_tests::vm::machine::{Machine, MachineOptions};
use ferrule_hw_tests::vm::pieces::Pieces;
use tempfile::{NamedTempFile, TempDir};

/// What guests boot from, and a folder for their sockets.
pub struct Testbed {
    pub folder: TempDir,
    pieces: Pieces,
    initramfs: NamedTempFile,
    /// Two machines at a time are enough for two cores.
    _turn: MutexGuard<'static, ()>,
}

/// A guest's NIC.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// QEMU listens there. Otherwise it connects, and again when its peer has gone.
    pub listens: bool,
    /// Queue pairs.
    pub queues: u16,
    /// Rings of the packed layout.
    pub packed: bool,
    /// The last byte of its MAC address, and of the guest's addresses.
    pub number: u8,
}

impl Testbed {
    /// None: it was said that `test` lacks something.
    pub fn new(test: &str) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let pieces = Pieces::find().map_err(|missing| need::skip(test, &format!("{missing:#}"))).ok()?;
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let image = Image { modules: vec!["virtio_net"], ..Image::default() };
        let initramfs = image.build(&pieces).unwrap();
        Some(Self { folder: tempfile::tempdir().unwrap(), pieces, initramfs, _turn: turn })
    }

    /// The NIC number `number`, on a socket of its own.
    pub fn nic(&self, number: u8) -> Nic {
        let socket = self.folder.path().join(format!("guest-{number}.sock"));
        Nic { socket, listens: false, queues: 1, packed: false, number }
    }

    /// Starts a guest. QEMU waits for the other end of its NIC before it boots.
    pub fn start(&self, nic: &Nic) -> Machine {
        self.start_as(nic, false)
    }

    /// Starts a machine that a guest can move into.
    pub fn start_empty(&self, nic: &Nic) -> Machine {
        self.start_as(nic, true)
    }

    fn start_as(&self, nic: &Nic, incoming: bool) -> Machine {
        let options = MachineOptions {
            initramfs: self.initramfs.path().to_owned(),
            kernel: Vec::new(),
            qemu: nic.qemu().split_whitespace().map(str::to_owned).collect(),
            incoming,
        };
        Machine::start(&self.pieces, &options).unwrap()
    }
}

impl Nic {
    /// The guest's address in 10.0.0.0/24.
    pub fn address(&self) -> String {
        format!("10.0.0.{}", self.number)
    }

    fn qemu(&self) -> String {
        let Self { queues, number, .. } = self;
        let socket = self.socket.display();
        let role = if self.listens { "server=on,wait=off" } else { "server=off,reconnect=1" };
        let packed = if self.packed { "on" } else { "off" };
        let (mq, vectors) = if *queues > 1 { ("on", 2 * queues + 2) } else { ("off", 3) };
        format!(
            "-M q35 -smp {queues} -m 256 -object memory-backend-memfd,id=ram,size=256M,share=on -numa node,memdev=ram \
             -chardev socket,id=wire,path={socket},{role} -netdev vhost-user,id=net,chardev=wire,queues={queues} \
             -device virtio-net-pci,bus=pcie.0,netdev=net,mac=52:54:00:00:02:{number:02x},mq={mq},vectors={vectors},\
             packed={packed}"
        )
    }
}

/// Waits until they have booted, and gives their NICs addresses.
pub fn settle(guests: &[(&Machine, &Nic)]) {
    for (guest, nic) in guests {
        guest.wait_until_booted().unwrap();
        guest.run(&["/bin/ip", "address", "add", &format!("{}/24", nic.address()), "dev", "eth0"]).unwrap();
        guest.run(&["/bin/ip", "link", "set", "eth0", "up"]).unwrap();
    }
}

/// Pings with so many bytes in one piece, until `count` were answered.
pub fn ping_all(guest: &Machine, to: &str, count: u32, bytes: u32) {
    let [count, bytes] = [count, bytes].map(|number| number.to_string());
    let printed = guest.run(&["/bin/ping", "-c", &count, "-i", "0.1", "-s", &bytes, to]).unwrap();
    assert!(printed.contains(&format!("{count} packets received, 0% packet loss")), "{printed}");
}

/// A connection from one guest to another, on which both send `bytes` at once and compare what they get.
pub struct Transfer {
    sides: [Job; 2],
}

impl Transfer {
    /// Starts it.
    pub fn start(from: &Machine, to: &Machine, address: &str, bytes: usize) -> Self {
        let address = format!("{address}:{PORT}");
        let bytes = bytes.to_string();
        let far = to.spawn(&["/bin/vm-guest", "accept", &address, &bytes], TRANSFER_MAX).unwrap();
        far.wait_for("listening").unwrap();
        let near = from.spawn(&["/bin/vm-guest", "connect", &address, &bytes], TRANSFER_MAX).unwrap();
        Self { sides: [near, far] }
    }

    /// Waits until both have got everything.
    pub fn finish(self) {
        for side in self.sides {
            println!("{}", side.succeed().unwrap().lines().last().unwrap_or_default());
        }
    }
}

/// An engine with one worker.
pub fn engine() -> Engine {
    Engine::start(&Settings::new(vec![0])).unwrap()
}

/// The end of a wire for a NIC.
pub fn end(nic: &Nic) -> EndSpec {
    let mode = if nic.listens { Role::Client } else { Role::Server };
    let spec = VhostUserSpec::new(nic.socket.to_str().unwrap().parse().unwrap(), mode);
    EndSpec::VhostUser(VhostUserSpec { queues: nic.queues, ..spec })
}

/// Frames and bytes that crossed a wire, and whether nothing was dropped.
pub fn crossed(engine: &Engine, wire: &str) -> [(u64, u64); 2] {
    let status = engine.wire(wire).unwrap();
    assert_eq!(status.directions.map(|direction| direction.dropped()), [0, 0], "{status:?}");
    status.directions.map(|direction| (direction.frames, direction.bytes))
}

/// Where a guest listens.
pub const PORT: u16 = 5001;

/// How long a transfer may take.
pub const TRANSFER_MAX: Duration = Duration::from_mins(3);
