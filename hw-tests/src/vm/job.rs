//! Programs inside a guest, as the host sees them.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::protocol::{End, FromGuest};

/// A program inside a guest.
///
/// Dropping it leaves it alone: the guest kills it when its timeout is over.
pub struct Job {
    pub(super) number: u32,
    pub(super) jobs: Arc<SharedJobs>,
    pub(super) timeout: Duration,
}

impl Job {
    /// Waits until it has printed a line that contains `text`; returns that line.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        let line = |state: &JobsState| state.job(self.number).and_then(|job| job.line_with(text));
        let done = |state: &JobsState| state.is_over(self.number) || line(state).is_some();
        let state = self.jobs.wait(self.timeout + SLACK, done);
        let Some(line) = line(&state) else {
            bail!("`{text}` was not printed; what was: {}", state.job(self.number).map_or("", |job| &job.text))
        };
        Ok(line)
    }

    /// Waits for its end; returns all that it printed.
    pub fn wait(&self) -> (End, String) {
        let state = self.jobs.wait(self.timeout + SLACK, |state| state.is_over(self.number));
        let (end, text) = state.job(self.number).map_or((None, String::new()), |job| (job.end, job.text.clone()));
        // A guest that says nothing any more hangs as a whole.
        (end.unwrap_or(End::MachineGone), text)
    }

    /// Waits for its end and returns all that it printed. It is an error that it fails.
    pub fn succeed(&self) -> Result<String> {
        match self.wait() {
            (End::Exited(0), text) => Ok(text),
            (end, text) => bail!("{end:?}; it printed:\n{text}"),
        }
    }
}

/// What a guest has told so far, and who waits for more.
#[derive(Default)]
pub(super) struct SharedJobs {
    state: Mutex<JobsState>,
    more: Condvar,
}

#[derive(Default)]
pub(super) struct JobsState {
    /// The guest has booted.
    pub(super) booted: bool,
    /// Its channel is closed.
    pub(super) gone: bool,
    jobs: HashMap<u32, Printed>,
}

#[derive(Default)]
struct Printed {
    text: String,
    end: Option<End>,
}

impl SharedJobs {
    pub(super) fn take(&self, message: FromGuest) {
        let mut state = self.state();
        match message {
            FromGuest::Ready => state.booted = true,
            FromGuest::Line { job, text } => {
                let printed = &mut state.jobs.entry(job).or_default().text;
                printed.push_str(&text);
                printed.push('\n');
            }
            FromGuest::Ended { job, end } => state.jobs.entry(job).or_default().end = Some(end),
        }
        self.more.notify_all();
    }

    pub(super) fn end(&self) {
        self.state().gone = true;
        self.more.notify_all();
    }

    pub(super) fn wait(&self, timeout: Duration, done: impl Fn(&JobsState) -> bool) -> MutexGuard<'_, JobsState> {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if done(&state) || left.is_zero() {
                return state;
            }
            state =
                self.more.wait_timeout(state, left).map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    fn state(&self) -> MutexGuard<'_, JobsState> {
        // It is whole after every step, also if a test panicked while it looked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobsState {
    fn job(&self, number: u32) -> Option<&Printed> {
        self.jobs.get(&number)
    }

    fn is_over(&self, number: u32) -> bool {
        self.gone || self.job(number).is_some_and(|job| job.end.is_some())
    }
}

impl Printed {
    fn line_with(&self, text: &str) -> Option<String> {
        self.text.lines().find(|line| line.contains(text)).map(str::to_owned)
    }
}

/// What the guest's own clock may be late, and the way of what it says.
const SLACK: Duration = Duration::from_secs(20);
