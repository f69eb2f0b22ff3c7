//! What was found of one thing: what is, what should be, and how to change it.

use serde::Serialize;

/// One line of the doctor's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check it is of: `docs/bare-metal.md` has a row for each.
    pub check: &'static str,
    /// Of what, if the check has several: a CPU, a node, a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How it is.
    pub verdict: Verdict,
    /// What is.
    pub is: String,
    /// What should be.
    pub should_be: String,
    /// How to change it; empty: nothing is to be done, or nothing can be.
    pub cures: Vec<Cure>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It cannot be seen from here, or it depends.
    Unknown,
    /// The bench runs, and its figures are not what the machine could have.
    Warning,
    /// The bench does not run, or its figures mean nothing.
    Error,
}

impl Verdict {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
        }
    }
}

/// What changes something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cure {
    /// An argument for the kernel; it holds from the next start on.
    KernelArgument(String),
    /// A command, as root.
    Command(String),
    /// Something that no command does: in the firmware's setup, or with a hand in the machine.
    ByHand(String),
}

impl Cure {
    /// As it is shown.
    pub fn text(&self) -> String {
        match self {
            Self::KernelArgument(argument) => format!("kernel argument {argument}"),
            Self::Command(command) => format!("# {command}"),
            Self::ByHand(what) => what.clone(),
        }
    }
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, is: impl Into<String>, should_be: impl Into<String>) -> Self {
        let (is, should_be) = (is.into(), should_be.into());
        Self { check, subject: None, verdict: Verdict::Ok, is, should_be, cures: Vec::new() }
    }

    /// Not as it should be, or not known.
    pub fn not_ok(
        check: &'static str,
        verdict: Verdict,
        is: impl Into<String>,
        should_be: impl Into<String>,
        cures: impl Into<Vec<Cure>>,
    ) -> Self {
        Self { verdict, cures: cures.into(), ..Self::ok(check, is, should_be) }
    }

    /// As it should be if `good`; otherwise of this verdict, with its cures.
    pub fn of(good: bool, verdict: Verdict, cures: impl Into<Vec<Cure>>, ok: Self) -> Self {
        if good { ok } else { Self { verdict, cures: cures.into(), ..ok } }
    }

    /// Of this one thing among several.
    pub fn about(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }
}

/// A kernel argument.
pub fn kernel(argument: impl Into<String>) -> Cure {
    Cure::KernelArgument(argument.into())
}

/// A command.
pub fn command(command: impl Into<String>) -> Cure {
    Cure::Command(command.into())
}

/// Something to do by hand.
pub fn by_hand(what: impl Into<String>) -> Cure {
    Cure::ByHand(what.into())
}
