//! The forwarder under demonstration: the real program as a child process.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::testbed::Testbed;
use super::{DemoError, Stop, plan};

/// A forwarder that runs. Dropping it kills it.
pub(super) struct Forwarder {
    program: PathBuf,
    child: Child,
    lines: Receiver<String>,
    log: Vec<String>,
}

impl Forwarder {
    /// Starts `program`, or the one beside us, with the wires of the demo on a worker on `cpu`, and waits until it says
    /// that it is ready. Ended early, it has told its log in the error.
    pub(super) fn start(
        program: Option<PathBuf>,
        testbed: &Testbed,
        cpu: usize,
        stop: &Stop,
    ) -> Result<Self, DemoError> {
        let program = program.map_or_else(beside_us, Ok)?;
        let wires = testbed.directory().join("wires.yaml");
        fs::write(&wires, plan::wires_file(testbed, cpu))
            .map_err(|error| DemoError::testbed(format!("write {}", wires.display()), error))?;
        let mut child = command(&program, &wires).spawn().map_err(|error| DemoError::Forwarder {
            program: program.clone(),
            problem: format!("start it: {error}"),
        })?;
        let stderr = BufReader::new(child.stderr.take().expect("standard error was asked for"));
        let (sender, lines) = channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut forwarder = Self { program, child, lines, log: Vec::new() };
        testbed.note_forwarder(forwarder.pid())?;
        forwarder.until_ready(stop)?;
        Ok(forwarder)
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
        DemoError::Forwarder { program: self.program.clone(), problem }
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
                    let ready = line.contains(" ready: ");
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

impl Drop for Forwarder {
    fn drop(&mut self) {
        // Ended already, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(program: &Path, wires: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--config").arg(wires).args(["--drain-grace", "200ms"]);
    // Ctrl-C is for us: we stop it in our own time.
    command.process_group(0).env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn beside_us() -> Result<PathBuf, DemoError> {
    let ours = std::env::current_exe().map_err(|error| DemoError::testbed("find this program's directory", error))?;
    let program = ours.with_file_name(PROGRAM);
    if program.is_file() {
        return Ok(program);
    }
    let problem =
        "it is not beside this program; build it with `cargo build -p dpdk-forwarder`, or name one with --forwarder";
    Err(DemoError::Forwarder { program, problem: problem.to_owned() })
}

const PROGRAM: &str = "dpdk-forwarder";
/// How long it may take to start, or to end.
const TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(5);
/// Lines of its log that a person gets to see.
const LOG_LINES: usize = 40;
