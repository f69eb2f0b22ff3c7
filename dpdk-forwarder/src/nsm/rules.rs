//! Policy routing: traffic of a client that goes by a table of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ferrule_dataplane::port::kernel::message::route_request;
use ferrule_dataplane::spec::Route;
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use nix::errno::Errno;

/// One policy of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyRule {
    /// Traffic of this source.
    pub(super) from: IpNet,
    /// Of this protocol of IP; none: of any.
    pub(super) protocol: Option<u8>,
    /// To and from these ports.
    pub(super) to_port: Option<(u16, u16)>,
    pub(super) from_port: Option<(u16, u16)>,
    /// Where it goes.
    pub(super) routes: Vec<(IpNet, Option<IpAddr>)>,
}

/// Makes the rules of an interface others. Each has a table of its own, whoever else in the namespace has the same rule.
pub(super) fn change(
    netlink: &mut Netlink,
    index: u32,
    is: &[PolicyRule],
    should: &[PolicyRule],
) -> Result<(), NetlinkError> {
    let gone: Vec<_> = is.iter().filter(|rule| !should.contains(rule)).cloned().collect();
    if !gone.is_empty() {
        remove(netlink, Some(index), &gone)?;
    }
    let new: Vec<_> = should.iter().filter(|rule| !is.contains(rule)).collect();
    if new.is_empty() {
        return Ok(());
    }
    // A table is taken once a route is in it: until then nobody else looks for one.
    let _choosing = CHOOSING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut there = KnownRules::read(netlink)?;
    for rule in new {
        // One of a forwarder that was killed is used again.
        let (table, has_rule) = match there.find(rule, Some(index)) {
            Some(at) => (table_of(&there.rules.swap_remove(at)), true),
            None => (there.free_table()?, false),
        };
        there.users.entry(table).or_default().insert(index);
        // The kernel would take it twice.
        let done = add_routes(netlink, index, rule, table)
            .and_then(|()| if has_rule { Ok(()) } else { add_rule(netlink, rule, table) });
        if done.is_err() {
            // The first failure says more.
            let _ = clear(netlink, table, Some(index));
        }
        done?;
    }
    Ok(())
}

fn add_routes(netlink: &mut Netlink, index: u32, rule: &PolicyRule, table: u32) -> Result<(), NetlinkError> {
    let routes = rule.routes.iter().map(|(to, via)| in_table(index, *to, *via, table)).collect();
    netlink.exchange(routes)?.into_iter().try_for_each(|answer| answer.map(drop))
}

fn add_rule(netlink: &mut Netlink, rule: &PolicyRule, table: u32) -> Result<(), NetlinkError> {
    let add = Request { message: RouteNetlinkMessage::NewRule(rule.message(table)), flags: NLM_F_CREATE | NLM_F_EXCL };
    match netlink.request(add) {
        Err(refusal) if refusal.errno != Errno::EEXIST => Err(refusal),
        _ => Ok(()),
    }
}

/// Removes rules of an interface, or those of one that is not there any more.
pub(super) fn remove(netlink: &mut Netlink, index: Option<u32>, gone: &[PolicyRule]) -> Result<(), NetlinkError> {
    let mut there = KnownRules::read(netlink)?;
    for rule in gone {
        let Some(at) = there.find(rule, index) else { continue };
        let table = table_of(&there.rules.swap_remove(at));
        delete(netlink, rule.message(table))?;
        // Gone with the interface already is as good.
        let _ = clear(netlink, table, index);
    }
    Ok(())
}

/// Removes the rules that a forwarder which was killed has left of an interface, but for those that it should have.
pub(super) fn retain(netlink: &mut Netlink, index: u32, should: &[PolicyRule]) -> Result<(), NetlinkError> {
    let KnownRules { rules, users } = KnownRules::read(netlink)?;
    for told in rules.into_iter().filter(is_ours) {
        let table = table_of(&told);
        let is_of_interface = users.get(&table).is_none_or(|users| users.contains(&index));
        if is_of_interface && !should.iter().any(|rule| rule.is(&told)) {
            delete(netlink, told)?;
            clear(netlink, table, Some(index))?;
        }
    }
    Ok(())
}

