//! Bad peers: whatever one peer does, it loses at most its own wire.
//!
//! Each [`Case`] is an attack on one end of one wire, while two other wires on the same worker, one between memif and
//! one between vhost-user peers, carry numbered frames both ways. What is checked is always the same ([`Testbed::check`]): the
//! others moved on during the attack, without a gap; the wire says what was wrong; no descriptor was kept; and an
//! honest peer takes the place at once.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod files;
mod held;
mod honest;
mod limit;
mod log;
mod memif;
mod raw;
mod testbed;
mod traffic;
mod vhost;

use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use testbed::{Case, Testbed};

#[test]
fn no_memif_peer_harms_more_than_its_own_wire() {
    withstand("memif", memif::TABLES);
}

#[test]
fn no_vhost_user_frontend_harms_more_than_its_own_wire() {
    withstand("vhost-user", vhost::TABLES);
}

fn withstand(suite: &str, tables: &[&'static [Case]]) {
    // One after the other: descriptors are counted, and they are the process's.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    log::count_lines();
    limit::FileLimit::raise();
    let only = std::env::var("HOSTILE").unwrap_or_default();
    let cases: Vec<&Case> = tables.iter().copied().flatten().filter(|case| case.name.contains(&only)).collect();
    // One engine for all of them, as long as it withstands: taking one down takes the kernel longer than most cases.
    let mut engine = Arc::new(common::engine());
    // What it and its first case have opened for good. The least that was ever seen: a moment later it may be less.
    let mut files = None::<usize>;
    let mut failed = Vec::new();
    for case in &cases {
        let watchdog = Watchdog::over(case.name);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            Testbed::prepare(case, &engine).check(case);
            if let Some(files) = files {
                common::eventually("every descriptor of the case is closed", || testbed::open_files() <= files);
            }
        }));
        watchdog.dismiss();
        if outcome.is_err() {
            failed.push(case.name);
            engine = Arc::new(common::engine());
            files = None;
        } else {
            files = Some(files.unwrap_or(usize::MAX).min(testbed::open_files()));
        }
    }
    assert!(failed.is_empty(), "not withstood: {failed:#?}");
    println!("hostile: {} cases withstood ({suite})", cases.len());
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
const CASE_MAX: Duration = Duration::from_mins(1);
