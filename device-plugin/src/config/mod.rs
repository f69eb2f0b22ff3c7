//! The configuration: the file of the Go sriov-network-device-plugin as it is, key for key, and keys of our own that it would ignore.
//!
//! As that plugin does, keys match without regard to case, keys that nobody knows are ignored, and an entry whose selectors cannot
//! be read is left out while the others are used; each such thing is a warning. Modules: `resource` (one entry), `selector` (what of
//! the node it means), `pf_functions` (some functions of a PF), `software` (endpoints without a NIC), `networks` (for a CNI plugin), `nsm` (the file of Network Service
//! Mesh's SR-IOV forwarder, which is understood as well).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferrule_daemon::settings::{ConfigError, ConfigErrors, Field, LoadError, closest, decode, parse};
use serde_json::Value;

mod networks;
mod nsm;
mod pf_functions;
mod resource;
mod selector;
mod software;

pub use pf_functions::PfFunctions;
pub use resource::{Policy, ResourceConfig, ResourceName, parse_prefix};
pub use selector::{DeviceType, Selector, VdpaType};
pub use software::{Software, SoftwareKind};

/// A checked configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// In the order of the file: a device goes to the first that takes it.
    pub resources: Vec<Arc<ResourceConfig>>,
    /// What was left out or is not as it seems, in the order of the text.
    pub warnings: Vec<ConfigError>,
    /// Entries that cannot be used, such as `dpdk (line 2)`: a warning says why.
    pub left_out: Vec<String>,
}

/// Everything that is to be said of a configuration.
#[derive(Debug)]
pub struct Checked {
    /// What is left out or is not as it seems, also of one that cannot be used.
    pub warnings: Vec<ConfigError>,
    /// The configuration, or why it cannot be used.
    pub config: Result<Config, ConfigErrors>,
}

/// What the command line says of resources that say nothing themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presets {
    /// What they have in front of their name.
    pub prefix: String,
    /// How many software endpoints those of NICs have instead of VFs; none: their VFs.
    pub software: Option<u32>,
}

impl From<&str> for Presets {
    fn from(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), software: None }
    }
}

impl Config {
    /// What errors and the log call the file.
    pub const FILE: &'static str = "configuration";

    /// Checks a text; `file` is what its errors call it.
    pub fn parse(file: &str, text: &str, presets: impl Into<Presets>) -> Result<Self, ConfigErrors> {
        Self::check(file, text, presets).config
    }

    /// Says everything of a text; `file` is what its errors call it.
    pub fn check(file: &str, text: &str, presets: impl Into<Presets>) -> Checked {
        let presets = presets.into();
        let mut warnings = Vec::new();
        let config = parse(file, text, |root, _| {
            let config = read(root, text, &presets);
            warnings.clone_from(&config.warnings);
            config
        });
        Checked { warnings, config }
    }

    /// Checks the contents of the file at `path`.
    pub fn from_bytes(path: &Path, contents: &[u8], presets: impl Into<Presets>) -> Result<Self, LoadError> {
        Ok(Self::parse(&path.display().to_string(), decode(path, contents)?, presets)?)
    }
}

/// A good configuration as it was read, to tell later whether it changed.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it held.
    pub contents: Vec<u8>,
    /// What that means.
    pub config: Config,
}

impl ConfigFile {
    /// Reads and checks a file.
    pub fn load(path: &Path, presets: impl Into<Presets>) -> Result<Self, LoadError> {
        let read = |source| LoadError::Read { what: Config::FILE, path: path.to_owned(), source };
        let contents = fs::read(path).map_err(read)?;
        let config = Config::from_bytes(path, &contents, presets)?;
        Ok(Self { path: path.to_owned(), contents, config })
    }
}

fn read(root: &Field<'_>, text: &str, presets: &Presets) -> Config {
    if root.is_table() && root.peek("physicalFunctions").is_some() {
        return Config { resources: nsm::read(root), ..Config::default() };
    }
    let mut config = Config::default();
    let Some(keys) = Keys::of(root, &["resourceList"], &mut config.warnings) else { return config };
    let Some(list) = keys.get("resourceList") else {
        root.wrong("`resourceList` is missing; a list of resources is wanted, as in `{\"resourceList\": []}`");
        return config;
    };
    let mut lines = BTreeMap::new();
    let mut entries = Vec::new();
    let raw = networks::raw_entries(text);
    for (place, entry) in list.items().unwrap_or_default().into_iter().enumerate() {
        let raw = raw.get(place).unwrap_or(&Value::Null);
        let Some(resource) = resource::read(&entry, raw, &presets.prefix, &mut config.warnings) else {
            config.left_out.push(resource::called(&entry));
            continue;
        };
        let name = resource.name.to_string();
        let line = entry.line_of("");
        if let Some(first) = lines.get(&name) {
            entry.wrong(format!(
                "the resource `{name}` is on line {first} already; give one of them another `resourceName`, or make \
                 both one entry with a list of selectors"
            ));
            continue;
        }
        lines.insert(name, line);
        config.resources.push(Arc::new(resource));
        entries.push(entry);
    }
    if let Some(count) = presets.software {
        config.resources.iter_mut().for_each(|resource| preset(resource, count));
    }
    let resources = config.resources.iter().enumerate();
    let software: Vec<_> = resources
        .filter_map(|(place, resource)| Some((place, resource.name.name.as_str(), resource.software.as_ref()?)))
        .collect();
    for (place, problem) in software::problems(&software) {
        entries[place].wrong_below("software", problem);
    }
    config
}

/// A resource of NICs that says nothing of software endpoints has so many.
fn preset(resource: &mut Arc<ResourceConfig>, count: u32) {
    if resource.device_type == DeviceType::NetDevice && resource.software.is_none() {
        Arc::make_mut(resource).software = Some(Software::of_count(count));
    }
}

/// The keys of a mapping, found as Go finds them: without regard to case, and the last of several.
struct Keys<'a>(Vec<(&'a str, Field<'a>)>);

impl<'a> Keys<'a> {
    /// The mapping, if it is one. An unknown key that looks like a known one is a warning.
    fn of(field: &Field<'a>, known: &[&'static str], warnings: &mut Vec<ConfigError>) -> Option<Self> {
        let entries = field.entries()?;
        for (key, value) in &entries {
            if known.iter().any(|known| known.eq_ignore_ascii_case(key)) {
                continue;
            }
            if let Some(meant) = closest(key, known) {
                warnings.push(value.error(format!("this key means nothing and is ignored; did you mean `{meant}`?")));
            }
        }
        Some(Self(entries))
    }

    /// The value of a key; none: it is not there, or nothing is written.
    fn get(&self, key: &str) -> Option<&Field<'a>> {
        let found = self.0.iter().rev().find(|(written, _)| written.eq_ignore_ascii_case(key));
        found.map(|(_, field)| field).filter(|field| !field.is_null())
    }
}

#[cfg(test)]
mod tests;
