//! What a worker may wait for, and what it must not.

use std::process::Command;
use std::time::{Duration, Instant};

use ferrule_dpdk::config::PortConfig;
use ferrule_ffi::span::Span;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::link::{Link, dpdk, eventually, frame, in_namespace};

#[test]
fn the_interrupt_of_a_tap_tells_of_a_frame_and_a_ring_has_none() {
    in_namespace("the_interrupt_of_a_tap_tells_of_a_frame_and_a_ring_has_none", || {
        let (eal, _turn) = dpdk();
        ip("link set lo up");
        let config = PortConfig { interrupts: true, ..PortConfig::default() };
        let mut tap = Link::open(eal, "net_tap0,iface=dtap0", config);
        let mut socket = Link::open(eal, "net_af_packet0,iface=dtap0", PortConfig::default());
        let is_readable = |tap: &Link| {
            let mut fds = [PollFd::new(tap.queues[0].0.interrupt_fd().unwrap(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
        };
        let (rx, _) = &mut tap.queues[0];
        assert!(rx.has_interrupt());
        rx.arm(true);
        // The kernel has frames of its own.
        while rx.poll() {
            rx.take(64);
        }
        socket.send(&frame(64, 1));
        eventually("it tells of the frame", || is_readable(&tap));
        assert_eq!(tap.receive(), (frame(64, 1), 1));
        tap.queues[0].0.arm(false);
        assert!(tap.queues[0].0.has_interrupt());
        let ring = Link::open(eal, "net_ring0", config);
        assert!(!ring.queues[0].0.has_interrupt() && ring.queues[0].0.interrupt_fd().is_none());
    });
}

#[test]
fn a_pcap_device_does_not_wait_for_an_interface_that_takes_its_time() {
    let test = "a_pcap_device_does_not_wait_for_an_interface_that_takes_its_time";
    in_namespace(test, move || {
        let (eal, _turn) = dpdk();
        ip("link add veth0 type veth peer name veth1");
        ip("link set veth0 up");
        ip("link set veth1 up");
        // 1000 bytes in a second.
        let slow = ["qdisc", "add", "dev", "veth0", "root", "tbf", "rate", "8kbit", "burst", "1540", "limit", "10mb"];
        if !Command::new("tc").args(slow).output().is_ok_and(|output| output.status.success()) {
            println!("skipped: {test}: tc, and tbf of the kernel");
            return;
        }
        let mut pcap = Link::open(eal, "net_pcap0,iface=veth0", PortConfig::default());
        let (_, tx) = &mut pcap.queues[0];
        let long = frame(1514, 1);
        let (mut longest, mut stored) = (Duration::ZERO, 0);
        // More than the socket has room for.
        while stored < 1000 && tx.stored() == 0 {
            let began = Instant::now();
            stored += tx.store_run(&[Span::from(&*long); 32]);
            tx.flush();
            longest = longest.max(began.elapsed());
        }
        println!("the longest of bursts of 32 frames to a full interface took {longest:?}");
        assert!(tx.stored() > 0, "{stored} frames were taken: the interface is never full");
        // It would have waited a minute and more for room.
        assert!(longest < Duration::from_secs(5));
    });
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
