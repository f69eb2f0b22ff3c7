//! Lies in split rings.

use std::thread;

use ferrule_dataplane::port::vhost_user::features::Features;

use crate::common::{TestRng, eventually};
use crate::held::{Held, Repeat, hold};
use crate::testbed::{Case, Testbed};
use crate::vhost::rounds::{reader_of, sender_of};
use crate::vhost::setup::{GUEST, HEADER, HostileSetup, NEXT, Shape, Split, USER, WRITE, split};
use crate::vhost::verdict::{loses, stays};

pub const CASES: &[Case] = &[
    loses("split: an index that jumps by more than its ring is long", "its ring index moved", |testbed| {
        sends(testbed, |ring, _| ring.avail_index.store(257))
    }),
    loses("split: an index that goes backwards", "its ring index moved from", |testbed| {
        sends(testbed, |ring, setup| {
            ring.publish(&[split(setup.buffer(1, 0), HEADER + 60, 0, 0)]);
            eventually("it is taken", || ring.used_index.load() == 1);
            ring.avail_index.store(0);
        })
    }),
    loses("split: a receive index that jumps", "its ring index moved", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        setup.split(0).avail_index.store(setup.split(0).used_index.load().wrapping_add(700));
        peer.is_parted();
        hold((setup, peer))
    }),
    loses("split: a head out of range", "names descriptor 256 of a ring of 256", |testbed| {
        sends(testbed, |ring, _| ring.offer(&[256]))
    }),
    loses("split: a head of 65535", "names descriptor 65535", |testbed| {
        sends(testbed, |ring, _| ring.offer(&[u16::MAX]))
    }),
    loses("split: a receive head out of range", "names descriptor 65535", |testbed| {
        receives(testbed, |ring, _| {
            (0..ring.size).for_each(|slot| ring.avail.write(2 + u32::from(slot), u16::MAX));
        })
    }),
    loses("split: a link out of range", "names descriptor 256 of", |testbed| {
        sends(testbed, |ring, setup| ring.publish(&[split(setup.buffer(1, 0), 12, NEXT, 256)]))
    }),
    loses("split: a link to itself", "too many pieces", |testbed| {
        sends(testbed, |ring, setup| ring.publish(&[split(setup.buffer(1, 0), 12, NEXT, 0)]))
    }),
    loses("split: links in a circle, of no bytes", "too many pieces", |testbed| {
        sends(testbed, |ring, _| ring.publish(&[split(GUEST, 0, NEXT, 1), split(GUEST, 0, NEXT, 0)]))
    }),
    loses("split: links in a circle in the longest ring", "too many pieces", |testbed| {
        sends_in(testbed, Shape { size: 32_768, ..Shape::split() }, |ring, _| {
            (0..32_768u32).for_each(|slot| ring.desc.write(slot, split(GUEST, 1, NEXT, (slot + 1) as u16 & 0x7fff)));
            ring.offer(&[0]);
        })
    }),
    loses("split: receive links in a circle", "too many pieces", |testbed| {
        receives(testbed, |ring, setup| {
            (0..ring.size).for_each(|slot| {
                ring.desc.write(slot.into(), split(setup.buffer(0, slot.into()), 1, NEXT | WRITE, slot ^ 1));
            });
        })
    }),
    // CVE-2018-1059: the translation of an address looked at its first byte only.
    loses("split: an address outside of all memory", "at guest address 0x0000003e8", |testbed| {
        sends(testbed, |ring, _| ring.publish(&[split(1000, 72, 0, 0)]))
    }),
    loses("split: an address of 2^64 - 1", "0xffffffffffffffff", |testbed| {
        sends(testbed, |ring, _| ring.publish(&[split(u64::MAX, 72, 0, 0)]))
    }),
    loses("split: a buffer that straddles the end of memory", "not all in its memory", |testbed| {
        sends(testbed, |ring, setup| ring.publish(&[split(GUEST + setup.row().size - 71, 72, 0, 0)]))
    }),
    loses("split: a user address as a guest address", "not all in its memory", |testbed| {
        sends(testbed, |ring, setup| ring.publish(&[split(setup.address(1).desc, 72, 0, 0)]))
    }),
    loses("split: a receive buffer that straddles the end of memory", "not all in its memory", |testbed| {
        receives(testbed, |ring, setup| {
            let words = split(GUEST + setup.row().size - 20, 2048, WRITE, 0);
            (0..ring.size).for_each(|slot| ring.desc.write(slot.into(), words));
        })
    }),
    loses("split: a frame of 2^32 - 1 bytes", "longer than", |testbed| {
        sends(testbed, |ring, _| ring.publish(&[split(GUEST, u32::MAX, 0, 0)]))
    }),
    loses("split: a chain of many times 2^32 - 1 bytes", "longer than", |testbed| {
        sends(testbed, |ring, _| {
            let words = |slot: u16| split(GUEST, u32::MAX, if slot < 255 { NEXT } else { 0 }, slot + 1);
            ring.publish(&(0..256).map(words).collect::<Vec<_>>());
        })
    }),
    // CVE-2022-2132 and the like: chains no longer than a header held buffers for ever.
    stays("split: frames of no bytes, and chains shorter than a header", |testbed| {
        sends(testbed, |ring, setup| {
            for len in (0..=HEADER).cycle().take(200) {
                let index = ring.avail_index.load();
                ring.desc.write(u32::from(index % 256), split(setup.buffer(1, 0), len, 0, 0));
                ring.offer(&[index % 256]);
            }
            eventually("they are given back", || ring.used_index.load() == 200);
        })
    }),
    stays("split: a header over twelve descriptors, a frame over sixty", |testbed| {
        sends(testbed, |ring, setup| {
            let words = |slot: u16| {
                let flags = if slot < 71 { NEXT } else { 0 };
                split(setup.buffer(1, slot.into()), 1, flags, slot + 1)
            };
            ring.publish(&(0..72).map(words).collect::<Vec<_>>());
            eventually("it is taken", || ring.used_index.load() == 1);
        })
    }),
    stays("split: descriptors of no bytes in a chain", |testbed| {
        sends(testbed, |ring, setup| {
            let words = |slot: u16| {
                let (len, flags) = (if slot == 100 { 72 } else { 0 }, if slot < 200 { NEXT } else { 0 });
                split(setup.buffer(1, 0), len, flags, slot + 1)
            };
            ring.publish(&(0..201).map(words).collect::<Vec<_>>());
            eventually("it is taken", || ring.used_index.load() == 1);
        })
    }),
    stays("split: descriptors to send from that are to be written", |testbed| {
        sends(testbed, |ring, setup| ring.publish(&[split(setup.buffer(1, 0), 72, WRITE | 0xfff8, 7)]))
    }),
    loses("split: descriptors to receive in that are not to be written", "not for the device to write", |testbed| {
        receives(testbed, |ring, setup| {
            (0..ring.size).for_each(|slot| ring.desc.write(slot.into(), split(setup.buffer(0, 0), 2048, 0, 0)));
        })
    }),
    loses("split: receive buffers shorter than a header", "fewer than a header has", |testbed| {
        receives(testbed, |ring, setup| {
            (0..ring.size).for_each(|slot| ring.desc.write(slot.into(), split(setup.buffer(0, 0), 11, WRITE, 0)));
        })
    }),
    loses("split: receive buffers of no bytes", "fewer than a header has", |testbed| {
        receives(testbed, |ring, setup| {
            (0..ring.size).for_each(|slot| ring.desc.write(slot.into(), split(setup.buffer(0, 0), 0, WRITE, 0)));
        })
    }),
    stays("split: receive buffers of 2^32 - 1 bytes", |testbed| {
        receives_and_stays(testbed, Shape::split(), |ring, _| {
            // The first bytes of each are there, and no more are needed.
            (0..ring.size).for_each(|slot| ring.desc.write(slot.into(), split(GUEST + (1 << 20), u32::MAX, WRITE, 0)));
        })
    }),
    stays("split: receive buffers of thirteen bytes, in the longest ring", |testbed| {
        receives_and_stays(testbed, Shape { size: 32_768, ..Shape::split() }, |ring, setup| {
            for slot in 0..ring.size {
                ring.desc.write(slot.into(), split(setup.buffer(0, slot.into()), 13, WRITE, 0));
            }
        })
    }),
    stays("split: frames longer than any receive buffer, that cannot be merged", |testbed| {
        let shape = Shape { buffer: 128, ..Shape::split() }.without(Features::MRG_RXBUF);
        receives_and_stays(testbed, shape, |_, _| {})
    }),
    stays("split: receive buffers on top of the ring", |testbed| {
        receives_and_stays(testbed, Shape::split(), |ring, setup| {
            // Of the used ring, behind its index: what is written there is ours to write again.
            let used = setup.address(0).log_guest + 64;
            (0..ring.size).for_each(|slot| ring.desc.write(slot.into(), split(used, 1024, WRITE, 0)));
        })
    }),
    loses("split: receive buffers on top of the descriptors", "", |testbed| {
        receives(testbed, |ring, setup| {
            let desc = setup.address(0).log_guest - 2 * 4096;
            (0..ring.size).for_each(|slot| ring.desc.write(slot.into(), split(desc, 2048, WRITE, 0)));
        })
    }),
    stays("split: a used ring that is scribbled over", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let busy = sender_of(&setup);
        let (ring, mut rng) = (setup.split(0), TestRng(5));
        let scribble = Repeat::start(move || {
            ring.used_flags.store(rng.roll() as u16);
            ring.used_index.store(rng.roll() as u16);
            thread::yield_now();
        });
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((scribble, busy, setup, peer))
    }),
    stays("split: a frontend that never reads", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        eventually("its ring is full", || setup.split(0).used_index.load() == 256);
        hold((setup, peer))
    }),
    stays("split: an event index that is nonsense", |testbed| {
        let setup = HostileSetup::of(Shape::split().with(Features::EVENT_IDX));
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        let (rings, mut rng) = ([setup.split(0), setup.split(1)], TestRng(9));
        let nonsense = Repeat::start(move || {
            for ring in &rings {
                ring.avail.write(2 + u32::from(ring.size), rng.roll() as u16);
                ring.avail.write(0, rng.roll() as u16);
            }
            thread::yield_now();
        });
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((nonsense, busy, setup, peer))
    }),
    stays("split: rings of one descriptor", |testbed| busy_in(testbed, Shape { size: 1, ..Shape::split() })),
    stays("split: four pairs of the longest rings", |testbed| {
        busy_in(testbed, Shape { size: 32_768, pairs: 4, ..Shape::split() })
    }),
    loses("split: indexes hammered", "its ring index moved", |testbed| {
        hammered(testbed, |setup, rng| {
            setup.split(1).avail_index.store(rng.roll() as u16);
            setup.split(0).avail_index.store(rng.roll() as u16);
        })
    }),
    loses("split: descriptors hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            let ring = setup.split(rng.roll() as u32 % 2);
            ring.desc.write(rng.roll() as u32 % 256, [GUEST + rng.roll() % (4 << 20), rng.roll()]);
            ring.avail_index.store(ring.used_index.load().wrapping_add(ring.size));
        })
    }),
    loses("split: every word of the rings hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            // Descriptors, available ring and used ring of either ring.
            let place = setup.address(rng.roll() as u32 % 2).desc - USER + rng.roll() % (3 * 4096);
            setup.memory.write_u32(place & !3, rng.roll() as u32).unwrap();
        })
    }),
    stays("split: lengths and addresses hammered inside of memory", |testbed| {
        let setup = HostileSetup::new();
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        let (ring, buffer, mut rng) = (setup.split(1), setup.buffer(1, 0), TestRng(77));
        let repeat = Repeat::start(move || {
            let words = split(buffer + rng.roll() % 65_536, rng.roll() as u32 % 4096, 0, 0);
            ring.desc.write(rng.roll() as u32 % 256, words);
        });
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((repeat, busy, setup, peer))
    }),
];

