//! What quiet wires cost: CPU, memory and threads of a real forwarder, and how fast a wire wakes from its sleep.
//!
//! `cargo build --release -p dpdk-forwarder && cargo bench -p ferrule-hw-tests --bench idle [-- WIRES ...]`
//!
//! Nothing passes or fails here: figures are printed, and written to `target/bench/idle.json`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::memif::endpoint::Endpoint;
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_hw_tests::frames::{receive, send};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::{PATIENCE, forwarder};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use procfs::ProcResult;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it builds.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let Some(program) = forwarder("idle") else { return Ok(()) };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let mut counts: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![100, 1000];
    }
    let figures = counts.into_iter().map(|wires| measure(&program, wires)).collect::<Result<Vec<_>, _>>()?;
    show(&figures);
    let file = output_file(&program)?;
    fs::write(&file, serde_json::to_string_pretty(&json!({ "idle": figures }))?)?;
    println!("written to {}", file.display());
    Ok(())
}

/// Everything about one forwarder with so many quiet wires.
fn measure(program: &Path, wires: usize) -> Result<Value, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("memif.sock");
    let file = folder.path().join("wires.yaml");
    fs::write(&file, wires_file(wires, &socket))?;
    let started = Instant::now();
    let mut command = Command::new(program);
    command.arg("--config").arg(&file).arg("--admin").arg(folder.path().join("admin.sock"));
    let daemon = Process::start(command.args(["--log-level", "info"]));
    daemon.wait_for("ready: ");
    let ready = started.elapsed();

    let connecting = Instant::now();
    let ends = (0..2 * wires).map(|id| Endpoint::open(&end(&socket, id), PATIENCE));
    let mut ends = ends.collect::<Result<Vec<_>, _>>()?;
    let connected = connecting.elapsed();
    // What connecting left behind settles: lanes go to sleep after a millisecond.
    thread::sleep(SETTLED);

    let before = Cost::of(daemon.id())?;
    thread::sleep(WATCHED);
    let after = Cost::of(daemon.id())?;
    let watched = WATCHED.as_secs_f64();
    let wake = wake_ups(&mut ends);
    Ok(json!({
        "wires": wires,
        "cpu_percent": after.cpu.saturating_sub(before.cpu).as_secs_f64() / watched * 100.0,
        "context_switches_per_second": after.switches.saturating_sub(before.switches) as f64 / watched,
        "rss_mib": after.resident_kib as f64 / 1024.0,
        "threads": after.threads,
        "ready_ms": ready.as_secs_f64() * 1e3,
        "connect_all_ms": connected.as_secs_f64() * 1e3,
        "wake_us": { "samples": wake.len(), "p50": at(&wake, 500), "p99": at(&wake, 990), "max": at(&wake, 1000) },
    }))
}

/// Wires between two servers; one listening socket has all of them.
fn wires_file(wires: usize, socket: &Path) -> String {
    let end = |id| format!("{{memif: {{socket: {}, id: {id}, role: server}}}}", socket.display());
    let wire = |n| format!("  - {{name: wire-{n}, ends: [{}, {}]}}\n", end(2 * n), end(2 * n + 1));
    format!("workers: [0]\nwires:\n{}", (0..wires).map(wire).collect::<String>())
}

fn end(socket: &Path, id: usize) -> MemifSpec {
    let socket = socket.to_str().and_then(|socket| socket.parse().ok()).expect("a temporary path is a good address");
    MemifSpec { id: id as u32, ..MemifSpec::new(socket, Role::Client) }
}

/// What a process has used so far, over all its threads.
struct Cost {
    cpu: Duration,
    switches: u64,
    threads: usize,
    resident_kib: u64,
}

impl Cost {
    fn of(process: u32) -> ProcResult<Self> {
        let process = procfs::process::Process::new(process.cast_signed())?;
        let resident_kib = process.status()?.vmrss.unwrap_or_default();
        let mut cost = Self { cpu: Duration::ZERO, switches: 0, threads: 0, resident_kib };
        for task in process.tasks()?.flatten() {
            // In nanoseconds; utime and stime count in steps of 10 ms.
            cost.cpu += Duration::from_nanos(task.schedstat()?.sum_exec_runtime);
            let status = task.status()?;
            cost.switches += status.voluntary_ctxt_switches.unwrap_or_default();
            cost.switches += status.nonvoluntary_ctxt_switches.unwrap_or_default();
            cost.threads += 1;
        }
        Ok(cost)
    }
}

/// From the sending of a frame into a sleeping wire until its far end sees it; sorted, in microseconds.
///
/// One wire after the other has its turn, so that each has slept for a while and yet it is over in seconds. The
/// whole forwarder sleeps in between.
fn wake_ups(ends: &mut [Endpoint]) -> Vec<f64> {
    let wires = ends.len() / 2;
    let pause = (SLEPT / wires as u32).max(PAUSE_MIN);
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|number| {
            let (near, far) = ends[2 * (number % wires)..].split_at_mut(1);
            let (near, far) = (&mut near[0], &mut far[0]);
            thread::sleep(pause);
            let sent = Instant::now();
            assert!(send(near, &[7; 64]), "the ring of a quiet wire has room");
            while receive(far).is_none() {
                assert!(sent.elapsed() < PATIENCE, "a wire did not wake up");
                std::hint::spin_loop();
            }
            sent.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples
}

/// The value that so many of a thousand sorted samples do not exceed.
fn at(sorted: &[f64], per_mille: usize) -> f64 {
    sorted[((sorted.len() - 1) * per_mille).div_ceil(1000)]
}

fn show(figures: &[Value]) {
    println!(
        "| wires | CPU % of a core | RSS MiB | threads | switches/s | ready ms | connect all ms | wake p50 us | p99 us | max us |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for row in figures {
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        println!(
            "| {} | {:.2} | {:.0} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            row["wires"],
            number(&row["cpu_percent"]),
            number(&row["rss_mib"]),
            row["threads"],
            number(&row["context_switches_per_second"]),
            number(&row["ready_ms"]),
            number(&row["connect_all_ms"]),
            number(&row["wake_us"]["p50"]),
            number(&row["wake_us"]["p99"]),
            number(&row["wake_us"]["max"]),
        );
    }
}

/// `bench/idle.json` in the target directory that the program is in.
fn output_file(program: &Path) -> std::io::Result<PathBuf> {
    let target = program.ancestors().nth(2).expect("the program is in the folder of its profile");
    let folder = target.join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder.join("idle.json"))
}

const SETTLED: Duration = Duration::from_secs(1);
const WATCHED: Duration = Duration::from_secs(5);
const SAMPLES: usize = 300;
/// How long a wire has slept at least when it is woken.
const SLEPT: Duration = Duration::from_millis(300);
/// Between two wires, so that the forwarder's threads sleep too.
const PAUSE_MIN: Duration = Duration::from_millis(10);
