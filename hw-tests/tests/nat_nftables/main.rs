//! Our NAT44 beside the kernel's: the same packets through both, compared byte for byte where they leave. What is done otherwise, and why, is
//! said by `differs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod differs;
mod mtu;
mod packets;
mod pair;

use ferrule_functions::Side::{Client, Network};
use ferrule_hw_tests::content::Content;

use packets::{
    ACK, DF, End, FIN, Ipv4, PSH, RST, SYN, TCP, UDP, error, icmp, query, sender, tcp, tcp_with, transport_checksum,
    udp, udp_unsummed,
};
use pair::{CLIENT, ETHERNET, FAR, Left, OTHER_CLIENT, POOL, Pair, ROUTER, SERVER, SERVER_INSIDE};

#[test]
fn connections_are_carried_from_the_first_packet_to_the_last() {
    let Some(mut pair) = Pair::new("connections_are_carried_from_the_first_packet_to_the_last") else { return };
    let established = [(Client, SYN, 0), (Network, SYN | ACK, 0), (Client, ACK, 0)];
    let data = [(Client, PSH | ACK, 1), (Network, ACK, 0), (Network, ACK, 1446), (Network, PSH | ACK, 33)];
    let endings = [
        vec![(Client, FIN | ACK, 0), (Network, FIN | ACK, 0), (Client, ACK, 0)],
        vec![(Network, FIN | ACK, 3), (Client, ACK, 0), (Client, FIN | ACK, 0), (Network, ACK, 0)],
        vec![(Client, RST | ACK, 0)],
        vec![(Network, RST, 0)],
    ];
    let (here, web) = ((CLIENT, 36822), (SERVER, 80));
    // Each but the first has the ports of one that has ended.
    for (number, ending) in endings.iter().enumerate() {
        for (side, flags, len) in established.iter().chain(&data).chain(ending) {
            let (from, to) = if *side == Client { (here, web) } else { (web, (POOL, here.1)) };
            let options = if flags & SYN == 0 { &STAMPS[..] } else { &MSS };
            let packet = tcp_with(from, to, *flags, options, &vec![7; *len]).bytes();
            pair.forwarded(&format!("connection {number}: flags {flags:#x}"), *side, &packet);
        }
    }
    let crossed = (CLIENT, 40000);
    for (side, flags) in [(Client, SYN), (Network, SYN), (Client, SYN | ACK), (Network, SYN | ACK), (Client, ACK)] {
        let (from, to) = if side == Client { (crossed, web) } else { (web, (POOL, crossed.1)) };
        pair.forwarded("both have called at once", side, &tcp(from, to, flags, b"").bytes());
    }
    let strange = (CLIENT, 50000);
    pair.dropped("it begins in its middle", Client, &tcp(strange, web, ACK, b"x").bytes());
    pair.dropped("it begins with its end", Client, &tcp(strange, web, RST, b"").bytes());
    pair.dropped("nobody has called", Network, &tcp(web, (POOL, strange.1), SYN | ACK, b"").bytes());
    pair.dropped("a stranger calls", Network, &tcp(web, (POOL, strange.1), SYN, b"").bytes());
    pair.dropped("a stranger answers", Network, &tcp((SERVER + 1, 80), (POOL, crossed.1), ACK, b"").bytes());
    let mut spoilt = tcp((CLIENT, 50001), web, SYN, b"");
    spoilt.payload[16] ^= 0x55;
    pair.forwarded("its checksum stays as wrong as it was", Client, &spoilt.bytes());
}

#[test]
fn datagrams_of_any_length_go_and_are_answered() {
    let Some(mut pair) = Pair::new("datagrams_of_any_length_go_and_are_answered") else { return };
    let (here, outside) = ((CLIENT, 5000), (POOL, 5000));
    for to in [(SERVER, 53), (FAR, 4500)] {
        for len in [0, 1, 2, 3, 8, 33, 1471, 1472] {
            let data = Content::new(9).next(len);
            for make in [udp, udp_unsummed] {
                pair.forwarded(&format!("{len} bytes there"), Client, &make(here, to, &data).bytes());
                pair.forwarded(&format!("{len} bytes back"), Network, &make(to, outside, &data).bytes());
            }
        }
    }
    pair.dropped("nobody has asked", Network, &udp((SERVER, 54), outside, b"").bytes());
    // With it in its data, the datagram outside has a sum of all ones: a checksum of 0, which is written ffff.
    let to = (SERVER, 53);
    let sum = transport_checksum(&udp_unsummed(outside, to, &[0, 0]));
    let left = pair.forwarded("a checksum of 0", Client, &udp(here, to, &sum.to_be_bytes()).bytes());
    assert_eq!(left[26..28], [0xff, 0xff]);
    for told in [7, 12] {
        let mut datagram = udp_unsummed(here, to, b"abc");
        datagram.payload[5] = told;
        pair.dropped("a length that cannot be", Client, &datagram.bytes());
    }
    let mut datagram = udp_unsummed(here, to, b"abcd");
    datagram.payload[5] = 10;
    pair.forwarded("something behind it", Client, &datagram.bytes());
}

