//! Messages that are none, or that nobody should send.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use ferrule_dataplane::port::vhost_user::message::{VhostUserRequest, VringState};

use crate::common::{TestRng, eventually};
use crate::held::{Held, hold};
use crate::testbed::{Case, Testbed};
use crate::vhost::peer::{NEED_REPLY, PLAIN, Peer, message};
use crate::vhost::setup::HostileSetup;
use crate::vhost::verdict::{free, loses, stays};

pub const CASES: &[Case] = &[
    loses("version 0", "with flags 0x0: only version 1", |testbed| is_refused(testbed, &message(1, 0, &[]))),
    loses("version 2", "with flags 0x2: only version 1", |testbed| is_refused(testbed, &message(1, 2, &[]))),
    loses("version 3, all flags", "with flags 0xffffffff: only version 1", |testbed| {
        is_refused(testbed, &message(1, u32::MAX, &[]))
    }),
    loses("a payload of 4097 bytes", "4097 bytes; none has more than 4096", |testbed| {
        is_refused(testbed, &message(5, PLAIN, &[0x41; 4097]))
    }),
    // VPP read as many bytes as the header says into a structure on its stack.
    loses("a payload of 2^32 - 1 bytes", "4294967295 bytes; none has more than 4096", |testbed| {
        is_refused(testbed, &header(2, PLAIN, u32::MAX))
    }),
    loses("a payload of 4096 bytes where 8 belong", "SET_FEATURES with a payload of 4096 bytes", |testbed| {
        is_refused(testbed, &message(2, PLAIN, &[0; 4096]))
    }),
    loses("every request a byte too short", "with a payload of", |testbed| misfits(testbed, |size| size - 1)),
    loses("every request a byte too long", "with a payload of", |testbed| misfits(testbed, |size| size + 1)),
    loses("every request without its payload", "with a payload of 0 bytes", |testbed| misfits(testbed, |_| 0)),
    loses("a reply to nothing", "a reply came where a request was expected", |testbed| {
        is_refused(testbed, &message(1, 5, &[0; 8]))
    }),
    loses("a table of 2^32 - 1 regions", "SET_MEM_TABLE with a payload of", |testbed| {
        is_refused(testbed, &message(5, PLAIN, &[[0xff; 8], [0; 8], [0; 8], [0; 8], [0; 8]].concat()))
    }),
    loses("a table with more regions than bytes", "SET_MEM_TABLE with a payload of 40 bytes", |testbed| {
        is_refused(testbed, &message(5, PLAIN, &[&[2, 0, 0, 0, 0, 0, 0, 0][..], &[0; 32]].concat()))
    }),
    loses("a configuration of 2^32 - 1 bytes", "GET_CONFIG with a payload of 12 bytes", |testbed| {
        is_refused(testbed, &message(24, PLAIN, &[[0; 4], [0xff; 4], [0; 4]].concat()))
    }),
    loses("a configuration of more bytes than came", "GET_CONFIG with a payload of 16 bytes", |testbed| {
        is_refused(testbed, &message(24, PLAIN, &[[0; 4], [0, 1, 0, 0], [0; 4], [0; 4]].concat()))
    }),
    stays("a configuration from byte 2^32 - 1 on", |testbed| {
        let peer = HostileSetup::new().greet(testbed);
        let payload = [[0xff; 4], [4, 0, 0, 0], [0; 4], [0; 4]].concat();
        peer.request(24, PLAIN, &payload, &[]);
        // None of it is there.
        assert_eq!(peer.hear().unwrap().payload.len(), 12);
        hold(peer)
    }),
    loses("an unknown request", "which this backend has no use for", |testbed| {
        is_refused(testbed, &message(u32::MAX, PLAIN, &[]))
    }),
    stays("every number there is, wanting an answer", every_number),
    loses("every number there is, wanting none", "", |testbed| {
        for number in (41..300).chain([0, 21, 22, 23, 26, 27, 28, 29, 30, 33, 35, 1 << 16, 1 << 31]) {
            is_refused(testbed, &message(number, PLAIN, &[0; 32]));
        }
        hold(())
    }),
    free("three bytes and then nothing", |testbed| silence(testbed, &[1, 0, 0])),
    free("a header whose payload never comes", |testbed| silence(testbed, &header(2, PLAIN, 8))),
    free("all of a message but its last byte", |testbed| silence(testbed, &message(5, PLAIN, &[0; 40])[..51])),
    free("nothing at all", |testbed| silence(testbed, &[])),
    loses("half a message, and half a close", "the peer closed its socket", |testbed| {
        let peer = Peer::connect(testbed);
        peer.send(&message(2, PLAIN, &[0; 8])[..13], &[]);
        UnixStream::from(peer.socket()).shutdown(Shutdown::Write).unwrap();
        peer.is_parted();
        hold(peer)
    }),
    loses("half a close while frames cross", "the peer closed its socket", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        UnixStream::from(peer.socket()).shutdown(Shutdown::Write).unwrap();
        peer.is_parted();
        hold((setup, peer))
    }),
    loses("a frontend that cannot be answered", "the peer", |testbed| {
        let peer = Peer::connect(testbed);
        UnixStream::from(peer.socket()).shutdown(Shutdown::Read).unwrap();
        peer.say(&VhostUserRequest::GetFeatures, &[]);
        eventually("its end is noticed", || testbed.shows("the peer"));
        hold(peer)
    }),
    loses("a frontend that never reads its answers", "the peer does not read its control socket", |testbed| {
        let peer = Peer::connect(testbed);
        while peer.send(&message(1, PLAIN, &[]), &[]) {}
        hold(peer)
    }),
    stays("a conversation byte by byte", |testbed| {
        let (setup, peer) = (HostileSetup::new(), Peer::connect(testbed));
        for byte in message(1, PLAIN, &[]).into_iter().cycle().take(12 * 50) {
            peer.send(&[byte], &[]);
        }
        (0..50).for_each(|_| assert!(peer.hear().is_some()));
        setup.negotiate(&peer);
        assert!(peer.is_heard());
        hold(peer)
    }),
    stays("everything said at once, with its descriptors, and nothing read", blind_frontend),
    free("random bytes", |testbed| {
        let mut rng = TestRng(0x5eed);
        for _ in 0..200 {
            let peer = Peer::connect(testbed);
            let bytes: Vec<u8> = (0..=rng.roll() % 300).map(|_| rng.roll() as u8).collect();
            peer.send(&bytes, &[]);
            // Too few to be refused are no more than silence.
            drop(peer);
        }
        hold(())
    }),
    free("random payloads of requests that exist", random_payloads),
];

