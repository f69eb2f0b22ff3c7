//! The key `software`: endpoints of a resource that need no NIC, and how they are joined.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use ferrule_daemon::settings::{ConfigError, Field};

use super::Keys;

/// Endpoints of the forwarder, instead of devices of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Software {
    /// How many.
    pub count: u32,
    /// What a pod finds in its directory.
    pub kind: SoftwareKind,
    /// The resource, by its name alone, whose endpoints they are joined with, by number. None: with each other, 0 with 1, 2 with 3.
    pub peer: Option<String>,
}

impl Software {
    /// So many memif endpoints, joined with each other.
    pub fn of_count(count: u32) -> Self {
        Self { count, kind: SoftwareKind::default(), peer: None }
    }
}

/// What a pod finds in its directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SoftwareKind {
    /// The socket of a memif server.
    #[default]
    Memif,
    /// The socket of a vhost-user backend.
    VhostUser,
}

impl SoftwareKind {
    /// As it is written in the configuration, and in what pods are told.
    pub fn word(self) -> &'static str {
        match self {
            Self::Memif => "memif",
            Self::VhostUser => "vhost-user",
        }
    }
}

/// A number is short for so many memif endpoints.
pub(super) fn read(field: &Field<'_>, warnings: &mut Vec<ConfigError>) -> Option<Software> {
    if !field.is_table() {
        return Some(Software::of_count(field.number(COUNTS)?));
    }
    let keys = Keys::of(field, KEYS, warnings)?;
    let count = keys.get("count").map(|field| field.number(COUNTS));
    if count.is_none() {
        field.wrong("`count` is missing; a number of endpoints is wanted, as in `{\"count\": 8}`");
    }
    let kind = keys.get("kind").map_or(Some(SoftwareKind::default()), |field| field.choice(KINDS));
    let peer = keys.get("peer").map(Field::text);
    Some(Software {
        count: count??,
        kind: kind?,
        peer: match peer {
            Some(peer) => Some(peer?.to_owned()),
            None => None,
        },
    })
}

/// What is wrong with the endpoints of resources together. Each resource comes with a place, which its problem has as well, and its name.
pub(super) fn problems(all: &[(usize, &str, &Software)]) -> Vec<(usize, String)> {
    let mut by_name = BTreeMap::new();
    let mut problems = Vec::new();
    let mut words = BTreeSet::new();
    for &(place, name, software) in all {
        // A device of DPDK is named after it, and has no hyphen.
        if !words.insert(name.replace('-', "_")) && !by_name.contains_key(name) {
            let problem =
                "another resource with them has this name but for `-` and `_`, and DPDK cannot tell them apart";
            problems.push((place, problem.to_owned()));
        }
        if name.len() > NAME_MAX {
            problems.push((place, format!("the name `{name}` of a resource with them has at most {NAME_MAX} bytes")));
        }
        if by_name.insert(name, software).is_some() {
            let problem = "another resource with them has this `resourceName`: a prefix does not tell them apart, give one another";
            problems.push((place, problem.to_owned()));
        }
    }
    for &(place, name, software) in all {
        let Some(peer) = software.peer.as_deref() else {
            if software.count % 2 == 1 {
                let count = software.count;
                let problem = "endpoints of one resource are joined two by two: an even number is wanted, or a `peer`";
                problems.push((place, format!("`{count}`; {problem}")));
            }
            continue;
        };
        let names_it = |other: &&(usize, &str, &Software)| other.2.peer.as_deref() == Some(peer);
        let problem = match by_name.get(peer) {
            _ if peer == name => Some("without a `peer` they are joined with each other: remove it".to_owned()),
            None => Some(format!("there is no resource `{peer}` with software endpoints in this file")),
            Some(other) if other.count != software.count => {
                let (ours, theirs) = (software.count, other.count);
                Some(format!("it has {ours} endpoints and its peer `{peer}` {theirs}: give both the same number"))
            }
            Some(other) if other.peer.as_deref().is_some_and(|back| back != name) => {
                Some(format!("its peer `{peer}` names another, `{}`", other.peer.as_deref().unwrap_or_default()))
            }
            Some(_) if all.iter().filter(names_it).count() > 1 => {
                Some(format!("`{peer}` is the peer of several resources; a wire has two ends"))
            }
            Some(_) => None,
        };
        problems.extend(problem.map(|problem| (place, problem)));
    }
    problems
}

const KEYS: &[&str] = &["count", "kind", "peer"];
const KINDS: &[(&str, SoftwareKind)] = &[("memif", SoftwareKind::Memif), ("vhost-user", SoftwareKind::VhostUser)];
/// As many as the command line may ask for (`--software`).
const COUNTS: RangeInclusive<u64> = 1..=1024;
/// With it, a device of DPDK has a name of at most 63 bytes, a wire one of 64, and a socket's path in a pod 107.
const NAME_MAX: usize = 42;
