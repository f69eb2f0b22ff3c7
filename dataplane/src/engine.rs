//! The engine: the one object a daemon needs to make wires.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use crate::capture::Capture;
use crate::control::Control;
pub use crate::control::events::{Event, Subscription, WireChange};
pub use crate::control::health::Health;
use crate::control::inbox::{ControlMessage, EngineRequest, Reply};
use crate::port::kernel::InterfaceOwner;
use crate::settings::Settings;
use crate::spec::WireSpec;
use crate::status::{WireStatus, WorkerStatus};

mod answer;
mod pending;

pub use answer::{Applied, EngineError};
pub use pending::Pending;

/// Makes, watches and removes wires. Dropping it removes all of them.
///
/// It can be shared by threads. One that wants something waits for it alone: others are served meanwhile, and readers
/// wait for nobody.
pub struct Engine {
    control: Control,
    drained: AtomicBool,
}

impl Engine {
    /// Starts the workers and the control thread. Interfaces that it leaves when it is killed are nobody's.
    pub fn start(settings: &Settings) -> Result<Self, EngineError> {
        Self::start_as(settings, InterfaceOwner::process())
    }

    /// The same for an owner that finds again what it left when it was killed.
    pub fn start_as(settings: &Settings, owner: InterfaceOwner) -> Result<Self, EngineError> {
        let mut cpus = settings.workers.clone();
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() || cpus.len() != settings.workers.len() {
            let text = "each worker needs a CPU of its own, and at least one is needed";
            return Err(EngineError::Start(text.to_owned()));
        }
        let control =
            Control::start(settings, Arc::new(owner)).map_err(|error| EngineError::Start(error.to_string()))?;
        Ok(Self { control, drained: AtomicBool::new(false) })
    }

    /// Whose its interfaces are.
    pub fn interface_owner(&self) -> &Arc<InterfaceOwner> {
        &self.control.owner
    }

    /// Asks for what [`Self::apply`] does, and does not wait for it. What is asked for later is done later.
    pub fn begin_apply(&self, spec: WireSpec) -> Result<Pending<Applied>, EngineError> {
        let name = spec.name.clone();
        let answer = self.want(spec, false)?;
        Ok(Pending { answer, name, late: EngineError::StillMaking, health: self.control.health.clone() })
    }

    /// Asks for what [`Self::remove`] does, and does not wait for it. Whoever waits for that wire to be made is told at once
    /// that it will not be.
    pub fn begin_remove(&self, name: &str) -> Pending<()> {
        let (name, late) = (name.to_owned(), EngineError::StillRemoving);
        let answer = self.ask(|reply| EngineRequest::Remove { name: name.clone(), timeout: DRAIN_TIMEOUT, reply });
        Pending { answer, name, late, health: self.control.health.clone() }
    }

    /// Makes a wire of which there must be none yet. Returns when its listeners listen and its interfaces exist; a
    /// client end may still be connecting. Blocks for some milliseconds: call it from a thread that may wait.
    pub fn add(&self, spec: WireSpec) -> Result<(), EngineError> {
        self.await_answer(&self.want(spec, true)?)?.map(|_| ())
    }

    /// Makes a wire what `spec` says: a new one, the one that there is, changed, or nothing at all if it is just so.
    /// Blocks as [`Self::add`] does.
    pub fn apply(&self, spec: WireSpec) -> Result<Applied, EngineError> {
        self.await_answer(&self.want(spec, false)?)?
    }

    /// The same for many wires at once, in less time than one after the other. The answers are in their order.
    pub fn apply_all(&self, specs: Vec<WireSpec>) -> Vec<Result<Applied, EngineError>> {
        let answers: Vec<_> = specs.into_iter().map(|spec| self.want(spec, false)).collect();
        answers.into_iter().map(|answer| self.await_answer(&answer?)?).collect()
    }

    /// Removes a wire and everything it made. Returns when no worker touches it any more and its interfaces and sockets
    /// are gone. Blocks. One that is just being made is not made.
    pub fn remove(&self, name: &str) -> Result<(), EngineError> {
        self.begin_remove(name).wait(REMOVAL_TIMEOUT)
    }

    /// Every wire, in the order of their names.
    pub fn wires(&self) -> Vec<WireStatus> {
        let is_older = |fresh| self.control.snapshot.is_older_than(fresh);
        self.refresh_kernel_counters(is_older, |reply| EngineRequest::Look { reply });
        self.control.snapshot.statuses()
    }

