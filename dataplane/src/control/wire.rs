//! A wire as control sees it: what was asked for, and how far it has come.

use std::sync::Arc;
use std::time::Instant;

use ferrule_ffi::memory_budget::MemoryBudget;

use super::device::{DeviceCounters, DeviceEnd};
use super::end::{End, EndKind};
use super::inbox::Reply;
use super::jobs::{ReapAccount, Ticket};
use super::log_limit::LogLimit;
use super::snapshot::{KernelCounters, WireCell, WireState};
use crate::capture::Capture;
use crate::counters::LinkCounters;
use crate::engine::{Applied, EngineError};
use crate::lane::{Lane, collect};
use crate::port::any::LaneEnd;
use crate::port::kernel::VethPair;
use crate::port::memif::layout::NoLoan;
use crate::port::memif::peer::MemifPeer;
use crate::spec::{Attachment, EndSpec, WireSpec};
use crate::status::{Crossing, EndState, Traffic};
use crate::worker::LaneId;

/// A wire, from the moment that somebody asks for it until all of it is gone.
pub struct Wire {
    /// What was asked for.
    pub spec: Arc<WireSpec>,
    /// How often that has changed.
    pub generation: u64,
    /// What lanes count, over all lanes, reconnects and re-makes.
    pub counters: Arc<[LinkCounters; 2]>,
    /// What the kernel counted before the wire was made again.
    pub carried: [Traffic; 2],
    /// What the memory of each end's peers, one after the other, may cost us.
    pub budgets: [Arc<MemoryBudget>; 2],
    /// What reapers have not dropped yet of each end's peers, one after the other.
    pub reaping: [ReapAccount; 2],
    /// What the devices of each end counted before the wire was made again.
    pub device_counters: [DeviceCounters; 2],
    /// How far it has come.
    pub body: Body,
    /// All of it has been there, this time or before.
    pub was_made: bool,
    /// Somebody waits for it to be made.
    pub waiting: Vec<Reply<Result<Applied, EngineError>>>,
    /// It is being removed.
    pub removal: Option<Removal>,
    /// Jobs that close what it had made.
    pub closing: usize,
    /// What readers see.
    pub cell: Option<Arc<WireCell>>,
    /// Whether frames could cross when that was last told.
    pub was_up: bool,
    /// What lanes had counted when it was last looked at.
    pub last_seen: [Traffic; 2],
    /// Whether each direction stood still then.
    pub is_stalled: [bool; 2],
    /// What is said of it in the log.
    pub log_limit: LogLimit,
    /// Where copies of its frames go, if somebody looks at them.
    pub capture: Option<Arc<Capture>>,
}

/// How far a wire has come.
#[expect(clippy::large_enum_variant, reason = "there is one for each wire, and each becomes the largest of them")]
pub enum Body {
    /// Parts of it are being made.
    Making(Making),
    /// The kernel carries its frames.
    Kernel(KernelWire),
    /// Workers carry its frames.
    Workers(Box<WorkerWire>),
    /// Nothing is left but what is being closed.
    Closed,
}

/// A wire that is being made.
pub struct Making {
    /// The ends that are there.
    pub ends: [Option<End>; 2],
    /// The pair that is there.
    pub pair: Option<VethPair>,
    /// Parts that are not.
    pub outstanding: usize,
    /// Their jobs.
    pub tickets: Vec<Ticket>,
    /// The answer when all are there.
    pub outcome: Applied,
}

/// A wire between two kernel interfaces.
pub struct KernelWire {
    /// The interfaces.
    pub pair: Arc<VethPair>,
    /// What they counted.
    pub counters: KernelCounters,
    /// Why each end is gone, if it is.
    pub gone: [Option<String>; 2],
}

/// A wire that is being removed.
#[derive(Default)]
pub struct Removal {
    /// Who waits for that.
    pub replies: Vec<Reply<Result<(), EngineError>>>,
    /// Why it could not be made, if that is the reason.
    pub failure: Option<EngineError>,
    /// What is made in its place.
    pub next: Option<Replacement>,
}

/// What is made in place of a wire.
pub struct Replacement {
    /// What it should be.
    pub spec: WireSpec,
    /// Who waits for it.
    pub replies: Vec<Reply<Result<Applied, EngineError>>>,
    /// Whether it is the same wire, whose counters go on.
    pub same: bool,
}

/// Two ends that workers join whenever both are there.
pub struct WorkerWire {
    /// The lanes that workers have, hand back or have no room for, by their number. They are dropped before the ends.
    pub lanes: Vec<LanePlace>,
    /// In the order of the specification.
    pub ends: [End; 2],
    /// Why the memory of one end is not lent to the other, if it should be.
    pub no_loan: Option<NoLoan>,
    /// Why some lanes cannot be served.
    pub problem: Option<String>,
    /// Both ends are there, as devices are told.
    pub is_joined: bool,
}

