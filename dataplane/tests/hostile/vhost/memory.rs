//! Memory that goes away, is not what it was announced as, or comes and goes.

use std::os::fd::{AsFd, OwnedFd};

use ferrule_dataplane::port::vhost_user::memory::MemoryRegion;
use ferrule_dataplane::port::vhost_user::message::{VhostUserRequest, VringState};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::common::eventually;
use crate::files::sealable;
use crate::held::{Held, Repeat, hold};
use crate::testbed::{Case, Testbed, open_files};
use crate::vhost::peer::Peer;
use crate::vhost::rounds::{reader_of, sender_of};
use crate::vhost::setup::{GUEST, HEADER, HostileSetup, Shape, USER, split};
use crate::vhost::verdict::{loses, stays};

pub const CASES: &[Case] = &[
    loses("memory shorter than announced", "the file holds 4096 bytes, fewer than", |testbed| {
        let setup = HostileSetup::new();
        ftruncate(&setup.file, 4096).unwrap();
        let peer = setup.greet(testbed);
        setup.say_memory(&peer);
        peer.is_parted();
        hold((setup, peer))
    }),
    loses("memory truncated before its rings are placed", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.greet(testbed);
        setup.say_memory(&peer);
        truncated_then(setup, peer, |setup, peer| {
            (0..2).for_each(|index| setup.say_ring(peer, index));
            setup.enable(peer);
        })
    }),
    loses("memory truncated before its rings are started", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.greet(testbed);
        setup.say_memory(&peer);
        (0..2).for_each(|index| setup.say_place(&peer, index));
        truncated_then(setup, peer, |setup, peer| {
            (0..2).for_each(|index| setup.start(peer, index));
            setup.enable(peer);
        })
    }),
    loses("memory truncated before its rings are enabled", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.announce(testbed);
        truncated_then(setup, peer, HostileSetup::enable)
    }),
    loses("memory truncated behind a wire that rests", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        truncated_then(setup, peer, |_, _| {})
    }),
    loses("memory truncated between two requests of a restart", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        peer.ask(&VhostUserRequest::GetVringBase(VringState { index: 1, num: 0 }), &[]);
        truncated_then(setup, peer, |setup, peer| setup.start(peer, 1))
    }),
    loses("memory truncated while it is announced anew", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let (file, again) = (setup.file.try_clone().unwrap(), VhostUserRequest::SetMemTable(vec![setup.row()]));
        peer.say(&again, &[file.as_fd()]);
        truncated_then(setup, peer, |_, _| {})
    }),
    loses("memory truncated while frames cross, split rings", "truncated", |testbed| {
        moving(testbed, Shape::split(), 0)
    }),
    loses("memory truncated while frames cross, packed rings", "truncated", |testbed| {
        moving(testbed, Shape::packed(), 0)
    }),
    loses("buffers truncated while frames cross, rings kept", "truncated", |testbed| {
        // The transmit ring's buffers, which lie behind everything else.
        moving(testbed, Shape::split(), HostileSetup::new().buffer(1, 0) - GUEST)
    }),
    loses("memory that shrinks and grows again and again", "truncated", shrinks_and_grows),
    loses("the second of two regions truncated", "truncated", |testbed| {
        let (setup, spare) = (HostileSetup::new(), plain(1 << 20));
        let peer = two_regions(testbed, &setup, &spare);
        let ring = setup.split(1);
        ring.publish(&[split(SPARE, HEADER + 60, 0, 0)]);
        eventually("its frame is taken", || ring.used_index.load() == 1);
        ftruncate(&spare, 0).unwrap();
        ring.publish(&[split(SPARE + 4096, HEADER + 60, 0, 0)]);
        peer.is_parted();
        hold((setup, peer, spare))
    }),
    stays("sealed memory cannot be truncated", |testbed| {
        let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let setup = HostileSetup::in_file(file, Shape::split());
        let peer = setup.join(testbed);
        assert_eq!(ftruncate(&setup.file, 0), Err(Errno::EPERM));
        hold((setup, peer))
    }),
    stays("holes punched while frames cross", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        let file = setup.file.try_clone().unwrap();
        let (from, len) = (setup.buffer(1, 0) - GUEST, 256 * 2048);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punch = Repeat::start(move || fallocate(&file, flags, from.cast_signed(), len).unwrap());
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((punch, busy, setup, peer))
    }),
    stays("memory in huge pages, if there are any", huge_pages),
    loses("a region of no bytes", "has no bytes", |testbed| announced(testbed, |row| MemoryRegion { size: 0, ..row })),
    loses("a region that wraps around the guest's addresses", "wraps around", |testbed| {
        announced(testbed, |row| MemoryRegion { guest: u64::MAX - 4096, ..row })
    }),
    loses("a region that wraps around the user's addresses", "wraps around", |testbed| {
        announced(testbed, |row| MemoryRegion { user: u64::MAX - 4096, ..row })
    }),
    loses("a region whose offset wraps around", "wraps around", |testbed| {
        announced(testbed, |row| MemoryRegion { offset: u64::MAX - 4096, ..row })
    }),
    loses("a region behind the end of its file", "fewer than the", |testbed| {
        announced(testbed, |row| MemoryRegion { offset: 4096, ..row })
    }),
    loses("a region of 2^64 - 1 bytes", "are mapped", |testbed| {
        announced(testbed, |row| MemoryRegion { size: u64::MAX, guest: 0, user: 0, ..row })
    }),
    loses("a hundred tebibytes of nothing", "are mapped", |testbed| {
        let (setup, sparse) = (HostileSetup::new(), plain(100 << 40));
        let peer = setup.greet(testbed);
        peer.say(
            &VhostUserRequest::SetMemTable(vec![MemoryRegion { size: 100 << 40, ..setup.row() }]),
            &[sparse.as_fd()],
        );
        peer.is_parted();
        hold((sparse, peer))
    }),
    loses("a tebibyte of nothing, many times", "of page tables", |testbed| {
        let (setup, sparse) = (HostileSetup::new(), plain(1 << 40));
        let peer = setup.greet(testbed);
        let row = |number: u64| MemoryRegion { guest: number << 40, user: number << 40, size: 1 << 40, offset: 0 };
        (0..5).for_each(|number| peer.say(&VhostUserRequest::AddMemReg(row(number)), &[sparse.as_fd()]));
        peer.is_parted();
        hold((sparse, peer))
    }),
    stays("64 GiB of nothing, and frames from its far corners", |testbed| {
        let setup = HostileSetup::new();
        ftruncate(&setup.file, 64 << 30).unwrap();
        let peer = setup.greet(testbed);
        peer.say(
            &VhostUserRequest::SetMemTable(vec![MemoryRegion { size: 64 << 30, ..setup.row() }]),
            &[setup.file.as_fd()],
        );
        (0..2).for_each(|index| setup.say_ring(&peer, index));
        setup.enable(&peer);
        let ring = setup.split(1);
        for number in 0..16u16 {
            ring.desc.write(number.into(), split(GUEST + (64 << 30) - 4096 * (1 + u64::from(number)), 4096, 0, 0));
            ring.offer(&[number]);
        }
        eventually("its frames are taken", || ring.used_index.load() == 16);
        hold((setup, peer))
    }),
    loses("regions that overlap", "overlap", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.greet(testbed);
        let rows = vec![setup.row(), MemoryRegion { guest: GUEST + 4096, user: 0x1000, ..setup.row() }];
        peer.say(&VhostUserRequest::SetMemTable(rows), &[setup.file.as_fd(), setup.file.as_fd()]);
        peer.is_parted();
        hold((setup, peer))
    }),
    stays("every guest address, by the same user addresses", |testbed| {
        let (setup, file) = (HostileSetup::new(), plain(1 << 20));
        let peer = setup.greet(testbed);
        let row = |number: u64| MemoryRegion { guest: number << 20, size: 1 << 20, user: USER, offset: 0 };
        peer.say(&VhostUserRequest::SetMemTable((0..32).map(row).collect()), &[file.as_fd(); 32]);
        assert!(peer.is_heard());
        hold((setup, file, peer))
    }),
    stays("a table without the memory of running rings, which wait", |testbed| {
        let (setup, other) = (HostileSetup::new(), sealable());
        let peer = setup.join(testbed);
        let row = MemoryRegion { guest: 0, size: 4096, user: 0x1000, offset: 0 };
        peer.say(&VhostUserRequest::SetMemTable(vec![row]), &[other.as_fd()]);
        assert!(peer.is_heard());
        nothing_is_taken(&setup, &peer);
        hold((setup, peer))
    }),
    loses("rings placed where their memory was", "at user address", |testbed| {
        let (setup, other) = (HostileSetup::new(), sealable());
        let peer = setup.join(testbed);
        let row = MemoryRegion { guest: 0, size: 4096, user: 0x1000, offset: 0 };
        peer.say(&VhostUserRequest::SetMemTable(vec![row]), &[other.as_fd()]);
        (0..2).for_each(|index| peer.say(&VhostUserRequest::SetVringAddr(setup.address(index)), &[]));
        peer.is_parted();
        hold((setup, peer))
    }),
    loses("an empty table under running rings", "it has no regions", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        peer.say(&VhostUserRequest::SetMemTable(vec![]), &[]);
        peer.is_parted();
        hold((setup, peer))
    }),
    stays("another file under running rings, without end", |testbed| {
        let (setup, other) = (HostileSetup::new(), HostileSetup::new());
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), sender_of(&other), reader_of(&setup), reader_of(&other));
        for round in 0..100 {
            if round % 2 == 0 { other.say_memory(&peer) } else { setup.say_memory(&peer) }
        }
        assert!(peer.is_heard());
        hold((busy, setup, other, peer))
    }),
    stays("the region of running rings removed, which wait", |testbed| {
        let (setup, spare) = (HostileSetup::new(), plain(1 << 20));
        let peer = two_regions(testbed, &setup, &spare);
        peer.say(&VhostUserRequest::RemMemReg(setup.row()), &[]);
        assert!(peer.is_heard());
        nothing_is_taken(&setup, &peer);
        hold((setup, peer, spare))
    }),
    loses("the region of a frame on its way removed", "not all in its memory", |testbed| {
        let (setup, spare) = (HostileSetup::new(), plain(1 << 20));
        let peer = two_regions(testbed, &setup, &spare);
        peer.say(&VhostUserRequest::RemMemReg(spare_row()), &[]);
        assert!(peer.is_heard());
        setup.split(1).publish(&[split(SPARE, HEADER + 60, 0, 0)]);
        peer.is_parted();
        hold((setup, peer, spare))
    }),
    loses("a region removed that never was", "there is no region of", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        peer.say(&VhostUserRequest::RemMemReg(spare_row()), &[]);
        peer.is_parted();
        hold((setup, peer))
    }),
    loses("a sixty-fifth region", "it has 64 regions", |testbed| {
        let (setup, file) = (HostileSetup::new(), plain(4096));
        let peer = setup.greet(testbed);
        let row = |number: u64| MemoryRegion { guest: number << 20, size: 4096, user: number << 20, offset: 0 };
        (0..65).for_each(|number| peer.say(&VhostUserRequest::AddMemReg(row(number)), &[file.as_fd()]));
        peer.is_parted();
        hold((file, peer))
    }),
    stays("regions added and removed without end while frames cross", added_and_removed),
];

