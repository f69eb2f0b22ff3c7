//! What readers see: control publishes it, and nobody waits for anybody. Counters of lanes are read live.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use ferrule_ffi::ticks;

use crate::counters::LinkCounters;
use crate::spec::WireSpec;
use crate::status::{Crossing, DeviceStatus, EndState, Traffic, WireStatus, WorkerStatus};

/// All wires and workers, as control last published them.
pub struct Snapshot {
    /// Swapped as a whole when a wire comes or goes.
    pub wires: ArcSwap<WireMap>,
    /// In the order of the settings.
    pub workers: Vec<WorkerCell>,
}

/// The published wires by name.
pub type WireMap = BTreeMap<String, Arc<WireCell>>;

impl Snapshot {
    /// Workers without wires.
    pub fn new(workers: Vec<WorkerCell>) -> Self {
        Self { wires: ArcSwap::default(), workers }
    }

    /// Every wire, in the order of their names.
    pub fn statuses(&self) -> Vec<WireStatus> {
        self.wires.load().values().map(|wire| wire.status()).collect()
    }

    /// One wire.
    pub fn status(&self, name: &str) -> Option<WireStatus> {
        Some(self.wires.load().get(name)?.status())
    }

    /// Whether there is a wire whose counters are the kernel's, and they were read before `since`.
    pub fn is_older_than(&self, since: Instant) -> bool {
        self.wires.load().values().any(|wire| wire.is_older_than(since))
    }

    /// The same of one wire.
    pub fn is_wire_older_than(&self, name: &str, since: Instant) -> bool {
        self.wires.load().get(name).is_some_and(|wire| wire.is_older_than(since))
    }
}

/// One worker.
pub struct WorkerCell {
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// Time spent on moving frames, in ticks: the worker adds to it.
    pub busy: Arc<AtomicU64>,
    /// Lanes that it has: control stores it.
    pub queues: AtomicUsize,
}

impl WorkerCell {
    /// What it is doing.
    pub fn status(&self) -> WorkerStatus {
        let busy = ticks::time(self.busy.load(Ordering::Relaxed));
        WorkerStatus { cpu: self.cpu, queues: self.queues.load(Ordering::Relaxed), busy }
    }
}

/// One wire.
pub struct WireCell {
    state: ArcSwap<WireState>,
    counters: Arc<[LinkCounters; 2]>,
}

/// All of a wire's status but for what is counted live.
pub struct WireState {
    /// What was asked for.
    pub spec: Arc<WireSpec>,
    /// How often the specification has changed.
    pub generation: u64,
    /// Both ends.
    pub ends: [EndState; 2],
    /// What devices say of themselves.
    pub devices: [Option<DeviceStatus>; 2],
    /// How frames cross.
    pub crossing: Crossing,
    /// Queues that are joined.
    pub queues: usize,
    /// Why it is not served although both ends are there.
    pub problem: Option<String>,
    /// What the kernel has counted, if it carries the frames.
    pub kernel: Option<KernelCounters>,
    /// What was counted before the wire was made again.
    pub carried: [Traffic; 2],
}

/// The kernel's counters as they were last read.
#[derive(Clone, Copy)]
pub struct KernelCounters {
    /// When that was.
    pub read: Instant,
    /// What they said. They are kept when they cannot be read.
    pub directions: [Traffic; 2],
}

impl WireCell {
    /// A wire whose lanes count here.
    pub fn new(state: WireState, counters: Arc<[LinkCounters; 2]>) -> Self {
        Self { state: ArcSwap::from_pointee(state), counters }
    }

    /// Publishes another state.
    pub fn publish(&self, state: WireState) {
        self.state.store(Arc::new(state));
    }

    fn is_older_than(&self, since: Instant) -> bool {
        self.state.load().kernel.is_some_and(|kernel| kernel.read < since)
    }

    fn status(&self) -> WireStatus {
        let state = self.state.load();
        let lanes = self.counters.each_ref().map(LinkCounters::read);
        let kernel = state.kernel.map_or_else(Default::default, |kernel| kernel.directions);
        let directions = [0, 1].map(|from| lanes[from] + kernel[from] + state.carried[from]);
        WireStatus {
            spec: (*state.spec).clone(),
            generation: state.generation,
            ends: state.ends.clone(),
            devices: state.devices.clone(),
            directions,
            crossing: state.crossing.clone(),
            queues: state.queues,
            problem: state.problem.clone(),
        }
    }
}
