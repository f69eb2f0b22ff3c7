//! A running `dpdk-forwarder` that borrows VFs, for scenarios.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dpdk_forwarder_client::v1::{ListWiresRequest, Wire};
use dpdk_forwarder_client::{AdminClient, connect};
use tokio::runtime::{self, Runtime};

use super::manager::ManagerOptions;
use super::scenario::Lab;
use crate::process::Process;

/// The daemon as a process, killed with this value, and a connection to it.
pub struct Forwarder {
    process: Process,
    runtime: Runtime,
    client: AdminClient,
    file: PathBuf,
    manager: PathBuf,
}

impl Forwarder {
    /// Starts one with these wires: entries of a wires file.
    pub fn start(lab: &Lab, wires: &[String]) -> Result<Self> {
        Self::start_by(Command::new("dpdk-forwarder"), lab, wires)
    }

    /// The same, by a command that ends with its program and takes its arguments.
    pub fn start_by(mut command: Command, lab: &Lab, wires: &[String]) -> Result<Self> {
        let (file, admin) = (lab.state().join("wires.yaml"), lab.state().join("admin.sock"));
        let manager = ManagerOptions::default().socket(lab);
        fs::write(&file, text(&manager, wires)).context("write the wires file")?;
        command.arg("--config").arg(&file).arg("--socket").arg(&admin);
        let mut process = Process::start(&mut command);
        wait_until("the forwarder serves", || process.output().contains("admin API on ") || process.ended().is_some())?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
        let client = runtime.block_on(connect(&admin))?;
        Ok(Self { process, runtime, client, file, manager })
    }

    /// Has it follow a file with other wires.
    pub fn change(&self, wires: &[String]) -> Result<()> {
        fs::write(&self.file, text(&self.manager, wires)).context("write the wires file")
    }

    /// A wire as it stands.
    pub fn wire(&self, name: &str) -> Result<Wire> {
        let mut client = self.client.clone();
        let list = self.runtime.block_on(client.list_wires(ListWiresRequest::default()))?.into_inner();
        list.wires.into_iter().find(|wire| wire.name == name).with_context(|| format!("no wire {name}"))
    }

    /// How many frames crossed a wire, both ways.
    pub fn frames(&self, name: &str) -> Result<u64> {
        Ok(self.wire(name)?.directions.iter().map(|traffic| traffic.frames).sum())
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until frames can cross a wire; returns how long that took.
    pub fn until_up(&self, name: &str) -> Result<Duration> {
        let began = Instant::now();
        let is_up = || self.wire(name).is_ok_and(|wire| wire.queues > 0);
        let up = wait_until("frames can cross", is_up);
        up.with_context(|| format!("{name}: {:?}", self.wire(name).map(|wire| wire.ends)))?;
        Ok(began.elapsed())
    }

    /// Waits until an end of a wire is in this state; returns how long that took.
    pub fn until_end(&self, name: &str, end: usize, state: &str) -> Result<Duration> {
        let began = Instant::now();
        wait_until(&format!("end {end} of {name} is {state}"), || {
            self.wire(name).is_ok_and(|wire| wire.ends[end].state == state)
        })?;
        Ok(began.elapsed())
    }

    /// Kills it without a chance to tidy up.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

/// Waits for what an emulated machine takes long for when its host is busy: pages told to an IOMMU, DPDK's start.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    while !condition() {
        ensure!(Instant::now() < deadline, "not after {WAIT_MAX:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

const WAIT_MAX: Duration = Duration::from_mins(2);

fn text(manager: &Path, wires: &[String]) -> String {
    // Emulated, each page of memory that the IOMMU is told of takes milliseconds: of large pages there are few.
    let dpdk = "dpdk: { memory: 128MiB, hugepages: true }\n";
    let wires: Vec<_> = wires.iter().map(|wire| format!("  - {wire}\n")).collect();
    format!("workers: [0]\n{dpdk}sriov_manager: {}\nwires:\n{}", manager.display(), wires.concat())
}
