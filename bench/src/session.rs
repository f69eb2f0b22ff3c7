//! Runs a plan: starts programs, gives each its turn, and keeps what came of it.
//!
//! Every program runs from the beginning of its group and is stopped (SIGSTOP) while another has its turn, so that one round
//! holds one measurement of each, close together in time: a machine whose speed drifts slows all of them alike, and the
//! ratio of a round stays true.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_ffi::ticks;
use serde::Serialize;

use crate::case::Case;
use crate::dut::{Dut, DutSetup, Program};
use crate::error::BenchError;
use crate::folder;
use crate::generator::Outcome;
use crate::latency::Latency;
use crate::load::{Load, Pace, Stop, Touch};
use crate::machine::{self, Machine};
use crate::method::{Figure, Measurement, Method, Trial};
use crate::plan::{Group, Plan};
use crate::ports::{PortInfo, PortPair, is_software};
use crate::progress::Progress;
use crate::quantity;
use crate::spread::Spread;

/// All that a bench found out.
pub struct Results {
    /// Where.
    pub machine: Machine,
    /// How, in a sentence.
    pub method: String,
    /// The programs, by group.
    pub programs: Vec<ProgramInfo>,
    /// The cases that were measured.
    pub cases: Vec<CaseResult>,
    /// What went wrong.
    pub notes: Vec<String>,
}

/// A program as it was measured.
pub struct ProgramInfo {
    /// Its name.
    pub name: String,
    /// What it joined.
    pub ends: String,
    /// What it says its version is.
    pub version: String,
    /// How it was started.
    pub commands: Vec<String>,
    /// What each of our ends agreed on with it.
    pub agreements: Vec<String>,
    /// What is wrong with the place where it runs.
    pub warnings: Vec<String>,
    /// Our ports, and what each had counted in the end.
    pub ports: Vec<PortCounters>,
}

/// A port of the generator, in the end.
#[derive(Serialize)]
pub struct PortCounters {
    /// Which.
    pub device: String,
    /// Frames and bytes since it was opened, of every trial and what was sent before it.
    pub counters: BTreeMap<String, u64>,
}

/// What was measured of a case.
pub struct CaseResult {
    /// The work.
    pub case: Case,
    /// What the ports' line carries in bits a second, if there is one.
    pub line: Option<f64>,
    /// By program; the first is ours.
    pub entries: Vec<ProgramResult>,
}

/// What was measured of a program in a case.
#[derive(Clone, Debug, Default)]
pub struct ProgramResult {
    /// Its name.
    pub program: String,
    /// In their order.
    pub rounds: Vec<Round>,
}

impl ProgramResult {
    /// How long frames were under way, by load from the lowest up, all rounds together. A method that looks at several
    /// loads looks at as many, in the same order, in each round.
    pub fn latencies(&self) -> Vec<(String, Latency)> {
        let mut all: Vec<(Vec<f64>, Latency)> = Vec::new();
        for round in &self.rounds {
            let noted = round.trials.iter().filter_map(|tried| Some((tried.wanted?, tried.latency.as_ref()?)));
            // One that no frame was looked at for knows nothing.
            let noted = noted.filter(|(_, latency)| latency.count() > 0);
            for (place, (rate, latency)) in noted.enumerate() {
                if place == all.len() {
                    all.push(Default::default());
                }
                all[place].0.push(rate);
                all[place].1.add(latency);
            }
        }
        let name = |rates: Vec<f64>| quantity(Spread::of(rates).map_or(0.0, |rates| rates.median), "pps");
        all.into_iter().map(|(rates, latency)| (name(rates), latency)).collect()
    }
}

/// One method, led to its end once.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// What it concluded.
    pub figures: Vec<Figure>,
    /// What it tried.
    pub trials: Vec<TrialResult>,
}

/// A trial and what came of it.
#[derive(Clone, Debug)]
pub struct TrialResult {
    /// Frames in a second that were wanted; none: as many as possible.
    pub wanted: Option<f64>,
    /// What was seen.
    pub seen: Measurement,
    /// Of the frames wanted, the share that the generator was too late for.
    pub skipped: f64,
    /// The share of its time in which the generator had nothing to do.
    pub idle: f64,
    /// CPU cycles of the program for each frame that arrived.
    pub cycles: Option<f64>,
    /// Frames that arrived out of order, again, or damaged.
    pub disorder: u64,
    /// Frames that the generator's own ports dropped, since it did not take them in time.
    pub missed: u64,
    /// How long frames were under way.
    pub latency: Option<Latency>,
}

impl TrialResult {
    /// Of a trial without a pace, the share of its time in which the generator had nothing to do.
    pub fn unpaced_idle(&self) -> Option<f64> {
        self.wanted.is_none().then_some(self.idle)
    }
}

