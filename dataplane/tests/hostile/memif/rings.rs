//! Lies in the rings themselves.

use crate::common::{TestRng, eventually};
use crate::held::{Held, Repeat, hold};
use crate::memif::control::{loses, stays};
use crate::memif::descriptors::reader_of;
use crate::memif::memory::sender_of;
use crate::memif::peer::Peer;
use crate::memif::setup::{COOKIE, HostileSetup, NEXT, Ring, descriptor};
use crate::testbed::{Case, Testbed};

pub const CASES: &[Case] = &[
    loses("a descriptor in region 65535", "descriptor 0 names bytes 0+60 of region 65535", |testbed| {
        sends(testbed, 8, |ring, _| ring.publish(&[descriptor(0, u16::MAX, 60, 0)]))
    }),
    loses("offset and length that wrap in 32 bits", "bytes 4294967232+64 of region 0", |testbed| {
        sends(testbed, 8, |ring, _| ring.publish(&[descriptor(0, 0, 64, u32::MAX - 63)]))
    }),
    loses("a length of 2^32 - 1", "+4294967295 of region 0", |testbed| {
        sends(testbed, 8, |ring, _| ring.publish(&[descriptor(0, 0, u32::MAX, 0)]))
    }),
    loses("a frame one byte longer than its region", "not all there", |testbed| {
        sends(testbed, 8, |ring, setup| ring.publish(&[descriptor(0, 0, 60, setup.len as u32 - 59)]))
    }),
    loses("a frame of a megabyte", "longer than", |testbed| {
        sends(testbed, 8, |ring, _| ring.publish(&[descriptor(0, 0, 1 << 20, 0)]))
    }),
    stays("frames of no bytes", |testbed| sends(testbed, 8, |ring, _| (0..200).for_each(|_| ring.send(0, 0)))),
    stays("frames of unknown flags", |testbed| {
        sends(testbed, 8, |ring, setup| ring.publish(&[descriptor(!NEXT, 0, 60, setup.buffer(0, 0))]))
    }),
    loses("an endless chain around the ring", "goes beyond what was published", |testbed| {
        sends(testbed, 8, |ring, setup| ring.publish(&vec![descriptor(NEXT, 0, 60, setup.buffer(0, 0)); 256]))
    }),
    loses("an endless chain around the largest ring", "too many pieces", |testbed| {
        sends(testbed, 14, |ring, setup| ring.publish(&vec![descriptor(NEXT, 0, 60, setup.buffer(0, 0)); 1 << 14]))
    }),
    loses("an endless chain of nothing", "too many pieces", |testbed| {
        sends(testbed, 14, |ring, _| ring.publish(&vec![descriptor(NEXT, 0, 0, 0); 1 << 14]))
    }),
    loses("a chain left open", "goes beyond what was published", |testbed| {
        sends(testbed, 8, |ring, setup| ring.publish(&[descriptor(NEXT, 0, 60, setup.buffer(0, 0)); 2]))
    }),
    loses("a chain of more than 64 KiB", "longer than 65600 bytes", |testbed| {
        sends(testbed, 8, |ring, setup| ring.publish(&vec![descriptor(NEXT, 0, 2048, setup.buffer(0, 0)); 40]))
    }),
    loses("a chain that goes astray in its middle", "of region 7", |testbed| {
        sends(testbed, 8, |ring, setup| {
            let good = descriptor(NEXT, 0, 60, setup.buffer(0, 0));
            ring.publish(&[good, descriptor(NEXT, 7, 60, 0), good]);
        })
    }),
    loses("a head a slot further than the ring is long", "its ring index moved from 0 to 257", |testbed| {
        sends(testbed, 8, |ring, _| ring.head.store(257))
    }),
    loses("a head that goes backwards", "further than the ring's 256 slots", |testbed| {
        sends(testbed, 8, |ring, _| {
            (0..10).for_each(|_| ring.send(0, 60));
            eventually("they are taken", || ring.tail.load() == 10);
            ring.head.store(9);
        })
    }),
    stays("a tail, a cookie and flags that change under us", |testbed| {
        sends(testbed, 8, |ring, setup| {
            for value in [1, 255, u16::MAX] {
                ring.tail.store(value);
                ring.flags.store(value);
                setup.memory.write_u32(0, COOKIE ^ u32::from(value)).unwrap();
            }
        })
    }),
    loses("buffers of no bytes offered", "+0 of region 0", |testbed| offers(testbed, descriptor(0, 0, 0, 8192))),
    loses("buffers in region 65535 offered", "of region 65535", |testbed| {
        offers(testbed, descriptor(0, u16::MAX, 2048, 0))
    }),
    loses("buffers behind the region offered", "bytes 4294967280+", |testbed| {
        offers(testbed, descriptor(0, 0, 2048, u32::MAX - 15))
    }),
    stays("buffers of 2^32 - 1 bytes offered", |testbed| offers(testbed, descriptor(0, 0, u32::MAX, 12_288))),
    stays("buffers of one byte in the largest ring", one_byte_buffers),
    loses("an M2S head that jumps", "its ring index moved", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        setup.m2s().head.store(setup.m2s().tail.load().wrapping_add(600));
        peer.is_refused("its ring index moved");
        hold((setup, peer))
    }),
    stays("a peer that never reads", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        // A frame of two slots does not fit into the last one.
        eventually("its ring is full", || setup.m2s().tail.load() >= 255);
        hold((setup, peer))
    }),
    stays("a peer that offers one buffer and never another", |testbed| {
        let setup = HostileSetup::new();
        setup.m2s().table.write(0, descriptor(0, 0, 4096, 12_288));
        setup.m2s().head.store(1);
        let peer = setup.join(testbed);
        eventually("its buffer is full", || setup.m2s().tail.load() == 1);
        hold((setup, peer))
    }),
    stays("rings of one slot", |testbed| {
        let setup = HostileSetup::sized(1, 0);
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        eventually("frames cross", || testbed.traffic.far_frames() > 10);
        hold((busy, setup, peer))
    }),
    stays("sixteen pairs of the largest rings, all full", |testbed| {
        let setup = HostileSetup::sized(16, 12);
        let peer = setup.join(testbed);
        let busy = sender_of(&setup);
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((busy, setup, peer))
    }),
    stays("the longest frames in the most pieces, without end", greedy_sender),
    loses("indexes hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            setup.s2m().head.store(rng.roll() as u16);
            setup.m2s().head.store(rng.roll() as u16);
        })
    }),
    loses("descriptors hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            let ring = if rng.roll().is_multiple_of(2) { setup.s2m() } else { setup.m2s() };
            ring.table.write(rng.roll() as u16, [rng.roll(), rng.roll()]);
            ring.head.store(ring.tail.load().wrapping_add(ring.size));
        })
    }),
    loses("every word of the rings hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            let place = rng.roll() % u64::from(setup.buffer(0, 0));
            setup.memory.write_u32(place & !3, rng.roll() as u32).unwrap();
        })
    }),
    stays("lengths hammered inside of the region", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        let mut rng = TestRng(77);
        let repeat = {
            let (s2m, buffer) = (setup.s2m(), setup.buffer(0, 0));
            Repeat::start(move || {
                let words = descriptor(0, 0, rng.roll() as u32 % 4096, buffer + rng.roll() as u32 % 65_536);
                s2m.table.write(rng.roll() as u16, words);
            })
        };
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((repeat, busy, setup, peer))
    }),
];

