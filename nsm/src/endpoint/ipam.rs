//! Addresses for connections: two of each prefix, one for either end of a point-to-point link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::proto::connectioncontext::{IpContext, Route};

/// Gives addresses out of prefixes, of each of them, and the same again to whoever has some.
#[derive(Debug)]
pub struct Ipam {
    /// Each is a prefix; they may overlap.
    pools: Vec<Pool>,
    taken: BTreeSet<IpAddr>,
    links: BTreeMap<String, Vec<Link>>,
}

/// Why there are no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// All are in use, or excluded.
    #[error("{0} has no two addresses left that are not excluded: give the endpoint a larger prefix")]
    Full(IpNet),
    /// The client excludes nonsense.
    #[error("the excluded prefix {0:?} is none")]
    Excluded(String),
    /// The client excludes very much.
    #[error("there are {0} excluded prefixes: at most {EXCLUDED_MAX}")]
    TooManyExcluded(usize),
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    client: IpAddr,
    endpoint: IpAddr,
}

impl Ipam {
    /// Out of these.
    pub fn new(prefixes: &[IpNet]) -> Self {
        let pools = prefixes.iter().map(|prefix| Pool(prefix.trunc())).collect();
        Self { pools, taken: BTreeSet::new(), links: BTreeMap::new() }
    }

    /// Puts the addresses of a connection and the routes to them into its context. Those of a refresh stay, unless the client excludes
    /// them now; those that we gave before our start stay, if they are free. When there are none, those of before stay this one's. At the
    /// endpoint's end there is nothing but what is given here: a client has no say there.
    pub fn assign(&mut self, id: &str, context: &mut IpContext) -> Result<(), IpamError> {
        let excluded = excluded(context)?;
        let before = self.links.remove(id).unwrap_or_default();
        for link in &before {
            link.leave(&mut self.taken);
        }
        let wanted: Vec<Link> = before.iter().copied().chain(self.links_of(context)).collect();
        let mut links: Vec<Link> = Vec::new();
        for pool in &self.pools {
            let known = wanted.iter().copied().find(|link| pool.can_have(link, &self.taken, &excluded));
            let Some(link) = known.or_else(|| pool.find(&self.taken, &excluded)) else {
                let error = IpamError::Full(pool.0);
                for link in &links {
                    link.leave(&mut self.taken);
                }
                for link in &before {
                    link.take(&mut self.taken);
                }
                if !before.is_empty() {
                    self.links.insert(id.to_owned(), before);
                }
                return Err(error);
            };
            link.take(&mut self.taken);
            links.push(link);
        }
        // What is of our prefixes and is not given here is somebody else's by now.
        for link in &wanted {
            link.take_from(context);
        }
        context.dst_ip_addrs.clear();
        context.dst_routes.clear();
        context.policies.clear();
        context.ip_neighbors.clear();
        for link in &links {
            link.put_into(context);
        }
        self.links.insert(id.to_owned(), links);
        Ok(())
    }

    /// Takes the addresses of a connection back.
    pub fn release(&mut self, id: &str) {
        for link in self.links.remove(id).unwrap_or_default() {
            link.leave(&mut self.taken);
        }
    }

    /// The pairs of our prefixes that are in a context: of each prefix the first client's address with the first endpoint's, and so on.
    fn links_of(&self, context: &IpContext) -> Vec<Link> {
        let addresses = |texts: &[String], pool: &Pool| {
            let parsed = texts.iter().filter_map(|text| text.parse::<IpNet>().ok()).map(|net| net.addr());
            parsed.filter(|address| pool.0.contains(address)).collect::<Vec<_>>()
        };
        let of = |pool: &Pool| {
            let [clients, endpoints] =
                [&context.src_ip_addrs, &context.dst_ip_addrs].map(|texts| addresses(texts, pool));
            let pairs = clients.into_iter().zip(endpoints);
            pairs.map(|(client, endpoint)| Link { client, endpoint }).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of).collect()
    }
}

/// One prefix.
#[derive(Debug)]
struct Pool(IpNet);

impl Pool {
    /// The first two that are free.
    fn find(&self, taken: &BTreeSet<IpAddr>, excluded: &[IpNet]) -> Option<Link> {
        let endpoint = self.free_from(number(self.0.network()), taken, excluded)?;
        let client = self.free_from(endpoint.checked_add(1)?, taken, excluded)?;
        Some(Link { client: self.address(client), endpoint: self.address(endpoint) })
    }

