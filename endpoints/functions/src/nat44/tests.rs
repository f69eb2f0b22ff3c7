use proptest::prelude::*;

use super::settings::PortForward;
use super::*;
use crate::frames::{self, ETHERNET, End, arp_request, echo, error, icmp, parts, tcp, udp};
use crate::packet::{ICMP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP};

const CLIENT: u32 = 0xc0a8_640a;
const OTHER: u32 = 0xc0a8_640b;
const INSIDE: u32 = 0xc0a8_6401;
const SERVER: u32 = 0x5050_5050;
const POOL: u32 = 0x5050_5064;
const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
use Side::{Client, Network};

/// Of the example, with the example's addresses.
fn settings() -> NatSettings {
    let interface = |mac: u8, address: &str| NatInterface {
        mac: ferrule_dataplane::spec::MacAddress([2, 0, 0, 0, 0xaa, mac]),
        address: address.parse().unwrap(),
        mtu: None,
    };
    NatSettings {
        inside: interface(1, "192.168.100.1/24"),
        outside: interface(2, "80.80.80.100/24"),
        clients: None,
        gateway: None,
        pool: vec![POOL..=POOL],
        ports: 1024..=u16::MAX,
        forwards: Vec::new(),
        sessions_max: 1000,
        client_sessions_max: 100,
    }
}

struct Bed {
    nat: Nat44,
    now_ms: u64,
}

impl Bed {
    fn new(settings: NatSettings) -> Self {
        let mut bed = Self { nat: Nat44::new(settings), now_ms: 0 };
        bed.meet();
        bed
    }

    /// Everybody asks for us, and so is known.
    fn meet(&mut self) {
        for (side, who, us) in [(Client, CLIENT, INSIDE), (Client, OTHER, INSIDE), (Network, SERVER, POOL)] {
            assert_eq!(self.put(side, arp_request(mac_of(who), who, us)).len(), 1, "ARP is answered");
        }
    }

    /// What leaves when a frame comes in, and where.
    fn put(&mut self, side: Side, mut frame: Vec<u8>) -> Vec<(Side, Vec<u8>)> {
        let mut out = Vec::new();
        let disposition = self.nat.frame(side, &mut frame, self.now_ms, &mut out);
        let forwarded = (disposition == Disposition::Forward).then_some((side.other(), frame));
        forwarded.into_iter().chain(out.into_iter().map(|extra| (extra.to, extra.frame))).collect()
    }

    /// The one frame that leaves when one comes in that is addressed to us.
    fn send(&mut self, side: Side, frame: &[u8]) -> Option<(Side, Vec<u8>)> {
        let mut all = self.put(side, to_us(side, frame));
        assert!(all.len() <= 1, "{all:?}");
        let (to, frame) = all.pop()?;
        check_sums(&frame);
        Some((to, frame))
    }

    fn forwarded(&mut self, side: Side, frame: &[u8]) -> Vec<u8> {
        let (to, frame) = self.send(side, frame).expect("it goes on");
        assert_eq!(to, side.other());
        frame
    }

    /// The reason of a drop.
    fn dropped(&mut self, side: Side, frame: &[u8]) -> NatReason {
        let before = NatReason::ALL.map(|reason| self.nat.counters().of(reason));
        let _ = self.put(side, to_us(side, frame));
        let grown = |reason: &&NatReason| self.nat.counters().of(**reason) > before[**reason as usize];
        *NatReason::ALL.iter().find(grown).expect("it is dropped")
    }
}

fn mac_of(address: u32) -> [u8; 6] {
    [2, 1, 0, 0, 0, address as u8]
}

fn with_ttl(ttl: u8, mut frame: Vec<u8>) -> Vec<u8> {
    frame[ETHERNET + 8] = ttl;
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum = checksum::full(&frame[ETHERNET..ETHERNET + 20], 0);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn to_us(side: Side, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0xaa, 1 + side.index() as u8]);
    frame
}

