//! Lies in packed rings.

use std::thread;

use ferrule_dataplane::port::vhost_user::features::Features;

use crate::common::{TestRng, eventually};
use crate::held::{Held, Repeat, hold};
use crate::testbed::{Case, Testbed};
use crate::vhost::rounds::{reader_of, sender_of};
use crate::vhost::setup::{AVAIL, GUEST, HEADER, HostileSetup, NEXT, Packed, Shape, USED, USER, WRITE, packed};
use crate::vhost::verdict::{loses, may_stay, stays};

pub const CASES: &[Case] = &[
    loses("packed: an address outside of all memory", "at guest address 0x0000003e8", |testbed| {
        sends(testbed, |ring, _| ring.publish(&[packed(1000, 72, 0, 0)]))
    }),
    // CVE-2020-10725: the path for batches did not check addresses.
    loses("packed: addresses outside of memory in a whole batch", "not all in its memory", |testbed| {
        sends(testbed, |ring, _| {
            ring.publish(&(0..64).map(|id| packed(u64::from(id) << 52, 72, id, 0)).collect::<Vec<_>>());
        })
    }),
    loses("packed: a batch whose last address is outside of memory", "not all in its memory", |testbed| {
        sends(testbed, |ring, setup| {
            let address = |id: u16| if id == 63 { u64::MAX - 40 } else { setup.buffer(1, id.into()) };
            ring.publish(&(0..64).map(|id| packed(address(id), 72, id, 0)).collect::<Vec<_>>());
        })
    }),
    stays("packed: batches of frames of no bytes", |testbed| {
        sends(testbed, |ring, setup| {
            ring.publish(&(0..128).map(|id| packed(setup.buffer(1, 0), u32::from(id) % 13, id, 0)).collect::<Vec<_>>());
            eventually("they are given back", || ring.is_used(127));
        })
    }),
    loses("packed: a buffer that straddles the end of memory", "not all in its memory", |testbed| {
        sends(testbed, |ring, setup| ring.publish(&[packed(GUEST + setup.row().size - 71, 72, 0, 0)]))
    }),
    loses("packed: a frame of 2^32 - 1 bytes", "longer than", |testbed| {
        sends(testbed, |ring, _| ring.publish(&[packed(GUEST, u32::MAX, 0, 0)]))
    }),
    loses("packed: a chain of many times 2^32 - 1 bytes", "longer than", |testbed| {
        sends(testbed, |ring, _| {
            let words = |id: u16| packed(GUEST, u32::MAX, id, if id < 255 { NEXT } else { 0 });
            ring.publish(&(0..256).map(words).collect::<Vec<_>>());
        })
    }),
    loses("packed: an endless chain around the ring", "too many pieces", |testbed| {
        sends(testbed, |ring, _| ring.publish(&vec![packed(GUEST, 12, 0, NEXT); 256]))
    }),
    loses("packed: an endless chain around the longest ring", "too many pieces", |testbed| {
        sends_in(testbed, Shape { size: 32_768, ..Shape::packed() }, |ring, _| {
            ring.publish(&vec![packed(GUEST, 0, 0, NEXT); 32_768]);
        })
    }),
    loses("packed: a chain left open", "goes beyond what was published", |testbed| {
        sends(testbed, |ring, setup| ring.publish(&[packed(setup.buffer(1, 0), 72, 0, NEXT); 3]))
    }),
    stays("packed: ids that are not in the ring", |testbed| {
        sends(testbed, |ring, setup| {
            ring.publish(&(0..200).map(|_| packed(setup.buffer(1, 0), 72, u16::MAX, 0)).collect::<Vec<_>>());
            eventually("they are given back", || ring.is_used(199));
        })
    }),
    stays("packed: a header over twelve descriptors, a frame over sixty", |testbed| {
        sends(testbed, |ring, setup| {
            let words = |id: u16| packed(setup.buffer(1, id.into()), 1, id, if id < 71 { NEXT } else { 0 });
            ring.publish(&(0..72).map(words).collect::<Vec<_>>());
            eventually("it is taken", || ring.is_used(0));
        })
    }),
    stays("packed: wrap counters of another round", |testbed| {
        // Neither available nor used, or used before it was given: nothing is there.
        let setup = HostileSetup::of(Shape::packed());
        let peer = setup.join(testbed);
        let ring = setup.packed(1);
        for slot in 0..256 {
            let flags = [USED, AVAIL | USED, 0][slot as usize % 3];
            ring.desc.write(slot, packed(setup.buffer(1, slot), 72, slot as u16, flags));
        }
        hold((setup, peer))
    }),
    // It loses its connection when one goes between a look whether it is there and the reading of its chain.
    may_stay("packed: descriptors that come and go", |testbed| {
        let setup = HostileSetup::of(Shape::packed());
        let peer = setup.join(testbed);
        let (ring, buffer) = (setup.packed(1), setup.buffer(1, 0));
        let flicker = Repeat::start(move || {
            ring.publish(&[packed(buffer, 72, 0, 0)]);
            ring.desc.write(0, packed(buffer, 72, 0, USED));
        });
        hold((flicker, setup, peer))
    }),
    loses("packed: descriptors to receive in that are not to be written", "not for the device to write", |testbed| {
        receives(testbed, |setup, slot| packed(setup.buffer(0, slot), 2048, slot as u16, 0))
    }),
    loses("packed: receive buffers shorter than a header", "fewer than a header has", |testbed| {
        receives(testbed, |setup, slot| packed(setup.buffer(0, slot), 11, slot as u16, WRITE))
    }),
    loses("packed: receive buffers of no bytes", "fewer than a header has", |testbed| {
        receives(testbed, |setup, slot| packed(setup.buffer(0, slot), 0, slot as u16, WRITE))
    }),
    loses("packed: receive buffers outside of memory", "not all in its memory", |testbed| {
        receives(testbed, |_, slot| packed(0xdead_0000_0000, 2048, slot as u16, WRITE))
    }),
    loses("packed: receive buffers that straddle the end of memory", "not all in its memory", |testbed| {
        receives(testbed, |setup, slot| packed(GUEST + setup.row().size - 20, 2048, slot as u16, WRITE))
    }),
    loses("packed: receive chains around the ring", "too many pieces", |testbed| {
        receives(testbed, |setup, slot| packed(setup.buffer(0, slot), 1, slot as u16, WRITE | NEXT))
    }),
    stays("packed: receive buffers of thirteen bytes, in the longest ring", |testbed| {
        let shape = Shape { size: 32_768, buffer: 13, ..Shape::packed() };
        busy_in(testbed, shape)
    }),
    stays("packed: frames longer than any receive buffer, unmergeable", |testbed| {
        busy_in(testbed, Shape { buffer: 128, ..Shape::packed() }.without(Features::MRG_RXBUF))
    }),
    stays("packed: rings of one descriptor", |testbed| busy_in(testbed, Shape { size: 1, ..Shape::packed() })),
    stays("packed: rings of three descriptors", |testbed| busy_in(testbed, Shape { size: 3, ..Shape::packed() })),
    stays("packed: four pairs of the longest rings", |testbed| {
        busy_in(testbed, Shape { size: 32_768, pairs: 4, ..Shape::packed() })
    }),
    stays("packed: event structures that are nonsense", |testbed| {
        let setup = HostileSetup::of(Shape::packed().with(Features::EVENT_IDX));
        let peer = setup.join(testbed);
        let busy = (sender_of(&setup), reader_of(&setup));
        let (rings, mut rng) = ([setup.packed(0), setup.packed(1)], TestRng(9));
        let nonsense = Repeat::start(move || {
            for ring in &rings {
                ring.driver_event.write(0, rng.roll() as u32);
                ring.device_event.write(0, rng.roll() as u32);
            }
            thread::yield_now();
        });
        eventually("frames cross", || testbed.traffic.far_frames() > 100);
        hold((nonsense, busy, setup, peer))
    }),
    stays("packed: a frontend that never reads", |testbed| {
        let setup = HostileSetup::of(Shape::packed());
        let peer = setup.join(testbed);
        eventually("its ring is full", || setup.packed(0).is_used(255));
        hold((setup, peer))
    }),
    loses("packed: descriptors hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            let ring = setup.packed(rng.roll() as u32 % 2);
            ring.desc.write(rng.roll() as u32 % 256, [GUEST + rng.roll() % (4 << 20), rng.roll()]);
        })
    }),
    loses("packed: every word of the rings hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            let place = setup.address(rng.roll() as u32 % 2).desc - USER + rng.roll() % (3 * 4096);
            setup.memory.write_u32(place & !3, rng.roll() as u32).unwrap();
        })
    }),
    loses("packed: flags hammered", "", |testbed| {
        hammered(testbed, |setup, rng| {
            let ring = setup.packed(rng.roll() as u32 % 2);
            let slot = rng.roll() as u32 % 256;
            ring.desc.write(slot, packed(setup.buffer(1, slot), HEADER + 60, slot as u16, rng.roll() as u16));
        })
    }),
];