/// Where a lane is.
pub enum LanePlace {
    /// With this worker, under this number.
    Served(usize, LaneId),
    /// Nowhere: no worker could take it.
    Unserved(Box<Lane>),
    /// Back from a worker, to be taken apart with the others.
    Back(Box<Lane>),
    /// Gone with a worker that has panicked.
    Lost,
}

impl Wire {
    /// A wire that nothing was made of yet.
    pub fn new(spec: WireSpec, outcome: Applied) -> Self {
        let making = Making::nothing(outcome);
        let budgets = spec.ends.each_ref().map(|end| MemoryBudget::new(end.memory_limit()));
        Self {
            spec: Arc::new(spec),
            generation: 1,
            budgets,
            reaping: <_>::default(),
            counters: Arc::default(),
            carried: <_>::default(),
            device_counters: <_>::default(),
            body: Body::Making(making),
            was_made: false,
            waiting: Vec::new(),
            removal: None,
            closing: 0,
            cell: None,
            was_up: false,
            last_seen: <_>::default(),
            is_stalled: [false; 2],
            log_limit: LogLimit::default(),
            capture: None,
        }
    }

    /// Goes on where a former wire of this name has ended: with its counters, and with what its peers have cost.
    pub fn go_on(&mut self, former: Self) {
        let Self { spec, generation, counters, carried, budgets, reaping, device_counters, was_made, capture, .. } =
            former;
        for (budget, end) in budgets.iter().zip(&self.spec.ends) {
            budget.set_limit(end.memory_limit());
        }
        self.generation = generation + u64::from(spec != self.spec);
        (self.counters, self.carried, self.budgets, self.reaping) = (counters, carried, budgets, reaping);
        (self.device_counters, self.was_made, self.capture) = (device_counters, was_made, capture);
    }

    /// Its ends, if workers join them.
    pub fn workers(&self) -> Option<&WorkerWire> {
        match &self.body {
            Body::Workers(wire) => Some(wire),
            Body::Making(_) | Body::Kernel(_) | Body::Closed => None,
        }
    }

    /// The same, to change them.
    pub fn workers_mut(&mut self) -> Option<&mut WorkerWire> {
        match &mut self.body {
            Body::Workers(wire) => Some(wire),
            Body::Making(_) | Body::Kernel(_) | Body::Closed => None,
        }
    }

    /// The device of one of its ends, if that is one and workers join it.
    pub(super) fn device_mut(&mut self, end: usize) -> Option<&mut DeviceEnd> {
        match &mut self.workers_mut()?.ends[end].kind {
            EndKind::Device(device) => Some(device),
            EndKind::Server(_) | EndKind::Client(_) => None,
        }
    }

    /// Whether the log is to tell now why an end is away: it has not told that yet, and not too much else. If so: how many
    /// lines were not said since the last one.
    pub fn allow_line(&mut self, end: usize, reason: &str) -> Option<u64> {
        let logged = match &mut self.body {
            Body::Workers(wire) => &mut wire.ends[end].logged,
            Body::Making(_) | Body::Kernel(_) | Body::Closed => return None,
        };
        if logged.as_deref() == Some(reason) {
            return None;
        }
        let suppressed = self.log_limit.allow(Instant::now())?;
        *logged = Some(reason.to_owned());
        Some(suppressed)
    }

    /// The queues that are joined now.
    pub fn queues(&self) -> usize {
        match &self.body {
            Body::Kernel(wire) => usize::from(wire.gone.iter().all(Option::is_none)),
            Body::Workers(wire) => wire.served().count(),
            Body::Making(_) | Body::Closed => 0,
        }
    }

    /// Whether an end is gone and cannot come back by itself.
    pub fn is_failed(&self) -> bool {
        match &self.body {
            Body::Kernel(wire) => wire.gone.iter().any(Option::is_some),
            Body::Workers(wire) => wire.ends.iter().any(End::is_failed),
            Body::Making(_) | Body::Closed => false,
        }
    }

    /// Whether a device is gone whose other end has a peer to keep.
    pub fn has_failed_device(&self) -> bool {
        self.workers().is_some() && self.is_failed()
    }

    /// Whether there is something to be looked at from time to time.
    pub fn has_device(&self) -> bool {
        self.spec.ends.iter().any(|end| matches!(end.attachment(), Attachment::Device(_)))
    }

    /// Whether there is a device to be looked at that may take its time to answer.
    pub fn has_slow_device(&self) -> bool {
        let is_slow =
            |end: &EndSpec| matches!(end.attachment(), Attachment::Device(device) if !device.is_made_by_kernel());
        self.spec.ends.iter().any(is_slow)
    }

    /// All that has crossed and that no counter of lanes will count again.
    pub fn counted_by_kernel(&self) -> [Traffic; 2] {
        match &self.body {
            Body::Kernel(wire) => [0, 1].map(|from| self.carried[from] + wire.counters.directions[from]),
            Body::Making(_) | Body::Workers(_) | Body::Closed => self.carried,
        }
    }

