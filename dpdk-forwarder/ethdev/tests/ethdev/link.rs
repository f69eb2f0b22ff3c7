//! What is told of the link, and what a device leaves: its interface as it was, and no frame of a time when nobody was there.

use std::process::Command;

use ferrule_dataplane::status::DropReason;
use ferrule_ethdev::EthdevSpec;

use crate::common::{client, eventually, poll, receive, send, unique};
use crate::site::{device_counter, frame, in_namespace, ip, is_up, status, until_up, wire};

#[test]
fn the_interface_of_a_tap_is_up_while_somebody_is_at_the_other_end_and_only_then() {
    in_namespace("the_interface_of_a_tap_is_up_while_somebody_is_at_the_other_end_and_only_then", |engine| {
        let name = unique("tap");
        engine.apply(wire(&name, &EthdevSpec::new("net_tap0,iface=tap7"))).unwrap();
        assert!(!is_up("tap7"), "nobody is there yet");
        let peer = client(&name, 0);
        until_up(engine, &name);
        eventually("it is told up", || is_up("tap7"));
        drop(peer);
        eventually("it is told down", || !is_up("tap7"));
    });
}

#[test]
fn what_lay_in_a_device_before_its_peer_came_is_for_nobody() {
    in_namespace("what_lay_in_a_device_before_its_peer_came_is_for_nobody", |engine| {
        let [late, early] = ["late", "early"].map(unique);
        engine.apply(wire(&late, &EthdevSpec::new("net_af_packet0,iface=veth0"))).unwrap();
        engine.apply(wire(&early, &EthdevSpec::new("net_af_packet1,iface=veth1"))).unwrap();
        let mut sender = client(&early, 0);
        until_up(engine, &early);
        let drops = || status(engine, &late).directions[1].drops[DropReason::Disabled as usize];
        for round in 1..=2 {
            for number in 0..100 {
                send(&mut sender, 0, &frame(64, number));
            }
            let sent = || device_counter(engine, &early, "tx_frames");
            eventually("they lie in the other device", || sent() == Some(101 * round - 1));
            let mut receiver = client(&late, 0);
            until_up(engine, &late);
            eventually("they are drained", || drops() == 100 * round);
            send(&mut sender, 0, &frame(64, 200));
            assert_eq!(receive(&mut receiver, 0), frame(64, 200));
            assert_eq!(poll(&mut receiver, 0), None);
            drop(receiver);
            eventually("the peer is gone", || !status(engine, &late).is_up());
        }
    });
}

#[test]
fn an_interface_is_left_as_it_was() {
    in_namespace("an_interface_is_left_as_it_was", |engine| {
        let shown = |interface: &str| {
            let output = Command::new("ip").args(["-o", "-d", "link", "show", interface]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let is = |word: &str| text.split_once('>').is_some_and(|(flags, _)| flags.contains(word));
            (is("PROMISC"), is("ALLMULTI"), text.split(" mtu ").nth(1).unwrap().split(' ').next().unwrap().to_owned())
        };
        ip("link set veth1 promisc on");
        for driver in ["net_af_packet0", "net_af_xdp0"] {
            for (interface, was_promiscuous) in [("veth0", false), ("veth1", true)] {
                let before = shown(interface);
                assert_eq!(before, (was_promiscuous, false, "1500".to_owned()));
                let name = unique("left");
                let device = EthdevSpec { mtu: Some(1400), ..EthdevSpec::new(format!("{driver},iface={interface}")) };
                engine.apply(wire(&name, &device)).unwrap();
                let (is_promiscuous, _, mtu) = shown(interface);
                assert_eq!((is_promiscuous, &*mtu), (true, "1400"), "{driver}");
                engine.remove(&name).unwrap();
                assert_eq!(shown(interface), before, "{driver}");
            }
        }
    });
}