/// Every checksum as if it had been made from the bytes.
fn check_sums(frame: &[u8]) {
    let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, frame) else { return };
    assert!(checksum::is_right(&frame[headers.ip_at..headers.ip_at + header_len(frame)], 0), "IP: {frame:02x?}");
    let transport = &frame[headers.transport_at..headers.end];
    let pseudo = checksum::pseudo_v4(
        headers.source as u32,
        headers.destination as u32,
        headers.protocol,
        transport.len() as u16,
    );
    if headers.fragment == Fragment::Whole {
        match headers.protocol {
            TCP => assert!(checksum::is_right(transport, pseudo), "TCP: {frame:02x?}"),
            UDP => assert!(transport[6..8] == [0, 0] || checksum::is_right(transport, pseudo), "UDP: {frame:02x?}"),
            ICMP => assert!(checksum::is_right(transport, 0), "ICMP: {frame:02x?}"),
            _ => {}
        }
    }
}

/// Who speaks to whom.
fn ends(frame: &[u8]) -> (End, End) {
    let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, frame) else { panic!("it is whole") };
    let [near, far] = if headers.is_icmp() { [headers.identifier; 2] } else { headers.ports };
    ((headers.source as u32, near), (headers.destination as u32, far))
}

const HERE: End = (CLIENT, 36822);
const WEB: End = (SERVER, 80);

#[test]
fn the_web_server_sees_the_pool_and_the_client_gets_the_answer() {
    let mut bed = Bed::new(settings());
    let there = bed.forwarded(Client, &tcp(HERE, WEB, TCP_SYN));
    assert_eq!(ends(&there), ((POOL, 36822), WEB), "the port is kept");
    assert_eq!((there[ETHERNET + 8], &there[..6]), (63, &mac_of(SERVER)[..]));
    let back = bed.forwarded(Network, &tcp(WEB, (POOL, 36822), SYN_ACK));
    assert_eq!((ends(&back), back[ETHERNET + 8], &back[..6]), ((WEB, HERE), 63, &mac_of(CLIENT)[..]));
    assert_eq!(bed.nat.sessions(), 1);
}

#[test]
fn arp_is_answered_for_each_address_of_the_pool_and_for_no_other() {
    let mut bed = Bed::new(NatSettings { pool: vec![POOL..=POOL + 5], ..settings() });
    for address in 0x5050_5000..0x5050_5100 {
        let answered = bed.put(Network, arp_request(mac_of(SERVER), SERVER, address)).len();
        assert_eq!(answered == 1, (POOL..=POOL + 5).contains(&address), "{address:x}");
    }
    assert!(bed.put(Client, arp_request(mac_of(CLIENT), CLIENT, POOL)).is_empty());
}

