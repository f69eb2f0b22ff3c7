//! `make lab` and `make lab-shell`: see docs/lab.md.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use ferrule_hw_tests::lab::report::Report;
use ferrule_hw_tests::lab::runner::LabImage;
use ferrule_hw_tests::lab::scenario::Scenario;
use ferrule_hw_tests::lab::{scenarios, topology};
use ferrule_hw_tests::need;
use ferrule_hw_tests::vm::pieces::{folder, own_program};

/// The virtual SR-IOV lab
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
        /// A `dpdk-forwarder` that is taken instead of that of this build
        #[arg(long, value_name = "FILE")]
        forwarder: Option<PathBuf>,
    },
    /// Open a shell inside
    Shell,
}

fn main() -> Result<ExitCode> {
    let passed = match Arguments::parse().command {
        Command::Run { only, forwarder } => run(&only, forwarder)?,
        Command::Shell => shell()?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(only: &[String], forwarder: Option<PathBuf>) -> Result<bool> {
    let wanted = |scenario: &&Scenario| only.is_empty() || only.iter().any(|part| scenario.name.contains(part));
    let wanted: Vec<_> = scenarios::ALL.iter().filter(wanted).collect();
    ensure!(!wanted.is_empty(), "no scenario has one of {only:?} in its name");
    let began = Instant::now();
    let report = match topology::pieces() {
        Ok(pieces) => {
            let file = forwarder.clone().map_or_else(|| own_program("dpdk-forwarder"), Ok)?;
            println!("{:>8}  the forwarder {}", "with", file.display());
            run_in(&LabImage::new(pieces, None, forwarder)?, &wanted)
        }
        Err(missing) => {
            let names = wanted.iter().map(|scenario| scenario.name);
            Report::of_none("lab", names, &format!("lacks {missing:#}"))
        }
    };
    println!("{:>8}  all of it  ({:.0} s)", "took", began.elapsed().as_secs_f64());
    report.finish(&folder().join("report.json"))
}

/// Where a failure gets a second chance (see `need`), those that failed run once more, one after the other.
fn run_in(lab: &LabImage, wanted: &[&'static Scenario]) -> Report {
    let mut report = lab.run(wanted);
    if need::second_chance() {
        for scenario in wanted {
            if report.failed(scenario.name) {
                report.again(lab.run(&[*scenario]));
            }
        }
    }
    report
}

fn shell() -> Result<bool> {
    let names: Vec<_> = scenarios::ALL.iter().map(|scenario| format!("    {}\n", scenario.name)).collect();
    let greeting = GREETING.to_owned() + &names.concat();
    Ok(LabImage::new(topology::pieces()?, Some(greeting), None)?.shell()?.success())
}

const GREETING: &str = "
Three igb PFs (ip link; ls -l /sys/bus/pci/drivers/igb), 7 VFs each; the first shares its IOMMU group with another NIC.
busybox, ip and our programs are in /bin. To begin: sriov-manager &, then ferrule vf list.
To leave: poweroff, or Ctrl-A X at once.
    vm-guest scenario NAME    runs one of:
";
