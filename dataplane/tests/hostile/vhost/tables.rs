//! Tables of descriptors that are none.

use crate::common::eventually;
use crate::held::{Held, Repeat, hold};
use crate::testbed::{Case, Testbed};
use crate::vhost::setup::{GUEST, HEADER, HostileSetup, INDIRECT, NEXT, Shape, WRITE, packed, split};
use crate::vhost::verdict::{loses, stays};

pub const CASES: &[Case] = &[
    loses("split: a table in a table", "one inside another", |testbed| {
        table(testbed, Shape::split(), |setup, place| {
            let inner = setup.table(place + 4096, &[split(place, 72, 0, 0)]);
            (setup.table(place, &[split(inner, 16, INDIRECT, 0)]), 16)
        })
    }),
    loses("split: a table that is its own entry", "one inside another", |testbed| {
        table(testbed, Shape::split(), |setup, place| (setup.table(place, &[split(place, 16, INDIRECT, 0)]), 16))
    }),
    loses("split: a table of 2^32 - 16 bytes", "stands for 4294967280 bytes", |testbed| {
        table(testbed, Shape::split(), |setup, place| (setup.table(place, &[split(place, 72, 0, 0)]), u32::MAX - 15))
    }),
    loses("split: a table of 20 bytes", "stands for 20 bytes", |testbed| {
        table(testbed, Shape::split(), |_, place| (place, 20))
    }),
    loses("split: a table of no bytes", "stands for 0 bytes", |testbed| {
        table(testbed, Shape::split(), |_, place| (place, 0))
    }),
    loses("split: a table whose links are a circle", "stands for 8192 bytes", |testbed| circle(testbed, 512)),
    loses("split: a short table whose links are a circle", "stands for 32 bytes", |testbed| circle(testbed, 2)),
    loses("split: a table whose links leave it", "stands for 32 bytes", |testbed| {
        table(testbed, Shape::split(), |setup, place| {
            (setup.table(place, &[split(GUEST, 12, NEXT, 2), split(GUEST, 60, 0, 0)]), 32)
        })
    }),
    loses("split: a table outside of memory", "not all in its memory", |testbed| {
        table(testbed, Shape::split(), |_, _| (0xdead_0000, 32))
    }),
    loses("split: a table that straddles the end of memory", "not all in its memory", |testbed| {
        table(testbed, Shape::split(), |setup, _| {
            let end = GUEST + setup.row().size;
            (setup.table(end - 16, &[split(GUEST, 12, NEXT, 1)]), 32)
        })
    }),
    loses("split: a table at the end of all addresses", "not all in its memory", |testbed| {
        table(testbed, Shape::split(), |_, _| (u64::MAX - 15, 32))
    }),
    stays("split: a table a byte off", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        // A table of zeros: a frame of no bytes.
        setup.split(1).publish(&[split(setup.buffer(1, 0) + 1, 16, INDIRECT, 0)]);
        eventually("it is taken", || setup.split(1).used_index.load() == 1);
        hold((setup, peer))
    }),
    loses("split: a table with more of the chain behind it", "stands for 16 bytes", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let place = setup.table(setup.buffer(1, 0), &[split(setup.buffer(1, 1), 72, 0, 0)]);
        setup.split(1).publish(&[split(place, 16, INDIRECT | NEXT, 1), split(setup.buffer(1, 2), 60, 0, 0)]);
        peer.is_parted();
        hold((setup, peer))
    }),
    loses("split: a receive table whose entries are not to be written", "not for the device to write", |testbed| {
        let setup = HostileSetup::new();
        let place = setup.table(setup.buffer(1, 0), &[split(setup.buffer(1, 1), 2048, 0, 0)]);
        (0..256).for_each(|slot| setup.split(0).desc.write(slot, split(place, 16, INDIRECT | WRITE, 0)));
        let peer = setup.announce(testbed);
        setup.enable(&peer);
        peer.is_parted();
        hold((setup, peer))
    }),
    stays("packed: a table whose entry is flagged as a table", |testbed| {
        let setup = HostileSetup::of(Shape::packed());
        let peer = setup.join(testbed);
        // The flag is reserved there, and ignored: a frame of four bytes.
        let place = setup.table(setup.buffer(1, 0), &[packed(setup.buffer(1, 1), 16, 0, INDIRECT)]);
        setup.packed(1).publish(&[packed(place, 16, 0, INDIRECT)]);
        eventually("it is taken", || setup.packed(1).is_used(0));
        hold((setup, peer))
    }),
    loses("packed: a table of 2^32 - 16 bytes", "stands for 4294967280 bytes", |testbed| {
        table(testbed, Shape::packed(), |_, place| (place, u32::MAX - 15))
    }),
    loses("packed: a table of 20 bytes", "stands for 20 bytes", |testbed| {
        table(testbed, Shape::packed(), |_, place| (place, 20))
    }),
    loses("packed: a table outside of memory", "not all in its memory", |testbed| {
        table(testbed, Shape::packed(), |_, _| (0xdead_0000, 32))
    }),
    loses("packed: a table with more of the chain behind it", "stands for 16 bytes", |testbed| {
        let setup = HostileSetup::of(Shape::packed());
        let peer = setup.join(testbed);
        let place = setup.table(setup.buffer(1, 0), &[packed(setup.buffer(1, 1), 72, 0, 0)]);
        setup.packed(1).publish(&[packed(place, 16, 0, INDIRECT | NEXT), packed(place, 16, 1, 0)]);
        peer.is_parted();
        hold((setup, peer))
    }),
    stays("the longest frames in the most pieces, in split rings", |testbed| greedy(testbed, 128)),
    stays("frames of no bytes in the most pieces, in split rings", |testbed| greedy(testbed, 0)),
    loses("tables rewritten while they are read", "", rewritten),
];

