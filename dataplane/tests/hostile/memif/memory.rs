//! Memory that goes away, is larger than the machine, or lies on top of itself.

use std::os::fd::{AsFd, OwnedFd};

use ferrule_dataplane::memif::message::{AddRing, Message};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use crate::arena::{Arena, Case};
use crate::held::{Hammer, Held, hold};
use crate::memif::control::{loses, stays};
use crate::memif::descriptors::reader_of;
use crate::memif::lair::{BUFFER, Lair, Ring, descriptor};
use crate::memif::peer::Peer;

pub const CASES: &[Case] = &[
    loses("memory shorter than announced", "the file holds 4096 bytes, fewer than", |arena| {
        let lair = Lair::new();
        ftruncate(&lair.file, 4096).unwrap();
        let peer = Peer::init(arena);
        peer.region(0, lair.len, &lair.file);
        assert!(peer.goodbye().is_some());
        hold((lair, peer))
    }),
    loses("memory truncated between ADD_REGION and ADD_RING", "truncated", |arena| {
        let lair = Lair::new();
        let peer = Peer::init(arena);
        peer.region(0, lair.len, &lair.file);
        assert_eq!(peer.hear(), Some(Message::Ack));
        ftruncate(&lair.file, 0).unwrap();
        for number in 0..2 {
            peer.say(&Message::AddRing(lair.ring(number)), &[lair.bells[usize::from(number)].as_fd()]);
        }
        peer.say(&Message::Connect { name: String::new() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((lair, peer))
    }),
    loses("memory truncated before CONNECT", "truncated", |arena| {
        let lair = Lair::new();
        let peer = lair.announce(arena);
        ftruncate(&lair.file, 0).unwrap();
        peer.say(&Message::Connect { name: String::new() }, &[]);
        assert!(peer.goodbye().is_some());
        hold((lair, peer))
    }),
    loses("memory truncated after CONNECT", "truncated", |arena| {
        let lair = Lair::new();
        let peer = lair.join(arena);
        ftruncate(&lair.file, 0).unwrap();
        peer.is_refused("truncated");
        hold((lair, peer))
    }),
    loses("memory truncated while frames are taken", "truncated", |arena| {
        let lair = Lair::new();
        let peer = lair.join(arena);
        let busy = sender_of(&lair);
        crate::common::eventually("frames cross", || arena.traffic.far_frames() > 100);
        ftruncate(&lair.file, 0).unwrap();
        peer.is_refused("truncated");
        hold((busy, lair, peer))
    }),
    loses("buffers truncated, rings kept", "truncated", |arena| {
        let lair = Lair::new();
        let peer = lair.join(arena);
        let busy = (sender_of(&lair), reader_of(&lair));
        ftruncate(&lair.file, 12_288).unwrap();
        peer.is_refused("truncated");
        hold((busy, lair, peer))
    }),
    loses("memory that shrinks and grows again and again", "truncated", shrinks_and_grows),
    stays("sealed memory cannot be truncated", |arena| {
        let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let lair = Lair::in_file(file, 1, 8);
        let peer = lair.join(arena);
        assert_eq!(ftruncate(&lair.file, 0), Err(Errno::EPERM));
        hold((lair, peer))
    }),
    stays("holes punched while frames cross", |arena| {
        let lair = Lair::new();
        let peer = lair.join(arena);
        let busy = (sender_of(&lair), reader_of(&lair));
        // The buffers only: rings of zeros would be a lie of another kind.
        let (file, from, len) = (lair.file.try_clone().unwrap(), 12_288, lair.len.cast_signed() - 12_288);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punch = Hammer::swing(move || fallocate(&file, flags, from, len).unwrap());
        crate::common::eventually("frames cross", || arena.traffic.far_frames() > 100);
        hold((punch, busy, lair, peer))
    }),
    stays("memory in huge pages, if there are any", huge_pages),
    loses("a region of no bytes", "a region of no bytes", |arena| region_of(arena, 0)),
    loses("a region of 2^64 - 1 bytes", "above 68719476736 bytes", |arena| region_of(arena, u64::MAX)),
    loses("a region of a byte too many", "above 68719476736 bytes", |arena| region_of(arena, (64 << 30) + 1)),
    stays("64 GiB of nothing", |arena| {
        let file = memfd_create(c"sparse", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut lair = Lair::in_file(file, 1, 8);
        lair.len = 64 << 30;
        ftruncate(&lair.file, lair.len.cast_signed()).unwrap();
        let peer = lair.join(arena);
        (0..10).for_each(|number| lair.s2m().send(u32::MAX - 4096 * number, 60));
        crate::common::eventually("its frames are taken", || lair.s2m().tail.load() == 10);
        hold((lair, peer))
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
        let lair = Lair::new();
        let peer = Peer::init(arena);
        peer.region(u16::MAX, lair.len, &lair.file);
        assert!(peer.goodbye().is_some());
        hold((lair, peer))
    }),
    stays("all rings at the same place", |arena| overlapping(arena, |lair, _| lair.ring(0).offset)),
    loses("a ring on top of another's slots", "", |arena| overlapping(arena, |_, number| 64 * u32::from(number))),
    stays("buffers on top of the rings", |arena| {
        let lair = Lair::new();
        let m2s = lair.m2s();
        // Each frame to the peer overwrites the M2S ring's own slots, behind the head.
        (0..m2s.size).for_each(|slot| m2s.table.write(slot, descriptor(0, 0, 64, 4096)));
        let peer = lair.join(arena);
        hold((lair, peer))
    }),
];

/// Sends frames without end.
pub fn sender_of(lair: &Lair) -> Hammer {
    let (ring, buffer): (Ring, u32) = (lair.s2m(), lair.buffer(0, 0));
    let mut number = 0u32;
    Hammer::swing(move || {
        number = (number + 1) % u32::from(ring.size);
        ring.send(buffer + number * BUFFER as u32, 60 + number);
        std::thread::yield_now();
    })
}

fn shrinks_and_grows(arena: &Arena) -> Held {
    let lair = Lair::new();
    let peer = lair.join(arena);
    let busy = (sender_of(&lair), reader_of(&lair));
    let (file, len) = (lair.file.try_clone().unwrap(), lair.len.cast_signed());
    let breathing = Hammer::swing(move || {
        ftruncate(&file, 0).unwrap();
        std::thread::yield_now();
        ftruncate(&file, len).unwrap();
    });
    peer.goodbye();
    hold((breathing, busy, lair, peer))
}

fn huge_pages(arena: &Arena) -> Held {
    let huge = memfd_create(c"huge", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB);
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or_default();
    let usable = free.trim().parse::<u32>().is_ok_and(|free| free >= 2);
    let file: OwnedFd = match huge {
        Ok(file) if usable => file,
        _ => memfd_create(c"small pages", MFdFlags::MFD_CLOEXEC).unwrap(),
    };
    let lair = Lair::in_file(file, 1, 8);
    let peer = lair.join(arena);
    (0..10).for_each(|_| lair.s2m().send(lair.buffer(0, 0), 60));
    crate::common::eventually("its frames are taken", || lair.s2m().tail.load() == 10);
    hold((lair, peer))
}

fn region_of(arena: &Arena, size: u64) -> Held {
    let lair = Lair::new();
    let peer = Peer::init(arena);
    peer.region(0, size, &lair.file);
    assert!(peer.goodbye().is_some());
    hold((lair, peer))
}

fn overlapping(arena: &Arena, place: fn(&Lair, u16) -> u32) -> Held {
    let lair = Lair::new();
    let peer = Peer::init(arena);
    peer.region(0, lair.len, &lair.file);
    assert_eq!(peer.hear(), Some(Message::Ack));
    for number in 0..2 {
        let ring = AddRing { offset: place(&lair, number), ..lair.ring(number) };
        peer.say(&Message::AddRing(ring), &[lair.bells[usize::from(number)].as_fd()]);
        assert_eq!(peer.hear(), Some(Message::Ack));
    }
    peer.say(&Message::Connect { name: String::new() }, &[]);
    peer.hear();
    hold((lair, peer))
}
