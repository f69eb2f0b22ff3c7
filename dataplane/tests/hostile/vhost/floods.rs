//! Too many frontends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};

use ferrule_dataplane::port::vhost_user::message::VhostUserRequest;

use crate::common::eventually;
use crate::held::{Held, Repeat, hold};
use crate::limit::FileLimit;
use crate::log;
use crate::testbed::{Case, Testbed, open_files};
use crate::vhost::peer::{PLAIN, Peer, message};
use crate::vhost::setup::HostileSetup;
use crate::vhost::verdict::{free, loses, stays};

pub const CASES: &[Case] = &[
    free("thousands of silent frontends", |testbed| flood(testbed, |_| true)),
    free("thousands of frontends that begin a message", |testbed| {
        flood(testbed, |peer| peer.send(&message(5, PLAIN, &[0; 40])[..20], &[]))
    }),
    free("thousands of frontends that talk nonsense", |testbed| {
        flood(testbed, |peer| peer.send(&message(1, 0, &[]), &[]))
    }),
    free("thousands of frontends that say one thing and then nonsense", |testbed| {
        flood(testbed, |peer| {
            peer.say(&VhostUserRequest::GetFeatures, &[]);
            peer.send(&message(1, 0, &[]), &[])
        })
    }),
    stays("a thousand more while one is connected, and few lines in the log", |testbed| {
        let said = log::lines();
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        for _ in 0..1000 {
            let late = Peer::insist(&testbed.socket);
            late.say(&VhostUserRequest::GetFeatures, &[]);
            late.is_parted();
        }
        assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
        hold((setup, peer))
    }),
    loses("hundreds of visits, and few lines in the log", "the peer closed its socket", |testbed| {
        let said = log::lines();
        let setup = HostileSetup::new();
        for _ in 0..300 {
            drop(setup.join(testbed));
            eventually("the end is free again", || testbed.shows("the peer closed its socket"));
        }
        assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
        hold(setup)
    }),
    free("no descriptor left to accept with", |testbed| {
        let said = log::lines();
        let limit = FileLimit::lower_to(open_files() as u64 + 8);
        let peers: Vec<_> = std::iter::from_fn(|| Peer::try_connect(&testbed.socket)).take(8).collect();
        testbed.traffic.must_move();
        testbed.traffic.must_move();
        drop((peers, limit));
        assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
        hold(())
    }),
];

/// Connects without end, three thousand times at least, and goes on while an honest frontend wants to get in. The last
/// hundred connections stay open.
fn flood(testbed: &Testbed, start: fn(&Peer) -> bool) -> Held {
    let said = log::lines();
    // The attacker's own, and the case's when it is over.
    let lately = Arc::new(Mutex::new(VecDeque::new()));
    let open = Arc::clone(&lately);
    let (count, counted) = mpsc::channel();
    let place = testbed.socket.clone();
    let repeat = Repeat::start(move || {
        let peer = Peer::insist(&place);
        let _ = start(&peer);
        let mut open = open.lock().unwrap();
        open.push_back(peer);
        if open.len() > 100 {
            open.pop_front();
        }
        let _ = count.send(());
    });
    assert_eq!(counted.iter().take(3000).count(), 3000);
    testbed.traffic.must_move();
    assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
    hold((repeat, lately))
}
