//! Our own form: an ordered list.
//!
//! ```yaml
//! rules:
//!   - { name: ping, action: reflect, protocol: icmp, icmp_type: 8 }
//!   - { name: web, action: reflect, protocol: tcp, ports: 80 }
//!   - { name: dns, action: permit, from: either, protocol: udp, destination: 10.0.0.0/8, ports: 53 }
//! ```

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ferrule_daemon::settings::{Field, Table};
use ipnet::IpNet;

use super::{DENY_ALL, Has, check_names, contradiction};
use crate::firewall::rule::{Action, Match, Policy, Rule};
use crate::function::Side;
use crate::packet::{Family, ICMP, ICMP_V6, TCP, UDP, opens_way_back};

/// Reads the list. What none of its rules names is denied, on either side.
pub fn read(field: &Field<'_>) -> Policy {
    let items = field.items().unwrap_or_default();
    let names = items.iter().filter_map(|item| item.peek("name"));
    check_names(field, names.filter_map(|name| Some((name.is_text().then(|| name.text()).flatten()?, name))));
    Policy { rules: items.iter().filter_map(read_rule).collect(), ..DENY_ALL }
}

fn read_rule(field: &Field<'_>) -> Option<Rule> {
    let table = field.table(KEYS)?;
    let name = table.required("name", "a name that no other rule has").and_then(|name| name.text());
    let action = table.required("action", "`permit`, `deny` or `reflect`").and_then(|action| {
        action.choice(&[("permit", Action::Permit), ("deny", Action::Deny), ("reflect", Action::Reflect)])
    });
    let sides: &[Side] = table.optional("from").map_or(Some(&[Side::Client][..]), |from| {
        from.choice(&[("client", &[Side::Client][..]), ("network", &[Side::Network][..]), ("either", &Side::BOTH[..])])
    })?;
    let protocol = table.optional("protocol").map_or(Some(None), |field| read_protocol(&field).map(Some))?;
    let matched = Match {
        family: None,
        source: table.optional("source").and_then(|field| read_prefix(&field)),
        destination: table.optional("destination").and_then(|field| read_prefix(&field)),
        protocol,
        ..read_ports(&table, protocol)
    };
    let (tcp_mask, tcp_value) = table.optional("tcp_flags").map_or((0, 0), |field| read_flags(&field, protocol));
    let matched = Match { tcp_mask, tcp_value, ..matched };
    if let Some(problem) = contradiction(&matched) {
        field.wrong(problem);
    }
    let types = &matched.source_ports;
    let family = if protocol == Some(ICMP) { Family::V4 } else { Family::V6 };
    if action == Some(Action::Reflect)
        && Has::of(protocol) == Has::Types
        && types.start() == types.end()
        && !opens_way_back(family, *types.start())
    {
        field.wrong_below("action", "nothing answers this ICMP type, so there is no way back to open; write `permit`");
    }
    let matches = Side::BOTH.map(|side| sides.contains(&side).then(|| matched.clone()));
    Some(Rule { name: name?.to_owned(), action: action?, matches })
}

fn read_protocol(field: &Field<'_>) -> Option<u8> {
    let text = field.text()?;
    let known = [("tcp", TCP), ("udp", UDP), ("icmp", ICMP), ("icmpv6", ICMP_V6)];
    let number = || text.parse().ok();
    let protocol = known.iter().find(|(word, _)| *word == text).map(|&(_, number)| number).or_else(number);
    if protocol.is_none() {
        field.wrong(format!("`{text}`; `tcp`, `udp`, `icmp`, `icmpv6` or a number from 0 to 255 is wanted"));
    }
    protocol
}

fn read_prefix(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let one = || text.parse::<IpAddr>().map(IpNet::from);
    let Ok(net) = text.parse::<IpNet>().or_else(|_| one()) else {
        field.wrong(format!("`{text}`; an address or a prefix such as 10.0.0.0/8 or fd00::/8 is wanted"));
        return None;
    };
    if net.trunc() != net {
        field.wrong(format!("`{text}` has bits behind its length; write {} or {}", net.trunc(), net.addr()));
    }
    Some(net.trunc())
}

/// Ports, or types and codes, as far as the protocol has them.
fn read_ports(table: &Table<'_>, protocol: Option<u8>) -> Match {
    let has = Has::of(protocol);
    let range = |key: &str, wanted: Has, max: u16, problem: &str| {
        let Some(field) = table.optional(key) else { return 0..=u16::MAX };
        if has != wanted {
            field.wrong(problem);
        }
        read_range(&field, max).unwrap_or(0..=u16::MAX)
    };
    let needs_ports = "only TCP and UDP have ports; add `protocol: tcp` or `protocol: udp`";
    let needs_types = "only ICMP has types and codes; add `protocol: icmp` or `protocol: icmpv6`";
    let ports =
        [range("source_ports", Has::Ports, u16::MAX, needs_ports), range("ports", Has::Ports, u16::MAX, needs_ports)];
    let types = [range("icmp_type", Has::Types, 255, needs_types), range("icmp_code", Has::Types, 255, needs_types)];
    let [source_ports, destination_ports] = if has == Has::Types { types } else { ports };
    Match { source_ports, destination_ports, ..Match::ANY }
}

/// `80` or `8000-8080`.
fn read_range(field: &Field<'_>, max: u16) -> Option<RangeInclusive<u16>> {
    let text = field.text()?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|number| *number <= max);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => return Some(first..=last),
        (Some(first), Some(last)) => field.wrong(format!("`{text}` begins behind its end; write {last}-{first}")),
        _ => field.wrong(format!("`{text}`; a number up to {max}, or two as in 1-{max}, is wanted")),
    }
    None
}

/// `syn,!ack`: those that are set, and those that are not.
fn read_flags(field: &Field<'_>, protocol: Option<u8>) -> (u8, u8) {
    if protocol != Some(TCP) {
        field.wrong("only TCP has these flags; add `protocol: tcp`");
    }
    let (mut mask, mut value) = (0, 0);
    for word in field.text().unwrap_or_default().split(',').map(str::trim) {
        let (name, set) = word.strip_prefix('!').map_or((word, true), |name| (name, false));
        let Some(bit) = FLAGS.iter().position(|flag| *flag == name) else {
            field.wrong(format!("`{word}`; flags as in `syn,!ack` are wanted, of {}", FLAGS.join(", ")));
            continue;
        };
        if mask & (1 << bit) != 0 {
            field.wrong(format!("`{name}` is named twice"));
        }
        mask |= 1 << bit;
        value |= u8::from(set) << bit;
    }
    (mask, value)
}

const KEYS: &[&str] = &[
    "name",
    "action",
    "from",
    "protocol",
    "source",
    "destination",
    "source_ports",
    "ports",
    "icmp_type",
    "icmp_code",
    "tcp_flags",
];
/// From the lowest bit on (RFC 9293, section 3.1).
const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
