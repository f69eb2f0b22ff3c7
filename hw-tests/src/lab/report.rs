//! What the lab prints, and what it leaves in `target/lab/report.json`.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::scenario::{Figure, Scenario};

/// What became of all scenarios.
pub struct Report {
    /// Their order.
    names: Vec<&'static str>,
    lines: Vec<Line>,
}

/// What became of one.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub scenario: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took, boots not counted.
    pub seconds: f64,
    /// What it measured.
    pub figures: Vec<Figure>,
}

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// What has to hold holds.
    Passed,
    /// It does not, and what is known about that.
    Failed(String),
    /// It could not run here, and why.
    Skipped(String),
}

impl Report {
    /// An empty one, for these.
    pub fn new(scenarios: &[&'static Scenario]) -> Self {
        Self { names: scenarios.iter().map(|scenario| scenario.name).collect(), lines: Vec::new() }
    }

    /// Adds one, and says so.
    pub fn add(&mut self, line: Line) {
        let (word, more) = match &line.verdict {
            Verdict::Passed => ("ok", ""),
            Verdict::Failed(why) => ("FAILED", why.as_str()),
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
        self.lines.sort_by_key(|line| self.names.iter().position(|name| *name == line.scenario));
    }

    /// How many passed, failed and were skipped.
    pub fn counts(&self) -> [usize; 3] {
        let count = |is: fn(&Verdict) -> bool| self.lines.iter().filter(|line| is(&line.verdict)).count();
        [
            count(|verdict| matches!(verdict, Verdict::Passed)),
            count(|verdict| matches!(verdict, Verdict::Failed(_))),
            count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        ]
    }

    /// Writes the report and prints its last line; returns whether nothing failed.
    ///
    /// Where CI counts (`FERRULE_SUMMARY` names its file), the counts go there too.
    pub fn finish(&self, to: &Path) -> Result<bool> {
        let text = serde_json::to_string_pretty(&self.lines).context("write the report")?;
        fs::write(to, text + "\n").with_context(|| format!("write {}", to.display()))?;
        let [passed, failed, skipped] = self.counts();
        if let Some(summary) = std::env::var_os("FERRULE_SUMMARY") {
            let file = fs::File::options().create(true).append(true).open(&summary);
            let written = file.and_then(|mut file| writeln!(file, "{passed} {failed} {skipped}"));
            written.with_context(|| format!("write {}", summary.display()))?;
        }
        println!("lab: {passed} passed, {failed} failed, {skipped} skipped");
        Ok(failed == 0)
    }
}
