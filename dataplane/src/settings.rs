//! How an engine runs its workers.

use std::fmt;
use std::io;
use std::sync::Arc;

/// How to run the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// CPUs of the polling threads, one thread each.
    pub workers: Vec<usize>,
    /// What a worker without work does.
    pub idle: Idle,
    /// What each worker does first.
    pub worker_start: Option<WorkerHook>,
}

impl Settings {
    /// Workers on these CPUs, which sleep when they have nothing to do.
    pub fn new(workers: Vec<usize>) -> Self {
        Self { workers, idle: Idle::default(), worker_start: None }
    }
}

/// What a worker without work does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Spin, then nap, then sleep until a peer notifies.
    #[default]
    Adaptive,
    /// Spin for ever: the lowest latency, a whole CPU.
    Poll,
}

/// Called on the thread of each worker when it is pinned and before it has a lane, with the worker's number: a library
/// whose calls must come from threads that it knows (DPDK) registers the thread there.
#[derive(Clone)]
pub struct WorkerHook(Arc<Hook>);

type Hook = dyn Fn(usize) -> io::Result<()> + Send + Sync;

impl WorkerHook {
    /// A worker whose hook fails does not start, and neither does its engine.
    pub fn new(hook: impl Fn(usize) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(crate) fn run(&self, worker: usize) -> io::Result<()> {
        (self.0)(worker)
    }
}

impl fmt::Debug for WorkerHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerHook(..)")
    }
}

impl PartialEq for WorkerHook {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for WorkerHook {}
