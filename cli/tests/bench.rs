//! The bench for real: the programs as they were built, and their traffic. Needs two CPUs and no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::need::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn a_short_bench_prints_figures_and_writes_them_for_programs_and_browsers() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lacking) = lacking() {
        return skip("a_short_bench_prints_figures_and_writes_them_for_programs_and_browsers", &lacking);
    }
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder, &["--time", "50ms", "--rounds", "2"]).output().unwrap();
    let (said, progress) = (String::from_utf8(bench.stdout).unwrap(), String::from_utf8(bench.stderr).unwrap());
    assert!(bench.status.success(), "{said}\n{progress}");
    assert!(progress.contains("measuring memif-memif 64 B one way"), "{progress}");
    let list = json(&folder, "report.json");
    let names: Vec<_> = list.as_array().unwrap().iter().map(|entry| entry["case"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "memif-memif 64 B one way",
            "memif-memif 64 B both ways",
            "memif-memif 1518 B one way",
            "memif-memif 1518 B both ways"
        ]
    );
    for entry in list.as_array().unwrap() {
        assert!(entry["ours_mpps"].as_f64().unwrap() > 0.001, "{entry:#}");
        assert!(entry["ours_cycles"].as_f64().unwrap() > 1.0, "{entry:#}");
        assert!(said.contains(entry["case"].as_str().unwrap()), "{said}");
    }
    let details = json(&folder, "report.details.json");
    assert_eq!(details["programs"][0]["name"], "ferrule");
    assert!(details["machine"]["tsc_mhz"].as_f64().unwrap() > 100.0);
    let trials = details["cases"][0]["programs"][0]["rounds"].as_array().unwrap();
    assert_eq!(trials.len(), 2);
    assert!(trials.iter().all(|round| round[0]["disorder"] == 0 && round[0]["loss"] == 0.0), "{trials:#?}");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    assert!(page.contains("<svg") && page.contains("memif-memif 1518 B both ways") && !page.contains("http"));
}

#[test]
fn latency_is_told_at_a_fixed_rate_and_a_search_finds_a_rate() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lacking) = lacking() {
        return skip("latency_is_told_at_a_fixed_rate_and_a_search_finds_a_rate", &lacking);
    }
    let folder = tempfile::tempdir().unwrap();
    let fixed = ["--method", "fixed", "--rate", "20k", "--size", "64", "--time", "100ms", "--rounds", "2"];
    let output = bench(&folder, &fixed).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let details = json(&folder, "report.details.json");
    let latency = &details["cases"][0]["programs"][0]["latency"][0];
    assert!(latency["frames"].as_u64().unwrap() > 10 && latency["p50"].as_f64().unwrap() > 0.0, "{latency:#}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("offered, Mpps") && said.contains("lost, %") && said.contains("skipped"), "{said}");
    let entry = &json(&folder, "report.json")[0];
    assert!(entry["ours_offered_mpps"].as_f64().unwrap() > 0.0 && entry["ours_skipped"].is_number(), "{entry:#}");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("Latency") && page.contains("percentile"));

    let search = ["--method", "ndr-pdr", "--size", "64", "--time", "40ms", "--rounds", "1", "--precision", "20%"];
    let output = bench(&folder, &[&search[..], &["--max-rate", "1M"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = json(&folder, "report.json");
    let figures: Vec<_> = list.as_array().unwrap().iter().map(|entry| entry["figure"].as_str().unwrap()).collect();
    assert_eq!(figures, ["NDR", "PDR"]);
}

#[test]
fn the_smallest_frames_of_ethernet_are_sent_whole() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lacking) = lacking() {
        return skip("the_smallest_frames_of_ethernet_are_sent_whole", &lacking);
    }
    let folder = tempfile::tempdir().unwrap();
    let output =
        bench(&folder, &["--size", "60", "--touch", "whole", "--time", "50ms", "--rounds", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json(&folder, "report.json")[0]["case"], "memif-memif 60 B one way");
}

#[test]
fn a_running_forwarder_that_is_not_there_is_told_soon() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lacking) = lacking() {
        return skip("a_running_forwarder_that_is_not_there_is_told_soon", &lacking);
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = |name: &str| folder.path().join(name).display().to_string();
    // Of a trusted wire our far end listens: a forwarder that runs comes to it at once, or the path is not one of its own.
    let near = socket("near.sock");
    let server = MemifSpec::new(near.parse().unwrap(), Role::Server);
    let server = thread::spawn(move || Endpoint::open(&server, Duration::from_mins(1)).unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while !Path::new(&near).exists() {
        assert!(Instant::now() < deadline, "it listens");
        thread::sleep(Duration::from_millis(1));
    }
    for (ends, at, missing) in [
        (&["--ends", "memif,memif"][..], [socket("a.sock"), socket("b.sock")], "a.sock"),
        (&["--ends", "vhost,vhost"], [socket("a.sock"), socket("b.sock")], "a.sock"),
        (&["--trusted"], [near, socket("b.sock")], "b.sock"),
    ] {
        let started = Instant::now();
        let output = bench(&folder, &[&["--at", &at.join(","), "--size", "64"], ends].concat()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&socket(missing)), "{said}");
        assert_eq!(output.status.code(), Some(1));
        // A program that is started may take 20 seconds to come up.
        assert!(started.elapsed() < Duration::from_secs(10), "it waited {:?}", started.elapsed());
    }
    server.join().unwrap();
}

