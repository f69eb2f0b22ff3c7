//! Descriptors that are not what they should be, or should not be there at all.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ferrule_dataplane::port::memif::message::{AddRegion, MemifMessage};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{pipe, write};

use crate::files::{full_pipe, lingering_socket, null, sealable};
use crate::held::{Held, Repeat, hold};
use crate::limit::FileLimit;
use crate::memif::control::{free, loses, stays};
use crate::memif::peer::{Peer, init};
use crate::memif::setup::HostileSetup;
use crate::testbed::{Case, Testbed, open_files};

pub const CASES: &[Case] = &[
    loses("a descriptor with INIT", "1 descriptors came with INIT", |testbed| with_init(testbed, 1)),
    loses("253 descriptors with INIT", "2 descriptors came with INIT", |testbed| with_init(testbed, 253)),
    free("253 descriptors with an empty packet", |testbed| {
        let (null, peer) = (null(), Peer::connect(testbed));
        peer.send(&[], &[null.as_fd(); 253]);
        peer.goodbye();
        hold(peer)
    }),
    free("253 descriptors with garbage, many times", |testbed| {
        let null = null();
        for _ in 0..50 {
            let peer = Peer::connect(testbed);
            for _ in 0..4 {
                peer.send(b"garbage", &[null.as_fd(); 253]);
            }
            peer.goodbye();
        }
        hold(())
    }),
    free("253 descriptors when hardly any are left", nearly_full_table),
    loses("253 descriptors with ADD_REGION", "2 descriptors came with memory region", |testbed| {
        let setup = HostileSetup::new();
        let files = [setup.file.as_fd(); 253];
        region_message(testbed, &setup, &files)
    }),
    loses("ADD_REGION without a descriptor", "missing memory region descriptor", |testbed| {
        region_message(testbed, &HostileSetup::new(), &[])
    }),
    loses("ADD_RING without a descriptor", "missing ring interrupt descriptor", |testbed| ring_with(testbed, &[])),
    loses("a descriptor with CONNECT", "1 descriptors came with CONNECT", |testbed| {
        let (null, setup) = (null(), HostileSetup::new());
        let peer = setup.announce(testbed);
        peer.say(&MemifMessage::Connect { name: String::new() }, &[null.as_fd()]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("253 descriptors with DISCONNECT", "the peer disconnected: bye", |testbed| {
        let (null, setup) = (null(), HostileSetup::new());
        let peer = setup.join(testbed);
        peer.say(&MemifMessage::Disconnect { code: 0, reason: "bye".to_owned() }, &[null.as_fd(); 253]);
        peer.goodbye();
        hold((setup, peer))
    }),
    loses("its own control socket as memory", "not in memory", |testbed| {
        let peer = Peer::init(testbed);
        peer.region(0, 4096, &peer.0);
        assert!(peer.goodbye().is_some());
        hold(peer)
    }),
    loses("a pipe as interrupt", "not an eventfd", |testbed| ring_with(testbed, &[full_pipe().1.as_fd()])),
    loses("a broken pipe as interrupt", "not an eventfd", |testbed| ring_with(testbed, &[pipe().unwrap().1.as_fd()])),
    loses("a socket as interrupt", "not an eventfd", |testbed| {
        ring_with(testbed, &[TcpListener::bind("127.0.0.1:0").unwrap().as_fd()])
    }),
    loses("an epoll as interrupt", "not an eventfd", |testbed| {
        ring_with(testbed, &[Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0.as_fd()])
    }),
    loses("a memory file as interrupt", "not an eventfd", |testbed| {
        ring_with(testbed, &[memfd_create(c"anon_inode:[eventfd]", MFdFlags::MFD_CLOEXEC).unwrap().as_fd()])
    }),
    stays("full eventfds that block their writers", full_eventfds),
    stays("one eventfd for all rings", one_eventfd),
    stays("eventfds as semaphores", |testbed| {
        notify_fds(testbed, |_| {
            EventFd::from_value_and_flags(7, EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC).unwrap()
        })
    }),
    stays("an eventfd that wakes two thousand epolls", crowded_eventfd),
    stays("a flood of eventfds", bell_flood),
    loses("a plain file as memory", "not in memory", |testbed| region_of(testbed, File::open("/etc/passwd").unwrap())),
    loses("/dev/zero as memory", "not in memory", |testbed| {
        region_of(testbed, File::options().read(true).write(true).open("/dev/zero").unwrap())
    }),
    loses("a directory as memory", "not in memory", |testbed| region_of(testbed, File::open("/").unwrap())),
    loses("a memory file opened read-only", "read-only", |testbed| {
        let file = sealable();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        region_of(testbed, File::open(path).unwrap())
    }),
    loses("a memory file sealed against writing", "sealed against writing", |testbed| {
        let file = sealable();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
        region_of(testbed, file)
    }),
    loses("a memory file sealed against future writing", "sealed against writing", |testbed| {
        let file = sealable();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).unwrap();
        region_of(testbed, file)
    }),
    free("sockets that linger when they are closed", lingering_sockets),
    free("sockets that linger, never read", unread_lingering_sockets),
];

fn with_init(testbed: &Testbed, count: usize) -> Held {
    let (null, peer) = (null(), Peer::connect(testbed));
    peer.say(&MemifMessage::Init(init()), &vec![null.as_fd(); count]);
    assert!(peer.goodbye().is_some());
    hold(peer)
}

fn region_message(testbed: &Testbed, setup: &HostileSetup, files: &[BorrowedFd<'_>]) -> Held {
    let peer = Peer::init(testbed);
    peer.say(&MemifMessage::AddRegion(AddRegion { index: 0, size: setup.len }), files);
    assert!(peer.goodbye().is_some());
    hold(peer)
}

/// Announces a ring with these as its interrupt.
fn ring_with(testbed: &Testbed, files: &[BorrowedFd<'_>]) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(testbed);
    peer.region(0, setup.len, &setup.file);
    peer.say(&MemifMessage::AddRing(setup.ring(0)), files);
    assert!(peer.goodbye().is_some());
    hold((setup, peer))
}

/// Announces a file as memory.
fn region_of(testbed: &Testbed, file: impl Into<OwnedFd>) -> Held {
    let peer = Peer::init(testbed);
    peer.region(0, 4096, file.into());
    assert!(peer.goodbye().is_some());
    hold(peer)
}

/// Connects with eventfds of the caller's making, wants to be rung, and reads nothing.
fn notify_fds(testbed: &Testbed, make: impl Fn(usize) -> EventFd) -> Held {
    let mut setup = HostileSetup::new();
    setup.eventfds = (0..2).map(|number| make(number).into()).collect();
    let peer = setup.join(testbed);
    crate::common::eventually("frames come to it", || setup.m2s().tail.load() != 0);
    hold((setup, peer))
}

fn full_eventfds(testbed: &Testbed) -> Held {
    notify_fds(testbed, |_| {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        eventfd
    })
}

fn one_eventfd(testbed: &Testbed) -> Held {
    let eventfd = OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
    let mut setup = HostileSetup::sized(4, 8);
    setup.eventfds = (0..8).map(|_| eventfd.try_clone().unwrap()).collect();
    let peer = setup.join(testbed);
    (0..10).for_each(|_| setup.s2m().send(setup.buffer(0, 0), 60));
    crate::common::eventually("its frames are taken", || setup.s2m().tail.load() == 10);
    hold((setup, peer))
}

fn crowded_eventfd(testbed: &Testbed) -> Held {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    let crowd: Vec<_> = (0..2000).map(|_| Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()).collect();
    let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    for epoll in &crowd {
        epoll.add(&eventfd, EpollEvent::new(edge, 0)).unwrap();
    }
    let mut setup = HostileSetup::new();
    setup.eventfds = (0..2).map(|_| eventfd.as_fd().try_clone_to_owned().unwrap()).collect();
    let peer = setup.join(testbed);
    let reader = reader_of(&setup);
    hold((reader, setup, peer, crowd))
}

/// Gives every filled slot back, so that frames, and eventfds, keep coming.
pub fn reader_of(setup: &HostileSetup) -> Repeat {
    let ring = setup.m2s();
    let size = ring.size;
    Repeat::start(move || {
        ring.head.store(ring.tail.load().wrapping_add(size));
        std::thread::yield_now();
    })
}

fn bell_flood(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let eventfd = setup.eventfds[0].try_clone().unwrap();
    fcntl(&eventfd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let flood = Repeat::start(move || {
        let _ = write(&eventfd, &1u64.to_ne_bytes());
    });
    hold((flood, setup, peer))
}

fn nearly_full_table(testbed: &Testbed) -> Held {
    let null = null();
    let peers: Vec<_> = (0..4).map(|_| Peer::connect(testbed)).collect();
    crate::common::eventually("all were greeted", || peers.iter().all(|peer| readable(&peer.0)));
    let open = open_files();
    let limit = FileLimit::lower_to(open as u64 + 100);
    for peer in &peers {
        peer.send(b"garbage", &[null.as_fd(); 253]);
        peer.goodbye();
    }
    drop(limit);
    hold(peers)
}

fn readable(socket: &OwnedFd) -> bool {
    let mut list = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut list, nix::poll::PollTimeout::ZERO) == Ok(1)
}

fn lingering_sockets(testbed: &Testbed) -> Held {
    let fars: Vec<_> = (0..3)
        .map(|_| {
            let (near, far) = lingering_socket();
            Peer::connect(testbed).say(&MemifMessage::Init(init()), &[near.as_fd()]);
            far
        })
        .collect();
    hold(fars)
}

fn unread_lingering_sockets(testbed: &Testbed) -> Held {
    let fars: Vec<_> = (0..3)
        .map(|_| {
            let (near, far) = lingering_socket();
            let peer = Peer::connect(testbed);
            for _ in 0..30 {
                peer.send(b"garbage", &[near.as_fd()]);
            }
            far
        })
        .collect();
    hold(fars)
}
