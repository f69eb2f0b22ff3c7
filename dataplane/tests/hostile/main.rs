//! Bad peers: whatever one memif peer does, it loses at most its own wire.
//!
//! Each [`Case`] is an attack on one end of one wire, while two other wires on the same worker carry
//! numbered frames both ways. Judged is always the same ([`Arena::judge`]): the others moved on during the
//! attack, without a gap; the wire says what was wrong; no descriptor was kept; and an honest peer takes
//! the place at once.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

mod arena;
#[path = "../common/mod.rs"]
mod common;
mod control;
mod descriptors;
mod floods;
mod held;
mod host;
mod lair;
mod log;
mod memory;
mod peer;
mod rings;
mod servers;
mod traffic;

use std::panic;
use std::process;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use arena::{Arena, Case};

#[test]
fn no_peer_harms_more_than_its_own_wire() {
    log::count_lines();
    floods::FileLimit::raise();
    let only = std::env::var("HOSTILE").unwrap_or_default();
    let tables = [control::CASES, descriptors::CASES, memory::CASES, rings::CASES, floods::CASES, servers::CASES];
    let cases: Vec<&Case> = tables.into_iter().flatten().filter(|case| case.name.contains(&only)).collect();
    let withstands = |case: &&&Case| {
        let watchdog = Watchdog::over(case.name);
        let result = panic::catch_unwind(|| Arena::prepare(case).judge(case));
        watchdog.dismiss();
        result.is_ok()
    };
    let (withstood, failed): (Vec<&&Case>, Vec<&&Case>) = cases.iter().partition(withstands);
    let failed: Vec<_> = failed.iter().map(|case| case.name).collect();
    assert!(failed.is_empty(), "not withstood: {failed:#?}");
    println!("hostile: {} cases withstood", withstood.len());
}

/// Ends the process when a case hangs: nothing milder gets a thread out of a system call.
struct Watchdog(mpsc::Sender<()>);

impl Watchdog {
    fn over(name: &'static str) -> Self {
        let (dismiss, dismissed) = mpsc::channel();
        thread::spawn(move || {
            if dismissed.recv_timeout(CASE_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("hostile: `{name}` took longer than {CASE_MAX:?}");
                process::abort();
            }
        });
        Self(dismiss)
    }

    fn dismiss(self) {
        let _ = self.0.send(());
    }
}

/// No case may take longer, on a machine with other work to do.
const CASE_MAX: Duration = Duration::from_secs(15);
