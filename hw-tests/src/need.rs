//! What a test needs of the machine, and what happens when it is not there: the test is skipped, aloud.
//!
//! A skipped test prints one line to standard error, past the capture of `cargo test`, and passes:
//! ```text
//! skipped: testpmd_as_client: lacks dpdk-testpmd (apt-get install dpdk-dev)
//! ```
//! CI counts these lines; where nothing may be skipped, `FERRULE_SKIP=never` makes each a failure.

use std::env;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A program, and the Debian package that has it.
    Program {
        /// Its name in `PATH`.
        name: &'static str,
        /// Where it comes from.
        package: &'static str,
    },
    /// A device file, and how to get it.
    Device {
        /// Where it is.
        path: &'static str,
        /// What to do when it is not there.
        cure: &'static str,
    },
    /// To be root.
    Root,
}

impl Need {
    /// Whether this machine has it.
    pub fn is_met(self) -> bool {
        match self {
            Self::Program { name, .. } => {
                let path = env::var_os("PATH").unwrap_or_default();
                env::split_paths(&path).any(|folder| folder.join(name).is_file())
            }
            Self::Device { path, .. } => Path::new(path).exists(),
            Self::Root => nix::unistd::geteuid().is_root(),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program { name, package } => write!(f, "{name} (apt-get install {package})"),
            Self::Device { path, cure } => write!(f, "{path} ({cure})"),
            Self::Root => f.write_str("root (sudo -E cargo test -p ferrule-hw-tests)"),
        }
    }
}

/// Whether `test` lacks any of `needs`. If so it has been said, and the test returns.
pub fn lacks(test: &str, needs: &[Need]) -> bool {
    let missing: Vec<_> = needs.iter().filter(|need| !need.is_met()).map(ToString::to_string).collect();
    if missing.is_empty() {
        return false;
    }
    skip(test, &missing.join(", "));
    true
}

/// Says that `test` is skipped because it lacks something.
pub fn skip(test: &str, missing: &str) {
    let line = format!("skipped: {test}: lacks {missing}");
    assert!(may_skip(), "FERRULE_SKIP=never: {line}");
    // Not `eprintln!`, which the test harness hides for tests that pass.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether a test that lacks something passes.
pub fn may_skip() -> bool {
    env::var_os("FERRULE_SKIP").is_none_or(|value| value != "never")
}

/// Whether what fails runs once more, alone (`FERRULE_AGAIN=1`, as in `.ci/run`), before it counts as failed.
pub fn second_chance() -> bool {
    env::var_os("FERRULE_AGAIN").is_some_and(|value| value == "1")
}

/// DPDK's test program.
pub const TESTPMD: Need = Need::Program { name: "dpdk-testpmd", package: "dpdk-dev" };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_lacked_and_what_is_not_is_named_with_its_cure() {
        assert!(!lacks("a_test", &[Need::Program { name: "sh", package: "dash" }]));
        let nowhere = Need::Program { name: "no-such-program", package: "nowhere" };
        assert!(!nowhere.is_met());
        assert_eq!(nowhere.to_string(), "no-such-program (apt-get install nowhere)");
    }
}