/// Sends one descriptor that stands for a table, and has lost its place by it.
fn table(testbed: &Testbed, shape: Shape, lie: fn(&HostileSetup, u64) -> (u64, u32)) -> Held {
    let setup = HostileSetup::of(shape);
    let peer = setup.join(testbed);
    let (address, len) = lie(&setup, setup.buffer(1, 8));
    if shape.is_packed() {
        setup.packed(1).publish(&[packed(address, len, 0, INDIRECT)]);
    } else {
        setup.split(1).publish(&[split(address, len, INDIRECT, 0)]);
    }
    peer.is_parted();
    hold((setup, peer))
}

fn circle(testbed: &Testbed, entries: u16) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let links: Vec<_> = (0..entries).map(|entry| split(GUEST, 1, NEXT, (entry + 1) % entries)).collect();
    let place = setup.table(setup.buffer(1, 0), &links);
    setup.split(1).publish(&[split(place, 16 * u32::from(entries), INDIRECT, 0)]);
    peer.is_parted();
    hold((setup, peer))
}

/// What costs the most to take: each frame a table of 512 entries, without end.
fn greedy(testbed: &Testbed, len: u32) -> Held {
    let setup = HostileSetup::of(Shape { size: 1024, ..Shape::split() });
    let entries: Vec<_> = (0..512u16)
        .map(|entry| split(setup.buffer(0, entry.into()), len, if entry < 511 { NEXT } else { 0 }, entry + 1))
        .collect();
    let place = setup.table(setup.buffer(1, 0), &entries);
    let ring = setup.split(1);
    for slot in 0..ring.size {
        ring.desc.write(slot.into(), split(place, 16 * 512, INDIRECT, 0));
        ring.avail.write(2 + u32::from(slot), slot);
    }
    let peer = setup.join(testbed);
    let repeat = Repeat::start(move || {
        ring.avail_index.store(ring.used_index.load().wrapping_add(ring.size));
        std::thread::yield_now();
    });
    let taken = setup.split(1);
    eventually("they are taken", || taken.used_index.load() > 500);
    testbed.traffic.must_move();
    hold((repeat, setup, peer))
}

fn rewritten(testbed: &Testbed) -> Held {
    let setup = HostileSetup::new();
    let peer = setup.join(testbed);
    let place = setup.buffer(1, 0);
    let ring = setup.split(1);
    (0..256).for_each(|slot| ring.desc.write(slot, split(place, 32, INDIRECT, 0)));
    let (good, bad) = (split(setup.buffer(1, 9), HEADER, NEXT, 1), split(u64::MAX - 5, u32::MAX, NEXT | INDIRECT, 7));
    let mut number = 0u32;
    setup.table(place, &[good, split(setup.buffer(1, 9), 60, 0, 0)]);
    let repeat = Repeat::start({
        let memory: ferrule_ffi::array::Array<[u64; 2]> =
            ferrule_ffi::array::Array::new(&setup.memory, place - GUEST, 2).unwrap();
        move || {
            number += 1;
            memory.write(0, if number.is_multiple_of(1000) { bad } else { good });
            ring.avail_index.store(ring.used_index.load().wrapping_add(ring.size));
        }
    });
    peer.is_parted();
    hold((repeat, setup, peer))
}
