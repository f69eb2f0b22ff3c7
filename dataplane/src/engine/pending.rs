//! Answers of the engine that somebody waits for.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::EngineError;
use crate::control::health::{Health, HealthCell};

/// What was asked for and is not answered yet. Dropping it takes nothing back.
pub struct Pending<T> {
    pub(super) answer: Receiver<Result<T, EngineError>>,
    /// The wire.
    pub(super) name: String,
    /// What is true when the answer takes too long.
    pub(super) late: fn(String) -> EngineError,
    pub(super) health: HealthCell,
}

impl<T> Pending<T> {
    /// The answer, if it comes within `limit`. It comes once.
    pub fn poll(&self, limit: Duration) -> Option<Result<T, EngineError>> {
        match self.answer.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(ended(self.health.read()))),
        }
    }

    /// The answer, or, after `limit`, that it is still being worked on.
    pub fn wait(&self, limit: Duration) -> Result<T, EngineError> {
        self.poll(limit).unwrap_or_else(|| Err(self.late()))
    }

    /// That it is still being worked on.
    pub fn late(&self) -> EngineError {
        (self.late)(self.name.clone())
    }
}

/// Why nobody answers.
pub(super) fn ended(health: Health) -> EngineError {
    match health {
        Health::Good => EngineError::Ended("the engine was stopped".to_owned()),
        Health::ThreadDied { thread } => EngineError::Ended(format!("its thread `{thread}` has panicked")),
    }
}