/// Keeps those rules of an interface whose tables lead to it still.
pub(super) fn keep_those_that_lead_to(
    netlink: &mut Netlink,
    index: u32,
    rules: &mut Vec<PolicyRule>,
) -> Result<(), NetlinkError> {
    if !rules.is_empty() {
        let there = KnownRules::read(netlink)?;
        rules.retain(|rule| there.leads_to(rule, index));
    }
    Ok(())
}

/// Removes the rules of ours that lead nowhere: their interfaces have gone. How many those were.
pub(super) fn remove_idle(netlink: &mut Netlink) -> Result<usize, NetlinkError> {
    let KnownRules { rules, users } = KnownRules::read(netlink)?;
    let idle: Vec<_> = rules.into_iter().filter(|rule| is_ours(rule) && !users.contains_key(&table_of(rule))).collect();
    let count = idle.len();
    idle.into_iter().try_for_each(|rule| delete(netlink, rule))?;
    Ok(count)
}

/// Others may have chosen the same number of a protocol.
fn is_ours(rule: &RuleMessage) -> bool {
    (TABLE_FIRST..TABLE_LAST).contains(&table_of(rule)) && rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
}

fn delete(netlink: &mut Netlink, rule: RuleMessage) -> Result<(), NetlinkError> {
    match netlink.request(Request { message: RouteNetlinkMessage::DelRule(rule), flags: 0 }) {
        Err(refusal) if refusal.errno != Errno::ENOENT => Err(refusal),
        _ => Ok(()),
    }
}

/// Empties a table of the routes through an interface.
fn clear(netlink: &mut Netlink, table: u32, index: Option<u32>) -> Result<(), NetlinkError> {
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let ours = routes.into_iter().filter_map(|object| match object {
        RouteNetlinkMessage::NewRoute(route) if route_table(&route) == table && interface_of(&route) == index => {
            Some(Request { message: RouteNetlinkMessage::DelRoute(route), flags: 0 })
        }
        _ => None,
    });
    netlink.exchange(ours.collect()).map(drop)
}

/// The rules of a namespace.
struct KnownRules {
    rules: Vec<RuleMessage>,
    /// The interfaces that the routes of each table lead to.
    users: BTreeMap<u32, BTreeSet<u32>>,
}

impl KnownRules {
    fn read(netlink: &mut Netlink) -> Result<Self, NetlinkError> {
        let objects = netlink.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
        let rule = |object| if let RouteNetlinkMessage::NewRule(rule) = object { Some(rule) } else { None };
        let rules = objects.into_iter().filter_map(rule).collect();
        let mut users: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for object in netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
            if let RouteNetlinkMessage::NewRoute(route) = object {
                users.entry(route_table(&route)).or_default().extend(interface_of(&route));
            }
        }
        Ok(Self { rules, users })
    }

    /// The one that was made for an interface. One whose table is empty is of an interface that has gone.
    fn find(&self, rule: &PolicyRule, index: Option<u32>) -> Option<usize> {
        let is_of = |told: &RuleMessage| match (self.users.get(&table_of(told)), index) {
            (Some(users), Some(index)) => users.contains(&index),
            (Some(_), None) => false,
            (None, _) => true,
        };
        self.rules.iter().position(|told| rule.is(told) && is_of(told))
    }

    /// Whether a rule leads to an interface.
    fn leads_to(&self, rule: &PolicyRule, index: u32) -> bool {
        let has = |table| self.users.get(&table).is_some_and(|users| users.contains(&index));
        self.rules.iter().any(|told| rule.is(told) && has(table_of(told)))
    }

    fn free_table(&self) -> Result<u32, NetlinkError> {
        let is_named = |table: &u32| self.rules.iter().any(|rule| table_of(rule) == *table);
        let is_free = |table: &u32| !self.users.contains_key(table) && !is_named(table);
        (TABLE_FIRST..TABLE_LAST).find(is_free).ok_or(NO_TABLE)
    }
}

