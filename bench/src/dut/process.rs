//! A child process that can be stopped and continued, and does not outlive the bench.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferrule_ffi::child::spawn_bound;
use nix::errno::Errno;
use nix::libc::pid_t;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::error::StartError;

/// A running program. It ends with this value, or with the thread that started it.
pub struct Process {
    /// How it was started.
    pub command: String,
    child: Child,
}

impl Process {
    /// Starts it; what it prints goes to the end of a file. Its standard input is a pipe that stays open.
    pub fn start(command: &mut Command, log: &Path, package: &'static str) -> Result<Self, StartError> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let text = line(command);
        match spawn_bound(command) {
            Ok(child) => Ok(Self { command: text, child }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let program = command.get_program().to_string_lossy().into_owned();
                Err(StartError::Missing { program, package })
            }
            Err(error) => Err(StartError::Command { command: text, problem: error.to_string() }),
        }
    }

    /// Lets it run.
    pub fn resume(&self) -> Result<(), Errno> {
        kill(self.pid(), Signal::SIGCONT)
    }

    /// Stops it where it is, and waits until it stands.
    pub fn pause(&self) -> Result<(), Errno> {
        kill(self.pid(), Signal::SIGSTOP)?;
        // An end is something else to wait for, and is left for others to find.
        let stopped = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.pid()), stopped).map(|_| ())
    }

    /// Whether it has ended. It can still be waited for.
    pub fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(self.pid()), flags), Ok(WaitStatus::StillAlive))
    }

    /// CPU time of all its threads, as the scheduler knows it.
    pub fn cpu_time(&self) -> Option<Duration> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        let time = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
        };
        Some(tasks.flatten().filter_map(time).sum())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killed, since it may be stopped; its sockets go with its folder.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The threads of a process that may run on this CPU only.
pub fn threads_pinned_to(pid: pid_t, cpu: usize) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let name = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        (field("Cpus_allowed_list:")? == cpu.to_string()).then_some(field("Name:")?.to_owned())
    };
    tasks.filter_map(name).collect()
}

/// Runs a command to its end.
pub fn run(command: &mut Command, package: &'static str) -> Result<(), StartError> {
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let program = command.get_program().to_string_lossy().into_owned();
            return Err(StartError::Missing { program, package });
        }
        other => other?,
    };
    if output.status.success() {
        return Ok(());
    }
    let problem = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Err(StartError::Command { command: line(command), problem })
}

/// A command as one would type it.
fn line(command: &Command) -> String {
    let word = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=@+%".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{word}'") }
    };
    std::iter::once(command.get_program()).chain(command.get_args()).map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::*;

    #[test]
    fn a_process_is_stopped_continued_and_gone_with_its_value() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let process = Process::start(Command::new("sleep").arg("600"), &log, "coreutils").unwrap();
        assert_eq!(process.command, "sleep 600");
        process.pause().unwrap();
        process.resume().unwrap();
        assert!(!process.has_ended() && process.cpu_time().is_some());
        let pid = process.pid();
        drop(process);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }

    #[test]
    fn a_thread_that_may_run_on_one_cpu_only_is_found_there() {
        let usable = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpu = (0..CpuSet::count()).find(|&cpu| usable.is_set(cpu).unwrap()).unwrap();
        let (end, ended) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let pinned = thread::Builder::new().name("pinned".to_owned()).spawn(move || {
            let mut only = CpuSet::new();
            only.set(cpu).unwrap();
            sched_setaffinity(Pid::from_raw(0), &only).unwrap();
            ready.send(()).unwrap();
            let _ = ended.recv();
        });
        is_ready.recv().unwrap();
        let here = Pid::this().as_raw();
        assert!(threads_pinned_to(here, cpu).contains(&"pinned".to_owned()));
        assert!(!threads_pinned_to(here, cpu + 1).contains(&"pinned".to_owned()));
        drop(end);
        pinned.unwrap().join().unwrap();
    }

    #[test]
    fn a_program_that_is_missing_is_named_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let error = Process::start(&mut Command::new("no-such-program"), &folder.path().join("log"), "nothing");
        let text = error.err().unwrap().to_string();
        assert!(text.contains("no-such-program is not installed") && text.contains("package nothing"), "{text}");
        let error = run(Command::new("sh").args(["-c", "echo no >&2; exit 3"]), "dash").unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no") && error.contains("sh -c 'echo no >&2; exit 3'"), "{error}");
    }
}
