//! Lies of a server towards a client end of ours.

use ferrule_dataplane::port::memif::message::{Direction, Hello, MemifMessage};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::ftruncate;

use crate::common::{TestRng, eventually};
use crate::held::{Held, Repeat, hold};
use crate::memif::host::{Guest, Host, hello};
use crate::memif::setup::descriptor;
use crate::testbed::{Case, Expect, Testbed, Victim};

pub const CASES: &[Case] = &[
    loses("server: version 0", "memif version 0x0000 is not spoken", |testbed| {
        says(testbed, |guest| guest.say(&MemifMessage::Hello(Hello { min_version: 0, max_version: 0, ..hello() })))
    }),
    loses("server: versions from 65535 to 0", "memif version 0x0000 is not spoken", |testbed| {
        says(testbed, |guest| {
            guest.say(&MemifMessage::Hello(Hello { min_version: u16::MAX, max_version: 0, ..hello() }));
        })
    }),
    stays("server: every version, one ring of one slot", |testbed| {
        let least = Hello { max_version: u16::MAX, max_m2s_ring: 0, max_s2m_ring: 0, max_log2_ring_size: 0, ..hello() };
        connected(testbed, least, |guest| {
            let rings: Vec<_> = guest.rings.iter().map(|ring| ring.log2_size).collect();
            assert_eq!(rings, [0, 0]);
        })
    }),
    stays("server: rings of 2^255 slots, 65536 of them", |testbed| {
        let most = Hello {
            max_region: u16::MAX,
            max_m2s_ring: u16::MAX,
            max_s2m_ring: u16::MAX,
            max_log2_ring_size: 255,
            ..hello()
        };
        connected(testbed, most, |guest| assert_eq!(guest.rings.len(), 2))
    }),
    loses("server: a flood of ACK", "unexpected ACK", |testbed| {
        says(testbed, |guest| {
            guest.say(&MemifMessage::Hello(hello()));
            (0..200).for_each(|_| guest.say(&MemifMessage::Ack));
        })
    }),
    loses("server: ACK before HELLO", "unexpected ACK, expected HELLO", |testbed| {
        says(testbed, |guest| guest.say(&MemifMessage::Ack))
    }),
    loses("server: CONNECTED too early", "unexpected CONNECTED, expected ACK", |testbed| {
        says(testbed, |guest| {
            guest.say(&MemifMessage::Hello(hello()));
            guest.say(&MemifMessage::Connected { name: String::new() });
        })
    }),
    loses("server: HELLO twice", "unexpected HELLO, expected ACK", |testbed| {
        says(testbed, |guest| (0..2).for_each(|_| guest.say(&MemifMessage::Hello(hello()))))
    }),
    loses("server: DISCONNECT as greeting", "the peer disconnected: go away", |testbed| {
        says(testbed, |guest| guest.say(&MemifMessage::Disconnect { code: 1, reason: "go away".to_owned() }))
    }),
    loses("server: a short packet", "a message of 3 bytes", |testbed| {
        says(testbed, |guest| drop(guest.socket.send(&[2, 0, 0], &[])))
    }),
    loses("server: a descriptor with HELLO", "1 descriptors came with HELLO", |testbed| {
        let null = std::fs::File::open("/dev/null").unwrap();
        let host = Host::open(testbed);
        let mut guest = host.welcome();
        let file = std::os::fd::AsFd::as_fd(&null);
        guest.socket.send(&MemifMessage::Hello(hello()).emit(), &[file]).unwrap();
        guest.goodbye();
        hold((host, guest))
    }),
    loses("server: closes every connection at once", "the peer closed its socket", |testbed| {
        let host = Host::open(testbed);
        (0..3).for_each(|_| drop(host.welcome()));
        hold(host)
    }),
    free("server: says nothing", |testbed| {
        let host = Host::open(testbed);
        let guest = host.welcome();
        hold((host, guest))
    }),
    loses("server: says something after CONNECTED", "unexpected ACK, expected DISCONNECT", |testbed| {
        connected(testbed, hello(), |guest| guest.say(&MemifMessage::Ack))
    }),
    loses("server: a tail beyond what was sent", "its ring index moved", |testbed| {
        connected(testbed, hello(), |guest| {
            let (head, tail, ..) = guest.ring(Direction::S2M);
            tail.store(head.load().wrapping_add(5000));
        })
    }),
    loses("server: more frames than buffers offered", "its ring index moved", |testbed| {
        connected(testbed, hello(), |guest| {
            let (head, tail, ..) = guest.ring(Direction::M2S);
            tail.store(head.load().wrapping_add(1));
        })
    }),
    loses("server: a frame in region 65535", "of region 65535", |testbed| {
        connected(testbed, hello(), |guest| {
            let (_, tail, _, table) = guest.ring(Direction::M2S);
            table.write(0, descriptor(0, u16::MAX, 60, 0));
            tail.store(1);
        })
    }),
    loses("server: a frame behind the region", "+4294967295 of region 1", |testbed| {
        connected(testbed, hello(), |guest| {
            let (_, tail, _, table) = guest.ring(Direction::M2S);
            table.write(0, descriptor(0, 1, u32::MAX, 0));
            tail.store(1);
        })
    }),
    loses("server: a chain left open", "goes beyond what was published", |testbed| {
        connected(testbed, hello(), |guest| {
            let (_, tail, _, table) = guest.ring(Direction::M2S);
            (0..1024).for_each(|slot| table.write(slot, descriptor(1, 1, 60, 0)));
            tail.store(3);
        })
    }),
    stays("server: our descriptors rewritten", |testbed| {
        connected(testbed, hello(), |guest| {
            // Where our buffers are, we know ourselves.
            let (_, tail, _, table) = guest.ring(Direction::S2M);
            (0..1024).for_each(|slot| table.write(slot, [u64::MAX; 2]));
            let before = tail.load();
            eventually("frames come", || guest.ring(Direction::S2M).0.load() != before);
        })
    }),
    stays("server: our memory truncated or full of holes", |testbed| {
        connected(testbed, hello(), |guest| {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            for file in &guest.files[..2] {
                assert_eq!(ftruncate(file, 0), Err(Errno::EPERM));
            }
            fallocate(&guest.files[1], flags, 0, 1 << 20).unwrap();
        })
    }),
    loses("server: every word of our rings hammered", "", |testbed| {
        let host = Host::open(testbed);
        for seed in 1..=3 {
            let mut guest = host.welcome();
            guest.serve(hello());
            let (memory, mut rng) = (guest.regions[0].clone(), TestRng(seed));
            let repeat = Repeat::start(move || {
                let place = rng.roll() % memory.len() as u64;
                memory.write_u32(place & !3, rng.roll() as u32).unwrap();
            });
            testbed.traffic.must_move();
            assert!(guest.goodbye().is_some());
            drop(repeat);
        }
        hold(host)
    }),
];

/// The attacked client is not held up.
const fn free(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::MemifClient, expect: Expect::Free, attack }
}

/// The attacked client turns away from the server.
const fn loses(name: &'static str, text: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::MemifClient, expect: Expect::Loses(text), attack }
}

/// The attacked client stays connected.
const fn stays(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::MemifClient, expect: Expect::Stays, attack }
}

/// Says something instead of an honest handshake, and waits until the client has gone.
fn says(testbed: &Testbed, lie: fn(&Guest)) -> Held {
    let host = Host::open(testbed);
    let mut guest = host.welcome();
    lie(&guest);
    guest.goodbye();
    hold((host, guest))
}

/// Leads the handshake to its end, and then does something.
fn connected(testbed: &Testbed, hello: Hello, lie: fn(&Guest)) -> Held {
    let host = Host::open(testbed);
    let mut guest = host.welcome();
    guest.serve(hello);
    eventually("the client is connected", || testbed.engine.wire(&testbed.wire).unwrap().is_up());
    lie(&guest);
    hold((host, guest))
}
