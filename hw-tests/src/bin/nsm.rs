//! `make nsm`: see docs/nsm-forwarder.md.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use ferrule_hw_tests::nsm::{cases, forwarder_cases, nat_cases, neighbour_cases, runner, trace_cases, vlan_cases};

/// Connections of Network Service Mesh through our forwarder, in namespaces
#[derive(Parser)]
struct Arguments {
    /// Only cases whose name contains one of these
    only: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let Arguments { only } = Arguments::parse();
    let wanted: Vec<_> = cases::all()
        .into_iter()
        .chain(forwarder_cases::all())
        .chain(nat_cases::all())
        .chain(neighbour_cases::all())
        .chain(trace_cases::all())
        .chain(vlan_cases::all())
        .filter(|case| only.is_empty() || only.iter().any(|part| case.name.contains(part.as_str())))
        .collect();
    ensure!(!wanted.is_empty(), "no case has one of {only:?} in its name");
    let began = Instant::now();
    let report = runner::run(&wanted);
    println!("{:>8}  all of it  ({:.0} s)", "took", began.elapsed().as_secs_f64());
    let passed = report.finish(&runner::folder()?.join("report.json"))?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