    /// What readers see of it.
    pub fn state(&self) -> WireState {
        let (ends, kernel) = match &self.body {
            _ if self.removal.is_some() => ([EndState::Removing, EndState::Removing], None),
            Body::Making(_) => ([EndState::Making, EndState::Making], None),
            Body::Closed => ([EndState::Removing, EndState::Removing], None),
            Body::Kernel(wire) => {
                (wire.gone.each_ref().map(|gone| interface_state(gone.as_ref())), Some(wire.counters))
            }
            Body::Workers(wire) => (wire.ends.each_ref().map(End::state), None),
        };
        WireState {
            spec: Arc::clone(&self.spec),
            generation: self.generation,
            ends,
            devices: [0, 1].map(|end| self.workers()?.ends[end].as_device().map(DeviceEnd::status)),
            crossing: self.crossing(),
            queues: self.queues(),
            problem: self.workers().and_then(|wire| wire.problem.clone()),
            carried: if kernel.is_some() { self.carried } else { self.counted_by_kernel() },
            kernel,
        }
    }

    fn crossing(&self) -> Crossing {
        let (Some(borrower), Some(wire)) = (self.spec.borrower(), self.workers()) else { return Crossing::Copied };
        match &wire.no_loan {
            Some(reason) => Crossing::CopiedThough { reason: reason.to_string() },
            None if wire.ends[borrower].memif().is_some_and(MemifPeer::is_lent) => Crossing::Switched,
            None => Crossing::Copied,
        }
    }
}

fn interface_state(gone: Option<&String>) -> EndState {
    match gone {
        None => EndState::Up,
        Some(reason) => EndState::Failed { reason: reason.clone() },
    }
}

impl Making {
    /// Nothing, and nothing is waited for.
    pub fn nothing(outcome: Applied) -> Self {
        Self { ends: [None, None], pair: None, outstanding: 0, tickets: Vec::new(), outcome }
    }

    /// Waits for one more part, which a job makes.
    pub fn await_job(&mut self, ticket: Ticket) {
        self.outstanding += 1;
        self.tickets.push(ticket);
    }

    /// Cancels jobs that have not begun; the others are waited for.
    pub fn cancel(&mut self) {
        let cancelled = self.tickets.drain(..).filter(Ticket::cancel).count();
        self.outstanding -= cancelled;
    }
}

impl WorkerWire {
    /// Two ends that nothing joins yet.
    pub fn new(ends: [End; 2]) -> Self {
        Self { lanes: Vec::new(), ends, no_loan: None, problem: None, is_joined: false }
    }

    /// Takes the rings of both ends, if they are there, nobody wants to change them, and no lane is out.
    pub fn take_rings(&mut self) -> Option<[LaneEnd; 2]> {
        if !self.lanes.is_empty() || self.ends.iter().any(|end| end.rings.is_none() || end.has_request()) {
            return None;
        }
        let [a, b] = &mut self.ends;
        a.rings.take().zip(b.rings.take()).map(|(a, b)| [a, b])
    }

    /// Notes that lane `number` came back. `true`: no lane is out any more.
    pub fn lane_back(&mut self, number: usize, lane: Box<Lane>) -> bool {
        self.lanes[number] = LanePlace::Back(lane);
        self.reunite()
    }

    /// Once no worker has a lane, puts the rings of the peers that are still there together again.
    /// `true`: no lane is out any more.
    pub fn reunite(&mut self) -> bool {
        if self.served().next().is_some() {
            return false;
        }
        if self.lanes.is_empty() {
            return true;
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let mut is_lost = false;
        for place in self.lanes.drain(..) {
            match place {
                LanePlace::Back(lane) | LanePlace::Unserved(lane) => {
                    let [a, b] = lane.ends;
                    first.push(a);
                    second.push(b);
                }
                LanePlace::Served(..) => {}
                LanePlace::Lost => is_lost = true,
            }
        }
        for (end, halves) in self.ends.iter_mut().zip([first, second]) {
            let mut rings = collect(halves);
            // A peer that came meanwhile has brought rings of its own.
            if end.present && end.rings.is_none() && !is_lost {
                if let Some(frontend) = end.frontend() {
                    // An exchange may have missed them on their way.
                    frontend.session.renew_eventfds(&mut rings);
                }
                end.rings = Some(rings);
            } else {
                end.stale.push(rings);
            }
        }
        if !is_lost {
            self.problem = None;
        }
        true
    }

    /// Where the lanes are that workers have.
    pub fn served(&self) -> impl Iterator<Item = (usize, LaneId)> {
        self.lanes.iter().filter_map(|place| match place {
            LanePlace::Served(worker, id) => Some((*worker, *id)),
            LanePlace::Unserved(_) | LanePlace::Back(_) | LanePlace::Lost => None,
        })
    }

    /// Whether a lane waits for a worker, and none was asked back.
    pub fn has_unserved(&self) -> bool {
        let mut unserved = false;
        for place in &self.lanes {
            match place {
                LanePlace::Back(_) => return false,
                LanePlace::Unserved(_) => unserved = true,
                LanePlace::Served(..) | LanePlace::Lost => {}
            }
        }
        unserved
    }
}
