//! Functions between two real peers, all in this process: memif, or vhost-user by a wire of an engine. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferrule_daemon::settings::FileSettings as _;
use ferrule_dataplane::capture::{Capture, Remark};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{self, MemifSpec, Role, VhostUserSpec, WireSpec};
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::end::EndSpec;
use ferrule_endpoints::memif::Endpoint;
use ferrule_ffi::notifier::Notifier;
use ferrule_functions::Side;
use ferrule_functions::any::AnyFunction;
use ferrule_functions::config::{Config, FunctionSettings};
use ferrule_functions::firewall::file::read_text;
use ferrule_functions::hop::{Hop, HopEvent};
use ferrule_functions::nat44::settings::{NatInterface, NatSettings};
use ferrule_functions::packet::{Link, checksum};
use ferrule_functions::port::PortSpec;
use ipnet::Ipv4Net;

#[test]
fn a_passthrough_changes_no_byte_and_no_order() {
    Testbed::start("pass", &FunctionSettings::Passthrough).carry();
}

#[test]
fn either_end_of_a_hop_may_be_vhost_user_and_both() {
    for (name, kinds) in [
        ("vhost-client", [EndKind::VhostUser(Role::Client), EndKind::Memif]),
        ("vhost-network", [EndKind::Memif, EndKind::VhostUser(Role::Server)]),
        ("vhost-both", [EndKind::VhostUser(Role::Server), EndKind::VhostUser(Role::Client)]),
    ] {
        Testbed::with_ends(name, &FunctionSettings::Passthrough, 1, kinds).carry();
    }
}

#[test]
fn a_firewall_between_two_peers_keeps_its_sessions_over_new_rules_and_over_a_peer_that_comes_back() {
    let settings =
        |rules: &str| FunctionSettings::Firewall { policy: read_text("rules", rules).unwrap(), sessions_max: 10 };
    let web = "rules: [{ name: web, action: reflect, protocol: udp, ports: 80 }]";
    let mut testbed = Testbed::start("fire", &settings(web));
    let (there, back) = (udp(1, 2, 9, 80), udp(2, 1, 80, 9));
    let counters = Arc::clone(testbed.hop.counters());
    testbed.send(Side::Network, &back);
    wait_for(|| counters.sides[1].dropped.get() == 1, "nobody asked for it");
    testbed.send(Side::Client, &there);
    assert_eq!(testbed.receive(Side::Network), there);
    let newer = settings(
        "rules: [{ name: none, action: deny, protocol: tcp }, { name: web, action: reflect, protocol: udp, ports: 80 }]",
    );
    let (told, adopted) = std::sync::mpsc::channel();
    assert!(testbed.hop.order(move |function| told.send(function.adopt(&newer)).unwrap()));
    assert_eq!(adopted.recv_timeout(TIMEOUT), Ok(true));
    testbed.send(Side::Network, &back);
    assert_eq!(testbed.receive(Side::Client), back, "it has a session");
    assert_eq!(counters.sides[1].dropped.get(), 1);
    testbed.part(Side::Client);
    testbed.join(Side::Client);
    testbed.send(Side::Network, &back);
    assert_eq!(testbed.receive(Side::Client), back);
}

