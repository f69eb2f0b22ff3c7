//! Headers that lie about the frames behind them.

use std::thread;

use ferrule_dataplane::offload::VnetHeader;
use ferrule_dataplane::port::vhost_user::features::Features;

use crate::common::{TestRng, eventually};
use crate::held::{Held, Repeat, hold};
use crate::testbed::{Case, Expect, Far, Testbed};
use crate::vhost::rounds::reader_of;
use crate::vhost::setup::{HEADER, HostileSetup, NEXT, Shape, packed, split};
use crate::vhost::verdict::against;

/// Each towards a guest that takes finished frames only, and towards one that takes them as they are.
pub const CASES: &[Case] = &[
    // CVE-2024-11614: a checksum far behind its packet.
    finished("finished here: a checksum outside of its frame", |testbed| sends(testbed, CHECKSUM_OUTSIDE)),
    unfinished("passed on: a checksum outside of its frame", |testbed| sends(testbed, CHECKSUM_OUTSIDE)),
    finished("finished here: a checksum on the frame's last byte", |testbed| sends(testbed, CHECKSUM_AT_END)),
    unfinished("passed on: a checksum on the frame's last byte", |testbed| sends(testbed, CHECKSUM_AT_END)),
    finished("finished here: segments of no bytes", |testbed| sends(testbed, NO_SEGMENTS)),
    unfinished("passed on: segments of no bytes", |testbed| sends(testbed, NO_SEGMENTS)),
    finished("finished here: headers longer than the frame", |testbed| sends(testbed, LONG_HEADERS)),
    unfinished("passed on: headers longer than the frame", |testbed| sends(testbed, LONG_HEADERS)),
    finished("finished here: segments of what nobody knows", |testbed| sends(testbed, UNKNOWN)),
    unfinished("passed on: segments of what nobody knows", |testbed| sends(testbed, UNKNOWN)),
    finished("finished here: segments without a checksum", |testbed| sends(testbed, WITHOUT_CHECKSUM)),
    unfinished("passed on: segments without a checksum", |testbed| sends(testbed, WITHOUT_CHECKSUM)),
    finished("finished here: segments of a frame that is no TCP", |testbed| sends(testbed, TCP)),
    finished("finished here: segments of one byte, 64 KiB of them", |testbed| greedy(testbed, 1)),
    finished("finished here: the most segments that are made of a frame", |testbed| greedy(testbed, 32)),
    unfinished("passed on: segments of one byte, 64 KiB of them", |testbed| greedy(testbed, 1)),
    // Fetched twice, csum_start passed its check and was another one when it was used.
    finished("finished here: a header that changes while it is read", rewritten),
    unfinished("passed on: a header that changes while it is read", rewritten),
    against(Far::Memif, "to memif: a header that was not agreed on", Expect::Stays, |testbed| {
        // Without the feature its bytes mean nothing, and the frame is what it is.
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let before = testbed.traffic.far_frames();
        send(&setup, &NO_SEGMENTS, 10);
        eventually("they arrive", || testbed.traffic.far_frames() >= before + 10);
        hold((setup, peer))
    }),
    unfinished("passed on: headers of random bytes", random),
    finished("finished here: headers of random bytes", random),
];

const CHECKSUM_OUTSIDE: VnetHeader = VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..CHECKSUM };
/// A byte of it would lie behind the frame.
const CHECKSUM_AT_END: VnetHeader = VnetHeader { csum_start: FRAME as u16 - 7, csum_offset: 6, ..CHECKSUM };
const NO_SEGMENTS: VnetHeader = VnetHeader { gso_size: 0, ..TCP };
const LONG_HEADERS: VnetHeader = VnetHeader { hdr_len: u16::MAX, ..TCP };
const UNKNOWN: VnetHeader = VnetHeader { gso_type: 0x7f, ..TCP };
const WITHOUT_CHECKSUM: VnetHeader = VnetHeader { flags: 0, ..TCP };
const CHECKSUM: VnetHeader = VnetHeader {
    flags: VnetHeader::NEEDS_CSUM,
    gso_type: VnetHeader::GSO_NONE,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};
const TCP: VnetHeader = VnetHeader { gso_type: VnetHeader::GSO_TCPV4, hdr_len: 54, gso_size: 100, ..CHECKSUM };

const fn finished(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    against(Far::Finished, name, Expect::Stays, attack)
}

const fn unfinished(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    against(Far::Unfinished, name, Expect::Stays, attack)
}

fn offloading(shape: Shape) -> HostileSetup {
    HostileSetup::of(shape.with(Features::CSUM | Features::HOST_TSO4 | Features::HOST_TSO6))
}

/// Sends such frames in split and in packed rings: each is dropped and counted, and none arrives.
fn sends(testbed: &Testbed, header: VnetHeader) -> Held {
    let dropped = || testbed.engine.wire(&testbed.wire).unwrap().directions[0].dropped();
    for shape in [Shape::split(), Shape::packed()] {
        let setup = offloading(shape);
        let peer = setup.join(testbed);
        let (before, arrived) = (dropped(), testbed.traffic.far_frames());
        send(&setup, &header, 100);
        eventually("they are dropped", || dropped() == before + 100);
        assert_eq!(testbed.traffic.far_frames(), arrived);
        drop(peer);
        eventually("the end is free", || testbed.shows("closed its socket"));
    }
    let setup = offloading(Shape::split());
    let peer = setup.join(testbed);
    hold((setup, peer))
}