#[test]
fn a_signal_ends_the_bench_and_neither_folders_nor_processes_stay() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lacking) = lacking() {
        return skip("a_signal_ends_the_bench_and_neither_folders_nor_processes_stay", &lacking);
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let folder = tempfile::tempdir().unwrap();
        let mut running = until_it_measures(&folder);
        let forwarder = child_of(running.id()).unwrap();
        kill(Pid::from_raw(running.id().cast_signed()), signal).unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(1), "{signal}");
        assert_eq!(folders_of(running.id()), 0, "{signal}");
        wait_for_end(forwarder);
        assert!(!folder.path().join("report.json").exists());
    }
}

#[test]
fn a_killed_bench_takes_its_programs_along_and_the_next_one_removes_its_folders() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lacking) = lacking() {
        return skip("a_killed_bench_takes_its_programs_along_and_the_next_one_removes_its_folders", &lacking);
    }
    let folder = tempfile::tempdir().unwrap();
    let mut killed = until_it_measures(&folder);
    let forwarder = child_of(killed.id()).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait_for_end(forwarder);
    assert_eq!(folders_of(killed.id()), 1);
    let next = bench(&folder, &["--forwarder", "/bin/false", "--size", "64"]).output().unwrap();
    assert_eq!(folders_of(killed.id()), 0);
    let said = String::from_utf8(next.stderr).unwrap();
    assert!(!next.status.success() && said.contains("connect to ferrule: `/bin/false --config"), "{said}");
}

/// A bench in the middle of its work.
fn until_it_measures(folder: &TempDir) -> Child {
    let mut running = bench(folder, &["--size", "64", "--time", "1h"]).spawn().unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    let begun = lines.by_ref().any(|line| line.unwrap().contains("measuring"));
    assert!(begun, "it ended early");
    // What it says from now on has somewhere to go.
    thread::spawn(move || lines.count());
    running
}

fn bench(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(FERRULE);
    command.arg("bench").arg("--report").arg(folder.path()).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn json(folder: &TempDir, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.path().join(name)).unwrap()).unwrap()
}

/// A process that another one started, on any of its threads.
fn child_of(pid: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let children = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(children).find_map(|pids| pids.split_whitespace().next()?.parse().ok())
}

fn folders_of(pid: u32) -> usize {
    let prefix = format!("ferrule-bench-{pid}-");
    let entries = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

/// Killed; the kernel may still be taking it down, or its new parent may not have noticed yet.
fn wait_for_end(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while !(state().is_empty() || state().contains(") Z ") || state().contains(") X ")) {
        assert!(Instant::now() < deadline, "{}", state());
        thread::sleep(Duration::from_millis(10));
    }
}

/// What this machine lacks for a bench.
fn lacking() -> Option<String> {
    let forwarder = Path::new(FERRULE).with_file_name("dpdk-forwarder");
    if !forwarder.exists() {
        return Some(format!("{} (cargo build -p dpdk-forwarder)", forwarder.display()));
    }
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    (cpus < 2).then(|| "the worker and the generator need a CPU each".to_owned())
}

/// Two benches at once would share their CPUs.
static TURN: Mutex<()> = Mutex::new(());
const FERRULE: &str = env!("CARGO_BIN_EXE_ferrule");