#[test]
fn a_hop_is_tapped_and_says_of_each_frame_what_became_of_it() {
    let rules = "rules: [{ name: web, action: reflect, protocol: udp, ports: 80 }, { name: bad, action: deny, protocol: udp, ports: 9 }]";
    let settings = FunctionSettings::Firewall { policy: read_text("rules", rules).unwrap(), sessions_max: 10 };
    let mut testbed = Testbed::start("tap", &settings);
    let capture = Arc::new(Capture::new(8, 64));
    assert!(testbed.hop.tap(Some(Arc::clone(&capture))));
    wait_for(|| Arc::strong_count(&capture) == 2, "the worker has it");
    let (there, back) = (udp(1, 2, 5, 80), udp(2, 1, 80, 5));
    testbed.send(Side::Client, &there);
    assert_eq!(testbed.receive(Side::Network), there);
    testbed.send(Side::Network, &back);
    assert_eq!(testbed.receive(Side::Client), back);
    testbed.send(Side::Client, &udp(1, 2, 5, 9));
    testbed.send(Side::Client, &udp(1, 2, 5, 7));
    let mut seen = Vec::new();
    let mut look = || {
        while let Some(told) = capture.read(|frame| {
            let Remark { dropped, word, rule } = frame.remark();
            (frame.end, frame.is_outbound, dropped, word, rule.to_owned())
        }) {
            seen.push(told);
        }
        seen.len()
    };
    let deadline = Instant::now() + TIMEOUT;
    while look() < 4 {
        assert!(Instant::now() < deadline, "four frames are seen");
        std::thread::yield_now();
    }
    let told = |end, dropped, word, rule: &str| (end, false, dropped, word, rule.to_owned());
    let expected = [
        told(0, false, "rule", "web"),
        told(1, false, "session", "web"),
        told(0, true, "rule", "bad"),
        told(0, true, "unmatched", ""),
    ];
    assert_eq!(seen, expected);
    // More than there is room for: nobody waits.
    for _ in 0..20 {
        testbed.send(Side::Client, &there);
        assert_eq!(testbed.receive(Side::Network), there);
    }
    assert_eq!(capture.dropped(), 12);
    assert!(testbed.hop.tap(None));
    wait_for(|| Arc::strong_count(&capture) == 1, "the worker has let go of it");
}

#[test]
fn an_end_becomes_another_one_while_the_other_stays() {
    let mut testbed = Testbed::start("other", &FunctionSettings::Passthrough);
    let socket = format!("@ferrule-hop-{}-another", std::process::id());
    testbed.specs[1] = MemifSpec::new(socket.parse().unwrap(), Role::Server);
    let end = EndSpec::Memif(MemifSpec { role: Role::Client, ..testbed.specs[1].clone() });
    testbed.hop.set_end(Side::Network, end.clone());
    testbed.peers[1] = Some(Endpoint::open(&testbed.specs[1], TIMEOUT).unwrap());
    let counters = Arc::clone(testbed.hop.counters());
    wait_for(|| counters.sides[1].is_connected(), "the hop has its other end");
    testbed.hop.set_end(Side::Network, end);
    let frame = udp(1, 2, 3, 4);
    testbed.send(Side::Client, &frame);
    assert_eq!(testbed.receive(Side::Network), frame);
    let gone = |(side, event): &(Side, HopEvent)| *side == Side::Client && matches!(event, HopEvent::Gone { .. });
    assert!(!testbed.events.lock().unwrap().iter().any(gone), "the client's end stayed");
}

#[test]
fn what_finds_the_next_end_full_waits_and_nothing_is_lost() {
    let mut testbed = Testbed::start("full", &FunctionSettings::Passthrough);
    // More than all rings on the way have.
    let count = 6000_u32;
    let frame = |number: u32| [&[2; 12][..], &[0x12, 0x34], &number.to_be_bytes(), &[0; 46]].concat();
    let mut received = 0;
    for number in 0..count {
        while !testbed.try_send(Side::Client, &frame(number)) {
            assert_eq!(testbed.receive(Side::Network), frame(received));
            received += 1;
        }
    }
    while received < count {
        assert_eq!(testbed.receive(Side::Network), frame(received));
        received += 1;
    }
}

#[test]
fn a_queue_that_waits_gives_none_of_its_frames_to_another_one() {
    let mut testbed = Testbed::with_queues("two", &FunctionSettings::Passthrough, 2);
    let frame = |queue: u8, number: u32| [&[2; 12][..], &[0x12, 0x34, queue], &number.to_be_bytes(), &[0; 46]].concat();
    let mut count = 0;
    // Until all rings on the way are full for a while.
    let mut full_since = None;
    while full_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(100)) {
        if testbed.try_send_by(0, Side::Client, &frame(0, count)) {
            (count, full_since) = (count + 1, None);
        } else {
            full_since.get_or_insert_with(Instant::now);
        }
    }
    assert!(testbed.try_send_by(1, Side::Client, &frame(1, 0)));
    for number in 0..count {
        assert_eq!(testbed.receive_by(0, Side::Network), frame(0, number));
    }
    assert_eq!(testbed.receive_by(1, Side::Network), frame(1, 0));
}