/// Measures all that is planned.
pub fn run(plan: &Plan, cancel: &AtomicBool) -> Result<Results, BenchError> {
    folder::sweep(&std::env::temp_dir());
    let machine = Machine::read(&plan.cpus, plan.is_running);
    let mut results =
        Results { machine, method: plan.describe(), programs: Vec::new(), cases: Vec::new(), notes: Vec::new() };
    let mut progress = Progress::new(plan.trials());
    progress.say(&results.machine.to_string());
    progress.say(&results.method);
    for group in &plan.groups {
        let outcome = measure_group(plan, group, cancel, &mut progress, &mut results);
        if cancel.load(Relaxed) {
            progress.finish();
            return Err(BenchError::Interrupted);
        }
        if let Err(error) = outcome {
            note(&mut progress, &mut results.notes, &error);
        }
    }
    progress.finish();
    if results.cases.is_empty() {
        return Err(BenchError::Nothing(results.notes.join("\n")));
    }
    Ok(results)
}

fn note(progress: &mut Progress, notes: &mut Vec<String>, error: &BenchError) {
    progress.say(&format!("cannot go on with this: {error}"));
    notes.push(error.to_string());
}

fn measure_group(
    plan: &Plan,
    group: &Group,
    cancel: &AtomicBool,
    progress: &mut Progress,
    results: &mut Results,
) -> Result<(), BenchError> {
    let site = DutSetup {
        ends: group.ends,
        queues: plan.queues,
        buffer: group.buffer,
        workers: plan.cpus.workers.clone(),
        other: plan.cpus.generator(),
        idle: plan.idle,
        ports: group.ports.clone(),
        devices: group.devices.clone(),
    };
    plan.cpus.unpin()?;
    let mut duts = Vec::new();
    for (number, program) in group.programs.iter().enumerate() {
        progress.say(&format!("starting {program}"));
        let started = Dut::start(program, &site, cancel).map_err(BenchError::from);
        match started.and_then(|dut| settle(plan, group, dut, cancel)) {
            Ok(dut) => {
                let info = describe(&dut, group, plan);
                info.warnings.iter().for_each(|warning| progress.say(&format!("warning: {warning}")));
                results.programs.push(info);
                duts.push(Some(dut));
            }
            // Without ours there is nothing to compare.
            Err(error) if number == 0 || cancel.load(Relaxed) => return Err(error),
            Err(error) => {
                note(progress, &mut results.notes, &error);
                duts.push(None);
            }
        }
    }
    plan.cpus.pin()?;
    for case in &group.cases {
        progress.case(&case.name);
        let line = duts.first().and_then(Option::as_ref).and_then(|dut| line(plan, dut));
        let mut measuring = CaseRun { plan, case, line, cancel, progress: &mut *progress, notes: &mut results.notes };
        let entries = measuring.measure(&group.programs, &mut duts)?;
        results.cases.push(CaseResult { case: case.clone(), line, entries });
    }
    if let (Some(Some(dut)), Some(program)) = (duts.first(), results.programs.last_mut()) {
        program.ports = port_counters(dut);
    }
    Ok(())
}

/// Waits until frames come through: a program may still be setting up its ports when it has shaken hands.
fn settle(plan: &Plan, group: &Group, mut dut: Dut, cancel: &AtomicBool) -> Result<Dut, BenchError> {
    let Some(case) = group.cases.first() else { return Ok(dut) };
    let trial = Trial { pace: Pace::Saturate, stop: Stop::After(SETTLE_TRIAL), latency: false };
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        match turn(plan, case, &trial, plan.touch, &mut dut, cancel) {
            Err(BenchError::NoFrames { .. }) if Instant::now() < deadline => {
                dut.resume()?;
                thread::sleep(SETTLE_TRIAL);
            }
            Err(BenchError::NoFrames { .. }) if group.ports.is_some() => return Err(dut.silence().into()),
            outcome => return outcome.map(|_| dut),
        }
    }
}

fn port_counters(dut: &Dut) -> Vec<PortCounters> {
    let Some(ports) = dut.ends.ports() else { return Vec::new() };
    let counted = ports.info().iter().zip(ports.counters());
    counted.map(|(port, counters)| PortCounters { device: port.device.clone(), counters }).collect()
}

/// What the line between the ports carries: what was said, or the rate of the slower one.
fn line(plan: &Plan, dut: &Dut) -> Option<f64> {
    let told = || {
        dut.ends
            .ports()?
            .info()
            .iter()
            .map(PortInfo::line)
            .min_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal))?
    };
    plan.line.or_else(told)
}

