//! What the tests of wires share: an engine, memif ends, waiting with a deadline.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(missing_docs, reason = "test helpers say it by their names")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{EndSpec, Full, MemifSpec, QUEUES_MAX, Role, WireSpec};
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;

pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn engine() -> Engine {
    Engine::start(&Settings::new(vec![0])).unwrap()
}

/// A name that no other test, and no other run, uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ferrule-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A wire between two memif ends on two abstract sockets called after it.
pub fn memif_wire(name: &str, first: Role, second: Role, full: Full) -> (String, WireSpec) {
    let name = unique(name);
    let queues = |role| if role == Role::Server { QUEUES_MAX } else { 1 };
    let end =
        |number: u32, role| EndSpec::Memif(MemifSpec { role, queues: queues(role), ..client_spec(&name, number) });
    let ends = [end(0, first), end(1, second)];
    (name.clone(), WireSpec { full, ..WireSpec::new(name, ends) })
}

/// The client of end `number` of a wire made by [`memif_wire`].
pub fn client_spec(wire: &str, number: u32) -> MemifSpec {
    let socket = if number == 0 { format!("@{wire}") } else { format!("@{wire}-{number}") };
    MemifSpec::new(socket.parse().unwrap(), Role::Client)
}

/// The same as server: for ends that are clients.
pub fn server_spec(wire: &str, number: u32) -> MemifSpec {
    MemifSpec { role: Role::Server, ..client_spec(wire, number) }
}

pub fn client(wire: &str, number: u32) -> Endpoint {
    Endpoint::open(&client_spec(wire, number), DEADLINE).unwrap()
}

/// Sends one frame, when there is room.
pub fn send(end: &mut Endpoint, queue: usize, bytes: &[u8]) {
    let sender = &mut end.queues.senders[queue];
    let deadline = Instant::now() + DEADLINE;
    loop {
        sender.refresh().unwrap();
        let frame = Frame { bytes: bytes.into(), offload: None, slots: 0 };
        if sender.put(&frame).unwrap() == Put::Stored {
            break;
        }
        assert!(Instant::now() < deadline, "no room to send a frame");
        thread::yield_now();
    }
    if sender.publish() {
        let eventfd = sender.notify_fd().unwrap();
        nix::unistd::write(eventfd, &1u64.to_ne_bytes()).unwrap();
    }
}

/// Receives one frame.
pub fn receive(end: &mut Endpoint, queue: usize) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(frame) = poll(end, queue) {
            return frame;
        }
        assert!(Instant::now() < deadline, "no frame came");
        thread::yield_now();
    }
}

/// Receives one frame if there is one.
pub fn poll(end: &mut Endpoint, queue: usize) -> Option<Vec<u8>> {
    let receiver = &mut end.queues.receivers[queue];
    if !receiver.refresh().unwrap() {
        return None;
    }
    let mut gather = vec![0; FRAME_MAX];
    let frame = receiver.peek(&mut gather).unwrap()?;
    let mut bytes = vec![0; frame.bytes.len()];
    assert!(frame.bytes.copy_out(&mut bytes));
    let slots = frame.slots;
    receiver.advance(slots);
    receiver.release();
    Some(bytes)
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
pub struct TestRng(pub u64);

impl TestRng {
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
