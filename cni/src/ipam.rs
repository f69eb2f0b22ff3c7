//! Addresses: another plugin has them, and is asked as the runtime asked us.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command as Process, Output, Stdio};

use serde_json::Value;

use crate::network::Network;
use crate::protocol::{AddResult, Attachment, CniError, Code, Command, Environment};

/// The plugin that has the addresses of a network.
#[derive(Clone, Copy, Debug)]
pub struct Ipam<'a> {
    name: &'a str,
    environment: &'a Environment,
    network: &'a Network,
}

impl<'a> Ipam<'a> {
    /// That of a network; none: its attachments have no addresses.
    pub fn of(environment: &'a Environment, network: &'a Network) -> Option<Self> {
        network.ipam.as_deref().map(|name| Self { name, environment, network })
    }

    /// Takes addresses for an attachment.
    pub fn add(self) -> Result<AddResult, CniError> {
        let answer = self.ask(Command::Add)?;
        let document: Value =
            serde_json::from_slice(&answer).map_err(|error| self.failed(&format!("its answer is no JSON: {error}")))?;
        AddResult::read(&document).map_err(|error| self.failed(&format!("its answer: {error}")))
    }

    /// Asks it something that has no answer but success.
    pub fn order(self, command: Command) -> Result<(), CniError> {
        self.ask(command).map(drop)
    }

    fn ask(self, command: Command) -> Result<Vec<u8>, CniError> {
        let program = self.program()?;
        let run = || -> io::Result<Output> {
            let mut child = Process::new(&program)
                .env("CNI_COMMAND", command.word())
                .envs(self.environment.attachment.iter().flat_map(Attachment::variables))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()?;
            if let Some(mut input) = child.stdin.take() {
                match input.write_all(self.network.raw()) {
                    // It need not read it all to answer.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => {}
                }
            }
            child.wait_with_output()
        };
        let output = run().map_err(|error| self.failed(&format!("run {}: {error}", program.display())))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.refused(command, &output))
    }

    /// Its program: a name that is looked for in the runtime's folders, and nothing else.
    fn program(self) -> Result<PathBuf, CniError> {
        if self.name.contains('/') || self.name.starts_with('.') {
            return Err(CniError::config(format!("ipam.type: `{}`, where the name of a plugin is wanted", self.name)));
        }
        let found = self.environment.path.iter().map(|folder| folder.join(self.name)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let folders: Vec<_> = self.environment.path.iter().map(|folder| folder.display().to_string()).collect();
            let problem = format!("there is none of that name in {}: install it there", folders.join(", "));
            self.failed(&problem)
        })
    }

    fn refused(self, command: Command, output: &Output) -> CniError {
        let document: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        let told = |key: &str| document.as_ref().and_then(|document| document[key].as_str()).unwrap_or_default();
        let words: Vec<_> = [told("msg"), told("details")].into_iter().filter(|text| !text.is_empty()).collect();
        let code =
            document.as_ref().and_then(|document| document["code"].as_u64()).and_then(|code| code.try_into().ok());
        let words = if words.is_empty() { output.status.to_string() } else { words.join("; ") };
        let refused = self.failed(&format!("{}: {words}", command.word()));
        CniError { code: code.map_or(Code::Failed, Code::Delegate), ..refused }
    }

    fn failed(self, problem: &str) -> CniError {
        CniError::new(Code::Failed, format!("plugin `{}` of ipam: {problem}", self.name))
    }
}