/// Connects, and then does something to its transmit ring.
fn sends(testbed: &Testbed, lie: fn(&Packed, &HostileSetup)) -> Held {
    sends_in(testbed, Shape::packed(), lie)
}

fn sends_in(testbed: &Testbed, shape: Shape, lie: fn(&Packed, &HostileSetup)) -> Held {
    let setup = HostileSetup::of(shape);
    let peer = setup.join(testbed);
    lie(&setup.packed(1), &setup);
    hold((setup, peer))
}

/// Offers such descriptors to receive in, connects, and loses its place by the next frame that is for it.
fn receives(testbed: &Testbed, lie: fn(&HostileSetup, u32) -> [u64; 2]) -> Held {
    let setup = HostileSetup::of(Shape::packed());
    let offer: Vec<_> = (0..256).map(|slot| lie(&setup, slot)).collect();
    setup.packed(0).publish(&offer);
    let peer = setup.announce(testbed);
    setup.enable(&peer);
    peer.is_parted();
    hold((setup, peer))
}

/// Sends and receives by the rules, in rings of any shape.
fn busy_in(testbed: &Testbed, shape: Shape) -> Held {
    let setup = HostileSetup::of(shape);
    let peer = setup.join(testbed);
    let busy = (sender_of(&setup), reader_of(&setup));
    eventually("frames cross", || testbed.traffic.far_frames() > 100);
    hold((busy, setup, peer))
}

/// Rewrites its memory at random until it has lost its place.
fn hammered(testbed: &Testbed, blow: fn(&HostileSetup, &mut TestRng)) -> Held {
    for seed in 1..=5 {
        let setup = HostileSetup::of(Shape::packed());
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