#[test]
fn queries_are_known_by_their_identifiers() {
    let Some(mut pair) = Pair::new("queries_are_known_by_their_identifiers") else { return };
    for (asks, answers) in [(8, 0), (13, 14), (15, 16), (17, 18)] {
        for len in [0, 1, 12, 56, 1472] {
            let identifier = 2000 + u16::from(asks);
            let data = Content::new(5).next(len);
            pair.forwarded("a query", Client, &query(asks, CLIENT, SERVER, identifier, &data).bytes());
            pair.forwarded("its answer", Network, &query(answers, SERVER, POOL, identifier, &data).bytes());
        }
        pair.dropped("nobody has asked", Network, &query(answers, SERVER, POOL, 9, b"").bytes());
        pair.dropped("an answer without a question", Client, &query(answers, CLIENT, SERVER, 3000, b"").bytes());
    }
    pair.dropped(
        "a redirect",
        Network,
        &error((5, 1), ROUTER, POOL, &query(8, POOL, SERVER, 2008, b"").bytes(), 8).bytes(),
    );
    pair.dropped("no such type", Client, &icmp(200, 0, CLIENT, SERVER, [0; 4], b"").bytes());
}

/// What is done to a packet.
type Change = fn(&mut Ipv4);

#[test]
fn headers_of_any_kind_go_through() {
    let Some(mut pair) = Pair::new("headers_of_any_kind_go_through") else { return };
    let datagram = udp((CLIENT, 5000), (SERVER, 53), b"any");
    let answer = udp((SERVER, 53), (POOL, 5000), b"any");
    let change = |how: Change, mut packet: Ipv4| {
        how(&mut packet);
        packet.bytes()
    };
    let changes: [(&str, Change); 9] = [
        ("a class", |ip| ip.tos = 0xb8),
        ("congestion", |ip| ip.tos = 3),
        ("it may be parted", |ip| ip.fragment = 0),
        ("no identification", |ip| ip.id = 0),
        ("the last one", |ip| ip.id = 0xffff),
        ("one hop more", |ip| ip.ttl = 2),
        ("far to go", |ip| ip.ttl = 255),
        ("options that do nothing", |ip| ip.options = vec![1, 1, 1, 0]),
        ("an option that nobody knows", |ip| ip.options = vec![0x9e, 6, 1, 2, 3, 4, 0, 0]),
    ];
    for (what, how) in changes {
        pair.forwarded(what, Client, &change(how, datagram.clone()));
        pair.forwarded(what, Network, &change(how, answer.clone()));
    }
    for (from, to, side) in [(CLIENT, SERVER, Client), (SERVER, POOL, Network)] {
        pair.forwarded("a protocol without ports", side, &Ipv4::new(253, from, to, b"anything".to_vec()).bytes());
    }
    let mut spoilt = datagram.bytes();
    spoilt[11] ^= 1;
    pair.dropped("a wrong checksum of the header", Client, &spoilt);
    for to in [0xe000_0001, 0xefff_0001, 0xffff_ffff, 0x7f00_0001, 0x5050_50ff] {
        pair.dropped("to nobody in particular", Client, &udp((CLIENT, 5000), (to, 53), b"").bytes());
        let old = change(|ip| ip.ttl = 1, udp((CLIENT, 5000), (to, 53), b""));
        pair.dropped("to nobody in particular, and too old", Client, &old);
    }
}

