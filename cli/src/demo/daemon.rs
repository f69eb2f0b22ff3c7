//! A daemon under demonstration: the real program as a child process.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::testbed::Testbed;
use super::{DemoError, Stop};

/// Which daemon, and how it is started.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    /// What it is to the reader of an error, and its name in the testbed: each runs once.
    pub(super) name: &'static str,
    /// Its program.
    pub(super) program: PathBuf,
    /// Its command line, which names something in the testbed's directory: by that a later demo knows it.
    pub(super) arguments: Vec<OsString>,
}

/// A daemon that runs. Dropping it kills it.
pub(super) struct Daemon {
    name: &'static str,
    program: PathBuf,
    child: Child,
    lines: Receiver<String>,
    log: Vec<String>,
}

impl Daemon {
    /// Starts it, with `spawn` where it is to run, and waits until it says that it is ready. Ended early, it has told its log in the
    /// error.
    pub(super) fn start(
        launch: Launch,
        testbed: &Testbed,
        stop: &Stop,
        spawn: impl FnOnce(Command) -> io::Result<Child>,
    ) -> Result<Self, DemoError> {
        let command = command(&launch);
        let Launch { name, program, .. } = launch;
        let mut child = spawn(command).map_err(|error| DemoError::Daemon {
            name,
            program: program.clone(),
            problem: format!("start it: {error}"),
        })?;
        let stderr = BufReader::new(child.stderr.take().expect("standard error was asked for"));
        let (sender, lines) = channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut daemon = Self { name, program, child, lines, log: Vec::new() };
        testbed.note_daemon(name, daemon.pid())?;
        daemon.until_ready(stop)?;
        Ok(daemon)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged, the last lines of it.
    pub(super) fn log(&mut self) -> &[String] {
        self.log.extend(self.lines.try_iter());
        let surplus = self.log.len().saturating_sub(LOG_LINES);
        &self.log[surplus..]
    }

    /// An error that says what it did wrong, and what it logged.
    pub(super) fn error(&mut self, problem: &str) -> DemoError {
        let log = self.log();
        let problem = if log.is_empty() {
            format!("{problem}; it logged nothing")
        } else {
            format!("{problem}; its log:\n  {}", log.join("\n  "))
        };
        DemoError::Daemon { name: self.name, program: self.program.clone(), problem }
    }

    /// Ends it as an administrator would, and wants it to end well.
    pub(super) fn stop(mut self) -> Result<(), DemoError> {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        match self.wait(TIMEOUT) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.error(&format!("ended badly at SIGTERM ({status})"))),
            None => Err(self.error(&format!("did not end within {TIMEOUT:?} of SIGTERM"))),
        }
    }

    fn until_ready(&mut self, stop: &Stop) -> Result<(), DemoError> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            stop.check()?;
            match self.lines.recv_timeout(POLL) {
                Ok(line) => {
                    let ready = [" ready: ", " started: "].iter().any(|word| line.contains(word));
                    self.log.push(line);
                    if ready {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // It closed its log: it has ended, or will at once.
                Err(RecvTimeoutError::Disconnected) => {
                    let how = self.wait(POLL).map_or_else(|| "closed its log".to_owned(), |status| status.to_string());
                    return Err(self.error(&format!("ended before it was ready ({how})")));
                }
            }
        }
        Err(self.error(&format!("was not ready within {TIMEOUT:?}")))
    }

    fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(TICK),
                outcome => return outcome.ok().flatten(),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(launch: &Launch) -> Command {
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments);
    // Ctrl-C is for us: we stop it in our own time.
    command.process_group(0).env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The program of this name that was built with us; `option` names another one.
pub(super) fn beside_us(name: &'static str, crate_name: &str, option: &str) -> Result<PathBuf, DemoError> {
    let ours = std::env::current_exe().map_err(|error| DemoError::testbed("find this program's directory", error))?;
    let program = ours.with_file_name(crate_name);
    if program.is_file() {
        return Ok(program);
    }
    // Where this one was built, so that it will be beside it.
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    let problem = format!(
        "it is not beside this program; build it with `cargo build{profile} --bin {crate_name}`, or name one with {option}"
    );
    Err(DemoError::Daemon { name, program, problem })
}

/// How long it may take to start, or to end.
const TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(5);
/// Lines of its log that a person gets to see.
const LOG_LINES: usize = 40;
