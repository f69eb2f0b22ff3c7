//! Service chains: a client in one namespace reaches a server in another one through network functions, each hop a wire.
//!
//! The ends are interfaces of the kernel, and TCP is the kernel's. Between them one forwarder has all the wires, and each function is a
//! process `network-function` with a memif end on either side.
//!
//! In reading order: `secure_intranet` (what is done), `hops` (the daemons), `http` (a client), `report`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use tokio::runtime::Handle;

use self::report::ChainReport;
use super::{Progress, Stop, attend};
use crate::CliError;

mod hops;
mod http;
mod report;
mod secure_intranet;

/// Options of a demo of a service chain.
#[derive(Debug, Args)]
pub struct ChainDemoArgs {
    /// Print the result as JSON, and the progress on standard error
    #[arg(long)]
    json: bool,
    /// The forwarder to start; without it, the `dpdk-forwarder` beside this program
    #[arg(long, value_name = "PATH")]
    forwarder: Option<PathBuf>,
    /// The network function to start; without it, the `network-function` beside this program
    #[arg(long, value_name = "PATH")]
    function: Option<PathBuf>,
}

/// Which chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChainDemo {
    /// The client, a firewall, three passthroughs, the gateway.
    SecureIntranet,
}

/// Shows it, and fails unless every check passed.
pub(super) async fn run(args: ChainDemoArgs, demo: ChainDemo) -> Result<(), CliError> {
    let (json, progress) = (args.json, Progress::new(args.json));
    let work = move |handle: &Handle, stop: &Stop| {
        let mut report = ChainReport::default();
        let programs = hops::ChainPrograms { forwarder: args.forwarder, function: args.function };
        let result = hops::ChainBed::make(programs, handle, stop, progress).and_then(|bed| match demo {
            ChainDemo::SecureIntranet => secure_intranet::perform(&bed, &mut report),
        });
        report.end(result)
    };
    let report = attend(progress, work).await?;
    let text = if json { report.json() } else { report.text() };
    let written = std::io::stdout().write_all(text.as_bytes());
    // A reader that left does not make it a success.
    report.verdict()?;
    Ok(written?)
}
