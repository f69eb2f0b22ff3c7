//! What clients of an NPTv6 have while they are connected: an address inside each, and outside the one that it stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use ferrule_nsm::proto::connectioncontext::{ConnectionContext, IpContext, Route};
use ipnet::Ipv6Net;
use tonic::Status;

use crate::nptv6::settings::NptSettings;

/// The addresses of an NPTv6's clients inside, by the ids of their connections.
#[derive(Debug, Default)]
pub struct NptLeases(BTreeMap<String, Ipv6Addr>);

/// What one client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptLease {
    /// Its address.
    pub inside: Ipv6Addr,
    /// What it is known by outside.
    pub outside: Ipv6Addr,
}

impl NptLeases {
    /// That of a connection: the one that it has, if the settings still allow it, or a new one. A client that says which address it had
    /// keeps that if it is free.
    pub fn take(&mut self, id: &str, npt: &NptSettings, asked: &ConnectionContext) -> Result<NptLease, Status> {
        let network = npt.inside.address;
        let others: BTreeSet<_> =
            self.0.iter().filter(|(other, _)| *other != id).map(|(_, address)| *address).collect();
        let may_have = |address: &Ipv6Addr| {
            // The first address of a network is that of all of its routers (RFC 4291, section 2.6.1; not of a link of two, RFC 6164).
            let is_routers = network.prefix_len() < 127 && *address == network.network();
            network.contains(address) && *address != network.addr() && !is_routers && !others.contains(address)
        };
        let had = asked.ip_context.iter().flat_map(|ip| &ip.src_ip_addrs);
        let had = had.filter_map(|text| text.split('/').next()?.parse().ok());
        let all = u128::from(network.network())..=u128::from(network.broadcast());
        let all = all.take(CLIENTS_MAX).map(Ipv6Addr::from);
        let wanted = self.0.get(id).copied().into_iter().chain(had).chain(all).filter(may_have);
        let lease = { wanted }.find_map(|inside| Some(NptLease { inside, outside: npt.prefixes.outward(inside)? }));
        let lease = lease.ok_or_else(|| {
            let network = network.trunc();
            Status::resource_exhausted(format!("no address of {network} is left for another client of the NPTv6"))
        })?;
        self.0.insert(id.to_owned(), lease.inside);
        Ok(lease)
    }

    /// The address inside that a connection has.
    pub fn of(&self, id: &str) -> Option<Ipv6Addr> {
        self.0.get(id).copied()
    }

    /// It is free again.
    pub fn give_back(&mut self, id: &str) {
        self.0.remove(id);
    }
}

impl NptLease {
    /// What is asked for behind the NPTv6, which answers there for the address outside. Nobody is to have its own.
    pub fn behind(&self, npt: &NptSettings, asked: &ConnectionContext) -> ConnectionContext {
        let mut excluded_prefixes = asked.ip_context.clone().unwrap_or_default().excluded_prefixes;
        let own = Ipv6Net::from(npt.outside.address.addr()).to_string();
        if !excluded_prefixes.contains(&own) {
            excluded_prefixes.push(own);
        }
        let address = Ipv6Net::from(self.outside).to_string();
        let ip = IpContext { src_ip_addrs: vec![address], excluded_prefixes, ..IpContext::default() };
        ConnectionContext { mtu: asked.mtu, ip_context: Some(ip), ..ConnectionContext::default() }
    }
}

/// What a client with this address inside is answered: the NPTv6 is its router to everything outside that this one reaches.
pub fn in_front(inside: Ipv6Addr, npt: &NptSettings, behind: ConnectionContext) -> ConnectionContext {
    let router = npt.inside.address;
    let outside = if npt.gateway.is_some() { Ipv6Net::default() } else { npt.outside.address.trunc() };
    let ip = IpContext {
        src_ip_addrs: vec![format!("{inside}/{}", router.prefix_len())],
        dst_ip_addrs: vec![router.to_string()],
        src_routes: vec![Route { prefix: outside.to_string(), next_hop: router.addr().to_string() }],
        ..IpContext::default()
    };
    // Addresses and routes that are good behind are of no use in front.
    ConnectionContext {
        mtu: behind.mtu,
        dns_context: behind.dns_context,
        ip_context: Some(ip),
        ..ConnectionContext::default()
    }
}

/// Addresses of the inside network that are looked through for a free one.
const CLIENTS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use ferrule_daemon::settings::parse;

    use super::*;
    use crate::nptv6::settings::read;

    fn npt(inside: &str, more: &str) -> NptSettings {
        let text = format!(
            "inside: {{ address: \"{inside}\" }}\noutside: {{ address: \"2001:db8:ffff::2/64\" }}\n\
             prefixes: {{ inside: \"fd01:203:405::/48\", outside: \"2001:db8:1::/48\" }}\n{more}"
        );
        parse("npt.yaml", &text, |field, _| read(field)).unwrap().unwrap()
    }

    fn texts(lease: NptLease) -> [String; 2] {
        [lease.inside, lease.outside].map(|address| address.to_string())
    }

    #[test]
    fn each_client_has_an_address_inside_and_its_counterpart_and_keeps_it() {
        let (mut leases, none) = (NptLeases::default(), ConnectionContext::default());
        let npt = npt("fd01:203:405:1::1/126", "");
        let first = leases.take("a", &npt, &none).unwrap();
        assert_eq!(texts(first), ["fd01:203:405:1::2", "2001:db8:1:d550::2"]);
        assert_eq!(texts(leases.take("b", &npt, &none).unwrap())[0], "fd01:203:405:1::3");
        assert_eq!(leases.take("a", &npt, &none).unwrap(), first);
        let full = leases.take("c", &npt, &none).unwrap_err();
        assert!(full.message().contains("no address of fd01:203:405:1::/126 is left"), "{full}");
        leases.give_back("b");
        let had = in_front("fd01:203:405:1::3".parse().unwrap(), &npt, none.clone());
        leases.give_back("a");
        assert_eq!(texts(leases.take("d", &npt, &had).unwrap())[0], "fd01:203:405:1::3", "it has had that");
        assert_eq!(leases.of("d"), Some("fd01:203:405:1::3".parse().unwrap()));
    }

    #[test]
    fn an_address_without_a_counterpart_is_nobodys() {
        let none = ConnectionContext::default();
        let full = NptLeases::default().take("a", &npt("fd01:203:405:ffff::1/64", ""), &none).unwrap_err();
        assert_eq!(full.code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn behind_it_is_the_counterpart_and_in_front_the_router() {
        let npt = npt("fd01:203:405:1::1/64", "gateway: \"2001:db8:ffff::1\"\n");
        let asked = ConnectionContext { mtu: 1400, ..ConnectionContext::default() };
        let lease = NptLeases::default().take("a", &npt, &asked).unwrap();
        let behind = lease.behind(&npt, &asked);
        let ip = behind.ip_context.clone().unwrap();
        assert_eq!((behind.mtu, ip.src_ip_addrs), (1400, vec!["2001:db8:1:d550::2/128".to_owned()]));
        assert_eq!(ip.excluded_prefixes, ["2001:db8:ffff::2/128"], "its own address outside is nobody else's");
        let ip = in_front(lease.inside, &npt, behind).ip_context.unwrap();
        assert_eq!(
            (ip.src_ip_addrs, ip.dst_ip_addrs),
            (vec!["fd01:203:405:1::2/64".to_owned()], vec!["fd01:203:405:1::1/64".to_owned()])
        );
        assert_eq!(ip.src_routes, [Route { prefix: "::/0".to_owned(), next_hop: "fd01:203:405:1::1".to_owned() }]);
    }
}
