//! Which CPUs the chain and the generator may use.

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// One way to place them.
pub struct Placement {
    /// As tables say it.
    pub words: String,
    /// The CPUs of the chain.
    pub chain: Vec<usize>,
    generator: Vec<usize>,
}

impl Placement {
    /// Apart, and together.
    pub fn both() -> Result<[Self; 2]> {
        let set = sched_getaffinity(Pid::from_raw(0))?;
        let all: Vec<_> = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect();
        ensure!(all.len() > 1, "the generator needs a CPU beside the one of the chain");
        let (first, last) = (all[0], all[all.len() - 1]);
        let apart = Self {
            words: format!("The chain on CPU {first}, the generator on CPU {last}"),
            chain: vec![first],
            generator: vec![last],
        };
        let words = format!("Chain and generator on CPUs {all:?}");
        Ok([apart, Self { words, chain: all.clone(), generator: all }])
    }

    /// Does something where the chain is; threads and processes that it starts stay there.
    pub fn as_chain<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        on(&self.chain, work)
    }

    /// Does something where the generator is.
    pub fn as_generator<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        on(&self.generator, work)
    }
}

fn on<T>(cpus: &[usize], work: impl FnOnce() -> T) -> Result<T> {
    let here = Pid::from_raw(0);
    let before = sched_getaffinity(here)?;
    let mut only = CpuSet::new();
    cpus.iter().try_for_each(|&cpu| only.set(cpu))?;
    sched_setaffinity(here, &only)?;
    let done = work();
    sched_setaffinity(here, &before)?;
    Ok(done)
}
