//! Whose program plays which role.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// Who made a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maker {
    /// We.
    #[default]
    Ours,
    /// The authors of Network Service Mesh.
    Go,
}

/// Who plays which role beside our forwarder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cast {
    /// The manager, with its registry.
    pub manager: Maker,
    /// Clients.
    pub client: Maker,
    /// Endpoints.
    pub endpoint: Maker,
}

impl Cast {
    /// All in Go.
    pub const GO: Self = Self { manager: Maker::Go, client: Maker::Go, endpoint: Maker::Go };

    /// The programs in Go that it needs.
    pub fn needs(self) -> Vec<&'static str> {
        let mut needs = Vec::new();
        if self.manager == Maker::Go {
            needs.extend(["nsmgr", "registry-memory"]);
        }
        if self.client == Maker::Go {
            needs.push("nsc");
        }
        if self.endpoint == Maker::Go {
            needs.push("nse-icmp-responder");
        }
        needs
    }

    /// What of it is missing, in words.
    pub fn lacks(self) -> Option<String> {
        let needs = self.needs();
        if needs.is_empty() {
            return None;
        }
        let Some(directory) = std::env::var_os(NSM_BIN).map(PathBuf::from) else {
            return Some(format!("{NSM_BIN}, the directory of {}", needs.join(", ")));
        };
        let missing: Vec<_> = needs.into_iter().filter(|name| !directory.join(name).is_file()).collect();
        (!missing.is_empty()).then(|| format!("{} in {}", missing.join(", "), directory.display()))
    }
}

/// A program in Go.
pub fn go(name: &str) -> Result<PathBuf> {
    let directory = std::env::var_os(NSM_BIN).with_context(|| format!("{NSM_BIN} is not set"))?;
    Ok(PathBuf::from(directory).join(name))
}

/// A program of ours, built beside this one.
pub fn ours(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    ensure!(program.is_file(), "{} is not there: cargo build", program.display());
    Ok(program)
}

/// The variable that names the directory of the programs in Go.
const NSM_BIN: &str = "NSM_BIN";
