//! Releases of the specification.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use super::{CniError, Code, Command};

/// A release of the specification that is understood, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first with several addresses for an attachment.
    V0_3_1,
    /// CHECK.
    V0_4_0,
    /// Addresses have no `version` any more.
    V1_0_0,
    /// GC and STATUS; interfaces have an MTU, a socket and a PCI address.
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As configurations write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// What VERSION answers to who speaks `asked`.
    pub fn answer(asked: Option<Self>) -> Value {
        let all: Vec<_> = Self::ALL.into_iter().map(Self::word).collect();
        json!({ "cniVersion": asked.unwrap_or(Self::NEWEST).word(), "supportedVersions": all })
    }

    /// Whether this release has the command.
    pub fn must_have(self, command: Command) -> Result<(), CniError> {
        let since = match command {
            Command::Add | Command::Del | Command::Version => Self::V0_3_1,
            Command::Check => Self::V0_4_0,
            Command::Gc | Command::Status => Self::V1_1_0,
        };
        if self >= since {
            return Ok(());
        }
        let problem = format!("cniVersion {self} has no {}: say {since} or later in the configuration", command.word());
        Err(CniError::new(Code::Version, problem))
    }
}

impl FromStr for Version {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|version| version.word() == text).ok_or_else(|| {
            let all = Self::ALL.map(Self::word).join(", ");
            CniError::new(Code::Version, format!("cniVersion `{text}`: one of {all} is wanted in the configuration"))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
