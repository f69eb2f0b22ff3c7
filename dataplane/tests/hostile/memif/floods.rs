//! Too much of everything.

use std::collections::VecDeque;

use ferrule_dataplane::port::memif::message::MemifMessage;

use crate::common::eventually;
use crate::held::{Held, Repeat, hold};
use crate::limit::FileLimit;
use crate::log;
use crate::memif::control::{free, loses};
use crate::memif::peer::{Peer, init};
use crate::memif::setup::HostileSetup;
use crate::testbed::{Case, Testbed, open_files};

pub const CASES: &[Case] = &[
    free("thousands of silent connections", |testbed| flood(testbed, |_, _| {})),
    free("thousands of connections after INIT", |testbed| flood(testbed, |peer, _| asks(peer))),
    free("thousands of connections after ADD_REGION", |testbed| {
        flood(testbed, |peer, setup| {
            asks(peer);
            peer.region(0, setup.len, &setup.file);
        })
    }),
    free("thousands of connections, half of them silent", |testbed| {
        let mut number = 0u32;
        flood(testbed, move |peer, _| {
            number += 1;
            if number.is_multiple_of(2) {
                asks(peer);
            }
        })
    }),
    free("sixty-four clients that stop after INIT", |testbed| {
        let peers: Vec<_> = (0..64).map(|_| Peer::init(testbed)).collect();
        hold(peers)
    }),
    loses("a thousand visits, and few lines in the log", "the peer closed its socket", many_visits),
    free("no descriptor left to accept with", no_descriptors_left),
];

fn asks(peer: &Peer) {
    peer.say(&MemifMessage::Init(init()), &[]);
}

/// Connects without end; the last thousand connections are kept open on this side. At least 5000 have
/// been made when this returns, and more are being made meanwhile.
fn flood(testbed: &Testbed, mut start: impl FnMut(&Peer, &HostileSetup) + Send + 'static) -> Held {
    let said = log::lines();
    let setup = HostileSetup::new();
    let mut open = VecDeque::new();
    let (count, counted) = std::sync::mpsc::channel();
    let place = testbed.socket.clone();
    let repeat = Repeat::start(move || {
        let peer = Peer::connect_to(&place);
        start(&peer, &setup);
        open.push_back(peer);
        if open.len() > 1000 {
            open.pop_front();
        }
        let _ = count.send(());
    });
    assert_eq!(counted.iter().take(5000).count(), 5000);
    assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
    hold(repeat)
}

fn many_visits(testbed: &Testbed) -> Held {
    let said = log::lines();
    let setup = HostileSetup::new();
    for _ in 0..1000 {
        drop(setup.join(testbed));
        eventually("the interface is free again", || testbed.shows("the peer closed its socket"));
    }
    assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
    hold(setup)
}

fn no_descriptors_left(testbed: &Testbed) -> Held {
    let said = log::lines();
    let limit = FileLimit::lower_to(open_files() as u64 + 8);
    let sockets: Vec<_> = std::iter::from_fn(|| Peer::try_connect(&testbed.socket)).take(8).collect();
    testbed.traffic.must_move();
    testbed.traffic.must_move();
    drop((sockets, limit));
    assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
    hold(())
}
