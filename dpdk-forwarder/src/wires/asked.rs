//! What the engine was asked for, and its answers awaited.

use std::time::{Duration, Instant};

use ferrule_dataplane::engine::{Applied, Pending};
use ferrule_dataplane::spec::WireSpec;
use ferrule_dataplane::{Engine, EngineError};

use super::Origin;
use super::entries::Change;

/// A wire that somebody wants, as it was noted.
#[derive(Clone)]
pub(super) struct Wanted {
    pub spec: WireSpec,
    pub origin: Origin,
    pub change: Change,
}

/// A wire that the engine was asked for.
pub(super) struct Asked {
    pub wanted: Wanted,
    /// An error: the engine does not even try.
    answer: Result<Pending<Applied>, EngineError>,
}

impl Asked {
    /// Asks the engine.
    pub fn of(engine: &Engine, wanted: Wanted) -> Self {
        let answer = engine.begin_apply(wanted.spec.clone());
        Self { wanted, answer }
    }

    /// The same once more.
    pub fn again(&self, engine: &Engine) -> Self {
        Self::of(engine, self.wanted.clone())
    }

    /// The engine's answer; `None`: it has none yet.
    pub fn poll(&self, limit: Duration) -> Option<Result<Applied, EngineError>> {
        match &self.answer {
            Ok(pending) => pending.poll(limit),
            Err(error) => Some(Err(error.clone())),
        }
    }

    fn late(&self) -> EngineError {
        match &self.answer {
            Ok(pending) => pending.late(),
            Err(error) => error.clone(),
        }
    }
}

/// The answers, in their order. As long as one comes within `timeout` after the one before, the others are waited for: the
/// kernel makes interfaces one after the other.
pub(super) fn await_answers(asked: &[Asked], timeout: Duration) -> Vec<Result<Applied, EngineError>> {
    let mut answers: Vec<_> = asked.iter().map(|_| None).collect();
    let mut progress = Instant::now();
    while progress.elapsed() < timeout && answers.iter().any(Option::is_none) {
        let mut limit = POLL;
        for (asked, answer) in asked.iter().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
            *answer = asked.poll(limit);
            match answer {
                Some(_) => progress = Instant::now(),
                // It had its time; the others are only looked at.
                None => limit = Duration::ZERO,
            }
        }
    }
    asked.iter().zip(answers).map(|(asked, answer)| answer.unwrap_or_else(|| Err(asked.late()))).collect()
}

/// How long one answer is waited for before the others are looked at.
const POLL: Duration = Duration::from_millis(100);
