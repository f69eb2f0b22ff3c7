//! Each kind of device as an end of a wire: payloads compared both ways, up to the longest frame that its driver carries, and what it counts.

use std::thread;
use std::time::Instant;

use ferrule_dataplane::Engine;
use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, WireSpec};
use ferrule_dataplane::status::LinkState;
use ferrule_endpoints::memif::Endpoint;
use ferrule_ethdev::EthdevSpec;

use crate::common::{DEADLINE, client, client_spec, engine, eventually, poll, receive, send, unique};
use crate::site::{LENGTHS, device_counter, end, frame, in_namespace, ip, status, turn, until_up, wire};

const JUMBO: [usize; 4] = [2049, 4000, 8192, 9014];

#[test]
fn frames_cross_two_wires_and_the_veth_pair_between_their_packet_sockets() {
    in_namespace("frames_cross_two_wires_and_the_veth_pair_between_their_packet_sockets", |engine| {
        cross(engine, &[0, 1].map(|end| EthdevSpec::new(format!("net_af_packet{end},iface=veth{end}"))), &LENGTHS);
    });
}

#[test]
fn frames_cross_two_wires_and_the_veth_pair_between_xdp_and_a_packet_socket() {
    in_namespace("frames_cross_two_wires_and_the_veth_pair_between_xdp_and_a_packet_socket", |engine| {
        cross(engine, &["net_af_xdp0,iface=veth0", "net_af_packet0,iface=veth1"].map(EthdevSpec::new), &LENGTHS);
    });
}

#[test]
fn frames_cross_two_wires_and_the_veth_pair_between_two_pcap_devices_up_to_9000_bytes() {
    in_namespace("frames_cross_two_wires_and_the_veth_pair_between_two_pcap_devices", |engine| {
        for interface in ["veth0", "veth1"] {
            ip(&format!("link set {interface} mtu 9000"));
        }
        let pcap = |end| EthdevSpec { mtu: Some(9000), ..EthdevSpec::new(format!("net_pcap{end},iface=veth{end}")) };
        cross(engine, &[0, 1].map(pcap), &[&LENGTHS[..], &JUMBO].concat());
    });
}

#[test]
fn frames_cross_two_wires_and_the_interface_between_a_tap_and_a_packet_socket() {
    in_namespace("frames_cross_two_wires_and_the_interface_between_a_tap_and_a_packet_socket", |engine| {
        cross(engine, &["net_tap0,iface=tap7", "net_af_packet0,iface=tap7"].map(EthdevSpec::new), &LENGTHS);
    });
}

#[test]
fn frames_cross_two_wires_and_the_memif_of_dpdk_between_them() {
    let Some(_turn) = turn("frames_cross_two_wires_and_the_memif_of_dpdk_between_them") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let memif = |(number, role): (usize, &str)| {
        let socket = folder.path().join("m.sock");
        let device = format!("net_memif{number},role={role},socket={},socket-abstract=no", socket.display());
        EthdevSpec::new(device)
    };
    let devices = [(0, "server"), (1, "client")].map(memif);
    cross(&engine(), &devices, &LENGTHS);
}

#[test]
fn a_null_device_gives_frames_of_each_length_without_end_and_takes_all() {
    let Some(_turn) = turn("a_null_device_gives_frames_of_each_length_without_end_and_takes_all") else { return };
    let engine = engine();
    for len in [64, 1514, 9000] {
        let name = unique("null");
        let null = EthdevSpec { mtu: Some(9000), ..EthdevSpec::new(format!("net_null0,size={len},copy=1")) };
        engine.apply(wire(&name, &null)).unwrap();
        let mut peer = client(&name, 0);
        until_up(&engine, &name);
        for number in 0..100 {
            send(&mut peer, 0, &frame(len, number));
            assert_eq!(receive(&mut peer, 0), vec![0; len]);
        }
        eventually("it has counted what it took", || device_counter(&engine, &name, "tx_frames") == Some(100));
        assert!(device_counter(&engine, &name, "rx_frames") >= Some(100));
        engine.remove(&name).unwrap();
    }
}

