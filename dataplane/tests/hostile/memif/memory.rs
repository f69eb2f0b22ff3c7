//! Memory that goes away, is larger than the machine, or lies on top of itself.

use std::os::fd::{AsFd, OwnedFd};

use ferrule_dataplane::port::memif::message::{AddRing, MemifMessage};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::held::{Held, Repeat, hold};
use crate::memif::control::{loses, stays};
use crate::memif::descriptors::reader_of;
use crate::memif::peer::Peer;
use crate::memif::setup::{BUFFER, HostileSetup, Ring, descriptor};
use crate::testbed::{Case, Testbed};

pub const CASES: &[Case] = &[
    loses("memory shorter than announced", "the file holds 4096 bytes, fewer than", |testbed| {
        let setup = HostileSetup::new();
        ftruncate(&setup.file, 4096).unwrap();
        let peer = Peer::init(testbed);
        peer.region(0, setup.len, &setup.file);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("memory truncated between ADD_REGION and ADD_RING", "the file holds 0 bytes, fewer than", |testbed| {
        let setup = HostileSetup::new();
        let peer = Peer::init(testbed);
        peer.region(0, setup.len, &setup.file);
        assert_eq!(peer.hear(), Some(MemifMessage::Ack));
        ftruncate(&setup.file, 0).unwrap();
        for number in 0..2 {
            peer.say(&MemifMessage::AddRing(setup.ring(number)), &[setup.eventfds[usize::from(number)].as_fd()]);
        }
        peer.say(&MemifMessage::Connect { name: String::new() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("memory truncated before CONNECT", "the file holds 0 bytes, fewer than", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.announce(testbed);
        ftruncate(&setup.file, 0).unwrap();
        peer.say(&MemifMessage::Connect { name: String::new() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("memory sealed against writing before CONNECT", "it is sealed against writing", |testbed| {
        let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let setup = HostileSetup::in_file(file, 1, 8);
        let peer = setup.announce(testbed);
        fcntl(&setup.file, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE))).unwrap();
        peer.say(&MemifMessage::Connect { name: String::new() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("memory truncated after CONNECT", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        ftruncate(&setup.file, 0).unwrap();
        peer.is_refused("truncated");
        hold((setup, peer))
    }),
    loses("memory truncated while frames are taken", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let busy = sender_of(&setup);
        crate::common::eventually("frames cross", || testbed.traffic.far_frames() > 100);
        ftruncate(&setup.file, 0).unwrap();
        peer.is_refused("truncated");
        hold((busy, setup, peer))
    }),
    loses("buffers truncated, rings kept", "truncated", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        ftruncate(&setup.file, 12_288).unwrap();
        peer.is_refused("truncated");
        hold((busy, setup, peer))
    }),
    loses("memory that shrinks and grows again and again", "truncated", shrinks_and_grows),
    stays("sealed memory cannot be truncated", |testbed| {
        let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let setup = HostileSetup::in_file(file, 1, 8);
        let peer = setup.join(testbed);
        assert_eq!(ftruncate(&setup.file, 0), Err(Errno::EPERM));
        hold((setup, peer))
    }),
    stays("holes punched while frames cross", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        // The buffers only: rings of zeros would be a lie of another kind.
        let (file, from, len) = (setup.file.try_clone().unwrap(), 12_288, setup.len.cast_signed() - 12_288);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punch = Repeat::start(move || fallocate(&file, flags, from, len).unwrap());
        crate::common::eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((punch, busy, setup, peer))
    }),
    stays("memory in huge pages, if there are any", huge_pages),
    loses("a region of no bytes", "a region of no bytes", |testbed| region_of(testbed, 0)),
    loses("a region of 2^64 - 1 bytes", "above 68719476736 bytes", |testbed| region_of(testbed, u64::MAX)),
    loses("a region of a byte too many", "above 68719476736 bytes", |testbed| region_of(testbed, (64 << 30) + 1)),
    stays("16 GiB of nothing", |testbed| {
        let file = memfd_create(c"sparse", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut setup = HostileSetup::in_file(file, 1, 8);
        setup.len = 16 << 30;
        ftruncate(&setup.file, setup.len.cast_signed()).unwrap();
        let peer = setup.join(testbed);
        (0..10).for_each(|number| setup.s2m().send(u32::MAX - 4096 * number, 60));
        crate::common::eventually("its frames are taken", || setup.s2m().tail.load() == 10);
        hold((setup, peer))
    }),
    loses("64 GiB of nothing, whose page tables cost more than the limit", "of page tables", |testbed| {
        let file = memfd_create(c"sparse", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut setup = HostileSetup::in_file(file, 1, 8);
        setup.len = 64 << 30;
        ftruncate(&setup.file, setup.len.cast_signed()).unwrap();
        let peer = setup.announce(testbed);
        peer.say(&MemifMessage::Connect { name: "setup".to_owned() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("a sixty-fifth region", "more than 64 regions", |testbed| {
        let file = memfd_create(c"small", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        let peer = Peer::init(testbed);
        (0..65).for_each(|index| peer.region(index, 4096, &file));
        assert!(peer.goodbye().is_some());
        hold(peer)
    }),
    loses("a region out of turn", "unexpected region index 65535", |testbed| {
        let setup = HostileSetup::new();
        let peer = Peer::init(testbed);
        peer.region(u16::MAX, setup.len, &setup.file);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    stays("all rings at the same place", |testbed| overlapping(testbed, |setup, _| setup.ring(0).offset)),
    loses("a ring on top of another's slots", "", |testbed| overlapping(testbed, |_, number| 64 * u32::from(number))),
    stays("buffers on top of the rings", |testbed| {
        let setup = HostileSetup::new();
        let m2s = setup.m2s();
        // Each frame to the peer overwrites the M2S ring's own slots, behind the head.
        (0..m2s.size).for_each(|slot| m2s.table.write(slot, descriptor(0, 0, 64, 4096)));
        let peer = setup.join(testbed);
        hold((setup, peer))
    }),
];

/// Sends frames without end.
pub fn sender_of(setup: &HostileSetup) -> Repeat {
    let (ring, buffer): (Ring, u32) = (setup.s2m(), setup.buffer(0, 0));
    let mut number = 0u32;
    Repeat::start(move || {
        number = (number + 1) % u32::from(ring.size);
        ring.send(buffer + number * BUFFER as u32, 60 + number);
        std::thread::yield_now();
    })
}

fn shrinks_and_grows(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    let (file, len) = (setup.file.try_clone().unwrap(), setup.len.cast_signed());
    let breathing = Repeat::start(move || {
        ftruncate(&file, 0).unwrap();
        std::thread::yield_now();
        ftruncate(&file, len).unwrap();
    });
    peer.goodbye();
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
    let setup = HostileSetup::in_file(file, 1, 8);
    let peer = setup.join(testbed);
    (0..10).for_each(|_| setup.s2m().send(setup.buffer(0, 0), 60));
    crate::common::eventually("its frames are taken", || setup.s2m().tail.load() == 10);
    hold((setup, peer))
}

fn region_of(testbed: &Testbed, size: u64) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(testbed);
    peer.region(0, size, &setup.file);
    assert!(peer.goodbye().is_some());
    hold((setup, peer))
}

fn overlapping(testbed: &Testbed, place: fn(&HostileSetup, u16) -> u32) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(testbed);
    peer.region(0, setup.len, &setup.file);
    assert_eq!(peer.hear(), Some(MemifMessage::Ack));
    for number in 0..2 {
        let ring = AddRing { offset: place(&setup, number), ..setup.ring(number) };
        peer.say(&MemifMessage::AddRing(ring), &[setup.eventfds[usize::from(number)].as_fd()]);
        assert_eq!(peer.hear(), Some(MemifMessage::Ack));
    }
    peer.say(&MemifMessage::Connect { name: String::new() }, &[]);
    peer.hear();
    hold((setup, peer))
}