/// Every request that has a payload of a fixed length, and that length.
pub const PAYLOADS: [(u32, usize); 22] = [
    (2, 8),
    (6, 16),
    (8, 8),
    (9, 40),
    (10, 8),
    (11, 8),
    (12, 8),
    (13, 8),
    (14, 8),
    (16, 8),
    (18, 8),
    (19, 8),
    (20, 8),
    (31, 20),
    (32, 20),
    (37, 40),
    (38, 40),
    (39, 8),
    (5, 8),
    (24, 12),
    (25, 12),
    (5, 40),
];

/// Says something, and has lost its place by it.
fn is_refused(testbed: &Testbed, bytes: &[u8]) -> Held {
    let peer = Peer::connect(testbed);
    peer.send(bytes, &[]);
    peer.is_parted();
    hold(peer)
}

/// Says something that is no message yet, and never the rest of it.
fn silence(testbed: &Testbed, bytes: &[u8]) -> Held {
    let peer = Peer::connect(testbed);
    peer.send(bytes, &[]);
    hold(peer)
}

/// Requests with payloads of another length than is theirs; the last one wants an answer, and gets none.
fn misfits(testbed: &Testbed, length: fn(usize) -> usize) -> Held {
    for flags in [PLAIN, NEED_REPLY] {
        for (number, size) in PAYLOADS {
            let peer = Peer::connect(testbed);
            let mut payload = vec![0; length(size)];
            if number == 5 && size == 40 && !payload.is_empty() {
                // A table of one region.
                payload[0] = 1;
            }
            peer.request(number, flags, &payload, &[]);
            peer.is_parted();
        }
    }
    hold(())
}

fn every_number(testbed: &Testbed) -> Held {
    let peer = Peer::connect(testbed);
    let unknown = (41..200).chain([0, 21, 22, 23, 26, 27, 28, 29, 30, 33, 35, 1 << 16, 1 << 31, u32::MAX]);
    for number in unknown {
        assert!(!peer.demand(&VhostUserRequest::Other(number), &[]), "request {number}");
    }
    // Also with a payload of whatever length.
    for size in [1, 8, 4096] {
        peer.request(22, NEED_REPLY, &vec![0xee; size], &[]);
        assert_eq!(peer.hear().unwrap().value(), 1);
    }
    hold(peer)
}

fn blind_frontend(testbed: &Testbed) -> Held {
    let (setup, peer) = (HostileSetup::new(), Peer::connect(testbed));
    let offer = setup.shape.features.0;
    peer.send(
        &[
            VhostUserRequest::SetOwner,
            VhostUserRequest::GetFeatures,
            VhostUserRequest::SetProtocolFeatures(STATUS),
            VhostUserRequest::SetFeatures(offer),
        ]
        .map(|request| request.emit(false))
        .concat(),
        &[],
    );
    setup.say_memory(&peer);
    (0..setup.rings()).for_each(|index| setup.say_ring(&peer, index));
    setup.enable(&peer);
    eventually("its wire is up", || testbed.engine.wire(&testbed.wire).unwrap().is_up());
    hold((setup, peer))
}

fn random_payloads(testbed: &Testbed) -> Held {
    let (setup, mut rng) = (HostileSetup::new(), TestRng(0xfeed));
    for round in 0..150 {
        // Half of them in the middle of a conversation.
        let peer = if round % 2 == 0 { Peer::connect(testbed) } else { setup.announce(testbed) };
        for _ in 0..6 {
            let (number, size) = PAYLOADS[rng.roll() as usize % PAYLOADS.len()];
            let payload: Vec<u8> = (0..size).map(|_| (rng.roll() >> 8) as u8 & rng.roll() as u8 & 7).collect();
            let files = [setup.file.as_fd(), setup.eventfds[0][0].as_fd()];
            peer.request(number, PLAIN, &payload, &files[..rng.roll() as usize % 3]);
        }
        drop(peer);
    }
    // What the end was left with.
    let peer = Peer::connect(testbed);
    peer.say(&VhostUserRequest::SetVringEnable(VringState { index: u32::MAX, num: 1 }), &[]);
    peer.is_parted();
    hold(setup)
}

fn header(number: u32, flags: u32, size: u32) -> Vec<u8> {
    [number, flags, size].map(u32::to_ne_bytes).concat()
}

/// The protocol feature of SET_STATUS.
const STATUS: u64 = 1 << 16;
