//! How fast a worker moves frames from one guest's ring to another's.
//!
//! A driver of ours on one CPU stamps every frame in the one guest's memory and reads the stamp in the other's; a worker's
//! loop on the other CPU moves them. `cargo bench -p ferrule-dataplane --bench virtqueues [-- WORKER-CPU DRIVER-CPU]`
//!
//! With `SOCKET SOCKET PID` behind the two numbers, another program that joins the two sockets, on the worker's CPU, takes
//! turns with ours; while it is not its turn, it is stopped.
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot begin ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::counters::LinkCounters;
use ferrule_dataplane::lane::Lane;
use ferrule_dataplane::link::Scratch;
use ferrule_dataplane::port::any::{AnySource, AnyTarget, LaneEnd};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::memory::GuestMemory;
use ferrule_dataplane::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use ferrule_dataplane::port::vhost_user::vring::VringSetup;
use ferrule_dataplane::port::{BURST, FRAME_MAX, Source};
use ferrule_dataplane::spec::{Full, SocketAddress};
use ferrule_endpoints::InPlace;
use ferrule_endpoints::vhost_user::{Frontend, FrontendSpec};
use ferrule_endpoints::virtio::{DriverMemory, DriverRx, DriverSpec, DriverTx, Eventfds};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::region::Region;
use ferrule_ffi::span::Span;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let number = |at: usize, usual| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(usual);
    let (worker, driver) = (number(0, 1), number(1, 0));
    let peer = words.get(2..5).map(|words| Peer {
        sockets: [0, 1].map(|at| words[at].parse().unwrap()),
        process: Pid::from_raw(words[2].parse().unwrap()),
    });
    let hertz = ticks_per_second();
    let split = Features::VERSION_1;
    let kinds = [
        ("split", split),
        ("split in order", split | Features::IN_ORDER),
        ("packed", split | Features::RING_PACKED),
        ("packed in order", split | Features::RING_PACKED | Features::IN_ORDER),
    ];
    let cases: Vec<_> = [64, 1518].into_iter().flat_map(|size| kinds.map(|kind| (size, kind))).collect();
    if let Some(peer) = &peer {
        kill(peer.process, Signal::SIGSTOP).unwrap();
    }
    let mut ours = vec![Vec::new(); cases.len()];
    let mut theirs = vec![Vec::new(); cases.len()];
    // Rounds, so that a slow moment of the machine does not meet one case only.
    for _ in 0..ROUNDS {
        for (at, (size, (_, features))) in cases.iter().enumerate() {
            ours[at].push(measure(*size, *features, worker, driver));
            if let Some(peer) = &peer {
                theirs[at].push(measure_peer(*size, *features, peer, driver));
            }
        }
    }
    println!("worker on CPU {worker}, driver on CPU {driver}; {ROUNDS} rounds of {SPAN:?}; TSC {:.2} GHz", hertz / 1e9);
    for (at, (size, (kind, _))) in cases.iter().enumerate() {
        let (median, best) = summary(&ours[at]);
        let cycles = hertz / median;
        print!("{size:5} B  {kind:16} {:6.2} Mpps, {cycles:4.0} cycles a frame, best {:6.2}", median / 1e6, best / 1e6);
        if peer.is_some() {
            let ratios: Vec<_> = ours[at].iter().zip(&theirs[at]).map(|(ours, theirs)| ours / theirs).collect();
            let (theirs, best) = summary(&theirs[at]);
            print!(" | peer {:6.2} Mpps, best {:6.2} | {:5.2}x", theirs / 1e6, best / 1e6, summary(&ratios).0);
        }
        println!();
    }
}

/// Median and best.
fn summary(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() - 1])
}

fn measure(size: usize, features: Features, worker: usize, driver: usize) -> f64 {
    let [a, b] = [Guest::new(features, RING), Guest::new(features, RING)];
    let end = |source, target| LaneEnd {
        sources: vec![AnySource::Vhost(source).into()],
        targets: vec![AnyTarget::Vhost(target)],
    };
    let mut lane = Lane {
        ends: [end(a.source, a.target), end(b.source, b.target)],
        full: Full::Hold,
        counters: [LinkCounters::default().lane(0), LinkCounters::default().lane(0)],
        capture: None,
    };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(worker);
            let mut scratch = Scratch::new(Notifier::new().unwrap());
            while !stop.load(Relaxed) {
                lane.visit(&mut scratch).unwrap();
                scratch.notifier.flush();
            }
        });
        let rate = drive_for(size, a.sends, b.receives, driver);
        stop.store(true, Relaxed);
        rate
    })
}

/// Another program that joins two sockets.
struct Peer {
    sockets: [SocketAddress; 2],
    process: Pid,
}

