//! Descriptors that are not what they should be, or should not be there at all.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ferrule_dataplane::port::vhost_user::message::{VhostUserRequest, VringFile};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{pipe, write};

use crate::common::eventually;
use crate::files::{full_pipe, lingering_socket, null, sealable};
use crate::held::{Held, Repeat, hold};
use crate::limit::FileLimit;
use crate::testbed::{Case, Testbed, open_files};
use crate::vhost::peer::{PLAIN, Peer, message};
use crate::vhost::rounds::{reader_of, sender_of};
use crate::vhost::setup::{HostileSetup, Shape};
use crate::vhost::verdict::{free, loses, stays};

pub const CASES: &[Case] = &[
    // CVE-2019-14818: descriptors beside a request that has none were kept.
    loses("a descriptor with every request that has none", "1 descriptors came with", unwanted_files),
    loses("32 descriptors with GET_FEATURES", "32 descriptors came with GET_FEATURES", |testbed| {
        with_files(testbed, &message(1, PLAIN, &[]), &[null().as_fd(); 32])
    }),
    loses("33 descriptors with GET_FEATURES", "33 descriptors came with GET_FEATURES; at most 32", |testbed| {
        with_files(testbed, &message(1, PLAIN, &[]), &[null().as_fd(); 33])
    }),
    loses("253 descriptors with half a header", "at least 33 descriptors came with", |testbed| {
        with_files(testbed, &message(1, PLAIN, &[])[..6], &[null().as_fd(); 253])
    }),
    // CVE-2022-0669: descriptors of messages that never end.
    loses("descriptors with each byte of a message", "descriptors came with", |testbed| {
        let (null, peer) = (null(), Peer::connect(testbed));
        assert!(peer.is_heard());
        for byte in message(5, PLAIN, &[0; 40]) {
            peer.send(&[byte], &[null.as_fd(); 30]);
        }
        peer.is_parted();
        hold(peer)
    }),
    loses("descriptors before the first message is whole", "descriptors came before the first message", |testbed| {
        let (null, peer) = (null(), Peer::connect(testbed));
        peer.send(&message(5, PLAIN, &[0; 40])[..1], &[null.as_fd(); 30]);
        peer.is_parted();
        hold(peer)
    }),
    free("descriptors with a message that never ends", |testbed| {
        let (null, peer) = (null(), Peer::connect(testbed));
        peer.send(&message(5, PLAIN, &[0; 40])[..51], &[null.as_fd(); 32]);
        hold(peer)
    }),
    free("descriptors in a socket that is closed unread", |testbed| {
        let null = null();
        for _ in 0..20 {
            let peer = Peer::connect(testbed);
            let _ = (0..4).all(|_| peer.send(&message(1, 0, &[]), &[null.as_fd(); 253]));
        }
        hold(())
    }),
    loses(
        "253 descriptors when hardly any are left",
        "descriptors that came with a message were lost",
        nearly_full_table,
    ),
    loses("SET_MEM_TABLE without its descriptor", "0 descriptors came with SET_MEM_TABLE", |testbed| {
        memory_with(testbed, &[])
    }),
    loses("SET_MEM_TABLE with one too many", "2 descriptors came with SET_MEM_TABLE", |testbed| {
        memory_with(testbed, &[sealable().as_fd(), sealable().as_fd()])
    }),
    loses("SET_VRING_KICK without its descriptor", "0 descriptors came with SET_VRING_KICK", |testbed| {
        kick_with(testbed, &[])
    }),
    loses("SET_VRING_KICK with two", "2 descriptors came with SET_VRING_KICK", |testbed| {
        kick_with(testbed, &[new_eventfd().as_fd(), new_eventfd().as_fd()])
    }),
    loses("a descriptor that is said not to be there", "1 descriptors came with SET_VRING_CALL", |testbed| {
        let peer = Peer::connect(testbed);
        peer.say(&VhostUserRequest::SetVringCall(VringFile { index: 0, has_file: false }), &[new_eventfd().as_fd()]);
        peer.is_parted();
        hold(peer)
    }),
    loses("a pipe as kick", "not an eventfd", |testbed| kick_with(testbed, &[full_pipe().0.as_fd()])),
    loses("a pipe as call, full", "not an eventfd", |testbed| call_with(testbed, full_pipe().1.as_fd())),
    loses("a broken pipe as call", "not an eventfd", |testbed| call_with(testbed, pipe().unwrap().1.as_fd())),
    loses("a socket as call", "not an eventfd", |testbed| {
        call_with(testbed, TcpListener::bind("127.0.0.1:0").unwrap().as_fd())
    }),
    loses("an epoll as call", "not an eventfd", |testbed| {
        call_with(testbed, Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0.as_fd())
    }),
    loses("a memory file as call", "not an eventfd", |testbed| {
        call_with(testbed, memfd_create(c"anon_inode:[eventfd]", MFdFlags::MFD_CLOEXEC).unwrap().as_fd())
    }),
    loses("its own control socket as call", "not an eventfd", |testbed| {
        let peer = Peer::connect(testbed);
        peer.say(&VhostUserRequest::SetVringCall(VringFile { index: 0, has_file: true }), &[peer.socket().as_fd()]);
        peer.is_parted();
        hold(peer)
    }),
    loses("a pipe to tell of errors", "not an eventfd", |testbed| {
        let peer = Peer::connect(testbed);
        peer.say(&VhostUserRequest::SetVringErr(VringFile { index: 0, has_file: true }), &[full_pipe().1.as_fd()]);
        peer.is_parted();
        hold(peer)
    }),
    stays("full eventfds that block their writers", |testbed| {
        eventfds(testbed, || {
            let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
            eventfd.write(u64::MAX - 1).unwrap();
            eventfd.into()
        })
    }),
    stays("eventfds as semaphores", |testbed| {
        eventfds(testbed, || {
            EventFd::from_value_and_flags(7, EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC).unwrap().into()
        })
    }),
    stays("one eventfd for all that rings", one_eventfd),
    stays("no eventfds at all", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.greet(testbed);
        setup.say_memory(&peer);
        for index in 0..2 {
            setup.say_place(&peer, index);
            peer.say(&VhostUserRequest::SetVringKick(VringFile { index: index as u8, has_file: false }), &[]);
        }
        setup.enable(&peer);
        let busy = (sender_of(&setup), reader_of(&setup));
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((busy, setup, peer))
    }),
    stays("an eventfd that wakes two thousand epolls", crowded_eventfd),
    stays("a flood of kicks", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let eventfd = setup.eventfds[1][0].try_clone().unwrap();
        fcntl(&eventfd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let repeat = Repeat::start(move || {
            let _ = write(&eventfd, &1u64.to_ne_bytes());
        });
        hold((repeat, setup, peer))
    }),
    stays("kicks and calls replaced without end", |testbed| {
        let (setup, open) = (HostileSetup::new(), open_files());
        let peer = setup.join(testbed);
        let joined = open_files() - open;
        for round in 0..2000u32 {
            let file = VringFile { index: (round % 2) as u8, has_file: true };
            let eventfd = new_eventfd();
            match round % 3 {
                0 => peer.say(&VhostUserRequest::SetVringKick(file), &[eventfd.as_fd()]),
                1 => peer.say(&VhostUserRequest::SetVringCall(file), &[eventfd.as_fd()]),
                _ => peer.say(&VhostUserRequest::SetVringErr(file), &[eventfd.as_fd()]),
            }
        }
        assert!(peer.is_heard());
        assert!(open_files() - open <= joined + 4, "{} descriptors more", open_files() - open);
        hold((setup, peer))
    }),
    loses("a plain file as memory", "not in memory", |testbed| memory_of(testbed, File::open("/etc/passwd").unwrap())),
    loses("/dev/zero as memory", "not in memory", |testbed| {
        memory_of(testbed, File::options().read(true).write(true).open("/dev/zero").unwrap())
    }),
    loses("a directory as memory", "not in memory", |testbed| memory_of(testbed, File::open("/").unwrap())),
    loses("a pipe as memory", "not in memory", |testbed| memory_of(testbed, full_pipe().0)),
    loses("an eventfd as memory", "not in memory", |testbed| memory_of(testbed, new_eventfd())),
    loses("its own control socket as memory", "not in memory", |testbed| {
        let (setup, peer) = (HostileSetup::new(), Peer::connect(testbed));
        peer.say(&VhostUserRequest::SetMemTable(vec![setup.row()]), &[peer.socket().as_fd()]);
        peer.is_parted();
        hold(peer)
    }),
    loses("a memory file opened read-only", "read-only", |testbed| {
        let setup = HostileSetup::new();
        memory_of(testbed, File::open(format!("/proc/self/fd/{}", setup.file.as_raw_fd())).unwrap())
    }),
    loses("a memory file sealed against writing", "sealed against writing", |testbed| {
        sealed(testbed, SealFlag::F_SEAL_WRITE)
    }),
    loses("a memory file sealed against future writing", "sealed against writing", |testbed| {
        sealed(testbed, SealFlag::F_SEAL_FUTURE_WRITE)
    }),
    // As files of FUSE do, they keep whoever closes them waiting.
    loses("sockets that linger when they are closed", "descriptors came with", |testbed| {
        let (near, _far) = lingering_socket();
        let held: Vec<_> = (0..8).map(|_| with_files(testbed, &message(3, PLAIN, &[]), &[near.as_fd(); 8])).collect();
        drop(near);
        hold(held)
    }),
    free("sockets that linger, never read", |testbed| {
        let ((near, _far), peer) = (lingering_socket(), Peer::connect(testbed));
        peer.send(&message(5, PLAIN, &[0; 40])[..20], &[near.as_fd(); 8]);
        drop(near);
        hold(peer)
    }),
];

