//! Memory that goes away, is larger than the machine, or lies on top of itself.

use std::os::fd::{AsFd, OwnedFd};

use ferrule_dataplane::port::memif::message::{AddRing, Message};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::arena::{Arena, Case};
use crate::held::{Hammer, Held, hold};
use crate::memif::control::{loses, stays};
use crate::memif::descriptors::reader_of;
use crate::memif::peer::Peer;
use crate::memif::setup::{BUFFER, HostileSetup, Ring, descriptor};

pub const CASES: &[Case] = &[
    loses("memory shorter than announced", "the file holds 4096 bytes, fewer than", |arena| {
        let setup = HostileSetup::new();
        ftruncate(&setup.file, 4096).unwrap();
        let peer = Peer::init(arena);
        peer.region(0, setup.len, &setup.file);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("memory truncated between ADD_REGION and ADD_RING", "truncated", |arena| {
        let setup = HostileSetup::new();
        let peer = Peer::init(arena);
        peer.region(0, setup.len, &setup.file);
        assert_eq!(peer.hear(), Some(Message::Ack));
        ftruncate(&setup.file, 0).unwrap();
        for number in 0..2 {
            peer.say(&Message::AddRing(setup.ring(number)), &[setup.eventfds[usize::from(number)].as_fd()]);
        }
        peer.say(&Message::Connect { name: String::new() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("memory truncated before CONNECT", "truncated", |arena| {
        let setup = HostileSetup::new();
        let peer = setup.announce(arena);
        ftruncate(&setup.file, 0).unwrap();
        peer.say(&Message::Connect { name: String::new() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    loses("memory truncated after CONNECT", "truncated", |arena| {
        let setup = HostileSetup::new();
        let peer = setup.join(arena);
        ftruncate(&setup.file, 0).unwrap();
        peer.is_refused("truncated");
        hold((setup, peer))
    }),
    loses("memory truncated while frames are taken", "truncated", |arena| {
        let setup = HostileSetup::new();
        let peer = setup.join(arena);
        let busy = sender_of(&setup);
        crate::common::eventually("frames cross", || arena.traffic.far_frames() > 100);
        ftruncate(&setup.file, 0).unwrap();
        peer.is_refused("truncated");
        hold((busy, setup, peer))
    }),
    loses("buffers truncated, rings kept", "truncated", |arena| {
        let setup = HostileSetup::new();
        let peer = setup.join(arena);
        let busy = (sender_of(&setup), reader_of(&setup));
        ftruncate(&setup.file, 12_288).unwrap();
        peer.is_refused("truncated");
        hold((busy, setup, peer))
    }),
    loses("memory that shrinks and grows again and again", "truncated", shrinks_and_grows),
    stays("sealed memory cannot be truncated", |arena| {
        let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let setup = HostileSetup::in_file(file, 1, 8);
        let peer = setup.join(arena);
        assert_eq!(ftruncate(&setup.file, 0), Err(Errno::EPERM));
        hold((setup, peer))
    }),
    stays("holes punched while frames cross", |arena| {
        let setup = HostileSetup::new();
        let peer = setup.join(arena);
        let busy = (sender_of(&setup), reader_of(&setup));
        // The buffers only: rings of zeros would be a lie of another kind.
        let (file, from, len) = (setup.file.try_clone().unwrap(), 12_288, setup.len.cast_signed() - 12_288);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punch = Hammer::swing(move || fallocate(&file, flags, from, len).unwrap());
        crate::common::eventually("frames cross", || arena.traffic.far_frames() > 100);
        hold((punch, busy, setup, peer))
    }),
    stays("memory in huge pages, if there are any", huge_pages),
    loses("a region of no bytes", "a region of no bytes", |arena| region_of(arena, 0)),
    loses("a region of 2^64 - 1 bytes", "above 68719476736 bytes", |arena| region_of(arena, u64::MAX)),
    loses("a region of a byte too many", "above 68719476736 bytes", |arena| region_of(arena, (64 << 30) + 1)),
    stays("64 GiB of nothing", |arena| {
        let file = memfd_create(c"sparse", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut setup = HostileSetup::in_file(file, 1, 8);
        setup.len = 64 << 30;
        ftruncate(&setup.file, setup.len.cast_signed()).unwrap();
        let peer = setup.join(arena);
        (0..10).for_each(|number| setup.s2m().send(u32::MAX - 4096 * number, 60));
        crate::common::eventually("its frames are taken", || setup.s2m().tail.load() == 10);
        hold((setup, peer))
    }),
    loses("a sixty-fifth region", "more than 64 regions", |arena| {
        let file = memfd_create(c"small", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        let peer = Peer::init(arena);
        (0..65).for_each(|index| peer.region(index, 4096, &file));
        assert!(peer.goodbye().is_some());
        hold(peer)
    }),
    loses("a region out of turn", "unexpected region index 65535", |arena| {
        let setup = HostileSetup::new();
        let peer = Peer::init(arena);
        peer.region(u16::MAX, setup.len, &setup.file);
        assert!(peer.goodbye().is_some());
        hold((setup, peer))
    }),
    stays("all rings at the same place", |arena| overlapping(arena, |setup, _| setup.ring(0).offset)),
    loses("a ring on top of another's slots", "", |arena| overlapping(arena, |_, number| 64 * u32::from(number))),
    stays("buffers on top of the rings", |arena| {
        let setup = HostileSetup::new();
        let m2s = setup.m2s();
        // Each frame to the peer overwrites the M2S ring's own slots, behind the head.
        (0..m2s.size).for_each(|slot| m2s.table.write(slot, descriptor(0, 0, 64, 4096)));
        let peer = setup.join(arena);
        hold((setup, peer))
    }),
];

/// Sends frames without end.
pub fn sender_of(setup: &HostileSetup) -> Hammer {
    let (ring, buffer): (Ring, u32) = (setup.s2m(), setup.buffer(0, 0));
    let mut number = 0u32;
    Hammer::swing(move || {
        number = (number + 1) % u32::from(ring.size);
        ring.send(buffer + number * BUFFER as u32, 60 + number);
        std::thread::yield_now();
    })
}

fn shrinks_and_grows(arena: &Arena) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(arena);
    let busy = (sender_of(&setup), reader_of(&setup));
    let (file, len) = (setup.file.try_clone().unwrap(), setup.len.cast_signed());
    let breathing = Hammer::swing(move || {
        ftruncate(&file, 0).unwrap();
        std::thread::yield_now();
        ftruncate(&file, len).unwrap();
    });
    peer.goodbye();
    hold((breathing, busy, setup, peer))
}

fn huge_pages(arena: &Arena) -> Held {
    let huge = memfd_create(c"huge", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB);
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or_default();
    let usable = free.trim().parse::<u32>().is_ok_and(|free| free >= 2);
    let file: OwnedFd = match huge {
        Ok(file) if usable => file,
        _ => memfd_create(c"small pages", MFdFlags::MFD_CLOEXEC).unwrap(),
    };
    let setup = HostileSetup::in_file(file, 1, 8);
    let peer = setup.join(arena);
    (0..10).for_each(|_| setup.s2m().send(setup.buffer(0, 0), 60));
    crate::common::eventually("its frames are taken", || setup.s2m().tail.load() == 10);
    hold((setup, peer))
}

fn region_of(arena: &Arena, size: u64) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(arena);
    peer.region(0, size, &setup.file);
    assert!(peer.goodbye().is_some());
    hold((setup, peer))
}

fn overlapping(arena: &Arena, place: fn(&HostileSetup, u16) -> u32) -> Held {
    let setup = HostileSetup::new();
    let peer = Peer::init(arena);
    peer.region(0, setup.len, &setup.file);
    assert_eq!(peer.hear(), Some(Message::Ack));
    for number in 0..2 {
        let ring = AddRing { offset: place(&setup, number), ..setup.ring(number) };
        peer.say(&Message::AddRing(ring), &[setup.eventfds[usize::from(number)].as_fd()]);
        assert_eq!(peer.hear(), Some(Message::Ack));
    }
    peer.say(&Message::Connect { name: String::new() }, &[]);
    peer.hear();
    hold((setup, peer))
}
