//! What clients of a NAT44 have while they are connected: an address inside each, and one of the pool outside.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ferrule_nsm::proto::connectioncontext::{ConnectionContext, IpContext, Route};
use ipnet::Ipv4Net;
use tonic::Status;

use crate::nat44::settings::NatSettings;

/// The leases of a NAT44, by the ids of their connections.
#[derive(Debug, Default)]
pub struct Leases(BTreeMap<String, Lease>);

/// What one client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub inside: Ipv4Addr,
    /// What it is known by outside, which no other client is.
    pub outside: Ipv4Addr,
    /// Bytes of the longest packet that its links carry, as the mesh says; 0: it has not said.
    pub mtu: u32,
}

impl Leases {
    /// That of a connection: the one that it has, if the settings still allow it, or a new one. A client that says which address it had
    /// keeps that if it is free.
    pub fn take(&mut self, id: &str, nat: &NatSettings, asked: &ConnectionContext) -> Result<Lease, Status> {
        // What it has is its own until it has something else.
        let known = self.of(id);
        let others = || self.0.iter().filter(|(other, _)| *other != id).map(|(_, lease)| lease);
        let may_have = |address: &Ipv4Addr| nat.is_client(*address) && others().all(|lease| lease.inside != *address);
        let had = asked.ip_context.iter().flat_map(|ip| &ip.src_ip_addrs);
        let had = had.filter_map(|text| text.split('/').next()?.parse().ok());
        let all = match &nat.clients {
            Some(range) => range.clone(),
            None => u32::from(nat.inside.address.network())..=u32::from(nat.inside.address.broadcast()),
        };
        // Whoever does not ask for an address that forwards lead to gets it last.
        let is_server = |address: &u32| nat.forwards.iter().any(|forward| forward.inside.0 == *address);
        let all = all.clone().filter(|address| !is_server(address)).chain(all.filter(is_server)).map(Ipv4Addr::from);
        let known_inside = known.map(|lease| lease.inside);
        let inside = known_inside.into_iter().chain(had).chain(all).find(may_have).ok_or_else(|| {
            let network = nat.inside.address.trunc();
            Status::resource_exhausted(format!("no address of {network} is left for another client of the NAT44"))
        })?;
        let known_outside = known.map(|lease| lease.outside).filter(|address| nat.is_pool((*address).into()));
        let is_free = |address: &Ipv4Addr| others().all(|lease| lease.outside != *address);
        let pool = nat.pool.iter().cloned().flatten().map(Ipv4Addr::from);
        let mut pool = known_outside.into_iter().chain(pool).filter(|address| nat.can_have(inside, *address));
        // What forwards say now may be another client's still, until that is given something else.
        let outside = pool.find(is_free).or(known_outside).ok_or_else(|| {
            let count = nat.pool_len();
            Status::resource_exhausted(format!(
                "each client of the NAT44 has an address of its pool, and all {count} are in use, or kept for those whom `forwards` name: \
                 give it a larger `pool`"
            ))
        })?;
        let lease = Lease { inside, outside, mtu: known.map_or(0, |lease| lease.mtu) };
        self.0.insert(id.to_owned(), lease);
        Ok(lease)
    }

    /// The one that a connection has.
    pub fn of(&self, id: &str) -> Option<Lease> {
        self.0.get(id).copied()
    }

    /// The links of a connection carry that. Whether they did not before.
    pub fn set_mtu(&mut self, id: &str, mtu: u32) -> bool {
        self.0.get_mut(id).is_some_and(|lease| std::mem::replace(&mut lease.mtu, mtu) != mtu)
    }

    /// It is free again.
    pub fn give_back(&mut self, id: &str) {
        self.0.remove(id);
    }
}

impl Lease {
    /// What is asked for behind the NAT44, which is the client there.
    pub fn behind(&self, nat: &NatSettings, asked: &ConnectionContext) -> ConnectionContext {
        let address = format!("{}/{}", self.outside, nat.outside.address.prefix_len());
        let excluded_prefixes = asked.ip_context.clone().unwrap_or_default().excluded_prefixes;
        let ip = IpContext { src_ip_addrs: vec![address], excluded_prefixes, ..IpContext::default() };
        let mtu = smallest([asked.mtu, nat.outside.mtu.map_or(0, u32::from)]);
        ConnectionContext { mtu, ip_context: Some(ip), ..ConnectionContext::default() }
    }