#[test]
fn parts_that_a_function_makes_leave_before_newer_frames_and_wait_for_room_as_these_do() {
    let mut testbed = Testbed::start("parts", &nat44(Some(576)));
    // Known, since it asks for us.
    testbed.send(Side::Network, &arp(1, SERVER, OUTSIDE));
    assert_eq!(testbed.receive(Side::Network)[12..14], [8, 6]);
    // Each second one is so long that it leaves in three parts.
    let sent = |number: u16| request(number, if number.is_multiple_of(2) { 1400 } else { 10 });
    let expected = |number: u16| (number / 4 * 2 + number % 4 / 3, [0, 69, 138, 0][usize::from(number % 4)]);
    testbed.send_together(Side::Client, &[0, 1, 2, 3].map(sent));
    let mut received = 0;
    // More than all rings on the way have.
    for number in 4..4000 {
        while !testbed.try_send(Side::Client, &sent(number)) {
            assert_eq!(part(&testbed.receive(Side::Network)), expected(received));
            received += 1;
        }
    }
    while received < 8000 {
        assert_eq!(part(&testbed.receive(Side::Network)), expected(received));
        received += 1;
    }
    assert_eq!(testbed.hop.counters().sides[1].lost.get(), 0);
}

#[test]
fn parts_that_waited_for_the_first_one_leave_before_newer_frames() {
    let rules = "rules: [{ name: all, action: permit, protocol: udp }]";
    let firewall = FunctionSettings::Firewall { policy: read_text("rules", rules).unwrap(), sessions_max: 10 };
    let mut testbed = Testbed::start("held", &firewall);
    let frame = |id, offset| datagram(id, offset, 16);
    let (more, words) = (0x2000, 3);
    let [first, later, last] = [frame(1, more), frame(1, more | words), frame(1, 2 * words)];
    let (before, after) = (frame(0, 0), frame(2, 0));
    testbed.send_together(Side::Client, &[&before, &last, &later, &first, &after].map(Clone::clone));
    for expected in [before, first, last, later, after] {
        assert_eq!(testbed.receive(Side::Network), expected);
    }
}

#[test]
fn frames_that_waited_for_a_neighbour_leave_before_newer_ones() {
    let mut testbed = Testbed::start("neighbour", &nat44(None));
    let count = 50;
    for number in 0..count {
        testbed.send(Side::Client, &request(number, 10));
        if number == count / 2 {
            assert_eq!(testbed.receive(Side::Network)[12..14], [8, 6], "the server is asked for");
            testbed.send(Side::Network, &arp(2, SERVER, OUTSIDE));
        }
    }
    for number in 0..count {
        assert_eq!(part(&testbed.receive(Side::Network)), (number, 0));
    }
}

#[test]
fn what_finds_nobody_is_dropped_and_counted() {
    let mut testbed = Testbed::start("lost", &FunctionSettings::Passthrough);
    testbed.part(Side::Network);
    testbed.send(Side::Client, &udp(1, 2, 3, 4));
    let lost = || testbed.hop.counters().sides[0].lost.get();
    wait_for(|| lost() == 1, "it is lost");
}

/// A hop whose peers are here: at a memif end that end's own, and at one of vhost-user the other end of a wire.
struct Testbed {
    hop: Hop<AnyFunction>,
    peers: [Option<Endpoint>; 2],
    specs: [MemifSpec; 2],
    events: Arc<Mutex<Vec<(Side, HopEvent)>>>,
    notifier: Notifier,
    /// It has the wires.
    _engine: Option<Engine>,
}

/// What an end of the hop is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EndKind {
    Memif,
    /// It listens, or it connects.
    VhostUser(Role),
}

impl Testbed {
    fn start(name: &str, settings: &FunctionSettings) -> Self {
        Self::with_queues(name, settings, 1)
    }

    fn with_queues(name: &str, settings: &FunctionSettings, queues: u16) -> Self {
        Self::with_ends(name, settings, queues, [EndKind::Memif; 2])
    }