fn new_eventfd() -> OwnedFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into()
}

fn with_files(testbed: &Testbed, bytes: &[u8], files: &[BorrowedFd<'_>]) -> Held {
    let peer = Peer::connect(testbed);
    peer.send(bytes, files);
    peer.is_parted();
    hold(peer)
}

fn unwanted_files(testbed: &Testbed) -> Held {
    let null = null();
    for (number, size) in [
        (1, 0),
        (2, 8),
        (3, 0),
        (4, 0),
        (8, 8),
        (9, 40),
        (10, 8),
        (11, 8),
        (15, 0),
        (16, 8),
        (18, 8),
        (22, 32),
        (99, 0),
    ] {
        with_files(testbed, &message(number, PLAIN, &vec![0; size]), &[null.as_fd()]);
    }
    let peer = HostileSetup::new().greet(testbed);
    for number in [17, 36, 40] {
        assert!(peer.request(number, PLAIN, &[], &[]));
        assert!(peer.hear().is_some());
    }
    peer.request(36, PLAIN, &[], &[null.as_fd()]);
    peer.is_parted();
    hold(peer)
}

fn memory_with(testbed: &Testbed, files: &[BorrowedFd<'_>]) -> Held {
    with_files(testbed, &VhostUserRequest::SetMemTable(vec![HostileSetup::new().row()]).emit(false), files)
}

/// Announces a file as memory.
fn memory_of(testbed: &Testbed, file: impl Into<OwnedFd>) -> Held {
    memory_with(testbed, &[file.into().as_fd()])
}

fn sealed(testbed: &Testbed, seal: SealFlag) -> Held {
    let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&file, HostileSetup::new().row().size.cast_signed()).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seal)).unwrap();
    memory_of(testbed, file)
}

