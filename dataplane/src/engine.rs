//! The engine: the one object a daemon needs to make wires.

use std::time::Duration;

use thiserror::Error;

use crate::spec::{FieldError, WireSpec};
use crate::status::WireStatus;

/// How to run the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// CPUs of the polling threads, one thread each.
    pub workers: Vec<usize>,
    /// What a worker without work does.
    pub idle: Idle,
}

/// What a worker without work does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Spin, then nap, then sleep until a peer rings.
    #[default]
    Adaptive,
    /// Spin for ever: the lowest latency, a whole CPU.
    Poll,
}

/// Makes, watches and removes wires. Dropping it removes all of them.
pub struct Engine {}

impl Engine {
    /// Starts the workers and the control thread.
    pub fn start(_settings: &Settings) -> Result<Self, EngineError> {
        unimplemented!()
    }

    /// Makes a wire. Returns when its listeners listen and its interfaces exist; a client end may
    /// still be connecting. Blocks for some milliseconds: call it from a thread that may wait.
    pub fn add(&self, _spec: WireSpec) -> Result<(), EngineError> {
        unimplemented!()
    }

    /// Removes a wire and everything it made. Returns when no worker touches it any more. Blocks.
    pub fn remove(&self, _name: &str) -> Result<(), EngineError> {
        unimplemented!()
    }

    /// Every wire, in the order of their names.
    pub fn wires(&self) -> Vec<WireStatus> {
        unimplemented!()
    }

    /// One wire.
    pub fn wire(&self, _name: &str) -> Option<WireStatus> {
        unimplemented!()
    }

    /// Removes every wire, politely: peers are told that the forwarder leaves, and frames already in
    /// flight from a source are moved on as long as they flow and `grace` lasts. Blocks.
    pub fn drain(&self, _grace: Duration) {
        unimplemented!()
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
