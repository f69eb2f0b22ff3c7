//! What quiet wires cost: CPU, memory and threads, and how fast a wire wakes from its sleep.

use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Source, Target};
use ferrule_endpoints::end::End;
use ferrule_hw_tests::TIMEOUT;
use procfs::ProcResult;
use serde_json::{Value, json};

use crate::site::{KINDS, Kind, Site};

/// Everything about forwarders without wires and with so many quiet ones of each kind.
pub fn measure(program: &Path, counts: &[usize]) -> Result<Vec<Value>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for kind in KINDS {
        // What a wire costs is what a forwarder has more than one without wires.
        let (row, empty) = one(program, kind, 0, None)?;
        rows.push(row);
        for &wires in counts.iter().filter(|&&wires| wires > 0) {
            rows.push(one(program, kind, wires, Some(&empty))?.0);
        }
    }
    Ok(rows)
}

fn one(program: &Path, kind: Kind, wires: usize, empty: Option<&Memory>) -> Result<(Value, Memory), Box<dyn Error>> {
    let mut site = Site::start(program, kind, wires)?;
    // What connecting left behind settles: lanes go to sleep after a millisecond.
    thread::sleep(SETTLED);
    let before = Cost::of(site.daemon.id())?;
    thread::sleep(WATCHED);
    let after = Cost::of(site.daemon.id())?;
    let watched = WATCHED.as_secs_f64();
    let memory = Memory::of(site.daemon.id())?;
    let of_a_wire = |own: u64, of_none: u64| own.saturating_sub(of_none) as f64 / wires.max(1) as f64;
    let per_wire = empty.map(|empty| {
        json!({
            "own_kib": of_a_wire(memory.own, empty.own),
            "page_tables_kib": of_a_wire(memory.page_tables, empty.page_tables),
        })
    });
    let mut row = json!({
        "ends": kind.to_string(),
        "wires": wires,
        "cpu_percent": after.cpu.saturating_sub(before.cpu).as_secs_f64() / watched * 100.0,
        "context_switches_per_second": after.switches.saturating_sub(before.switches) as f64 / watched,
        "own_mib": memory.own as f64 / 1024.0,
        "rings_mib": memory.rings as f64 / 1024.0,
        "page_tables_mib": memory.page_tables as f64 / 1024.0,
        "per_wire": per_wire,
        "threads": after.threads,
        "ready_ms": site.ready.as_secs_f64() * 1e3,
        "connect_all_ms": site.connected.as_secs_f64() * 1e3,
    });
    if wires > 0 {
        let wake = wake_ups(&mut site.ends);
        let wake =
            json!({ "samples": wake.len(), "p50": at(&wake, 500), "p99": at(&wake, 990), "max": at(&wake, 1000) });
        row["wake_us"] = wake;
    }
    Ok((row, memory))
}

/// What a process has used so far, over all its threads.
struct Cost {
    cpu: Duration,
    switches: u64,
    threads: usize,
}

