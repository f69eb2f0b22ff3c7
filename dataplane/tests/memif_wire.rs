//! Wires between two real memif ends, through the engine: rings, restarts, chains, queues.

mod common;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use common::{DEADLINE, client, engine, eventually, memif_wire, receive, send, server_spec, unique};
use ferrule_dataplane::capture::Capture;
use ferrule_dataplane::spec::{EndSpec, Full, Prealloc, Role};
use ferrule_endpoints::memif::Endpoint;

#[test]
fn frames_of_every_size_cross_in_order_both_ways() {
    let engine = engine();
    let (name, wire) = memif_wire("sizes", Role::Server, Role::Server, Full::Hold);
    engine.add(wire).unwrap();
    let (mut a, mut b) = (client(&name, 0), client(&name, 1));
    eventually("the wire is up", || engine.wire(&name).unwrap().is_up());
    let sizes = [1, 14, 60, 64, 65, 128, 129, 1514, 2047, 2048, 2049, 4096, 9000, 16_000];
    for (number, size) in sizes.into_iter().cycle().take(2000).enumerate() {
        let frame: Vec<u8> = (0..size).map(|at| (at + number) as u8).collect();
        send(&mut a, 0, &frame);
        assert_eq!(receive(&mut b, 0), frame);
        send(&mut b, 0, &frame);
        assert_eq!(receive(&mut a, 0), frame);
    }
    let [there, back] = engine.wire(&name).unwrap().directions;
    assert_eq!((there.frames, there.dropped()), (2000, 0));
    assert_eq!((back.frames, back.bytes), (2000, there.bytes));
}

#[test]
fn a_wire_is_traced_while_its_peers_come_and_go_until_that_is_ended() {
    let engine = engine();
    let (name, wire) = memif_wire("traced", Role::Server, Role::Server, Full::Hold);
    engine.add(wire).unwrap();
    let capture = Arc::new(Capture::new(64, 32));
    let missing = engine.trace("nobody", Some(Arc::clone(&capture))).unwrap_err();
    assert_eq!(missing.to_string(), "there is no wire `nobody`");
    engine.trace(&name, Some(Arc::clone(&capture))).unwrap();
    let twice = engine.trace(&name, Some(Arc::clone(&capture))).unwrap_err();
    assert!(twice.to_string().ends_with("somebody traces it already; end that first"), "{twice}");
    let mut a = client(&name, 0);
    for round in 0..3u8 {
        let mut b = client(&name, 1);
        eventually("the wire is up", || engine.wire(&name).unwrap().is_up());
        send(&mut a, 0, &[round; 60]);
        assert_eq!(receive(&mut b, 0), [round; 60]);
        let mut seen = None;
        eventually("the frame is captured", || {
            seen = capture.read(|frame| (frame.end, frame.length, frame.bytes().to_vec()));
            seen.is_some()
        });
        assert_eq!(seen, Some((0, 60, vec![round; 32])));
        drop(b);
        eventually("the peer is gone", || !engine.wire(&name).unwrap().is_up());
    }
    engine.trace(&name, None).unwrap();
    let mut b = client(&name, 1);
    eventually("the wire is up", || engine.wire(&name).unwrap().is_up());
    send(&mut a, 0, &[9; 60]);
    assert_eq!(receive(&mut b, 0), [9; 60]);
    assert!(capture.read(|_| ()).is_none());
    eventually("nobody else has the capture", || Arc::strong_count(&capture) == 1);
}

#[test]
fn a_full_target_holds_the_frames_back_until_it_is_read() {
    let engine = engine();
    let (name, wire) = memif_wire("hold", Role::Server, Role::Server, Full::Hold);
    engine.add(wire).unwrap();
    let (mut a, mut b) = (client(&name, 0), client(&name, 1));
    // Two rings of 1024 hold 2048 frames; the sender waits for the rest.
    let sender = std::thread::spawn(move || {
        for number in 0..10_000u32 {
            send(&mut a, 0, &number.to_be_bytes().repeat(16));
        }
        a
    });
    eventually("the target's ring is full", || engine.wire(&name).unwrap().directions[0].frames >= 1024);
    for number in 0..10_000u32 {
        assert_eq!(receive(&mut b, 0)[..4], number.to_be_bytes());
    }
    drop(sender.join().unwrap());
    assert_eq!(engine.wire(&name).unwrap().directions[0].dropped(), 0);
}

#[test]
fn a_full_target_drops_and_counts_if_the_wire_says_so() {
    let engine = engine();
    let (name, wire) = memif_wire("drop", Role::Server, Role::Server, Full::Drop);
    engine.add(wire).unwrap();
    let (mut a, _b) = (client(&name, 0), client(&name, 1));
    eventually("the wire is up", || engine.wire(&name).unwrap().is_up());
    for _ in 0..5000 {
        send(&mut a, 0, &[7; 64]);
    }
    eventually("all are accounted for", || {
        let traffic = engine.wire(&name).unwrap().directions[0];
        traffic.frames == 1024 && traffic.drops[0] == 5000 - 1024
    });
}

#[test]
fn either_peer_can_leave_and_come_back_and_frames_at_rest_are_kept() {
    let engine = engine();
    let (name, wire) = memif_wire("restart", Role::Server, Role::Server, Full::Hold);
    engine.add(wire).unwrap();
    let mut a = client(&name, 0);
    for round in 0..5u8 {
        // The far end is away: what is sent now waits in the near end's ring.
        for number in 0..100u8 {
            send(&mut a, 0, &[round, number, 0, 0]);
        }
        let mut b = client(&name, 1);
        for number in 0..100u8 {
            assert_eq!(receive(&mut b, 0), [round, number, 0, 0]);
        }
        // Frames can be there before the wire is shown as up, and before that no loss can be seen.
        eventually("the wire is up", || engine.wire(&name).unwrap().is_up());
        drop(b);
        eventually("the loss is noticed", || !engine.wire(&name).unwrap().is_up());
    }
}

