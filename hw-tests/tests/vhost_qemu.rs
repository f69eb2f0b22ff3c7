//! vhost-user against QEMU: the network driver of the guest's firmware (iPXE) is a real one, and needs no disk.
//!
//! ```text
//! guest's firmware -- virtio-net -- QEMU -- wire -- our memif end
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, SocketAddress, VhostUserSpec, WireSpec};
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::frames::receive;
use ferrule_hw_tests::need::{Need, lacks};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::{TIMEOUT, unique};
use tempfile::TempDir;

#[test]
fn the_firmware_of_a_guest_is_heard_and_heard_again_after_each_reset() {
    if lacks("the_firmware_of_a_guest_is_heard_and_heard_again_after_each_reset", &NEEDS) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(Role::Server);
    let engine = testbed.engine();
    let mut far = testbed.peer_end();
    let mut guest = testbed.guest();
    for _ in 0..2 {
        hears_the_guest(&mut far);
        guest.type_in("system_reset\n");
        forget(&mut far);
    }
    hears_the_guest(&mut far);
    let sent = engine.wire(&testbed.name).unwrap().directions[0];
    assert!(sent.frames > 0 && sent.dropped() == 0, "{sent:?}");
}

#[test]
fn a_guest_whose_qemu_listens_survives_our_engine() {
    if lacks("a_guest_whose_qemu_listens_survives_our_engine", &NEEDS) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(Role::Client);
    let mut engine = testbed.engine();
    // It waits for its first backend; those after may come when they like.
    let mut guest = testbed.guest();
    for _ in 0..2 {
        hears_the_guest(&mut testbed.peer_end());
        drop(engine);
        guest.type_in("system_reset\n");
        engine = testbed.engine();
    }
    hears_the_guest(&mut testbed.peer_end());
}

/// Waits until the guest asks for an address, as its firmware does at each start.
fn hears_the_guest(far: &mut Endpoint) {
    let deadline = Instant::now() + BOOT;
    loop {
        assert!(Instant::now() < deadline, "the guest's firmware was not heard within {BOOT:?}");
        let Some(frame) = receive(far) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        // IPv4, UDP, from port 68 to port 67.
        if frame.len() > 300 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[34..38] == [0, 68, 0, 67] {
            assert_eq!(frame[6..12], MAC);
            return;
        }
    }
}

/// Takes what came before a reset.
fn forget(far: &mut Endpoint) {
    while receive(far).is_some() {}
}

/// Where the sockets are, and by what names.
struct Testbed {
    mode: Role,
    folder: TempDir,
    name: String,
}

impl Testbed {
    fn new(mode: Role) -> Self {
        Self { mode, folder: tempfile::tempdir().unwrap(), name: unique("qemu") }
    }

    /// An engine with the wire.
    fn engine(&self) -> Engine {
        let engine = Engine::start(&Settings::new(vec![0])).unwrap();
        let vhost = VhostUserSpec::new(SocketAddress::Path(self.folder.path().join("vhost.sock")), self.mode);
        let memif = MemifSpec { role: Role::Server, ..self.memif() };
        let ends = [EndSpec::VhostUser(vhost), EndSpec::Memif(memif)];
        engine.add(WireSpec::new(self.name.clone(), ends)).unwrap();
        engine
    }

    fn memif(&self) -> MemifSpec {
        MemifSpec::new(format!("@{}", self.name).parse().unwrap(), Role::Client)
    }

    fn peer_end(&self) -> Endpoint {
        Endpoint::open(&self.memif(), TIMEOUT).unwrap()
    }

    /// A guest without anything but memory and a network card; its monitor is its standard input.
    fn guest(&self) -> Process {
        let server = if self.mode == Role::Client { ",server=on,wait=off" } else { "" };
        let chardev = format!("socket,id=c,path={}/vhost.sock{server}", self.folder.path().display());
        let [a, b, c, d, e, f] = MAC;
        let device = format!("virtio-net-pci,netdev=n,bootindex=1,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        let mut qemu = Command::new("qemu-system-x86_64");
        // Emulated: not every KVM runs firmware.
        qemu.args(["-nodefaults", "-display", "none", "-accel", "tcg", "-m", "128"]);
        qemu.args(["-object", "memory-backend-memfd,id=m,size=128M,share=on", "-machine", "q35,memory-backend=m"]);
        qemu.args(["-chardev", &chardev, "-netdev", "vhost-user,id=n,chardev=c,queues=1", "-device", &device]);
        qemu.args(["-monitor", "stdio"]);
        let guest = Process::start(&mut qemu);
        guest.wait_for("(qemu)");
        guest
    }
}

/// One guest at a time: an emulated CPU takes a whole one.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

const NEEDS: [Need; 2] = [
    Need::Program { name: "qemu-system-x86_64", package: "qemu-system-x86" },
    Need::Device { path: "/usr/lib/ipxe/qemu/pxe-virtio.rom", cure: "apt-get install ipxe-qemu" },
];
const MAC: [u8; 6] = [2, 0, 0, 0x11, 0x22, 0x33];
/// From a reset to the first frame, on an emulated CPU of a busy machine.
const BOOT: Duration = Duration::from_secs(90);
