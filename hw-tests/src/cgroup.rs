//! A memory cgroup for a program that a test starts.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::need::skip;
use crate::{eventually, unique};

/// A memory cgroup, of version 1 or 2, removed with this value. Whatever runs in it must have ended by then.
pub struct MemoryCgroup {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl MemoryCgroup {
    /// A new one that may use `limit` bytes. None: it was said that `test` lacks it.
    pub fn new(test: &str, limit: u64) -> Option<Self> {
        let first = Self::under(Version::One, Path::new("/sys/fs/cgroup/memory"), limit);
        match first.or_else(|_| Self::under(Version::Two, Path::new("/sys/fs/cgroup"), limit)) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                skip(test, &format!("a memory cgroup that can be written (/sys/fs/cgroup: {error})"));
                None
            }
        }
    }

    fn under(version: Version, root: &Path, limit: u64) -> io::Result<Self> {
        if version == Version::Two {
            // On for the children already, or is now.
            write(&root.join("cgroup.subtree_control"), "+memory")?;
        }
        let folder = root.join(unique("memory"));
        fs::create_dir(&folder)?;
        let cgroup = Self { folder, version };
        let name = if version == Version::One { "memory.limit_in_bytes" } else { "memory.max" };
        write(&cgroup.folder.join(name), &limit.to_string())?;
        Ok(cgroup)
    }

    /// A command that runs `program` inside; its arguments follow.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        let script = "echo $$ > \"$1\" && shift && exec \"$@\"";
        command.args(["-c", script, "sh"]).arg(self.folder.join("cgroup.procs")).arg(program);
        command
    }

    /// How many processes in it the kernel has killed for want of memory.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn oom_kills(&self) -> u64 {
        let name = if self.version == Version::One { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.folder.join(name)).expect("the cgroup is there");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.parse().ok()).expect("the kernel counts its kills (Linux 4.13)")
    }

    /// Bytes that are charged to it.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn used(&self) -> u64 {
        let name = if self.version == Version::One { "memory.usage_in_bytes" } else { "memory.current" };
        let text = fs::read_to_string(self.folder.join(name)).expect("the cgroup is there");
        text.trim().parse().expect("the kernel writes a number")
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A process may still be there: best effort.
            let _ = fs::remove_dir(&self.folder);
            return;
        }
        // A process that was waited for leaves a moment later.
        eventually("the cgroup is empty", || fs::remove_dir(&self.folder).is_ok());
    }
}

/// Writes to a file that is there: elsewhere than in a cgroup file system none is made.
fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}
