//! Where the demo takes place: namespaces and a directory, named after this process and removed with it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ferrule_ffi::netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DemoError, Progress};

/// The testbed. Dropping it removes everything.
pub(super) struct Testbed {
    name: String,
    namespaces: Vec<NetNs>,
}

impl Testbed {
    /// Makes it with so many namespaces, after removing what demos left that were killed.
    pub(super) fn make(sides: usize, progress: Progress) -> Result<Self, DemoError> {
        for name in leftovers() {
            progress.say(format_args!("removing {name}, left by a demo that was killed"));
            remove(&name);
        }
        let name = format!("{PREFIX}{}", std::process::id());
        let mut testbed = Self { name, namespaces: Vec::new() };
        let directory = testbed.directory();
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| DemoError::testbed(format!("make directory {}", directory.display()), error))?;
        for side in &SIDES[..sides] {
            let name = testbed.namespace_name(side);
            ip_netns("add", &name)?;
            let path = Path::new(NETNS).join(&name);
            let opened = NetNs::open(&path);
            testbed
                .namespaces
                .push(opened.map_err(|error| DemoError::testbed(format!("open namespace {}", path.display()), error))?);
        }
        Ok(testbed)
    }

    /// Where sockets and the wires file are.
    pub(super) fn directory(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// What all names of the testbed begin with.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The names of its namespaces.
    pub(super) fn namespace_names(&self) -> Vec<String> {
        SIDES[..self.namespaces.len()].iter().map(|side| self.namespace_name(side)).collect()
    }

    /// The namespace of this side, counted from 0.
    pub(super) fn namespace(&self, side: usize) -> &NetNs {
        &self.namespaces[side]
    }

    /// The file of that namespace.
    pub(super) fn namespace_path(&self, side: usize) -> PathBuf {
        Path::new(NETNS).join(self.namespace_name(SIDES[side]))
    }

    /// Lets a later demo find a daemon should this one be killed.
    pub(super) fn note_daemon(&self, name: &str, pid: u32) -> Result<(), DemoError> {
        let path = self.directory().join(format!("{name}{PID_FILE}"));
        fs::write(&path, pid.to_string())
            .map_err(|error| DemoError::testbed(format!("write {}", path.display()), error))
    }

    fn namespace_name(&self, side: &str) -> String {
        format!("{}-{side}", self.name)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.namespaces.clear();
        remove(&self.name);
    }
}

/// Removes what there is of a testbed.
fn remove(name: &str) {
    let directory = Path::new(RUN).join(name);
    for daemon in daemons(&directory).filter(|daemon| is_run_with(*daemon, &directory)) {
        let _ = kill(Pid::from_raw(daemon), Signal::SIGKILL);
    }
    for side in SIDES {
        let namespace = format!("{name}-{side}");
        if Path::new(NETNS).join(&namespace).exists()
            && let Err(error) = ip_netns("delete", &namespace)
        {
            eprintln!("{error}");
        }
    }
    if directory.exists()
        && let Err(error) = fs::remove_dir_all(&directory)
    {
        eprintln!("remove {}: {error}", directory.display());
    }
}

/// Processes that were noted, and programs of ours: one that was killed may not have come to noting what it had just started.
fn daemons(directory: &Path) -> impl Iterator<Item = i32> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let notes = files.filter(|file| file.file_name().to_string_lossy().ends_with(PID_FILE));
    let noted = notes.filter_map(|note| fs::read_to_string(note.path()).ok()?.parse().ok());
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    noted.chain(all.filter(|pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // The kernel keeps so much of a name.
        DAEMONS.iter().any(|daemon| daemon[..daemon.len().min(COMM_MAX)] == *name.trim_end())
    }))
}

/// Whether the command line of process `pid` names something in `directory`: the number may be another's by now.
fn is_run_with(pid: i32, directory: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(&format!("{}/", directory.display()))
}

/// The names of sites whose process is gone.
fn leftovers() -> Vec<String> {
    let entries = [RUN, NETNS].into_iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| testbed_of(&entry.file_name())).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|(_, pid)| !is_demo(*pid));
    names.into_iter().map(|(name, _)| name).collect()
}

/// The testbed and the process that a directory or a namespace was named after.
fn testbed_of(file: &OsStr) -> Option<(String, u32)> {
    let rest = file.to_str()?.strip_prefix(PREFIX)?;
    let pid = rest.split_once('-').map_or(rest, |(pid, _)| pid).parse().ok()?;
    Some((format!("{PREFIX}{pid}"), pid))
}

/// Whether this process is a program like ours, and not merely one that got its number.
fn is_demo(pid: u32) -> bool {
    let name = |process: &str| fs::read_to_string(format!("/proc/{process}/comm")).ok();
    let theirs = if pid == std::process::id() { None } else { name(&pid.to_string()) };
    theirs.is_some() && theirs == name("self")
}

fn ip_netns(what: &str, name: &str) -> Result<(), DemoError> {
    let failed = |problem: String| DemoError::testbed(format!("ip netns {what} {name}"), problem);
    let output = Command::new("ip").args(["netns", what, name]).output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() }))
}

const PREFIX: &str = "ferrule-demo-";
/// As many as a demo has at most.
const SIDES: [&str; 3] = ["a", "b", "c"];
/// Belongs to root, so that nobody can put something there before us.
const RUN: &str = "/run";
/// Where `ip netns` keeps its names.
const NETNS: &str = "/run/netns";
const PID_FILE: &str = ".pid";
/// What a demo starts, unless it is told to start something else.
const DAEMONS: [&str; 3] = ["dpdk-forwarder", "device-plugin", "network-function"];
/// `TASK_COMM_LEN` less the closing NUL.
const COMM_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_known_by_its_directory_and_its_namespaces() {
        let testbed = |name: &str| testbed_of(OsStr::new(name));
        assert_eq!(testbed("ferrule-demo-42"), Some(("ferrule-demo-42".to_owned(), 42)));
        assert_eq!(testbed("ferrule-demo-42-b"), testbed("ferrule-demo-42"));
        for foreign in ["ferrule", "ferrule-demo-", "ferrule-demo-x-a", "my-ferrule-demo-42"] {
            assert_eq!(testbed(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_process_of_another_name_is_no_demo() {
        assert!(!is_demo(1));
        assert!(!is_demo(u32::MAX));
        assert!(!is_run_with(1, Path::new("/run/ferrule-demo-1")));
    }
}
