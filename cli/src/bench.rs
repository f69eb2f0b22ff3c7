//! `ferrule bench`: frames per second through a wire on one core, beside a peer's program doing the same work.
//!
//! Every contender runs from the beginning and is stopped (SIGSTOP) while another has its turn, so that one round
//! holds one measurement of each, close together in time: a machine whose speed drifts slows all of them alike, and
//! the ratio of a round stays true. Medians of the rounds are what is printed.
//!
//! - `contender`: the programs and how they are started;
//! - `report`: the table and the JSON.

mod contender;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ferrule_endpoints::generator::{self, Load, Stop};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use thiserror::Error;

use crate::bench::contender::{Contender, ContenderError, Program};
use crate::bench::report::{Environment, Measured};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Run the same work through this program too, in turn
    #[arg(long, value_enum, value_name = "PROGRAM")]
    against: Option<Against>,
    /// Seconds of each measurement
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Measurements of each contender in each case
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The forwarder to start; without it, the one beside this program
    #[arg(long, value_name = "PATH")]
    forwarder: Option<PathBuf>,
    /// Where the figures go as data
    #[arg(long, value_name = "FILE", default_value = "target/bench/report.json")]
    report: PathBuf,
}

/// A peer's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// DPDK's test program, of Debian's package dpdk-dev
    Testpmd,
}

/// One kind of work.
struct Case {
    name: &'static str,
    size: usize,
    both_ways: bool,
}

/// Measures and reports.
pub fn run(args: &BenchArgs) -> Result<(), BenchError> {
    let (worker, generator) = cpus()?;
    let environment = Environment::read(worker, generator);
    eprintln!("{environment}");
    let mut programs = vec![Program::Ferrule { forwarder: contender::forwarder(args.forwarder.as_deref())? }];
    if args.against == Some(Against::Testpmd) {
        programs.extend(TESTPMD_BURSTS.map(|burst| Program::Testpmd { burst }));
    }
    let mut contenders = Vec::new();
    for program in programs {
        eprintln!("starting {program}");
        contenders.push(Contender::start(program, worker, generator)?);
    }
    let mut cpu = CpuSet::new();
    cpu.set(generator)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let mut cases = Vec::new();
    for case in &CASES {
        eprintln!("measuring {}: {} rounds of {} contenders", case.name, args.rounds, contenders.len());
        cases.push(measure(case, args, &mut contenders)?);
    }
    let names = contenders.iter().map(|contender| contender.program.to_string()).collect::<Vec<_>>();
    println!("{}", report::table(&names, &cases));
    report::write(&args.report, &environment, &names, &cases)?;
    eprintln!("figures written to {}", args.report.display());
    Ok(())
}

/// Runs one case in rounds: each round has a turn of every contender.
fn measure(case: &Case, args: &BenchArgs, contenders: &mut [Contender]) -> Result<Measured, BenchError> {
    let mut rates = vec![Vec::new(); contenders.len()];
    // The first round warms caches and page tables, and is not counted.
    for round in 0..=args.rounds {
        for (contender, rates) in contenders.iter_mut().zip(&mut rates) {
            let load = Load { size: case.size, both_ways: case.both_ways, verify: false, stop: Stop::After(args.time) };
            contender.resume()?;
            let outcome = generator::run(&load, &mut contender.near, &mut contender.far);
            contender.pause()?;
            let outcome = outcome.map_err(|error| BenchError::Run(contender.program.to_string(), error))?;
            if round > 0 {
                rates.push(outcome.iter().map(generator::Outcome::frames_per_second).filter(|r| r.is_finite()).sum());
            }
        }
    }
    Ok(Measured { case: case.name, rates })
}

/// The CPU of the worker and that of the generator: the first and the last that this process may use.
fn cpus() -> Result<(usize, usize), BenchError> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let usable: Vec<_> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    match usable[..] {
        [worker, .., generator] => Ok((worker, generator)),
        _ => Err(BenchError::OneCpu),
    }
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A program did not come up.
    #[error(transparent)]
    Contender(#[from] ContenderError),
    /// The generator failed.
    #[error("measure {0}: {1}")]
    Run(String, generator::RunError),
    /// Worker and generator would share it.
    #[error("this process may use one CPU only; the worker and the generator need one each (see `taskset -p`)")]
    OneCpu,
    /// A system call.
    #[error("pin or stop a contender: {0}")]
    System(#[from] nix::errno::Errno),
    /// The report.
    #[error("write the report: {0}")]
    Report(#[from] std::io::Error),
}

const CASES: [Case; 4] = [
    Case { name: "memif-memif 64 B one way", size: 64, both_ways: false },
    Case { name: "memif-memif 64 B both ways", size: 64, both_ways: true },
    Case { name: "memif-memif 1518 B one way", size: 1518, both_ways: false },
    Case { name: "memif-memif 1518 B both ways", size: 1518, both_ways: true },
];
/// Its default, and larger ones among which is its best.
const TESTPMD_BURSTS: [u16; 3] = [32, 64, 128];
