//! TCP and UDP between two namespaces, over two wires that meet in a memif ring.

use std::net::{IpAddr, TcpStream, UdpSocket};
use std::thread;

use ferrule_dataplane::spec::Full;
use ferrule_hw_tests::content::{self, Content};
use ferrule_hw_tests::netns::lacks_namespaces;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::testbed::{ADDRESSES, INTERFACE, Pair, Shape};

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

#[test]
fn segments_of_a_stream_reach_the_kernel_in_few_frames() {
    if lacks_namespaces("segments_of_a_stream_reach_the_kernel_in_few_frames") {
        return;
    }
    let pair = Pair::joined(Shape { mtu: 1500, ring: 1024, full: Full::Hold });
    let [a, b] = &pair.sides;
    let received = || {
        let statistics = b.ip(&format!("-s link show {INTERFACE}"));
        let line = statistics.lines().skip_while(|line| !line.contains("RX:")).nth(1).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    for family in ADDRESSES {
        let wire = || pair.engine.wire(&pair.wires[1]).unwrap().directions[1].frames;
        let (frames, packets) = (wire(), received());
        let [near, far] = a.connect(b, family[1].parse().unwrap());
        exchange(&near, &far, 16 << 20);
        let (frames, packets) = (wire() - frames, received() - packets);
        assert!(frames > (16 << 20) / 1500, "{frames}");
        assert!(packets < frames / 4, "{frames} frames came to the kernel in {packets}");
    }
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
        exchange(&near, &far, bytes);
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
fn exchange(near: &TcpStream, far: &TcpStream, bytes: usize) {
    thread::scope(|scope| {
        scope.spawn(|| content::exchange(near, bytes, 1, 2).unwrap());
        scope.spawn(|| content::exchange(far, bytes, 2, 1).unwrap());
    });
}

fn send_and_compare(from: &UdpSocket, to: &UdpSocket, address: std::net::SocketAddr, size: usize) {
    let sent = Content::new(size as u64 + 1).next(size);
    from.send_to(&sent, address).unwrap();
    let mut received = vec![0; 65_536];
    let length = to.recv(&mut received).unwrap();
    assert!(received[..length] == sent, "a datagram of {size} bytes is not what was sent");
}

/// One call sends many datagrams, which the kernel leaves in one frame (UDP segmentation offload).
fn segmented(from: &UdpSocket, to: &UdpSocket, address: std::net::SocketAddr) {
    const SEGMENT: u16 = 1000;
    setsockopt(from, UdpGsoSegment, &i32::from(SEGMENT)).unwrap();
    let sent = Content::new(9).next(20 * usize::from(SEGMENT) + 1);
    from.send_to(&sent, address).unwrap();
    setsockopt(from, UdpGsoSegment, &0).unwrap();
    let mut received = vec![0; 65_536];
    for part in sent.chunks(SEGMENT.into()) {
        let length = to.recv(&mut received).unwrap();
        assert!(received[..length] == *part, "a datagram of many sent at once is not what was sent");
    }
}
