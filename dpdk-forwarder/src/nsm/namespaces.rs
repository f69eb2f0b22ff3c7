//! The network namespaces of this machine, as far as a process or a name keeps them.

use std::fs;
use std::path::{Path, PathBuf};

/// Files of namespaces: of every process, and those that have a name.
pub(super) fn namespaces() -> Vec<PathBuf> {
    let of_processes = entries(Path::new("/proc")).into_iter().filter(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    of_processes.map(|process| process.join("ns/net")).chain(entries(Path::new("/run/netns"))).collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(directory).into_iter().flatten();
    read.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}
