//! Why a command failed, as runtimes read it.

use serde_json::{Value, json};
use thiserror::Error;

/// Why a command failed. It ends in one line of `kubectl describe pod`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct CniError {
    /// For programs.
    pub code: Code,
    /// What, on what, why not, and the cure.
    pub message: String,
}

/// Why a command failed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration is in a release that is not understood, or that lacks the command.
    Version,
    /// The configuration asks for what there is not here.
    Unsupported,
    /// There is no such container.
    UnknownContainer,
    /// A variable is missing or wrong.
    Environment,
    /// Something could not be read, written or done.
    Failed,
    /// The configuration is no JSON.
    Decode,
    /// The configuration is wrong.
    Config,
    /// The namespace is the host's own.
    HostNamespace,
    /// The same may succeed later.
    TryAgain,
    /// No ADD can be served now.
    Unavailable,
    /// What another plugin said.
    Delegate(u32),
}

impl CniError {
    /// With this code and in these words.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Something could not be done.
    pub fn failed(tried: &str, why: impl std::fmt::Display) -> Self {
        Self::new(Code::Failed, format!("{tried}: {why}"))
    }

    /// The configuration is wrong.
    pub fn config(problem: impl Into<String>) -> Self {
        Self::new(Code::Config, problem)
    }

    /// Several things could not be done: the first one's code, and what all of them say. None: all were done.
    pub fn of_all(problems: Vec<Self>) -> Result<(), Self> {
        let mut problems = problems.into_iter();
        let Some(first) = problems.next() else { return Ok(()) };
        let message = problems.fold(first.message, |all, next| format!("{all}; {}", next.message));
        Err(Self { message, ..first })
    }

    /// The same, and what could not be undone after it.
    #[must_use]
    pub fn and_then_left(self, left: Option<Self>) -> Self {
        match left {
            Some(left) => Self { message: format!("{self}; and then: {left}"), ..self },
            None => self,
        }
    }

    /// The same, and what it is about.
    #[must_use]
    pub fn about(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// As the runtime reads it from standard output, in its release.
    pub fn document(&self, version: &str) -> Value {
        let lines: Vec<_> = self.message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        json!({ "cniVersion": version, "code": self.code.number(), "msg": lines.join("; ") })
    }
}

impl Code {
    /// As the specification numbers it.
    pub fn number(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::Unsupported => 2,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Failed => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::HostNamespace => 8,
            Self::TryAgain => 11,
            Self::Unavailable => 50,
            Self::Delegate(number) => number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_reads_has_one_line() {
        let error = CniError::failed("write", "first\n  second\n").about("network `net`");
        let document = error.document("1.0.0");
        assert_eq!(document["msg"], "network `net`: write: first; second");
        assert_eq!((&document["code"], &document["cniVersion"]), (&json!(5), &json!("1.0.0")));
    }
}