impl Cost {
    fn of(process: u32) -> ProcResult<Self> {
        let process = procfs::process::Process::new(process.cast_signed())?;
        let mut cost = Self { cpu: Duration::ZERO, switches: 0, threads: 0 };
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

/// The memory of a process by whose it is, in KiB.
struct Memory {
    /// Its own: heap, stacks, and what it has of its program file.
    own: u64,
    /// Peers' memory that it has touched: rings and buffers, which are the peers' own anyway.
    rings: u64,
    /// What the kernel keeps to map all of that.
    page_tables: u64,
}

impl Memory {
    fn of(process: u32) -> ProcResult<Self> {
        let status = procfs::process::Process::new(process.cast_signed())?.status()?;
        let kib = |value: Option<u64>| value.unwrap_or_default();
        Ok(Self {
            own: kib(status.rssanon) + kib(status.rssfile),
            rings: kib(status.rssshmem),
            page_tables: kib(status.vmpte),
        })
    }
}

/// From the sending of a frame into a sleeping wire until its far end sees it; sorted, in microseconds.
///
/// One wire after the other has its turn, so that each has slept for a while and yet it is over in seconds. The
/// whole forwarder sleeps in between.
fn wake_ups(ends: &mut [End]) -> Vec<f64> {
    let wires = ends.len() / 2;
    let mut gather = vec![0; FRAME_MAX];
    let pause = (SLEPT / wires as u32).max(PAUSE_MIN);
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|number| {
            let (near, far) = ends[2 * (number % wires)..].split_at_mut(1);
            thread::sleep(pause);
            let sent = Instant::now();
            send(&mut near[0]);
            while !receive(&mut far[0], &mut gather) {
                assert!(sent.elapsed() < TIMEOUT, "a wire did not wake up");
                std::hint::spin_loop();
            }
            sent.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples
}

fn send(end: &mut End) {
    fn on(sender: &mut impl Target) {
        sender.refresh().expect("the forwarder keeps to the protocol");
        let frame = Frame { bytes: (&[7; 64][..]).into(), offload: None, slots: 0 };
        let put = sender.put(&frame).expect("the forwarder keeps to the protocol");
        assert_eq!(put, Put::Stored, "the ring of a quiet wire has room");
        if sender.publish()
            && let Some(eventfd) = sender.notify_fd()
        {
            // Full means that it rings already.
            let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
        }
    }
    match end {
        End::Memif(endpoint) => on(&mut endpoint.queues.senders[0]),
        End::Vhost(frontend) => on(&mut frontend.queues.senders[0]),
    }
}

/// Takes a frame, if there is one.
fn receive(end: &mut End, gather: &mut [u8]) -> bool {
    fn on(receiver: &mut impl Source, gather: &mut [u8]) -> bool {
        if !receiver.refresh().expect("the forwarder keeps to the protocol") {
            return false;
        }
        let frame = receiver.peek(gather).expect("the forwarder keeps to the protocol");
        let Some(slots) = frame.map(|frame| frame.slots) else { return false };
        receiver.advance(slots);
        receiver.release();
        true
    }
    match end {
        End::Memif(endpoint) => on(&mut endpoint.queues.receivers[0], gather),
        End::Vhost(frontend) => on(&mut frontend.queues.receivers[0], gather),
    }
}

/// The value that so many of a thousand sorted samples do not exceed.
fn at(sorted: &[f64], per_mille: usize) -> f64 {
    sorted[((sorted.len() - 1) * per_mille).div_ceil(1000)]
}

/// Prints what was measured.
pub fn show(rows: &[Value]) {
    println!(
        "| quiet wires | CPU of a core | own memory | a wire's share | its page tables | peers' rings | threads | ready | connecting all \
         | wake-up p50 | p99 | max |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for row in rows {
        let number = |value: &Value, unit: &str, digits| match value.as_f64() {
            Some(value) => format!("{value:.digits$} {unit}"),
            None => "-".to_owned(),
        };
        let (share, wake) = (&row["per_wire"], &row["wake_us"]);
        let cells = [
            number(&row["cpu_percent"], "%", 2),
            number(&row["own_mib"], "MiB", 1),
            number(&share["own_kib"], "KiB", 1),
            number(&share["page_tables_kib"], "KiB", 1),
            number(&row["rings_mib"], "MiB", 1),
            row["threads"].to_string(),
            number(&row["ready_ms"], "ms", 0),
            number(&row["connect_all_ms"], "ms", 0),
            number(&wake["p50"], "us", 0),
            number(&wake["p99"], "us", 0),
            number(&wake["max"], "us", 0),
        ];
        let ends = row["ends"].as_str().unwrap_or_default();
        println!("| {} {ends} | {} |", row["wires"], cells.join(" | "));
    }
}

const SETTLED: Duration = Duration::from_secs(1);
const WATCHED: Duration = Duration::from_secs(4);
const SAMPLES: usize = 300;
/// How long a wire has slept at least when it is woken.
const SLEPT: Duration = Duration::from_millis(300);
/// Between two wires, so that the forwarder's threads sleep too.
const PAUSE_MIN: Duration = Duration::from_millis(10);
