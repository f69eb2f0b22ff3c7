//! A log that nobody reads: standard error is a pipe, and it is full. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source as _, Target as _};
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::memif::Endpoint;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn wires_are_served_and_sigterm_ends_it_in_time_while_nobody_reads_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let socket = |side: &str| directory.path().join(format!("{side}.sock")).display().to_string();
    let file = directory.path().join("wires.yaml");
    let end = |side| format!("{{ memif: {{ socket: {}, role: server, secret: right }} }}", socket(side));
    let admin = directory.path().join("admin.sock");
    let text = format!("admin: {}\nwires:\n  - name: w\n    ends: [{}, {}]\n", admin.display(), end("a"), end("b"));
    fs::write(&file, text).unwrap();

    let (_unread, log) = full_pipe();
    let mut forwarder = Running::start(&file, log);
    let spec = |side: &str, secret: &str| MemifSpec {
        secret: Some(secret.parse().unwrap()),
        ..MemifSpec::new(socket(side).parse().unwrap(), Role::Client)
    };
    let mut ends = ["a", "b"].map(|side| Endpoint::open(&spec(side, "right"), TIMEOUT).unwrap());
    // Each is refused, and that is logged.
    for _ in 0..20 {
        assert!(Endpoint::open(&spec("a", "wrong"), Duration::ZERO).is_err());
    }
    for number in 0..100 {
        let [from, to] = &mut ends;
        assert_eq!(cross(from, to, &[number; 60]), [number; 60]);
    }
    let told = Instant::now();
    forwarder.signal(Signal::SIGTERM);
    let status = forwarder.wait();
    assert!(status.success(), "{status}");
    assert!(told.elapsed() < TIMEOUT && !admin.exists());
}

/// Both ends of a pipe that takes nothing more until somebody reads.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// Sends a frame from one end of the wire to the other, and returns what arrives.
fn cross(from: &mut Endpoint, to: &mut Endpoint, frame: &[u8]) -> Vec<u8> {
    let sender = &mut from.queues.senders[0];
    let deadline = Instant::now() + TIMEOUT;
    sender.refresh().unwrap();
    assert_eq!(sender.put(&Frame { bytes: frame.into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
    if sender.publish() {
        // An eventfd takes any number of 8 bytes.
        nix::unistd::write(sender.notify_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
    }
    let receiver = &mut to.queues.receivers[0];
    while !receiver.refresh().unwrap() {
        assert!(Instant::now() < deadline, "the frame did not arrive");
        thread::yield_now();
    }
    let mut gather = vec![0; FRAME_MAX];
    let arrived = receiver.peek(&mut gather).unwrap().unwrap();
    let mut bytes = vec![0; arrived.bytes.len()];
    assert!(arrived.bytes.copy_out(&mut bytes));
    let slots = arrived.slots;
    receiver.advance(slots);
    receiver.release();
    bytes
}

/// A forwarder with this log. It is killed when the test ends before it.
struct Running(Child);

impl Running {
    fn start(config: &Path, log: PipeWriter) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpdk-forwarder"));
        command.arg("--config").arg(config).args(["--log-level", "debug", "--drain-grace", "100ms"]);
        Self(command.env_remove("NOTIFY_SOCKET").stderr(log).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, in a test that passed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const TIMEOUT: Duration = Duration::from_secs(20);
