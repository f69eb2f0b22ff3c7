//! Too many frontends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};

use ferrule_dataplane::port::vhost_user::message::Request;

use crate::arena::{Arena, Case, open_files};
use crate::common::eventually;
use crate::held::{Hammer, Held, hold};
use crate::limit::FileLimit;
use crate::log;
use crate::vhost::peer::{PLAIN, Peer, message};
use crate::vhost::setup::HostileSetup;
use crate::vhost::verdict::{free, loses, stays};

pub const CASES: &[Case] = &[
    free("thousands of silent frontends", |arena| flood(arena, |_| true)),
    free("thousands of frontends that begin a message", |arena| {
        flood(arena, |peer| peer.send(&message(5, PLAIN, &[0; 40])[..20], &[]))
    }),
    free("thousands of frontends that talk nonsense", |arena| flood(arena, |peer| peer.send(&message(1, 0, &[]), &[]))),
    free("thousands of frontends that say one thing and then nonsense", |arena| {
        flood(arena, |peer| {
            peer.say(&Request::GetFeatures, &[]);
            peer.send(&message(1, 0, &[]), &[])
        })
    }),
    stays("a thousand more while one is connected, and few lines in the log", |arena| {
        let said = log::lines();
        let setup = HostileSetup::new();
        let peer = setup.join(arena);
        for _ in 0..1000 {
            let late = Peer::insist(&arena.socket);
            late.say(&Request::GetFeatures, &[]);
            late.is_parted();
        }
        assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
        hold((setup, peer))
    }),
    loses("hundreds of visits, and few lines in the log", "the peer closed its socket", |arena| {
        let said = log::lines();
        let setup = HostileSetup::new();
        for _ in 0..300 {
            drop(setup.join(arena));
            eventually("the end is free again", || arena.shows("the peer closed its socket"));
        }
        assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
        hold(setup)
    }),
    free("no descriptor left to accept with", |arena| {
        let said = log::lines();
        let limit = FileLimit::lower_to(open_files() as u64 + 8);
        let peers: Vec<_> = std::iter::from_fn(|| Peer::try_connect(&arena.socket)).take(8).collect();
        arena.traffic.must_move();
        arena.traffic.must_move();
        drop((peers, limit));
        assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
        hold(())
    }),
];

/// Connects without end, three thousand times at least, and goes on while an honest frontend wants to get in. The last
/// hundred connections stay open.
fn flood(arena: &Arena, start: fn(&Peer) -> bool) -> Held {
    let said = log::lines();
    // The attacker's own, and the case's when it is over.
    let lately = Arc::new(Mutex::new(VecDeque::new()));
    let open = Arc::clone(&lately);
    let (count, counted) = mpsc::channel();
    let place = arena.socket.clone();
    let hammer = Hammer::swing(move || {
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
    arena.traffic.must_move();
    assert!(log::lines() - said < 100, "{} lines in the log", log::lines() - said);
    hold((hammer, lately))
}
