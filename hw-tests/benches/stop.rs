//! How long a forwarder takes to end, from SIGTERM on: with kernel interfaces that it has to close, and while it still makes
//! them. The drain grace is 200 ms.
//!
//! `cargo build --release -p dpdk-forwarder && cargo bench -p ferrule-hw-tests --bench stop [-- PROGRAM]`
//!
//! Needs root. Nothing passes or fails here. Another program than the one beside this is for comparing two builds.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::{eventually, forwarder};
use nix::sys::signal::Signal;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it builds.
    if !arguments.iter().any(|argument| argument == "--bench") || lacks_namespaces("stop") {
        return Ok(());
    }
    let named = arguments.iter().find(|argument| !argument.starts_with("--")).map(PathBuf::from);
    let Some(program) = named.or_else(|| forwarder("stop")) else { return Ok(()) };
    println!("{} (drain grace {GRACE})", program.display());
    println!("| TAP wires | SIGTERM | least | median | most |\n| ---: | --- | ---: | ---: | ---: |");
    for (wires, when) in [(60, When::Ready), (300, When::Making)] {
        let mut times = (0..RUNS).map(|_| stop(&program, wires, when)).collect::<Result<Vec<_>, _>>()?;
        times.sort();
        let what = if when == When::Ready { "all are there" } else { "the first is there" };
        println!("| {wires} | {what} | {:.2?} | {:.2?} | {:.2?} |", times[0], times[RUNS / 2], times[RUNS - 1]);
    }
    Ok(())
}

/// When the forwarder is told to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// It serves all wires.
    Ready,
    /// It has made the first interface.
    Making,
}

/// From SIGTERM until its process has ended.
fn stop(program: &Path, wires: usize, when: When) -> Result<Duration, Box<dyn Error>> {
    let (pod, folder) = (TestNetNs::new(), tempfile::tempdir()?);
    let wire = |number| {
        format!(
            "  - {{ name: w{number}, ends: [{{ kernel: {{ netns: {}, name: tap{number} }} }}, {{ memif: {{ socket: {}, role: server }} }}] }}\n",
            pod.path().display(),
            folder.path().join(format!("{number}.sock")).display(),
        )
    };
    let file = folder.path().join("wires.yaml");
    fs::write(&file, format!("wires:\n{}", (0..wires).map(wire).collect::<String>()))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&file).arg("--admin").arg(folder.path().join("admin.sock"));
    let daemon = Process::start(command.args(["--log-level", "info", "--drain-grace", GRACE]));
    match when {
        When::Ready => daemon.wait_for("ready: "),
        When::Making => eventually("the first interface is there", || !pod.interfaces().is_empty()),
    }
    let asked = Instant::now();
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    Ok(asked.elapsed())
}

const GRACE: &str = "200ms";
/// Odd, so that there is a middle one.
const RUNS: usize = 5;
