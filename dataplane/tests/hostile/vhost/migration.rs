//! Dirty logs and in-flight memory that are too short, absurd, or gone.

use std::os::fd::{AsFd, OwnedFd};

use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::message::{Inflight, LogArea, VhostUserRequest, VringAddress};
use ferrule_ffi::region::Region;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::common::{TestRng, eventually};
use crate::files::{null, sealable};
use crate::held::{Held, Repeat, hold};
use crate::testbed::{Case, Testbed, open_files};
use crate::vhost::peer::Peer;
use crate::vhost::rounds::{reader_of, sender_of};
use crate::vhost::setup::{HostileSetup, Shape};
use crate::vhost::verdict::{loses, stays};

pub const CASES: &[Case] = &[
    // CVE-2020-10722: size and offset were added without a look at the carry.
    loses("a log of 2^64 - 1 bytes", "no more are mapped", |testbed| log(testbed, u64::MAX, 4096)),
    loses("a log whose end wraps around", "wraps around", |testbed| log(testbed, 4096, u64::MAX - 4095)),
    loses("a log of no bytes", "no bytes", |testbed| log(testbed, 0, 64)),
    loses("a log longer than its file", "the file holds 4096 bytes, fewer than", |testbed| log(testbed, 4097, 0)),
    loses("a log behind its file", "the file holds 4096 bytes, fewer than", |testbed| log(testbed, 4096, 4096)),
    loses("a log of half of all addresses", "no more are mapped", |testbed| log(testbed, 1 << 63, 0)),
    loses("a log in a file that is no memory", "not in memory", |testbed| {
        let peer = HostileSetup::new().greet(testbed);
        peer.say(&VhostUserRequest::SetLogBase(LogArea { size: 4096, offset: 0 }), &[null().as_fd()]);
        peer.is_parted();
        hold(peer)
    }),
    loses("a log without a file", "0 descriptors came with SET_LOG_BASE", |testbed| {
        let peer = HostileSetup::new().greet(testbed);
        peer.say(&VhostUserRequest::SetLogBase(LogArea { size: 4096, offset: 0 }), &[]);
        peer.is_parted();
        hold(peer)
    }),
    // CVE-2019-14835, CVE-2020-10722: pages behind the end of the log were marked all the same.
    stays("split: a log of one byte for two megabytes", |testbed| logged(testbed, Shape::split(), 1, |at| at)),
    stays("packed: a log of one byte for two megabytes", |testbed| logged(testbed, Shape::packed(), 1, |at| at)),
    stays("a used ring logged at the end of all addresses", |testbed| {
        logged(testbed, Shape::split(), 4096, |at| VringAddress { log_guest: u64::MAX - 1, ..at })
    }),
    stays("a used ring logged at address 0", |testbed| {
        logged(testbed, Shape::split(), 4096, |at| VringAddress { log_guest: 0, ..at })
    }),
    loses("split: a log truncated while frames cross", "truncated", |testbed| log_truncated(testbed, Shape::split())),
    loses("packed: a log truncated while frames cross", "truncated", |testbed| log_truncated(testbed, Shape::packed())),
    stays("logs replaced without end while frames cross", |testbed| {
        let (setup, log) = (HostileSetup::of(Shape::split()), log_file(1 << 20));
        let peer = setup.join(testbed);
        let (busy, open) = ((sender_of(&setup), reader_of(&setup)), open_files());
        start_log(&setup, &peer, &log, 1 << 20, |at| at);
        for size in (1..=1u64 << 20).step_by(10_001) {
            peer.ask(&VhostUserRequest::SetLogBase(LogArea { size, offset: 0 }), &[log.as_fd()]);
            // Another thread unmaps them, and is given no more than a few at a time.
            assert!(open_files() < open + 100, "{} descriptors more", open_files() - open);
        }
        eventually("none of them is kept", || open_files() <= open + 1);
        hold((busy, setup, peer))
    }),
    stays("logging switched on and off without a log", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        for round in 0..100 {
            let log_all = if round % 2 == 0 { Features::LOG_ALL } else { Features::default() };
            peer.say(&VhostUserRequest::SetFeatures((setup.shape.features | log_all).0), &[]);
        }
        assert!(peer.is_heard());
        hold((setup, peer))
    }),
    stays("SET_LOG_FD a thousand times", |testbed| {
        let (peer, open) = (HostileSetup::new().greet(testbed), open_files());
        (0..1000).for_each(|_| peer.say(&VhostUserRequest::SetLogFd, &[null().as_fd()]));
        assert!(peer.is_heard());
        eventually("none of them is kept", || open_files() <= open + 1);
        hold(peer)
    }),
    // CVE-2020-10726: each answer leaked what the one before had made.
    stays("GET_INFLIGHT_FD a thousand times", |testbed| {
        let peer = HostileSetup::new().greet(testbed);
        peer.ask(&VhostUserRequest::GetInflightFd(AREA), &[]);
        let open = open_files();
        for _ in 0..1000 {
            assert_eq!(peer.ask(&VhostUserRequest::GetInflightFd(AREA), &[]).files.len(), 1);
            assert!(open_files() < open + 100, "{} descriptors more", open_files() - open);
        }
        eventually("none of them is kept", || open_files() <= open + 1);
        hold(peer)
    }),
    // CVE-2021-3839: the number of queues was multiplied before it was bounded.
    loses("in-flight memory for 65535 queues", "65535 queues", |testbed| {
        inflight(testbed, |area| VhostUserRequest::GetInflightFd(Inflight { queues: u16::MAX, ..area }))
    }),
    loses("in-flight memory for 65535 queues, to be taken", "65535 queues", |testbed| {
        inflight(testbed, |area| {
            VhostUserRequest::SetInflightFd(Inflight { queues: u16::MAX, queue_size: u16::MAX, ..area })
        })
    }),
    loses("in-flight memory for no queues", "0 queues", |testbed| {
        inflight(testbed, |area| VhostUserRequest::GetInflightFd(Inflight { queues: 0, ..area }))
    }),
    loses("in-flight memory for queues of no descriptors", "queues of 0 descriptors", |testbed| {
        inflight(testbed, |area| VhostUserRequest::GetInflightFd(Inflight { queue_size: 0, ..area }))
    }),
    loses("in-flight memory for queues of 65535 descriptors", "queues of 65535 descriptors", |testbed| {
        inflight(testbed, |area| VhostUserRequest::SetInflightFd(Inflight { queue_size: u16::MAX, ..area }))
    }),
    loses("in-flight memory that says to be too short", "which need", |testbed| {
        inflight(testbed, |area| VhostUserRequest::SetInflightFd(Inflight { mmap_size: 16, ..area }))
    }),
    loses("in-flight memory shorter than it says", "the file holds 4096 bytes, fewer than", |testbed| {
        inflight(testbed, |area| VhostUserRequest::SetInflightFd(Inflight { mmap_size: u64::MAX, ..area }))
    }),
    loses("in-flight memory whose end wraps around", "wraps around", |testbed| {
        inflight(testbed, |area| {
            VhostUserRequest::SetInflightFd(Inflight { mmap_size: 1 << 30, mmap_offset: u64::MAX - 63, ..area })
        })
    }),
    loses("in-flight memory behind half of all addresses", "fewer than the", |testbed| {
        inflight(testbed, |area| {
            VhostUserRequest::SetInflightFd(Inflight { mmap_size: 1 << 30, mmap_offset: 1 << 62, ..area })
        })
    }),
    stays("split: in-flight memory of random bytes", |testbed| random_inflight(testbed, Shape::split())),
    stays("packed: in-flight memory of random bytes", |testbed| random_inflight(testbed, Shape::packed())),
    stays("in-flight memory truncated before there are rings", |testbed| {
        let (setup, file) = (HostileSetup::new(), log_file(1 << 20));
        let peer = setup.greet(testbed);
        assert!(
            peer.demand(&VhostUserRequest::SetInflightFd(Inflight { mmap_size: 1 << 20, ..AREA }), &[file.as_fd()])
        );
        ftruncate(&file, 0).unwrap();
        assert!(peer.is_heard());
        hold((setup, peer))
    }),
    loses("in-flight memory truncated before rings are started", "truncated", |testbed| {
        inflight_truncated(testbed, |file, setup, peer| {
            ftruncate(file, 0).unwrap();
            (0..2).for_each(|index| setup.say_ring(peer, index));
            setup.enable(peer);
        })
    }),
    loses("in-flight memory truncated while frames cross", "truncated", |testbed| {
        inflight_truncated(testbed, |file, setup, peer| {
            (0..2).for_each(|index| setup.say_ring(peer, index));
            setup.enable(peer);
            assert!(peer.is_heard());
            ftruncate(file, 0).unwrap();
        })
    }),
];

