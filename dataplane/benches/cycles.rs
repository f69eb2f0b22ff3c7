//! Cycles a frame of a worker's visit, for each pair of userspace ends.
//!
//! One thread plays worker and peers in turn, so everything is in the caches and nobody waits for a line that another core
//! has: this is what the code itself costs. The fastest tenth of the bursts begins below the figure: it hardly depends on what
//! else the machine does.
//! `cargo bench -p ferrule-dataplane --bench cycles`
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot begin ends")]

use std::sync::Arc;

use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::lane::Lane;
use ferrule_dataplane::link::Scratch;
use ferrule_dataplane::port::any::{AnySource, AnyTarget, LaneEnd};
use ferrule_dataplane::port::memif::layout::{Layout, Queues};
use ferrule_dataplane::port::memif::message::{AddRegion, AddRing};
use ferrule_dataplane::port::memif::ring::{Receiver, Sender};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::GuestMemory;
use ferrule_dataplane::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use ferrule_dataplane::port::vhost_user::vring::VringSetup;
use ferrule_dataplane::port::{BURST, FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{Full, MemifSpec, Role};
use ferrule_endpoints::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::region::Region;
use ferrule_ffi::ticks;

fn main() {
    let split = Features::VERSION_1;
    let packed = split | Features::RING_PACKED;
    let (memif, trusted) = (End::Memif, [End::Lender, End::Borrower]);
    let in_order = |features| End::Vhost(features | Features::IN_ORDER);
    let pairs: [(&str, [End; 2]); 9] = [
        ("memif - memif", [memif; 2]),
        ("memif - memif, trusted, to the borrower", trusted),
        ("memif - memif, trusted, to the lender", [trusted[1], trusted[0]]),
        ("vhost split - vhost split", [End::Vhost(split); 2]),
        ("vhost split - vhost split, in order", [in_order(split); 2]),
        ("vhost packed - vhost packed", [End::Vhost(packed); 2]),
        ("vhost packed - vhost packed, in order", [in_order(packed); 2]),
        ("memif - vhost split", [memif, End::Vhost(split)]),
        ("vhost split - memif", [End::Vhost(split), memif]),
    ];
    let mut times = pairs.map(|_| SIZES.map(|_| Vec::new()));
    // Rounds, so that a slow moment of the machine does not meet one pair only.
    for _ in 0..ROUNDS {
        for ((_, pair), times) in pairs.iter().zip(&mut times) {
            for (size, times) in SIZES.iter().zip(times) {
                times.extend(visits(*pair, *size, BURST));
            }
        }
    }
    println!("| Pair | 64 B | 1518 B |\n| --- | ---: | ---: |");
    for ((name, _), times) in pairs.iter().zip(&mut times) {
        let [small, large] = times.each_mut().map(|times| fast(times) / BURST as f64);
        println!("| {name} | {small:.0} | {large:.0} |");
    }
    println!("\n| Pair | {LONG} B in pieces |\n| --- | ---: |");
    let merging = End::Vhost(split | Features::MRG_RXBUF);
    let merging_packed = End::Vhost(packed | Features::MRG_RXBUF);
    for (name, pair) in [
        ("memif - memif", [memif; 2]),
        ("vhost split - vhost split", [merging; 2]),
        ("vhost packed - vhost packed", [merging_packed; 2]),
        ("memif - vhost split", [memif, merging]),
        ("vhost split - memif", [merging, memif]),
    ] {
        println!("| {name} | {:.0} |", fast(&mut visits(pair, LONG, 1)));
    }
}

/// What the fastest tenth begins below.
fn fast(times: &mut [u64]) -> f64 {
    times.sort_unstable();
    times[times.len() / 10] as f64
}

/// What stands at one side of the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Memif,
    /// The memif client of a trusted wire.
    Lender,
    /// Its memif server.
    Borrower,
    Vhost(Features),
}

/// TSC cycles of each visit, in which `count` frames are moved.
fn visits(ends: [End; 2], size: usize, count: usize) -> Vec<u64> {
    let ([mut near, mut far], mut lane) = testbed(ends);
    let mut scratch = Scratch::new(Notifier::new().unwrap());
    let frame = vec![0x5a; size];
    let mut gather = vec![0; FRAME_MAX];
    (0..VISITS)
        .map(|_| {
            // What a borrower has consumed is given back, and what a lender offers is offered on.
            lane.visit(&mut scratch).unwrap();
            near.sends.refresh().unwrap();
            for _ in 0..count {
                let frame = Frame { bytes: frame[..].into(), offload: None, slots: 0 };
                assert_eq!(near.sends.put(&frame).unwrap(), Put::Stored);
            }
            near.sends.publish();
            let started = ticks::now();
            lane.visit(&mut scratch).unwrap();
            let took = ticks::now() - started;
            assert!(far.receives.refresh().unwrap());
            for _ in 0..count {
                let slots = far.receives.peek(&mut gather).unwrap().unwrap().slots;
                far.receives.advance(slots);
            }
            far.receives.release();
            took
        })
        .collect()
}

/// A peer's ends of its rings.
struct Peer {
    sends: Box<dyn Target>,
    receives: Box<dyn Source>,
}