    /// What the client is answered: its own address, and the NAT44 as the router to everything outside that this one reaches.
    pub fn in_front(&self, nat: &NatSettings, behind: ConnectionContext) -> ConnectionContext {
        let prefix = nat.inside.address.prefix_len();
        let (own, router) = (format!("{}/{prefix}", self.inside), nat.inside.address.to_string());
        let outside = if nat.gateway.is_some() { Ipv4Net::default() } else { nat.outside.address.trunc() };
        let route = Route { prefix: outside.to_string(), next_hop: nat.inside.address.addr().to_string() };
        let ip = IpContext {
            src_ip_addrs: vec![own],
            dst_ip_addrs: vec![router],
            src_routes: vec![route],
            ..IpContext::default()
        };
        // Addresses and routes that are good behind are of no use in front.
        ConnectionContext {
            mtu: smallest([behind.mtu, nat.inside.mtu.map_or(0, u32::from)]),
            dns_context: behind.dns_context,
            ip_context: Some(ip),
            ..ConnectionContext::default()
        }
    }
}

/// Of what either says; 0: it says nothing.
fn smallest(mtus: [u32; 2]) -> u32 {
    mtus.into_iter().filter(|mtu| *mtu > 0).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use ferrule_daemon::settings::parse;

    use super::*;
    use crate::nat44::settings::read;

    fn nat(more: &str) -> NatSettings {
        let text = format!(
            "inside: {{ address: 10.0.0.1/29 }}\noutside: {{ address: 80.80.80.100/24 }}\npool: [80.80.80.100-80.80.80.102]\n{more}"
        );
        parse("nat.yaml", &text, |field, _| read(field)).unwrap().unwrap()
    }

    fn texts(lease: Lease) -> (String, String) {
        (lease.inside.to_string(), lease.outside.to_string())
    }

    fn pair(inside: &str, outside: &str) -> (String, String) {
        (inside.to_owned(), outside.to_owned())
    }

    #[test]
    fn each_client_has_an_address_inside_and_one_outside_and_keeps_them() {
        let (mut leases, nat, none) = (Leases::default(), nat(""), ConnectionContext::default());
        let first = leases.take("a", &nat, &none).unwrap();
        assert_eq!(texts(first), pair("10.0.0.2", "80.80.80.100"));
        let second = leases.take("b", &nat, &none).unwrap();
        assert_eq!(texts(second), pair("10.0.0.3", "80.80.80.101"));
        assert_eq!(leases.take("a", &nat, &none).unwrap(), first);
        leases.take("c", &nat, &none).unwrap();
        let full = leases.take("d", &nat, &none).unwrap_err();
        assert!(full.message().contains("all 3 are in use"), "{full}");
        leases.give_back("a");
        let again = first.in_front(&nat, ConnectionContext::default());
        assert_eq!(leases.take("e", &nat, &again).unwrap(), first, "what it had is free");
        leases.give_back("b");
        assert_eq!(texts(leases.take("f", &nat, &again).unwrap()).0, "10.0.0.3", "what it had is another one's");
    }

    #[test]
    fn what_new_settings_do_not_allow_is_given_anew() {
        let (mut leases, none) = (Leases::default(), ConnectionContext::default());
        leases.take("a", &nat(""), &none).unwrap();
        let elsewhere = nat("clients: 10.0.0.0-10.0.0.7\n");
        assert_eq!(texts(leases.take("a", &elsewhere, &none).unwrap()), pair("10.0.0.2", "80.80.80.100"));
        assert_eq!(texts(leases.take("b", &elsewhere, &none).unwrap()), pair("10.0.0.3", "80.80.80.101"));
        let mut smaller = nat("clients: 10.0.0.4-10.0.0.5\n");
        smaller.pool = vec![0x5050_5066..=0x5050_5066];
        assert_eq!(texts(leases.take("a", &smaller, &none).unwrap()), pair("10.0.0.4", "80.80.80.102"));
        let kept = leases.of("b");
        leases.take("b", &smaller, &none).unwrap_err();
        assert_eq!(leases.of("b"), kept, "there is none for it, and its function has this one still");
    }

    #[test]
    fn what_forwards_name_is_one_clients_inside_and_outside() {
        let (mut leases, none) = (Leases::default(), ConnectionContext::default());
        let forwards = "forwards: [{ protocol: tcp, outside: \"80.80.80.100:80\", inside: \"10.0.0.2:8080\" }]\n";
        let nat = nat(forwards);
        let first = leases.take("a", &nat, &none).unwrap();
        assert_eq!(texts(first), pair("10.0.0.3", "80.80.80.101"), "it has not asked for the other ones");
        let server = Lease { inside: Ipv4Addr::new(10, 0, 0, 2), ..first }.in_front(&nat, none.clone());
        assert_eq!(texts(leases.take("b", &nat, &server).unwrap()), pair("10.0.0.2", "80.80.80.100"));
        leases.give_back("b");
        leases.take("c", &nat, &none).unwrap();
        let full = leases.take("d", &nat, &none).unwrap_err();
        assert!(full.message().contains("kept for those whom `forwards` name"), "{full}");
        // Somebody else has by now what new settings want it to have: it waits for that.
        let other = nat_with(&nat, Ipv4Addr::new(10, 0, 0, 3));
        assert_eq!(texts(leases.take("a", &other, &none).unwrap()), pair("10.0.0.3", "80.80.80.100"));
        let other = nat_with(&nat, Ipv4Addr::new(10, 0, 0, 4));
        assert_eq!(texts(leases.take("c", &other, &none).unwrap()), pair("10.0.0.4", "80.80.80.102"));
        assert_eq!(texts(leases.take("a", &other, &none).unwrap()), pair("10.0.0.3", "80.80.80.101"));
        assert_eq!(texts(leases.take("c", &other, &none).unwrap()), pair("10.0.0.4", "80.80.80.100"));
    }

    /// The same with its forward to another client.
    fn nat_with(nat: &NatSettings, inside: Ipv4Addr) -> NatSettings {
        let mut other = nat.clone();
        other.forwards[0].inside.0 = inside.into();
        other
    }

    #[test]
    fn a_client_has_the_smallest_mtu_of_its_links_and_of_the_settings() {
        let (mut leases, none) = (Leases::default(), ConnectionContext::default());
        let mut nat = nat("");
        (nat.inside.mtu, nat.outside.mtu) = (Some(1300), Some(1450));
        let lease = leases.take("a", &nat, &none).unwrap();
        let with = |mtu| ConnectionContext { mtu, ..ConnectionContext::default() };
        assert_eq!([0, 1400, 1500].map(|mtu| lease.behind(&nat, &with(mtu)).mtu), [1450, 1400, 1450]);
        assert_eq!([0, 1200, 1400].map(|mtu| lease.in_front(&nat, with(mtu)).mtu), [1300, 1200, 1300]);
        assert!(leases.set_mtu("a", 1400) && !leases.set_mtu("a", 1400) && !leases.set_mtu("b", 1400));
        assert_eq!(leases.take("a", &nat, &none).unwrap().mtu, 1400);
        let mtus = |mtu| {
            let nat = nat.of_one(1).with_mtu(mtu);
            [nat.inside.mtu, nat.outside.mtu]
        };
        assert_eq!(mtus(1400), [Some(1300), Some(1400)]);
        assert_eq!(
            [0, 60, 70_000].map(mtus),
            [[Some(1300), Some(1450)]; 3],
            "none, no link of IP, and one of any packet"
        );
    }

    #[test]
    fn clients_are_where_the_settings_say_and_their_router_is_the_nat() {
        let (mut leases, nat) = (Leases::default(), nat("clients: 10.0.0.5-10.0.0.5\n"));
        let lease = leases.take("a", &nat, &ConnectionContext::default()).unwrap();
        assert_eq!(lease.inside.to_string(), "10.0.0.5");
        let mut more = nat.clone();
        more.pool = vec![1..=9];
        let full = leases.take("b", &more, &ConnectionContext::default()).unwrap_err();
        assert!(full.message().contains("no address of 10.0.0.0/29 is left"), "{full}");
        let behind = lease.behind(&nat, &ConnectionContext { mtu: 1400, ..ConnectionContext::default() });
        assert_eq!(
            (behind.mtu, behind.ip_context.clone().unwrap().src_ip_addrs),
            (1400, vec!["80.80.80.100/24".to_owned()])
        );
        let ip = lease.in_front(&nat, behind).ip_context.unwrap();
        assert_eq!(
            (ip.src_ip_addrs, ip.dst_ip_addrs),
            (vec!["10.0.0.5/29".to_owned()], vec!["10.0.0.1/29".to_owned()])
        );
        assert_eq!(ip.src_routes, [Route { prefix: "80.80.80.0/24".to_owned(), next_hop: "10.0.0.1".to_owned() }]);
    }
}
