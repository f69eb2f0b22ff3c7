//! `make node` and `make node-shell`: see docs/node.md.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use ferrule_hw_tests::need;
use ferrule_hw_tests::node::runner;
use ferrule_hw_tests::node::scenario::NodeScenario;
use ferrule_hw_tests::node::scenarios::ALL;

/// A Kubernetes node for tests
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the scenarios
    Run {
        /// Only those whose name contains one of these
        only: Vec<String>,
    },
    /// Name the scenarios
    List,
    /// Open a shell on a node
    Shell,
    /// Run these on a node that is to be made of the namespaces of this process
    #[command(hide = true)]
    InsideRun { names: Vec<String> },
    /// Open a shell there
    #[command(hide = true)]
    InsideShell,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run { only } => return run(&only),
        Command::List => {
            for scenario in ALL {
                println!("{}", scenario.name);
            }
        }
        Command::Shell => runner::open_shell()?,
        Command::InsideRun { names } => runner::run_inside(&names)?,
        Command::InsideShell => runner::shell_inside()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run(only: &[String]) -> Result<ExitCode> {
    let wanted = |scenario: &&NodeScenario| only.is_empty() || only.iter().any(|part| scenario.name.contains(part));
    let wanted: Vec<_> = ALL.iter().filter(wanted).collect();
    ensure!(!wanted.is_empty(), "no scenario has one of {only:?} in its name");
    let began = Instant::now();
    let mut report = runner::run(&wanted)?;
    if need::second_chance() {
        for scenario in wanted {
            if report.failed(scenario.name) {
                report.again(runner::run(&[scenario])?);
            }
        }
    }
    println!("{:>8}  all of it  ({:.0} s)", "took", began.elapsed().as_secs_f64());
    let passed = report.finish(&runner::folder()?.join("report.json"))?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
