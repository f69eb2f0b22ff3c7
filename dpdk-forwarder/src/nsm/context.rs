//! What a connection's context means for the interface at either end. Pure.

use std::net::IpAddr;

use ferrule_dataplane::spec::MacAddress;
use ferrule_nsm::proto::connectioncontext::{ConnectionContext, IpContext, PolicyRoute, Route};
use ipnet::IpNet;

use super::interface::InterfaceState;
use super::rules::PolicyRule;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// That of whoever asked.
    Client,
    /// That of who serves.
    Endpoint,
}

/// The context holds something that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection's {0} {1:?} is no {2}")]
pub(super) struct ContextError(&'static str, String, &'static str);

/// What the interface at one end should have. With `peer`, whose MAC address nobody asks for: the link carries IP alone.
pub(super) fn interface_state(
    context: &ConnectionContext,
    side: Side,
    peer: Option<MacAddress>,
) -> Result<InterfaceState, ContextError> {
    let none = IpContext::default();
    let ip = context.ip_context.as_ref().unwrap_or(&none);
    let (own, far, routes) = match side {
        Side::Client => (&ip.src_ip_addrs, &ip.dst_ip_addrs, &ip.src_routes),
        Side::Endpoint => (&ip.dst_ip_addrs, &ip.src_ip_addrs, &ip.dst_routes),
    };
    let own = own.iter().map(|text| network("address", text)).collect::<Result<Vec<_>, _>>()?;
    let far = far.iter().map(|text| network("address", text)).collect::<Result<Vec<_>, _>>()?;
    let mut state = InterfaceState { addresses: own.iter().copied().collect(), ..InterfaceState::default() };
    let is_near = |address: IpAddr| own.iter().any(|prefix| prefix.contains(&address));
    let on_link = far.iter().filter(|address| !is_near(address.addr()));
    state.routes.extend(on_link.map(|address| (IpNet::from(address.addr()), None)));
    for route in routes {
        let (to, via) = next_hop(route, &far)?;
        // A next hop that nothing leads to would be refused.
        if let Some(via) = via.filter(|via| !is_near(*via)) {
            state.routes.entry(IpNet::from(via)).or_insert(None);
        }
        state.routes.insert(to, via);
    }
    if side == Side::Client {
        for neighbour in &ip.ip_neighbors {
            let address = parsed("neighbour's address", &neighbour.ip, "address")?;
            state.neighbours.insert(address, parsed("neighbour's MAC", &neighbour.hardware_address, "MAC address")?);
        }
        for policy in &ip.policies {
            for rule in policy_rules(policy, &own, &far)? {
                // One that leads nowhere, or is said twice, changes nothing.
                if !rule.routes.is_empty() && !state.rules.contains(&rule) {
                    state.rules.push(rule);
                }
            }
        }
    }
    if let Some(mac) = peer {
        state.neighbours.extend(far.iter().map(|address| (address.addr(), mac)));
    }
    Ok(state)
}

/// A route with the next hop that it says, or, if it leads beyond the link, the other end of it.
fn next_hop(route: &Route, far: &[IpNet]) -> Result<(IpNet, Option<IpAddr>), ContextError> {
    let to = network("route", &route.prefix)?.trunc();
    if !route.next_hop.is_empty() {
        return Ok((to, Some(parsed("next hop", &route.next_hop, "address")?)));
    }
    if far.iter().any(|prefix| prefix.contains(&to)) {
        return Ok((to, None));
    }
    let is_same_family = |address: &IpAddr| address.is_ipv4() == to.addr().is_ipv4();
    Ok((to, far.iter().map(IpNet::addr).find(is_same_family)))
}

/// A policy is a rule for each of its sources.
fn policy_rules(policy: &PolicyRoute, own: &[IpNet], far: &[IpNet]) -> Result<Vec<PolicyRule>, ContextError> {
    let sources = if policy.from.is_empty() {
        own.iter().map(|address| IpNet::from(address.addr())).collect()
    } else {
        vec![network("policy's source", &policy.from)?.trunc()]
    };
    let protocol = match policy.proto.as_str() {
        "" => None,
        text => Some(parsed("policy's protocol", text, "number")?),
    };
    let (to_port, from_port) = (ports(&policy.dst_port)?, ports(&policy.src_port)?);
    let mut rules = Vec::new();
    for from in sources {
        let is_ipv4 = from.addr().is_ipv4();
        let mut routes = policy.routes.iter().map(|route| next_hop(route, far)).collect::<Result<Vec<_>, _>>()?;
        routes.retain(|(to, _)| to.addr().is_ipv4() == is_ipv4);
        if policy.routes.is_empty() {
            let any: IpAddr = if is_ipv4 { [0; 4].into() } else { [0_u8; 16].into() };
            routes.extend(IpNet::new(any, 0).map(|all| (all, None)));
        }
        rules.push(PolicyRule { from, protocol, to_port, from_port, routes });
    }
    Ok(rules)
}

