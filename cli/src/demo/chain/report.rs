//! What came of each check: the lines that the example's own script says, and the same as data.

use serde::Serialize;

use crate::demo::DemoError;

/// Everything, in the order in which it was checked.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChainReport {
    passed: bool,
    /// Why there is no more to report.
    problem: Option<String>,
    clients: Vec<ClientReport>,
    #[serde(skip)]
    error: Option<DemoError>,
}

/// What a client found.
#[derive(Debug, Serialize)]
pub(super) struct ClientReport {
    name: String,
    passed: bool,
    checks: Vec<ChainCheck>,
}

/// One check.
#[derive(Debug, Serialize)]
struct ChainCheck {
    name: &'static str,
    passed: bool,
    /// What is said of it.
    line: String,
    /// What was seen, or what was wrong.
    seen: String,
}

impl ChainReport {
    /// What another client found.
    pub(super) fn add(&mut self, client: ClientReport) {
        self.clients.push(client);
    }

    /// It is at its end.
    pub(super) fn end(mut self, result: Result<(), DemoError>) -> Self {
        self.passed = result.is_ok() && !self.clients.is_empty() && self.clients.iter().all(|client| client.passed);
        self.problem = result.as_ref().err().map(ToString::to_string);
        self.error = result.err();
        self
    }

    /// Fails unless every check passed.
    pub(super) fn verdict(self) -> Result<(), DemoError> {
        let checks = || self.clients.iter().flat_map(|client| &client.checks);
        let failed: Vec<_> = checks().filter(|check| !check.passed).map(|check| check.name).collect();
        match self.error {
            Some(error) => Err(error),
            None if failed.is_empty() => Ok(()),
            None => Err(DemoError::Checks { checked: checks().count(), failed }),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("texts and booleans are JSON");
        text + "\n"
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        self.clients.iter().map(ClientReport::text).collect()
    }
}

impl ClientReport {
    /// One that has checked nothing yet.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), passed: true, checks: Vec::new() }
    }

    /// What came of a check, the line that says so, and what was seen.
    pub(super) fn check(&mut self, name: &'static str, passed: bool, line: String, seen: String) {
        self.passed &= passed;
        self.checks.push(ChainCheck { name, passed, line, seen });
    }

    fn text(&self) -> String {
        let name = &self.name;
        let mut text = format!("\n===== >>>>> PROCESSING {name}  <<<<< ===========\n");
        for ChainCheck { passed, line, seen, .. } in &self.checks {
            text += line;
            if !passed {
                text += ": ";
                text += seen;
            }
            text.push('\n');
        }
        text + &if self.passed {
            format!("All check OK. NSC {name} behaving as expected.\n")
        } else {
            format!("+++++++==ERROR==ERROR==ERROR==ERROR==+++++++\nNSC {name} is not behaving as expected.\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn report(good: bool) -> ChainReport {
        let mut report = ChainReport::default();
        let mut client = ClientReport::new("nsc");
        client.check("ping", true, "pinging successful".into(), "5 of 5 answered".into());
        let word = if good { "blocked" } else { "accessing unsuccessful" };
        client.check("port 8080", good, word.into(), "112 bytes".into());
        report.add(client);
        report.end(Ok(()))
    }

    #[test]
    fn all_is_ok_only_if_it_is() {
        let text = report(true).text();
        assert!(
            text.starts_with("\n===== >>>>> PROCESSING nsc  <<<<< ===========\npinging successful\nblocked\n"),
            "{text}"
        );
        assert!(text.ends_with("All check OK. NSC nsc behaving as expected.\n"), "{text}");
        assert!(report(true).verdict().is_ok());
        let bad = report(false).text();
        assert!(bad.contains("accessing unsuccessful: 112 bytes\n") && !bad.contains("All check OK"), "{bad}");
        assert_eq!(report(false).verdict().unwrap_err().to_string(), "1 of 2 checks failed: port 8080");
    }

    #[test]
    fn the_json_says_the_same() {
        let document: Value = serde_json::from_str(&report(false).json()).unwrap();
        assert_eq!((&document["passed"], &document["problem"]), (&json!(false), &json!(null)));
        let check = json!({ "name": "ping", "passed": true, "line": "pinging successful", "seen": "5 of 5 answered" });
        assert_eq!(document["clients"][0]["checks"][0], check);
        let aborted = ChainReport::default().end(Err(DemoError::Interrupted));
        assert!(aborted.json().contains("\"passed\": false") && aborted.verdict().is_err());
        assert!(ChainReport::default().end(Ok(())).json().contains("\"passed\": false"), "nothing was checked");
    }
}