    fn with_ends(name: &str, settings: &FunctionSettings, queues: u16, kinds: [EndKind; 2]) -> Self {
        let mut engine = None;
        let pairs = Side::BOTH.map(|side| {
            let name = format!("ferrule-hop-{}-{name}-{}", std::process::id(), side.word());
            let memif = MemifSpec { queues, ..MemifSpec::new(format!("@{name}").parse().unwrap(), Role::Server) };
            match kinds[side.index()] {
                EndKind::Memif => {
                    let end = EndSpec::Memif(MemifSpec { role: Role::Client, ..memif.clone() });
                    (memif, PortSpec::Peer(end))
                }
                EndKind::VhostUser(role) => {
                    let socket = format!("@{name}-vhost");
                    let other = if role == Role::Server { Role::Client } else { Role::Server };
                    let backend = VhostUserSpec::new(socket.parse().unwrap(), other);
                    let ends = [spec::EndSpec::VhostUser(backend), spec::EndSpec::Memif(memif.clone())];
                    let engine = engine.get_or_insert_with(|| Engine::start(&Settings::new(vec![0])).unwrap());
                    engine.add(WireSpec::new(name, ends)).unwrap();
                    (MemifSpec { role: Role::Client, ..memif }, vhost_user(&socket, role))
                }
            }
        });
        let [(client, client_end), (network, network_end)] = pairs;
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        let say = move |side, event| told.lock().unwrap().push((side, event));
        let hop = Hop::start(AnyFunction::new(Link::Ethernet, settings), [client_end, network_end], say).unwrap();
        let notifier = Notifier::new().unwrap();
        let specs = [client, network];
        let mut testbed = Self { hop, peers: [None, None], specs, events, notifier, _engine: engine };
        for side in Side::BOTH {
            testbed.join(side);
        }
        testbed
    }

    /// Frames of many lengths and types cross both ways.
    fn carry(&mut self) {
        for side in Side::BOTH {
            let frames: Vec<Vec<u8>> = [64, 65, 1500, 2048, 2049, 9000]
                .into_iter()
                .zip([0x0800_u16, 0x86dd, 0x0806, 0x8847, 0x88cc, 0x1234])
                .map(|(length, ethertype)| {
                    let bytes = (0..=250).cycle().take(length - 14);
                    [&[2; 12][..], &ethertype.to_be_bytes()].concat().into_iter().chain(bytes).collect()
                })
                .collect();
            for frame in &frames {
                self.send(side, frame);
            }
            for frame in &frames {
                assert_eq!(&self.receive(side.other()), frame);
            }
        }
    }

    fn join(&mut self, side: Side) {
        self.peers[side.index()] = Some(Endpoint::open(&self.specs[side.index()], TIMEOUT).unwrap());
        let counters = Arc::clone(self.hop.counters());
        wait_for(|| counters.sides[side.index()].is_connected(), "the hop has its end");
    }

    fn part(&mut self, side: Side) {
        self.peers[side.index()] = None;
        let gone = |(whose, event): &(Side, HopEvent)| *whose == side && matches!(event, HopEvent::Gone { .. });
        let events = Arc::clone(&self.events);
        wait_for(|| events.lock().unwrap().iter().any(gone), "the hop has noticed");
    }