/// `n` or `lo-hi`.
fn ports(text: &str) -> Result<Option<(u16, u16)>, ContextError> {
    if text.is_empty() {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |word: &str| parsed("policy's port", word, "port or range of ports");
    Ok(Some((port(first)?, port(last)?)))
}

/// `10.0.0.1/24`, or an address alone.
fn network(what: &'static str, text: &str) -> Result<IpNet, ContextError> {
    let alone = || text.parse::<IpAddr>().map(IpNet::from).ok();
    let error = || ContextError(what, shown(text), "address or prefix");
    text.parse().ok().or_else(alone).ok_or_else(error)
}

fn parsed<T: std::str::FromStr>(what: &'static str, text: &str, wanted: &'static str) -> Result<T, ContextError> {
    text.parse().map_err(|_| ContextError(what, shown(text), wanted))
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use ferrule_nsm::proto::connectioncontext::IpNeighbor;

    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn route(prefix: &str, next_hop: &str) -> Route {
        Route { prefix: prefix.to_owned(), next_hop: next_hop.to_owned() }
    }

    fn context(ip: IpContext) -> ConnectionContext {
        ConnectionContext { ip_context: Some(ip), ..ConnectionContext::default() }
    }

    fn routes(state: &InterfaceState) -> Vec<String> {
        let shown = |(to, via): (&IpNet, &Option<IpAddr>)| via.map_or(to.to_string(), |via| format!("{to} via {via}"));
        state.routes.iter().map(shown).collect()
    }

    #[test]
    fn each_end_has_its_addresses_and_ways_to_the_other() {
        let ip = IpContext {
            src_ip_addrs: texts(&["172.16.1.1/32", "2001:db8::1/128"]),
            dst_ip_addrs: texts(&["172.16.1.0/32", "2001:db8::/128"]),
            src_routes: vec![route("172.16.1.0/32", ""), route("10.0.0.0/8", "")],
            dst_routes: vec![route("172.16.1.1/32", "")],
            ..IpContext::default()
        };
        let client = interface_state(&context(ip.clone()), Side::Client, None).unwrap();
        assert_eq!(client.addresses.len(), 2);
        assert_eq!(routes(&client), ["10.0.0.0/8 via 172.16.1.0", "172.16.1.0/32", "2001:db8::/128"]);
        let endpoint = interface_state(&context(ip), Side::Endpoint, None).unwrap();
        assert_eq!(routes(&endpoint), ["172.16.1.1/32", "2001:db8::1/128"]);
    }

    #[test]
    fn what_is_in_the_own_prefix_needs_no_route_and_a_strange_next_hop_gets_one() {
        let ip = IpContext {
            src_ip_addrs: texts(&["10.0.0.2/24"]),
            dst_ip_addrs: texts(&["10.0.0.1/24"]),
            src_routes: vec![route("0.0.0.0/0", ""), route("10.9.0.0/16", "10.1.0.1")],
            ..IpContext::default()
        };
        let client = interface_state(&context(ip), Side::Client, None).unwrap();
        assert_eq!(routes(&client), ["0.0.0.0/0 via 10.0.0.1", "10.1.0.1/32", "10.9.0.0/16 via 10.1.0.1"]);
    }

    #[test]
    fn policies_and_neighbours_are_the_clients() {
        let policy = PolicyRoute { proto: "6".to_owned(), dst_port: "80-90".to_owned(), ..PolicyRoute::default() };
        let neighbour = IpNeighbor { ip: "10.0.0.9".to_owned(), hardware_address: "02:00:00:00:00:09".to_owned() };
        let ip = IpContext {
            src_ip_addrs: texts(&["10.0.0.1/32"]),
            ip_neighbors: vec![neighbour],
            policies: vec![policy],
            ..IpContext::default()
        };
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let client = interface_state(&context(ip.clone()), Side::Client, Some(mac)).unwrap();
        assert_eq!((client.rules.len(), client.neighbours.len()), (1, 1));
        let rule = &client.rules[0];
        assert_eq!((rule.from, rule.protocol, rule.to_port), ("10.0.0.1/32".parse().unwrap(), Some(6), Some((80, 90))));
        assert_eq!(rule.routes, [("0.0.0.0/0".parse().unwrap(), None)]);
        let endpoint = interface_state(&context(ip), Side::Endpoint, Some(mac)).unwrap();
        assert_eq!(endpoint.rules, []);
        assert_eq!(endpoint.neighbours, [("10.0.0.1".parse().unwrap(), mac)].into());
    }

    #[test]
    fn nonsense_is_refused() {
        for ip in [
            IpContext { src_ip_addrs: texts(&["10.0.0.1/33"]), ..IpContext::default() },
            IpContext { src_routes: vec![route("10.0.0.0/8", "x")], ..IpContext::default() },
            IpContext {
                policies: vec![PolicyRoute { dst_port: "1-x".to_owned(), ..PolicyRoute::default() }],
                src_ip_addrs: texts(&["10.0.0.1/32"]),
                ..IpContext::default()
            },
        ] {
            assert!(interface_state(&context(ip), Side::Client, None).is_err());
        }
    }
}
