//! `ferrule bench doctor`: whether a machine is as `docs/bare-metal.md` wants it, and how to change what is not.
//!
//! - `tree`: the files of the machine; `finding`: what is said of one thing;
//! - `cpu`, `memory`, `software`, `nic`: the checks; `show`: the table and the JSON.

mod cpu;
mod finding;
mod memory;
mod nic;
mod show;
mod software;
mod tree;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use self::cpu::PollingCpus;
use self::finding::{Finding, Verdict};
use self::nic::Nic;
use self::tree::{CpuList, Tree};
use crate::error::BenchError;

/// What to look at.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exit code: 0 if all is as it should be or cannot be seen, 3 if there are warnings, 1 if there are errors.
docs/bare-metal.md has every check, why it matters, and the way from a fresh machine to a report.")]
pub struct DoctorArgs {
    /// A port that is to be measured, by its PCI address; two of them [default: every port is looked at]
    #[arg(long, value_name = "ADDRESS")]
    port: Vec<String>,
    /// The CPUs that are to poll, as in 2-7,10 [default: those that are isolated; else all of the ports' NUMA node but the first core]
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    cpus: Option<CpuList>,
    /// A folder with the files of the machine: /sys, /proc, /usr/lib
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Looks, and prints what was found.
///
/// # Errors
/// Not all is as it should be: [`BenchError::Unfit`].
pub fn run(args: &DoctorArgs) -> Result<(), BenchError> {
    let report = examine(args);
    println!("{}", if args.json { show::json(&report)? } else { show::text(&report) });
    let count = |verdict| report.findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (errors, warnings) = (count(Verdict::Error), count(Verdict::Warning));
    if errors + warnings == 0 { Ok(()) } else { Err(BenchError::Unfit { errors, warnings }) }
}

/// Free hugepages of this machine, in MiB.
pub fn free_hugepages_mib() -> u64 {
    memory::free_mib(&Tree::new(Path::new("/")))
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct DoctorReport {
    findings: Vec<Finding>,
    /// All that the kernel is to be started with, if anything.
    kernel_arguments: Vec<String>,
}

fn examine(args: &DoctorArgs) -> DoctorReport {
    let tree = Tree::new(&args.root);
    let nics = Nic::find(&tree, &args.port);
    let mut nodes: Vec<u64> = nics.iter().filter_map(|nic| nic.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.is_empty() {
        nodes.push(0);
    }
    let polling = PollingCpus::of(&tree, args.cpus.clone(), nodes[0]);
    let mut findings = cpu::findings(&tree, &polling);
    findings.extend(memory::findings(&tree, &nodes));
    findings.extend(software::findings(&tree));
    findings.extend(nic::findings(&tree, &nics, &polling.list));
    let kernel_arguments = cpu::kernel_arguments(&findings);
    DoctorReport { findings, kernel_arguments }
}

fn cpus(text: &str) -> Result<CpuList, String> {
    let list = CpuList::parse(text);
    if list.is_empty() { Err("CPUs are written like 2-7,10".to_owned()) } else { Ok(list) }
}

#[cfg(test)]
mod tests;
