//! Questions and orders to the API server, by `kubectl`.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::pieces::Pieces;
use super::runtime::run;

/// The program and whom it asks.
#[derive(Clone)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    /// That of a node.
    pub fn new(pieces: &Pieces) -> Self {
        Self { program: pieces.program("kubectl"), config: kubeconfig(pieces) }
    }

    /// What it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(self.command().args(arguments))
    }

    /// An object, or a list of them.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("read what kubectl get {arguments:?} printed"))
    }

    /// Creates an object or changes it.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let mut command = self.command();
        command.args(["apply", "--filename=-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        stdin.write_all(object.to_string().as_bytes()).context("write to kubectl")?;
        drop(stdin);
        let output = child.wait_with_output().context("wait for kubectl")?;
        ensure!(output.status.success(), "apply {object}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.config).env("HOME", "/nonexistent").arg("--request-timeout=20s");
        command
    }
}

/// How to reach the API server.
pub fn kubeconfig(pieces: &Pieces) -> PathBuf {
    pieces.run().join("config/kubeconfig.yaml")
}
