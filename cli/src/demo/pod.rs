//! `ferrule demo pod`: two pods get ports as a kubelet gives them, and ping each other.
//!
//! The real device plugin registers with a stand-in for the kubelet and has the real forwarder join what pods get. A pod is what it is for
//! the kernel: a network namespace, and a file system with what was mounted. In it runs our forwarder once more, as the sidecar that makes an
//! interface of the pod's memif socket. Two more pods get vhost-user sockets, as where virtual machines run.
//!
//! In reading order: `steps` (what is done), `node` (the daemons of a node), `container` (a process where a pod would be), `guests` (NICs
//! of virtual machines), `report`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use tokio::runtime::Handle;

use super::{Progress, Stop, attend};
use crate::CliError;

mod container;
mod guests;
mod node;
mod report;
mod steps;

/// Options of `ferrule demo pod`.
#[derive(Debug, Args)]
pub struct PodDemoArgs {
    /// Print the result as JSON, and the progress on standard error
    #[arg(long)]
    json: bool,
    /// The forwarder to start; without it, the `dpdk-forwarder` beside this program
    #[arg(long, value_name = "PATH")]
    forwarder: Option<PathBuf>,
    /// The device plugin to start; without it, the `device-plugin` beside this program
    #[arg(long, value_name = "PATH")]
    device_plugin: Option<PathBuf>,
}

/// Shows it, and fails unless every step was good.
pub(super) async fn run(args: PodDemoArgs) -> Result<(), CliError> {
    let (json, progress) = (args.json, Progress::new(args.json));
    let programs = steps::Programs { forwarder: args.forwarder, device_plugin: args.device_plugin };
    let report = attend(progress, move |handle: &Handle, stop: &Stop| steps::run(programs, handle, stop, progress));
    let report = report.await?;
    let text = if json { report.json() } else { report.text() };
    let written = std::io::stdout().write_all(text.as_bytes());
    // A reader that left does not make it a success.
    report.verdict()?;
    Ok(written?)
}
