//! The wires file: text in, a checked [`Config`] out, or everything that is wrong with it in one go.
//!
//! Modules in reading order: `wire` (one entry of `wires:`), `chains` (network services, from which wires are made), `conflicts` (wires
//! beside each other). How a text
//! becomes values, with every error at its line, is the same for every file here: `ferrule_daemon::settings`.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ferrule_daemon::ApiSocket;
use ferrule_daemon::settings::{Diagnostics, Field, FileSettings, SettingsFile, decode, parse};
use ferrule_dataplane::spec::{ByteSize, FieldError, WireSpec};
use ferrule_dataplane::{Idle, Settings};
use ferrule_ethdev::{DpdkSettings, LeaseSettings};

use crate::nsm::NsmSettings;
#[cfg(feature = "nsm")]
pub use chains::Chains;
#[cfg(not(feature = "nsm"))]
pub use chains::NoChains as Chains;
use conflicts::{Conflict, conflicts};
pub use dpdk_forwarder_client::ADMIN_DEFAULT;
pub use ferrule_daemon::settings::{ConfigError, ConfigErrors, LoadError, Position};

#[cfg(feature = "nsm")]
mod chains;
#[cfg(not(feature = "nsm"))]
#[path = "without_chains.rs"]
mod chains;
mod conflicts;
mod wire;

/// A checked wires file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// CPUs of the polling threads.
    pub workers: Vec<usize>,
    /// What a worker without work does.
    pub idle: Idle,
    /// Where the admin API listens, and who may use it.
    pub socket: ApiSocket,
    /// Where Prometheus may ask; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where wires of the admin API are kept for the next start; none: nowhere.
    pub journal: Option<PathBuf>,
    /// How DPDK is started, when a wire asks for it.
    pub dpdk: DpdkSettings,
    /// The socket of the manager that lends VFs.
    pub sriov_manager: PathBuf,
    /// How it takes part in Network Service Mesh; none: not at all.
    pub nsm: Option<NsmSettings>,
    /// The wires, in the order of the file, then those of chains.
    pub wires: Vec<WireSpec>,
    /// The chains; none: the file has no network services.
    pub chains: Option<Chains>,
}

/// Who comes next on a chain, by the name of a client or function.
pub type Assignments = BTreeMap<String, String>;

impl Config {
    /// Checks a text; `file` is what its errors call it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let directory = Path::new(file).parent().unwrap_or(Path::new("."));
        parse(file, text, |root, diagnostics| read_config(root, diagnostics, directory))
    }

    /// Leaves with each client of a chain the functions that it had, as far as the file lets it.
    pub fn keep_chains(&mut self, before: &Assignments) {
        if let Some(chains) = &mut self.chains {
            self.wires.truncate(self.wires.len() - chains.wires().len());
            chains.keep(before);
            self.wires.extend(chains.wires().cloned());
        }
    }

    /// Who comes next to whom.
    pub fn assignments(&self) -> Assignments {
        self.chains.as_ref().map(|chains| chains.assignments().clone()).unwrap_or_default()
    }

    /// What the workers are started with.
    pub fn settings(&self) -> Settings {
        Settings { idle: self.idle, ..Settings::new(self.workers.clone()) }
    }

    /// Where VFs come from, and by which name this forwarder has them; `identity`: what another one of the same socket path has not.
    pub fn lease_settings(&self, identity: Option<&str>) -> LeaseSettings {
        let identity = identity.map(|word| format!(" {word}")).unwrap_or_default();
        let forwarder = format!("dpdk-forwarder {}{identity}", self.socket.path.display());
        LeaseSettings { manager: self.sriov_manager.clone(), forwarder }
    }

    /// The settings that differ from `self` in `newer` and that only a restart can change, one line each. Those that were
    /// given on the command line are left out: whatever the file says of them, nothing changes.
    pub fn needs_restart(&self, newer: &Self, by_flag: &[&str]) -> Vec<String> {
        let mut changes = Vec::new();
        let mut compare = |name: &str, old: String, new: String| {
            if old != new && !by_flag.contains(&name) {
                changes.push(format!("{name}: {old} is in use, {new} in the file; a restart changes it"));
            }
        };
        compare("workers", format!("{:?}", self.workers), format!("{:?}", newer.workers));
        compare("idle", idle_word(self.idle).to_owned(), idle_word(newer.idle).to_owned());
        for ((name, old), (_, new)) in self.socket.in_words().into_iter().zip(newer.socket.in_words()) {
            compare(name, old, new);
        }
        let metrics =
            |config: &Self| config.metrics.map_or_else(|| "nothing".to_owned(), |address| address.to_string());
        compare("metrics", metrics(self), metrics(newer));
        let journal = |config: &Self| {
            config.journal.as_ref().map_or_else(|| "nothing".to_owned(), |path| path.display().to_string())
        };
        compare("journal", journal(self), journal(newer));
        let memory = |config: &Self| format!("{}MiB", config.dpdk.memory_mib);
        compare("dpdk.memory", memory(self), memory(newer));
        compare("dpdk.hugepages", self.dpdk.hugepages.to_string(), newer.dpdk.hugepages.to_string());
        let manager = |config: &Self| config.sriov_manager.display().to_string();
        compare("sriov_manager", manager(self), manager(newer));
        let nsm = |config: &Self| config.nsm.as_ref().map_or_else(|| "nothing".to_owned(), |nsm| format!("{nsm:?}"));
        compare("nsm", nsm(self), nsm(newer));
        changes
    }
}