/// Takes all memory away, goes on, and has lost its place by it.
/// Rings whose memory has gone are not touched, and it costs their frontend nothing.
fn nothing_is_taken(setup: &HostileSetup, peer: &Peer) {
    let ring = setup.split(1);
    let before = ring.used_index.load();
    ring.publish(&[split(setup.buffer(1, 0), HEADER + 60, 0, 0)]);
    for _ in 0..3 {
        assert!(peer.is_heard());
    }
    assert_eq!(ring.used_index.load(), before);
}

fn truncated_then(setup: HostileSetup, peer: Peer, then: fn(&HostileSetup, &Peer)) -> Held {
    assert!(peer.is_heard());
    ftruncate(&setup.file, 0).unwrap();
    then(&setup, &peer);
    peer.is_parted();
    hold((setup, peer))
}

/// Takes all but the first bytes away while frames cross both ways.
fn moving(testbed: &Testbed, shape: Shape, kept: u64) -> Held {
    let setup = HostileSetup::of(shape);
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    eventually("frames cross", || testbed.traffic.far_frames() > 100);
    ftruncate(&setup.file, kept.cast_signed()).unwrap();
    peer.is_parted();
    hold((busy, setup, peer))
}

fn shrinks_and_grows(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    let (file, len) = (setup.file.try_clone().unwrap(), setup.row().size.cast_signed());
    let breathing = Repeat::start(move || {
        ftruncate(&file, 0).unwrap();
        std::thread::yield_now();
        ftruncate(&file, len).unwrap();
    });
    peer.is_parted();
    hold((breathing, busy, setup, peer))
}

