//! Each kind of device: payloads compared both ways.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use ferrule_dpdk::config::{BURST, PortConfig};
use ferrule_dpdk::queue::Stored;
use ferrule_ffi::span::Span;

use crate::link::{Link, dpdk, eventually, frame, in_namespace};

const LENGTHS: [usize; 10] = [14, 60, 64, 65, 127, 128, 1514, 2048, 4000, 9014];
const JUMBO: PortConfig =
    PortConfig { queues: 1, mtu: Some(9000), buffer: None, finishes: false, interrupts: false, stamps: false };

#[test]
fn a_ring_gives_back_what_it_was_given_also_in_bursts() {
    let (eal, _turn) = dpdk();
    let mut ring = Link::open(eal, "net_ring0", JUMBO);
    for (number, len) in (0..).zip(LENGTHS) {
        let frame = frame(len, number);
        ring.send(&frame);
        let wanted = filled_up(&frame);
        assert_eq!(ring.receive(), (wanted.clone(), 1));
        ring.send_pieces(&[&frame[..5], &frame[5..14], &frame[14..]]);
        assert_eq!(ring.receive(), (wanted, 1));
    }
    let frames: Vec<_> = (0..200).map(|number| frame(64 + usize::from(number), number)).collect();
    let (rx, tx) = &mut ring.queues[0];
    for burst in frames.chunks(BURST) {
        let run: Vec<_> = burst.iter().map(|frame| Span::from(&frame[..])).collect();
        assert_eq!(tx.store_run(&run), run.len());
        assert!(tx.flush());
    }
    let mut received = Vec::new();
    while rx.poll() {
        received.extend(rx.plain().map(<[u8]>::to_vec));
        rx.take(BURST);
    }
    assert_eq!(received, frames);
    let counters = ring.port.counters().unwrap();
    assert_eq!([counters["rx_frames"], counters["tx_frames"]], [2 * LENGTHS.len() as u64 + 200; 2]);
}

#[test]
fn what_a_full_device_does_not_take_waits_and_what_never_fits_is_told() {
    let (eal, _turn) = dpdk();
    let mut ring = Link::open(eal, "net_ring1", PortConfig::default());
    let (rx, tx) = &mut ring.queues[0];
    let frame = frame(100, 1);
    let run = [Span::from(&frame[..]); BURST];
    let mut stored = 0;
    while tx.flush() {
        stored += tx.store_run(&run);
    }
    // The ring of the device is full, and what it did not take is still here.
    let waiting = tx.stored();
    assert!(waiting > 0);
    stored += tx.store_run(&run);
    assert_eq!((tx.stored(), tx.store_run(&run), tx.store(&run[..1])), (BURST, 0, Stored::Full));
    let mut received = 0;
    while received < stored {
        assert!(rx.poll(), "{received} of {stored} frames came");
        received += rx.plain().inspect(|bytes| assert_eq!(*bytes, frame)).count();
        rx.take(BURST);
        tx.flush();
    }
    assert!(!rx.poll() && tx.stored() == 0);
    let longest = vec![0; ring.port.frame_max() + 1];
    assert_eq!((tx.store(&[longest[..].into()]), tx.store(&[frame[..13].into()])), (Stored::TooLong, Stored::TooShort));
    assert_eq!(tx.store_run(&[longest[..].into()]), 0);
    assert_eq!(tx.store(&[longest[1..].into()]), Stored::Yes);
}

#[test]
fn a_null_device_has_frames_without_end_and_takes_all() {
    let (eal, _turn) = dpdk();
    let mut null = Link::open(eal, "net_null0,size=100", PortConfig { queues: 2, ..PortConfig::default() });
    assert_eq!((null.port.driver(), null.queues.len()), ("net_null", 2));
    for (rx, tx) in &mut null.queues {
        for _ in 0..10 {
            assert!(rx.poll());
            let run: Vec<_> = rx.plain().map(Span::from).collect();
            assert!(!run.is_empty() && run.iter().all(|frame| frame.len() == 100));
            assert_eq!(tx.store_run(&run), run.len());
            let count = run.len();
            assert!(tx.flush());
            rx.take(count);
        }
    }
    let counters = null.port.counters().unwrap();
    assert!(counters["rx_frames"] >= 20 && counters["tx_frames"] >= 20);
    assert_eq!(counters["x_rx_good_packets"], counters["rx_frames"]);
    let status = null.port.status().unwrap();
    assert_eq!(status.link_is_up, Some(true));
    assert_eq!(status.mtu, 1500);
    assert_ne!(null.port.mac().unwrap(), [0; 6]);
}