/// Connects, and then does something to its S2M ring.
fn sends(testbed: &Testbed, log2: u8, lie: fn(&Ring, &HostileSetup)) -> Held {
    let setup = HostileSetup::sized(1, log2);
    let peer = setup.join(testbed);
    lie(&setup.s2m(), &setup);
    hold((setup, peer))
}

/// Offers the same buffer in all M2S slots.
fn offers(testbed: &Testbed, buffer: [u64; 2]) -> Held {
    let setup = HostileSetup::new();
    (0..256).for_each(|slot| setup.m2s().table.write(slot, buffer));
    let peer = setup.join(testbed);
    eventually("a frame went there", || {
        setup.m2s().tail.load() > 0 || !testbed.engine.wire(&testbed.wire).unwrap().is_up()
    });
    hold((setup, peer))
}

/// What makes frames cost the most: thousands of slots to look through for nothing.
fn one_byte_buffers(testbed: &Testbed) -> Held {
    let setup = HostileSetup::sized(1, 14);
    let ring = setup.m2s();
    let refill = move || {
        for slot in 0..ring.size {
            ring.table.write(slot, descriptor(0, 0, 1, 1 << 20));
        }
        ring.head.store(ring.tail.load().wrapping_add(ring.size));
    };
    refill();
    let peer = setup.join(testbed);
    let repeat = Repeat::start(refill);
    testbed.traffic.must_move();
    hold((repeat, setup, peer))
}

fn greedy_sender(testbed: &Testbed) -> Held {
    let setup = HostileSetup::sized(1, 14);
    let ring = setup.s2m();
    for slot in 0..ring.size {
        let last = slot % 512 == 511;
        ring.table.write(slot, descriptor(if last { 0 } else { NEXT }, 0, 128, setup.buffer(0, 0)));
    }
    let peer = setup.join(testbed);
    let repeat = Repeat::start(move || {
        let whole = ring.tail.load() & !511;
        ring.head.store(whole.wrapping_add(ring.size));
        std::thread::yield_now();
    });
    testbed.traffic.must_move();
    hold((repeat, setup, peer))
}

/// Rewrites its memory at random until it has lost its connection.
fn hammered(testbed: &Testbed, blow: fn(&HostileSetup, &mut TestRng)) -> Held {
    for seed in 1..=5 {
        let setup = HostileSetup::new();
        let peer: Peer = setup.join(testbed);
        let mut rng = TestRng(seed);
        let repeat = Repeat::start(move || blow(&setup, &mut rng));
        testbed.traffic.must_move();
        assert!(peer.goodbye().is_some());
        drop(repeat);
    }
    hold(())
}
