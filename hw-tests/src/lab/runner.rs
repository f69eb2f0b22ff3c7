//! Boots the lab and runs scenarios in it, on two machines at a time. A machine serves one scenario after the other
//! until one of them needs a fresh one.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use super::report::{Line, Report, Verdict};
use super::scenario::{Figure, SKIPPED, Scenario};
use super::topology::{self, Clock, MachineKind};
use crate::vm::machine::{Machine, MachineOptions, make_disk};
use crate::vm::pieces::Pieces;
use crate::vm::protocol::End;

/// The lab on this host: what machines are made of.
pub struct LabImage {
    pieces: Pieces,
    /// Gone with the lab.
    initramfs: NamedTempFile,
}

impl LabImage {
    /// Makes everything ready, and boots nothing yet. With a greeting there is a shell on the serial line; the forwarder may be another
    /// one than that of this build.
    pub fn new(pieces: Pieces, shell: Option<String>, forwarder: Option<PathBuf>) -> Result<Self> {
        let initramfs = topology::image(shell, forwarder).build(&pieces)?;
        Ok(Self { pieces, initramfs })
    }

    /// Runs scenarios, the longest first; the report has them in the order given.
    pub fn run(&self, scenarios: &[&'static Scenario]) -> Report {
        let mut queue: Vec<_> = scenarios.to_vec();
        // Taken from the end. First those with a machine of their own: it takes the place of none that has booted.
        queue.sort_by_key(|scenario| (scenario.clock == Clock::Instructions, scenario.timeout, scenario.parts.len()));
        let queue = Mutex::new(queue);
        let report = Mutex::new(Report::new("lab", scenarios.iter().map(|scenario| scenario.name)));
        thread::scope(|scope| {
            for slot in 0..MACHINES.min(scenarios.len()) {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let add = |line| report.lock().unwrap_or_else(PoisonError::into_inner).add(line);
                // A machine ends with the thread that started it.
                scope.spawn(move || {
                    MachineSlot { lab: self, number: slot + 1, disk: None, machine: None }.work(next, add);
                });
            }
        });
        report.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the terminal to a person inside, until the machine is switched off.
    pub fn shell(&self) -> Result<ExitStatus> {
        let disk = self.disk()?;
        let mut options = self.options(&disk, MachineKind::default());
        options.kernel.push("quiet".to_owned());
        let mut command = options.command(&self.pieces);
        command.args(["-chardev", "null,id=channel", "-serial", "mon:stdio"]);
        command.status().context("run QEMU")
    }

    fn options(&self, disk: &NamedTempFile, kind: MachineKind) -> MachineOptions {
        let initramfs = self.initramfs.path().to_owned();
        let qemu = topology::qemu(disk.path(), kind);
        MachineOptions { initramfs, kernel: topology::kernel(kind.clock), qemu, incoming: false }
    }

    fn disk(&self) -> Result<NamedTempFile> {
        let disk = NamedTempFile::new_in(&self.pieces.folder).context("make a file for a disk")?;
        make_disk(disk.path(), DISK_MIB)?;
        Ok(disk)
    }
}

/// Where one machine at a time runs, on a disk of its own.
struct MachineSlot<'a> {
    lab: &'a LabImage,
    number: usize,
    disk: Option<NamedTempFile>,
    machine: Option<(MachineKind, Machine)>,
}

impl MachineSlot<'_> {
    fn work(mut self, next: impl Fn() -> Option<&'static Scenario>, add: impl Fn(Line)) {
        while let Some(scenario) = next() {
            add(self.run(scenario));
        }
    }

    fn run(&mut self, scenario: &'static Scenario) -> Line {
        let mut line = Line::new(scenario.name, Verdict::Passed);
        for part in 0..scenario.parts.len() {
            if part > 0 {
                // Switched off as a power cut does it.
                self.machine = None;
            }
            line.verdict = self.run_part(scenario, part, &mut line).unwrap_or_else(|error| {
                // The next one finds a machine that can be trusted.
                self.machine = None;
                Verdict::Failed(format!("{error:#}"))
            });
            if line.verdict != Verdict::Passed {
                break;
            }
        }
        line
    }

    fn run_part(&mut self, scenario: &Scenario, part: usize, line: &mut Line) -> Result<Verdict> {
        let machine = self.machine(scenario.machine(part))?;
        let said_before = machine.console().len();
        let began = Instant::now();
        let program = ["/bin/vm-guest", "scenario", scenario.name, &part.to_string()];
        let (end, text) = machine.spawn(&program, scenario.timeout)?.wait();
        line.seconds += began.elapsed().as_secs_f64();
        line.figures.extend(text.lines().filter_map(Figure::of_line));
        let printed: Vec<_> = text.lines().filter(|line| Figure::of_line(line).is_none()).collect();
        let printed = printed.join("\n");
        let console = &machine.console()[said_before..];
        let complaint = console.lines().find(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)));
        match (end, complaint) {
            (End::Exited(0), None) => Ok(Verdict::Passed),
            (End::Exited(code), None) if code == i32::from(SKIPPED) => Ok(Verdict::Skipped(printed)),
            (End::Exited(_) | End::Signalled(_), None) => Ok(Verdict::Failed(format!("{end:?}\n{printed}"))),
            (_, None) => bail!("{end:?} after {:?}\n{printed}\nits console:\n{}", began.elapsed(), tail(console)),
            (_, Some(complaint)) => bail!("{end:?}; the kernel says: {complaint}\n{printed}\n{}", tail(console)),
        }
    }

    /// The machine, booted if there is none of this kind.
    fn machine(&mut self, kind: MachineKind) -> Result<&mut Machine> {
        if self.machine.as_mut().is_none_or(|(now, machine)| *now != kind || machine.has_ended()) {
            // The old one first: both would write to the disk.
            self.machine = None;
            let disk = match self.disk.take() {
                Some(disk) => disk,
                None => self.lab.disk()?,
            };
            let machine = Machine::start(&self.lab.pieces, &self.lab.options(&disk, kind));
            self.disk = Some(disk);
            let machine = machine?;
            let took = machine.wait_until_booted()?;
            println!("{:>8}  machine {}  ({:.1} s)", "booted", self.number, took.as_secs_f64());
            self.machine = Some((kind, machine));
        }
        let (_, machine) = self.machine.as_mut().context("a machine was just booted")?;
        Ok(machine)
    }
}

/// The end of what a kernel said: a panic with its trace is not longer.
fn tail(console: &str) -> String {
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// What a kernel says when something in it is wrong.
const COMPLAINTS: [&str; 4] = ["BUG:", "WARNING:", "Oops", "blocked for more than"];

/// Scenarios wait for the kernel most of the time, and each machine emulates on one thread.
const MACHINES: usize = 2;

const TAIL_LINES: usize = 80;
const DISK_MIB: u32 = 64;
