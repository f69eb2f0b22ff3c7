//! Good messages at the wrong time, about things that are not there, or without end.

use std::os::fd::AsFd;

use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::message::{VhostUserRequest, VringAddress, VringFile, VringState};

use crate::common::eventually;
use crate::held::{Held, Repeat, hold};
use crate::testbed::{Case, PAIRS, Testbed};
use crate::vhost::peer::{PLAIN, Peer};
use crate::vhost::setup::{HostileSetup, Shape, USER};
use crate::vhost::verdict::{free, loses, stays};

pub const CASES: &[Case] = &[
    loses("features that were not offered", "were chosen and not offered", |testbed| {
        says(testbed, &VhostUserRequest::SetFeatures(u64::MAX))
    }),
    loses("protocol features that were not offered", "were chosen and not offered", |testbed| {
        says(testbed, &VhostUserRequest::SetProtocolFeatures(1 << 63))
    }),
    loses("other features while frames cross", "change while rings are started", |testbed| {
        running(testbed, |setup| VhostUserRequest::SetFeatures((setup.shape.features | Features::RING_PACKED).0))
    }),
    loses("another header while frames cross", "change while rings are started", |testbed| {
        running(testbed, |_| VhostUserRequest::SetFeatures(Features::PROTOCOL_FEATURES.0))
    }),
    loses("another length while frames cross", "it is started", |testbed| {
        running(testbed, |_| VhostUserRequest::SetVringNum(VringState { index: 1, num: 32_768 }))
    }),
    loses("another position while frames cross", "it is started", |testbed| {
        running(testbed, |_| VhostUserRequest::SetVringBase(VringState { index: 1, num: 77 }))
    }),
    stays("every request before any other", requests_too_early),
    stays("requests of features that were not chosen", requests_not_chosen),
    // CVE-2020-10723: an index was cut to 16 bits before it was checked.
    stays("ring indexes out of range in every request", indexes_out_of_range),
    loses("a ring of no descriptors", "a ring of 0 descriptors", |testbed| sized(testbed, 0)),
    loses("a ring of 32769 descriptors", "a ring of 32769 descriptors", |testbed| sized(testbed, 32_769)),
    loses("a ring of 2^32 - 1 descriptors", "a ring of 4294967295 descriptors", |testbed| sized(testbed, u32::MAX)),
    loses("a ring of 2^16 descriptors", "a ring of 65536 descriptors", |testbed| sized(testbed, 65_536)),
    loses("a split ring of 255 descriptors", "a ring of 255 descriptors", |testbed| sized(testbed, 255)),
    loses("a ring longer than its memory", "available ring at user address", |testbed| {
        placed(testbed, |setup, at| VringAddress { avail: at.desc + setup.row().size - 256, ..at })
    }),
    loses("a ring at address 0", "descriptors at user address 0x0 is", |testbed| {
        placed(testbed, |_, at| VringAddress { desc: 0, ..at })
    }),
    loses("a ring at address 2^64 - 16", "descriptors at user address 0xfffffffffffffff0", |testbed| {
        placed(testbed, |_, at| VringAddress { desc: u64::MAX - 15, ..at })
    }),
    loses("a ring at its guest address", "used ring at user address", |testbed| {
        placed(testbed, |_, at| VringAddress { used: at.log_guest, ..at })
    }),
    loses("a ring a byte off", "is misaligned", |testbed| {
        placed(testbed, |_, at| VringAddress { used: at.used + 1, ..at })
    }),
    loses("a ring that begins in its memory and ends behind", "used ring at user address", |testbed| {
        placed(testbed, |setup, at| VringAddress { used: USER + setup.row().size - 2048, ..at })
    }),
    stays("both rings at the same place", |testbed| {
        let setup = HostileSetup::new();
        overlapping(testbed, &setup, |setup, index| VringAddress { index, ..setup.address(0) })
    }),
    stays("all parts of a ring at the same place", |testbed| {
        let setup = HostileSetup::new();
        overlapping(testbed, &setup, |setup, index| {
            let at = setup.address(index);
            VringAddress { used: at.desc, avail: at.desc, ..at }
        })
    }),
    loses("a packed ring that begins behind its end", "is outside of its 256 descriptors", |testbed| {
        based(testbed, Shape::packed(), 0x8100_8100)
    }),
    loses("a packed ring that begins at 32767", "is outside of its 256 descriptors", |testbed| {
        based(testbed, Shape::packed(), 0x7fff)
    }),
    stays("a split ring that begins at 2^32 - 1", |testbed| based(testbed, Shape::split(), u32::MAX)),
    loses("an MTU of 2^64 - 1", "an MTU of 18446744073709551615", |testbed| {
        chosen(testbed, &VhostUserRequest::NetSetMtu(u64::MAX))
    }),
    loses("an MTU of 0", "an MTU of 0 bytes", |testbed| chosen(testbed, &VhostUserRequest::NetSetMtu(0))),
    loses("a status of 64 bits", "device status 0xffffffffffffffff", |testbed| {
        chosen(testbed, &VhostUserRequest::SetStatus(u64::MAX))
    }),
    loses("a configuration to be written", "read-only", |testbed| {
        let peer = HostileSetup::new().greet(testbed);
        peer.request(25, PLAIN, &[[0; 4], [4, 0, 0, 0], [0; 4], [0xff; 4]].concat(), &[]);
        peer.is_parted();
        hold(peer)
    }),
    stays("GET_VRING_BASE of rings that never were", |testbed| {
        let peer = Peer::connect(testbed);
        for index in 0..2 * u32::from(PAIRS) {
            let answer = peer.ask(&VhostUserRequest::GetVringBase(VringState { index, num: u32::MAX }), &[]);
            assert_eq!(answer.payload, [index.to_ne_bytes(), [0; 4]].concat());
        }
        hold(peer)
    }),
    stays("GET_VRING_BASE without end while frames cross", |testbed| {
        storm(testbed, |peer, setup, round| {
            let index = round % 2;
            peer.ask(&VhostUserRequest::GetVringBase(VringState { index, num: 0 }), &[]);
            setup.start(peer, index);
        })
    }),
    stays("rings switched on and off without end", |testbed| {
        storm(testbed, |peer, _, round| {
            let num = u32::from(round % 4 > 1);
            peer.say(&VhostUserRequest::SetVringEnable(VringState { index: round % 2, num }), &[]);
        })
    }),
    stays("rings placed anew without end", |testbed| {
        storm(testbed, |peer, setup, round| peer.say(&VhostUserRequest::SetVringAddr(setup.address(round % 2)), &[]))
    }),
    stays("memory announced anew without end", |testbed| storm(testbed, |peer, setup, _| setup.say_memory(peer))),
    stays("RESET_OWNER without end", |testbed| {
        storm(testbed, |peer, _, _| peer.say(&VhostUserRequest::ResetOwner, &[]))
    }),
    stays("resets and starts without end", |testbed| {
        storm(testbed, |peer, setup, _| {
            peer.say(&VhostUserRequest::ResetDevice, &[]);
            peer.say(&VhostUserRequest::SetFeatures(setup.shape.features.0), &[]);
            (0..2).for_each(|index| setup.say_ring(peer, index));
            setup.enable(peer);
        })
    }),
    stays("announcements without end", |testbed| {
        storm(testbed, |peer, _, round| peer.say(&VhostUserRequest::SendRarp([2, 0, 0, 0, 0, round as u8]), &[]))
    }),
    stays("announcements of addresses that are none", |testbed| {
        let (setup, peer) = (HostileSetup::new(), Peer::connect(testbed));
        setup.negotiate(&peer);
        for mac in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 0]] {
            assert!(peer.demand(&VhostUserRequest::SendRarp(mac), &[]));
        }
        hold(peer)
    }),
    free("every request five thousand times", floods),
];