/// Two peers, and the lane between them.
fn testbed([near, far]: [End; 2]) -> ([Peer; 2], Lane) {
    let sides = match (near, far) {
        (End::Lender, _) => trusted(),
        (End::Borrower, _) => {
            let [lender, borrower] = trusted();
            [borrower, lender]
        }
        _ => [near, far].map(|end| match end {
            End::Vhost(features) => vhost(features),
            _ => memif(),
        }),
    };
    let [(near, our_end), (far, peer_end)] = sides;
    let counters = [LinkCounters::default().lane(0), LinkCounters::default().lane(0)];
    ([near, far], Lane { ends: [our_end, peer_end], full: Full::Hold, counters, capture: None })
}

fn memif() -> (Peer, LaneEnd) {
    let mut client = Layout::create(&spec(), 1, RING, &<_>::default()).unwrap();
    let (_, server) = server_of(&client);
    (memif_peer(client.queues().unwrap()), memif_end(server))
}

/// The lender's side and the borrower's.
fn trusted() -> [(Peer, LaneEnd); 2] {
    let mut lender = Layout::create(&spec(), 1, RING, &<_>::default()).unwrap();
    let (near, near_queues) = server_of(&lender);
    let mut far = Layout::lend(&spec(), &near.loan().unwrap(), RING, &<_>::default()).unwrap();
    let (_, borrower) = server_of(&far);
    [
        (memif_peer(lender.queues().unwrap()), memif_end(near_queues)),
        (memif_peer(borrower), memif_end(far.queues().unwrap())),
    ]
}

fn spec() -> MemifSpec {
    MemifSpec::new("@unused".parse().unwrap(), Role::Client)
}

/// What a server makes of a client's layout.
fn server_of(client: &Layout) -> (Layout, Queues) {
    let mut layout = Layout::announced_by_peer(&MemoryBudget::unlimited());
    let add = |(region, file): (AddRegion, std::os::fd::BorrowedFd<'_>)| {
        layout.add_region(region, file.try_clone_to_owned().unwrap().into()).unwrap();
    };
    client.regions().for_each(add);
    let add = |(ring, interrupt): (AddRing, &std::os::fd::OwnedFd)| {
        layout.add_ring(ring, interrupt.try_clone().unwrap().into()).unwrap();
    };
    client.rings().for_each(add);
    let queues = layout.queues().unwrap();
    (layout, queues)
}

fn memif_peer(queues: Queues) -> Peer {
    let (sends, receives) = only(queues);
    Peer { sends: Box::new(sends), receives: Box::new(receives) }
}

fn memif_end(queues: Queues) -> LaneEnd {
    let (target, source) = only(queues);
    LaneEnd { sources: vec![AnySource::Memif(source).into()], targets: vec![AnyTarget::Memif(target)] }
}

fn only(mut queues: Queues) -> (Sender, Receiver) {
    (queues.senders.remove(0), queues.receivers.remove(0))
}

fn vhost(features: Features) -> (Peer, LaneEnd) {
    let memory = DriverMemory::create(DriverSpec { size: RING, ..DriverSpec::default() }, 2).unwrap();
    let eventfds = [Eventfds::new().unwrap(), Eventfds::new().unwrap()];
    let row = memory.row();
    let setup = |index: usize| {
        let at = memory.addresses(index);
        let file = memory.file().try_clone_to_owned().unwrap();
        VringSetup {
            index: index as u32,
            size: RING,
            desc: at.desc,
            avail: at.avail,
            used: at.used,
            base: if features.has(Features::RING_PACKED) { 0x8000 } else { 0 },
            enabled: true,
            features,
            kick: Some(Arc::clone(&eventfds[index].kick)),
            call: Some(Arc::clone(&eventfds[index].call)),
            memory: GuestMemory::new(vec![(row, Region::map(file, row.size, memory.health()).unwrap())]).unwrap(),
            log: None,
            inflight: None,
            health: Arc::clone(memory.health()),
        }
    };
    let end = LaneEnd {
        sources: vec![AnySource::Vhost(GuestTx::new(&setup(1)).unwrap()).into()],
        targets: vec![AnyTarget::Vhost(GuestRx::new(&setup(0)).unwrap())],
    };
    let receives: Box<dyn Source> = match DriverRx::new(&memory, 0, features, eventfds[0].clone()) {
        DriverRx::Split(ring) => ring,
        DriverRx::Packed(ring) => ring,
    };
    let sends: Box<dyn Target> = match DriverTx::new(&memory, 1, features, eventfds[1].clone()) {
        DriverTx::Split(ring) => ring,
        DriverTx::Packed(ring) => ring,
    };
    (Peer { sends, receives }, end)
}

/// The smallest frame in common use, and the largest of the usual MTU.
const SIZES: [usize; 2] = [64, 1518];
/// A ring that stays in the second level of the cache with its buffers.
const RING: u32 = 64;
/// As long as the frames of a guest with segmentation offload: it lies in 30 buffers or so.
const LONG: usize = 60_000;
const ROUNDS: usize = 10;
const VISITS: usize = 2000;
