//! The policies file: text in, a checked [`Config`] out, or everything that is wrong with it in one go.
//!
//! Three kinds of text are understood, told apart by their first key: our own (`pools:`), the SR-IOV configuration of
//! NSM's forwarder (`physicalFunctions:`) and objects of the SR-IOV network operator (`kind:`), of which a text may hold
//! several documents. Modules: `pools`, `nsm`, `operator`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_daemon::ApiSocket;
use ferrule_daemon::settings::{ConfigErrors, Field, FileSettings, LoadError, SettingsFile, decode, parse_documents};

use crate::policy::{Policies, Source};
use sriov_manager_client::SOCKET_DEFAULT;

mod nsm;
mod operator;
mod pools;

/// A checked policies file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory of the journal.
    pub state: PathBuf,
    /// Where the API listens.
    pub socket: ApiSocket,
    /// Where Prometheus may ask; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How often the tree is looked at without being told.
    pub rescan: Duration,
    /// What there is to be, and who may have it.
    pub policies: Policies,
}

impl Config {
    /// Checks a text; `file` is what its errors call it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut config = parse_documents(file, text, |documents, _| read_documents(documents))?;
        for pool in &mut config.policies.pools {
            pool.name_source(file);
        }
        Ok(config)
    }

    /// What another file says about settings that only a restart changes, in words.
    pub fn needs_restart(&self, newer: &Self) -> Vec<String> {
        let metrics = |config: &Self| config.metrics.map_or_else(|| "nowhere".to_owned(), |there| there.to_string());
        let path = |path: &Path| path.display().to_string();
        let rescan = |config: &Self| humantime::format_duration(config.rescan).to_string();
        let settings = [
            ("state", path(&self.state), path(&newer.state)),
            ("metrics", metrics(self), metrics(newer)),
            ("rescan", rescan(self), rescan(newer)),
        ];
        let sockets = self.socket.in_words().into_iter().zip(newer.socket.in_words());
        let sockets = sockets.map(|((name, old), (_, new))| (name, old, new));
        let different = settings.into_iter().chain(sockets).filter(|(_, old, new)| old != new);
        different.map(|(name, old, new)| format!("{name}: {old} before, {new} now; a restart changes it")).collect()
    }
}

/// A good policies file as it was read.
pub type PoliciesFile = SettingsFile<Config>;

impl FileSettings for Config {
    const FILE: &'static str = "policies file";

    fn from_bytes(path: &Path, contents: &[u8]) -> Result<Self, LoadError> {
        Ok(Self::parse(&path.display().to_string(), decode(path, contents)?)?)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: PathBuf::from(STATE_DEFAULT),
            socket: ApiSocket::at(SOCKET_DEFAULT),
            metrics: None,
            rescan: Duration::from_secs(30),
            policies: Policies::default(),
        }
    }
}

fn read_documents(documents: &[Field<'_>]) -> Config {
    let of_others = |policies| Config { policies, ..Config::default() };
    let Some((root, others)) = documents.split_first() else { return Config::default() };
    if documents.iter().any(|document| document.peek("kind").is_some()) {
        return of_others(operator::read(documents));
    }
    for other in others {
        other.wrong("a second document; everything belongs in one");
    }
    if root.peek("physicalFunctions").is_some() { of_others(nsm::read(root)) } else { read_own(root) }
}

fn read_own(root: &Field<'_>) -> Config {
    let mut config = Config::default();
    let Some(table) = root.table(OWN_KEYS) else { return config };
    if let Some(field) = table.optional("state")
        && let Some(path) = field.text()
    {
        config.state = PathBuf::from(path);
        if !config.state.is_absolute() {
            field.wrong(format!("`{path}`; an absolute path is wanted"));
        }
    }
    config.socket = config.socket.read(&table, None);
    config.metrics = table.optional("metrics").and_then(|field| field.parse_as("an address as in `127.0.0.1:9091`"));
    if let Some(field) = table.optional("rescan")
        && let Some(text) = field.text()
    {
        match humantime::parse_duration(text) {
            Ok(time) if time >= RESCAN_MIN => config.rescan = time,
            _ => field.wrong(format!("`{text}`; a time of at least 100ms is wanted, as in `30s`")),
        }
    }
    let entries = table.optional("pools").and_then(|field| field.items()).unwrap_or_default();
    config.policies = pools::read(&entries);
    config
}

/// Where fields are, which a path below `field` names each. What they are of is given its file later.
fn source(field: &Field<'_>, fields: &[(&'static str, &str)]) -> Source {
    let lines = fields.iter().map(|&(name, path)| (name, field.line_of(path))).collect();
    Source { file: String::new(), lines }
}

/// Where the journal is unless told otherwise.
pub const STATE_DEFAULT: &str = "/var/lib/ferrule/vf";
const OWN_KEYS: &[&str] =
    &["state", "socket", "socket_owner", "socket_group", "socket_mode", "metrics", "rescan", "pools"];
const RESCAN_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