/// Says one thing, and has lost its place by it.
fn says(testbed: &Testbed, request: &VhostUserRequest) -> Held {
    let peer = Peer::connect(testbed);
    peer.say(request, &[]);
    peer.is_parted();
    hold(peer)
}

/// The same once all features were chosen.
fn chosen(testbed: &Testbed, request: &VhostUserRequest) -> Held {
    let peer = HostileSetup::new().greet(testbed);
    peer.say(request, &[]);
    peer.is_parted();
    hold(peer)
}

/// The same while frames cross.
fn running(testbed: &Testbed, request: fn(&HostileSetup) -> VhostUserRequest) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    peer.say(&request(&setup), &[]);
    peer.is_parted();
    hold((setup, peer))
}

fn sized(testbed: &Testbed, num: u32) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.greet(testbed);
    setup.say_memory(&peer);
    for index in 0..2 {
        setup.say_place(&peer, index);
        peer.say(&VhostUserRequest::SetVringNum(VringState { index, num }), &[]);
        setup.start(&peer, index);
    }
    setup.enable(&peer);
    peer.is_parted();
    hold((setup, peer))
}

/// A ring at another place than is its.
fn placed(testbed: &Testbed, lie: fn(&HostileSetup, VringAddress) -> VringAddress) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    peer.say(&VhostUserRequest::SetVringAddr(lie(&setup, setup.address(1))), &[]);
    peer.is_parted();
    hold((setup, peer))
}

fn overlapping(testbed: &Testbed, setup: &HostileSetup, place: fn(&HostileSetup, u32) -> VringAddress) -> Held {
    let peer = setup.announce(testbed);
    (0..2).for_each(|index| peer.say(&VhostUserRequest::SetVringAddr(place(setup, index)), &[]));
    setup.enable(&peer);
    // What comes of it, if anything, is a fault of its rings.
    peer.send(&VhostUserRequest::GetFeatures.emit(false), &[]);
    hold(peer)
}

