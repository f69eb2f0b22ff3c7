//! The command that a person types: shows, makes and removes the wires of a running forwarder, and demonstrates them.
//!
//! It holds no state and knows nothing of wires but their names: what a wire may be is judged by the forwarder.
//! One module per command, in reading order:
//!
//! - [`demo`]: the main job on this machine, with real packets.
//! - [`wires`]: every wire in a table, or as JSON.
//! - [`wire`]: adds and removes wires.
//! - [`top`]: what is moving now.
//! - [`trace`]: which frames cross a wire or a network function.
//! - `bench`: what goes through a wire, beside a peer's program; the crate `ferrule-bench`.
//! - [`vf`]: SR-IOV VFs of the node.
//! - `nsm`: Network Service Mesh on this machine.
//! - [`cni`]: the CNI plugin comes to a node, and goes.
//! - [`uninstall`]: what is left on a node is removed.
//! - [`completions`]: completions for a shell.
//!
//! They share [`admin`], the connection to the forwarder, and [`text`], how numbers and foreign texts are shown.

use clap::{Parser, Subcommand};
use ferrule_bench as bench;
use thiserror::Error;

pub mod admin;
pub mod cni;
pub mod completions;
pub mod demo;
#[cfg(feature = "nsm")]
pub mod nsm;
pub mod text;
pub mod top;
pub mod trace;
pub mod uninstall;
pub mod vf;
pub mod wire;
pub mod wires;

/// Virtual wires: show them, make them, watch them
#[derive(Debug, Parser)]
#[command(name = "ferrule", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What a person can ask for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// See it work: real packets through wires on this machine, needing neither a NIC nor a cluster
    Demo(demo::DemoArgs),
    /// Show every wire
    Wires(wires::WiresArgs),
    /// Add or remove wires
    #[command(subcommand)]
    Wire(wire::WireCommand),
    /// Show live rates of every wire
    Top(top::TopArgs),
    /// Show the frames of a wire or a network function as they cross, and write them for Wireshark
    Trace(Box<trace::TraceArgs>),
    /// Measure what goes through a wire, beside a peer's program: rates, losses, latency
    Bench(Box<bench::BenchArgs>),
    /// SR-IOV VFs: show, make, borrow, give back
    Vf(Box<vf::VfArgs>),
    /// Network Service Mesh: show it, or run it on this machine
    #[cfg(feature = "nsm")]
    Nsm(Box<nsm::NsmArgs>),
    /// The CNI plugin of this node: put it there, or take it away
    #[command(subcommand)]
    Cni(cni::CniCommand),
    /// Remove what Ferrule left on this node, once its daemons are gone: VFs are given back, files are removed
    Uninstall(uninstall::UninstallArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

/// The command line, whichever name of this program it begins with.
#[cfg(feature = "nsm")]
pub use nsm::arguments;

/// The command line: this program has one name.
#[cfg(not(feature = "nsm"))]
pub fn arguments(given: impl IntoIterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    given.into_iter().collect()
}

impl Cli {
    /// Does what was asked for.
    pub async fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Demo(args) => demo::run(args).await,
            Command::Wires(args) => wires::run(&args).await,
            Command::Wire(command) => wire::run(command).await,
            Command::Top(args) => top::run(&args).await,
            Command::Trace(args) => Ok(Box::pin(trace::run(&args)).await?),
            Command::Bench(args) => Ok(bench::run(&args).await?),
            Command::Vf(args) => vf::run(*args).await,
            #[cfg(feature = "nsm")]
            Command::Nsm(args) => nsm::run(*args).await,
            Command::Cni(command) => cni::run(&command),
            Command::Uninstall(args) => uninstall::run(&args).await,
            Command::Completions(args) => completions::run(&args),
        }
    }
}

/// Why a command failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// The forwarder cannot be asked, or said no.
    #[error(transparent)]
    Admin(#[from] admin::AdminError),
    /// The demo did not run, or found something wrong.
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    /// The wires to be added cannot be read.
    #[error(transparent)]
    Document(#[from] wire::DocumentError),
    /// The arguments make no sense together.
    #[error(transparent)]
    Usage(clap::Error),
    /// Some of several wires could not be added or removed; each was named already.
    #[error("{failed} of {asked} wires failed")]
    Some {
        /// Wires that failed.
        failed: usize,
        /// Wires that were asked for.
        asked: usize,
    },
    /// Frames cannot be shown.
    #[error(transparent)]
    Trace(#[from] trace::TraceError),
    /// Nothing was measured.
    #[error(transparent)]
    Bench(#[from] bench::BenchError),
    /// The VFs' manager cannot be asked, or said no.
    #[error(transparent)]
    Vf(#[from] vf::VfCliError),
    /// A process of the mesh does not run.
    #[cfg(feature = "nsm")]
    #[error(transparent)]
    Nsm(#[from] nsm::NsmError),
    /// The CNI plugin does not come, or does not go.
    #[error(transparent)]
    Cni(#[from] cni::CniCliError),
    /// Something of Ferrule is still on the node.
    #[error(transparent)]
    Uninstall(#[from] uninstall::UninstallError),
    /// Our own output went wrong.
    #[error("write the output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// Whether the reader of our output left, as `head` does: no fault of anybody.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// What the process ends with: 2 for what makes no sense, 1 for what failed; the bench has codes of its own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Vf(vf::VfCliError::ReadOnly) => 2,
            Self::Bench(error) => error.exit_code(),
            _ => 1,
        }
    }
}