/// Connects, and then does something to its transmit ring.
fn sends(testbed: &Testbed, lie: fn(&Split, &HostileSetup)) -> Held {
    sends_in(testbed, Shape::split(), lie)
}

fn sends_in(testbed: &Testbed, shape: Shape, lie: fn(&Split, &HostileSetup)) -> Held {
    let setup = HostileSetup::of(shape);
    let peer = setup.join(testbed);
    lie(&setup.split(1), &setup);
    hold((setup, peer))
}

/// Does something to its receive ring, connects, and loses its place by the next frame that is for it.
fn receives(testbed: &Testbed, lie: fn(&Split, &HostileSetup)) -> Held {
    let setup = HostileSetup::new();
    lie(&setup.split(0), &setup);
    let peer = setup.announce(testbed);
    setup.enable(&peer);
    peer.is_parted();
    hold((setup, peer))
}

/// The same, but gets frames, or none, and gives what it gets back.
fn receives_and_stays(testbed: &Testbed, shape: Shape, lie: fn(&Split, &HostileSetup)) -> Held {
    let setup = HostileSetup::of(shape);
    lie(&setup.split(0), &setup);
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    eventually("frames cross", || testbed.traffic.far_frames() > 100);
    hold((busy, setup, peer))
}

fn busy_in(testbed: &Testbed, shape: Shape) -> Held {
    receives_and_stays(testbed, shape, |_, _| {})
}

/// Rewrites its memory at random until it has lost its place.
fn hammered(testbed: &Testbed, blow: fn(&HostileSetup, &mut TestRng)) -> Held {
    for seed in 1..=5 {
        let setup = HostileSetup::new();
        let peer = setup.announce(testbed);
        setup.enable(&peer);
        let mut rng = TestRng(seed);
        let repeat = Repeat::start(move || blow(&setup, &mut rng));
        testbed.traffic.must_move();
        peer.is_parted();
        drop(repeat);
    }
    hold(())
}
