//! A responder and its peers over real memif connections, both in this process. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{MacAddress, MemifSpec, Role};
use ferrule_endpoints::Responder;
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::memif_responder::{MemifResponder, Tally};
use ferrule_ffi::notifier::Notifier;

#[test]
fn it_serves_one_peer_after_the_other_until_told_to_stop() {
    let socket = format!("@ferrule-responder-{}", std::process::id());
    let spec = |role| MemifSpec::new(socket.parse().unwrap(), role);
    let responder = MemifResponder::new(Responder::new(MacAddress([2, 0, 0, 0, 0, 9]), vec![[10, 0, 0, 2].into()]));
    let (stop, events) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            responder.run(&spec(Role::Server), &stop, |event| events.lock().unwrap().push(event.to_string()))
        });
        for _ in 0..2 {
            let mut peer = Endpoint::open(&spec(Role::Client), TIMEOUT).unwrap();
            let reply = ask(&mut peer, &ARP_REQUEST);
            assert_eq!((&reply[..6], &reply[6..12]), (&ARP_REQUEST[6..12], &[2, 0, 0, 0, 0, 9][..]));
        }
        stop.store(true, Relaxed);
        serving.join().unwrap().unwrap();
    });
    assert_eq!(responder.tally(), Tally { frames: 2, replies: 2, no_room: 0 });
    let events = events.into_inner().unwrap();
    assert!(events[0].starts_with("connected to ") && events[1].contains("has gone ("), "{events:?}");
    assert_eq!(events[2], events[0], "{events:?}");
}

#[test]
fn a_socket_that_another_one_listens_on_is_an_error() {
    let socket = format!("@ferrule-responder-taken-{}", std::process::id());
    let spec = MemifSpec::new(socket.parse().unwrap(), Role::Server);
    let responder = || MemifResponder::new(Responder::new(MacAddress([2, 0, 0, 0, 0, 9]), Vec::new()));
    let (first, second, stop) = (responder(), responder(), AtomicBool::new(false));
    thread::scope(|scope| {
        let listening = scope.spawn(|| first.run(&spec, &stop, |_| {}));
        let peer = Endpoint::open(&MemifSpec { role: Role::Client, ..spec.clone() }, TIMEOUT).unwrap();
        let error = second.run(&spec, &stop, |_| {}).unwrap_err().to_string();
        assert!(error.contains("another process does"), "{error}");
        stop.store(true, Relaxed);
        listening.join().unwrap().unwrap();
        drop(peer);
    });
}

/// Sends a frame and waits for one.
fn ask(peer: &mut Endpoint, request: &[u8]) -> Vec<u8> {
    let sender = &mut peer.queues.senders[0];
    sender.refresh().unwrap();
    assert_eq!(sender.put(&Frame { bytes: request.into(), offload: None, slots: 0 }).unwrap(), Put::Stored);
    if sender.publish() {
        Notifier::new().unwrap().notify(sender.notify_fd().unwrap()).unwrap();
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut gather = vec![0; FRAME_MAX];
    loop {
        let receiver = &mut peer.queues.receivers[0];
        if receiver.refresh().unwrap() {
            let frame = receiver.peek(&mut gather).unwrap().unwrap();
            let mut reply = vec![0; frame.bytes.len()];
            assert!(frame.bytes.copy_out(&mut reply));
            return reply;
        }
        assert!(Instant::now() < deadline, "no reply");
        peer.sleep(deadline - Instant::now());
    }
}

/// Who has 10.0.0.2? Tell 10.0.0.1.
const ARP_REQUEST: [u8; 42] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, //
    2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
];
const TIMEOUT: Duration = Duration::from_secs(10);
