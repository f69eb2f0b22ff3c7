//! What a process spends on frames in one turn.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// CPU time in ns for each frame that is counted, of the busiest thread of a process.
pub fn turn(process: u32, mut frames: impl FnMut() -> u64) -> Result<f64, String> {
    thread::sleep(WARM_UP);
    let (before, counted) = (cpu_times(process), frames());
    thread::sleep(TURN);
    let (after, counted) = (cpu_times(process), frames() - counted);
    let spent = after.iter().filter_map(|(task, time)| {
        let (_, earlier) = before.iter().find(|(other, _)| other == task)?;
        Some(time - earlier)
    });
    match spent.max() {
        Some(spent) if spent > 0 && counted > 0 => Ok(spent as f64 / counted as f64),
        spent => Err(format!("{counted} frames in {} ns of a thread: nothing was measured", spent.unwrap_or(0))),
    }
}

/// Every thread with its time on CPUs, in ns.
fn cpu_times(process: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let time = |task: &Path| fs::read_to_string(task.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok();
    tasks.filter_map(|task| Some((task.file_name().to_string_lossy().into_owned(), time(&task.path())?))).collect()
}

/// The CPU of the worker, and of testpmd's.
pub const WORKER: usize = 0;
pub const WARM_UP: Duration = Duration::from_millis(200);
pub const TURN: Duration = Duration::from_millis(800);
