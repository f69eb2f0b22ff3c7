//! A folder for sockets and files of a program, which goes when the bench does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// A folder that is removed with all that is in it.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one below `parent`. Socket paths must be short, so its name is.
    pub fn new(parent: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = parent.join(format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed)));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A place in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the folders of benches that were killed (SIGKILL leaves no time to).
pub fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split_once('-'));
        let Some(pid) = owner.and_then(|(pid, _)| pid.parse::<i32>().ok()) else { continue };
        if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

const PREFIX: &str = "ferrule-bench-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_owner_and_what_the_dead_left_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::new(parent.path()).unwrap();
        fs::write(folder.join("file"), "x").unwrap();
        // Numbers of processes end before this one.
        let dead = parent.path().join(format!("{PREFIX}2147483647-0"));
        let strange = parent.path().join("ferrule-bench-mine");
        fs::create_dir(&dead).unwrap();
        fs::create_dir(&strange).unwrap();
        sweep(parent.path());
        assert!(folder.path().exists() && !dead.exists() && strange.exists());
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }
}