impl PolicyRule {
    fn message(&self, table: u32) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = if self.from.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.src_len = self.from.prefix_len();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Table(table), RuleAttribute::Protocol(PROTOCOL)];
        // What means any is not told by the kernel.
        message.attributes.extend((self.from.prefix_len() > 0).then(|| RuleAttribute::Source(self.from.addr())));
        let protocol = self.protocol.filter(|protocol| *protocol != 0);
        message.attributes.extend(protocol.map(|protocol| RuleAttribute::IpProtocol(IpProtocol::from(protocol))));
        let range = |(start, end)| RulePortRange { start, end };
        message.attributes.extend(self.to_port.map(|ports| RuleAttribute::DestinationPortRange(range(ports))));
        message.attributes.extend(self.from_port.map(|ports| RuleAttribute::SourcePortRange(range(ports))));
        message
    }

    /// Whether the kernel has told this one, whichever its table is.
    fn is(&self, told: &RuleMessage) -> bool {
        let wanted = self.message(table_of(told));
        let says = |attribute: &RuleAttribute| told.attributes.contains(attribute);
        let kinds = |message: &RuleMessage| {
            let is_choice = |attribute: &&RuleAttribute| {
                matches!(
                    attribute,
                    RuleAttribute::IpProtocol(_)
                        | RuleAttribute::DestinationPortRange(_)
                        | RuleAttribute::SourcePortRange(_)
                )
            };
            message.attributes.iter().filter(is_choice).count()
        };
        table_of(told) >= TABLE_FIRST
            && told.header.family == wanted.header.family
            && told.header.src_len == wanted.header.src_len
            && wanted.attributes.iter().all(says)
            && kinds(told) == kinds(&wanted)
    }
}

fn table_of(rule: &RuleMessage) -> u32 {
    let of = |attribute: &RuleAttribute| if let RuleAttribute::Table(table) = attribute { Some(*table) } else { None };
    rule.attributes.iter().find_map(of).unwrap_or(rule.header.table.into())
}

fn route_table(route: &RouteMessage) -> u32 {
    let of =
        |attribute: &RouteAttribute| if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None };
    route.attributes.iter().find_map(of).unwrap_or(route.header.table.into())
}

fn interface_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn in_table(index: u32, to: IpNet, via: Option<IpAddr>, table: u32) -> Request {
    let mut request = route_request(index, &Route { to, via });
    if let RouteNetlinkMessage::NewRoute(message) = &mut request.message {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
    Request { flags: NLM_F_CREATE | NLM_F_REPLACE, ..request }
}

/// Below are those that people name in `/etc/iproute2/rt_tables`.
const TABLE_FIRST: u32 = 1000;
const TABLE_LAST: u32 = 1 << 16;
/// By which rules of ours are known: the one that no routing daemon has.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(254);
/// One at a time chooses a table, whichever the namespace.
static CHOOSING: Mutex<()> = Mutex::new(());
const NO_TABLE: NetlinkError = NetlinkError { errno: Errno::ENOSPC, hint: None };

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(from: &str, protocol: Option<u8>) -> PolicyRule {
        PolicyRule { from: from.parse().unwrap(), protocol, to_port: None, from_port: None, routes: Vec::new() }
    }

    #[test]
    fn a_rule_is_that_of_the_interface_that_its_table_leads_to() {
        let rule = rule("10.0.0.1/32", None);
        let mut there = KnownRules { rules: vec![rule.message(1000), rule.message(1001)], users: BTreeMap::new() };
        there.users.insert(1000, [7].into());
        there.users.insert(1001, [8].into());
        assert_eq!([7, 8, 9].map(|index| there.find(&rule, Some(index))), [Some(0), Some(1), None]);
        assert_eq!(there.free_table(), Ok(1002));
        assert_eq!(there.find(&rule, None), None, "both interfaces are there");
        assert!(there.leads_to(&rule, 8));
        there.users.remove(&1001);
        assert_eq!(there.find(&rule, None), Some(1));
        assert!(there.leads_to(&rule, 7) && !there.leads_to(&rule, 8), "its table is empty");
    }

    #[test]
    fn a_rule_of_any_source_or_protocol_is_known_as_the_kernel_tells_it() {
        let table = TABLE_FIRST;
        let mut told = RuleMessage::default();
        told.header.family = AddressFamily::Inet;
        told.header.action = RuleAction::ToTable;
        told.attributes = vec![RuleAttribute::Table(table)];
        assert!(!rule("0.0.0.0/0", None).is(&told), "of somebody else");
        told.attributes.push(RuleAttribute::Protocol(PROTOCOL));
        assert!(rule("0.0.0.0/0", None).is(&told) && rule("0.0.0.0/0", Some(0)).is(&told));
        assert!(!rule("::/0", None).is(&told), "of the other family");
        assert!(!rule("0.0.0.0/0", Some(6)).is(&told) && !rule("10.0.0.1/32", None).is(&told));
    }
}
