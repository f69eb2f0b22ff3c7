//! What is being done, and how long it will still take, on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Tells a person at a terminal about each trial, and a log about each case.
pub struct Progress {
    started: Instant,
    terminal: bool,
    /// Of all that there is to do, in trials.
    expected: f64,
    done: f64,
    shown: Option<Instant>,
}

impl Progress {
    /// So many trials are expected.
    pub fn new(expected: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { started: Instant::now(), terminal, expected: expected.max(1) as f64, done: 0.0, shown: None }
    }

    /// Says a line that stays.
    pub fn say(&mut self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}{text}");
        self.shown = None;
    }

    /// Begins a case.
    pub fn case(&mut self, name: &str) {
        let left = self.left();
        self.say(&format!("measuring {name}{left}"));
    }

    /// Begins a trial.
    pub fn trial(&mut self, what: &str) {
        if !self.terminal || self.shown.is_some_and(|shown| shown.elapsed() < REFRESH) {
            return;
        }
        self.shown = Some(Instant::now());
        let share = (self.done / self.expected * 100.0).min(99.0);
        eprint!("\r\x1b[K  {share:.0} %{}: {what}", self.left());
        let _ = std::io::stderr().flush();
    }

    /// A trial is over; it counts for this many of those that were expected.
    pub fn step(&mut self, trials: f64) {
        self.done += trials;
    }

    /// Leaves the terminal clean.
    pub fn finish(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }

    /// `, 2m 10s left`, once that can be told.
    fn left(&self) -> String {
        if self.done < 3.0 {
            return String::new();
        }
        let left = self.started.elapsed().mul_f64((self.expected / self.done - 1.0).max(0.0));
        format!(", {} left", humantime::format_duration(Duration::from_secs(left.as_secs() + 1)))
    }
}

/// A terminal is not written to more often than this.
const REFRESH: Duration = Duration::from_millis(250);
