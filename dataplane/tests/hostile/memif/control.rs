//! Lies on the control socket of a server.

use std::os::fd::AsFd;

use ferrule_dataplane::port::memif::message::{AddRegion, AddRing, Hello, Init, MESSAGE_LEN, MemifMessage};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::common::TestRng;
use crate::held::{Held, hold};
use crate::memif::peer::{Peer, init};
use crate::memif::setup::HostileSetup;
use crate::testbed::{Case, Expect, Testbed, Victim};

pub const CASES: &[Case] = &[
    free("a packet of three bytes", |testbed| is_refused(testbed, &[1, 0, 0], "a message of 3 bytes")),
    free("a packet one byte too long", |testbed| is_refused(testbed, &[1; MESSAGE_LEN + 1], "a message of 129 bytes")),
    free("a packet of 64 KiB", |testbed| is_refused(testbed, &[1; 65_536], "memif messages have 128")),
    free("an empty packet", |testbed| is_refused(testbed, &[], "a message of 0 bytes")),
    free("types that do not exist", unknown_types),
    free("random packets", random_packets),
    loses("every message in every wrong state", "unexpected", wrong_states),
    loses("a wrong secret", "incorrect secret", |testbed| asks(testbed, &Init { secret: [7; 24], ..init() })),
    loses("no secret", "secret required", |testbed| asks(testbed, &Init { secret: [0; 24], ..init() })),
    loses("an old version", "memif version 0x0100 is not spoken", |testbed| {
        asks(testbed, &Init { version: 0x0100, ..init() })
    }),
    loses("another mode", "mode mismatch", |testbed| asks(testbed, &Init { mode: 255, ..init() })),
    free("an interface that does not exist", |testbed| {
        let peer = Peer::connect(testbed);
        peer.say(&MemifMessage::Init(Init { id: u32::MAX, ..init() }), &[]);
        peer.is_refused("unmatched interface id 4294967295");
        hold(peer)
    }),
    loses("a ring of 2^15 slots", "2^15 descriptors", |testbed| {
        ring(testbed, |ring| AddRing { log2_size: 15, ..ring })
    }),
    loses("a ring of 2^255 slots", "2^255 descriptors", |testbed| {
        ring(testbed, |ring| AddRing { log2_size: 255, ..ring })
    }),
    loses("a ring behind its region", "not inside region 0", |testbed| {
        ring(testbed, |ring| AddRing { offset: u32::MAX - 63, ..ring })
    }),
    loses("a ring in a region that was not announced", "not inside region 65535", |testbed| {
        ring(testbed, |ring| AddRing { region: 65535, ..ring })
    }),
    loses("a ring off its border", "64-byte border", |testbed| ring(testbed, |ring| AddRing { offset: 2, ..ring })),
    loses("private headers", "private headers of 65535 bytes", |testbed| {
        ring(testbed, |ring| AddRing { private_header: u16::MAX, ..ring })
    }),
    loses("a ring out of turn", "unexpected index", |testbed| ring(testbed, |ring| AddRing { index: 65535, ..ring })),
    loses("a seventeenth ring", "this interface takes 16", seventeenth_ring),
    loses("a wrong cookie", "wrong cookie 0x00000000", wrong_cookie),
    stays("no rings at all", |testbed| {
        let peer = Peer::init(testbed);
        peer.finish();
        hold(peer)
    }),
    stays("rings of one direction only", one_direction),
    stays("a client that says everything at once and reads nothing", blind_client),
    stays("a second client for the same interface", second_client),
    loses("a second CONNECT", "unexpected CONNECT", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        peer.say(&MemifMessage::Connect { name: String::new() }, &[]);
        hold((setup, peer))
    }),
    loses("a goodbye that would paint the terminal", "the peer disconnected: \u{fffd}[2J", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        peer.say(&MemifMessage::Disconnect { code: u32::MAX, reason: "\u{1b}[2J".repeat(40) }, &[]);
        hold((setup, peer))
    }),
    loses("garbage after the handshake", "message type 43690", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        peer.send(&[0xaa; MESSAGE_LEN], &[]);
        hold((setup, peer))
    }),
];

/// The attacked server stays free for others.
pub const fn free(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::MemifServer, expect: Expect::Free, attack }
}

/// The peer loses its connection to the attacked server.
pub const fn loses(name: &'static str, text: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::MemifServer, expect: Expect::Loses(text), attack }
}

/// The peer keeps its connection to the attacked server.
pub const fn stays(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::MemifServer, expect: Expect::Stays, attack }
}

fn is_refused(testbed: &Testbed, packet: &[u8], text: &str) -> Held {
    let peer = Peer::connect(testbed);
    peer.send(packet, &[]);
    peer.is_refused(text);
    hold(peer)
}

fn asks(testbed: &Testbed, init: &Init) -> Held {
    let peer = Peer::connect(testbed);
    peer.say(&MemifMessage::Init(init.clone()), &[]);
    assert!(peer.goodbye().is_some());
    hold(peer)
}