#[test]
fn errors_show_whoever_sent_the_packet_that_packet() {
    let Some(mut pair) = Pair::new("errors_show_whoever_sent_the_packet_that_packet") else { return };
    let (here, outside, dns) = ((CLIENT, 5000), (POOL, 5000), (SERVER, 53));
    let with_options = |packet: Ipv4| Ipv4 { options: vec![1, 1, 1, 0], ..packet };
    let data = Content::new(3).next(700);
    let conversations = [
        [tcp_with(here, (SERVER, 80), SYN, &MSS, b""), tcp((SERVER, 80), outside, SYN | ACK, b"")],
        [udp(here, dns, &data), udp(dns, outside, &data)],
        [udp_unsummed(here, dns, b"odd"), udp_unsummed(dns, outside, b"odd")],
        [with_options(udp(here, (SERVER, 54), &data)), with_options(udp((SERVER, 54), outside, &data))],
        [query(8, CLIENT, SERVER, 7700, &data), query(0, SERVER, POOL, 7700, &data)],
    ];
    for [there, back] in conversations {
        let seen_outside = pair.forwarded("a packet", Client, &there.bytes());
        let seen_inside = pair.forwarded("its answer", Network, &back.bytes());
        for kind in [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (4, 0), (11, 0), (11, 1), (12, 0)] {
            for quoted in [8, 9, 20, 28, 33, 2000] {
                let what = format!("{kind:?} that quotes {quoted} bytes of protocol {}", there.protocol);
                for teller in [SERVER, ROUTER, FAR] {
                    pair.forwarded(&what, Network, &error(kind, teller, POOL, &seen_outside, quoted).bytes());
                }
                for teller in [CLIENT, OTHER_CLIENT] {
                    pair.forwarded(&what, Client, &error(kind, teller, SERVER, &seen_inside, quoted).bytes());
                }
            }
        }
        let told = error((3, 3), SERVER, POOL, &seen_outside, 8);
        let mut spoilt = told.clone();
        spoilt.payload[2] ^= 1;
        pair.dropped("its checksum is wrong", Network, &spoilt.bytes());
        pair.dropped("too little is quoted", Network, &error((3, 3), SERVER, POOL, &seen_outside, 3).bytes());
        pair.dropped("it is not that client's", Network, &error((3, 3), SERVER, POOL, &there.bytes(), 8).bytes());
        pair.dropped("nobody has sent that", Network, &error((3, 3), SERVER, POOL, &seen_inside, 8).bytes());
        // It has neither refreshed nor ended anything.
        pair.forwarded("the answer once more", Network, &back.bytes());
    }
}

#[test]
fn the_sender_of_what_is_too_old_is_told() {
    let Some(mut pair) = Pair::new("the_sender_of_what_is_too_old_is_told") else { return };
    let (here, outside, dns) = ((CLIENT, 5000), (POOL, 5000), (SERVER, 53));
    pair.forwarded("a packet", Client, &udp(here, dns, b"").bytes());
    for len in [0, 1, 500, 1400] {
        for tos in [0, 0xb8] {
            let old = |packet| Ipv4 { ttl: 1, tos, ..packet }.bytes();
            let data = Content::new(4).next(len);
            pair.told("too old on its way out", Client, &old(udp(here, dns, &data)));
            pair.told("too old on its way in", Network, &old(udp(dns, outside, &data)));
        }
    }
    let seen = pair.forwarded("a packet", Client, &udp(here, dns, b"").bytes());
    let error = error((3, 3), SERVER, POOL, &seen, 8);
    pair.dropped("of an error nobody is told", Network, &Ipv4 { ttl: 1, ..error }.bytes());
}

/// The kernel puts packets together and sends them on in parts again.
#[test]
fn packets_in_parts_are_the_same_packets() {
    let Some(mut pair) = Pair::new("packets_in_parts_are_the_same_packets") else { return };
    let (here, outside, dns) = ((CLIENT, 5000), (POOL, 5000), (SERVER, 53));
    pair.forwarded("a packet", Client, &udp(here, dns, b"").bytes());
    let data = Content::new(8).next(1001);
    let mut id = 1;
    for make in [udp, udp_unsummed] {
        for (side, packet) in [(Client, make(here, dns, &data)), (Network, make(dns, outside, &data))] {
            for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
                id += 1;
                let parts = Ipv4 { id, ..packet.clone() }.parts(400);
                let mut left = [Vec::new(), Vec::new()];
                for part in order {
                    let [ours, kernels] = pair.both(side, &parts[part]);
                    left[0].extend(ours);
                    left[1].extend(kernels);
                }
                let offset =
                    |(_, frame): &Left| u16::from_be_bytes([frame[ETHERNET + 6], frame[ETHERNET + 7]]) & 0x1fff;
                for left in &mut left {
                    left.sort_by_key(offset);
                }
                assert_eq!(left[0], left[1], "{side:?}, in the order {order:?}");
            }
        }
    }
}

