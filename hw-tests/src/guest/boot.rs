//! What is done once, before anything else runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::eventually;

/// Mounts the kernel's file systems and the disk, loads the modules. A machine that cannot says so and ends.
pub fn boot_or_power_off() {
    if let Err(error) = boot() {
        eprintln!("the machine does not boot: {error:#}");
        // It returns only if it fails, and then the host's timeout passes.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
}

fn boot() -> Result<()> {
    // An initramfs leaves it open to everybody, and DPDK loads no driver from below such a folder.
    fs::set_permissions("/", Permissions::from_mode(0o755)).context("close / to others")?;
    for (kind, folder) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_kind(kind, kind, folder)?;
    }
    let modules = fs::read_to_string("/etc/modules").context("read /etc/modules")?;
    run(Command::new("/bin/modprobe").arg("-a").args(modules.lines()))?;
    if modules.lines().any(|module| module == "virtio_blk") {
        // The module's probe goes on after its load has returned.
        eventually("the disk is there", || Path::new(DISK).exists());
        mount_kind(DISK, "ext4", STATE)?;
    }
    run(Command::new("/bin/ip").args(["link", "set", "lo", "up"]))
}

/// Where the disk is, in a machine that has one: what is written there outlives a reboot.
pub const STATE: &str = "/state";

fn mount_kind(source: &str, kind: &str, folder: &str) -> Result<()> {
    mount(Some(source), folder, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount {source} at {folder}"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

const DISK: &str = "/dev/vda";
