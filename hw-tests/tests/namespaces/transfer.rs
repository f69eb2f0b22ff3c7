//! TCP and UDP between two namespaces, over two wires that meet in a memif ring.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::thread;

use ferrule_dataplane::spec::Full;
use ferrule_hw_tests::netns::lacks_namespaces;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::bed::{ADDRESSES, Pair, Shape};

#[test]
fn tcp_and_udp_cross_two_wires_at_the_usual_mtu() {
    carry("tcp_and_udp_cross_two_wires_at_the_usual_mtu", Shape { mtu: 1500, ring: 1024, full: Full::Hold });
}

#[test]
fn tcp_and_udp_cross_two_wires_with_jumbo_frames() {
    carry("tcp_and_udp_cross_two_wires_with_jumbo_frames", Shape { mtu: 9000, ring: 1024, full: Full::Hold });
}

#[test]
fn a_frame_with_more_segments_than_the_ring_has_slots_crosses() {
    carry(
        "a_frame_with_more_segments_than_the_ring_has_slots_crosses",
        Shape { mtu: 1500, ring: 32, full: Full::Hold },
    );
}

#[test]
fn a_frame_with_more_pieces_than_the_ring_has_slots_crosses() {
    carry("a_frame_with_more_pieces_than_the_ring_has_slots_crosses", Shape { mtu: 9000, ring: 32, full: Full::Hold });
}

#[test]
fn tcp_survives_a_wire_that_drops() {
    carry("tcp_survives_a_wire_that_drops", Shape { mtu: 1500, ring: 32, full: Full::Drop });
}

fn carry(test: &str, shape: Shape) {
    if lacks_namespaces(test) {
        return;
    }
    let pair = Pair::joined(shape);
    let [a, b] = &pair.sides;
    let bytes = if shape.full == Full::Hold { 16 << 20 } else { 1 << 20 };
    for family in ADDRESSES {
        let addresses: [IpAddr; 2] = family.map(|address| address.parse().unwrap());
        a.ping_all(family[1], 5, 56);
        b.ping_all(family[0], 5, shape.mtu - 48);
        let [near, far] = a.connect(b, addresses[1]);
        exchange(near, far, bytes);
        let ((from, from_address), (to, to_address)) = (a.udp(addresses[0]), b.udp(addresses[1]));
        // Longer ones travel in fragments.
        for size in [0, 1, 1000, shape.mtu as usize - 48, 5000] {
            send_and_compare(&from, &to, to_address, size);
            send_and_compare(&to, &from, from_address, size);
        }
        if shape.full == Full::Hold {
            segmented(&from, &to, to_address);
        }
    }
    if shape.full == Full::Hold {
        assert_eq!(pair.dropped(), 0);
    }
}

/// Both sides send at once, and both compare what they get.
fn exchange(near: TcpStream, far: TcpStream, bytes: usize) {
    let ways = [(near.try_clone().unwrap(), far.try_clone().unwrap(), 1), (far, near, 2)];
    thread::scope(|scope| {
        for (from, to, seed) in ways {
            scope.spawn(move || write_all(from, seed, bytes));
            scope.spawn(move || compare_all(to, seed, bytes));
        }
    });
}

fn write_all(mut to: TcpStream, seed: u64, bytes: usize) {
    let mut content = Content(seed);
    for _ in 0..bytes / CHUNK {
        to.write_all(&content.next(CHUNK)).unwrap();
    }
}

fn compare_all(mut from: TcpStream, seed: u64, bytes: usize) {
    let mut content = Content(seed);
    let mut chunk = vec![0; CHUNK];
    for number in 0..bytes / CHUNK {
        from.read_exact(&mut chunk).unwrap();
        assert!(chunk == content.next(CHUNK), "chunk {number} is not what was sent");
    }
}

fn send_and_compare(from: &UdpSocket, to: &UdpSocket, address: std::net::SocketAddr, size: usize) {
    let sent = Content(size as u64 + 1).next(size);
    from.send_to(&sent, address).unwrap();
    let mut received = vec![0; 65_536];
    let length = to.recv(&mut received).unwrap();
    assert!(received[..length] == sent, "a datagram of {size} bytes is not what was sent");
}

/// One call sends many datagrams, which the kernel leaves in one frame (UDP segmentation offload).
fn segmented(from: &UdpSocket, to: &UdpSocket, address: std::net::SocketAddr) {
    const SEGMENT: u16 = 1000;
    setsockopt(from, UdpGsoSegment, &i32::from(SEGMENT)).unwrap();
    let sent = Content(9).next(20 * usize::from(SEGMENT) + 1);
    from.send_to(&sent, address).unwrap();
    setsockopt(from, UdpGsoSegment, &0).unwrap();
    let mut received = vec![0; 65_536];
    for part in sent.chunks(SEGMENT.into()) {
        let length = to.recv(&mut received).unwrap();
        assert!(received[..length] == *part, "a datagram of many sent at once is not what was sent");
    }
}

/// Bytes that never repeat, so that one which is missing, doubled or out of place is noticed.
struct Content(u64);

impl Content {
    fn next(&mut self, bytes: usize) -> Vec<u8> {
        let word = |state: &mut u64| {
            // Marsaglia's xorshift64; its state is never zero.
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            state.to_le_bytes()
        };
        let mut content: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| word(&mut self.0)).collect();
        content.truncate(bytes);
        content
    }
}

const CHUNK: usize = 64 << 10;
