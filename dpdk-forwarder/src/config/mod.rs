//! The wires file: text in, a checked [`Config`] out, or everything that is wrong with it in one go.
//!
//! Modules in reading order: `yaml` (text to a tree with positions), `reader` (tree to values,
//! collecting errors), `wire` (one entry of `wires:`), `conflicts` (wires beside each other).

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ferrule_dataplane::spec::WireSpec;
use ferrule_dataplane::{Idle, Settings};
use thiserror::Error;

use conflicts::{Conflict, conflicts};
use reader::{Field, Findings};
use yaml::Node;

mod conflicts;
mod reader;
mod wire;
mod yaml;

/// A checked wires file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// CPUs of the polling threads.
    pub workers: Vec<usize>,
    /// What a worker without work does.
    pub idle: Idle,
    /// Where the admin API listens.
    pub admin: PathBuf,
    /// Where Prometheus may ask; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The wires, in the order of the file.
    pub wires: Vec<WireSpec>,
}

impl Config {
    /// Checks the contents of a file that was read already.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, LoadError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| LoadError::Encoding { path: path.to_owned(), offset: error.valid_up_to() })?;
        Ok(Self::parse(&path.display().to_string(), text)?)
    }

    /// Checks a text; `file` is what its errors call it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        judge(file, text, read_config)
    }

    /// What the workers are started with.
    pub fn settings(&self) -> Settings {
        Settings { workers: self.workers.clone(), idle: self.idle }
    }

    /// The settings that differ from `self` in `newer` and that only a restart can change, one line each.
    pub fn needs_restart(&self, newer: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let mut compare = |name: &str, old: String, new: String| {
            if old != new {
                changes.push(format!("{name}: {old} is in use, {new} in the file; a restart changes it"));
            }
        };
        compare("workers", format!("{:?}", self.workers), format!("{:?}", newer.workers));
        compare("idle", idle_word(self.idle).to_owned(), idle_word(newer.idle).to_owned());
        compare("admin", self.admin.display().to_string(), newer.admin.display().to_string());
        let metrics =
            |config: &Self| config.metrics.map_or_else(|| "nothing".to_owned(), |address| address.to_string());
        compare("metrics", metrics(self), metrics(newer));
        changes
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: vec![0],
            idle: Idle::Adaptive,
            admin: PathBuf::from(ADMIN_DEFAULT),
            metrics: None,
            wires: Vec::new(),
        }
    }
}

/// A good wires file as it was read, to tell later whether it changed.
#[derive(Clone, Debug)]
pub struct WiresFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it held.
    pub contents: Vec<u8>,
    /// What that means.
    pub config: Config,
}

impl WiresFile {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let contents = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let config = Config::from_bytes(path, &contents)?;
        Ok(Self { path: path.to_owned(), contents, config })
    }
}

/// Checks one entry of `wires:`, as the admin API takes it; its errors call the text `wire`.
pub fn parse_wire(text: &str) -> Result<WireSpec, ConfigErrors> {
    judge("wire", text, |root, findings| {
        let wire = wire::read(root, findings);
        report_conflicts(std::slice::from_ref(&wire), std::slice::from_ref(root));
        wire
    })
}

/// Why a wires file could not be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("read the wires file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not text.
    #[error("{}: the byte at offset {offset} is not UTF-8", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Bytes before the first bad one.
        offset: usize,
    },
    /// The contents are wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
}

impl LoadError {
    /// One line for each thing that is wrong.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Wrong(errors) => errors.lines().collect(),
            other => vec![other.to_string()],
        }
    }
}

/// Everything that is wrong with a text, in the order of the text. Displayed as one line each.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", self.lines().collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors {
    /// What the text is called.
    pub file: String,
    /// At least one.
    pub errors: Vec<ConfigError>,
}

impl ConfigErrors {
    fn lines(&self) -> impl Iterator<Item = String> {
        self.errors.iter().map(|error| format!("{}:{error}", self.file))
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where in the text.
    pub at: Position,
    /// Which field, as in `wires[1].ends[0].memif.ring`; empty for an error of syntax.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.at;
        match self.field.as_str() {
            "" => write!(f, "{line}:{column}: {}", self.problem),
            field => write!(f, "{line}:{column}: {field}: {}", self.problem),
        }
    }
}

/// A place in a text; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character within it.
    pub column: usize,
}

fn judge<T>(file: &str, text: &str, read: impl FnOnce(&Field<'_>, &Findings) -> T) -> Result<T, ConfigErrors> {
    let errors = |errors| ConfigErrors { file: file.to_owned(), errors };
    let node = Node::parse(text).map_err(|error| errors(vec![error]))?;
    let findings = Findings::default();
    let value = read(&Field::root(&node, &findings), &findings);
    let found = findings.into_errors();
    if found.is_empty() { Ok(value) } else { Err(errors(found)) }
}

fn read_config(root: &Field<'_>, findings: &Findings) -> Config {
    let mut config = Config::default();
    let Some(table) = root.table(&["workers", "idle", "admin", "metrics", "wires"]) else {
        return config;
    };
    if let Some(workers) = table.optional("workers") {
        config.workers = read_workers(&workers);
    }
    if let Some(idle) = table.optional("idle") {
        let words = [Idle::Adaptive, Idle::Poll].map(|idle| (idle_word(idle), idle));
        config.idle = idle.choice(&words).unwrap_or_default();
    }
    if let Some(field) = table.optional("admin")
        && let Some(path) = field.text()
    {
        config.admin = PathBuf::from(path);
        if !config.admin.is_absolute() || path.len() > SOCKET_PATH_MAX {
            field.wrong(format!("`{path}`; an absolute path of at most {SOCKET_PATH_MAX} bytes is wanted"));
        }
    }
    config.metrics = table.optional("metrics").and_then(|field| field.parse_as("an address as in `127.0.0.1:9090`"));
    let entries = table.optional("wires").and_then(|field| field.items()).unwrap_or_default();
    config.wires = entries.iter().map(|entry| wire::read(entry, findings)).collect();
    report_conflicts(&config.wires, &entries);
    config
}

fn read_workers(field: &Field<'_>) -> Vec<usize> {
    let Some(items) = field.items() else { return Vec::new() };
    if items.is_empty() {
        field.wrong("at least one CPU is wanted, as in `[0]`");
    }
    let mut seen = HashSet::new();
    let mut workers = Vec::new();
    for item in &items {
        match item.number::<usize>(0..=CPU_MAX) {
            Some(cpu) if !seen.insert(cpu) => {
                item.wrong(format!("CPU {cpu} is in the list already; one worker has it"));
            }
            cpu => workers.extend(cpu),
        }
    }
    workers
}

fn report_conflicts(wires: &[WireSpec], entries: &[Field<'_>]) {
    for conflict in conflicts(wires) {
        let Conflict { later, earlier, problem, cure } = &conflict;
        let line = entries[earlier.wire].line_of(&earlier.field);
        let name = &wires[earlier.wire].name;
        entries[later.wire]
            .wrong_below(&later.field, format!("{problem}, by the wire `{name}` on line {line}; {cure}"));
    }
}

fn idle_word(idle: Idle) -> &'static str {
    match idle {
        Idle::Adaptive => "adaptive",
        Idle::Poll => "poll",
    }
}

/// Where the admin API listens unless told otherwise.
pub const ADMIN_DEFAULT: &str = "/run/ferrule/admin.sock";
/// `sun_path` has 108 bytes, one of them the closing NUL.
const SOCKET_PATH_MAX: usize = 107;
/// The last CPU of a `cpu_set_t`.
const CPU_MAX: u64 = 1023;

#[cfg(test)]
mod tests;
