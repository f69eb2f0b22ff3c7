//! What runs inside the virtual machines of hw-tests.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ferrule_hw_tests::guest::{agent, boot};
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
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Boot => boot::boot_or_power_off(),
        Command::Agent => agent::serve()?,
        Command::List => scenarios::ALL.iter().for_each(|scenario| println!("{}", scenario.name)),
        Command::Scenario { name, part } => {
            let scenario = scenarios::called(&name).with_context(|| format!("no scenario {name} (vm-guest list)"))?;
            return Ok(scenario::run(scenario, part)?.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}
