//! containerd, and the image that pods are made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::pieces::{NodePieces, script};
use super::until;
use crate::process::Process;

/// A running containerd.
pub struct Runtime {
    _process: Process,
}

impl Runtime {
    /// Starts it, and brings the image of pods into it.
    pub fn start(pieces: &NodePieces) -> Result<Self> {
        let mut command = logged(pieces, &pieces.program("containerd"));
        command.arg("--config").arg(pieces.run().join("config/containerd.toml"));
        // Its shim is looked for there.
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", pieces.bin().display()));
        let runtime = Self { _process: Process::start(&mut command) };
        until("containerd answers", || run(&mut ctr(pieces, &["version"])).map(Some))?;
        let archive = pieces.run().join("busybox.tar");
        let busybox = program("busybox")?;
        let applets = APPLETS.iter();
        run(Command::new(script("image")).arg(IMAGE).arg(&busybox).arg(&archive).args(applets))?;
        run(&mut ctr(pieces, &["images", "import", &archive.to_string_lossy()]))?;
        Ok(runtime)
    }
}

/// A client of containerd, in Kubernetes' corner of it.
pub fn ctr(pieces: &NodePieces, arguments: &[&str]) -> Command {
    let mut command = Command::new(pieces.program("ctr"));
    command.args(["--namespace", "k8s.io"]).args(arguments);
    command
}

/// A program whose output goes to a file of its name in the logs; arguments follow.
pub fn logged(pieces: &NodePieces, program: &Path) -> Command {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut command = Command::new("sh");
    command.args(["-c", "log=$1; shift; exec \"$@\" >>\"$log\" 2>&1", "sh"]);
    command.arg(log_of(pieces, &name)).arg(program);
    command
}

/// Where a program logs.
pub fn log_of(pieces: &NodePieces, name: &str) -> PathBuf {
    pieces.run().join("logs").join(format!("{name}.log"))
}

/// Runs a program to its end; returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, problem.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Writes the configuration of all programs into the node's folder, and its network where every node has it.
pub fn write_config(pieces: &NodePieces, more_of_kubelet: &str) -> Result<()> {
    let run = pieces.run();
    for (file, text) in CONFIG {
        let text = text
            .replace("$RUN", &run.to_string_lossy())
            .replace("$BIN", &pieces.bin().to_string_lossy())
            .replace("$STATIC", more_of_kubelet);
        let path = run.join("config").join(file);
        fs::create_dir_all(path.parent().unwrap_or(&run)).context("make the folder of configuration files")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Where a program of this machine is.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("no {name} in PATH"))
}

/// The image of pods and of their sandboxes: a shell and small programs.
pub const IMAGE: &str = "localhost/busybox:1";

const APPLETS: [&str; 16] = [
    "sh", "sleep", "env", "ls", "cat", "echo", "ip", "ping", "stat", "test", "true", "false", "date", "mount", "kill",
    "touch",
];

const CONFIG: [(&str, &str); 4] = [
    ("containerd.toml", include_str!("../../node/config/containerd.toml")),
    ("/etc/cni/net.d/10-node.conflist", include_str!("../../node/config/cni/10-node.conflist")),
    ("kubeconfig.yaml", include_str!("../../node/config/kubeconfig.yaml")),
    ("kubelet.yaml", include_str!("../../node/config/kubelet.yaml")),
];
