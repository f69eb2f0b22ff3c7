//! The rate of a wire beside another one, on the same worker, whose peers take the pages of their frames away all the time,
//! so that each of its visits waits for the kernel.
//!
//! `cargo build --release -p dpdk-forwarder && cargo bench -p ferrule-hw-tests --bench fairness [-- PROGRAM]`
//!
//! Nothing passes or fails here. In each round the other wire's frames lie on pages that stay, and then on pages that are
//! punched out; the thread that sends them works the same in both. Another program than the one beside this is for
//! comparing two builds.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use ferrule_bench::generator;
use ferrule_bench::load::{Load, Mix};
use ferrule_dataplane::port::{FRAME_MAX, Frame, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::end::End;
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::forwarder;
use ferrule_hw_tests::process::Process;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it builds.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let named = arguments.iter().find(|argument| !argument.starts_with("--")).map(PathBuf::from);
    let Some(program) = named.or_else(|| forwarder("fairness")) else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let daemon = start(&program, folder.path())?;
    let mut victim = [0, 1].map(|end| open(folder.path(), "victim", end, 2048).map(End::Memif));
    let [Ok(near), Ok(far)] = &mut victim else { return Err("the victim's wire has no peers".into()) };
    let mut other = [open(folder.path(), "other", 0, 4096)?, open(folder.path(), "other", 1, 4096)?];
    let load = Load { warm_up: Duration::from_millis(20), ..Load::new(Mix::new([64])?, TURN) };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut rates = [0.0; 2];
        for (rate, punches) in rates.iter_mut().zip([false, true]) {
            let stop = AtomicBool::new(false);
            *rate = thread::scope(|scope| {
                scope.spawn(|| disturb(&mut other, punches, &stop));
                let run = generator::run(&load, near, far, &AtomicBool::new(false));
                stop.store(true, Relaxed);
                run.map(|run| run.there.frames_per_second() / 1e6)
            })?;
        }
        rounds.push(rates);
    }
    drop(daemon);
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    let [stay, punched] = [0, 1].map(|which| middle(rounds.iter().map(|rates| rates[which]).collect()));
    let ratio = middle(rounds.iter().map(|[stay, punched]| punched / stay).collect());
    println!("{}", program.display());
    println!(
        "| pages of the other wire stay | are punched out | ratio, median of {ROUNDS} rounds |\n| ---: | ---: | ---: |"
    );
    println!("| {stay:.2} Mpps | {punched:.2} Mpps | {:.0} % |", ratio * 100.0);
    Ok(())
}

/// A forwarder with two wires on one worker.
fn start(program: &Path, folder: &Path) -> Result<Process, Box<dyn Error>> {
    let wire = |name: &str| {
        let end = |number| format!("{{ memif: {{ socket: {}, role: server }} }}", socket(folder, name, number));
        format!("  - {{ name: {name}, ends: [{}, {}] }}\n", end(0), end(1))
    };
    let file = folder.join("wires.yaml");
    fs::write(&file, format!("workers: [0]\nwires:\n{}{}", wire("victim"), wire("other")))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&file).arg("--admin").arg(folder.join("admin.sock"));
    let daemon = Process::start(command.args(["--log-level", "info"]));
    daemon.wait_for("ready: ");
    Ok(daemon)
}

fn socket(folder: &Path, wire: &str, end: u32) -> String {
    folder.join(format!("{wire}-{end}.sock")).display().to_string()
}

fn open(folder: &Path, wire: &str, end: u32, buffer: u32) -> Result<Endpoint, Box<dyn Error>> {
    let spec = MemifSpec { buffer, ..MemifSpec::new(socket(folder, wire, end).parse()?, Role::Client) };
    Ok(Endpoint::open(&spec, Duration::from_secs(10))?)
}

/// Sends bursts over a wire; before each, the pages of the frames are punched out at both ends, or as many of files that
/// nobody uses.
fn disturb(ends: &mut [Endpoint; 2], punches: bool, stop: &AtomicBool) {
    let bytes = 2 * 1024 * 4096;
    let unused = [0, 1].map(|_| memfd_create(c"unused", MFdFlags::MFD_CLOEXEC).expect("a memfd is made"));
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut gather = vec![0; FRAME_MAX];
    while !stop.load(Relaxed) {
        for (end, unused) in ends.iter().zip(&unused) {
            let buffers = end.regions().nth(1).expect("a client has a region of buffers");
            let _ = if punches {
                fallocate(buffers, punch, 0, bytes)
            } else {
                fallocate(unused, FallocateFlags::empty(), 0, bytes / 64)
                    .and_then(|()| fallocate(unused, punch, 0, bytes))
            };
        }
        let [near, far] = &mut *ends;
        let sender = &mut near.queues.senders[0];
        sender.refresh().expect("the forwarder keeps to the protocol");
        for _ in 0..64 {
            let _ = sender.put(&Frame { bytes: [7; 60][..].into(), offload: None, slots: 0 });
        }
        sender.publish();
        let receiver = &mut far.queues.receivers[0];
        while receiver.refresh().expect("the forwarder keeps to the protocol") {
            while let Ok(Some(frame)) = receiver.peek(&mut gather) {
                let slots = frame.slots;
                receiver.advance(slots);
            }
            receiver.release();
        }
    }
}

const TURN: Duration = Duration::from_millis(200);
/// Odd, so that there is a middle one.
const ROUNDS: usize = 11;
