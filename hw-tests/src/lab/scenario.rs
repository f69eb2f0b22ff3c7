//! What a scenario is, and what it has to work with.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::pci::{Function, pfs};
use super::topology::{Cards, Clock, MachineKind};
use crate::guest::boot::STATE;

/// Something that has to hold on a real kernel, as one function that runs inside the machine.
pub struct Scenario {
    /// A sentence, as a test has it.
    pub name: &'static str,
    /// What runs. Between two parts the machine is switched off and booted again; only [`Lab::state`] is kept.
    pub parts: &'static [Part],
    /// How long a part may take.
    pub timeout: Duration,
    /// The part in which cards are in each other's slots.
    pub swapped_in: Option<usize>,
    /// What the clocks of its machine go by.
    pub clock: Clock,
}

/// It fails by an error or a panic, and is skipped by the error [`Lacks`].
pub type Part = fn(&Lab) -> Result<()>;

impl Scenario {
    /// One that runs in one go.
    pub const fn new(name: &'static str, parts: &'static [Part]) -> Self {
        Self { name, parts, timeout: Duration::from_secs(30), swapped_in: None, clock: Clock::Host }
    }

    /// One with a part, not its last, in which the first two cards are in each other's slots.
    #[must_use]
    pub const fn with_cards_swapped_in(self, part: usize) -> Self {
        Self { swapped_in: Some(part), ..self }
    }

    /// One in whose machine the CPU time of a thread is how many instructions it executed.
    #[must_use]
    pub const fn counting_instructions(self) -> Self {
        Self { clock: Clock::Instructions, ..self }
    }

    /// The machine that a part needs.
    pub fn machine(&self, part: usize) -> MachineKind {
        let cards = if self.swapped_in == Some(part) { Cards::Swapped } else { Cards::InPlace };
        MachineKind { cards, clock: self.clock }
    }

    /// One that may take longer.
    #[must_use]
    pub const fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// What a scenario has inside the machine: PFs without a VF, and nobody else who touches them.
pub struct Lab {
    /// Both, in the order of their addresses; each on a NUMA node of its own.
    pub pfs: [Function; 2],
    /// A third one, which shares its IOMMU group with another NIC and with its own VFs.
    pub crowded: Function,
    name: &'static str,
}

impl Lab {
    /// For the first part of a scenario: whatever the one before has left is removed.
    pub fn fresh(scenario: &Scenario) -> Result<Self> {
        kill_strays()?;
        let lab = Self::new(scenario)?;
        for pf in lab.pfs.iter().chain([&lab.crowded]) {
            pf.set_vfs(0)?;
            pf.write("sriov_drivers_autoprobe", "1")?;
        }
        let _ = fs::remove_dir_all(lab.state());
        fs::create_dir_all(lab.state()).context("make the scenario's folder")?;
        // What is written into it from here on outlives a power cut only if its writer sees to that.
        nix::unistd::sync();
        Ok(lab)
    }

    /// For the parts after a reboot.
    pub fn rebooted(scenario: &Scenario) -> Result<Self> {
        let lab = Self::new(scenario)?;
        ensure!(lab.state().is_dir(), "the part before the reboot left nothing");
        Ok(lab)
    }

    fn new(scenario: &Scenario) -> Result<Self> {
        let (mut alone, mut crowded) = (Vec::new(), Vec::new());
        for pf in pfs()? {
            let vfs = pf.vfs();
            let has_others = pf.group_with()?.iter().any(|member| !vfs.contains(member));
            if has_others { &mut crowded } else { &mut alone }.push(pf);
        }
        let ([first, second], [crowded]) = (&alone[..], &crowded[..]) else {
            bail!(
                "the lab has two PFs in groups of their own and one that is not, and here are: {alone:?}, {crowded:?}"
            );
        };
        Ok(Self { pfs: [first.clone(), second.clone()], crowded: crowded.clone(), name: scenario.name })
    }

    /// A folder of the scenario's own, on a disk: it outlives a reboot.
    pub fn state(&self) -> PathBuf {
        Path::new(STATE).join(self.name)
    }

    /// Puts a figure into the report.
    pub fn figure(&self, name: &str, value: f64, unit: &str) {
        let figure = Figure { name: name.to_owned(), value, unit: unit.to_owned() };
        println!("{}", figure.line());
    }

    /// Puts a time into the report, in milliseconds.
    pub fn time(&self, name: &str, time: Duration) {
        self.figure(name, time.as_secs_f64() * 1e3, "ms");
    }

    /// Puts the median and the 99th percentile of some times into the report, in milliseconds.
    pub fn times(&self, name: &str, times: &mut [Duration]) {
        times.sort_unstable();
        for (percentile, word) in [(50, "p50"), (99, "p99")] {
            // The nearest rank: the smallest that so many are not above.
            let rank = (times.len() * percentile).div_ceil(100).saturating_sub(1);
            if let Some(time) = times.get(rank) {
                self.time(&format!("{name} {word} of {}", times.len()), *time);
            }
        }
    }
}

/// Something measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Of what.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of which unit.
    pub unit: String,
}

impl Figure {
    fn line(&self) -> String {
        format!("{FIGURE}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// The figure of a line that a scenario printed, if it is one.
    pub fn of_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(FIGURE)?).ok()
    }
}

/// A scenario's error that it cannot run on this machine.
#[derive(Debug, thiserror::Error)]
#[error("lacks {0}")]
pub struct Lacks(pub String);

/// Runs a part inside the machine. Returns the program's exit code.
pub fn run(scenario: &Scenario, part: usize) -> Result<u8> {
    let Some(function) = scenario.parts.get(part) else { bail!("{} has no part {part}", scenario.name) };
    let lab = if part == 0 { Lab::fresh(scenario) } else { Lab::rebooted(scenario) }?;
    match function(&lab) {
        Err(error) if error.is::<Lacks>() => {
            println!("{error}");
            Ok(SKIPPED)
        }
        done => done.map(|()| 0),
    }
}

/// The exit code of a scenario that cannot run here.
pub const SKIPPED: u8 = 77;

/// Ends the programs of ours that a scenario has left behind.
fn kill_strays() -> Result<()> {
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let is_stray = STRAYS.iter().any(|stray| program.ends_with(stray));
        if let Some(pid) = pid.filter(|_| is_stray) {
            println!("{} of an earlier scenario still ran", program.display());
            // It may have gone meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}

/// The programs that scenarios start.
const STRAYS: [&str; 6] =
    ["sriov-manager", "crash-manager", "device-plugin", "dpdk-forwarder", "responder", "dpdk-testpmd"];

const FIGURE: &str = "figure ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_line_and_a_line_a_figure() {
        let figure = Figure { name: "create".to_owned(), value: 1.5, unit: "ms".to_owned() };
        assert_eq!(Figure::of_line(&figure.line()), Some(figure));
        assert_eq!(Figure::of_line("figures are fine"), None);
    }
}
