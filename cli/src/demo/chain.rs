//! Service chains: a client in one namespace reaches a server in another one through network functions, each hop a wire.
//!
//! The ends are interfaces of the kernel, and TCP is the kernel's. Between them one forwarder has all the wires, and each function is a
//! process `network-function` with a memif end on either side.
//!
//! In reading order: `secure_intranet` and `nat` (what is done), `checks` (what both look at), `hops` (the daemons), `http` (a client),
//! `report`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use tokio::runtime::Handle;

use self::hops::{ChainBed, ChainPrograms};
use self::report::ChainReport;
use super::{Progress, Stop, attend};
use crate::CliError;

mod checks;
mod hops;
mod http;
mod nat;
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
    /// Two clients, each with a firewall, three passthroughs and the gateway.
    SecureIntranet,
    /// A client, a NAT44, a web server.
    Nat,
}

/// Shows it, and fails unless every check passed.
pub(super) async fn run(args: ChainDemoArgs, demo: ChainDemo) -> Result<(), CliError> {
    let (json, progress) = (args.json, Progress::new(args.json));
    let work = move |handle: &Handle, stop: &Stop| {
        let mut report = ChainReport::default();
        let programs = ChainPrograms { forwarder: args.forwarder, function: args.function };
        let result = match demo {
            ChainDemo::SecureIntranet => ChainBed::make(programs, 3, handle, stop, progress)
                .and_then(|bed| secure_intranet::perform(&bed, &mut report)),
            ChainDemo::Nat => {
                ChainBed::make(programs, 2, handle, stop, progress).and_then(|bed| nat::perform(&bed, &mut report))
            }
        };
        report.end(result)
    };
    let report = attend(progress, work).await?;
    let text = if json { report.json() } else { report.text() };
    let written = std::io::stdout().write_all(text.as_bytes());
    // A reader that left does not make it a success.
    report.verdict()?;
    Ok(written?)
}
