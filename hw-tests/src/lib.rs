//! What tests share that need a privilege, a device or a peer's program. *Not* part of the product.
//!
//! The tests themselves are in `tests/`, one file for each peer. A test that lacks something says so and passes:
//! see [`need`].
//!
//! - [`need`]: what a test lacks on this machine;
//! - [`netns`]: network namespaces that never outlive a test;
//! - [`process`]: programs that never outlive a test and whose output is shown when it fails;
//! - [`testpmd`]: DPDK's test program as a peer;
//! - [`cgroup`]: a limit of memory for one of them;
//! - [`content`]: bytes that are compared where they arrive;
//! - [`holdings`]: what a process holds, before and after;
//! - [`frames`]: single frames in and out of a memif end;
//! - [`stream`]: numbered frames between two memif ends, checked on arrival;
//! - [`unanswered`]: a file that cannot be closed;
//! - [`vm`]: virtual machines, and [`guest`]: what runs inside them;
//! - [`lab`]: scenarios on the SR-IOV of a virtual machine (`make lab`);
//! - [`node`]: scenarios on a Kubernetes node (`make node`);
//! - [`nsm`]: connections of Network Service Mesh (`make nsm`).

pub mod cgroup;
pub mod content;
pub mod frames;
pub mod guest;
pub mod holdings;
pub mod lab;
pub mod need;
pub mod netns;
pub mod node;
pub mod nsm;
pub mod process;
pub mod stream;
pub mod testpmd;
pub mod unanswered;
pub mod vm;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A name that no other test, and no other run, uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ferrule-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until `condition` holds, at most [`TIMEOUT`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The forwarder's program, built beside the program that asks: `target/<profile>/dpdk-forwarder`. None: it was
/// said that `test` lacks it.
pub fn forwarder(test: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().expect("a running program has a file");
    // A test or a bench is in `deps`.
    let program = here.parent()?.parent()?.join("dpdk-forwarder");
    if program.exists() {
        return Some(program);
    }
    need::skip(test, &format!("{} (cargo build -p dpdk-forwarder)", program.display()));
    None
}

/// How long anything may take on a busy machine of two cores.
pub const TIMEOUT: Duration = Duration::from_mins(1);