/// For the two rings of a setup.
const AREA: Inflight = Inflight { mmap_size: 0, mmap_offset: 0, queues: 2, queue_size: 256 };

/// Names a log in a file of one page, and has lost its place by it.
fn log(testbed: &Testbed, size: u64, offset: u64) -> Held {
    let peer = HostileSetup::new().greet(testbed);
    peer.say(&VhostUserRequest::SetLogBase(LogArea { size, offset }), &[sealable().as_fd()]);
    peer.is_parted();
    hold(peer)
}

fn inflight(testbed: &Testbed, lie: fn(Inflight) -> VhostUserRequest) -> Held {
    let peer = HostileSetup::new().greet(testbed);
    let request = lie(AREA);
    let page = sealable();
    let files = if matches!(request, VhostUserRequest::SetInflightFd(_)) { vec![page.as_fd()] } else { vec![] };
    peer.say(&request, &files);
    peer.is_parted();
    hold(peer)
}

/// Runs with in-flight memory that says anything, eight times.
fn random_inflight(testbed: &Testbed, shape: Shape) -> Held {
    let mut rng = TestRng(3);
    let block = if shape.is_packed() { 10_304 } else { 4160 };
    let mut run = |mask: u32| {
        let (setup, file) = (HostileSetup::of(shape), log_file(1 << 18));
        let memory = Region::map(file.try_clone().unwrap(), 1 << 18, &<_>::default()).unwrap();
        (0..1u64 << 16).for_each(|word| memory.write_u32(word * 4, rng.roll() as u32 & mask).unwrap());
        // Of a version that is known.
        (0..2).for_each(|ring| memory.write_u32(ring * block + 8, 1 | 256 << 16).unwrap());
        let peer = setup.greet(testbed);
        let area = Inflight { mmap_size: 1 << 18, ..AREA };
        assert!(peer.demand(&VhostUserRequest::SetInflightFd(area), &[file.as_fd()]));
        setup.say_memory(&peer);
        (0..2).for_each(|index| setup.say_ring(&peer, index));
        setup.enable(&peer);
        let busy = (sender_of(&setup), reader_of(&setup));
        testbed.traffic.must_move();
        assert!(peer.is_heard());
        (busy, memory, setup, peer)
    };
    (0..7).for_each(|round| drop(run(if round % 2 == 0 { u32::MAX } else { 0x01ff_01ff })));
    hold(run(0x00ff_00ff))
}