impl FileSettings for Config {
    const FILE: &'static str = "wires file";

    fn from_bytes(path: &Path, contents: &[u8]) -> Result<Self, LoadError> {
        Ok(Self::parse(&path.display().to_string(), decode(path, contents)?)?)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: vec![0],
            idle: Idle::Adaptive,
            socket: ApiSocket::at(ADMIN_DEFAULT),
            metrics: None,
            journal: None,
            dpdk: DpdkSettings::default(),
            sriov_manager: LeaseSettings::default().manager,
            nsm: None,
            wires: Vec::new(),
            chains: None,
        }
    }
}

/// A good wires file as it was read.
pub type WiresFile = SettingsFile<Config>;

/// Checks one entry of `wires:`, as a person gives it to a running forwarder; its errors call the text `wire`.
pub fn parse_wire(text: &str) -> Result<WireSpec, ConfigErrors> {
    parse("wire", text, |root, diagnostics| {
        let wire = wire::read(root, diagnostics);
        report_conflicts(std::slice::from_ref(&wire), std::slice::from_ref(root), &[]);
        wire
    })
}

fn read_config(root: &Field<'_>, diagnostics: &Diagnostics, directory: &Path) -> Config {
    let mut config = Config::default();
    let Some(table) = root.table(&[
        "workers",
        "idle",
        "socket",
        "socket_owner",
        "socket_group",
        "socket_mode",
        "admin",
        "metrics",
        "journal",
        "dpdk",
        "sriov_manager",
        "nsm",
        "wires",
        "services",
    ]) else {
        return config;
    };
    if let Some(workers) = table.optional("workers") {
        config.workers = read_workers(&workers);
    }
    if let Some(idle) = table.optional("idle") {
        let words = [Idle::Adaptive, Idle::Poll].map(|idle| (idle_word(idle), idle));
        config.idle = idle.choice(&words).unwrap_or_default();
    }
    config.socket = config.socket.read(&table, Some("admin"));
    config.metrics = table.optional("metrics").and_then(|field| field.parse_as("an address as in `127.0.0.1:9090`"));
    config.journal = table.optional("journal").and_then(|field| read_path(&field));
    config.dpdk = table.optional("dpdk").map_or_else(DpdkSettings::default, |field| read_dpdk(&field));
    let manager = table.optional("sriov_manager").and_then(|field| read_path(&field));
    config.sriov_manager = manager.unwrap_or(config.sriov_manager);
    config.nsm = table.optional("nsm").map(|field| NsmSettings::read(&field));
    let entries = table.optional("wires").and_then(|field| field.items()).unwrap_or_default();
    config.wires = entries.iter().map(|entry| wire::read(entry, diagnostics)).collect();
    let chains = table.optional("services").and_then(|field| Chains::read(&field, directory, diagnostics));
    let mut clients = Vec::new();
    if let Some((chains, whose)) = chains {
        for (wire, client) in chains.wires().zip(&whose) {
            for error in wire.check() {
                client.wrong(format!("the wire `{}`: {}: {}", wire.name, error.field, error.problem));
            }
        }
        config.wires.extend(chains.wires().cloned());
        (config.chains, clients) = (Some(chains), whose);
    }
    report_conflicts(&config.wires, &entries, &clients);
    config
}

