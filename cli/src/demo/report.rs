//! What came of it: one table for people, the same as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Cell, Color};
use serde::Serialize;

use super::DemoError;
use super::counters::Counters;
use super::ping::Pinged;
use super::plan::DemoWire;
use crate::text;
use crate::wires::table::{TableStyle, right};

/// Everything, in the order of [`DemoWire::ALL`].
#[derive(Debug, Serialize)]
pub(super) struct Report {
    passed: bool,
    /// Why there is no more to report; the wires have problems of their own.
    problem: Option<String>,
    wires: Vec<WireReport>,
    #[serde(skip)]
    error: Option<DemoError>,
    #[serde(skip)]
    log: Vec<String>,
}

impl Report {
    /// Of a demo that came to its end. The log is the forwarder's.
    pub(super) fn new(mut wires: Vec<WireReport>, log: &[String]) -> Self {
        for wire in &mut wires {
            wire.passed = wire.problem.is_none();
        }
        let passed = wires.iter().all(|wire| wire.passed);
        Self { passed, problem: None, wires, error: None, log: log.to_vec() }
    }

    /// Of one that did not.
    pub(super) fn aborted(error: DemoError) -> Self {
        let problem = Some(error.to_string());
        Self { passed: false, problem, wires: Vec::new(), error: Some(error), log: Vec::new() }
    }

    /// Fails unless every check passed.
    pub(super) fn verdict(self) -> Result<(), DemoError> {
        let failed: Vec<_> = self.wires.iter().filter(|wire| !wire.passed).map(|wire| wire.name).collect();
        match self.error {
            Some(error) => Err(error),
            None if failed.is_empty() => Ok(()),
            None => Err(DemoError::Failed { failed, checked: self.wires.len() }),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("texts, numbers and maps with text keys are JSON");
        text + "\n"
    }

    /// For people. Nothing, if it did not come to its end: the error says it all.
    pub(super) fn text(&self) -> String {
        if self.wires.is_empty() {
            return String::new();
        }
        let mut out = format!("\n{}\n", self.table(TableStyle::of_stdout()));
        if self.passed {
            out.push_str("all checks passed\n");
            return out;
        }
        for wire in &self.wires {
            if let Some(problem) = &wire.problem {
                let _ = writeln!(out, "{} FAILED: {problem}", wire.name);
            }
        }
        if !self.log.is_empty() {
            let _ = writeln!(out, "\nthe forwarder's log:\n  {}", self.log.join("\n  "));
        }
        out
    }

    fn table(&self, look: TableStyle) -> String {
        let mut table =
            look.table(&["WIRE", "CHECK", "ENDS A, B", "PING LOSS, RTT", "THROUGHPUT"], &["FRAMES", "DROPS"]);
        for wire in &self.wires {
            let (word, colour) = if wire.passed { ("ok", Color::Green) } else { ("FAILED", Color::Red) };
            let ends = wire.ends.each_ref().map(|end| text::foreign(&wire.testbed.shorten(end)).into_owned());
            table.add_row(vec![
                Cell::new(wire.name),
                Cell::new(word).fg(colour),
                Cell::new(ends.join("\n")),
                Cell::new(wire.ping.map_or_else(absent, Pings::text)),
                Cell::new(wire.throughput()),
                right(wire.counters.map_or_else(absent, |counters| {
                    format!("A>B {:>10}\nB>A {:>10}", text::count(counters.frames[0]), text::count(counters.frames[1]))
                })),
                right(wire.counters.map_or_else(absent, |counters| text::count(counters.drops))),
            ]);
        }
        table.trim_fmt() + "\n"
    }
}

/// What came of one wire of the demo. What was not measured is absent.
#[derive(Debug, Serialize)]
pub(super) struct WireReport {
    pub(super) name: &'static str,
    pub(super) ends: [String; 2],
    pub(super) ping: Option<Pings>,
    pub(super) tcp_gbit_s: Option<f64>,
    /// By frame size in bytes.
    pub(super) rate_mpps: Option<BTreeMap<usize, f64>>,
    pub(super) counters: Option<Counters>,
    passed: bool,
    problem: Option<String>,
    #[serde(skip)]
    testbed: TestbedNames,
}

impl WireReport {
    pub(super) fn new(demo_wire: DemoWire, testbed: TestbedNames) -> Self {
        Self {
            name: demo_wire.name(),
            ends: Default::default(),
            ping: None,
            tcp_gbit_s: None,
            rate_mpps: None,
            counters: None,
            passed: false,
            problem: None,
            testbed,
        }
    }

    /// One more check that failed.
    pub(super) fn fail(&mut self, problem: &str) {
        self.problem = Some(match self.problem.take() {
            Some(first) => format!("{first}; {problem}"),
            None => problem.to_owned(),
        });
    }