    /// The first from here on.
    fn free_from(&self, mut at: u128, taken: &BTreeSet<IpAddr>, excluded: &[IpNet]) -> Option<u128> {
        let last = number(self.0.broadcast());
        while at <= last {
            let address = self.address(at);
            // Out of an excluded prefix in one step: it may be half of all addresses.
            match excluded.iter().find(|prefix| prefix.contains(&address)) {
                Some(prefix) => at = number(prefix.broadcast()).checked_add(1)?,
                None if taken.contains(&address) => at = at.checked_add(1)?,
                None => return Some(at),
            }
        }
        None
    }

    fn can_have(&self, link: &Link, taken: &BTreeSet<IpAddr>, excluded: &[IpNet]) -> bool {
        let is_free = |address: &IpAddr| {
            self.0.contains(address)
                && !taken.contains(address)
                && !excluded.iter().any(|prefix| prefix.contains(address))
        };
        link.client != link.endpoint && is_free(&link.client) && is_free(&link.endpoint)
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.0 {
            IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

impl Link {
    fn take(&self, taken: &mut BTreeSet<IpAddr>) {
        taken.extend([self.client, self.endpoint]);
    }

    fn leave(&self, taken: &mut BTreeSet<IpAddr>) {
        taken.remove(&self.client);
        taken.remove(&self.endpoint);
    }

    fn put_into(&self, context: &mut IpContext) {
        let [client, endpoint] = [self.client, self.endpoint].map(|address| IpNet::from(address).to_string());
        let route = |prefix: &String| Route { prefix: prefix.clone(), ..Route::default() };
        context.src_routes.push(route(&endpoint));
        context.dst_routes.push(route(&client));
        context.src_ip_addrs.push(client);
        context.dst_ip_addrs.push(endpoint);
    }

    fn take_from(&self, context: &mut IpContext) {
        let [client, endpoint] = [self.client, self.endpoint].map(|address| IpNet::from(address).to_string());
        context.src_ip_addrs.retain(|address| *address != client);
        context.src_routes.retain(|route| route.prefix != endpoint);
    }
}

fn excluded(context: &IpContext) -> Result<Vec<IpNet>, IpamError> {
    let excluded = &context.excluded_prefixes;
    if excluded.len() > EXCLUDED_MAX {
        return Err(IpamError::TooManyExcluded(excluded.len()));
    }
    let parse = |text: &String| text.parse().map_err(|_| IpamError::Excluded(text.chars().take(SHOWN_MAX).collect()));
    excluded.iter().map(parse).collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The networks of a cluster and a few more.
const EXCLUDED_MAX: usize = 256;
const SHOWN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::connectioncontext::{IpNeighbor, PolicyRoute};

    fn ipam(prefixes: &[&str]) -> Ipam {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        Ipam::new(&prefixes)
    }

    fn assigned(ipam: &mut Ipam, id: &str, excluded: &[&str]) -> Result<IpContext, IpamError> {
        let excluded_prefixes = excluded.iter().map(|&prefix| prefix.to_owned()).collect();
        let mut context = IpContext { excluded_prefixes, ..IpContext::default() };
        ipam.assign(id, &mut context).map(|()| context)
    }

    #[test]
    fn both_families_get_what_the_go_endpoint_gives() {
        let mut ipam = ipam(&["172.16.1.0/24", "2001:db8::/116"]);
        let context = assigned(&mut ipam, "a", &[]).unwrap();
        assert_eq!(context.src_ip_addrs, ["172.16.1.1/32", "2001:db8::1/128"]);
        assert_eq!(context.dst_ip_addrs, ["172.16.1.0/32", "2001:db8::/128"]);
        let prefixes = |routes: &[Route]| routes.iter().map(|route| route.prefix.clone()).collect::<Vec<_>>();
        assert_eq!(prefixes(&context.src_routes), context.dst_ip_addrs);
        assert_eq!(prefixes(&context.dst_routes), context.src_ip_addrs);
    }

    #[test]
    fn a_refresh_changes_nothing_and_what_is_released_is_free() {
        let mut ipam = ipam(&["172.16.1.100/31"]);
        let first = assigned(&mut ipam, "a", &[]).unwrap();
        assert_eq!(
            (first.src_ip_addrs[0].as_str(), first.dst_ip_addrs[0].as_str()),
            ("172.16.1.101/32", "172.16.1.100/32")
        );
        let mut again = first.clone();
        ipam.assign("a", &mut again).unwrap();
        assert_eq!(again, first);
        assert_eq!(assigned(&mut ipam, "b", &[]), Err(IpamError::Full("172.16.1.100/31".parse().unwrap())));
        ipam.release("a");
        ipam.release("a");
        assert_eq!(assigned(&mut ipam, "b", &[]).unwrap().src_ip_addrs, first.src_ip_addrs);
    }

    #[test]
    fn what_fails_takes_nothing() {
        let mut ipam = ipam(&["10.0.0.0/30", "10.1.0.0/31"]);
        assigned(&mut ipam, "a", &[]).unwrap();
        assert!(assigned(&mut ipam, "b", &[]).is_err());
        ipam.release("a");
        let again = assigned(&mut ipam, "c", &[]).unwrap();
        assert_eq!(again.dst_ip_addrs, ["10.0.0.0/32", "10.1.0.0/32"]);
    }

    #[test]
    fn a_refresh_that_fails_takes_nothing_away() {
        let mut ipam = ipam(&["10.0.0.0/24"]);
        let first = assigned(&mut ipam, "a", &[]).unwrap();
        let mut refreshed = IpContext { excluded_prefixes: vec!["10.0.0.0/24".to_owned()], ..first.clone() };
        let asked = refreshed.clone();
        assert!(ipam.assign("a", &mut refreshed).is_err());
        assert_eq!(refreshed, asked);
        let second = assigned(&mut ipam, "b", &[]).unwrap();
        assert_ne!(second.src_ip_addrs, first.src_ip_addrs, "they are the first one's still");
        let mut again = first.clone();
        ipam.assign("a", &mut again).unwrap();
        assert_eq!(again, first);
    }

    #[test]
    fn prefixes_that_overlap_give_each_address_once() {
        let mut ipam = ipam(&["10.0.0.0/24", "10.0.0.0/16", "::/112"]);
        let all = assigned(&mut ipam, "a", &[]).unwrap();
        assert_eq!(all.src_ip_addrs, ["10.0.0.1/32", "10.0.0.3/32", "::1/128"]);
        assert_eq!(all.dst_ip_addrs, ["10.0.0.0/32", "10.0.0.2/32", "::/128"]);
    }

    #[test]
    fn a_client_has_no_say_at_the_endpoints_end() {
        let mut ipam = ipam(&["10.0.0.0/24"]);
        let everything = Route { prefix: "0.0.0.0/0".to_owned(), ..Route::default() };
        let mut context = IpContext {
            dst_ip_addrs: vec!["192.0.2.1/24".to_owned()],
            dst_routes: vec![everything.clone()],
            policies: vec![PolicyRoute { routes: vec![everything], ..PolicyRoute::default() }],
            ip_neighbors: vec![IpNeighbor::default()],
            ..IpContext::default()
        };
        ipam.assign("a", &mut context).unwrap();
        assert_eq!(context, assigned(&mut self::ipam(&["10.0.0.0/24"]), "a", &[]).unwrap());
        let given = context.clone();
        ipam.assign("a", &mut context).unwrap();
        assert_eq!(context, given, "a refresh");
    }

    #[test]
    fn excluded_prefixes_are_left_out_also_later() {
        let mut ipam = ipam(&["10.0.0.0/8"]);
        let first = assigned(&mut ipam, "a", &["10.0.0.0/9", "fd00::/8", "10.128.0.1/32"]).unwrap();
        assert_eq!(
            (first.dst_ip_addrs[0].as_str(), first.src_ip_addrs[0].as_str()),
            ("10.128.0.0/32", "10.128.0.2/32")
        );
        let mut moved = IpContext { excluded_prefixes: vec!["10.128.0.0/16".to_owned()], ..first };
        ipam.assign("a", &mut moved).unwrap();
        assert_eq!(
            (moved.dst_ip_addrs, moved.src_ip_addrs),
            (vec!["10.0.0.0/32".to_owned()], vec!["10.0.0.1/32".to_owned()])
        );
        assert_eq!((moved.src_routes.len(), moved.dst_routes.len()), (1, 1));
        assert!(assigned(&mut ipam, "b", &["10.0.0.0/8"]).is_err());
        assert_eq!(assigned(&mut ipam, "b", &["ten"]), Err(IpamError::Excluded("ten".to_owned())));
        assert_eq!(assigned(&mut ipam, "b", &["10.0.0.0/8"; 257]), Err(IpamError::TooManyExcluded(257)));
    }

    #[test]
    fn addresses_from_before_our_start_are_kept_if_they_are_free() {
        let mut context = assigned(&mut ipam(&["10.0.0.0/24"]), "a", &[]).unwrap();
        context.src_ip_addrs = vec!["192.0.2.1/32".to_owned(), "10.0.0.9/32".to_owned()];
        context.dst_ip_addrs = vec!["10.0.0.8/32".to_owned()];
        let mut started = ipam(&["10.0.0.0/24"]);
        let mut other = context.clone();
        started.assign("a", &mut context).unwrap();
        assert_eq!(context.src_ip_addrs, ["192.0.2.1/32", "10.0.0.9/32"], "what others gave stays");
        started.assign("b", &mut other).unwrap();
        assert_eq!(other.src_ip_addrs, ["192.0.2.1/32", "10.0.0.1/32"], "they are not free any more");
    }
}