#[test]
fn a_neighbour_is_asked_for_and_what_waits_for_it_goes_then() {
    let mut bed = Bed::new(settings());
    let stranger = SERVER + 1;
    let asked = bed.put(Client, to_us(Client, &udp(HERE, (stranger, 53), b"x")));
    let [(Network, request)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((&request[..6], &request[38..42]), (&[0xff; 6][..], &stranger.to_be_bytes()[..]));
    assert!(bed.put(Client, to_us(Client, &udp(HERE, (stranger, 53), b"y"))).is_empty(), "it was asked for just now");
    let mut reply = arp_request(mac_of(stranger), stranger, POOL);
    reply[21] = 2;
    let released = bed.put(Network, reply);
    assert_eq!(released.len(), 2);
    for (to, frame) in released {
        check_sums(&frame);
        assert_eq!((to, ends(&frame), &frame[..6]), (Network, ((POOL, 36822), (stranger, 53)), &mac_of(stranger)[..]));
    }
    for number in 0..1000 {
        bed.put(Client, to_us(Client, &udp(HERE, (0x5050_5090, number), b"")));
    }
    assert_eq!(bed.nat.counters().of(NatReason::ClientFull), 1000 - 99, "a flood is bounded");
    bed.now_ms = 3000;
    bed.nat.tick(bed.now_ms);
    assert_eq!(bed.nat.counters().of(NatReason::NoNeighbour), 99);
    let mut late = arp_request(mac_of(0x5050_5090), 0x5050_5090, POOL);
    late[21] = 2;
    assert!(bed.put(Network, late).is_empty(), "nothing waits for so long");
}

#[test]
fn two_clients_with_one_port_get_two_and_one_that_finds_none_is_told() {
    let mut bed = Bed::new(NatSettings { ports: 36822..=36823, ..settings() });
    assert_eq!(ends(&bed.forwarded(Client, &udp(HERE, (SERVER, 53), b""))).0, (POOL, 36822));
    let second = bed.forwarded(Client, &udp((OTHER, 36822), (SERVER, 53), b""));
    assert_eq!(ends(&second).0, (POOL, 36823));
    // Another destination has the ports free once more.
    assert_eq!(ends(&bed.forwarded(Client, &udp((OTHER, 36822), (SERVER, 54), b""))).0, (POOL, 36822));
    let (to, refusal) = bed.send(Client, &udp((OTHER, 36900), (SERVER, 53), b"")).unwrap();
    assert_eq!((to, &refusal[ETHERNET + 20..ETHERNET + 22]), (Client, &[3, 13][..]));
    assert_eq!(ends(&refusal).1.0, OTHER);
    assert_eq!(bed.nat.counters().of(NatReason::NoPort), 1);
}

#[test]
fn a_port_whose_session_has_ended_waits_before_another_client_gets_it() {
    let dns = (SERVER, 53);
    let port_of = |bed: &mut Bed, from| ends(&bed.forwarded(Client, &udp(from, dns, b""))).0.1;
    let ended = || {
        let mut bed = Bed::new(NatSettings { ports: 36822..=36823, ..settings() });
        assert_eq!(port_of(&mut bed, HERE), 36822);
        bed.now_ms += 300_000;
        bed.nat.tick(bed.now_ms);
        bed.meet();
        bed
    };
    let mut bed = ended();
    assert_eq!(port_of(&mut bed, HERE), 36822, "the same client has it at once");
    let mut bed = ended();
    assert_eq!(port_of(&mut bed, (OTHER, 36822)), 36823, "it is kept from another one");
    let elsewhere = ends(&bed.forwarded(Client, &udp((OTHER, 36822), (SERVER, 54), b""))).0.1;
    assert_eq!(elsewhere, 36822, "that server has nothing to do with it");
    assert_eq!(port_of(&mut bed, (OTHER, 36900)), 36822, "there is no other one");
    assert_eq!(bed.dropped(Client, &udp((OTHER, 36901), dns, b"")), NatReason::NoPort);
    let mut bed = ended();
    bed.now_ms += 120_000;
    bed.meet();
    assert_eq!(port_of(&mut bed, (OTHER, 36822)), 36822, "it has waited for long enough");
}

#[test]
fn of_each_address_of_the_pool_it_is_counted_what_it_has_and_carries() {
    let mut bed = Bed::new(NatSettings { ports: 5000..=5001, ..settings() });
    let counted = |bed: &Bed| {
        let address = bed.nat.counters().pool.of(POOL).unwrap();
        let sides = [0, 1].map(|side| (address.packets[side].get(), address.bytes[side].get()));
        (address.sessions.get(), address.ports.get(), sides, address.refused.get())
    };
    assert_eq!(bed.nat.counters().pool.used().count(), 0);
    bed.forwarded(Client, &udp((CLIENT, 5000), (SERVER, 53), b"1234"));
    bed.forwarded(Client, &udp((OTHER, 5000), (SERVER, 54), b""));
    bed.forwarded(Client, &udp((OTHER, 5001), (SERVER, 53), b""));
    bed.forwarded(Network, &udp((SERVER, 53), (POOL, 5000), b"12"));
    bed.send(Client, &udp((OTHER, 5002), (SERVER, 53), b"")).unwrap();
    assert_eq!(counted(&bed), (3, 2, [(3, 88), (1, 30)], 1), "two sessions have one port");
    // Another pool, and back to this one: what is there is counted as it is, what has been is gone.
    let pool = |first, last| NatSettings { pool: vec![first..=last], ports: 5000..=5001, ..settings() };
    bed.nat.set_settings(pool(POOL, POOL + 1));
    assert_eq!(counted(&bed), (3, 2, [(3, 88), (1, 30)], 1));
    bed.nat.set_settings(pool(POOL + 1, POOL + 1));
    assert!(bed.nat.counters().pool.of(POOL).is_none());
    bed.nat.set_settings(pool(POOL, POOL));
    assert_eq!(counted(&bed), (3, 2, [(0, 0), (0, 0)], 0));
    bed.now_ms = 300_000;
    bed.nat.tick(bed.now_ms);
    assert_eq!(counted(&bed).0 + counted(&bed).1, 0);
}

#[test]
fn only_whoever_was_asked_may_answer() {
    let mut bed = Bed::new(settings());
    bed.forwarded(Client, &udp(HERE, (SERVER, 53), b""));
    assert_eq!(bed.dropped(Network, &udp((SERVER, 54), (POOL, 36822), b"")), NatReason::NoSession);
    assert_eq!(bed.dropped(Network, &udp((SERVER + 1, 53), (POOL, 36822), b"")), NatReason::NoSession);
    assert_eq!(bed.dropped(Network, &tcp((SERVER, 53), (POOL, 36822), TCP_SYN)), NatReason::NoSession);
    assert_eq!(ends(&bed.forwarded(Network, &udp((SERVER, 53), (POOL, 36822), b""))).1, HERE);
    assert_eq!(bed.dropped(Client, &tcp(HERE, WEB, TCP_ACK)), NatReason::NotOpening, "mid-stream");
    assert_eq!(bed.dropped(Client, &udp((0x0102_0304, 1), WEB, b"")), NatReason::NotOurs, "not a client's address");
    assert_eq!(bed.dropped(Client, &udp((POOL, 1), WEB, b"")), NatReason::NotOurs);
}

#[test]
fn sessions_idle_for_the_time_of_their_state() {
    let lives = |open: &dyn Fn(&mut Bed), back: Vec<u8>, idle_ms: u64| {
        for (passed, there) in [(idle_ms - 1, true), (idle_ms, false)] {
            let mut bed = Bed::new(settings());
            open(&mut bed);
            bed.now_ms += passed;
            let out = bed.put(Network, to_us(Network, &back));
            // Neighbours may be asked for again, the frame itself is what counts.
            let passes = bed.nat.counters().of(NatReason::NoSession) == 0;
            assert_eq!(passes, there, "{passed} ms: {out:?}");
        }
    };
    let outside = (POOL, 36822);
    let open = |bed: &mut Bed| {
        bed.forwarded(Client, &tcp(HERE, WEB, TCP_SYN));
        bed.forwarded(Network, &tcp(WEB, outside, SYN_ACK));
        bed.forwarded(Client, &tcp(HERE, WEB, TCP_ACK));
    };
    let dns = (SERVER, 53);
    lives(&|bed| drop(bed.forwarded(Client, &udp(HERE, dns, b""))), udp(dns, outside, b""), 300_000);
    lives(&|bed| drop(bed.forwarded(Client, &tcp(HERE, WEB, TCP_SYN))), tcp(WEB, outside, SYN_ACK), 240_000);
    lives(&open, tcp(WEB, outside, TCP_ACK), 7_440_000);
    for ending in [TCP_RST, TCP_FIN | TCP_ACK] {
        let end = |bed: &mut Bed| {
            open(bed);
            bed.forwarded(Network, &tcp(WEB, outside, ending));
        };
        lives(&end, tcp(WEB, outside, TCP_ACK), 240_000);
    }
    lives(&|bed| drop(bed.forwarded(Client, &echo(8, CLIENT, SERVER, 36822))), echo(0, SERVER, POOL, 36822), 60_000);
}

#[test]
fn pings_are_translated_by_their_identifier() {
    let mut bed = Bed::new(settings());
    assert_eq!(ends(&bed.forwarded(Client, &echo(8, CLIENT, SERVER, 5000))), ((POOL, 5000), (SERVER, 5000)));
    let other = ends(&bed.forwarded(Client, &echo(8, OTHER, SERVER, 5000))).0.1;
    assert_ne!(other, 5000, "that one is taken");
    assert_eq!(ends(&bed.forwarded(Network, &echo(0, SERVER, POOL, other))), ((SERVER, 5000), (OTHER, 5000)));
    assert_eq!(ends(&bed.forwarded(Network, &echo(0, SERVER, POOL, 5000))).1.0, CLIENT);
    assert_eq!(bed.dropped(Network, &echo(0, SERVER, POOL, 5001)), NatReason::NoSession);
    assert_eq!(bed.dropped(Client, &icmp(13, 0, CLIENT, INSIDE, [0; 4], b"")), NatReason::NotOurs);
    let (to, reply) = bed.send(Client, &echo(8, CLIENT, INSIDE, 7)).unwrap();
    assert_eq!((to, ends(&reply).0.0), (Client, INSIDE), "our own address answers");
    let (to, reply) = bed.send(Client, &echo(8, CLIENT, POOL, 7)).unwrap();
    assert_eq!((to, ends(&reply).0.0, ends(&reply).1.0), (Client, POOL, CLIENT), "and so does the one outside");
    let (to, reply) = bed.send(Network, &with_ttl(1, echo(8, SERVER, POOL, 7))).unwrap();
    assert_eq!((to, ends(&reply).0.0, reply[ETHERNET + 20]), (Network, POOL, 0), "it goes no further");
}

#[test]
fn an_icmp_error_finds_the_client_and_shows_it_its_own_packet() {
    let router = SERVER + 9;
    for (sent, quoted_len) in [
        (tcp(HERE, WEB, TCP_SYN), 8),
        (tcp(HERE, WEB, TCP_SYN), 20),
        (udp(HERE, (SERVER, 53), b"0123456789"), 18),
        (echo(8, CLIENT, SERVER, 36822), 16),
    ] {
        let mut bed = Bed::new(settings());
        let outside = bed.forwarded(Client, &sent);
        let told = bed.forwarded(Network, &error(11, 0, router, POOL, &outside, quoted_len));
        assert_eq!((ends(&told).0.0, ends(&told).1.0), (router, CLIENT));
        let inner = &told[ETHERNET + 28..];
        assert!(checksum::is_right(&inner[..20], 0));
        let as_sent = &sent[ETHERNET..];
        // As it was sent, but for the TTL and the checksum of its header. That of TCP is where only a whole header has it.
        assert_eq!(inner[12..24], as_sent[12..24]);
        assert_eq!(inner.get(36..38), as_sent.get(36..38).filter(|_| quoted_len > 16 && inner.len() > 36));
        // A quote that was spoilt on the way says nothing.
        let mut spoilt = error(11, 0, router, POOL, &outside, quoted_len);
        spoilt[ETHERNET + 28 + 10] ^= 1;
        assert_eq!(bed.dropped(Network, &spoilt), NatReason::Malformed, "its own checksum is wrong as well");
        assert_eq!(bed.dropped(Network, &error(11, 0, router, POOL, &sent, quoted_len)), NatReason::NoSession);
    }
}

#[test]
fn an_error_of_a_client_goes_out_as_the_pools() {
    let mut bed = Bed::new(settings());
    bed.forwarded(Client, &udp(HERE, (SERVER, 53), b""));
    let inside = bed.forwarded(Network, &udp((SERVER, 53), (POOL, 36822), b"answer"));
    let told = bed.forwarded(Client, &error(3, 3, CLIENT, SERVER, &inside, 8));
    assert_eq!((ends(&told).0.0, ends(&told).1.0), (POOL, SERVER));
    let inner = &told[ETHERNET + 28..];
    assert_eq!((&inner[16..20], &inner[22..24]), (&POOL.to_be_bytes()[..], &36822_u16.to_be_bytes()[..]));
}

#[test]
fn parts_are_translated_in_any_order() {
    let sent = udp(HERE, (SERVER, 53), &[7; 100]);
    let outside = |part: &[u8]| {
        let Ok(Packet::Ip(headers)) = parse(Link::Ethernet, part) else { panic!("it is whole") };
        check_sums(part);
        headers.source as u32 == POOL
    };
    let mut bed = Bed::new(settings());
    for part in parts(&sent, 1, 32) {
        assert!(outside(&bed.forwarded(Client, &part)));
    }
    let mut reversed = parts(&sent, 2, 32);
    reversed.reverse();
    let (first, later) = reversed.split_last().unwrap();
    for part in later {
        assert_eq!(bed.send(Client, part), None, "it waits");
    }
    let all = bed.put(Client, to_us(Client, first));
    assert_eq!(all.len(), later.len() + 1);
    assert!(all.iter().all(|(to, part)| *to == Network && outside(part)));
    // Put together, they are the packet that one would have been.
    let whole = {
        let payload = |part: &Vec<u8>| part[ETHERNET + 20..].to_vec();
        let mut parts: Vec<_> = all.iter().map(|(_, part)| part.clone()).collect();
        parts.sort_by_key(|part| u16::from_be_bytes([part[ETHERNET + 6], part[ETHERNET + 7]]) & 0x1fff);
        frames::v4(UDP, POOL, SERVER, &parts.iter().flat_map(payload).collect::<Vec<_>>())
    };
    check_sums(&whole);
}

#[test]
fn a_forward_is_reached_from_outside_and_from_inside_by_its_outside_address() {
    let forward = PortForward { protocol: TCP, outside: (POOL, 80), inside: (OTHER, 8080) };
    let mut bed = Bed::new(NatSettings { forwards: vec![forward], ..settings() });
    let asked = bed.forwarded(Network, &tcp((SERVER, 9), (POOL, 80), TCP_SYN));
    assert_eq!(ends(&asked), ((SERVER, 9), (OTHER, 8080)));
    assert_eq!(ends(&bed.forwarded(Client, &tcp((OTHER, 8080), (SERVER, 9), SYN_ACK))), ((POOL, 80), (SERVER, 9)));
    // A client beside that server, by the address that the world knows.
    let (to, turned) = bed.send(Client, &tcp(HERE, (POOL, 80), TCP_SYN)).unwrap();
    assert_eq!((to, ends(&turned), &turned[..6]), (Client, ((POOL, 36822), (OTHER, 8080)), &mac_of(OTHER)[..]));
    let (to, back) = bed.send(Client, &tcp((OTHER, 8080), (POOL, 36822), SYN_ACK)).unwrap();
    assert_eq!((to, ends(&back), &back[..6]), (Client, ((POOL, 80), HERE), &mac_of(CLIENT)[..]));
    assert_eq!(bed.dropped(Network, &tcp((SERVER, 9), (POOL, 81), TCP_SYN)), NatReason::NoSession);
}

#[test]
fn what_is_too_old_or_leads_nowhere_is_told_to_its_sender() {
    let mut bed = Bed::new(settings());
    let old = with_ttl(1, udp(HERE, (SERVER, 53), b""));
    for (frame, told) in [(old, [11, 0]), (udp(HERE, (0x0808_0808, 53), b""), [3, 0])] {
        let (to, error) = bed.send(Client, &frame).unwrap();
        assert_eq!((to, &error[ETHERNET + 20..ETHERNET + 22], ends(&error).0.0), (Client, &told[..], INSIDE));
    }
    let long = with_ttl(1, udp(HERE, (SERVER, 53), &[0; 900]));
    let (_, error) = bed.send(Client, &long).unwrap();
    assert_eq!((error.len(), &error[ETHERNET + 28..]), (ETHERNET + 576, &long[ETHERNET..ETHERNET + 548]));
    assert_eq!(bed.dropped(Network, &with_ttl(1, udp((SERVER, 53), (POOL, 9), b""))), NatReason::NoSession);
    let gateway = Some(SERVER.into());
    let mut bed = Bed::new(NatSettings { gateway, ..settings() });
    let there = bed.forwarded(Client, &udp(HERE, (0x0808_0808, 53), b""));
    assert_eq!(&there[..6], &mac_of(SERVER)[..], "by way of the gateway");
    // What is for nobody in particular goes no further, and nobody is told.
    for to in [0xe000_0001, u32::MAX, 0x7f00_0001, 1, 0x5050_50ff, 0xc0a8_64ff] {
        for frame in [udp(HERE, (to, 53), b""), with_ttl(1, udp(HERE, (to, 53), b""))] {
            assert_eq!(bed.send(Client, &frame), None, "{to:x}");
        }
    }
    assert_eq!(bed.dropped(Client, &udp((0xc0a8_64ff, 9), WEB, b"")), NatReason::NoRoute, "nor is it from anybody");
}

#[test]
fn a_client_has_its_share_and_memory_is_bounded() {
    let mut bed = Bed::new(NatSettings { client_sessions_max: 3, sessions_max: 5, ..settings() });
    for port in 1..=3 {
        bed.forwarded(Client, &udp((CLIENT, 5000 + port), (SERVER, 53), b""));
    }
    let (_, refusal) = bed.send(Client, &udp((CLIENT, 6000), (SERVER, 53), b"")).unwrap();
    assert_eq!(&refusal[ETHERNET + 20..ETHERNET + 22], &[3, 13]);
    for port in 1..=2 {
        bed.forwarded(Client, &udp((OTHER, 5000 + port), (SERVER, 54), b""));
    }
    assert_eq!(bed.dropped(Client, &udp((OTHER, 5009), (SERVER, 54), b"")), NatReason::SessionsFull);
    assert_eq!(bed.nat.sessions(), 5);
    // Idle ones make room. The neighbour is asked for once more, and what waits for it is counted as translated.
    bed.now_ms = 300_000;
    let translated = bed.nat.counters().translated[0].get();
    bed.put(Client, to_us(Client, &udp((CLIENT, 6000), WEB, b"")));
    assert_eq!(bed.nat.counters().translated[0].get(), translated + 1);
    assert_eq!(bed.nat.table.clients.len(), 1, "who has no session is not counted any more");
}

#[test]
fn new_settings_keep_sessions() {
    let mut bed = Bed::new(settings());
    bed.forwarded(Client, &udp(HERE, (SERVER, 53), b""));
    bed.nat.set_settings(NatSettings { pool: vec![POOL + 1..=POOL + 1], ..settings() });
    assert_eq!(bed.put(Network, arp_request(mac_of(SERVER), SERVER, POOL + 1)).len(), 1);
    assert_eq!(ends(&bed.forwarded(Network, &udp((SERVER, 53), (POOL, 36822), b""))).1, HERE);
    let new = bed.forwarded(Client, &udp(HERE, (SERVER, 54), b""));
    assert_eq!(ends(&new).0, (POOL + 1, 36822), "a new one has a new address");
}

#[test]
fn udp_without_a_checksum_stays_so() {
    let mut bed = Bed::new(settings());
    let mut frame = udp(HERE, (SERVER, 53), b"odd");
    frame[ETHERNET + 26..ETHERNET + 28].fill(0);
    assert_eq!(&bed.forwarded(Client, &frame)[ETHERNET + 26..ETHERNET + 28], &[0, 0]);
}

#[test]
fn of_frames_that_came_in_together_the_later_ones_find_the_sessions_of_those_before() {
    let mut bed = Bed::new(settings());
    let (here, there) = ((CLIENT, 5000), (SERVER, 80));
    let segments = [tcp(here, there, TCP_SYN), tcp(here, there, TCP_ACK), tcp((OTHER, 5000), there, TCP_ACK)];
    let mut burst = Burst::new();
    for frame in &segments {
        burst.push(to_us(Client, frame)[..].into());
    }
    bed.nat.burst(Client, &mut burst, 0, &mut Vec::new());
    let expected = [Disposition::Forward, Disposition::Forward, Disposition::Drop];
    assert_eq!([0, 1, 2].map(|number| burst.disposition(number)), expected, "the last one opens nothing");
    assert_eq!(ends(burst.frame(0)), ends(burst.frame(1)));
    assert_eq!((ends(burst.frame(0)).0.0, bed.nat.sessions()), (POOL, 1));
    check_sums(burst.frame(1));
}

proptest! {
    #[test]
    fn whatever_goes_out_has_right_checksums_and_its_answer_comes_back(
        port in 1..=u16::MAX,
        far in 1..=u16::MAX,
        payload in prop::collection::vec(any::<u8>(), 0..50),
        is_tcp in any::<bool>(),
    ) {
        let mut bed = Bed::new(settings());
        let (here, there) = ((CLIENT, port), (SERVER, far));
        let sent = if is_tcp { tcp(here, there, TCP_SYN) } else { udp(here, there, &payload) };
        let (outside, to) = ends(&bed.forwarded(Client, &sent));
        prop_assert_eq!((outside.0, to), (POOL, there));
        prop_assert!(outside.1 >= 1024 && (port < 1024 || outside.1 == port));
        let back = if is_tcp { tcp(there, outside, SYN_ACK) } else { udp(there, outside, &payload) };
        prop_assert_eq!(ends(&bed.forwarded(Network, &back)), (there, here));
    }
}
