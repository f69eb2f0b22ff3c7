//! The three forms that the rules of a firewall are written in: [`own`], the map of `cmd-nse-firewall-vpp` ([`acl`]), and one line for a
//! rule ([`one_line`]). Rules are taken in the order of the file; whatever is in doubt is an error at its line, and nothing passes by a
//! file that is wrong.

pub mod acl;
pub mod one_line;
pub mod own;

use std::collections::BTreeSet;
use std::path::Path;

use ferrule_daemon::settings::{ConfigErrors, Field, FileSettings, LoadError, decode, parse};
use ipnet::IpNet;

use super::rule::{Match, Policy, Unmatched};
use crate::packet::{Family, ICMP, ICMP_V6, TCP, UDP};

impl FileSettings for Policy {
    const FILE: &'static str = "rules file";

    fn from_bytes(path: &Path, contents: &[u8]) -> Result<Self, LoadError> {
        Ok(read_text(&path.display().to_string(), decode(path, contents)?)?)
    }
}

/// Reads rules in whichever form they are: `rules:` is ours, `aclRules:` one line for each, any other mapping that of
/// `cmd-nse-firewall-vpp`.
pub fn read_text(file: &str, text: &str) -> Result<Policy, ConfigErrors> {
    parse(file, text, |field, _| read(field))
}

/// The same, of a field.
pub fn read(field: &Field<'_>) -> Policy {
    if field.is_empty() {
        field.wrong("no rules; write `rules: []` for a firewall that denies everything");
    } else if field.peek("rules").is_some() {
        if let Some(rules) = field.table(&["rules"]).and_then(|table| table.optional("rules")) {
            return own::read(&rules);
        }
    } else if field.peek("aclRules").is_some() {
        if let Some(rules) = field.table(&["aclRules"]).and_then(|table| table.optional("aclRules")) {
            return one_line::read(&rules);
        }
    } else {
        return acl::read(field);
    }
    DENY_ALL
}

/// What stands for rules that could not be read.
pub(super) const DENY_ALL: Policy =
    Policy { rules: Vec::new(), unmatched: [Unmatched::Deny; 2], not_ip: Unmatched::Deny };

/// Notes names that are given twice, and rules that are too many.
pub(super) fn check_names<'a>(field: &Field<'_>, names: impl Iterator<Item = (&'a str, Field<'a>)>) {
    let mut known = BTreeSet::new();
    let mut count = 0;
    for (name, place) in names {
        count += 1;
        if !known.insert(name) {
            place.wrong(format!("a rule before has the name `{name}`; give this one another"));
        }
    }
    if count > RULES_MAX {
        field.wrong(format!("{count} rules; at most {RULES_MAX} can be had: join prefixes or port ranges"));
    }
}

/// What is left to be said of a rule once its keys were read; none: it is good.
pub(super) fn contradiction(rule: &Match) -> Option<&'static str> {
    if [Family::V4, Family::V6].into_iter().any(|family| rule.is_for(family)) {
        return None;
    }
    let of = |net: &Option<IpNet>| net.map(|net| matches!(net, IpNet::V4(_)));
    Some(match (of(&rule.source), of(&rule.destination)) {
        (Some(source), Some(destination)) if source != destination => {
            "source and destination are of different families, so nothing matches; give both in one"
        }
        _ => {
            "its protocol and its prefixes are of different families, so nothing matches: ICMP is IPv4, ICMPv6 is IPv6"
        }
    })
}

/// A prefix; what stands behind its length is taken away.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let wanted = "a prefix such as 10.0.0.0/8 or fd00::/8 is wanted";
    text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| format!("`{text}`; {wanted}"))
}

/// What a protocol has: ports, types and codes, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Has {
    Ports,
    Types,
    Neither,
}

impl Has {
    pub(super) fn of(protocol: Option<u8>) -> Self {
        match protocol {
            Some(TCP | UDP) => Self::Ports,
            Some(ICMP | ICMP_V6) => Self::Types,
            _ => Self::Neither,
        }
    }
}

/// Rules of one firewall. A row of bits has one for each rule: with so many, all rows take some 20 MiB at most.
pub const RULES_MAX: usize = 4096;

#[cfg(test)]
mod tests;