fn read_dpdk(field: &Field<'_>) -> DpdkSettings {
    let mut dpdk = DpdkSettings::default();
    let Some(table) = field.table(&["memory", "hugepages"]) else { return dpdk };
    if let Some(field) = table.optional("memory")
        && let Some(memory) = field.parse::<ByteSize>()
    {
        match u32::try_from(memory.as_bytes() / MIB) {
            Ok(mib) if DPDK_MEMORY_MIB.contains(&mib) => dpdk.memory_mib = mib,
            _ => field.wrong(format!("{memory}; 64MiB to 1024GiB are possible")),
        }
    }
    let hugepages = table.optional("hugepages");
    dpdk.hugepages = hugepages.and_then(|field| field.choice(&[("true", true), ("false", false)])).unwrap_or_default();
    dpdk
}

fn read_path(field: &Field<'_>) -> Option<PathBuf> {
    file_path(field.text()?).map_err(|problem| field.wrong(problem)).ok()
}

/// The path of a file of ours; the error says what is wanted.
pub fn file_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        return Err(format!("`{text}`; an absolute path to a file is wanted"));
    }
    Ok(PathBuf::from(text))
}

/// A list of CPUs, or a text as the kernel writes such lists: `0-3,6`. An item of a list may be a range too.
fn read_workers(field: &Field<'_>) -> Vec<usize> {
    let items: Vec<(Field<'_>, &str)> = if field.is_text() {
        let parts = field.text().unwrap_or_default().split(',');
        parts.map(|part| (field.clone(), part.trim())).collect()
    } else {
        let Some(items) = field.items() else { return Vec::new() };
        if items.is_empty() {
            field.wrong("at least one CPU is wanted, as in `[0]`");
        }
        items.into_iter().filter_map(|item| item.text().map(|text| (item.clone(), text))).collect()
    };
    let mut seen = HashSet::new();
    let mut workers = Vec::new();
    for (item, text) in items {
        let Some(cpus) = cpu_range(text) else {
            item.wrong(format!("`{text}`; a number from 0 to {CPU_MAX} is wanted, or a range as in `0-3`"));
            continue;
        };
        for cpu in cpus {
            if seen.insert(cpu) {
                workers.push(cpu);
            } else {
                item.wrong(format!("CPU {cpu} is in the list already; one worker has it"));
            }
        }
    }
    workers
}

/// `3` or `0-3`.
fn cpu_range(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let cpu = |text: &str| text.trim().parse().ok().filter(|&cpu: &usize| cpu <= CPU_MAX);
    let range = cpu(first)?..=cpu(last)?;
    (!range.is_empty()).then_some(range)
}

/// `entries` are those of the first wires, `clients` those whose chains the others are of.
fn report_conflicts(wires: &[WireSpec], entries: &[Field<'_>], clients: &[Field<'_>]) {
    for Conflict { later, earlier, problem, cure } in conflicts(wires) {
        let line = match entries.get(earlier.wire) {
            Some(entry) => entry.line_of(&earlier.field),
            None => clients[earlier.wire - entries.len()].line_of("name"),
        };
        let problem = format!("{problem}, by the wire `{}` on line {line}; {cure}", wires[earlier.wire].name);
        match entries.get(later.wire) {
            Some(entry) => entry.wrong_below(&later.field, problem),
            None => clients[later.wire - entries.len()]
                .wrong(format!("the wire `{}`: {}: {problem}", wires[later.wire].name, later.field)),
        }
    }
}

/// What the ends of one wire must not share with each other.
pub(crate) fn conflicts_within(wire: &WireSpec) -> Vec<FieldError> {
    let error = |Conflict { later, problem, cure, .. }| FieldError {
        field: later.field,
        problem: format!("{problem}, by the other end; {cure}"),
    };
    conflicts(std::slice::from_ref(wire)).into_iter().map(error).collect()
}

fn idle_word(idle: Idle) -> &'static str {
    match idle {
        Idle::Adaptive => "adaptive",
        Idle::Poll => "poll",
    }
}

const MIB: u64 = 1 << 20;
/// Less does not hold the frames of a few queues.
const DPDK_MEMORY_MIB: RangeInclusive<u32> = 64..=1 << 20;
/// The last CPU of a `cpu_set_t`.
const CPU_MAX: usize = 1023;

#[cfg(test)]
mod tests;