#[test]
fn frames_cross_a_veth_pair_between_two_packet_sockets() {
    let name = "frames_cross_a_veth_pair_between_two_packet_sockets";
    in_namespace(name, || {
        let (eal, _turn) = dpdk();
        ip("link add veth0 type veth peer name veth1");
        for end in ["veth0", "veth1"] {
            ip(&format!("link set {end} up"));
        }
        let mut ends = [(0, "veth0"), (1, "veth1")].map(|(number, iface)| {
            Link::open(eal, &format!("net_af_packet{number},iface={iface}"), PortConfig::default())
        });
        compare(&mut ends, &LENGTHS[1..7]);
    });
}

#[test]
fn frames_cross_a_tap_interface_and_come_in_pieces_where_buffers_are_small() {
    let name = "frames_cross_a_tap_interface_and_come_in_pieces_where_buffers_are_small";
    in_namespace(name, || {
        let (eal, _turn) = dpdk();
        let tap = Link::open(eal, "net_tap0,iface=dtap0", PortConfig { buffer: Some(256), ..PortConfig::default() });
        let socket = Link::open(eal, "net_af_packet0,iface=dtap0", PortConfig::default());
        let mut ends = [socket, tap];
        compare(&mut ends, &LENGTHS[1..4]);
        let long = frame(1514, 9);
        ends[0].send(&long);
        let (received, pieces) = ends[1].receive();
        assert_eq!(received, long);
        assert!(pieces >= 5, "{pieces} pieces");
        // A copy has to lie in one buffer.
        let run = [Span::from(&long[..])];
        let tx = &mut ends[1].queues[0].1;
        assert_eq!((tx.store_run(&run), tx.store(&run), tx.stored()), (0, Stored::TooLong, 0));
    });
}

/// Of the devices without a NIC only `net_pcap` says when frames came: by the kernel's clock, in microseconds.
#[test]
fn frames_say_when_they_arrived_where_the_device_knows() {
    let name = "frames_say_when_they_arrived_where_the_device_knows";
    in_namespace(name, || {
        let (eal, _turn) = dpdk();
        ip("link add veth0 type veth peer name veth1");
        for end in ["veth0", "veth1"] {
            ip(&format!("link set {end} up"));
        }
        let with_stamps = PortConfig { stamps: true, ..PortConfig::default() };
        let mut sender = Link::open(eal, "net_af_packet0,iface=veth0", PortConfig::default());
        let mut pcap = Link::open(eal, "net_pcap0,iface=veth1", with_stamps);
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        let before = now();
        sender.send(&frame(100, 1));
        let rx = &mut pcap.queues[0].0;
        eventually("a frame comes", || rx.poll());
        let mut stamps = [0; BURST];
        let known = rx.stamps(&mut stamps);
        assert!(known > 0 && (before..=now()).contains(&stamps[0]), "{known}: {} after {before}", stamps[0]);
        rx.take(BURST);
        rx.release();
        assert_eq!(rx.stamps(&mut stamps), 0, "none is there");
        let error = pcap.port.clock().unwrap_err();
        assert_eq!(error.call, "rte_eth_read_clock", "it has none: {error}");
        // It has none, and does not say so either.
        let mut null = Link::open(eal, "net_null0", with_stamps);
        let rx = &mut null.queues[0].0;
        assert!(rx.poll());
        assert_eq!(rx.stamps(&mut stamps), 0);
    });
}

/// A frame as Ethernet carries it: no shorter than 60 bytes.
fn filled_up(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Sends a frame of each length both ways, and compares.
fn compare(ends: &mut [Link; 2], lengths: &[usize]) {
    for (number, &len) in (0..).zip(lengths) {
        for from in [0, 1] {
            let frame = frame(len, number);
            ends[from].send(&frame);
            assert_eq!(ends[1 - from].receive(), (frame, 1), "{len} bytes from end {from}");
        }
    }
    eventually("both have counted", || {
        let received = ends.each_ref().map(|end| end.port.counters().unwrap()["rx_frames"]);
        received.iter().all(|&count| count >= lengths.len() as u64)
    });
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
