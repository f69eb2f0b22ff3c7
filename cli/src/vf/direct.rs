//! List and explain without a manager: its program reads the tree as a child of ours, so that we need not hold all of it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use sriov_manager_client::v1;

use super::VfCliError;

pub(super) fn list(root: &Path) -> Result<v1::ListResponse, VfCliError> {
    look(root, &["list"])
}

pub(super) fn explain(root: &Path, vf: &str, driver: v1::Driver) -> Result<v1::ExplainResponse, VfCliError> {
    look(root, &["explain", "--driver", driver.word(), "--", vf])
}

fn look<M: Message + Default>(root: &Path, what: &[&str]) -> Result<M, VfCliError> {
    let failed = |source| VfCliError::Program { source };
    let output =
        Command::new(manager_program()).arg("--root").arg(root).arg("look").args(what).output().map_err(failed)?;
    if !output.status.success() {
        return Err(VfCliError::Refused(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()));
    }
    let unreadable = |error| failed(io::Error::new(io::ErrorKind::InvalidData, error));
    M::decode(&*output.stdout).map_err(unreadable)
}

/// The one beside us, which is of the same release, or else the one that a shell would find.
pub(crate) fn manager_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|ours| ours.with_file_name(PROGRAM));
    beside.filter(|program| program.exists()).unwrap_or_else(|| PROGRAM.into())
}

/// Whether there is one: the image of another daemon has none.
pub(super) fn has_program() -> bool {
    let program = manager_program();
    let path = std::env::var_os("PATH").unwrap_or_default();
    program.is_absolute() || std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).exists())
}

const PROGRAM: &str = "sriov-manager";
