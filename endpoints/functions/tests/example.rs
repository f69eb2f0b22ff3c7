//! The example of the kit's page: the program as it was built, between two real memif peers. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source as _, Target as _};
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::memif::Endpoint;
use ferrule_ffi::notifier::Notifier;
use ferrule_functions::packet::checksum::{full, is_right};

#[test]
fn the_function_of_the_page_marks_what_a_client_sends_and_nothing_else() {
    let specs = ["client", "network"].map(|side| {
        let socket = format!("@ferrule-example-{}-{side}", std::process::id());
        (socket.clone(), MemifSpec::new(socket.parse().unwrap(), Role::Server))
    });
    let program = Path::new(env!("CARGO_BIN_EXE_network-function")).with_file_name("examples").join("dscp");
    assert!(program.exists(), "build it with `cargo build --example dscp`: {}", program.display());
    let child = Command::new(program).args([&specs[0].0, &specs[1].0, "46"]).spawn().unwrap();
    let _program = Running(child);
    let [mut client, mut network] = specs.map(|(_, spec)| Endpoint::open(&spec, TIMEOUT).unwrap());

    let (packet, mut notifier) = (udp(), Notifier::new().unwrap());
    send(&mut network, &packet, &mut notifier);
    assert_eq!(receive(&mut client), packet, "what comes back is left alone");
    // What is no packet goes no further, so the marked one is the first to come.
    send(&mut client, &packet[..20], &mut notifier);
    send(&mut client, &packet, &mut notifier);
    let marked = receive(&mut network);
    assert_eq!(marked[15], 46 << 2 | 1, "the DSCP is another one, and ECN is as it was");
    assert!(is_right(&marked[14..34], 0));
    assert_eq!((&marked[..15], &marked[16..24], &marked[26..]), (&packet[..15], &packet[16..24], &packet[26..]));
}

#[test]
fn the_page_shows_the_example_as_it_is() {
    let page = include_str!("../../../docs/own-function.md");
    let code = include_str!("../examples/dscp.rs");
    assert!(page.contains(&format!("```rust\n{code}```\n")), "copy endpoints/functions/examples/dscp.rs into the page");
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A datagram with ECN 1 and a right IP checksum.
fn udp() -> Vec<u8> {
    let mut ip = [0x45, 1, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = full(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[2; 12][..], &[8, 0], &ip, &[0, 7, 0, 9, 0, 8, 0, 0]].concat()
}

fn send(peer: &mut Endpoint, frame: &[u8], notifier: &mut Notifier) {
    let sender = &mut peer.queues.senders[0];
    let deadline = Instant::now() + TIMEOUT;
    // The function gives its buffers once both of its ends are there.
    while sender.put(&Frame { bytes: frame.into(), offload: None, slots: 0 }).unwrap() != Put::Stored {
        assert!(Instant::now() < deadline, "no room");
        std::thread::yield_now();
        sender.refresh().unwrap();
    }
    if sender.publish() {
        notifier.notify(sender.notify_fd().unwrap()).unwrap();
    }
}

fn receive(peer: &mut Endpoint) -> Vec<u8> {
    let deadline = Instant::now() + TIMEOUT;
    let mut gather = vec![0; FRAME_MAX];
    loop {
        let receiver = &mut peer.queues.receivers[0];
        if receiver.refresh().unwrap() {
            let frame = receiver.peek(&mut gather).unwrap().unwrap();
            let (slots, mut bytes) = (frame.slots, vec![0; frame.bytes.len()]);
            assert!(frame.bytes.copy_out(&mut bytes));
            receiver.advance(slots);
            receiver.release();
            return bytes;
        }
        assert!(Instant::now() < deadline, "no frame");
        peer.sleep(deadline - Instant::now());
    }
}

const TIMEOUT: Duration = Duration::from_secs(10);
