//! Policy routing: traffic of a client that goes by a table of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ferrule_dataplane::port::kernel::message::route_request;
use ferrule_dataplane::spec::Route;
use ferrule_ffi::netlink::{Netlink, NetlinkError, Request};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
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

/// Makes the rules of an interface others. Each has a table that nobody else has.
pub(super) fn change(
    netlink: &mut Netlink,
    index: u32,
    is: &[PolicyRule],
    should: &[PolicyRule],
) -> Result<(), NetlinkError> {
    let gone: Vec<_> = is.iter().filter(|rule| !should.contains(rule)).cloned().collect();
    if !gone.is_empty() {
        remove(netlink, &gone)?;
    }
    let new: Vec<_> = should.iter().filter(|rule| !is.contains(rule)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let mut there = rules(netlink)?;
    let mut taken = tables(netlink, &there)?;
    for rule in new {
        // One of a forwarder that was killed is used again.
        let table = match there.iter().position(|message| rule.is(message)) {
            Some(at) => table_of(&there.swap_remove(at)),
            None => (TABLE_FIRST..TABLE_LAST).find(|table| !taken.contains(table)).ok_or(NO_TABLE)?,
        };
        taken.insert(table);
        let routes = rule.routes.iter().map(|(to, via)| in_table(index, *to, *via, table)).collect();
        netlink.exchange(routes)?.into_iter().try_for_each(|answer| answer.map(drop))?;
        let add =
            Request { message: RouteNetlinkMessage::NewRule(rule.message(table)), flags: NLM_F_CREATE | NLM_F_EXCL };
        match netlink.request(add) {
            Err(refusal) if refusal.errno != Errno::EEXIST => return Err(refusal),
            _ => {}
        }
    }
    Ok(())
}

/// Removes rules. Their tables go with the interface, or are empty when the routes of it go.
pub(super) fn remove(netlink: &mut Netlink, gone: &[PolicyRule]) -> Result<(), NetlinkError> {
    for message in rules(netlink)? {
        let Some(rule) = gone.iter().find(|rule| rule.is(&message)) else { continue };
        let table = table_of(&message);
        netlink.request(Request { message: RouteNetlinkMessage::DelRule(rule.message(table)), flags: 0 })?;
        let routes = netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        let ours = routes.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewRoute(route) if route_table(&route) == table => {
                Some(Request { message: RouteNetlinkMessage::DelRoute(route), flags: 0 })
            }
            _ => None,
        });
        // Gone with the interface already is as good.
        let _ = netlink.exchange(ours.collect())?;
    }
    Ok(())
}

impl PolicyRule {
    fn message(&self, table: u32) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = if self.from.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.src_len = self.from.prefix_len();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Table(table)];
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

fn rules(netlink: &mut Netlink) -> Result<Vec<RuleMessage>, NetlinkError> {
    let objects = netlink.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
    let rule = |object| if let RouteNetlinkMessage::NewRule(rule) = object { Some(rule) } else { None };
    Ok(objects.into_iter().filter_map(rule).collect())
}

/// The tables that somebody uses.
fn tables(netlink: &mut Netlink, rules: &[RuleMessage]) -> Result<BTreeSet<u32>, NetlinkError> {
    let mut taken: BTreeSet<_> = rules.iter().map(table_of).collect();
    for object in netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        if let RouteNetlinkMessage::NewRoute(route) = object {
            taken.insert(route_table(&route));
        }
    }
    Ok(taken)
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
const NO_TABLE: NetlinkError = NetlinkError { errno: Errno::ENOSPC, hint: None };

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(from: &str, protocol: Option<u8>) -> PolicyRule {
        PolicyRule { from: from.parse().unwrap(), protocol, to_port: None, from_port: None, routes: Vec::new() }
    }

    #[test]
    fn a_rule_of_any_source_or_protocol_is_known_as_the_kernel_tells_it() {
        let table = TABLE_FIRST;
        let mut told = RuleMessage::default();
        told.header.family = AddressFamily::Inet;
        told.header.action = RuleAction::ToTable;
        told.attributes = vec![RuleAttribute::Table(table)];
        assert!(rule("0.0.0.0/0", None).is(&told) && rule("0.0.0.0/0", Some(0)).is(&told));
        assert!(!rule("::/0", None).is(&told), "of the other family");
        assert!(!rule("0.0.0.0/0", Some(6)).is(&told) && !rule("10.0.0.1/32", None).is(&told));
    }
}
