//! Cycles a frame of the generator and the sink alone: both ends of one memif connection, with no wire between them, on one
//! thread.
//!
//! What it takes to make a frame, to write it and to read it, is the limit of what the bench can measure. The smallest of many
//! short runs hardly depends on what else the machine does.
//! `cargo bench -p ferrule-bench --bench generator`
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot begin ends")]

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use ferrule_bench::generator;
use ferrule_bench::load::{Load, Mix, Stop, Touch};
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::end::{End, EndSpec};
use ferrule_ffi::ticks;

fn main() {
    let [mut near, mut far] = connected();
    let sizes = [Mix::new([60]), Mix::new([64]), Mix::new([1518])].map(Result::unwrap);
    println!("{:>8}  {:>10}  {:>10}  {:>10}", "bytes", "untouched", "stamped", "whole");
    for mix in [&sizes[..], &[Mix::imix()]].concat() {
        let cycles = [Touch::Untouched, Touch::Stamped, Touch::Whole].map(|touch| {
            let load = Load { touch, stop: Stop::Frames(FRAMES), warm_up: WARM_UP, ..Load::new(mix.clone(), WARM_UP) };
            cycles(&load, &mut near, &mut far)
        });
        println!("{:>8}  {:>10.1}  {:>10.1}  {:>10.1}", mix.to_string(), cycles[0], cycles[1], cycles[2]);
    }
}

/// The fewest that a frame of such a load took.
fn cycles(load: &Load, near: &mut End, far: &mut End) -> f64 {
    let run = |_| {
        let run = generator::run(load, near, far, &AtomicBool::new(false)).unwrap();
        assert_eq!(run.there.received.frames, FRAMES);
        run.there.elapsed.as_secs_f64() * ticks::per_second() / FRAMES as f64
    };
    (0..RUNS).map(run).fold(f64::INFINITY, f64::min)
}

/// A client and the server that it is connected to.
fn connected() -> [End; 2] {
    let socket = format!("@ferrule-generator-bench-{}", std::process::id());
    let open = |role| {
        let spec = MemifSpec { ring: 1024, ..MemifSpec::new(socket.parse().unwrap(), role) };
        End::open(&EndSpec::Memif(spec), Duration::from_secs(10)).unwrap()
    };
    thread::scope(|scope| {
        let server = scope.spawn(|| open(Role::Server));
        [open(Role::Client), server.join().unwrap()]
    })
}

/// Some tens of rounds, so that one of many is likely to be undisturbed.
const FRAMES: u64 = 4096;
const RUNS: usize = 200;
/// Every buffer has been filled, and every line is where it is going to be.
const WARM_UP: Duration = Duration::from_micros(100);