fn unknown_types(testbed: &Testbed) -> Held {
    let peers = [0u16, 9, 255, 256, 0x8001, u16::MAX].map(|kind| {
        let mut packet = [0x55; MESSAGE_LEN];
        packet[..2].copy_from_slice(&kind.to_ne_bytes());
        is_refused(testbed, &packet, &format!("message type {kind}"))
    });
    hold(peers)
}

fn random_packets(testbed: &Testbed) -> Held {
    let mut rng = TestRng(0x5eed);
    for _ in 0..300 {
        let peer = Peer::connect(testbed);
        for _ in 0..4 {
            let mut packet: Vec<u8> = (0..MESSAGE_LEN).map(|_| rng.roll() as u8).collect();
            // Half of them with a type that exists.
            if rng.roll().is_multiple_of(2) {
                packet[..2].copy_from_slice(&((rng.roll() % 9) as u16).to_ne_bytes());
            }
            peer.send(&packet, &[]);
        }
        peer.goodbye();
    }
    hold(())
}

/// How a state of the conversation is reached.
type Reach = fn(&Testbed, &HostileSetup) -> Peer;

fn wrong_states(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let hello = Hello {
        name: "x".repeat(31),
        min_version: 0,
        max_version: u16::MAX,
        max_region: 0,
        max_m2s_ring: 0,
        max_s2m_ring: 0,
        max_log2_ring_size: 0,
    };
    let messages = [
        MemifMessage::Ack,
        MemifMessage::Hello(hello),
        MemifMessage::Init(init()),
        MemifMessage::Connect { name: String::new() },
        MemifMessage::Connected { name: String::new() },
        MemifMessage::AddRegion(AddRegion { index: 0, size: setup.len }),
        MemifMessage::AddRing(setup.ring(0)),
    ];
    // Fresh, after INIT, with memory and rings announced, connected: the last is the one that is shown.
    let states: [(Reach, &[usize]); 4] = [
        (|testbed, _| Peer::connect(testbed), &[0, 1, 3, 4, 5, 6]),
        (|testbed, _| Peer::init(testbed), &[0, 1, 2, 4]),
        (|testbed, setup| setup.announce(testbed), &[0, 1, 2, 4]),
        (|testbed, setup| setup.join(testbed), &[0, 1, 2, 3, 4, 5, 6]),
    ];
    for (reach, wrong) in states {
        for &message in wrong {
            let peer = reach(testbed, &setup);
            peer.say(&messages[message], &[]);
            peer.is_refused("unexpected");
        }
    }
    hold(setup)
}

fn ring(testbed: &Testbed, lie: fn(AddRing) -> AddRing) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(testbed);
    peer.region(0, setup.len, &setup.file);
    peer.say(&MemifMessage::AddRing(lie(setup.ring(0))), &[setup.eventfds[0].as_fd()]);
    assert!(peer.goodbye().is_some());
    hold((setup, peer))
}

fn seventeenth_ring(testbed: &Testbed) -> Held {
    let setup = HostileSetup::sized(16, 4);
    let peer = setup.announce(testbed);
    peer.say(&MemifMessage::AddRing(AddRing { index: 16, ..setup.ring(0) }), &[setup.eventfds[0].as_fd()]);
    assert!(peer.goodbye().is_some());
    hold((setup, peer))
}

fn wrong_cookie(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.announce(testbed);
    setup.memory.write_u32(0, 0).unwrap();
    peer.say(&MemifMessage::Connect { name: String::new() }, &[]);
    assert!(peer.goodbye().is_some());
    hold((setup, peer))
}

fn one_direction(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(testbed);
    peer.region(0, setup.len, &setup.file);
    assert_eq!(peer.hear(), Some(MemifMessage::Ack));
    peer.say(&MemifMessage::AddRing(setup.ring(0)), &[setup.eventfds[0].as_fd()]);
    assert_eq!(peer.hear(), Some(MemifMessage::Ack));
    peer.finish();
    (0..10).for_each(|_| setup.s2m().send(setup.buffer(0, 0), 60));
    hold((setup, peer))
}

fn blind_client(testbed: &Testbed) -> Held {
    let peer = Peer::connect(testbed);
    peer.say(&MemifMessage::Init(init()), &[]);
    let small = memfd_create(c"small", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&small, 4096).unwrap();
    let setup = HostileSetup::sized(16, 4);
    peer.region(0, setup.len, &setup.file);
    (1..64).for_each(|index| peer.region(index, 4096, &small));
    for number in 0..32 {
        peer.say(&MemifMessage::AddRing(setup.ring(number)), &[setup.eventfds[usize::from(number)].as_fd()]);
    }
    peer.say(&MemifMessage::Connect { name: String::new() }, &[]);
    crate::common::eventually("it is let in", || testbed.engine.wire(&testbed.wire).unwrap().is_up());
    hold((setup, peer))
}

fn second_client(testbed: &Testbed) -> Held {
    let (first, second) = (HostileSetup::new(), HostileSetup::new());
    // The second was half-way before the first arrived.
    let late = second.announce(testbed);
    let peer = first.join(testbed);
    late.say(&MemifMessage::Connect { name: String::new() }, &[]);
    late.is_refused("already connected");
    let later = Peer::connect(testbed);
    later.say(&MemifMessage::Init(init()), &[]);
    later.is_refused("already connected");
    hold((first, peer))
}
