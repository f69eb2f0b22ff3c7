//! A generator and a sink at the two memif ends of a wire.

use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use ferrule_bench::generator::{self, Outcome};
use ferrule_bench::load::{Load, Mix, Touch};
use ferrule_dataplane::spec::MemifSpec;
use ferrule_endpoints::end::{End, EndSpec};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::DemoError;

/// Both ends, connected.
pub(super) struct Ends {
    generator: End,
    sink: End,
}

impl Ends {
    pub(super) fn open([generator, sink]: &[MemifSpec; 2]) -> Result<Self, DemoError> {
        let open = |spec: &MemifSpec| {
            End::open(&EndSpec::Memif(spec.clone()), TIMEOUT)
                .map_err(|error| DemoError::testbed(format!("connect to memif {}", spec.socket), error))
        };
        Ok(Self { generator: open(generator)?, sink: open(sink)? })
    }

    /// Sends frames of `size` bytes as fast as the wire takes them, on a thread that stays on `cpu`.
    pub(super) fn run(&mut self, size: usize, cpu: usize) -> Result<Outcome, String> {
        let mix = Mix::new([size]).map_err(|error| error.to_string())?;
        let load = Load { touch: Touch::Whole, ..Load::new(mix, TIME) };
        let work = || {
            let mut cpus = CpuSet::new();
            let pinned = cpus.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus));
            pinned.map_err(|errno| format!("pin the generator to CPU {cpu}: {errno}"))?;
            let never = AtomicBool::new(false);
            let run = generator::run(&load, &mut self.generator, &mut self.sink, &never);
            run.map(|run| run.there).map_err(|error| error.to_string())
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

/// What is wrong with a run, if anything.
pub(super) fn problem(size: usize, outcome: &Outcome) -> Option<String> {
    let (sent, tally) = (outcome.sent, &outcome.received);
    if sent == 0 {
        return Some(format!("no frame of {size} B could be sent"));
    }
    (!outcome.is_perfect()).then(|| {
        format!(
            "of {sent} frames of {size} B {} arrived: {} out of order, {} twice, {} damaged, {} of somebody else",
            tally.frames, tally.reordered, tally.duplicated, tally.corrupt, tally.foreign
        )
    })
}

/// The CPUs for the forwarder's worker and for the generator: the first and the last that we may use.
pub(super) fn cpus() -> Result<(usize, usize), DemoError> {
    let failed = |problem: &str| DemoError::testbed("read the CPUs of this process", problem);
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|errno| failed(errno.desc()))?;
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    let ends = (0..CpuSet::count()).find(is_allowed).zip((0..CpuSet::count()).rev().find(is_allowed));
    ends.ok_or_else(|| failed("there is none"))
}

const TIME: Duration = Duration::from_secs(1);
/// How long the forwarder may take to shake hands.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
