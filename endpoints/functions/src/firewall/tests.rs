use proptest::prelude::*;

use super::file::read_text;
use super::*;
use crate::fragments::{HELD_MAX, PACKETS_MAX};
use crate::frames::{self, End, arp, echo, error, icmp, parts, tcp, udp, udp_v6};
use crate::packet::{ICMP_V6, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

const CLIENT: u32 = 0xac10_0101;
const GATEWAY: u32 = 0xac10_0102;
const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
use Side::{Client, Network};

fn firewall(text: &str) -> Firewall {
    let policy = read_text("rules.yaml", text).unwrap_or_else(|errors| panic!("{errors}"));
    Firewall::new(Link::Ethernet, policy, 1000)
}

/// Of secure-intranet, as it is.
fn secure_intranet() -> Firewall {
    firewall(
        "aclRules: {\"Allow ICMP\": \"action=reflect,icmptype=8\", \"Allow TCP 80\": \"action=reflect,tcplowport=80,tcpupport=80\"}",
    )
}

fn ours() -> Firewall {
    firewall(
        "rules:\n  - { name: ping, action: reflect, protocol: icmp, icmp_type: 8 }\n  - { name: web, action: reflect, protocol: tcp, \
         ports: 80 }\n  - { name: dns, action: reflect, protocol: udp, ports: 53 }\n",
    )
}

fn passes(firewall: &mut Firewall, side: Side, frame: &[u8], now_ms: u64) -> bool {
    firewall.judge(side, frame, now_ms).passes()
}

const WEB: (End, End) = ((CLIENT, 40_000), (GATEWAY, 80));

#[test]
fn the_verdicts_of_secure_intranet() {
    let mut firewall = secure_intranet();
    let mut client = |frame: &[u8]| firewall.judge(Client, frame, 0).passes();
    assert!(client(&echo(8, CLIENT, GATEWAY, 1)));
    assert!(client(&tcp(WEB.0, WEB.1, TCP_SYN)));
    assert!(client(&arp()));
    assert!(!client(&tcp((CLIENT, 40_000), (GATEWAY, 8080), TCP_SYN)));
    assert!(!client(&udp((CLIENT, 1), (GATEWAY, 80), b"")));
    assert!(!client(&icmp(13, 0, CLIENT, GATEWAY, [0; 4], b"")), "other ICMP");
    assert!(!client(&udp_v6((1, 1), (2, 80))), "all of IPv6");
    let solicitation = frames::v6(ICMP_V6, 1, 2, 255, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat());
    assert!(!client(&solicitation), "with neighbour discovery");
    // The gateway may send anything, but the client's answers meet the rules.
    assert!(passes(&mut firewall, Network, &echo(8, GATEWAY, CLIENT, 2), 0));
    assert!(!passes(&mut firewall, Client, &echo(0, CLIENT, GATEWAY, 2), 0));
    assert!(passes(&mut firewall, Network, &tcp((GATEWAY, 5), (CLIENT, 22), TCP_SYN), 0));
    assert!(!passes(&mut firewall, Client, &tcp((CLIENT, 22), (GATEWAY, 5), SYN_ACK), 0));
}

#[test]
fn the_verdict_on_one_code_of_icmp_is_none_on_another() {
    let mut firewall =
        firewall("rules:\n  - { name: ping, action: permit, protocol: icmp, icmp_type: 8, icmp_code: 0 }\n");
    for _ in 0..2 {
        assert!(passes(&mut firewall, Client, &echo(8, CLIENT, GATEWAY, 7), 0));
        assert!(!passes(&mut firewall, Client, &icmp(8, 5, CLIENT, GATEWAY, [0, 7, 0, 0], b""), 0));
    }
}

#[test]
fn a_way_back_is_for_the_answer_and_for_nobody_else() {
    let mut firewall = ours();
    assert!(!passes(&mut firewall, Network, &tcp(WEB.1, WEB.0, SYN_ACK), 0), "nobody asked");
    assert_eq!(firewall.judge(Client, &tcp(WEB.0, WEB.1, TCP_SYN), 0), Verdict::PassRule(1));
    assert_eq!(firewall.judge(Network, &tcp(WEB.1, WEB.0, SYN_ACK), 0), Verdict::PassSession(1));
    assert!(!passes(&mut firewall, Network, &tcp((GATEWAY, 80), (CLIENT, 40_001), SYN_ACK), 0));
    assert!(passes(&mut firewall, Client, &echo(8, CLIENT, GATEWAY, 7), 0));
    assert!(passes(&mut firewall, Network, &echo(0, GATEWAY, CLIENT, 7), 0));
    assert!(!passes(&mut firewall, Network, &echo(0, GATEWAY, CLIENT, 8), 0), "another identifier");
    assert!(!passes(&mut firewall, Network, &echo(8, GATEWAY, CLIENT, 7), 0), "a request is no answer");
    assert_eq!(firewall.counters().rules[1].frames.get(), 2);
}

#[test]
fn sessions_idle_for_the_time_of_their_state() {
    let mut firewall = ours();
    let back = |firewall: &mut Firewall, now_ms| passes(firewall, Network, &tcp(WEB.1, WEB.0, TCP_ACK), now_ms);
    passes(&mut firewall, Client, &tcp(WEB.0, WEB.1, TCP_SYN), 0);
    assert!(back(&mut firewall, 119_999));
    assert!(!back(&mut firewall, 239_999), "a half-open one has two minutes");
    let open = |firewall: &mut Firewall, now_ms| {
        passes(firewall, Client, &tcp(WEB.0, WEB.1, TCP_SYN), now_ms);
        passes(firewall, Network, &tcp(WEB.1, WEB.0, SYN_ACK), now_ms);
        passes(firewall, Client, &tcp(WEB.0, WEB.1, TCP_ACK), now_ms);
    };
    open(&mut firewall, 240_000);
    assert!(back(&mut firewall, 240_000 + 86_399_999), "an established one has a day");
    for ending in [TCP_FIN | TCP_ACK, TCP_RST] {
        let start = 1_000_000_000 * u64::from(ending);
        open(&mut firewall, start);
        passes(&mut firewall, Network, &tcp(WEB.1, WEB.0, ending), start);
        assert!(back(&mut firewall, start + 119_999));
        assert!(!back(&mut firewall, start + 119_999 + 120_000), "an ending one has two minutes");
    }
    let start = 50_000_000_000;
    passes(&mut firewall, Client, &tcp(WEB.0, WEB.1, TCP_SYN), start);
    passes(&mut firewall, Network, &tcp(WEB.1, WEB.0, TCP_RST), start);
    open(&mut firewall, start + 1);
    assert!(back(&mut firewall, start + 1_000_000), "the same ports were opened once more");
    let dns =
        |firewall: &mut Firewall, now_ms| passes(firewall, Network, &udp((GATEWAY, 53), (CLIENT, 9), b""), now_ms);
    passes(&mut firewall, Client, &udp((CLIENT, 9), (GATEWAY, 53), b""), 0);
    assert!(dns(&mut firewall, 599_999));
    assert!(!dns(&mut firewall, 599_999 + 600_000));
}

#[test]
fn a_flood_of_syns_costs_the_oldest_half_open_ones_and_no_memory() {
    let mut firewall = ours();
    passes(&mut firewall, Client, &tcp(WEB.0, WEB.1, TCP_SYN), 0);
    passes(&mut firewall, Network, &tcp(WEB.1, WEB.0, SYN_ACK), 0);
    passes(&mut firewall, Client, &tcp(WEB.0, WEB.1, TCP_ACK), 0);
    for number in 0..5000 {
        assert!(passes(&mut firewall, Client, &tcp((CLIENT + number, 9), WEB.1, TCP_SYN), 1));
    }
    assert_eq!(firewall.sessions(), 1000);
    assert!(passes(&mut firewall, Network, &tcp(WEB.1, WEB.0, TCP_ACK), 2), "the established one is there still");
    // Those of UDP do not make room.
    let mut firewall = ours();
    for number in 0..1000 {
        assert!(passes(&mut firewall, Client, &udp((CLIENT + number, 9), (GATEWAY, 53), b""), 1));
    }
    assert_eq!(firewall.judge(Client, &tcp(WEB.0, WEB.1, TCP_SYN), 2), Verdict::Drop(Reason::SessionsFull));
    assert_eq!(firewall.counters().of(Reason::SessionsFull), 1);
}

#[test]
fn an_icmp_error_passes_if_it_is_about_a_live_session() {
    let mut firewall = ours();
    let router = 0x0a01_0101;
    let syn = tcp(WEB.0, WEB.1, TCP_SYN);
    assert!(!passes(&mut firewall, Network, &error(3, 1, router, CLIENT, &syn, 8), 0));
    passes(&mut firewall, Client, &syn, 0);
    assert_eq!(firewall.judge(Network, &error(3, 1, router, CLIENT, &syn, 8), 0), Verdict::Pass(Reason::IcmpError));
    assert!(!passes(&mut firewall, Network, &error(3, 1, router, CLIENT + 5, &syn, 8), 0), "it is for somebody else");
    assert!(!passes(&mut firewall, Network, &error(3, 1, router, CLIENT, &syn, 7), 0), "it does not say whose");
    let other = tcp((CLIENT, 40_001), WEB.1, TCP_SYN);
    assert!(!passes(&mut firewall, Network, &error(3, 1, router, CLIENT, &other, 8), 0));
    assert!(!passes(&mut firewall, Client, &error(3, 1, CLIENT, GATEWAY, &syn, 8), 0), "it came from there");
    let ping = echo(8, CLIENT, GATEWAY, 3);
    passes(&mut firewall, Client, &ping, 0);
    assert!(passes(&mut firewall, Network, &error(11, 0, router, CLIENT, &ping, 8), 0));
}

#[test]
fn parts_share_the_verdict_of_the_first_one_in_any_order() {
    let web = udp((CLIENT, 9), (GATEWAY, 53), &[7; 100]);
    let bad = udp((CLIENT, 9), (GATEWAY, 54), &[7; 100]);
    let mut firewall = ours();
    for (frame, id, verdict) in [(&web, 1, true), (&bad, 2, false)] {
        for part in parts(frame, id, 32) {
            assert_eq!(passes(&mut firewall, Client, &part, 0), verdict);
        }
    }
    // The first one last: what was held goes, or does not.
    let mut out = Vec::new();
    for (frame, id, count) in [(&web, 3, 3), (&bad, 4, 0)] {
        let mut all = parts(frame, id, 32);
        all.reverse();
        let last = all.len() - 1;
        for (number, part) in all.iter_mut().enumerate() {
            let disposition = firewall.frame(Client, part, 1, &mut out);
            assert_eq!(disposition == Disposition::Forward, number == last && count > 0);
        }
        assert_eq!(out.len(), count);
        for (extra, part) in out.drain(..).zip(&all) {
            assert_eq!((extra.to, &extra.frame), (Network, part));
        }
    }
}

#[test]
fn parts_without_a_first_one_are_dropped_and_a_flood_of_them_takes_no_memory() {
    let mut firewall = ours();
    let frame = udp((CLIENT, 9), (GATEWAY, 53), &[7; 100]);
    for id in 0..10_000 {
        let lost = &parts(&frame, id, 32)[1];
        assert_eq!(firewall.judge(Client, lost, u64::from(id) / 1000), Verdict::Held);
    }
    assert_eq!(firewall.fragments.held(), HELD_MAX);
    assert_eq!(firewall.counters().of(Reason::LostFragment), 10_000 - HELD_MAX as u64);
    for id in 0..10_000 {
        firewall.judge(Client, &parts(&frame, id, 32)[0], 5000);
    }
    assert!(firewall.fragments.remembered() <= PACKETS_MAX && firewall.fragments.held() == 0);
    // Long after, the first one is not remembered.
    assert_eq!(firewall.judge(Client, &parts(&frame, 9999, 32)[1], 40_000), Verdict::Held);
    let tiny = parts(&tcp(WEB.0, WEB.1, TCP_SYN), 8, 8);
    assert_eq!(firewall.judge(Client, &tiny[0], 0), Verdict::Drop(Reason::TinyFragment));
    assert_eq!(firewall.judge(Client, &tiny[1], 0), Verdict::Drop(Reason::TinyFragment));
}

#[test]
fn new_rules_judge_old_sessions_again_and_keep_those_that_they_would_open() {
    let mut firewall = ours();
    passes(&mut firewall, Client, &tcp(WEB.0, WEB.1, TCP_SYN), 0);
    passes(&mut firewall, Client, &echo(8, CLIENT, GATEWAY, 1), 0);
    let policy = "rules:\n  - { name: all, action: deny, protocol: icmp }\n  - { name: web, action: reflect, protocol: tcp, ports: 80 }\n";
    firewall.set_policy(read_text("rules.yaml", policy).unwrap());
    assert_eq!(firewall.counters().rules[1].frames.get(), 1, "the counter of that name goes on");
    assert_eq!(firewall.judge(Network, &tcp(WEB.1, WEB.0, SYN_ACK), 1), Verdict::PassSession(1));
    assert!(!passes(&mut firewall, Network, &echo(0, GATEWAY, CLIENT, 1), 1), "no rule opens that any more");
    assert_eq!(firewall.sessions(), 1);
    // A verdict that was cached is found anew, too.
    let mut firewall = ours();
    let frame = tcp((CLIENT, 5), (GATEWAY, 8080), TCP_SYN);
    assert!(!passes(&mut firewall, Client, &frame, 0));
    firewall.set_policy(read_text("rules.yaml", "rules: [{ name: all, action: permit }]").unwrap());
    assert!(passes(&mut firewall, Client, &frame, 0));
}

#[test]
fn the_parts_of_a_packet_that_old_rules_judged_are_held_under_new_ones() {
    let mut firewall =
        firewall("rules: [{ name: dns, action: reflect, protocol: udp, ports: 53 }, { name: all, action: deny }]");
    let parts = parts(&udp((CLIENT, 5), (GATEWAY, 80), &[0; 100]), 7, 32);
    assert_eq!(firewall.judge(Client, &parts[0], 0), Verdict::DropRule(1));
    assert_eq!(firewall.judge(Client, &parts[1], 0), Verdict::DropRule(1));
    firewall.set_policy(read_text("rules.yaml", "rules: [{ name: all, action: permit }]").unwrap());
    assert_eq!(firewall.judge(Client, &parts[2], 0), Verdict::Held);
}

#[test]
fn neighbour_discovery_passes_where_some_ipv6_may() {
    let message = |kind: u8, hop_limit| {
        frames::v6(ICMP_V6, 1, 2, hop_limit, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat())
    };
    let mut firewall =
        firewall("rules: [{ name: v6, action: reflect, protocol: udp, destination: \"fd00::/8\", ports: 53 }]");
    for kind in [135, 136] {
        assert!(passes(&mut firewall, Client, &message(kind, 255), 0));
        assert!(passes(&mut firewall, Network, &message(kind, 255), 0));
        assert!(!passes(&mut firewall, Client, &message(kind, 64), 0), "a router forwarded it");
    }
    assert!(!passes(&mut firewall, Client, &message(134, 255), 0), "a router's advertisement is no such thing");
    let there = (0xfd00 << 112 | 1, 53);
    assert!(passes(&mut firewall, Client, &udp_v6((5, 6), there), 0));
    assert!(passes(&mut firewall, Network, &udp_v6(there, (5, 6)), 0));
}

#[test]
fn what_is_broken_or_no_ip_is_dropped_and_counted() {
    let mut firewall = ours();
    let frame = tcp(WEB.0, WEB.1, TCP_SYN);
    assert_eq!(firewall.judge(Client, &frame[..40], 0), Verdict::Drop(Reason::Malformed));
    let lldp = [&[2; 12][..], &[0x88, 0xcc, 0, 0]].concat();
    assert_eq!(firewall.judge(Client, &lldp, 0), Verdict::Drop(Reason::NotIp));
    assert!(passes(&mut secure_intranet(), Client, &lldp, 0), "that form is about IP only");
    assert_eq!((firewall.counters().of(Reason::Malformed), firewall.counters().of(Reason::NotIp)), (1, 1));
}

proptest! {
    #[test]
    fn frames_that_came_in_together_are_judged_as_if_one_after_the_other(
        frames in prop::collection::vec((0..3u32, 0..3u32, 0..6u16, 0..6u16, 0..6u8), 1..150),
    ) {
        // Few sessions: some make room in the middle of a burst.
        let [mut single, mut together] = [(); 2].map(|()| {
            let policy = read_text("rules.yaml", OF_ALL_KINDS).unwrap_or_else(|errors| panic!("{errors}"));
            Firewall::new(Link::Ethernet, policy, 4)
        });
        let frame = |&(from, to, near, far, kind): &(u32, u32, u16, u16, u8)| {
            let (from, to) = ((CLIENT + from, near), (GATEWAY + to, far));
            match kind {
                0 => tcp(from, to, TCP_SYN),
                1 => tcp(from, to, TCP_ACK),
                2 => tcp(from, to, TCP_FIN),
                3 => echo(8, from.0, to.0, near),
                // One of two parts, the later one at times first.
                4 => parts(&udp(from, to, &[0; 8]), 7, 8).swap_remove(usize::from(far) % 2),
                _ => udp(from, to, b""),
            }
        };
        for (number, frames) in frames.chunks(16).enumerate() {
            let (side, now_ms) = (Side::BOTH[number % 3 / 2], number as u64 * 50_000);
            let frames: Vec<_> = frames.iter().map(frame).collect();
            let (mut burst, mut out) = (Burst::new(), [Vec::new(), Vec::new()]);
            for frame in &frames {
                burst.push(frame[..].into());
            }
            together.burst(side, &mut burst, now_ms, &mut out[0]);
            for (number, frame) in frames.iter().enumerate() {
                let expected = single.frame(side, &mut frame.clone(), now_ms, &mut out[1]);
                prop_assert_eq!(burst.disposition(number), expected, "frame {}", number);
            }
            prop_assert_eq!(&out[0], &out[1]);
            prop_assert_eq!(together.sessions.overflows(), single.sessions.overflows());
            prop_assert_eq!(together.sessions(), single.sessions());
        }
    }
}

const OF_ALL_KINDS: &str = "rules:
- { name: web, action: reflect, protocol: tcp, ports: 0-2 }
- { name: ping, action: reflect, protocol: icmp, icmp_type: 8 }
- { name: no, action: deny, protocol: tcp, ports: 3 }
- { name: syn, action: permit, from: either, protocol: tcp, tcp_flags: \"syn\" }
- { name: dns, action: permit, from: either, protocol: udp, ports: 0-3 }
";
