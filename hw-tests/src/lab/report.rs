//! What the lab and the node print, and what they leave in a `report.json`.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::scenario::Figure;
use crate::need;

/// What became of all scenarios.
pub struct Report {
    /// The first word of the last line.
    title: &'static str,
    /// Their order.
    names: Vec<&'static str>,
    lines: Vec<Line>,
}

/// What became of one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// Its name.
    pub scenario: String,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took, boots not counted.
    pub seconds: f64,
    /// What it measured.
    pub figures: Vec<Figure>,
}

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// What has to hold holds.
    Passed,
    /// It does not, and what is known about that.
    Failed(String),
    /// It did not, and did when it ran again, alone: what was known about that.
    Unsteady(String),
    /// It could not run here, and why.
    Skipped(String),
}

impl Line {
    /// One that took no time and measured nothing.
    pub fn new(scenario: &str, verdict: Verdict) -> Self {
        Self { scenario: scenario.to_owned(), verdict, seconds: 0.0, figures: Vec::new() }
    }
}

impl Report {
    /// An empty one, for scenarios of these names.
    pub fn new(title: &'static str, names: impl IntoIterator<Item = &'static str>) -> Self {
        Self { title, names: names.into_iter().collect(), lines: Vec::new() }
    }

    /// One in which none could run, and why. Where nothing may be skipped (see `need`), that is a failure.
    pub fn of_none(title: &'static str, names: impl IntoIterator<Item = &'static str>, why: &str) -> Self {
        let verdict = if need::may_skip() { Verdict::Skipped } else { Verdict::Failed };
        let mut report = Self::new(title, names);
        for name in report.names.clone() {
            report.add(Line::new(name, verdict(why.to_owned())));
        }
        report
    }

    /// Adds one, and says so.
    pub fn add(&mut self, line: Line) {
        let (word, more) = match &line.verdict {
            Verdict::Passed => ("ok", ""),
            Verdict::Failed(why) => ("FAILED", why.as_str()),
            Verdict::Unsteady(_) => ("unsteady", "failed above, and passed alone"),
            Verdict::Skipped(why) => ("skipped", why.as_str()),
        };
        println!("{word:>8}  {}  ({:.1} s)", line.scenario, line.seconds);
        for figure in &line.figures {
            println!("{:>10}{}: {:.1} {}", "", figure.name, figure.value, figure.unit);
        }
        for text in more.lines() {
            println!("{:>10}{text}", "");
        }
        self.lines.push(line);
        self.lines.sort_by_key(|line| self.names.iter().position(|name| **name == *line.scenario));
    }

    /// Whether a scenario failed.
    pub fn failed(&self, name: &str) -> bool {
        self.lines.iter().any(|line| line.scenario == name && matches!(line.verdict, Verdict::Failed(_)))
    }

    /// What became of those that ran again: one that passed now is unsteady.
    pub fn again(&mut self, report: Self) {
        for mut line in report.lines {
            let Some(at) = self.lines.iter().position(|before| before.scenario == line.scenario) else { continue };
            let before = self.lines.remove(at);
            if let (Verdict::Failed(why), Verdict::Passed) = (before.verdict, &line.verdict) {
                line.verdict = Verdict::Unsteady(why);
            }
            self.add(line);
        }
    }

    /// How many passed (the unsteady ones among them), failed and were skipped.
    pub fn counts(&self) -> [usize; 3] {
        [
            self.count(|verdict| matches!(verdict, Verdict::Passed | Verdict::Unsteady(_))),
            self.count(|verdict| matches!(verdict, Verdict::Failed(_))),
            self.count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        ]
    }

    fn count(&self, is: fn(&Verdict) -> bool) -> usize {
        self.lines.iter().filter(|line| is(&line.verdict)).count()
    }

    /// Writes the report and prints its last line; returns whether nothing failed.
    ///
    /// Where CI counts (`FERRULE_SUMMARY` names its file), the counts go there too.
    pub fn finish(&self, to: &Path) -> Result<bool> {
        let text = serde_json::to_string_pretty(&self.lines).context("write the report")?;
        fs::write(to, text + "\n").with_context(|| format!("write {}", to.display()))?;
        let [passed, failed, skipped] = self.counts();
        let unsteady = self.count(|verdict| matches!(verdict, Verdict::Unsteady(_)));
        if let Some(summary) = std::env::var_os("FERRULE_SUMMARY") {
            let file = fs::File::options().create(true).append(true).open(&summary);
            let written = file.and_then(|mut file| writeln!(file, "{passed} {failed} {skipped} {unsteady}"));
            written.with_context(|| format!("write {}", summary.display()))?;
        }
        println!("{}: {passed} passed, {failed} failed, {skipped} skipped", self.title);
        Ok(failed == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_failed_and_passes_alone_is_unsteady_and_one_that_fails_again_is_not() {
        let names = ["steady", "unsteady", "broken"];
        let failed = |why: &str| Verdict::Failed(why.to_owned());
        let report = |verdicts: [(&str, Verdict); 2]| {
            let mut report = Report::new("lab", names);
            for (name, verdict) in verdicts {
                report.add(Line::new(name, verdict));
            }
            report
        };
        let mut whole = report([("broken", failed("once")), ("unsteady", failed("once"))]);
        whole.add(Line::new("steady", Verdict::Passed));
        whole.again(report([("broken", failed("twice")), ("unsteady", Verdict::Passed)]));

        let verdicts: Vec<_> = whole.lines.iter().map(|line| (line.scenario.as_str(), line.verdict.clone())).collect();
        let unsteady = Verdict::Unsteady("once".to_owned());
        assert_eq!(verdicts, [("steady", Verdict::Passed), ("unsteady", unsteady), ("broken", failed("twice"))]);
        assert_eq!(whole.counts(), [2, 1, 0]);
    }
}
