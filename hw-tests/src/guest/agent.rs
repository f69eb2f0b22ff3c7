//! Starts programs for the host, sends what they print, kills those that run longer than they may.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::vm::protocol::{End, FromGuest, PORT, ToGuest};

/// Serves the host until it goes.
pub fn serve() -> Result<()> {
    let port = port()?;
    let channel = File::options().read(true).write(true).open(&port);
    let channel = channel.with_context(|| format!("open {}", port.display()))?;
    let host = Host(Arc::new(Mutex::new(channel.try_clone().context("open the channel twice")?)));
    host.tell(&FromGuest::Ready)?;
    let mut kills: HashMap<u32, Sender<()>> = HashMap::new();
    for line in BufReader::new(channel).lines() {
        let line = line.context("read from the host")?;
        match serde_json::from_str(&line).with_context(|| format!("understand `{line}`"))? {
            ToGuest::Start { job, program, timeout } => {
                let (kill, killed) = mpsc::channel();
                kills.insert(job, kill);
                let host = host.clone();
                thread::spawn(move || run(&host, job, &program, timeout, &killed));
            }
            ToGuest::Kill { job } => {
                if let Some(kill) = kills.get(&job) {
                    // One that has ended does not listen.
                    let _ = kill.send(());
                }
            }
        }
    }
    Ok(())
}

/// The way to the host, whole lines at a time.
#[derive(Clone)]
struct Host(Arc<Mutex<File>>);

impl Host {
    fn tell(&self, message: &FromGuest) -> Result<()> {
        let line = serde_json::to_string(message).context("write a message")? + "\n";
        let mut channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        channel.write_all(line.as_bytes()).context("write to the host")
    }
}

fn run(host: &Host, job: u32, program: &[String], timeout: Duration, killed: &Receiver<()>) {
    let end = start(program).map(|child| watch(host, job, child, timeout, killed));
    let end = end.unwrap_or_else(|error| {
        print(host, job, &format!("{}: {error}", program.join(" ")));
        End::Exited(127)
    });
    // Without a host there is nobody to tell.
    let _ = host.tell(&FromGuest::Ended { job, end });
}

fn start(program: &[String]) -> std::io::Result<Child> {
    let (name, arguments) = program.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(name);
    command.args(arguments).process_group(0).env("PATH", "/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

fn watch(host: &Host, job: u32, mut child: Child, timeout: Duration, killed: &Receiver<()>) -> End {
    let group = Pid::from_raw(child.id().cast_signed());
    let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let pipes: Vec<_> = stdout.into_iter().chain(stderr).map(|pipe| forward(host, job, pipe)).collect();
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        let status = child.wait();
        // What it started and left behind may hold its pipes; the end of the job is the end of its group.
        let _ = killpg(group, Signal::SIGKILL);
        for pipe in pipes {
            // It panics only if the host is gone.
            let _ = pipe.join();
        }
        let _ = end.send(status);
    });
    let end = match wait(&ended, timeout, killed) {
        Outcome::Ended(end) => return end,
        Outcome::ToBeKilled(end) => end,
    };
    if end == End::TimedOut {
        // Where everybody waits is in the kernel's log then.
        let _ = fs::write("/proc/sysrq-trigger", "w");
    }
    let _ = killpg(group, Signal::SIGKILL);
    ended.recv_timeout(DEATH_MAX).map_or(End::Stuck, |_| end)
}

enum Outcome {
    Ended(End),
    ToBeKilled(End),
}

fn wait(ended: &Receiver<std::io::Result<ExitStatus>>, timeout: Duration, killed: &Receiver<()>) -> Outcome {
    let turns = timeout.as_millis().div_ceil(TURN.as_millis());
    for _ in 0..turns {
        match ended.recv_timeout(TURN) {
            Ok(Ok(status)) => return Outcome::Ended(how(status)),
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Outcome::Ended(End::Exited(127)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if killed.try_recv().is_ok() {
            return Outcome::ToBeKilled(End::Signalled(Signal::SIGKILL as i32));
        }
    }
    Outcome::ToBeKilled(End::TimedOut)
}

fn how(status: ExitStatus) -> End {
    status.code().map_or_else(|| End::Signalled(status.signal().unwrap_or(0)), End::Exited)
}

fn forward(host: &Host, job: u32, pipe: impl Read + Send + 'static) -> thread::JoinHandle<()> {
    let host = host.clone();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            print(&host, job, &String::from_utf8_lossy(&line));
        }
    })
}

fn print(host: &Host, job: u32, text: &str) {
    let _ = host.tell(&FromGuest::Line { job, text: text.to_owned() });
}

/// The port of our name: without udev nobody makes a link for it.
fn port() -> Result<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").context("look for virtio ports")?;
    for port in ports.flatten() {
        if fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
            return Ok(PathBuf::from("/dev").join(port.file_name()));
        }
    }
    anyhow::bail!("this machine has no virtio port {PORT}")
}

/// How often it is looked whether a program is to be killed.
const TURN: Duration = Duration::from_millis(20);

/// How long a killed program may take to go.
const DEATH_MAX: Duration = Duration::from_secs(5);
