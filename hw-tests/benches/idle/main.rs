//! What quiet wires cost a real forwarder, what they cost a busy wire beside them, and what DPDK costs.
//!
//! `cargo build --release -p dpdk-forwarder && cargo bench -p ferrule-hw-tests --bench idle [-- quiet|busy|dpdk] [WIRES ...]`
//!
//! Nothing passes or fails here: figures are printed, and written to `target/bench/idle.json`. Without a word the first two
//! are measured; a part that is not measured keeps the figures that the file has of it.
//!
//! - [`quiet`]: CPU, memory and threads of quiet wires, and how fast one wakes from its sleep;
//! - [`busy`]: the rate of a busy wire among a thousand quiet ones by its rate alone;
//! - [`states`]: memory, threads and start of a forwarder whose wires need no DPDK, and of one that has started it;
//! - [`site`]: the forwarder, its wires, and our ends of them.

mod busy;
mod quiet;
mod site;
mod states;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use ferrule_hw_tests::forwarder;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Map, Value};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it builds.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let Some(program) = forwarder("idle") else { return Ok(()) };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let counts: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let named = |part: &str| arguments.iter().any(|argument| argument == part);
    let all = !["quiet", "busy", "dpdk"].into_iter().any(named);

    let file = output_file(&program)?;
    let mut figures = known(&file);
    if all || named("quiet") {
        let counts = if counts.is_empty() { &[100, 1000] } else { &counts[..] };
        let rows = quiet::measure(&program, counts)?;
        quiet::show(&rows);
        figures.insert("quiet".to_owned(), rows.into());
    }
    if all || named("busy") {
        let wires = counts.iter().copied().max().unwrap_or(1000);
        let rows = busy::measure(&program, wires)?;
        busy::show(&rows);
        figures.insert("busy".to_owned(), rows.into());
    }
    if named("dpdk") {
        let rows = states::measure(&program)?;
        states::show(&rows);
        figures.insert("dpdk".to_owned(), rows.into());
    }
    fs::write(&file, serde_json::to_string_pretty(&Value::from(figures))?)?;
    println!("written to {}", file.display());
    Ok(())
}

/// What an earlier run has found out, if there was one.
fn known(file: &Path) -> Map<String, Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    match serde_json::from_str(&text) {
        Ok(Value::Object(figures)) => figures,
        _ => Map::new(),
    }
}

/// `bench/idle.json` in the target directory that the program is in.
fn output_file(program: &Path) -> std::io::Result<PathBuf> {
    let target = program.ancestors().nth(2).expect("the program is in the folder of its profile");
    let folder = target.join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder.join("idle.json"))
}