#[test]
fn queues_of_a_device_are_joined_with_those_of_the_other_end() {
    in_namespace("queues_of_a_device_are_joined_with_those_of_the_other_end", |engine| {
        let names = ["two", "one"].map(unique);
        let two = EthdevSpec { queues: 2, ..EthdevSpec::new("net_af_packet0,iface=veth0,qpairs=2") };
        let memif = MemifSpec { role: Role::Server, queues: 2, ..client_spec(&names[0], 0) };
        engine.apply(WireSpec::new(&names[0], [EndSpec::Memif(memif), end(&two)])).unwrap();
        engine.apply(wire(&names[1], &EthdevSpec::new("net_af_packet1,iface=veth1"))).unwrap();
        let queues = MemifSpec { queues: 2, ..client_spec(&names[0], 0) };
        let mut several = Endpoint::open(&queues, DEADLINE).unwrap();
        let mut single = client(&names[1], 0);
        for name in &names {
            until_up(engine, name);
            let link = || status(engine, name).devices[1].as_ref().map(|device| device.link);
            eventually("its device has a link", || link() == Some(LinkState::Up));
        }
        for queue in [0, 1] {
            send(&mut several, queue, &frame(64, queue as u8));
            assert_eq!(receive(&mut single, 0), frame(64, queue as u8), "sent by queue {queue}");
        }
        // The kernel has the packets of a flow in one queue, and those of many flows in both.
        let mut seen = [0, 0];
        for flow in 0..FLOWS {
            send(&mut single, 0, &datagram(flow));
            let began = Instant::now();
            let queue = loop {
                let got = [0, 1].map(|queue| poll(&mut several, queue));
                if let Some(queue) = got.iter().position(Option::is_some) {
                    assert_eq!(got[queue].as_deref(), Some(&datagram(flow)[..]), "flow {flow}");
                    break queue;
                }
                assert!(began.elapsed() < DEADLINE, "flow {flow} is lost");
                thread::yield_now();
            };
            seen[queue] += 1;
        }
        assert!(seen.iter().all(|frames| *frames > 0), "{seen:?}");
    });
}

/// Of one of many flows of UDP.
fn datagram(flow: u8) -> Vec<u8> {
    let ip = [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let udp = [0x10, flow, 0, 9, 0, 26, 0, 0];
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &ip, &udp, &[flow; 18]].concat()
}

const FLOWS: u8 = 64;

/// Two wires between a memif peer and one of these devices each, which are joined outside: a frame of each length crosses from peer to peer, both
/// ways, and nothing else.
fn cross(engine: &Engine, devices: &[EthdevSpec; 2], lengths: &[usize]) {
    let names = ["left", "right"].map(unique);
    let until_linked = |name: &String| {
        let device = || status(engine, name).devices[1].clone();
        eventually("its device has a link", || device().is_some_and(|device| device.link == LinkState::Up));
    };
    let mut peers = [0, 1].map(|number| {
        let name = &names[number];
        engine.apply(wire(name, &devices[number])).unwrap();
        let peer = client(name, 0);
        until_up(engine, name);
        // A packet socket that is made while its interface is down keeps its first frame until it has another one.
        if !devices[number].device.starts_with("net_memif") {
            until_linked(name);
        }
        peer
    });
    names.iter().for_each(until_linked);
    for (number, &len) in (0..).zip(lengths) {
        for from in [0, 1] {
            send(&mut peers[from], 0, &frame(len, number));
            let began = Instant::now();
            let received = loop {
                if let Some(received) = poll(&mut peers[1 - from], 0) {
                    break received;
                }
                let states = || names.each_ref().map(|name| status(engine, name));
                assert!(began.elapsed() < DEADLINE, "{len} bytes from {}: {:#?}", devices[from].device, states());
                thread::yield_now();
            };
            assert!(received == frame(len, number), "{len} bytes from {}", devices[from].device);
        }
    }
    let sent = lengths.len() as u64;
    for name in &names {
        let counted = || {
            [&["rx_frames"][..], &["tx_frames"], &["rx_errors", "rx_missed", "rx_refused", "tx_errors", "tx_refused"]]
                .map(|counters| {
                    counters.iter().map(|counter| device_counter(engine, name, counter).unwrap()).sum::<u64>()
                })
        };
        eventually("the device has counted", || counted()[..2].iter().all(|&frames| frames >= sent));
        assert_eq!(counted(), [sent, sent, 0]);
        assert_eq!(status(engine, name).directions.map(|traffic| traffic.frames), [sent; 2]);
    }
    for name in &names {
        engine.remove(name).unwrap();
    }
}
