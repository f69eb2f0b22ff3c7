//! The engine: the one object a daemon needs to make wires.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::control::Control;
use crate::control::state::State;
use crate::control::state::door::DoorError;
use crate::control::wire::{Body, End, Wire};
use crate::port::kernel::{Owner, TapInterface, VethPair};
use crate::settings::Settings;
use crate::spec::{EndSpec, FieldError, MemifSpec, Role, VhostUserSpec, WireSpec};
use crate::status::{WireStatus, WorkerStatus};
use crate::worker::WorkerHandle;

/// Makes, watches and removes wires. Dropping it removes all of them.
pub struct Engine {
    control: Control,
    owner: Arc<Owner>,
}

impl Engine {
    /// Starts the workers and the control thread. Interfaces that it leaves when it is killed are nobody's.
    pub fn start(settings: &Settings) -> Result<Self, EngineError> {
        Self::start_as(settings, Owner::process())
    }

    /// The same for an owner that finds again what it left when it was killed.
    pub fn start_as(settings: &Settings, owner: Owner) -> Result<Self, EngineError> {
        let mut cpus = settings.workers.clone();
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() || cpus.len() != settings.workers.len() {
            let text = "each worker needs a CPU of its own, and at least one is needed";
            return Err(EngineError::Start(text.to_owned()));
        }
        let control = Control::start(settings).map_err(|error| EngineError::Start(error.to_string()))?;
        Ok(Self { control, owner: Arc::new(owner) })
    }

    /// Makes a wire. Returns when its listeners listen and its interfaces exist; a client end may
    /// still be connecting. Blocks for some milliseconds: call it from a thread that may wait.
    pub fn add(&self, spec: WireSpec) -> Result<(), EngineError> {
        let errors = spec.check();
        if !errors.is_empty() {
            return Err(EngineError::Spec { wire: spec.name, errors });
        }
        let name = spec.name.clone();
        self.reserve(&name)?;
        // Interfaces take the kernel milliseconds: they are made while the name is only reserved.
        let made = self.make(spec);
        let mut state = self.control.state();
        state.making.remove(&name);
        state.insert(&name, made?);
        drop(state);
        self.control.wake();
        tracing::info!(wire = name, "made");
        Ok(())
    }

    /// Removes a wire and everything it made. Returns when no worker touches it any more. Blocks.
    pub fn remove(&self, name: &str) -> Result<(), EngineError> {
        if !self.control.state().begin_removal(name, PATIENCE) {
            return Err(EngineError::NoSuchWire(name.to_owned()));
        }
        self.control.wake();
        self.wait_for_removal(&[name.to_owned()], REMOVAL);
        tracing::info!(wire = name, "removed");
        Ok(())
    }

    /// Every wire, in the order of their names.
    pub fn wires(&self) -> Vec<WireStatus> {
        self.control.state().wires.values().map(Wire::status).collect()
    }

    /// Every worker, in the order of [`Settings::workers`].
    pub fn workers(&self) -> Vec<WorkerStatus> {
        self.control.state().workers.iter().map(WorkerHandle::status).collect()
    }

    /// One wire.
    pub fn wire(&self, name: &str) -> Option<WireStatus> {
        self.control.state().wires.get(name).map(Wire::status)
    }

    /// Removes every wire, politely: frames that peers have already published are moved on, for as long as half
    /// of `grace` if their targets are full, and peers are told that the forwarder leaves. Blocks, at most for
    /// `grace`.
    pub fn drain(&self, grace: Duration) {
        self.remove_all(grace / 2, grace);
    }

    fn remove_all(&self, patience: Duration, grace: Duration) {
        let mut state = self.control.state();
        let names: Vec<_> = state.wires.keys().cloned().collect();
        for name in &names {
            state.begin_removal(name, patience);
        }
        drop(state);
        self.control.wake();
        self.wait_for_removal(&names, grace);
    }