fn describe(dut: &Dut, group: &Group, plan: &Plan) -> ProgramInfo {
    let generator = plan.cpus.generator();
    let sharing = dut.threads_pinned_to(generator);
    let warning = || {
        format!(
            "{} of the {} may run on CPU {generator} only, which is the generator's: they take turns, and the figures are far \
             too low; choose another with --generator",
            sharing.join(", "),
            dut.program
        )
    };
    ProgramInfo {
        name: dut.program.to_string(),
        ends: format!("{}-{}", group.ends[0], group.ends[1]),
        version: dut.version.clone(),
        commands: dut.commands.clone(),
        agreements: dut.ends.agreements(),
        warnings: (!sharing.is_empty()).then(warning).into_iter().chain(port_warnings(dut, group, plan)).collect(),
        ports: Vec::new(),
    }
}

/// What is wrong with where the ports are.
fn port_warnings(dut: &Dut, group: &Group, plan: &Plan) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(ports) = dut.ends.ports() else { return warnings };
    for port in ports.info() {
        let is_elsewhere = |cpu: &&usize| {
            let node = machine::numa_node(**cpu);
            port.numa_node.zip(node).is_some_and(|(port, cpu)| port != cpu)
        };
        let elsewhere: Vec<_> = plan.cpus.generators.iter().filter(is_elsewhere).map(ToString::to_string).collect();
        if !elsewhere.is_empty() {
            let (device, cpus) = (&port.device, elsewhere.join(", "));
            warnings.push(format!(
                "port {device} is on another NUMA node than CPU {cpus} of the generator: choose others with --generator"
            ));
        }
    }
    let [near, far] = ports.info().each_ref().map(|port| port.line().map(|line| line / 1e9));
    if let (Some(near), Some(far)) = (near, far)
        && (near - far).abs() > f64::EPSILON
    {
        warnings.push(format!("one port has {near} Gbit/s and the other {far}: line rate is that of the slower one"));
    }
    let is_physical = ports.info().iter().any(|port| !is_software(&port.device));
    if is_physical && group.ports.as_ref().is_some_and(|ports| !ports.dpdk.hugepages) {
        let text = "DPDK's memory is not in hugepages, since not enough of them are free: `ferrule bench doctor` says how many";
        warnings.push(text.to_owned());
    }
    warnings
}

/// One case.
struct CaseRun<'a> {
    plan: &'a Plan,
    case: &'a Case,
    line: Option<f64>,
    cancel: &'a AtomicBool,
    progress: &'a mut Progress,
    notes: &'a mut Vec<String>,
}

impl CaseRun<'_> {
    fn measure(&mut self, programs: &[Program], duts: &mut [Option<Dut>]) -> Result<Vec<ProgramResult>, BenchError> {
        let entry = |program: &Program| ProgramResult { program: program.to_string(), rounds: Vec::new() };
        let mut entries: Vec<_> = programs.iter().map(entry).collect();
        self.verify(duts)?;
        // The first round warms caches and page tables, and is not counted. A search warms up in its first trials.
        let first = u32::from(self.plan.method.is_search());
        for round in first..=self.plan.rounds {
            let before = self.round(round, duts, &mut entries)?;
            if round == 0 {
                for entry in &mut entries {
                    entry.rounds.clear();
                }
            }
            // What was expected and not needed is done too.
            self.progress.step(before);
        }
        entries.retain(|entry| !entry.rounds.is_empty());
        Ok(entries)
    }

    /// Has each program show first that frames arrive as they were sent, every byte of them and in their order: later they
    /// are only counted, or looked at in part. One that fails is not measured.
    fn verify(&mut self, duts: &mut [Option<Dut>]) -> Result<(), BenchError> {
        let trial = Trial { pace: Pace::Saturate, stop: Stop::After(VERIFY_TRIAL), latency: false };
        for (number, place) in duts.iter_mut().enumerate() {
            let Some(dut) = place else { continue };
            let outcome = turn(self.plan, self.case, &trial, Touch::Verified, dut, self.cancel);
            let error = match outcome {
                Ok(TrialResult { disorder: 0, .. }) => continue,
                Ok(TrialResult { disorder: frames, .. }) => {
                    let (program, case) = (dut.program.to_string(), self.case.name.clone());
                    BenchError::Disorder { program, frames, case }
                }
                Err(error) => error,
            };
            // Without ours there is nothing to compare.
            if number == 0 || self.cancel.load(Relaxed) {
                return Err(error);
            }
            note(self.progress, self.notes, &error);
            *place = None;
        }
        Ok(())
    }

    /// Leads a method to its end with each program: trial by trial in turn. How many trials were expected and not made.
    fn round(
        &mut self,
        round: u32,
        duts: &mut [Option<Dut>],
        entries: &mut [ProgramResult],
    ) -> Result<f64, BenchError> {
        let mut methods: Vec<_> = duts.iter().map(|_| self.plan.new_method(self.case, self.line)).collect();
        let mut expected = (methods.len() * methods.first().map_or(0, Method::trials)) as f64;
        let mut rounds = vec![Round::default(); methods.len()];
        loop {
            let mut busy = false;
            for (number, method) in methods.iter_mut().enumerate() {
                let (Some(dut), Some(trial)) = (&mut duts[number], method.next()) else { continue };
                busy = true;
                self.progress.trial(&format!(
                    "{}: {}, round {round} of {}, trial {}",
                    self.case.name,
                    dut.program,
                    self.plan.rounds,
                    rounds[number].trials.len() + 1
                ));
                match turn(self.plan, self.case, &trial, self.plan.touch, dut, self.cancel) {
                    Ok(tried) => {
                        method.feed(tried.seen);
                        rounds[number].trials.push(tried);
                    }
                    Err(_) if self.cancel.load(Relaxed) => return Err(BenchError::Interrupted),
                    Err(error) if number == 0 => return Err(error),
                    Err(error) => {
                        note(self.progress, self.notes, &error);
                        duts[number] = None;
                    }
                }
                let step = expected.min(1.0);
                expected -= step;
                self.progress.step(step);
            }
            if !busy {
                break;
            }
        }
        for (number, (method, mut round)) in methods.into_iter().zip(rounds).enumerate() {
            if duts[number].is_some() {
                round.figures = method.figures();
                entries[number].rounds.push(round);
            }
        }
        Ok(expected)
    }
}

