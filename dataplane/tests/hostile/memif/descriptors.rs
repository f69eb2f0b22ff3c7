//! Descriptors that are not what they should be, or should not be there at all.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ferrule_dataplane::port::memif::message::{AddRegion, Message};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{pipe, write};

use crate::arena::{Arena, Case, open_files};
use crate::files::{full_pipe, lingering_socket, null, sealable};
use crate::held::{Hammer, Held, hold};
use crate::limit::FileLimit;
use crate::memif::control::{free, loses, stays};
use crate::memif::peer::{Peer, init};
use crate::memif::setup::HostileSetup;

pub const CASES: &[Case] = &[
    loses("a descriptor with INIT", "1 descriptors came with INIT", |arena| with_init(arena, 1)),
    loses("253 descriptors with INIT", "2 descriptors came with INIT", |arena| with_init(arena, 253)),
    free("253 descriptors with an empty packet", |arena| {
        let (null, peer) = (null(), Peer::connect(arena));
        peer.send(&[], &[null.as_fd(); 253]);
        peer.goodbye();
        hold(peer)
    }),
    free("253 descriptors with garbage, many times", |arena| {
        let null = null();
        for _ in 0..50 {
            let peer = Peer::connect(arena);
            for _ in 0..4 {
                peer.send(b"garbage", &[null.as_fd(); 253]);
            }
            peer.goodbye();
        }
        hold(())
    }),
    free("253 descriptors when hardly any are left", nearly_full_table),
    loses("253 descriptors with ADD_REGION", "2 descriptors came with memory region", |arena| {
        let setup = HostileSetup::new();
        let files = [setup.file.as_fd(); 253];
        region_message(arena, &setup, &files)
    }),
    loses("ADD_REGION without a descriptor", "missing memory region descriptor", |arena| {
        region_message(arena, &HostileSetup::new(), &[])
    }),
    loses("ADD_RING without a descriptor", "missing ring interrupt descriptor", |arena| ring_with(arena, &[])),
    loses("a descriptor with CONNECT", "1 descriptors came with CONNECT", |arena| {
        let (null, setup) = (null(), HostileSetup::new());
        let peer = setup.announce(arena);
        peer.say(&Message::Connect { name: String::new() }, &[null.as_fd()]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("253 descriptors with DISCONNECT", "the peer disconnected: bye", |arena| {
        let (null, setup) = (null(), HostileSetup::new());
        let peer = setup.join(arena);
        peer.say(&Message::Disconnect { code: 0, reason: "bye".to_owned() }, &[null.as_fd(); 253]);
        peer.goodbye();
        hold((setup, peer))
    }),
    loses("its own control socket as memory", "not in memory", |arena| {
        let peer = Peer::init(arena);
        peer.region(0, 4096, &peer.0);
        assert!(peer.goodbye().is_some());
        hold(peer)
    }),
    loses("a pipe as interrupt", "not an eventfd", |arena| ring_with(arena, &[full_pipe().1.as_fd()])),
    loses("a broken pipe as interrupt", "not an eventfd", |arena| ring_with(arena, &[pipe().unwrap().1.as_fd()])),
    loses("a socket as interrupt", "not an eventfd", |arena| {
        ring_with(arena, &[TcpListener::bind("127.0.0.1:0").unwrap().as_fd()])
    }),
    loses("an epoll as interrupt", "not an eventfd", |arena| {
        ring_with(arena, &[Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0.as_fd()])
    }),
    loses("a memory file as interrupt", "not an eventfd", |arena| {
        ring_with(arena, &[memfd_create(c"anon_inode:[eventfd]", MFdFlags::MFD_CLOEXEC).unwrap().as_fd()])
    }),
    stays("full eventfds that block their writers", full_eventfds),
    stays("one eventfd for all rings", one_eventfd),
    stays("eventfds as semaphores", |arena| {
        notify_fds(arena, |_| {
            EventFd::from_value_and_flags(7, EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC).unwrap()
        })
    }),
    stays("an eventfd that wakes two thousand epolls", crowded_eventfd),
    stays("a flood of eventfds", bell_flood),
    loses("a plain file as memory", "not in memory", |arena| region_of(arena, File::open("/etc/passwd").unwrap())),
    loses("/dev/zero as memory", "not in memory", |arena| {
        region_of(arena, File::options().read(true).write(true).open("/dev/zero").unwrap())
    }),
    loses("a directory as memory", "not in memory", |arena| region_of(arena, File::open("/").unwrap())),
    loses("a memory file opened read-only", "read-only", |arena| {
        let file = sealable();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        region_of(arena, File::open(path).unwrap())
    }),
    loses("a memory file sealed against writing", "sealed against writing", |arena| {
        let file = sealable();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
        region_of(arena, file)
    }),
    loses("a memory file sealed against future writing", "sealed against writing", |arena| {
        let file = sealable();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).unwrap();
        region_of(arena, file)
    }),
    free("sockets that linger when they are closed", lingering_sockets),
    free("sockets that linger, never read", unread_lingering_sockets),
];

fn with_init(arena: &Arena, count: usize) -> Held {
    let (null, peer) = (null(), Peer::connect(arena));
    peer.say(&Message::Init(init()), &vec![null.as_fd(); count]);
    assert!(peer.goodbye().is_some());
    hold(peer)
}

fn region_message(arena: &Arena, setup: &HostileSetup, files: &[BorrowedFd<'_>]) -> Held {
    let peer = Peer::init(arena);
    peer.say(&Message::AddRegion(AddRegion { index: 0, size: setup.len }), files);
    assert!(peer.goodbye().is_some());
    hold(peer)
}

/// Announces a ring with these as its interrupt.
fn ring_with(arena: &Arena, files: &[BorrowedFd<'_>]) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(arena);
    peer.region(0, setup.len, &setup.file);
    peer.say(&Message::AddRing(setup.ring(0)), files);
    assert!(peer.goodbye().is_some());
    hold((setup, peer))
}

/// Announces a file as memory.
fn region_of(arena: &Arena, file: impl Into<OwnedFd>) -> Held {
    let peer = Peer::init(arena);
    peer.region(0, 4096, file.into());
    assert!(peer.goodbye().is_some());
    hold(peer)
}

/// Connects with eventfds of the caller's making, wants to be rung, and reads nothing.
fn notify_fds(arena: &Arena, make: impl Fn(usize) -> EventFd) -> Held {
    let mut setup = HostileSetup::new();
    setup.eventfds = (0..2).map(|number| make(number).into()).collect();
    let peer = setup.join(arena);
    crate::common::eventually("frames come to it", || setup.m2s().tail.load() != 0);
    hold((setup, peer))
}

fn full_eventfds(arena: &Arena) -> Held {
    notify_fds(arena, |_| {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        eventfd
    })
}

fn one_eventfd(arena: &Arena) -> Held {
    let eventfd = OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
    let mut setup = HostileSetup::sized(4, 8);
    setup.eventfds = (0..8).map(|_| eventfd.try_clone().unwrap()).collect();
    let peer = setup.join(arena);
    (0..10).for_each(|_| setup.s2m().send(setup.buffer(0, 0), 60));
    crate::common::eventually("its frames are taken", || setup.s2m().tail.load() == 10);
    hold((setup, peer))
}

fn crowded_eventfd(arena: &Arena) -> Held {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    let crowd: Vec<_> = (0..2000).map(|_| Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()).collect();
    let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    for epoll in &crowd {
        epoll.add(&eventfd, EpollEvent::new(edge, 0)).unwrap();
    }
    let mut setup = HostileSetup::new();
    setup.eventfds = (0..2).map(|_| eventfd.as_fd().try_clone_to_owned().unwrap()).collect();
    let peer = setup.join(arena);
    let reader = reader_of(&setup);
    hold((reader, setup, peer, crowd))
}

/// Gives every filled slot back, so that frames, and eventfds, keep coming.
pub fn reader_of(setup: &HostileSetup) -> Hammer {
    let ring = setup.m2s();
    let size = ring.size;
    Hammer::swing(move || {
        ring.head.store(ring.tail.load().wrapping_add(size));
        std::thread::yield_now();
    })
}

fn bell_flood(arena: &Arena) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(arena);
    let eventfd = setup.eventfds[0].try_clone().unwrap();
    fcntl(&eventfd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let flood = Hammer::swing(move || {
        let _ = write(&eventfd, &1u64.to_ne_bytes());
    });
    hold((flood, setup, peer))
}

fn nearly_full_table(arena: &Arena) -> Held {
    let null = null();
    let peers: Vec<_> = (0..4).map(|_| Peer::connect(arena)).collect();
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

fn lingering_sockets(arena: &Arena) -> Held {
    let fars: Vec<_> = (0..3)
        .map(|_| {
            let (near, far) = lingering_socket();
            Peer::connect(arena).say(&Message::Init(init()), &[near.as_fd()]);
            far
        })
        .collect();
    hold(fars)
}

fn unread_lingering_sockets(arena: &Arena) -> Held {
    let fars: Vec<_> = (0..3)
        .map(|_| {
            let (near, far) = lingering_socket();
            let peer = Peer::connect(arena);
            for _ in 0..30 {
                peer.send(b"garbage", &[near.as_fd()]);
            }
            far
        })
        .collect();
    hold(fars)
}
