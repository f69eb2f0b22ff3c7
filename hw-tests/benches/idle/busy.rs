//! The rate of a busy wire among quiet ones by its rate alone.
//!
//! Two forwarders share one CPU: one has the busy wire only, the other has it and the quiet ones. Each is stopped while
//! the other has its turn, so that the two measurements of a round are close together in time, and the ratio of a round
//! stays true on a machine whose speed drifts. Who begins changes from round to round.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use ferrule_bench::generator::{self, Outcome};
use ferrule_bench::load::{Load, Mix};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::site::{GENERATOR, KINDS, Kind, Site};

/// One row for each kind of wires and each load.
pub fn measure(program: &Path, quiet: usize) -> Result<Vec<Value>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for kind in KINDS {
        rows.extend(of_kind(program, kind, quiet)?);
    }
    Ok(rows)
}

fn of_kind(program: &Path, kind: Kind, quiet: usize) -> Result<Vec<Value>, Box<dyn Error>> {
    let mut sites = [Site::start(program, kind, 1)?, Site::start(program, kind, 1 + quiet)?];
    // The quiet wires go to sleep before it begins.
    thread::sleep(SETTLED);
    for site in &sites {
        site.daemon.pause();
    }
    let whole = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = CpuSet::new();
    cpus.set(GENERATOR)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let rows = LOADS.iter().map(|&(size, both_ways)| of_load(&mut sites, kind, quiet, size, both_ways)).collect();
    sched_setaffinity(Pid::from_raw(0), &whole)?;
    rows
}

fn of_load(
    sites: &mut [Site; 2],
    kind: Kind,
    quiet: usize,
    size: usize,
    both_ways: bool,
) -> Result<Value, Box<dyn Error>> {
    let load = Load { both_ways, warm_up: WARM_UP, ..Load::new(Mix::new([size])?, TURN) };
    let mut rounds = Vec::new();
    // The first round warms caches and page tables, and is not counted.
    for round in 0..=ROUNDS {
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            let which = (round + turn) % 2;
            rates[which] = rate(&mut sites[which], &load)?;
        }
        if round > 0 {
            rounds.push(rates);
        }
    }
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let of = |which: usize| sorted(rounds.iter().map(|rates| rates[which]).collect())[ROUNDS / 2];
    let ratios = sorted(rounds.iter().map(|[alone, among]| among / alone).collect());
    Ok(json!({
        "ends": kind.to_string(),
        "quiet_wires": quiet,
        "frame_bytes": size,
        "both_ways": both_ways,
        "rounds": ROUNDS,
        "alone_mpps": of(0) / 1e6,
        "among_mpps": of(1) / 1e6,
        "ratio": {
            "median": ratios[ROUNDS / 2],
            "quartiles": [ratios[ROUNDS / 4], ratios[ROUNDS - 1 - ROUNDS / 4]],
            "least": ratios[0],
            "most": ratios[ROUNDS - 1],
        },
    }))
}

/// Frames a second over the first wire of a forwarder, which runs for that long only.
fn rate(site: &mut Site, load: &Load) -> Result<f64, Box<dyn Error>> {
    site.daemon.resume();
    let (near, far) = site.ends.split_at_mut(1);
    let run = generator::run(load, &mut near[0], &mut far[0], &AtomicBool::new(false));
    site.daemon.pause();
    let run = run?;
    let lost: u64 = run.outcomes().map(Outcome::lost).sum();
    // A load that waits for room loses nothing unless the forwarder does.
    assert_eq!(lost, 0, "frames were lost");
    Ok(run.outcomes().map(Outcome::frames_per_second).sum())
}

/// Prints what was measured.
pub fn show(rows: &[Value]) {
    println!("| busy wire | alone | among quiet ones | ratio, median | middle half of the rounds | least to most |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for row in rows {
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        let ratio = &row["ratio"];
        println!(
            "| {} {} B {}, {} quiet | {:.1} Mpps | {:.1} Mpps | {:.1} % | {:.1} to {:.1} % | {:.1} to {:.1} % |",
            row["ends"].as_str().unwrap_or_default(),
            row["frame_bytes"],
            if row["both_ways"] == true { "both ways" } else { "one way" },
            row["quiet_wires"],
            number(&row["alone_mpps"]),
            number(&row["among_mpps"]),
            number(&ratio["median"]) * 100.0,
            number(&ratio["quartiles"][0]) * 100.0,
            number(&ratio["quartiles"][1]) * 100.0,
            number(&ratio["least"]) * 100.0,
            number(&ratio["most"]) * 100.0,
        );
    }
}

/// Bytes of a frame, and whether they go both ways.
const LOADS: [(usize, bool); 2] = [(64, false), (1518, true)];
/// Odd, so that there is a middle one.
const ROUNDS: usize = 41;
const WARM_UP: Duration = Duration::from_millis(20);
const TURN: Duration = Duration::from_millis(100);
const SETTLED: Duration = Duration::from_secs(1);