fn kick_with(testbed: &Testbed, files: &[BorrowedFd<'_>]) -> Held {
    with_files(testbed, &VhostUserRequest::SetVringKick(VringFile { index: 1, has_file: true }).emit(false), files)
}

fn call_with(testbed: &Testbed, file: BorrowedFd<'_>) -> Held {
    with_files(testbed, &VhostUserRequest::SetVringCall(VringFile { index: 1, has_file: true }).emit(false), &[file])
}

/// Connects with eventfds of the caller's making, wants to be rung, and has frames cross.
fn eventfds(testbed: &Testbed, make: impl Fn() -> OwnedFd) -> Held {
    let mut setup = HostileSetup::new();
    setup.eventfds = (0..2).map(|_| [make(), make()]).collect();
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    eventually("frames cross", || testbed.traffic.far_frames() > 100);
    hold((busy, setup, peer))
}

fn one_eventfd(testbed: &Testbed) -> Held {
    let eventfd = new_eventfd();
    let mut setup = HostileSetup::of(Shape { pairs: 4, ..Shape::split() });
    setup.eventfds = (0..8).map(|_| [eventfd.try_clone().unwrap(), eventfd.try_clone().unwrap()]).collect();
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    eventually("frames cross", || testbed.traffic.far_frames() > 100);
    hold((busy, setup, peer))
}

fn crowded_eventfd(testbed: &Testbed) -> Held {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    let crowd: Vec<_> = (0..2000).map(|_| Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()).collect();
    let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    for epoll in &crowd {
        epoll.add(&eventfd, EpollEvent::new(edge, 0)).unwrap();
    }
    hold((eventfds(testbed, || eventfd.as_fd().try_clone_to_owned().unwrap()), crowd))
}

fn nearly_full_table(testbed: &Testbed) -> Held {
    let null = null();
    let peer = Peer::connect(testbed);
    assert!(peer.is_heard());
    let limit = FileLimit::lower_to(open_files() as u64 + 60);
    peer.send(&message(1, PLAIN, &[]), &[null.as_fd(); 253]);
    peer.is_parted();
    drop(limit);
    hold(peer)
}
