//! What is longer than the MTU of where it is to leave.

use ferrule_functions::Side::{Client, Network};
use ferrule_hw_tests::content::Content;

use super::packets::{ACK, Ipv4, SYN, error, tcp_with, udp};
use super::pair::{CLIENT, ETHERNET, POOL, Pair, SERVER};

const HERE: (u32, u16) = (CLIENT, 5000);
const OUTSIDE: (u32, u16) = (POOL, 5000);
const DNS: (u32, u16) = (SERVER, 53);
const WEB: (u32, u16) = (SERVER, 80);

#[test]
fn the_sender_of_what_must_not_be_parted_is_told_the_mtu() {
    let Some(mut pair) = Pair::with_mtu("the_sender_of_what_must_not_be_parted_is_told_the_mtu", [1400, 1000]) else {
        return;
    };
    let fits = |header_and: usize| Content::new(2).next(header_and - 28);
    pair.forwarded("it fits", Client, &udp(HERE, DNS, &fits(1000)).bytes());
    pair.forwarded("it fits", Network, &udp(DNS, OUTSIDE, &fits(1400)).bytes());
    for tos in [0, 0xb8] {
        let told = pair.told("too long there", Client, &Ipv4 { tos, ..udp(HERE, DNS, &fits(1001)) }.bytes());
        assert_eq!(told[20..28][..2], [3, 4]);
        assert_eq!(told[26..28], 1000_u16.to_be_bytes());
        let told = pair.told("too long back", Network, &Ipv4 { tos, ..udp(DNS, OUTSIDE, &fits(1401)) }.bytes());
        assert_eq!(told[26..28], 1400_u16.to_be_bytes());
    }
    let seen = pair.forwarded("a packet", Client, &udp(HERE, DNS, &fits(999)).bytes());
    pair.forwarded("what a router further on says", Network, &error((3, 4), SERVER, POOL, &seen, 900).bytes());
}

#[test]
fn what_may_be_parted_leaves_in_parts() {
    let Some(mut pair) = Pair::with_mtu("what_may_be_parted_leaves_in_parts", [577, 1000]) else { return };
    pair.forwarded("a packet", Client, &udp(HERE, DNS, b"").bytes());
    // One that later parts have too, and one that they have not.
    let all = [vec![], vec![1, 0x9e, 6, 1, 2, 3, 4, 0], vec![0x1e, 4, 1, 2], vec![0x1e, 4, 1, 2, 0x9e, 4, 1, 2]];
    for options in all {
        for len in [900, 974, 1001, 1024, 3000, 9000] {
            let data = Content::new(6).next(len);
            for (side, from, to) in [(Client, HERE, DNS), (Network, DNS, OUTSIDE)] {
                let packet = Ipv4 { fragment: 0, options: options.clone(), ..udp(from, to, &data) };
                let parts = pair.same(&format!("{len} bytes, {options:?}"), side, &packet.bytes());
                assert!(parts.iter().all(|(to, part)| *to == side.other() && part.len() <= ETHERNET + 1000));
            }
        }
    }
}

#[test]
fn connections_agree_on_segments_that_pass() {
    let Some(mut pair) = Pair::with_mtu("connections_agree_on_segments_that_pass", [1400, 1000]) else { return };
    let options = [
        vec![],
        vec![2, 4, 5, 0xb4],
        vec![2, 4, 1, 0xf4],
        vec![1, 1, 2, 4, 5, 0xb4, 1, 0],
        vec![4, 2, 1, 3, 3, 7, 2, 4, 0xff, 0xff, 0, 0],
        vec![1, 1, 1, 2],
    ];
    for (port, options) in (5000..).zip(options) {
        let (here, outside) = ((CLIENT, port), (POOL, port));
        let what = format!("{options:?}");
        pair.forwarded(&what, Client, &tcp_with(here, WEB, SYN, &options, b"").bytes());
        pair.forwarded(&what, Network, &tcp_with(WEB, outside, SYN | ACK, &options, b"").bytes());
        pair.forwarded(&what, Client, &tcp_with(here, WEB, ACK, &options, b"").bytes());
    }
}
