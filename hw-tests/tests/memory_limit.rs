//! Peers whose memory has no pages yet, against a forwarder whose cgroup has 256 MiB.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::vhost_user::{Frontend, FrontendSpec};
use ferrule_endpoints::virtio::DriverSpec;
use ferrule_hw_tests::cgroup::MemoryCgroup;
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::stream::{Stream, both_ways, carry};
use ferrule_hw_tests::{TIMEOUT, eventually, forwarder};
use nix::sys::signal::Signal;
use tempfile::TempDir;

#[test]
fn a_memif_client_of_sparse_files_spends_its_limit_and_not_the_forwarders_memory() {
    let Some(site) = Site::new("a_memif_client_of_sparse_files_spends_its_limit_and_not_the_forwarders_memory") else {
        return;
    };
    // One frame in each buffer populates a page of each: 64 MiB.
    let spec = MemifSpec { ring: FRAMES as u32, buffer: 65_536, ..site.client("hostile", 0) };
    site.attack("hostile", |far| {
        let hostile = Endpoint::open(&spec, TIMEOUT).unwrap();
        let reason = spend(far, || hostile.check_peer().err());
        if let Some(reason) = &reason {
            let text = reason.to_string();
            assert!(text.contains("its memory limit of"), "{text}");
        }
        // The connection goes, the files stay.
        (Box::new(hostile.queues), reason.is_some())
    });
}

#[test]
fn a_guest_that_never_used_its_memory_spends_its_limit_and_not_the_forwarders() {
    let Some(site) = Site::new("a_guest_that_never_used_its_memory_spends_its_limit_and_not_the_forwarders") else {
        return;
    };
    let socket = site.socket("guest", 0).to_str().unwrap().parse().unwrap();
    let rings = DriverSpec { size: FRAMES as u32, buffer: 65_536 - 4096, ..DriverSpec::default() };
    let spec = FrontendSpec { rings, ..FrontendSpec::new(socket) };
    site.attack("guest", |far| {
        let mut hostile = Frontend::open(&spec, TIMEOUT).unwrap();
        let gone = spend(far, || hostile.check_peer().err()).is_some();
        (Box::new(hostile.queues), gone)
    });
}

/// Sends a frame for each buffer of a ring, or until the hostile peer has lost its connection.
fn spend<E>(far: &mut Endpoint, mut loss: impl FnMut() -> Option<E>) -> Option<E> {
    let mut stream = Stream::new(0, &[64], u64::MAX);
    let mut reason = None;
    eventually("all frames are sent, or the connection is lost", || {
        stream.send(far, FRAMES);
        reason = loss();
        reason.is_some() || stream.sent() == FRAMES
    });
    reason
}

/// A forwarder with three wires in a cgroup of its own.
struct Site {
    cgroup: MemoryCgroup,
    folder: TempDir,
    program: PathBuf,
}

impl Site {
    fn new(test: &str) -> Option<Self> {
        let program = forwarder(test)?;
        Some(Self { cgroup: MemoryCgroup::new(test, CGROUP)?, folder: tempfile::tempdir().unwrap(), program })
    }

    fn socket(&self, wire: &str, end: usize) -> PathBuf {
        self.folder.path().join(format!("{wire}-{end}.sock"))
    }

    fn client(&self, wire: &str, end: usize) -> MemifSpec {
        MemifSpec::new(self.socket(wire, end).to_str().unwrap().parse().unwrap(), Role::Client)
    }

    fn start(&self) -> Process {
        let end = |kind, wire, end| {
            format!("{{{kind}: {{socket: {}, role: server, memory: 64MiB}}}}", self.socket(wire, end).display())
        };
        let wire = |name, kind| {
            let ends = [end(kind, name, 0), end("memif", name, 1)];
            format!("  - {{name: {name}, ends: [{}, {}]}}\n", ends[0], ends[1])
        };
        let wires = [wire("bystander", "memif"), wire("hostile", "memif"), wire("guest", "vhost-user")];
        let file = self.folder.path().join("wires.yaml");
        fs::write(&file, format!("wires:\n{}", wires.concat())).unwrap();
        let mut command = self.cgroup.command(&self.program);
        let daemon = command.arg("--config").arg(&file).arg("--admin").arg(self.folder.path().join("admin.sock"));
        let daemon = Process::start(daemon);
        daemon.wait_for("ready: ");
        daemon
    }

    /// Connects as `hostile` does, again and again, until it was refused three times; what it gives back is kept. All the
    /// time frames cross another wire.
    fn attack(&self, wire: &str, mut hostile: impl FnMut(&mut Endpoint) -> (Box<dyn std::any::Any>, bool)) {
        let daemon = self.start();
        let mut bystander = [0, 1].map(|end| Endpoint::open(&self.client("bystander", end), TIMEOUT).unwrap());
        let over = AtomicBool::new(false);
        let mut kept = Vec::new();
        thread::scope(|scope| {
            let flow = scope.spawn(|| {
                let mut routes = both_ways(1, &[64, 1518], 512);
                let mut total = 0;
                while !over.load(Relaxed) {
                    total += 1000;
                    carry(&mut bystander, &mut routes, total);
                }
                total
            });
            // Also when this panics, or the scope would wait for ever.
            let stop = StopOnDrop(&over);
            let mut refused = 0;
            while refused < 3 {
                // Frames that wait for a peer that went would be the next one's.
                let mut far = Endpoint::open(&self.client(wire, 1), TIMEOUT).unwrap();
                let (files, is_refused) = hostile(&mut far);
                kept.push(files);
                refused += u32::from(is_refused);
                assert!(kept.len() < 20, "{} connections, {refused} of them refused", kept.len());
            }
            drop(stop);
            assert!(flow.join().unwrap() > 0);
        });
        assert_eq!(self.cgroup.oom_kills(), 0);
        assert!(self.cgroup.used() < CGROUP);
        assert!(bystander.iter().all(|end| end.check_peer().is_ok()));
        daemon.signal(Signal::SIGTERM);
        let (code, log) = daemon.wait();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("its memory limit of"), "{log}");
    }
}

/// Ends the flow of the other wire.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

const CGROUP: u64 = 256 << 20;
/// Descriptors of the longest ring.
const FRAMES: u64 = 16_384;
