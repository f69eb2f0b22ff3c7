//! Lies of a frontend that listens, towards an end of ours that connects.

use std::os::fd::AsFd;

use ferrule_dataplane::port::vhost_user::channel::VhostUserChannel;
use ferrule_dataplane::port::vhost_user::message::{VhostUserRequest, VringState};
use ferrule_ffi::unix::{Kind, UnixListener};
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::ftruncate;

use crate::common::eventually;
use crate::files::null;
use crate::held::{Held, hold};
use crate::raw;
use crate::testbed::{Case, Expect, Testbed, Victim};
use crate::vhost::peer::{PLAIN, Peer, message};
use crate::vhost::rounds::{reader_of, sender_of};
use crate::vhost::setup::{HEADER, HostileSetup, Shape, packed, split};

pub const CASES: &[Case] = &[
    free("listener: accepts nobody, and its queue is full", |testbed| {
        let listener = UnixListener::bind(Kind::Stream, &raw::unix_address(&testbed.socket), 1).unwrap();
        let crowd: Vec<_> = std::iter::from_fn(|| Peer::try_connect(&testbed.socket)).take(8).collect();
        testbed.traffic.must_move();
        hold((listener, crowd))
    }),
    free("listener: says nothing", |testbed| {
        let host = Host::open(testbed);
        let peer = host.welcome();
        hold((host, peer))
    }),
    loses("listener: closes every connection at once", "the peer closed its socket", |testbed| {
        let host = Host::open(testbed);
        (0..3).for_each(|_| drop(host.welcome()));
        hold(host)
    }),
    loses("listener: says nonsense every time", "with flags 0x0: only version 1", |testbed| {
        let host = Host::open(testbed);
        for _ in 0..3 {
            let peer = host.welcome();
            peer.send(&message(1, 0, &[]), &[null().as_fd(); 253][..20]);
            peer.is_parted();
        }
        hold(host)
    }),
    loses("listener: a payload of 2^32 - 1 bytes", "none has more than 4096", |testbed| {
        says(testbed, &[2u32, 1, u32::MAX].map(u32::to_ne_bytes).concat())
    }),
    loses("listener: answers what nobody has asked", "a reply came where a request was expected", |testbed| {
        says(testbed, &message(1, 5, &[0; 8]))
    }),
    loses("listener: an unknown request", "which this backend has no use for", |testbed| {
        says(testbed, &message(77, PLAIN, &[]))
    }),
    loses("listener: never reads", "does not read its control socket", |testbed| {
        let host = Host::open(testbed);
        let peer = host.welcome();
        while peer.send(&message(1, PLAIN, &[]), &[]) {}
        hold((host, peer))
    }),
    loses("listener: more queues than were offered", "there are 2", |testbed| {
        let host = Host::open(testbed);
        let peer = host.welcome();
        peer.say(&VhostUserRequest::SetVringNum(VringState { index: 2, num: 256 }), &[]);
        peer.is_parted();
        hold((host, peer))
    }),
    loses("listener: a frame outside of memory, split", "not all in its memory", |testbed| {
        joined(testbed, Shape::split(), |setup| setup.split(1).publish(&[split(1 << 60, HEADER + 60, 0, 0)]))
    }),
    loses("listener: a frame outside of memory, packed", "not all in its memory", |testbed| {
        joined(testbed, Shape::packed(), |setup| setup.packed(1).publish(&[packed(1 << 60, HEADER + 60, 0, 0)]))
    }),
    loses("listener: an index that jumps", "its ring index moved", |testbed| {
        joined(testbed, Shape::split(), |setup| setup.split(1).avail_index.store(999))
    }),
    loses("listener: memory truncated while frames cross", "truncated", |testbed| {
        let (host, setup) = (Host::open(testbed), HostileSetup::new());
        let peer = host.welcome();
        setup.announce_to(&peer);
        setup.enable(&peer);
        let busy = (sender_of(&setup), reader_of(&setup));
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        ftruncate(&setup.file, 0).unwrap();
        peer.is_parted();
        hold((busy, host, setup, peer))
    }),
    stays("listener: an honest conversation, and nobody reads", |testbed| {
        let (host, setup) = (Host::open(testbed), HostileSetup::new());
        let peer = host.welcome();
        setup.announce_to(&peer);
        setup.enable(&peer);
        eventually("its ring is full", || setup.split(0).used_index.load() == 256);
        hold((host, setup, peer))
    }),
];

const fn free(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::VhostClient, expect: Expect::Free, attack }
}

const fn loses(name: &'static str, text: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::VhostClient, expect: Expect::Loses(text), attack }
}

const fn stays(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::VhostClient, expect: Expect::Stays, attack }
}

/// A listening socket in the place where the attacked end expects an honest frontend.
struct Host(UnixListener);

impl Host {
    fn open(testbed: &Testbed) -> Self {
        Self(UnixListener::bind(Kind::Stream, &raw::unix_address(&testbed.socket), 16).unwrap())
    }

    /// The backend that comes next, or comes back.
    fn welcome(&self) -> Peer {
        let ready = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], 5000u16);
        assert_eq!(ready, Ok(1), "nobody came");
        VhostUserChannel::from(self.0.accept().unwrap()).into()
    }
}

/// Says something, and waits until the backend has gone.
fn says(testbed: &Testbed, bytes: &[u8]) -> Held {
    let host = Host::open(testbed);
    let peer = host.welcome();
    peer.send(bytes, &[]);
    peer.is_parted();
    hold((host, peer))
}

/// Leads the conversation to its end, does something, and waits until the backend has gone.
fn joined(testbed: &Testbed, shape: Shape, lie: fn(&HostileSetup)) -> Held {
    let (host, setup) = (Host::open(testbed), HostileSetup::of(shape));
    let peer = host.welcome();
    setup.announce_to(&peer);
    setup.enable(&peer);
    lie(&setup);
    peer.is_parted();
    hold((host, setup, peer))
}