    fn send(&mut self, side: Side, frame: &[u8]) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.try_send(side, frame) {
            assert!(Instant::now() < deadline, "no room");
        }
    }

    fn try_send(&mut self, side: Side, frame: &[u8]) -> bool {
        self.try_send_by(0, side, frame)
    }

    /// Whoever looks sees all of them, or none yet.
    fn send_together(&mut self, side: Side, frames: &[Vec<u8>]) {
        let sender = &mut self.peers[side.index()].as_mut().unwrap().queues.senders[0];
        sender.refresh().unwrap();
        for frame in frames {
            let put = sender.put(&Frame { bytes: frame[..].into(), offload: None, slots: 0 }).unwrap();
            assert_eq!(put, Put::Stored);
        }
        if sender.publish() {
            self.notifier.notify(sender.notify_fd().unwrap()).unwrap();
        }
    }

    fn try_send_by(&mut self, queue: usize, side: Side, frame: &[u8]) -> bool {
        let sender = &mut self.peers[side.index()].as_mut().unwrap().queues.senders[queue];
        sender.refresh().unwrap();
        let put = sender.put(&Frame { bytes: frame.into(), offload: None, slots: 0 }).unwrap();
        if sender.publish() {
            self.notifier.notify(sender.notify_fd().unwrap()).unwrap();
        }
        put == Put::Stored
    }

    fn receive(&mut self, side: Side) -> Vec<u8> {
        self.receive_by(0, side)
    }

    fn receive_by(&mut self, queue: usize, side: Side) -> Vec<u8> {
        let peer = self.peers[side.index()].as_mut().unwrap();
        let deadline = Instant::now() + TIMEOUT;
        let mut gather = vec![0; FRAME_MAX];
        loop {
            let receiver = &mut peer.queues.receivers[queue];
            if receiver.refresh().unwrap() {
                let frame = receiver.peek(&mut gather).unwrap().unwrap();
                let (slots, mut bytes) = (frame.slots, vec![0; frame.bytes.len()]);
                assert!(frame.bytes.copy_out(&mut bytes));
                receiver.advance(slots);
                receiver.release();
                return bytes;
            }
            assert!(Instant::now() < deadline, "no frame");
            peer.sleep(deadline - Instant::now());
        }
    }
}

/// An end as the settings of a hop say it.
fn vhost_user(socket: &str, role: Role) -> PortSpec {
    let role = if role == Role::Server { "server" } else { "client" };
    let text = format!(
        "name: hop\nclient: {{ vhost-user: {{ socket: \"{socket}\", role: {role} }} }}\n\
         network: {{ memif: {{ socket: \"@none\", role: client }} }}\npassthrough: {{}}\n"
    );
    let config = Config::from_bytes(Path::new("hop.yaml"), text.as_bytes()).unwrap();
    config.ends.unwrap()[0].spec()
}

fn wait_for(is_so: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn udp(from: u8, to: u8, near: u16, far: u16) -> Vec<u8> {
    let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    [&[2; 12][..], &[8, 0], &ip, &near.to_be_bytes(), &far.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

/// Its clients are known by one address.
fn nat44(mtu: Option<u16>) -> FunctionSettings {
    let at = |address: u32| NatInterface::at(Ipv4Net::new(address.into(), 24).unwrap());
    let outside = NatInterface { mtu, ..at(OUTSIDE) };
    FunctionSettings::Nat44(NatSettings { pool: vec![OUTSIDE..=OUTSIDE], ..NatSettings::new(at(INSIDE), outside) })
}

/// From the client to the server, as one packet.
fn request(id: u16, payload_len: usize) -> Vec<u8> {
    datagram(id, 0, payload_len)
}

/// The same, as the part of a packet if it has an offset or is not the last one.
fn datagram(id: u16, fragment: u16, payload_len: usize) -> Vec<u8> {
    let length = 8 + payload_len as u16;
    let words = [0x4500, 20 + length, id, fragment, 0x4011, 0].map(u16::to_be_bytes).concat();
    let mut ip = [&words[..], &CLIENT.to_be_bytes(), &SERVER.to_be_bytes()].concat();
    let sum = checksum::full(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [5000, 80, length, 0].map(u16::to_be_bytes).concat();
    [
        &NatInterface::at(Ipv4Net::new(INSIDE.into(), 24).unwrap()).mac.0[..],
        &[2; 6],
        &[8, 0],
        &ip,
        &udp,
        &vec![7; payload_len],
    ]
    .concat()
}

/// Of which packet it is, and where in it.
fn part(frame: &[u8]) -> (u16, u16) {
    let word = |at| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (word(18), word(20) & 0x1fff)
}

/// A request (1) or a reply (2).
fn arp(operation: u8, from: u32, to: u32) -> Vec<u8> {
    let start = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&[0xff; 6][..], &[2; 6], &start, &[2; 6], &from.to_be_bytes(), &[0; 6], &to.to_be_bytes()].concat()
}

const CLIENT: u32 = 0x0a01_0009;
const INSIDE: u32 = 0x0a01_0001;
const OUTSIDE: u32 = 0x0a02_0001;
const SERVER: u32 = 0x0a02_0009;
const TIMEOUT: Duration = Duration::from_secs(10);