fn inflight_truncated(testbed: &Testbed, then: fn(&OwnedFd, &HostileSetup, &Peer)) -> Held {
    let (setup, file) = (HostileSetup::new(), log_file(1 << 20));
    let peer = setup.greet(testbed);
    assert!(peer.demand(&VhostUserRequest::SetInflightFd(Inflight { mmap_size: 1 << 20, ..AREA }), &[file.as_fd()]));
    setup.say_memory(&peer);
    let busy = (sender_of(&setup), reader_of(&setup));
    then(&file, &setup, &peer);
    peer.is_parted();
    hold((busy, setup, peer))
}

/// Has frames cross while they are logged.
fn logged(testbed: &Testbed, shape: Shape, size: u64, lie: fn(VringAddress) -> VringAddress) -> Held {
    let (setup, log) = (HostileSetup::of(shape), log_file(1 << 20));
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    start_log(&setup, &peer, &log, size, lie);
    let before = testbed.traffic.far_frames();
    eventually("frames cross", || testbed.traffic.far_frames() > before + 100);
    let memory = Region::map(log, 1 << 20, &<_>::default()).unwrap();
    let words = (size.div_ceil(4)..1 << 18).all(|word| memory.read_u32(word * 4) == Some(0));
    assert!(words, "pages behind the end of the log were marked");
    hold((busy, setup, peer))
}

fn log_truncated(testbed: &Testbed, shape: Shape) -> Held {
    let (setup, log) = (HostileSetup::of(shape), log_file(1 << 20));
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    start_log(&setup, &peer, &log, 1 << 20, |at| at);
    let shrink = Repeat::start({
        let log = log.try_clone().unwrap();
        move || ftruncate(&log, 0).unwrap()
    });
    peer.is_parted();
    hold((shrink, busy, setup, peer))
}

fn start_log(setup: &HostileSetup, peer: &Peer, log: &OwnedFd, size: u64, lie: fn(VringAddress) -> VringAddress) {
    let answer = peer.ask(&VhostUserRequest::SetLogBase(LogArea { size, offset: 0 }), &[log.as_fd()]);
    assert_eq!(answer.payload.len(), 0);
    peer.say(&VhostUserRequest::SetFeatures((setup.shape.features | Features::LOG_ALL).0), &[]);
    for index in 0..setup.rings() {
        peer.say(&VhostUserRequest::SetVringAddr(lie(VringAddress { log: true, ..setup.address(index) })), &[]);
    }
    assert!(peer.is_heard());
}

/// A file that cannot be sealed.
fn log_file(len: i64) -> OwnedFd {
    let file = memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}