/// One trial of one program.
fn turn(
    plan: &Plan,
    case: &Case,
    trial: &Trial,
    touch: Touch,
    dut: &mut Dut,
    cancel: &AtomicBool,
) -> Result<TrialResult, BenchError> {
    let load = Load {
        mix: case.mix.clone(),
        flows: plan.flows,
        addresses: dut.ends.addresses(case.reverse, plan.macs),
        both_ways: case.both_ways,
        touch,
        pace: match trial.pace {
            Pace::PerSecond(rate) => Pace::PerSecond(rate / case.directions()),
            other => other,
        },
        stop: trial.stop,
        warm_up: plan.warm_up,
        latency: trial.latency,
    };
    let (before, started) = (dut.cpu_time(), Instant::now());
    dut.resume()?;
    let missed = |dut: &Dut| dut.ends.ports().map_or(0, PortPair::missed);
    let missed_before = missed(dut);
    let outcome = dut.ends.run(&load, case.reverse, &plan.cpus.generators, cancel);
    dut.pause()?;
    let took = started.elapsed();
    let run = outcome.map_err(|source| BenchError::Run { program: dut.program.to_string(), source })?;
    // One way alone is no figure of both.
    if run.moved == 0 || run.has_dead_direction {
        return Err(BenchError::NoFrames { program: dut.program.to_string(), case: case.name.clone() });
    }
    let busy = dut.cpu_time().zip(before).map(|(after, before)| after.saturating_sub(before));
    let arrived = run.outcomes().map(Outcome::frames_per_second).sum::<f64>();
    let sum = |of: &dyn Fn(&Outcome) -> u64| run.outcomes().map(of).sum::<u64>();
    let offered = sum(&Outcome::offered) as f64;
    let skipped = sum(&|outcome| outcome.skipped) as f64;
    let disorder = |outcome: &Outcome| {
        let tally = &outcome.received;
        tally.reordered + tally.duplicated + tally.corrupt
    };
    Ok(TrialResult {
        wanted: match trial.pace {
            Pace::PerSecond(rate) => Some(rate),
            Pace::Saturate | Pace::BackToBack => None,
        },
        seen: Measurement {
            offered: run.outcomes().map(Outcome::offered_per_second).sum(),
            arrived,
            loss: if offered > 0.0 { sum(&Outcome::lost) as f64 / offered } else { 0.0 },
        },
        skipped: if skipped > 0.0 { skipped / (skipped + offered) } else { 0.0 },
        idle: run.idle,
        // Of all the time of the turn, so that a wait for lost frames, in which a program polls on, counts for nothing.
        cycles: busy.map(|busy| busy.div_duration_f64(took) * ticks::per_second() / arrived),
        disorder: sum(&disorder),
        missed: missed(dut).saturating_sub(missed_before),
        latency: run.outcomes().filter_map(|outcome| outcome.latency.as_ref()).fold(None, |sum, latency| {
            let mut sum: Latency = sum.unwrap_or_default();
            sum.add(latency);
            Some(sum)
        }),
    })
}

/// How long every byte is looked at before a case.
const VERIFY_TRIAL: Duration = Duration::from_millis(20);
/// One look at whether frames come through.
const SETTLE_TRIAL: Duration = Duration::from_millis(20);
/// Open vSwitch looks at its ports once a second or so.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
