//! The program as a person meets it: exit codes, and what it prints. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_bad_file_is_refused_with_every_error_and_exit_code_64() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wires.yaml");
    fs::write(&path, "idle: lazy\nwires:\n  - name: a\n    ends: [{ memif: { socket: x } }]\n").unwrap();
    for check in [&["--check"][..], &[]] {
        let Output { status, stderr, stdout } = forwarder(&path).args(check).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(64), "{stderr}");
        assert_eq!((stderr.lines().count(), stdout.len()), (4, 0), "{stderr}");
        assert!(stderr.lines().all(|line| line.contains("wires.yaml:")), "{stderr}");
    }
    assert_eq!(forwarder(Path::new("/nowhere/wires.yaml")).output().unwrap().status.code(), Some(64));
}

#[test]
fn a_good_file_passes_the_check_with_exit_code_0() {
    let sample = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wires.yaml"));
    let wires = fs::read_to_string(sample).unwrap().matches("\n  - name: ").count();
    let Output { status, stdout, .. } = forwarder(sample).arg("--check").output().unwrap();
    assert_eq!(status.code(), Some(0));
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(stdout.ends_with(&format!("wires.yaml: {wires} wires, nothing wrong\n")), "{stdout}");
}

#[test]
fn what_is_no_error_and_not_meant_is_a_warning_of_the_check() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wires.yaml");
    for (text, warning) in [
        ("workers: [0, 1023]\n", "workers: this machine has no CPU 1023 that this process may use"),
        ("# nothing yet\n", "the file is empty"),
    ] {
        fs::write(&path, text).unwrap();
        let Output { status, stdout, .. } = forwarder(&path).arg("--check").output().unwrap();
        let stdout = String::from_utf8(stdout).unwrap();
        let warned = stdout.starts_with(&format!("warning: {}: {warning}", path.display()));
        assert!(status.success() && warned && !stdout.contains("nothing wrong"), "{stdout}");
    }
}

#[test]
fn a_wire_that_cannot_be_made_is_counted_and_a_flag_may_come_twice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wires.yaml");
    let end = |name: &str| format!("{{ kernel: {{ netns: /nowhere/here, name: {name} }} }}");
    fs::write(&path, format!("wires: [{{ name: a, ends: [{}, {}] }}]\n", end("a"), end("b"))).unwrap();
    let mut running = forwarder(&path);
    running.arg("--socket").arg(directory.path().join("first.sock"));
    running.arg("--socket").arg(directory.path().join("admin.sock"));
    let mut running = Running::new(running.stderr(Stdio::piped()).spawn().unwrap());
    running.until(&format!("ready: 1 wire, 1 of them failed, admin {}", directory.path().join("admin.sock").display()));
    running.signal(Signal::SIGTERM);
    running.until("stopped");
}

#[test]
fn an_address_that_is_none_is_refused_with_one_that_is() {
    let Output { status, stderr, .. } =
        forwarder(Path::new("wires.yaml")).args(["--metrics", "9090"]).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("an address and a port are wanted, as in `127.0.0.1:9090`"), "{stderr}");
}

#[test]
fn it_announces_itself_refuses_a_bad_reload_and_drains_at_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wires.yaml");
    let admin = directory.path().join("admin.sock");
    let good = format!("admin: {}\n", admin.display());
    fs::write(&path, &good).unwrap();
    let notify = UnixDatagram::bind(directory.path().join("notify.sock")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();

    let mut running = forwarder(&path);
    running.env("NOTIFY_SOCKET", directory.path().join("notify.sock")).stderr(Stdio::piped());
    let mut running = Running::new(running.spawn().unwrap());
    running.until(&format!("ready: 0 wires, admin {}, no metrics", admin.display()));
    let mut message = [0; 64];
    let length = notify.recv(&mut message).unwrap();
    assert_eq!(message[..length].trim_ascii_end(), b"READY=1");

    fs::write(&path, format!("{good}idle: [\n")).unwrap();
    running.until("wires.yaml:");
    running.until("wires file refused; the wires stay as they are");
    fs::write(&path, format!("{good}idle: poll\n")).unwrap();
    running.until("idle: adaptive is in use, poll in the file; a restart changes it");
    running.until("wires file applied");
    running.signal(Signal::SIGHUP);
    running.until("wires file applied");

    running.signal(Signal::SIGTERM);
    running.until("draining");
    running.until("stopped");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert!(!admin.exists());
}

fn forwarder(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpdk-forwarder"));
    command.arg("--config").arg(config).env_remove("NOTIFY_SOCKET");
    command
}

/// A forwarder whose log is read. It is killed when the test ends before it.
struct Running {
    child: Child,
    log: Receiver<String>,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        Self { child, log }
    }

    /// Reads the log up to a line that contains `text`.
    fn until(&mut self, text: &str) {
        let mut seen = Vec::new();
        while let Ok(line) = self.log.recv_timeout(Duration::from_secs(20)) {
            if line.contains(text) {
                return;
            }
            seen.push(line);
        }
        panic!("no `{text}` in the log:\n{}", seen.join("\n"));
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, in a test that passed.
        let _ = self.child.kill();
    }
}
