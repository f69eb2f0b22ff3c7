//! Network services without a mesh: the section `services:` of a wires file, from which the wires of chains are made.
//!
//! ```yaml
//! services:
//!   files: [secure-intranet.yaml]
//!   functions:
//!     - { name: firewall-1, service: secure, labels: { app: firewall }, client: { memif: .. }, network: { memif: .. } }
//!     - { name: gateway-1, service: secure, labels: { app: gateway }, client: { memif: .. } }
//!   clients:
//!     - { name: nsc, service: secure, end: { kernel: .. } }
//! ```
//!
//! Modules in reading order: `document` (what Network Service Mesh says of a service), `compose` (the wires; pure).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use ferrule_daemon::settings::{Diagnostics, Field};
use ferrule_dataplane::spec::WireSpec;
use ferrule_nsm::proto::registry::NetworkService;

use self::compose::{ChainClient, ChainFunction, Composed, chain_of, compose};
use super::Assignments;
use super::wire::{read_alone, read_labels};

mod compose;
mod document;

/// Who offers, who asks, and the chains that come of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chains {
    services: Vec<NetworkService>,
    functions: Vec<ChainFunction>,
    clients: Vec<ChainClient>,
    composed: Composed,
    warnings: Vec<String>,
}

impl Chains {
    /// Reads the section, and composes the chains as if there had been none before. Files are looked for in `directory`. With them comes
    /// whose each wire is.
    pub(super) fn read<'a>(
        field: &Field<'a>,
        directory: &Path,
        diagnostics: &Diagnostics,
    ) -> Option<(Self, Vec<Field<'a>>)> {
        let table = field.table(&["files", "functions", "clients"])?;
        let items = |key| table.optional(key).and_then(|field: Field<'a>| field.items()).unwrap_or_default();
        let (mut services, mut warnings) = (Vec::new(), Vec::new());
        let mut good = true;
        for file in items("files") {
            match read_documents(&file, directory) {
                Some(documents) => {
                    services.extend(documents.services);
                    warnings.extend(documents.warnings);
                }
                None => good = false,
            }
        }
        good &= are_unique(&table, &services);
        let entries = items("clients");
        let functions: Vec<_> = items("functions").iter().map(|field| read_function(field, diagnostics)).collect();
        let clients: Vec<_> = entries.iter().map(|field| read_client(field, diagnostics)).collect();
        let functions = functions.into_iter().collect::<Option<Vec<_>>>();
        let (Some(functions), Some(clients), true) = (functions, clients.into_iter().collect::<Option<Vec<_>>>(), good)
        else {
            return None;
        };
        good &= have_names(&items("functions"), &entries);
        match compose(&services, &functions, &clients, &Assignments::new()) {
            Ok(composed) if good => {
                let whose = composed.wires.iter().map(|(client, _)| entries[*client].clone()).collect();
                Some((Self { services, functions, clients, composed, warnings }, whose))
            }
            Ok(_) => None,
            Err(unserved) => {
                for unserved in unserved {
                    entries[unserved.client].wrong(unserved.problem);
                }
                None
            }
        }
    }

    /// The wires of all chains.
    pub fn wires(&self) -> impl ExactSizeIterator<Item = &WireSpec> {
        self.composed.wires.iter().map(|(_, wire)| wire)
    }

    /// Who comes next to whom.
    pub fn assignments(&self) -> &Assignments {
        &self.composed.next
    }

    /// Leaves with each client what it had before, as far as that is still right.
    pub fn keep(&mut self, before: &Assignments) {
        // What a client had may leave none for another one: then all are served anew.
        if let Ok(composed) = compose(&self.services, &self.functions, &self.clients, before) {
            self.composed = composed;
        }
    }

    /// Each chain in a line.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.clients.iter().map(|client| {
            let behind = chain_of(&client.name, &self.composed.next);
            std::iter::once(client.name.as_str()).chain(behind).collect::<Vec<_>>().join(" - ")
        })
    }

    /// What is no error, and probably not meant.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The documents of one file; an error is noted at its entry, with its own place.
fn read_documents(field: &Field<'_>, directory: &Path) -> Option<document::Documents> {
    let path = directory.join(field.text()?);
    let name = path.display().to_string();
    let text = fs::read_to_string(&path).map_err(|error| field.wrong(format!("read {name}: {error}"))).ok()?;
    match document::read(&name, &text) {
        Ok(documents) => Some(documents),
        Err(errors) => {
            errors.lines().for_each(|line| field.wrong(line));
            None
        }
    }
}

fn are_unique(table: &ferrule_daemon::settings::Table<'_>, services: &[NetworkService]) -> bool {
    let mut seen = HashSet::new();
    let twice: Vec<_> = services.iter().filter(|service| !seen.insert(&service.name)).collect();
    for service in &twice {
        if let Some(files) = table.optional("files") {
            files.wrong(format!("two documents have the network service `{}`; remove one of them", service.name));
        }
    }
    twice.is_empty()
}

fn read_function(field: &Field<'_>, diagnostics: &Diagnostics) -> Option<ChainFunction> {
    let table = field.table(&["name", "service", "labels", "client", "network"])?;
    let text = |key, what| table.required(key, what).and_then(|field| field.text()).map(ToOwned::to_owned);
    let (name, service) = (text("name", NAME), text("service", SERVICE));
    let client = table.required("client", "our end where its client is").map(|field| read_alone(&field, diagnostics));
    Some(ChainFunction {
        labels: table.optional("labels").map(|field| read_labels(&field)).unwrap_or_default(),
        network: table.optional("network").map(|field| read_alone(&field, diagnostics)),
        name: name?,
        service: service?,
        client: client?,
    })
}

fn read_client(field: &Field<'_>, diagnostics: &Diagnostics) -> Option<ChainClient> {
    let table = field.table(&["name", "service", "labels", "end"])?;
    let text = |key, what| table.required(key, what).and_then(|field| field.text()).map(ToOwned::to_owned);
    let (name, service) = (text("name", NAME), text("service", SERVICE));
    let end = table.required("end", "the client's end").map(|field| read_alone(&field, diagnostics));
    let labels = table.optional("labels").map(|field| read_labels(&field)).unwrap_or_default();
    Some(ChainClient { name: name?, service: service?, labels, end: end? })
}

/// Whether the names of functions and clients can be those of wires, two and two.
fn have_names(functions: &[Field<'_>], clients: &[Field<'_>]) -> bool {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut good = true;
    for entry in functions.iter().chain(clients) {
        let Some(field) = entry.peek("name") else { continue };
        let Some(name) = field.text() else { continue };
        let problem = if !(1..=NAME_MAX).contains(&name.len()) || name.contains(|c: char| c == ':' || c.is_control()) {
            Some(format!("`{}`; {NAME} is wanted", name.escape_debug()))
        } else {
            let line = entry.line_of("name");
            seen.insert(name, line)
                .map(|first| format!("`{name}` has that name already, on line {first}; rename one of them"))
        };
        if let Some(problem) = problem {
            field.wrong(problem);
            good = false;
        }
    }
    good
}

const SERVICE: &str = "the name of a network service";
const NAME: &str = "a name of 1 to 31 bytes without `:`";
/// Two of them and what is between are the name of a wire.
const NAME_MAX: usize = 31;
