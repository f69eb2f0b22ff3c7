//! The older form, one line for a rule.
//!
//! ```yaml
//! aclRules:
//!   "Allow ICMP": "action=reflect,icmptype=8"
//!   "Allow TCP 80": "action=reflect,tcplowport=80,tcpupport=80"
//! ```
//!
//! The rules are for what the client sends; what the network sends passes. There, a key that is misspelt or a port that is missing widens
//! the rule to all of IPv4; here it is an error.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ferrule_daemon::settings::{Field, closest};

use super::{check_names, contradiction, prefix};
use crate::firewall::rule::{Action, Match, Policy, Rule, Unmatched};
use crate::packet::{Family, ICMP, TCP, UDP};

/// Reads the map.
pub fn read(field: &Field<'_>) -> Policy {
    let entries = field.entries().unwrap_or_default();
    if entries.is_empty() {
        field.wrong("no rules, by which everything would pass; for that, join the wires without a firewall");
    }
    check_names(field, entries.iter().map(|(name, place)| (*name, place.clone())));
    let rules = entries.iter().filter_map(|(name, field)| read_rule(name, field)).collect();
    Policy { rules, unmatched: [Unmatched::Deny, Unmatched::Permit], not_ip: Unmatched::Permit }
}

fn read_rule(name: &str, field: &Field<'_>) -> Option<Rule> {
    let pairs = read_pairs(field)?;
    let mut problems = Vec::new();
    let action = match pairs.get("action").map(|action| action.to_ascii_lowercase()).as_deref() {
        Some("deny") => Some(Action::Deny),
        Some("permit") => Some(Action::Permit),
        Some("reflect") => Some(Action::Reflect),
        Some(other) => {
            problems.push(format!("action=`{other}`; deny, permit or reflect is wanted"));
            None
        }
        None => {
            problems.push("action is missing; add action=deny, action=permit or action=reflect".to_owned());
            None
        }
    };
    let mut net =
        |key| pairs.get(key).and_then(|text| prefix(text).map_err(|why| problems.push(format!("{key}={why}"))).ok());
    let (source, destination) = (net("srcnet"), net("dstnet"));
    for (given, other) in [("srcnet", "dstnet"), ("dstnet", "srcnet")] {
        if pairs.contains_key(given) && !pairs.contains_key(other) {
            problems.push(format!("{given} without {other}; add {other}=0.0.0.0/0 (or ::/0) for any"));
        }
    }
    let protocol = read_protocol(&pairs, &mut problems);
    let family = source.is_none().then_some(Family::V4);
    let (protocol, [source_ports, destination_ports]) = protocol;
    let rule = Match { family, source, destination, protocol, source_ports, destination_ports, ..Match::ANY };
    if problems.is_empty() {
        problems.extend(contradiction(&rule).map(ToOwned::to_owned));
    }
    for problem in problems {
        field.wrong(problem);
    }
    Some(Rule { name: name.to_owned(), action: action?, matches: [Some(rule), None] })
}

/// `key=value` between commas; blanks around either do not count.
fn read_pairs<'a>(field: &Field<'a>) -> Option<BTreeMap<String, &'a str>> {
    let mut pairs = BTreeMap::new();
    for pair in field.text()?.split(',') {
        let Some((key, value)) = pair.split_once('=') else {
            field.wrong(format!("`{}` is no key=value", pair.trim()));
            continue;
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        if !KEYS.contains(&key.as_str()) {
            field.wrong(match closest(&key, KEYS) {
                Some(meant) => format!("unknown key `{key}`; did you mean `{meant}`?"),
                None => format!("unknown key `{key}`; the keys here are {}", KEYS.join(", ")),
            });
        } else if pairs.insert(key.clone(), value).is_some() {
            field.wrong(format!("`{key}` is given twice; remove one"));
        }
    }
    Some(pairs)
}

/// The one protocol that is named, with its types or ports.
fn read_protocol(pairs: &BTreeMap<String, &str>, problems: &mut Vec<String>) -> (Option<u8>, [RangeInclusive<u16>; 2]) {
    const ANY: RangeInclusive<u16> = 0..=u16::MAX;
    let mut found = Vec::new();
    if let Some(text) = pairs.get("icmptype") {
        let kind =
            text.parse::<u8>().map_err(|_| problems.push(format!("icmptype=`{text}`; a number up to 255 is wanted")));
        found.push((ICMP, [kind.map_or(ANY, |kind| u16::from(kind)..=u16::from(kind)), ANY]));
    }
    for (protocol, low, up) in [(TCP, "tcplowport", "tcpupport"), (UDP, "udplowport", "udpupport")] {
        let port = |key: &str, other: &str, problems: &mut Vec<String>| {
            let Some(text) = pairs.get(key) else {
                problems.push(format!("{other} without {key}; add {key}, the same for one port"));
                return None;
            };
            let wrong = |_| problems.push(format!("{key}=`{text}`; a number up to 65535 is wanted"));
            text.parse::<u16>().map_err(wrong).ok()
        };
        if !pairs.contains_key(low) && !pairs.contains_key(up) {
            continue;
        }
        let ports = match (port(low, up, problems), port(up, low, problems)) {
            (Some(low_port), Some(up_port)) if low_port > up_port => {
                problems.push(format!("{low}={low_port} is above {up}={up_port}; swap them"));
                ANY
            }
            (Some(low_port), Some(up_port)) => low_port..=up_port,
            _ => ANY,
        };
        found.push((protocol, [ANY, ports]));
    }
    if found.len() > 1 {
        problems.push(
            "more than one of icmptype, tcp and udp ports; a rule is for one protocol: write two rules".to_owned(),
        );
    }
    found.into_iter().next().map_or((None, [ANY, ANY]), |(protocol, ranges)| (Some(protocol), ranges))
}

const KEYS: &[&str] = &["action", "srcnet", "dstnet", "icmptype", "tcplowport", "tcpupport", "udplowport", "udpupport"];
