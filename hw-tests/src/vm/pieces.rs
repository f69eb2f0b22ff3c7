//! What virtual machines are made of, as `hw-tests/vm-pieces` left it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The folder `target/lab`, and the kernel in it.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// Where they are, and where everything about virtual machines is kept.
    pub folder: PathBuf,
    /// The kernel's release, which names its folder of modules.
    pub release: String,
}

impl Pieces {
    /// Those of this build. An error says what is missing and how to get it.
    pub fn find() -> Result<Self> {
        let folder = folder();
        for name in [QEMU, "busybox", "setpriv", "strip", "xz", "mke2fs"] {
            program(name).context(CURE)?;
        }
        let complete = folder.join("kernel/complete");
        let release = fs::read_to_string(&complete).with_context(|| format!("no kernel for guests; {CURE}"))?;
        Ok(Self { folder, release: release.trim().to_owned() })
    }

    /// The kernel's image.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("kernel/boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The folder of its modules.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("kernel/lib/modules").join(&self.release)
    }

    /// Whether QEMU can emulate a device with an option.
    pub fn has_device(device: &str, option: &str) -> Result<bool> {
        let output = Command::new(QEMU).args(["-device", &format!("{device},help")]).output().context("run QEMU")?;
        Ok(String::from_utf8_lossy(&output.stdout).contains(&format!(" {option}=")))
    }
}

/// The program of the emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// Where a program of `PATH` is.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|program| program.is_file());
    found.next().with_context(|| format!("no {name} in PATH"))
}

/// A program of this workspace, built as the one that asks.
pub fn own_program(name: &str) -> Result<PathBuf> {
    let program = profile_folder().join(name);
    ensure!(program.is_file(), "{} was not built (cargo build --workspace)", program.display());
    Ok(program)
}

/// `target/lab`.
pub fn folder() -> PathBuf {
    profile_folder().parent().map(|target| target.join("lab")).unwrap_or_default()
}

/// `target/debug` or another: where this program is, or the folder above for a test in `deps`.
pub fn profile_folder() -> PathBuf {
    let here = std::env::current_exe().expect("a running program has a file");
    let folder = here.parent().unwrap_or(Path::new("/"));
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder).to_owned() } else { folder.to_owned() }
}

/// What to do when something is missing.
const CURE: &str = "make vm-pieces brings it";
