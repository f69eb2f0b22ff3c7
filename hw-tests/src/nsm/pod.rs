//! A namespace with a client or an endpoint in it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::netns::TestNetNs;
use crate::process::Process;

/// A namespace that a process of the mesh runs in.
pub struct MeshPod(TestNetNs);

impl MeshPod {
    /// An empty one.
    pub fn new() -> Self {
        Self(TestNetNs::new())
    }

    /// The namespace.
    pub fn netns(&self) -> &TestNetNs {
        &self.0
    }

    /// A program inside.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.0.name()]).arg(program);
        command
    }

    /// The number of an interface: it is another one when it was made anew.
    pub fn index(&self, interface: &str) -> Result<u32> {
        let shown = self.0.ip(&format!("-o link show {interface}"));
        shown.split(':').next().and_then(|number| number.trim().parse().ok()).context("no number of the interface")
    }

    /// The addresses of an interface that are not of the link alone.
    pub fn addresses(&self, interface: &str) -> Vec<String> {
        let shown = self.0.ip(&format!("-o addr show dev {interface} scope global"));
        shown.lines().filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned)).collect()
    }

    /// Interfaces beside the loopback.
    pub fn interfaces(&self) -> Vec<String> {
        self.0.interfaces()
    }

    /// Waits until there are so many interfaces beside the loopback.
    pub fn wait_interfaces(&self, count: usize, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while self.interfaces().len() != count {
            ensure!(Instant::now() < end, "{} has {:?}, not {count}", self.0.name(), self.interfaces());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits until a ping is answered; how long that took.
    pub fn wait_ping(&self, to: &str, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let mut ping = self.0.ping(&format!("-c 1 -W 1 {to}"));
            if ping.output().context("run ping")?.status.success() {
                return Ok(began.elapsed());
            }
            if began.elapsed() > limit {
                bail!("{to} does not answer within {limit:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Pings all the time, ten times a second.
    pub fn start_pings(&self, to: &str) -> Pings {
        let process = Process::start(self.0.ping(&format!("-i 0.1 -W 1 {to}")).env("LC_ALL", "C"));
        process.wait_for("icmp_seq=1 ");
        Pings(process)
    }
}

impl Default for MeshPod {
    fn default() -> Self {
        Self::new()
    }
}

/// Pings that go on.
pub struct Pings(Process);

impl Pings {
    /// Ends them; how many were sent, and how many were answered.
    pub fn end(self) -> Result<(u64, u64)> {
        self.0.signal(nix::sys::signal::Signal::SIGINT);
        let (_, text) = self.0.wait();
        let line = text.lines().find(|line| line.contains("packets transmitted")).context("ping has no summary")?;
        let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [sent, received, ..] = numbers[..] else { bail!("ping says {line}") };
        Ok((sent, received))
    }
}

const POLL: Duration = Duration::from_millis(20);