/// Sends frames of zeros behind this header, each in one descriptor.
fn send(setup: &HostileSetup, header: &VnetHeader, count: u16) {
    let first = header.emit();
    for slot in 0..u32::from(count) {
        write(setup, setup.buffer(1, slot), &first);
    }
    if setup.shape.is_packed() {
        let words = |id: u16| packed(setup.buffer(1, id.into()), HEADER + FRAME, id, 0);
        return setup.packed(1).publish(&(0..count).map(words).collect::<Vec<_>>());
    }
    let ring = setup.split(1);
    for slot in 0..count {
        ring.desc.write(slot.into(), split(setup.buffer(1, slot.into()), HEADER + FRAME, 0, 0));
    }
    ring.offer(&(0..count).collect::<Vec<_>>());
}

/// Writes whole words of bytes at a guest address.
fn write(setup: &HostileSetup, address: u64, bytes: &[u8]) {
    for (at, word) in (address..).step_by(4).zip(bytes.chunks_exact(4)) {
        let word = u32::from_le_bytes(word.try_into().unwrap());
        setup.memory.write_u32(at - setup.row().guest, word).unwrap();
    }
}

/// Sends TCP frames of 64 KiB, without end, to be cut into segments of so many bytes.
fn greedy(testbed: &Testbed, gso_size: u16) -> Held {
    let setup = offloading(Shape::split());
    let header = VnetHeader { gso_size, ..TCP };
    let (pieces, len) = (32u16, 2031u32);
    let bytes = u32::from(pieces) * len - HEADER;
    // 64980 bytes.
    write(&setup, setup.buffer(1, 0), &[&header.emit()[..], &tcp_headers(bytes as u16)].concat());
    let peer = setup.join(testbed);
    let ring = setup.split(1);
    for slot in 0..pieces {
        let flags = if slot + 1 < pieces { NEXT } else { 0 };
        ring.desc.write(slot.into(), split(setup.buffer(1, slot.into()), len, flags, slot + 1));
    }
    // Every entry names the same chain.
    (0..u32::from(ring.size)).for_each(|entry| ring.avail.write(2 + entry, 0));
    let taken = setup.split(1);
    let repeat = Repeat::start(move || {
        ring.avail_index.store(ring.used_index.load().wrapping_add(ring.size));
        thread::yield_now();
    });
    eventually("they are taken", || taken.used_index.load() > 0);
    testbed.traffic.must_move();
    hold((repeat, setup, peer))
}

/// Ethernet, IPv4 and TCP in front of as many bytes, padded to whole words.
fn tcp_headers(bytes: u16) -> Vec<u8> {
    let mut frame = vec![0; 56];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&(bytes - 14).to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[46] = 0x50;
    frame
}

fn rewritten(testbed: &Testbed) -> Held {
    let setup = offloading(Shape::split());
    let peer = setup.join(testbed);
    send(&setup, &CHECKSUM, 200);
    let (ring, memory) = (setup.split(1), setup.memory.clone());
    let places: Vec<_> = (0..200).map(|slot| setup.buffer(1, slot) - setup.row().guest).collect();
    let mut number = 0usize;
    let repeat = Repeat::start(move || {
        number += 1;
        let header = if number.is_multiple_of(2) { CHECKSUM } else { CHECKSUM_OUTSIDE }.emit();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        for &place in places.iter().skip(number % 7).step_by(7) {
            memory.write_u32(place + 4, word(4)).unwrap();
            memory.write_u32(place + 8, word(8)).unwrap();
        }
        ring.avail_index.store(ring.used_index.load().wrapping_add(200));
    });
    let reader = reader_of(&setup);
    let before = testbed.traffic.far_frames();
    eventually("some arrive", || testbed.traffic.far_frames() > before + 100);
    hold((repeat, reader, setup, peer))
}

fn random(testbed: &Testbed) -> Held {
    let mut rng = TestRng(0x0bad_5eed);
    let setup = offloading(Shape::split());
    let peer = setup.join(testbed);
    send(&setup, &CHECKSUM, 200);
    let (ring, memory) = (setup.split(1), setup.memory.clone());
    let places: Vec<_> = (0..200).map(|slot| setup.buffer(1, slot) - setup.row().guest).collect();
    let taken = setup.split(1);
    let repeat = Repeat::start(move || {
        // Small numbers are nearer to what is good.
        let small = 0x007f_007f;
        for word in [0, 4, 8] {
            let value = rng.roll() as u32 & if rng.roll().is_multiple_of(4) { u32::MAX } else { small };
            memory.write_u32(places[rng.roll() as usize % places.len()] + word, value).unwrap();
        }
        ring.avail_index.store(ring.used_index.load().wrapping_add(200));
    });
    let reader = reader_of(&setup);
    eventually("they are taken", || taken.used_index.load() > 10_000);
    hold((repeat, reader, setup, peer))
}

/// Bytes of a short frame.
const FRAME: u32 = 60;
