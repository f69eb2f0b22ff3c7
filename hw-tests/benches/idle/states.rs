//! What DPDK costs a forwarder that has started it, and one that has not: memory, threads, files, and the time until it is ready.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_hw_tests::process::Process;
use serde_json::{Map, Value};

/// Medians of some starts of each state.
pub fn measure(program: &Path) -> Result<Vec<Value>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for (state, ends, starts_dpdk) in STATES {
        let runs = (0..RUNS).map(|_| one(program, ends, starts_dpdk)).collect::<Result<Vec<_>, _>>()?;
        let median = |figure: usize| {
            let mut values: Vec<_> = runs.iter().map(|run| run[figure]).collect();
            values.sort_by(f64::total_cmp);
            values[RUNS / 2]
        };
        let figures = FIGURES.iter().enumerate().map(|(number, (name, _))| ((*name).to_owned(), median(number).into()));
        let mut row: Map<String, Value> = figures.collect();
        row.insert("dpdk".to_owned(), state.into());
        rows.push(row.into());
    }
    Ok(rows)
}

/// The figures of one start with one wire.
fn one(program: &Path, ends: &str, starts_dpdk: bool) -> Result<[f64; FIGURES.len()], Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("wires.yaml");
    let ends = ends.replace("FOLDER", &folder.path().display().to_string());
    fs::write(&file, format!("workers: [0]\nwires: [{{ name: w, ends: [{ends}] }}]\n"))?;
    let started = Instant::now();
    let mut command = Command::new(program);
    command.arg("--config").arg(&file).arg("--admin").arg(folder.path().join("admin.sock"));
    let daemon = Process::start(command.args(["--log-level", "info"]));
    daemon.wait_for("ready: ");
    let ready = started.elapsed();
    thread::sleep(SETTLED);
    let of_process = format!("/proc/{}", daemon.id());
    if fs::read_to_string(format!("{of_process}/maps"))?.contains("librte_eal") != starts_dpdk {
        return Err(format!("whether DPDK is started is not as it should be:\n{}", daemon.output()).into());
    }
    let status = fs::read_to_string(format!("{of_process}/status"))?;
    let number = |name: &str| -> Result<f64, Box<dyn Error>> {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        Ok(value.ok_or_else(|| format!("no {name} in {of_process}/status"))?.parse()?)
    };
    let mib = |name| number(name).map(|kib| kib / 1024.0);
    Ok([
        ready.as_secs_f64() * 1e3,
        mib("VmRSS:")?,
        mib("RssAnon:")?,
        mib("RssFile:")?,
        mib("RssShmem:")?,
        number("Threads:")?,
        fs::read_dir(format!("{of_process}/fd"))?.count() as f64,
    ])
}

/// Prints what was measured.
pub fn show(rows: &[Value]) {
    println!("| DPDK | {} |", FIGURES.map(|(_, title)| title).join(" | "));
    println!("| --- |{}", " ---: |".repeat(FIGURES.len()));
    for row in rows {
        let cells = FIGURES.map(|(name, _)| format!("{:.1}", row[name].as_f64().unwrap_or(f64::NAN)));
        println!("| {} | {} |", row["dpdk"].as_str().unwrap_or_default(), cells.join(" | "));
    }
}

/// A state, its wire's ends, and whether DPDK is started for them.
const STATES: [(&str, &str, bool); 2] = [
    (
        "unused",
        "{ memif: { socket: FOLDER/a.sock, role: server } }, { memif: { socket: FOLDER/b.sock, role: server } }",
        false,
    ),
    (
        "started, with a `net_ring`",
        "{ ethdev: { device: net_ring0 } }, { memif: { socket: FOLDER/b.sock, role: server } }",
        true,
    ),
];

const FIGURES: [(&str, &str); 7] = [
    ("ready_ms", "ready, ms"),
    ("rss_mib", "memory, MiB"),
    ("own_mib", "its own"),
    ("files_mib", "of files"),
    ("shared_mib", "shared"),
    ("threads", "threads"),
    ("files", "open files"),
];
const RUNS: usize = 5;
/// After which the figures are read.
const SETTLED: Duration = Duration::from_secs(1);