    fn wait_for_removal(&self, names: &[String], grace: Duration) {
        let gone = |state: &State| names.iter().all(|name| !state.wires.contains_key(name));
        if !self.control.wait(Instant::now() + grace, gone) {
            tracing::warn!(?names, "wires are still being removed after {grace:?}");
        }
    }

    fn reserve(&self, name: &str) -> Result<(), EngineError> {
        let mut state = self.control.state();
        if state.wires.contains_key(name) || !state.making.insert(name.to_owned()) {
            return Err(EngineError::NameTaken(name.to_owned()));
        }
        Ok(())
    }

    /// Makes everything that a wire needs, or nothing.
    fn make(&self, spec: WireSpec) -> Result<Wire, EngineError> {
        let failed = |end: usize, problem: String| EngineError::End { wire: spec.name.clone(), end, problem };
        if let [EndSpec::Kernel(a), EndSpec::Kernel(b)] = &spec.ends {
            let pair = VethPair::create(&self.owner, &spec.name, [a, b]);
            let pair = pair.map_err(|(end, error)| failed(end, error.to_string()))?;
            return Ok(Wire { spec, counters: Arc::default(), body: Body::Veth(pair) });
        }
        let mut doors = Doors { control: &self.control, open: Vec::new() };
        let mut ends = Vec::with_capacity(2);
        for (number, end) in spec.ends.iter().enumerate() {
            ends.push(match end {
                EndSpec::Kernel(kernel) => {
                    let interface = TapInterface::create(kernel).map_err(|error| failed(number, error.to_string()))?;
                    // The other end is in userspace, where we finish what the kernel leaves undone.
                    let offloads = interface.tap.set_offloads(true);
                    offloads.map_err(|error| {
                        failed(number, format!("let {} leave offloads to us: {error}", kernel.name))
                    })?;
                    End::tap(interface.tap)
                }
                EndSpec::Memif(MemifSpec { role, memory, .. })
                | EndSpec::VhostUser(VhostUserSpec { role, memory, .. }) => {
                    if *role == Role::Client {
                        End::client(*memory)
                    } else {
                        doors.open(&spec.name, number, end).map_err(|error| failed(number, error.to_string()))?;
                        End::server(*memory)
                    }
                }
            });
        }
        let [a, b]: [End; 2] = ends.try_into().ok().expect("one end was made for each of the two");
        doors.open.clear();
        Ok(Wire::joint(spec, [a, b]))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.remove_all(PATIENCE, REMOVAL);
    }
}

/// Doors opened for a wire that is not made yet; closed again if it never is.
struct Doors<'a> {
    control: &'a Control,
    open: Vec<EndSpec>,
}

impl Doors<'_> {
    fn open(&mut self, name: &str, number: usize, end: &EndSpec) -> Result<(), DoorError> {
        self.control.state().open_door(name, number, end)?;
        self.open.push(end.clone());
        Ok(())
    }
}

impl Drop for Doors<'_> {
    fn drop(&mut self) {
        for end in &self.open {
            self.control.state().close_door(end);
        }
    }
}

/// Why the engine could not do what was asked.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The specification contradicts itself.
    #[error("wire `{wire}`: {}", list(.errors))]
    Spec {
        /// The wire's name.
        wire: String,
        /// Everything that is wrong.
        errors: Vec<FieldError>,
    },
    /// There is a wire of that name.
    #[error("wire `{0}` exists already")]
    NameTaken(String),
    /// There is no wire of that name.
    #[error("there is no wire `{0}`")]
    NoSuchWire(String),
    /// Something outside said no: the message names what, where, why and the cure.
    #[error("wire `{wire}`: end {end}: {problem}")]
    End {
        /// The wire's name.
        wire: String,
        /// Which end: 0 or 1.
        end: usize,
        /// What was tried, on what, why not, and what to do.
        problem: String,
    },
    /// The workers could not be started.
    #[error("start the workers: {0}")]
    Start(String),
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// How long frames under way may take to leave a wire that is removed while others stay.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a removal may take: workers confirm within milliseconds.
const REMOVAL: Duration = Duration::from_secs(5);