fn based(testbed: &Testbed, shape: Shape, num: u32) -> Held {
    let setup = HostileSetup::of(shape);
    let peer = setup.greet(testbed);
    setup.say_memory(&peer);
    for index in 0..2 {
        setup.say_place(&peer, index);
        peer.say(&VhostUserRequest::SetVringBase(VringState { index, num }), &[]);
        setup.start(&peer, index);
    }
    setup.enable(&peer);
    peer.is_heard();
    hold((setup, peer))
}

/// Requests that make no sense yet; each is done or refused, and the conversation goes on.
fn requests_too_early(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::connect(testbed);
    let state = VringState { index: 1, num: 1 };
    let file = VringFile { index: 1, has_file: true };
    for request in [
        VhostUserRequest::SetVringEnable(state),
        VhostUserRequest::SetVringNum(VringState { index: 1, num: 256 }),
        VhostUserRequest::SetVringAddr(setup.address(1)),
        VhostUserRequest::SetVringBase(state),
        VhostUserRequest::ResetOwner,
        VhostUserRequest::SetVringErr(VringFile { index: 1, has_file: false }),
    ] {
        assert!(peer.demand(&request, &[]), "{}", request.word());
    }
    assert!(peer.demand(&VhostUserRequest::SetVringKick(file), &[setup.eventfds[1][0].as_fd()]));
    assert!(peer.demand(&VhostUserRequest::SetVringCall(file), &[setup.eventfds[1][1].as_fd()]));
    assert!(!peer.demand(&VhostUserRequest::SetMemTable(vec![]), &[]));
    assert!(peer.is_heard());
    hold((setup, peer))
}

fn requests_not_chosen(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::connect(testbed);
    peer.say(&VhostUserRequest::SetProtocolFeatures(0), &[]);
    assert!(!peer.demand(&VhostUserRequest::NetSetMtu(1500), &[]));
    assert!(!peer.demand(&VhostUserRequest::SendRarp([2; 6]), &[]));
    assert!(!peer.demand(&VhostUserRequest::ResetDevice, &[]));
    assert!(!peer.demand(&VhostUserRequest::SetStatus(15), &[]));
    assert!(!peer.demand(&VhostUserRequest::AddMemReg(setup.row()), &[setup.file.as_fd()]));
    assert!(!peer.demand(&VhostUserRequest::RemMemReg(setup.row()), &[]));
    hold((setup, peer))
}

fn indexes_out_of_range(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let rings = 2 * u32::from(PAIRS);
    for index in [rings, 255, 256, 1 << 16, (1 << 16) + 1, 1 << 31, u32::MAX] {
        let state = VringState { index, num: 256 };
        for request in [
            VhostUserRequest::SetVringNum(state),
            VhostUserRequest::SetVringAddr(VringAddress { index, ..setup.address(0) }),
            VhostUserRequest::SetVringBase(state),
            VhostUserRequest::GetVringBase(state),
            VhostUserRequest::SetVringEnable(state),
        ] {
            assert!(!peer.demand(&request, &[]), "{} of {index}", request.word());
        }
    }
    for index in [rings as u8, 255] {
        let file = VringFile { index, has_file: true };
        for request in [
            VhostUserRequest::SetVringKick(file),
            VhostUserRequest::SetVringCall(file),
            VhostUserRequest::SetVringErr(file),
        ] {
            assert!(!peer.demand(&request, &[setup.eventfds[0][0].as_fd()]), "{} of {index}", request.word());
        }
    }
    hold((setup, peer))
}

/// Does something again and again while frames cross, and while its outcome is checked.
fn storm(testbed: &Testbed, blow: fn(&Peer, &HostileSetup, u32)) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let mut round = 0;
    // Asked now and then whether it was heard, so that it stays with what it has said.
    let mut strike = move || {
        blow(&peer, &setup, round);
        round += 1;
        assert!(!round.is_multiple_of(16) || peer.is_heard());
    };
    (0..200).for_each(|_| strike());
    hold(Repeat::start(strike))
}

/// Thousands of each request, one connection for each, answered or not.
fn floods(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let (state, address) = (VringState { index: 1, num: 1 }, setup.address(1));
    for request in [
        VhostUserRequest::SetOwner,
        VhostUserRequest::SetFeatures(setup.shape.features.0),
        VhostUserRequest::SetVringNum(VringState { index: 1, num: 256 }),
        VhostUserRequest::SetVringAddr(address),
        VhostUserRequest::SetVringBase(state),
        VhostUserRequest::SetVringEnable(state),
        VhostUserRequest::ResetOwner,
        VhostUserRequest::SetStatus(0),
        VhostUserRequest::NetSetMtu(1500),
        VhostUserRequest::SendRarp([2; 6]),
    ] {
        let peer = setup.greet(testbed);
        let bytes = request.emit(false).repeat(100);
        for _ in 0..50 {
            assert!(peer.send(&bytes, &[]), "{}", request.word());
        }
        eventually("it was all heard", || peer.is_heard());
    }
    hold(setup)
}
