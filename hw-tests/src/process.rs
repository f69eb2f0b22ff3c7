//! Programs that a test starts.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::TIMEOUT;

/// A running program in a process group of its own, which ends with this value, on a panic too; then what
/// it printed is shown.
///
/// Its standard input is a pipe that stays open. A program that ends at end of file, as testpmd does, so
/// also ends when the test itself is killed.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

impl Process {
    /// Starts a program.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let command = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        let output = Arc::new(Output::default());
        let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        for pipe in stdout.into_iter().chain(stderr) {
            let output = Arc::clone(&output);
            output.state().pipes += 1;
            thread::spawn(move || output.collect(pipe));
        }
        Self { name, child, output }
    }

    /// Waits until the program has printed `text`.
    ///
    /// # Panics
    /// It ends, or [`TIMEOUT`] does, before that.
    pub fn wait_for(&self, text: &str) {
        self.wait_for_times(text, 1);
    }

    /// Waits until the program has printed `text` so many times.
    ///
    /// # Panics
    /// It ends, or [`TIMEOUT`] does, before that.
    pub fn wait_for_times(&self, text: &str, times: usize) {
        let count = |state: &OutputState| state.text.matches(text).count();
        let seen = count(&self.output.wait(TIMEOUT, |state| count(state) >= times || state.pipes == 0));
        assert!(seen >= times, "{} printed `{text}` {seen} times, not {times}", self.name);
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal(&self, signal: Signal) {
        killpg(self.group(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Stops it where it is (SIGSTOP), and waits until it stands.
    ///
    /// # Panics
    /// It has ended.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        // An end is something else to wait for, and is left for others to find.
        let stopped = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.group()), stopped).unwrap_or_else(|error| panic!("stop {}: {error}", self.name));
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// It has ended.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until it has ended; returns its exit code (none: a signal ended it) and all that it printed.
    ///
    /// # Panics
    /// It does not end within [`TIMEOUT`].
    pub fn wait(mut self) -> (Option<i32>, String) {
        let state = self.output.wait(TIMEOUT, |state| state.pipes == 0);
        assert!(state.pipes == 0, "{} does not end; it printed:\n{}", self.name, state.text);
        let text = state.text.clone();
        drop(state);
        let status = self.child.wait().unwrap_or_else(|error| panic!("wait for {}: {error}", self.name));
        (status.code(), text)
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        self.output.state().text.clone()
    }

    /// Writes to its standard input.
    pub fn type_in(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is a pipe and is never taken");
        stdin.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("write to {}: {error}", self.name));
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Kills it with SIGKILL, so that it can clean nothing up, and waits until it is gone.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Asks it to end with SIGTERM and returns all that it printed.
    ///
    /// # Panics
    /// It does not end within [`TIMEOUT`].
    pub fn stop(self) -> String {
        let _ = killpg(self.group(), Signal::SIGTERM);
        self.wait().1
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A group whose leader was waited for may be somebody else's by now.
        let ended = self.ended();
        if ended.is_none() {
            self.kill();
        }
        if thread::panicking() {
            let end = ended.map_or("still ran".to_owned(), |status| format!("had ended ({status})"));
            eprintln!("--- {} {end} and had printed:\n{}\n---", self.name, self.output());
        }
    }
}

/// What a program printed, growing.
#[derive(Default)]
struct Output {
    state: Mutex<OutputState>,
    grown: Condvar,
}

#[derive(Default)]
struct OutputState {
    text: String,
    /// Those that may still bring something.
    pipes: usize,
}

impl Output {
    fn state(&self) -> MutexGuard<'_, OutputState> {
        // Text is whole after every step, also if a test panicked while it looked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, mut pipe: impl Read) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            self.state().text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            self.grown.notify_all();
        }
        self.state().pipes -= 1;
        self.grown.notify_all();
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&OutputState) -> bool) -> MutexGuard<'_, OutputState> {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if done(&state) || left.is_zero() {
                return state;
            }
            state = self
                .grown
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn what_a_program_prints_is_awaited_and_kept() {
        // `exec`: a shell blocks signals while it starts a program, which then misses one sent to the group.
        let mut process = shell("echo ready; read line; echo got $line >&2; exec sleep 1000");
        process.wait_for("ready");
        process.type_in("tea\n");
        process.wait_for("got tea");
        assert!(process.stop().contains("ready"));
    }

    #[test]
    fn a_program_that_ends_early_fails_the_wait_at_once() {
        let process = shell("echo sorry; exit 1");
        let began = Instant::now();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| process.wait_for("ready")));
        let text = *panic.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("printed `ready` 0 times") && began.elapsed() < TIMEOUT, "{text}");
    }

    #[test]
    fn a_paused_program_stands_still_until_it_goes_on() {
        // One process without children: a shell that is stopped while it starts one does not count as stopped.
        let process = shell("exec perl -e '$| = 1; for (;;) { print qq(tick\\n); select undef, undef, undef, 0.01 }'");
        let stands = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
            stat.contains("(perl) T ")
        };
        process.wait_for("tick");
        process.pause();
        assert!(stands());
        process.resume();
        assert!(!stands());
        let so_far = process.output().matches("tick").count();
        process.wait_for_times("tick", so_far + 2);
    }

    #[test]
    fn children_of_a_program_die_with_it() {
        let mut process = shell("sleep 1000 & echo child; wait");
        process.wait_for("child");
        process.kill();
        // Both pipes close only when nobody holds them any more.
        assert_eq!(process.output.wait(TIMEOUT, |state| state.pipes == 0).pipes, 0);
    }
}