fn measure_peer(size: usize, features: Features, peer: &Peer, driver: usize) -> f64 {
    kill(peer.process, Signal::SIGCONT).unwrap();
    let [mut a, mut b] = peer.sockets.clone().map(|socket| {
        let rings = DriverSpec { size: RING, ..DriverSpec::default() };
        let spec = FrontendSpec { features, rings, ..FrontendSpec::new(socket) };
        Frontend::open(&spec, Duration::from_secs(10)).unwrap()
    });
    let rate = drive_for(size, a.queues.senders.remove(0), b.queues.receivers.remove(0), driver);
    // It notices that its frontends have gone.
    drop((a, b));
    thread::sleep(WARM_UP);
    kill(peer.process, Signal::SIGSTOP).unwrap();
    rate
}

fn drive_for(size: usize, mut tx: DriverTx, mut rx: DriverRx, driver: usize) -> f64 {
    let stop = AtomicBool::new(false);
    let moved = AtomicU64::new(0);
    tx.each_buffer(fill);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(driver);
            match (&mut tx, &mut rx) {
                (DriverTx::Split(tx), DriverRx::Split(rx)) => {
                    drive(size, &mut **tx, &mut **rx, &stop, &moved);
                }
                (DriverTx::Packed(tx), DriverRx::Packed(rx)) => {
                    drive(size, &mut **tx, &mut **rx, &stop, &moved);
                }
                _ => unreachable!("both are of one layout"),
            }
        });
        thread::sleep(WARM_UP);
        let (before, started) = (moved.load(Relaxed), Instant::now());
        thread::sleep(SPAN);
        let rate = (moved.load(Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
        stop.store(true, Relaxed);
        rate
    })
}

fn fill(buffer: ferrule_ffi::span::SpanMut<'_>) {
    let bytes = vec![0x5a; buffer.len()];
    let mut buffer = buffer;
    assert!(Span::from(&bytes[..]).copy_to(&mut buffer));
}

/// Sends stamped frames and reads the stamps of those that arrive, until it is stopped.
fn drive(size: usize, tx: &mut impl InPlace, rx: &mut impl Source, stop: &AtomicBool, moved: &AtomicU64) {
    let mut gather = vec![0; FRAME_MAX];
    let (mut sent, mut seen, mut count) = (0u64, 0u64, 0);
    while !stop.load(Relaxed) {
        tx.refresh().unwrap();
        for _ in 0..BURST {
            let Some(mut buffer) = tx.buffer(0) else { break };
            let stamp = sent.to_le_bytes();
            let (_, mut place) = buffer.split(STAMP).unwrap();
            assert!(Span::from(&stamp[..]).copy_to(&mut place));
            tx.describe(0, size as u32);
            tx.commit(1);
            sent += 1;
        }
        tx.publish();
        if rx.refresh().unwrap() {
            for _ in 0..BURST {
                let Some(frame) = rx.peek(&mut gather).unwrap() else { break };
                let mut stamp = [0; 8];
                assert_eq!(frame.bytes.len(), size);
                assert!(
                    frame.bytes.tail(STAMP).and_then(|tail| tail.head(8)).is_some_and(|at| at.copy_out(&mut stamp))
                );
                // A peer may drop.
                assert!(u64::from_le_bytes(stamp) >= seen);
                seen = u64::from_le_bytes(stamp);
                let slots = frame.slots;
                rx.advance(slots);
                count += 1;
            }
            rx.release();
        }
        moved.store(count, Relaxed);
    }
}

/// One guest: both ends of its queue pair.
struct Guest {
    sends: DriverTx,
    receives: DriverRx,
    source: GuestTx,
    target: GuestRx,
}

impl Guest {
    fn new(features: Features, size: u32) -> Self {
        let memory = DriverMemory::create(DriverSpec { size, ..DriverSpec::default() }, 2).unwrap();
        let eventfds = [Eventfds::new().unwrap(), Eventfds::new().unwrap()];
        let row = memory.row();
        let setup = |index: usize| {
            let at = memory.addresses(index);
            let file = memory.file().try_clone_to_owned().unwrap();
            VringSetup {
                index: index as u32,
                size,
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
        Self {
            target: GuestRx::new(&setup(0)).unwrap(),
            source: GuestTx::new(&setup(1)).unwrap(),
            receives: DriverRx::new(&memory, 0, features, eventfds[0].clone()),
            sends: DriverTx::new(&memory, 1, features, eventfds[1].clone()),
        }
    }
}

fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// What the time stamp counter counts in a second, as the kernel measured it.
fn ticks_per_second() -> f64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("cpu MHz"));
    line.and_then(|line| line.split(':').nth(1))
        .and_then(|mhz| mhz.trim().parse::<f64>().ok())
        .map_or(f64::NAN, |mhz| mhz * 1e6)
}

const RING: u32 = 1024;
/// Where in a frame its stamp is.
const STAMP: usize = 42;
const WARM_UP: Duration = Duration::from_millis(50);
const SPAN: Duration = Duration::from_millis(200);
const ROUNDS: usize = 7;