#[test]
fn forwards_lead_to_servers_from_both_sides() {
    let Some(mut pair) = Pair::new("forwards_lead_to_servers_from_both_sides") else { return };
    let (asker, server) = ((SERVER, 9000), (SERVER_INSIDE, 8080));
    let seen = pair.forwarded("a call from outside", Network, &tcp(asker, (POOL, 80), SYN, b"").bytes());
    let back = pair.forwarded("it is answered", Client, &tcp(server, asker, SYN | ACK, b"").bytes());
    assert_eq!((sender(&seen), sender(&back)), (asker, (POOL, 80)));
    pair.forwarded("the server is not there", Client, &error((3, 1), SERVER_INSIDE, SERVER, &seen, 8).bytes());
    pair.forwarded("the caller has gone", Network, &error((3, 1), SERVER, POOL, &back, 8).bytes());
    pair.forwarded("a question from outside", Network, &udp((FAR, 9000), (POOL, 53), b"odd").bytes());
    pair.forwarded("its answer", Client, &udp((SERVER_INSIDE, 5353), (FAR, 9000), b"odd").bytes());
    pair.dropped("nothing is there", Network, &tcp(asker, (POOL, 81), SYN, b"").bytes());
    pair.dropped("TCP is not UDP", Network, &udp(asker, (POOL, 80), b"").bytes());
    pair.dropped("it begins in its middle", Network, &tcp((SERVER, 9001), (POOL, 80), ACK, b"").bytes());
    // A client beside the servers, by the address that the world knows.
    let turned = |pair: &mut Pair, what: &str, packet: Ipv4| {
        let mut left = pair.same(what, Client, &packet.bytes());
        let [(Client, frame)] = &mut left[..] else { panic!("{what}: {left:02x?}") };
        frame.split_off(ETHERNET)
    };
    let (here, outside) = ((CLIENT, 4000), (POOL, 4000));
    for (flags, back) in [(SYN, SYN | ACK), (ACK, ACK), (FIN | ACK, FIN | ACK), (ACK, ACK)] {
        let there = turned(&mut pair, "to the neighbour", tcp(here, (POOL, 80), flags, b""));
        assert_eq!(sender(&there), outside);
        turned(&mut pair, "and back", tcp(server, outside, back, b""));
    }
    let there = turned(&mut pair, "a question to the neighbour", udp(here, (POOL, 53), b"odd"));
    turned(&mut pair, "its answer", udp((SERVER_INSIDE, 5353), outside, b"odd"));
    for quoted in [8, 20] {
        turned(&mut pair, "no such port", error((3, 3), SERVER_INSIDE, POOL, &there, quoted));
    }
}

#[test]
fn a_port_that_another_client_has_is_replaced() {
    let Some(mut pair) = Pair::new("a_port_that_another_client_has_is_replaced") else { return };
    let dns = (SERVER, 53);
    pair.forwarded("the first keeps its port", Client, &udp((CLIENT, 5000), dns, b"1").bytes());
    pair.forwarded("and so do two at other servers", Client, &udp((OTHER_CLIENT, 5000), (SERVER, 54), b"2").bytes());
    for make in [udp, udp_unsummed] {
        let sent = make((OTHER_CLIENT, 5000), dns, b"3").bytes();
        let outside = pair.both(Client, &sent).map(|left| {
            let [(Network, frame)] = &left[..] else { panic!("{left:02x?}") };
            let packet = &frame[ETHERNET..];
            let (address, port) = sender(packet);
            // But for its port it is the one that would have been.
            let as_if = Ipv4 { ttl: 63, ..make((POOL, port), dns, b"3") };
            assert_eq!(packet, as_if.bytes());
            assert!(address == POOL && port > 1023 && port != 5000, "{port}");
            (address, port)
        });
        let answers = outside.map(|outside| make(dns, outside, b"4").bytes());
        let [ours, kernels] = pair.each(Network, answers.each_ref().map(Vec::as_slice));
        assert_eq!(ours, kernels, "the answer comes to who has asked");
    }
    // Ports below 1024 mean something to somebody.
    let low = pair.both(Client, &udp((CLIENT, 123), (SERVER, 123), b"").bytes());
    for left in low {
        assert!(sender(&left[0].1[ETHERNET..]).1 > 1023);
    }
}