#[test]
fn peers_are_told_when_their_wire_is_removed() {
    let engine = engine();
    let (name, wire) = memif_wire("goodbye", Role::Server, Role::Server, Full::Hold);
    engine.add(wire).unwrap();
    let ends = [client(&name, 0), client(&name, 1)];
    engine.remove(&name).unwrap();
    for end in &ends {
        let goodbye = end.check_peer().unwrap_err().to_string();
        assert_eq!(goodbye, "the peer disconnected: the wire was removed");
    }
}

#[test]
fn a_client_end_reconnects_to_a_server_that_was_restarted() {
    let engine = engine();
    let (name, wire) = memif_wire("redial", Role::Client, Role::Server, Full::Hold);
    let far = match &wire.ends[0] {
        EndSpec::Memif(memif) => {
            let mut far = memif.clone();
            far.role = Role::Server;
            far
        }
        _ => unreachable!(),
    };
    engine.add(wire).unwrap();
    let mut b = client(&name, 1);
    for round in 0..3u8 {
        let mut a = Endpoint::open(&far, Duration::from_secs(5)).unwrap();
        send(&mut a, 0, &[round; 60]);
        assert_eq!(receive(&mut b, 0), [round; 60]);
        send(&mut b, 0, &[round; 61]);
        assert_eq!(receive(&mut a, 0), [round; 61]);
    }
}

#[test]
fn buffers_of_a_client_end_are_populated_before_frames_come_if_the_spec_says_so() {
    // Lengths that no other test has.
    for (prealloc, buffer) in [(Prealloc::Never, 4160), (Prealloc::SmallPages, 4224), (Prealloc::HugePages, 4288)] {
        let engine = engine();
        let (name, mut wire) = memif_wire("prealloc", Role::Server, Role::Client, Full::Hold);
        let EndSpec::Memif(end) = &mut wire.ends[1] else { unreachable!() };
        (end.prealloc, end.ring, end.buffer) = (prealloc, 64, buffer);
        engine.add(wire).unwrap();
        let (mut near, mut far) = (client(&name, 0), Endpoint::open(&server_spec(&name, 1), DEADLINE).unwrap());
        eventually("the wire is up", || engine.wire(&name).unwrap().is_up());
        let bytes = u64::from(2 * 64 * buffer);
        if prealloc == Prealloc::Never {
            assert_eq!(populated(bytes), Some(0));
        } else {
            let of_either_size = || populated(bytes).or_else(|| populated(bytes.next_multiple_of(2 << 20)));
            eventually("all is populated", || of_either_size() == Some(100));
        }
        send(&mut near, 0, &[7; 60]);
        assert_eq!(receive(&mut far, 0), [7; 60]);
    }
}

/// Percent of the buffers that are populated, of a client of this process with so many bytes of them.
fn populated(bytes: u64) -> Option<u64> {
    let files = std::fs::read_dir("/proc/self/fd").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let buffers =
        files.filter(|file| file.read_link().is_ok_and(|link| link.to_string_lossy().contains("memif-buffers")));
    let sizes = buffers.filter_map(|file| file.metadata().ok());
    sizes.filter(|file| file.len() == bytes).map(|file| file.blocks() * 512 * 100 / bytes).next()
}

#[test]
fn several_queues_are_joined_one_to_one_and_a_surplus_is_served_too() {
    let engine = engine();
    let (name, wire) = memif_wire("queues", Role::Server, Role::Server, Full::Hold);
    engine.add(wire).unwrap();
    let mut spec = common::client_spec(&name, 0);
    spec.queues = 4;
    let mut a = Endpoint::open(&spec, Duration::from_secs(5)).unwrap();
    let mut spec = common::client_spec(&name, 1);
    spec.queues = 2;
    let mut b = Endpoint::open(&spec, Duration::from_secs(5)).unwrap();
    for queue in 0..4 {
        send(&mut a, queue, &[queue as u8; 64]);
        assert_eq!(receive(&mut b, queue % 2), [queue as u8; 64]);
    }
    assert_eq!(engine.wire(&name).unwrap().queues, 2);
}

#[test]
fn one_socket_serves_many_ids_and_a_taken_one_is_refused() {
    let engine = engine();
    let socket = unique("many");
    for id in 0..20u32 {
        let mut wire = memif_wire("", Role::Server, Role::Server, Full::Hold).1;
        wire.name = format!("{socket}-{id}");
        for (number, end) in wire.ends.iter_mut().enumerate() {
            if let EndSpec::Memif(memif) = end {
                memif.socket = format!("@{socket}").parse().unwrap();
                memif.id = 2 * id + number as u32;
            }
        }
        engine.add(wire.clone()).unwrap();
        wire.name.push('x');
        let error = engine.add(wire).unwrap_err().to_string();
        assert!(error.contains(&format!("wire `{socket}-{id}` has that id")), "{error}");
    }
    let mut spec = common::client_spec(&socket, 0);
    spec.id = 39;
    let _held = Endpoint::open(&spec, Duration::from_secs(5)).unwrap();
    let error = Endpoint::open(&spec, Duration::from_millis(100)).err().unwrap().to_string();
    assert!(error.contains("already connected"), "{error}");
}