    /// Every worker, in the order of [`Settings::workers`].
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.control.snapshot.workers.iter().map(super::control::snapshot::WorkerCell::status).collect()
    }

    /// One wire.
    pub fn wire(&self, name: &str) -> Option<WireStatus> {
        let is_older = |fresh| self.control.snapshot.is_wire_older_than(name, fresh);
        self.refresh_kernel_counters(is_older, |reply| EngineRequest::LookAt { name: name.to_owned(), reply });
        self.control.snapshot.status(name)
    }

    /// Captures the frames of a wire from now on, also when its peers come and go and it is made anew; or does not any more. It says at once
    /// that a wire is none whose frames it sees. Whoever reads the capture keeps it until nobody else has it: workers free no memory.
    pub fn trace(&self, name: &str, capture: Option<Arc<Capture>>) -> Result<(), EngineError> {
        let answer = self.ask(|reply| EngineRequest::Trace { name: name.to_owned(), capture, reply });
        self.await_answer(&answer)?
    }

    /// What happens to wires from now on. A subscriber that has not received `capacity` events loses further ones, and
    /// is told how many. What happened before is in what readers see by then. Blocks for a moment.
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        let (subscription, subscriber) = Subscription::new(capacity);
        // Without control there is nothing to be told, and the stream ends at once.
        let _ = self.ask(|reply| EngineRequest::Subscribe { subscriber, reply }).recv();
        subscription
    }

    /// Whether all threads are there. If not, the engine is of no use any more.
    pub fn health(&self) -> Health {
        self.control.health.read()
    }

    /// Removes every wire, politely, and makes no more: frames that peers have already published are moved on, for as
    /// long as half of `grace` if their targets are full, and peers are told that the forwarder leaves. Blocks, at most
    /// for `grace`; whoever waits for a wire to be made is told at once that it will not be.
    pub fn drain(&self, grace: Duration) {
        self.drained.store(true, Ordering::Relaxed);
        self.remove_all(grace / 2, grace);
    }

    fn remove_all(&self, timeout: Duration, grace: Duration) {
        let answer = self.ask(|reply| EngineRequest::Drain { timeout, reply });
        if answer.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
            let wires: Vec<_> = self.control.snapshot.wires.load().keys().cloned().collect();
            tracing::warn!(?wires, "wires are still being removed after {grace:?}");
        }
    }

    fn want(&self, spec: WireSpec, must_be_new: bool) -> Result<Receiver<Result<Applied, EngineError>>, EngineError> {
        let errors = spec.check();
        if !errors.is_empty() {
            return Err(EngineError::Spec { wire: spec.name, errors });
        }
        Ok(self.ask(|reply| EngineRequest::Apply { spec: Box::new(spec), must_be_new, reply }))
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> EngineRequest) -> Receiver<T> {
        let (reply, answer) = sync_channel(1);
        self.control.inbox.post(ControlMessage::Request(request(reply)));
        answer
    }

    fn await_answer<T>(&self, answer: &Receiver<T>) -> Result<T, EngineError> {
        answer.recv().map_err(|_| self.ended())
    }

    fn ended(&self) -> EngineError {
        pending::ended(self.health())
    }

    /// Counters of kernel interfaces are read when somebody wants to see them. While the kernel is busy with interfaces
    /// that takes long, and those that are known have to do.
    fn refresh_kernel_counters(
        &self,
        is_older_than: impl FnOnce(Instant) -> bool,
        look: impl FnOnce(Reply<()>) -> EngineRequest,
    ) {
        if Instant::now().checked_sub(COUNTERS_FRESH).is_some_and(is_older_than) {
            let _ = self.ask(look).recv_timeout(COUNTERS_WAIT);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.drained.load(Ordering::Relaxed) {
            self.remove_all(DRAIN_TIMEOUT, REMOVAL_TIMEOUT);
        }
    }
}

/// How long frames under way may take to leave a wire that is removed while others stay.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_millis(20);
/// How long a removal may take: workers confirm within milliseconds.
pub const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Counters of kernel interfaces that are not older are shown as they are.
const COUNTERS_FRESH: Duration = Duration::from_millis(20);
/// How long a reader waits for newer ones.
const COUNTERS_WAIT: Duration = Duration::from_millis(50);