    /// Whether nothing was wrong so far.
    pub(super) fn is_sound(&self) -> bool {
        self.problem.is_none()
    }

    fn throughput(&self) -> String {
        let tcp = self.tcp_gbit_s.map(|rate| format!("TCP {rate:.1} Gbit/s"));
        let rates = self.rate_mpps.iter().flatten().map(|(size, rate)| format!("{size} B {rate:.1} Mpps"));
        let lines: Vec<_> = tcp.into_iter().chain(rates).collect();
        if lines.is_empty() { absent() } else { lines.join("\n") }
    }
}

/// Pings of both families.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Pings {
    pub(super) v4: Option<Pinged>,
    pub(super) v6: Option<Pinged>,
}

impl Pings {
    fn text(self) -> String {
        let line = |family: &str, pinged: Option<Pinged>| {
            let Some(pinged) = pinged else { return format!("{family} failed") };
            let rtt = pinged.rtt_ms.map(|rtt| format!(", {rtt:.2} ms")).unwrap_or_default();
            format!("{family} {:.0} %{rtt}", pinged.loss())
        };
        format!("{}\n{}", line("v4", self.v4), line("v6", self.v6))
    }
}

/// What all names of the testbed have in common: a table has no room for it.
#[derive(Clone, Debug)]
pub(super) struct TestbedNames {
    /// Before the letter of a namespace.
    pub(super) namespace: String,
    /// Before the name of a socket.
    pub(super) directory: String,
}

impl TestbedNames {
    /// An end as the forwarder describes it, in the few words that tell it from the others.
    fn shorten(&self, end: &str) -> String {
        end.replace(&self.namespace, "").replace(&self.directory, "").replace(".sock id 0", "")
    }
}

fn absent() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn report(problem: Option<&str>) -> Report {
        let testbed =
            TestbedNames { namespace: "/run/netns/ferrule-demo-1-".into(), directory: "/run/ferrule-demo-1/".into() };
        let mut kernel = WireReport::new(DemoWire::KernelMemif, testbed.clone());
        kernel.ends = [
            "kernel tap0 in /run/netns/ferrule-demo-1-a".to_owned(),
            "memif /run/ferrule-demo-1/responder.sock id 0 server".to_owned(),
        ];
        let lost = Pinged { sent: 5, received: 4, rtt_ms: Some(0.041) };
        kernel.ping = Some(Pings { v4: Some(lost), v6: None });
        kernel.counters = Some(Counters { frames: [1234, 5], bytes: [9, 9], drops: 0 });
        if let Some(problem) = problem {
            kernel.fail(problem);
        }
        let mut memif = WireReport::new(DemoWire::MemifMemif, testbed);
        memif.rate_mpps = Some(BTreeMap::from([(64, 12.5), (1518, 3.0)]));
        Report::new(vec![kernel, memif], &["INFO ready".to_owned()])
    }

    #[test]
    fn success_ends_with_one_clear_line() {
        let text = report(None).text();
        assert!(text.ends_with("\nall checks passed\n"), "{text}");
        for part in ["kernel tap0 in a", "memif responder server", "v4 20 %, 0.04 ms", "v6 failed"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        assert!(report(None).verdict().is_ok());
    }

    #[test]
    fn failure_names_the_wire_the_reason_and_the_log() {
        let report = report(Some("no reply"));
        let text = report.text();
        assert!(text.contains("kernel-memif FAILED: no reply\n") && text.contains("log:\n  INFO ready"), "{text}");
        assert!(!text.contains("all checks passed"));
        assert_eq!(report.verdict().unwrap_err().to_string(), "1 of 2 wires failed: kernel-memif");
    }

    #[test]
    fn the_json_is_what_the_documentation_promises() {
        let document: Value = serde_json::from_str(&report(Some("no reply")).json()).unwrap();
        assert_eq!((&document["passed"], &document["problem"]), (&json!(false), &json!(null)));
        let [kernel, memif] = [&document["wires"][0], &document["wires"][1]];
        assert_eq!(kernel["ping"]["v4"], json!({ "sent": 5, "received": 4, "rtt_ms": 0.041 }));
        assert_eq!(kernel["problem"], "no reply");
        assert_eq!(kernel["counters"], json!({ "frames": [1234, 5], "bytes": [9, 9], "drops": 0 }));
        assert_eq!((&memif["rate_mpps"], &memif["passed"]), (&json!({ "64": 12.5, "1518": 3.0 }), &json!(true)));
    }

    #[test]
    fn a_demo_that_did_not_run_says_why_in_json_too() {
        let report = Report::aborted(DemoError::Interrupted);
        let document: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(document["wires"], json!([]));
        assert!(document["problem"].as_str().unwrap().contains("signal"));
        assert!(report.text().is_empty() && report.verdict().is_err());
    }
}
