//! QEMU's monitor, one command at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A conversation with a monitor.
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to a monitor, which has nobody else to talk to.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_MAX)).context("set a limit to QEMU's answers")?;
        let mut qmp = Self(BufReader::new(stream));
        qmp.read().context("read QEMU's greeting")?;
        qmp.ask("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Has a command executed; what it returns.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.0.get_mut().write_all(line.as_bytes()).with_context(|| format!("ask QEMU to {command}"))?;
        loop {
            let mut answer = self.read().with_context(|| format!("hear what became of {command}"))?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            // What happens in the meantime is told too.
            if answer.get("event").is_none() {
                bail!("QEMU refuses to {command}: {answer}");
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("understand `{line}`"))
    }
}

/// QEMU answers between two turns of its loop.
const ANSWER_MAX: Duration = Duration::from_secs(20);
