//! Whose program plays which role.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Who made a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maker {
    /// We.
    #[default]
    Ours,
    /// The authors of Network Service Mesh.
    Go,
}

/// Who plays which role beside our forwarders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cast {
    /// The registry. None: on one node it is the manager's own, and else ours.
    pub registry: Option<Maker>,
    /// Managers.
    pub manager: Maker,
    /// Clients.
    pub client: Maker,
    /// Endpoints.
    pub endpoint: Maker,
}

impl Cast {
    /// All in Go.
    pub const GO: Self = Self { registry: Some(Maker::Go), manager: Maker::Go, client: Maker::Go, endpoint: Maker::Go };

    /// The programs in Go that it needs.
    pub fn needs(self) -> Vec<&'static str> {
        let roles = [
            (self.registry.unwrap_or_default(), "registry-memory"),
            (self.manager, "nsmgr"),
            (self.client, "nsc"),
            (self.endpoint, "nse-icmp-responder"),
        ];
        roles.into_iter().filter(|(maker, _)| *maker == Maker::Go).map(|(_, program)| program).collect()
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
    let here = std::env::current_exe()?;
    // A bench is in `deps`.
    let mut beside = here.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let program = beside.find(|program| program.is_file());
    program.with_context(|| format!("{name} is not beside {}: cargo build --workspace --bins", here.display()))
}

/// The variable that names the directory of the programs in Go.
const NSM_BIN: &str = "NSM_BIN";
