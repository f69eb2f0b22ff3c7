//! What runs inside the virtual machines of hw-tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ferrule_hw_tests::guest::{agent, boot, tcp};
use ferrule_hw_tests::lab::{scenario, scenarios};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount the file systems and load the modules
    Boot,
    /// Run programs for the host
    Agent,
    /// List the lab's scenarios
    List,
    /// Run a scenario of the lab, or one part of it
    Scenario {
        /// Its name
        name: String,
        /// Which part, from 0
        #[arg(default_value_t = 0)]
        part: usize,
    },
    /// Wait for a connection and exchange bytes on it
    Accept {
        /// Where to listen
        address: SocketAddr,
        /// How many to send, and how many to expect
        bytes: usize,
    },
    /// Wait for a connection, leave what comes where it is until a file is there, and compare it
    Hold {
        /// Where to listen
        address: SocketAddr,
        /// How many to expect
        bytes: usize,
        /// The file
        until: PathBuf,
    },
    /// Connect to one who accepts
    Connect {
        /// Where it listens
        address: SocketAddr,
        /// As many as it was told
        bytes: usize,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Boot => boot::boot_or_power_off(),
        Command::Agent => agent::serve()?,
        Command::Accept { address, bytes } => tcp::accept(address, bytes)?,
        Command::Hold { address, bytes, until } => tcp::hold(address, bytes, &until)?,
        Command::Connect { address, bytes } => tcp::connect(address, bytes)?,
        Command::List => scenarios::ALL.iter().for_each(|scenario| println!("{}", scenario.name)),
        Command::Scenario { name, part } => {
            let scenario = scenarios::called(&name).with_context(|| format!("no scenario {name} (vm-guest list)"))?;
            return Ok(scenario::run(scenario, part)?.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}
