//! Network namespaces other than ours, and a file by which each of them can be opened.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::ProcError;
use procfs::process::Process;

use crate::holders::unless_gone;

/// A network namespace.
pub(super) struct Namespace {
    pub file: PathBuf,
    /// A process that has it; none: only a file has.
    pub pid: Option<u32>,
}

/// Finds each namespace once. What cannot be looked at may have what is looked for: that is an error.
pub(super) struct Namespaces {
    seen: BTreeSet<(u64, u64)>,
    found: Vec<Namespace>,
}

impl Namespaces {
    /// Every one but ours.
    pub fn of_others() -> io::Result<Self> {
        let own = fs::metadata("/proc/self/ns/net")?;
        Ok(Self { seen: BTreeSet::from([(own.dev(), own.ino())]), found: Vec::new() })
    }

    /// Those of processes, then those that have a name somewhere, as `ip netns` and container engines give them.
    pub fn of_processes_and_names(&mut self) -> io::Result<Vec<Namespace>> {
        for (pid, folder) in processes()? {
            self.add(folder.join("ns/net"), Some(pid))?;
        }
        let mounts = Process::myself().and_then(|process| process.mountinfo()).map_err(other)?;
        for mount in mounts.0.into_iter().filter(|mount| mount.fs_type == "nsfs" && mount.root.starts_with(PREFIX)) {
            self.add(mount.mount_point, None)?;
        }
        Ok(std::mem::take(&mut self.found))
    }

    /// Those that only threads are in, or that have no name any more and are kept by an open file. That is a look at every file
    /// of every process.
    pub fn of_threads_and_files(&mut self) -> io::Result<Vec<Namespace>> {
        for (pid, folder) in processes()? {
            for thread in entries(&folder.join("task"))? {
                self.add(thread.join("ns/net"), Some(pid))?;
            }
            for file in entries(&folder.join("fd"))? {
                let target = unless_gone(fs::read_link(&file))?;
                if target.is_some_and(|target| target.to_string_lossy().starts_with(PREFIX)) {
                    self.add(file, Some(pid))?;
                }
            }
        }
        Ok(std::mem::take(&mut self.found))
    }

    fn add(&mut self, file: PathBuf, pid: Option<u32>) -> io::Result<()> {
        // One that just went away has nothing.
        if let Some(metadata) = unless_gone(fs::metadata(&file))?
            && self.seen.insert((metadata.dev(), metadata.ino()))
        {
            self.found.push(Namespace { file, pid });
        }
        Ok(())
    }
}

fn processes() -> io::Result<Vec<(u32, PathBuf)>> {
    let pid = |folder: PathBuf| Some((folder.file_name()?.to_str()?.parse().ok()?, folder));
    Ok(entries(Path::new("/proc"))?.into_iter().filter_map(pid).collect())
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = unless_gone(fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let path = |entry: io::Result<fs::DirEntry>| unless_gone(entry.map(|entry| entry.path())).transpose();
    entries.filter_map(path).collect()
}

fn other(error: ProcError) -> io::Error {
    io::Error::other(error)
}

/// What links to network namespaces and mounts of them are called: `net:[4026531840]`.
const PREFIX: &str = "net:[";
