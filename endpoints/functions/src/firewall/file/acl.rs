//! The file of `cmd-nse-firewall-vpp`: a map of named rules.
//!
//! ```yaml
//! allow tcp8080: {ispermit: 1, proto: 6, srcportoricmptypelast: 65535, dstportoricmpcodefirst: 8080, dstportoricmpcodelast: 8080}
//! ```
//!
//! What comes from the network is judged by the same rules with source and destination swapped. There, rules come in random order, and what
//! cannot be read lets everything pass; here they come in the order of the file, and it is refused.

use std::ops::RangeInclusive;

use ferrule_daemon::settings::{Field, Table};

use super::{DENY_ALL, Has, check_names, contradiction, prefix};
use crate::firewall::rule::{Action, Match, Policy, Rule, Unmatched};
use crate::packet::{Family, TCP};

/// Reads the map.
pub fn read(field: &Field<'_>) -> Policy {
    let entries = field.entries().unwrap_or_default();
    check_names(field, entries.iter().map(|(name, place)| (*name, place.clone())));
    let rules = entries.iter().filter_map(|(name, field)| read_rule(name, field)).collect();
    // As in VPP, an ACL is about IP.
    Policy { rules, not_ip: Unmatched::Permit, ..DENY_ALL }
}

fn read_rule(name: &str, field: &Field<'_>) -> Option<Rule> {
    let table = field.table(KEYS)?;
    let action = table.optional("ispermit").map_or(Some(Action::Deny), |field| {
        field.choice(&[("0", Action::Deny), ("1", Action::Permit), ("2", Action::Reflect)])
    });
    let number = |key| table.optional(key).map_or(Some(0), |field: Field<'_>| field.number::<u8>(0..=255));
    let protocol = number("proto").map(|number| (number != 0).then_some(number))?;
    let prefixes = ["srcprefix", "dstprefix"].map(|key| {
        let field = table.optional(key)?;
        prefix(field.text()?).map_err(|problem| field.wrong(problem)).ok()
    });
    let [source, destination] = prefixes;
    // A prefix that is not there is one of IPv4.
    let family = (source.is_none() || destination.is_none()).then_some(Family::V4);
    let [source_ports, destination_ports] = [SOURCE, DESTINATION].map(|keys| read_range(field, &table, keys, protocol));
    let (tcp_mask, tcp_value) = (number("tcpflagsmask")?, number("tcpflagsvalue")?);
    for key in ["tcpflagsmask", "tcpflagsvalue"] {
        if protocol != Some(TCP) && table.optional(key).is_some() {
            field.wrong_below(key, format!("rule `{name}` is not about TCP; add `proto: 6`"));
        }
    }
    if tcp_value & !tcp_mask != 0 {
        field.wrong_below("tcpflagsvalue", "it has bits that tcpflagsmask has not, so nothing matches; add them there");
    }
    let rule = Match { family, source, destination, protocol, source_ports, destination_ports, tcp_mask, tcp_value };
    if let Some(problem) = contradiction(&rule) {
        let cure = "a prefix that is not given is 0.0.0.0/0: for IPv6 give both, as in `srcprefix: \"::/0\"`";
        field.wrong(format!("{problem} ({cure})"));
    }
    let back = mirrored(&rule);
    Some(Rule { name: name.to_owned(), action: action?, matches: [Some(rule), Some(back)] })
}

/// What the same rule means of that which comes from the network. ICMP keeps type and code, which have no direction.
fn mirrored(rule: &Match) -> Match {
    let (source, destination) = (rule.destination, rule.source);
    let mut back = Match { source, destination, ..rule.clone() };
    if Has::of(rule.protocol) != Has::Types {
        std::mem::swap(&mut back.source_ports, &mut back.destination_ports);
    }
    back
}

fn read_range(
    rule: &Field<'_>,
    table: &Table<'_>,
    [first_key, last_key]: [&'static str; 2],
    protocol: Option<u8>,
) -> RangeInclusive<u16> {
    let ends = [first_key, last_key].map(|key| table.optional(key));
    if Has::of(protocol) == Has::Neither {
        for given in ends.iter().flatten() {
            given.wrong("ports need `proto: 6` or `proto: 17`, types and codes `proto: 1` or `proto: 58`");
        }
        return 0..=u16::MAX;
    }
    let number = |field: &Option<Field<'_>>| {
        field.as_ref().map_or(Some(0), |field| field.number::<u16>(0..=u64::from(u16::MAX)))
    };
    let (Some(first), Some(last)) = (number(&ends[0]), number(&ends[1])) else { return 0..=u16::MAX };
    if ends[1].is_none() {
        let problem =
            format!("missing, so that only {first} to 0 would match; write 65535 for any, or {first} for one");
        rule.wrong_below(last_key, problem);
    } else if first > last {
        rule.wrong_below(last_key, format!("{last} is below {first_key}, {first}: nothing matches; swap them"));
    }
    first..=last.max(first)
}

const KEYS: &[&str] = &[
    "ispermit",
    "proto",
    "srcprefix",
    "dstprefix",
    "srcportoricmptypefirst",
    "srcportoricmptypelast",
    "dstportoricmpcodefirst",
    "dstportoricmpcodelast",
    "tcpflagsmask",
    "tcpflagsvalue",
];
const SOURCE: [&str; 2] = ["srcportoricmptypefirst", "srcportoricmptypelast"];
const DESTINATION: [&str; 2] = ["dstportoricmpcodefirst", "dstportoricmpcodelast"];