fn huge_pages(testbed: &Testbed) -> Held {
    let huge = memfd_create(c"huge", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB);
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or_default();
    let usable = free.trim().parse::<u32>().is_ok_and(|free| free >= 2);
    let file: OwnedFd = match huge {
        Ok(file) if usable => file,
        _ => memfd_create(c"small pages", MFdFlags::MFD_CLOEXEC).unwrap(),
    };
    let setup = HostileSetup::in_file(file, Shape::split());
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    eventually("frames cross", || testbed.traffic.far_frames() > 100);
    hold((busy, setup, peer))
}

/// Announces a row that lies.
fn announced(testbed: &Testbed, lie: fn(MemoryRegion) -> MemoryRegion) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.greet(testbed);
    peer.say(&VhostUserRequest::SetMemTable(vec![lie(setup.row())]), &[setup.file.as_fd()]);
    peer.is_parted();
    hold((setup, peer))
}

/// Connects with a second region beside its own.
fn two_regions(testbed: &Testbed, setup: &HostileSetup, spare: &OwnedFd) -> Peer {
    let peer = setup.join(testbed);
    assert!(peer.demand(&VhostUserRequest::AddMemReg(spare_row()), &[spare.as_fd()]));
    peer
}

fn spare_row() -> MemoryRegion {
    MemoryRegion { guest: SPARE, size: 1 << 20, user: SPARE, offset: 0 }
}

fn added_and_removed(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let (busy, spare, open) = ((sender_of(&setup), reader_of(&setup)), plain(1 << 20), open_files());
    for _ in 0..300 {
        peer.say(&VhostUserRequest::AddMemReg(spare_row()), &[spare.as_fd()]);
        peer.say(&VhostUserRequest::RemMemReg(spare_row()), &[]);
    }
    assert!(peer.is_heard());
    // What a table had and its successor has not is closed where nobody waits for it.
    eventually("no descriptor of a region that was removed is kept", || open_files() <= open + 1);
    hold((busy, setup, peer))
}

/// A file of so many bytes that cannot be sealed.
fn plain(len: i64) -> OwnedFd {
    let file = memfd_create(c"plain", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

/// Where the second region is.
const SPARE: u64 = 1 << 40;
