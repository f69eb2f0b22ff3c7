//! Asking for what may go away at any moment: processes, their files, and what links lead to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

/// Where a link leads; none: it is gone, or what it leads to has a longer name than any that is looked for. Anybody can have a file
/// open whose name is too long to be read.
pub(crate) fn link_target(link: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_link(link) {
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(None),
        target => unless_gone(target),
    }
}

/// What is in a folder; nothing: it is gone.
pub(crate) fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = unless_gone(fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let path = |entry: io::Result<fs::DirEntry>| unless_gone(entry.map(|entry| entry.path())).transpose();
    entries.filter_map(path).collect()
}

/// The open files of a process, by its folder below `/proc`. Of one whose first thread has ended the others show them.
pub(crate) fn open_files(process: &Path) -> io::Result<Vec<PathBuf>> {
    let files = entries(&process.join("fd"))?;
    if !files.is_empty() {
        return Ok(files);
    }
    for thread in entries(&process.join("task"))? {
        let files = entries(&thread.join("fd"))?;
        if !files.is_empty() {
            return Ok(files);
        }
    }
    Ok(Vec::new())
}

/// What is not there is gone; a file of sysfs whose device went says ENODEV. What cannot be asked, for want of descriptors say, is not.
pub(crate) fn unless_gone<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    match asked {
        Ok(answer) => Ok(Some(answer)),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR | libc::ENODEV)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What a `/proc/PID/stat` says of a process or a thread.
pub(crate) struct ProcessStat {
    /// It has ended, and its parent has not asked about it yet.
    pub is_zombie: bool,
    /// When it was started, in the kernel's ticks since the boot.
    pub started: u64,
}

impl ProcessStat {
    /// Reads the line.
    pub fn parse(stat: &str) -> Option<Self> {
        // The name of the program is in parentheses and may have spaces and parentheses in it (proc_pid_stat(5)).
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let is_zombie = matches!(fields.next()?, "Z" | "X");
        Some(Self { is_zombie, started: fields.nth(STAT_START_TIME)?.parse().ok()? })
    }
}

/// Field 22 of `/proc/PID/stat`, counted from the one behind the state (proc_pid_stat(5)).
const STAT_START_TIME: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_process_whose_first_thread_has_ended_the_others_show_the_files() {
        let process = tempfile::tempdir().unwrap();
        for folder in ["fd", "task/1/fd", "task/2/fd"] {
            fs::create_dir_all(process.path().join(folder)).unwrap();
        }
        assert!(open_files(process.path()).unwrap().is_empty());
        let file = process.path().join("task/2/fd/3");
        fs::write(&file, "").unwrap();
        assert_eq!(open_files(process.path()).unwrap(), [file]);
        let of_first = process.path().join("fd/7");
        fs::write(&of_first, "").unwrap();
        assert_eq!(open_files(process.path()).unwrap(), [of_first]);
    }
}
