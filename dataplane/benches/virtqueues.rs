//! How fast a worker moves frames from one guest's ring to another's.
//!
//! A driver of ours on one CPU stamps every frame in the one guest's memory and reads the stamp in the other's; a worker's
//! loop on the other CPU moves them. `cargo bench -p ferrule-dataplane --bench virtqueues [-- WORKER-CPU DRIVER-CPU]`
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot begin ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::lane::{Lane, LaneEnd};
use ferrule_dataplane::link::{AnySource, AnyTarget, LinkCounters, Tools};
use ferrule_dataplane::port::{BURST, FRAME_MAX, Source, Target};
use ferrule_dataplane::spec::Full;
use ferrule_dataplane::vhost::driver::{Bells, DriverMemory, DriverRx, DriverSpec, DriverTx};
use ferrule_dataplane::vhost::features::Features;
use ferrule_dataplane::vhost::memory::GuestMemory;
use ferrule_dataplane::vhost::vring::{GuestRx, GuestTx, VringSetup};
use ferrule_ffi::bell::Bell;
use ferrule_ffi::region::Region;
use ferrule_ffi::span::Span;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let (worker, driver) = (numbers.first().copied().unwrap_or(1), numbers.get(1).copied().unwrap_or(0));
    let hertz = ticks_per_second();
    let split = Features::VERSION_1.with(Features::MRG_RXBUF);
    let kinds = [
        ("split", split),
        ("split in order", split | Features::IN_ORDER),
        ("packed", split | Features::RING_PACKED),
        ("packed in order", split | Features::RING_PACKED | Features::IN_ORDER),
    ];
    let cases: Vec<_> = [64, 1518].into_iter().flat_map(|size| kinds.map(|kind| (size, kind))).collect();
    let mut rates = vec![Vec::new(); cases.len()];
    // Rounds, so that a slow moment of the machine does not meet one case only.
    for _ in 0..ROUNDS {
        for ((size, (_, features)), rates) in cases.iter().zip(&mut rates) {
            rates.push(measure(*size, *features, worker, driver));
        }
    }
    println!(
        "worker on CPU {worker}, driver on CPU {driver}, median of {ROUNDS} rounds of {SPAN:?}; TSC {:.2} GHz",
        hertz / 1e9
    );
    for ((size, (kind, _)), rates) in cases.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let (median, best) = (rates[ROUNDS / 2], rates[ROUNDS - 1]);
        println!(
            "{size:5} B  {kind:16} {:6.2} Mpps  {:5.0} cycles a frame   best {:6.2}",
            median / 1e6,
            hertz / median,
            best / 1e6
        );
    }
}

fn measure(size: usize, features: Features, worker: usize, driver: usize) -> f64 {
    let ends = [Guest::new(features), Guest::new(features)];
    let [a, b] = ends;
    let end = |source, target| LaneEnd {
        sources: vec![AnySource::Vhost(source).into()],
        targets: vec![AnyTarget::Vhost(target)],
    };
    let counters = Arc::new([LinkCounters::default(), LinkCounters::default()]);
    let mut lane = Lane {
        ends: [end(a.guest_tx, a.guest_rx), end(b.guest_tx, b.guest_rx)],
        full: Full::Hold,
        counters: Arc::clone(&counters),
    };
    let stop = AtomicBool::new(false);
    let moved = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(worker);
            let mut tools = Tools::new(Bell::new().unwrap());
            while !stop.load(Relaxed) {
                lane.visit(&mut tools).unwrap();
            }
        });
        scope.spawn(|| {
            pin(driver);
            let (mut tx, mut rx) = (a.driver_tx, b.driver_rx);
            match (&mut tx, &mut rx) {
                (DriverTx::Split(tx), DriverRx::Split(rx)) => {
                    tx.each_buffer(fill);
                    drive(size, &mut **tx, |tx| tx.next_buffer(), |tx, len| tx.commit(len), &mut **rx, &stop, &moved);
                }
                (DriverTx::Packed(tx), DriverRx::Packed(rx)) => {
                    tx.each_buffer(fill);
                    drive(size, &mut **tx, |tx| tx.next_buffer(), |tx, len| tx.commit(len), &mut **rx, &stop, &moved);
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
fn drive<T: Target, S: Source>(
    size: usize,
    tx: &mut T,
    next_buffer: impl for<'a> Fn(&'a mut T) -> Option<ferrule_ffi::span::SpanMut<'a>>,
    commit: impl Fn(&mut T, u32),
    rx: &mut S,
    stop: &AtomicBool,
    moved: &AtomicU64,
) {
    let mut gather = vec![0; FRAME_MAX];
    let (mut sent, mut seen) = (0u64, 0u64);
    while !stop.load(Relaxed) {
        tx.look().unwrap();
        for _ in 0..BURST {
            let Some(buffer) = next_buffer(tx) else { break };
            let stamp = sent.to_le_bytes();
            let (_, mut place) = buffer.split(STAMP).unwrap();
            assert!(Span::from(&stamp[..]).copy_to(&mut place));
            commit(tx, size as u32);
            sent += 1;
        }
        tx.publish();
        if rx.look().unwrap() {
            for _ in 0..BURST {
                let Some(frame) = rx.peek(&mut gather).unwrap() else { break };
                let mut stamp = [0; 8];
                assert_eq!(frame.bytes.len(), size);
                assert!(
                    frame.bytes.tail(STAMP).and_then(|tail| tail.head(8)).is_some_and(|at| at.copy_out(&mut stamp))
                );
                assert_eq!(u64::from_le_bytes(stamp), seen);
                let slots = frame.slots;
                rx.advance(slots);
                seen += 1;
            }
            rx.release();
        }
        moved.store(seen, Relaxed);
    }
}

/// One guest: both ends of its queue pair.
struct Guest {
    driver_tx: DriverTx,
    driver_rx: DriverRx,
    guest_tx: GuestTx,
    guest_rx: GuestRx,
}

impl Guest {
    fn new(features: Features) -> Self {
        let memory = DriverMemory::create(DriverSpec { size: RING, ..DriverSpec::default() }, 2).unwrap();
        let bells = [Bells::new().unwrap(), Bells::new().unwrap()];
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
                kick: Some(Arc::clone(&bells[index].kick)),
                call: Some(Arc::clone(&bells[index].call)),
                memory: GuestMemory::new(vec![(row, Region::map(file, row.size, memory.health()).unwrap())]).unwrap(),
                log: None,
                inflight: None,
                health: Arc::clone(memory.health()),
            }
        };
        Self {
            guest_rx: GuestRx::new(&setup(0)).unwrap(),
            guest_tx: GuestTx::new(&setup(1)).unwrap(),
            driver_rx: DriverRx::new(&memory, 0, features, bells[0].clone()),
            driver_tx: DriverTx::new(&memory, 1, features, bells[1].clone()),
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
