//! What wires with devices do: frames cross, are refused, wait; other wires go on.

use std::process::Command;
use std::time::Instant;

use ferrule_dataplane::Applied;
use ferrule_dataplane::spec::{EndSpec, Full, Role, WireSpec};
use ferrule_dataplane::status::{EndState, LinkState};
use ferrule_ethdev::{EthdevSpec, VfSpec};

use crate::common::{client, engine, eventually, memif_wire, receive, send, unique};
use crate::site::{
    LENGTHS, device_counter, end, frame, has_dpdk, in_namespace, ip, next_of_ours, status, turn, until_up, wire,
};

#[test]
fn frames_cross_between_a_memif_peer_and_a_ring_up_to_9000_bytes() {
    let Some(_turn) = turn("frames_cross_between_a_memif_peer_and_a_ring_up_to_9000_bytes") else { return };
    let (engine, name) = (engine(), unique("ring"));
    let ring = EthdevSpec { mtu: Some(9000), ..EthdevSpec::new("net_ring0") };
    assert_eq!(engine.apply(wire(&name, &ring)).unwrap(), Applied::Made);
    let mut peer = client(&name, 0);
    until_up(&engine, &name);
    let lengths = [&LENGTHS[..], &[2049, 4000, 9014]].concat();
    for (number, &len) in (0..).zip(&lengths) {
        send(&mut peer, 0, &frame(len, number));
        assert_eq!(receive(&mut peer, 0), frame(len, number), "{len} bytes");
    }
    let frames = lengths.len() as u64;
    let seen = status(&engine, &name);
    assert_eq!(seen.directions.map(|traffic| traffic.frames), [frames; 2]);
    // Longer than its MTU.
    send(&mut peer, 0, &frame(9023, 1));
    eventually("it is refused", || status(&engine, &name).directions[0].drops.iter().sum::<u64>() == 1);

    eventually("the device has counted", || device_counter(&engine, &name, "tx_frames") == Some(frames));
    let device = status(&engine, &name).devices[1].clone().unwrap();
    assert_eq!((&*device.words, device.mtu), ("net_ring0 (net_ring), 10000 Mbit/s", Some(9000)));
    assert!(device.mac.is_some() && device.link == LinkState::Up);

    // The same again is the same; another MTU is another device.
    assert_eq!(engine.apply(wire(&name, &ring)).unwrap(), Applied::Unchanged);
    assert_eq!(engine.apply(wire(&name, &EthdevSpec::new("net_ring0"))).unwrap(), Applied::Remade);
    let mut peer = client(&name, 0);
    until_up(&engine, &name);
    send(&mut peer, 0, &frame(64, 1));
    assert_eq!(receive(&mut peer, 0), frame(64, 1));
}

#[test]
fn frames_are_moved_between_two_devices_both_ways() {
    in_namespace("frames_are_moved_between_two_devices_both_ways", |engine| {
        let [outer, inner] = ["outer", "inner"].map(unique);
        engine.apply(wire(&outer, &EthdevSpec::new("net_af_packet0,iface=veth0"))).unwrap();
        // What comes to veth1 goes into the ring, and comes back from there.
        let ends = ["net_af_packet1,iface=veth1", "net_ring1"].map(|device| end(&EthdevSpec::new(device)));
        engine.apply(WireSpec::new(&inner, ends)).unwrap();
        let mut peer = client(&outer, 0);
        for name in [&outer, &inner] {
            until_up(engine, name);
        }
        for (number, &len) in (0..).zip(&LENGTHS) {
            send(&mut peer, 0, &frame(len, number));
            assert_eq!(next_of_ours(&mut peer), frame(len, number), "{len} bytes");
        }
        let counted = status(engine, &inner).directions.map(|traffic| traffic.frames);
        assert!(counted.iter().all(|&frames| frames >= LENGTHS.len() as u64), "{counted:?}");
        // In either order: frames of one are in buffers of the other.
        engine.remove(&inner).unwrap();
        engine.remove(&outer).unwrap();
    });
}

