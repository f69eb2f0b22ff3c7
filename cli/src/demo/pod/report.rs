//! What came of each step: a table for people, the same as JSON for programs.

use comfy_table::{Cell, Color};
use serde::Serialize;

use crate::demo::DemoError;
use crate::text;
use crate::wires::table::TableStyle;

/// Everything, in the order in which it was done.
#[derive(Debug, Default, Serialize)]
pub(super) struct PodReport {
    passed: bool,
    /// Why there is no more to report.
    problem: Option<String>,
    steps: Vec<Step>,
    #[serde(skip)]
    error: Option<DemoError>,
}

/// A step that was good, or the one that was not.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    passed: bool,
    /// What was seen, or what was wrong.
    seen: String,
}

impl PodReport {
    /// One more step that was good.
    pub(super) fn good(&mut self, name: &'static str, seen: String) {
        self.steps.push(Step { name, passed: true, seen });
    }

    /// It is at its end.
    pub(super) fn end(mut self, result: Result<(), DemoError>) -> Self {
        self.passed = result.is_ok();
        if let Err(error) = result {
            self.problem = Some(error.to_string());
            if let DemoError::Step { step, problem } = &error {
                self.steps.push(Step { name: step, passed: false, seen: problem.clone() });
            }
            self.error = Some(error);
        }
        self
    }

    /// Fails unless every step was good.
    pub(super) fn verdict(self) -> Result<(), DemoError> {
        self.error.map_or(Ok(()), Err)
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("texts and booleans are JSON");
        text + "\n"
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut table = TableStyle::of_stdout().table(&["STEP", "CHECK", "WHAT WAS SEEN"], &[]);
        for step in &self.steps {
            let (word, colour) = if step.passed { ("ok", Color::Green) } else { ("FAILED", Color::Red) };
            let seen: Vec<_> = step.seen.lines().map(text::foreign).collect();
            table.add_row(vec![Cell::new(step.name), Cell::new(word).fg(colour), Cell::new(seen.join("\n"))]);
        }
        let verdict = if self.passed { "all checks passed\n" } else { "" };
        format!("\n{}\n\n{verdict}", table.trim_fmt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_failed_is_the_last_one_and_the_verdict() {
        let mut report = PodReport::default();
        report.good("advertised", "4 endpoints".into());
        let report = report.end(Err(DemoError::Step { step: "ping", problem: "5 sent, 0 answered".into() }));
        let text = report.text();
        assert!(text.contains("ping") && text.contains("FAILED") && !text.contains("all checks passed"), "{text}");
        assert!(report.json().contains("\"problem\": \"ping: 5 sent, 0 answered\""), "{}", report.json());
        assert_eq!(report.verdict().unwrap_err().to_string(), "ping: 5 sent, 0 answered");
        let good = PodReport::default().end(Ok(()));
        assert!(good.text().ends_with("all checks passed\n") && good.verdict().is_ok());
    }
}
