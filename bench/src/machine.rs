//! The machine that a figure belongs to.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::SystemTime;

use ferrule_ffi::ticks;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use crate::error::BenchError;

/// As the kernel tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The CPU's name.
    pub cpu: String,
    /// CPUs that may be used.
    pub cpus: usize,
    /// Rate of the time stamp counter, measured.
    pub tsc_mhz: f64,
    /// Whose virtual machine it is, if it is one.
    pub virtualised: Option<String>,
    /// The frequency governor of the workers' CPUs.
    pub governor: String,
    /// CPUs that the scheduler leaves alone.
    pub isolated: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// The CPUs of the workers; none: they are not known.
    pub worker_cpus: Vec<usize>,
    /// The CPUs of the generator.
    pub generator_cpus: Vec<usize>,
    /// The command line.
    pub command: String,
    /// The revision of the source around the program, if it is there.
    pub revision: Option<String>,
    /// When it was read.
    pub date: String,
}

impl Machine {
    /// Reads all of it. Where the workers of a forwarder are that runs already is not known.
    pub fn read(cpus: &Cpus, is_running: bool) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let worker = cpus.workers.first().copied().unwrap_or_default();
        let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Self {
            cpu: field(&info, "model name").unwrap_or("unknown").to_owned(),
            cpus: cpus.usable,
            tsc_mhz: ticks::per_second() / 1e6,
            virtualised: virtualised(&info),
            governor: word(&format!("/sys/devices/system/cpu/cpu{worker}/cpufreq/scaling_governor"))
                .unwrap_or_else(|| "not to be seen".to_owned()),
            isolated: word("/sys/devices/system/cpu/isolated").unwrap_or_else(|| "none".to_owned()),
            memory_mib: memory.unwrap_or_default() / 1024,
            kernel: word("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
            system: setting(&system, "PRETTY_NAME").unwrap_or("unknown").to_owned(),
            worker_cpus: if is_running { Vec::new() } else { cpus.workers.clone() },
            generator_cpus: cpus.generators.clone(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            revision: revision(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, tsc_mhz, kernel, worker_cpus, generator_cpus, .. } = self;
        let machine = self.virtualised.as_ref().map_or(String::new(), |whose| format!(" (virtual, {whose})"));
        write!(f, "{cpu}{machine}, TSC {tsc_mhz:.0} MHz, Linux {kernel}; ")?;
        match &worker_cpus[..] {
            [] => f.write_str("worker's CPU unknown")?,
            cpus => write!(f, "worker on CPU {cpus:?}")?,
        }
        let generators = generator_cpus.iter().map(ToString::to_string).collect::<Vec<_>>();
        write!(f, ", generator on CPU {}", generators.join(", "))
    }
}

/// Which CPUs do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Those of workers.
    pub workers: Vec<usize>,
    /// Those of the generator's threads; the first is that of everything idle, too.
    pub generators: Vec<usize>,
    /// How many there are.
    usable: usize,
    all: CpuSet,
}

impl Cpus {
    /// Those asked for; otherwise the first that this process may use for the worker, and the last for the generator. Without a
    /// forwarder to start there are no workers.
    pub fn choose(workers: &[usize], generators: &[usize], has_workers: bool) -> Result<Self, BenchError> {
        let all = sched_getaffinity(Pid::from_raw(0))?;
        let usable: Vec<_> = (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu).unwrap_or(false)).collect();
        let workers = match workers {
            [] if has_workers => usable.first().copied().into_iter().collect(),
            asked => asked.to_vec(),
        };
        let free = usable.iter().rev().find(|cpu| !workers.contains(cpu)).copied();
        let generators = match generators {
            [] => vec![free.ok_or(BenchError::OneCpu)?],
            asked => asked.to_vec(),
        };
        let all_used: Vec<_> = workers.iter().chain(&generators).collect();
        if let Some(&&cpu) = all_used.iter().find(|cpu| !usable.contains(cpu)) {
            return Err(BenchError::NoCpu(cpu));
        }
        if all_used.iter().enumerate().any(|(place, cpu)| all_used[..place].contains(cpu)) {
            return Err(BenchError::OneCpu);
        }
        Ok(Self { workers, generators, usable: usable.len(), all })
    }

    /// The first of the generator's.
    pub fn generator(&self) -> usize {
        self.generators.first().copied().unwrap_or_default()
    }

    /// Puts this thread, which is to generate, on its CPU.
    pub fn pin(&self) -> Result<(), BenchError> {
        let mut cpu = CpuSet::new();
        cpu.set(self.generator())?;
        Ok(sched_setaffinity(Pid::from_raw(0), &cpu)?)
    }

    /// Lets this thread, and the children it starts, use all CPUs again.
    pub fn unpin(&self) -> Result<(), BenchError> {
        Ok(sched_setaffinity(Pid::from_raw(0), &self.all)?)
    }
}

/// The NUMA node of a CPU.
pub fn numa_node(cpu: usize) -> Option<u32> {
    let mut entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).ok()?.flatten();
    entries.find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}

fn word(file: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn virtualised(cpuinfo: &str) -> Option<String> {
    let flags = field(cpuinfo, "flags")?;
    let is_guest = flags.split(' ').any(|flag| flag == "hypervisor");
    let vendor = || word("/sys/class/dmi/id/sys_vendor").unwrap_or_else(|| "hypervisor not named".to_owned());
    is_guest.then(vendor)
}

/// Of a program that was built where its source is.
fn revision() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let mut git = Command::new("git");
    git.arg("-C").arg(program.parent()?).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_found() {
        let info = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!(field(info, "model name"), Some("Some CPU"));
        assert!(virtualised(info).is_some() && virtualised("flags : fpu\n").is_none());
        assert_eq!(setting("NAME=x\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME"), Some("Debian 12"));
    }

    #[test]
    fn a_cpu_that_is_not_there_or_wanted_twice_is_an_error() {
        assert!(matches!(Cpus::choose(&[1023], &[], true), Err(BenchError::NoCpu(1023) | BenchError::OneCpu)));
        assert!(matches!(Cpus::choose(&[0], &[0], true), Err(BenchError::OneCpu | BenchError::NoCpu(0))));
        assert!(matches!(Cpus::choose(&[], &[1, 1], false), Err(BenchError::OneCpu | BenchError::NoCpu(1))));
        assert!(
            Cpus::choose(&[], &[], false).unwrap().workers.is_empty(),
            "whoever starts no forwarder needs one CPU only"
        );
    }
}