#[test]
fn what_a_device_refuses_fails_its_own_wire_and_no_other() {
    let Some(_turn) = turn("what_a_device_refuses_fails_its_own_wire_and_no_other") else { return };
    let engine = engine();
    let (memif, spec) = memif_wire("other", Role::Server, Role::Server, Full::Hold);
    engine.apply(spec).unwrap();
    let mut peers = [0, 1].map(|number| client(&memif, number));
    until_up(&engine, &memif);
    let refusals = [
        (EthdevSpec::new("net_af_packet0,iface=nowhere"), "end B: make DPDK device net_af_packet0: "),
        (EthdevSpec::new("net_failsafe0,exec(touch,/tmp/x)"), "ends[1].ethdev.device: `net_failsafe0`; a PCI address"),
        (EthdevSpec { queues: 200, ..EthdevSpec::new("net_ring0") }, "the configuration: 200 queues; it has 1 to "),
        (EthdevSpec { queues: 0, ..EthdevSpec::new("net_null0") }, "ends[1].ethdev.queues: 0 queues; 1 to 256"),
    ];
    for (number, (ethdev, reason)) in (0..).zip(&refusals) {
        let error = engine.apply(wire(&unique("refused"), ethdev)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        send(&mut peers[0], 0, &frame(64, number));
        assert_eq!(receive(&mut peers[1], 0), frame(64, number));
    }
    // As many as DPDK can have, and one more.
    let names: Vec<_> = (0..33).map(|number| unique(&format!("null{number}"))).collect();
    let null = |number: usize| wire(&names[number], &EthdevSpec::new(format!("net_null{number},size=64")));
    for number in 0..32 {
        engine.apply(null(number)).unwrap();
    }
    let error = engine.apply(null(32)).unwrap_err().to_string();
    assert!(error.contains("there are 32 ports already"), "{error}");
    engine.remove(&names[0]).unwrap();
    engine.apply(null(32)).unwrap();
    send(&mut peers[1], 0, &frame(64, 9));
    assert_eq!(receive(&mut peers[0], 0), frame(64, 9));
}

#[test]
fn a_device_whose_interface_goes_is_closed_and_comes_back_with_it_and_no_other_wire_loses_a_frame() {
    in_namespace("a_device_whose_interface_goes_is_closed_and_comes_back_with_it", |engine| {
        let (memif, spec) = memif_wire("other", Role::Server, Role::Server, Full::Hold);
        engine.apply(spec).unwrap();
        let mut others = [0, 1].map(|number| client(&memif, number));
        until_up(engine, &memif);
        for (device, interface, make) in [
            ("net_af_packet0,iface=veth0", "veth0", Some("link add veth0 type veth peer name veth1")),
            // It makes its interface itself.
            ("net_tap0,iface=tap7", "tap7", None),
        ] {
            let name = unique("lost");
            engine.apply(wire(&name, &EthdevSpec::new(device))).unwrap();
            let _peer = client(&name, 0);
            until_up(engine, &name);
            ip(&format!("link del {interface}"));
            let began = Instant::now();
            let mut number = 0_u8;
            let mut others_go_on = || {
                number = number.wrapping_add(1);
                send(&mut others[0], 0, &frame(64, number));
                assert_eq!(receive(&mut others[1], 0), frame(64, number));
            };
            let is_lost = || matches!(status(engine, &name).ends[1], EndState::Lost { .. });
            if make.is_some() {
                eventually("it is lost", || {
                    others_go_on();
                    is_lost()
                });
                println!("{device}: closed after {:?}", began.elapsed());
            }
            make.into_iter().chain(["link set veth0 up", "link set veth1 up"]).for_each(ip);
            eventually("it is back", || {
                others_go_on();
                let shown = Command::new("ip").args(["link", "show", interface]).output().unwrap();
                shown.status.success() && status(engine, &name).is_up()
            });
            println!("{device}: back after {:?}", began.elapsed());
            engine.remove(&name).unwrap();
        }
    });
}

#[test]
fn without_dpdk_a_wire_says_so() {
    if has_dpdk() {
        return;
    }
    let error = engine().apply(wire(&unique("none"), &EthdevSpec::new("net_null0"))).unwrap_err().to_string();
    assert!(error.contains("make DPDK device net_null0: this forwarder was built without DPDK: "), "{error}");
    let vf = WireSpec::new(
        unique("vf"),
        [end(&EthdevSpec::new("net_null0")), EndSpec::External(VfSpec::of_pool("fast").into())],
    );
    let error = engine().apply(vf).unwrap_err().to_string();
    assert!(error.contains("this forwarder was built without DPDK: "), "{error}");
}