#[test]
fn many_conversations_at_once_are_the_same() {
    let Some(mut pair) = Pair::new("many_conversations_at_once_are_the_same") else { return };
    for seed in 1..=4 {
        let mut conversations: Vec<_> = (0..40).map(|number| Conversation::new(seed, number)).collect();
        let mut dice = Dice(Content::new(seed));
        for _ in 0..800 {
            let one = dice.below(conversations.len());
            conversations[one].go_on(&mut pair, &mut dice, &format!("seed {seed}, conversation {one}"));
        }
    }
}

/// A client and a server, or what is left of their conversation.
struct Conversation {
    protocol: u8,
    here: End,
    there: End,
    /// Packets so far, and what each side has received last.
    packets: usize,
    received: [Vec<u8>; 2],
}

impl Conversation {
    fn new(seed: u64, number: u16) -> Self {
        let client = if number.is_multiple_of(2) { CLIENT } else { OTHER_CLIENT };
        // Nobody else has it.
        let port = 10_000 * seed as u16 + number;
        Self {
            protocol: [TCP, UDP, packets::ICMP][usize::from(number % 3)],
            here: (client, port),
            there: ([SERVER, SERVER + 1, FAR][usize::from(number / 3 % 3)], 80 + number % 5),
            packets: 0,
            received: [Vec::new(), Vec::new()],
        }
    }

    fn go_on(&mut self, pair: &mut Pair, dice: &mut Dice, what: &str) {
        let outside = (POOL, self.here.1);
        let side = match self.packets {
            // The first packets of TCP have their order.
            0 | 2 => Client,
            1 => Network,
            _ => [Client, Network][dice.below(2)],
        };
        let received = &self.received[side.index()];
        if !received.is_empty() && dice.below(4) == 0 {
            let (kind, quoted) = ([(3, 1), (3, 3), (3, 4), (11, 0)][dice.below(4)], 8 + dice.below(60));
            let teller = if side == Client { self.here.0 } else { ROUTER };
            let told = error(kind, teller, packets::source(received), received, quoted);
            pair.forwarded(&format!("{what}: {kind:?}"), side, &told.bytes());
            return;
        }
        if dice.below(10) == 0 {
            let stranger = udp((SERVER, 7), (POOL, 100 + dice.below(9000) as u16), b"?");
            pair.dropped(&format!("{what}: a stranger"), Network, &stranger.bytes());
        }
        let (from, to) = if side == Client { (self.here, self.there) } else { (self.there, outside) };
        let longest = if dice.below(4) == 0 { 1400 } else { 64 };
        let len = dice.below(longest);
        let data = dice.0.next(len);
        let packet = match self.protocol {
            TCP => {
                let flags = [SYN, SYN | ACK, ACK].get(self.packets).copied();
                let (options, data) = if self.packets < 2 { (&MSS[..], &[][..]) } else { (&STAMPS[..], &data[..]) };
                tcp_with(from, to, flags.unwrap_or([ACK, PSH | ACK][dice.below(2)]), options, data)
            }
            UDP if dice.below(3) == 0 => udp_unsummed(from, to, &data),
            UDP => udp(from, to, &data),
            _ => query(if side == Client { 8 } else { 0 }, from.0, to.0, self.here.1, &data),
        };
        let options = if dice.below(5) == 0 { vec![1; 4 * dice.below(10)] } else { Vec::new() };
        let [id, tos, ttl, df] = [65_536, 256, 254, 2].map(|bound| dice.below(bound));
        let (id, tos, ttl) = (id as u16, tos as u8, 2 + ttl as u8);
        let packet = Ipv4 { id, tos, ttl, fragment: df as u16 * DF, options, ..packet };
        self.received[side.other().index()] = pair.forwarded(what, side, &packet.bytes());
        self.packets += 1;
    }
}

/// Numbers that are the same in every run.
struct Dice(Content);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        let word = self.0.next(8);
        // The low bits of a xorshift are its weaker ones.
        u32::from_le_bytes([word[4], word[5], word[6], word[7]]) as usize % bound
    }
}

/// A segment of 1460 bytes, and nothing.
const MSS: [u8; 8] = [2, 4, 5, 0xb4, 1, 1, 1, 1];
/// Time stamps.
const STAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
