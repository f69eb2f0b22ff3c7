//! The cgroups that a node leaves behind: they are not in any namespace.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Removes those of a node that is gone. An error: something runs in them, so this machine is itself a node.
pub fn remove() -> Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        let removed = remove_once();
        if removed.is_ok() || Instant::now() > deadline {
            return removed;
        }
        // What was killed a moment ago leaves them when the kernel has ended it.
        thread::sleep(Duration::from_millis(20));
    }
}

fn remove_once() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).context("read /sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    // Version 2 has one, and version 1 one a controller.
    for hierarchy in [root.to_owned()].into_iter().chain(hierarchies) {
        for name in NAMES {
            let folder = hierarchy.join(name);
            if folder.is_dir() {
                remove_tree(&folder).with_context(|| {
                    format!("remove the cgroup {}: does another Kubernetes node run on this machine?", folder.display())
                })?;
            }
        }
    }
    Ok(())
}

/// The files in a cgroup go with it.
fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// What containerd and the kubelet call theirs.
const NAMES: [&str; 2] = ["k8s.io", "kubepods"];

const EMPTY_WITHIN: Duration = Duration::from_secs(10);
