//! Runs cases, several at a time: each has namespaces and a directory of its own.

use std::collections::VecDeque;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::cases::NsmCase;
use super::mesh::Mesh;
use crate::lab::report::{Line, Report, Verdict};
use crate::lab::scenario::Figure;
use crate::need::{Need, may_skip, second_chance};

/// Runs them. Where a failure gets a second chance (see `need`), those that failed run once more, one after the other.
pub fn run(cases: &[NsmCase]) -> Report {
    let names = cases.iter().map(|case| case.name);
    let missing: Vec<_> = NEEDS.iter().filter(|need| !need.is_met()).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Report::of_none(TITLE, names, &format!("lacks {}", missing.join(", ")));
    }
    let report = Mutex::new(Report::new(TITLE, names));
    let queue: Mutex<VecDeque<_>> = Mutex::new(cases.iter().collect());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(case) = next else { return };
                    let line = run_one(case);
                    report.lock().unwrap_or_else(PoisonError::into_inner).add(line);
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    if second_chance() {
        for case in cases {
            if report.failed(case.name) {
                let mut alone = Report::new(TITLE, [case.name]);
                alone.add(run_one(case));
                report.again(alone);
            }
        }
    }
    report
}

fn run_one(case: &NsmCase) -> Line {
    let unmet = || case.needs.iter().find(|need| !need.is_met()).map(ToString::to_string);
    if let Some(missing) = case.cast.lacks().or_else(unmet) {
        let verdict = if may_skip() { Verdict::Skipped } else { Verdict::Failed };
        return Line::new(case.name, verdict(format!("lacks {missing}")));
    }
    let began = Instant::now();
    let mut figures = Vec::new();
    let done = catch_unwind(AssertUnwindSafe(|| run_case(case, &mut figures)));
    let verdict = match done {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) => Verdict::Failed(format!("{error:#}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Verdict::Failed(format!("panic: {}", text.unwrap_or("without words")))
        }
    };
    Line { seconds: began.elapsed().as_secs_f64(), figures, ..Line::new(case.name, verdict) }
}

fn run_case(case: &NsmCase, figures: &mut Vec<Figure>) -> Result<()> {
    let mut mesh = Mesh::start(case.cast, case.options)?;
    let done = (case.run)(&mut mesh);
    figures.append(&mut mesh.figures);
    if done.is_err() {
        mesh.show_logs(case.name);
    }
    done
}

/// `target/nsm`.
pub fn folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("where this program is")?;
    let target = program.ancestors().nth(2).context("this program is not in target")?;
    let folder = target.join("nsm");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// The first word of the last line.
const TITLE: &str = "nsm";
/// They wait most of the time.
const AT_ONCE: usize = 4;
const NEEDS: [Need; 3] = [
    Need::Root,
    Need::Program { name: "ip", package: "iproute2" },
    Need::Program { name: "ping", package: "iputils-ping" },
];
