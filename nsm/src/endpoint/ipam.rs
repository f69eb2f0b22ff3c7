//! Addresses for connections: two of each prefix, one for either end of a point-to-point link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::proto::connectioncontext::{IpContext, Route};

/// Gives addresses out of prefixes, of each of them, and the same again to whoever has some.
#[derive(Debug)]
pub struct Ipam {
    pools: Vec<Pool>,
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
        let pool = |prefix: &IpNet| Pool { prefix: prefix.trunc(), taken: BTreeSet::new() };
        Self { pools: prefixes.iter().map(pool).collect(), links: BTreeMap::new() }
    }

    /// Puts the addresses of a connection and the routes to them into its context. Those of a refresh stay, unless the client excludes
    /// them now; those that an endpoint before us gave stay, if they are free here.
    pub fn assign(&mut self, id: &str, context: &mut IpContext) -> Result<(), IpamError> {
        let excluded = excluded(context)?;
        let before = self.links.remove(id).unwrap_or_default();
        let wanted: Vec<Link> = before.iter().copied().chain(links_of(context)).collect();
        for link in &before {
            self.give_back(link);
        }
        // What is of our prefixes and is not given here is somebody else's by now.
        wanted
            .iter()
            .filter(|link| self.pools.iter().any(|pool| pool.has(link)))
            .for_each(|link| link.take_from(context));
        let mut links: Vec<Link> = Vec::new();
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            let known = wanted.iter().copied().find(|link| pool.can_have(link, &excluded));
            let Some(link) = known.or_else(|| pool.find(&excluded)) else {
                let error = IpamError::Full(pool.prefix);
                for link in &links {
                    self.give_back(link);
                }
                return Err(error);
            };
            pool.take(&link);
            link.put_into(context);
            links.push(link);
        }
        self.links.insert(id.to_owned(), links);
        Ok(())
    }

    /// Takes the addresses of a connection back.
    pub fn release(&mut self, id: &str) {
        for link in self.links.remove(id).unwrap_or_default() {
            self.give_back(&link);
        }
    }

    fn give_back(&mut self, link: &Link) {
        for pool in &mut self.pools {
            pool.taken.remove(&number(link.client));
            pool.taken.remove(&number(link.endpoint));
        }
    }
}

/// One prefix.
#[derive(Debug)]
struct Pool {
    prefix: IpNet,
    /// Addresses as numbers.
    taken: BTreeSet<u128>,
}

impl Pool {
    /// The first two that are free.
    fn find(&self, excluded: &[IpNet]) -> Option<Link> {
        let endpoint = self.free_from(number(self.prefix.network()), excluded)?;
        let client = self.free_from(endpoint.checked_add(1)?, excluded)?;
        Some(Link { client: self.address(client), endpoint: self.address(endpoint) })
    }

    /// The first from here on.
    fn free_from(&self, mut at: u128, excluded: &[IpNet]) -> Option<u128> {
        let last = number(self.prefix.broadcast());
        while at <= last {
            let address = self.address(at);
            // Out of an excluded prefix in one step: it may be half of all addresses.
            match excluded.iter().find(|prefix| prefix.contains(&address)) {
                Some(prefix) => at = number(prefix.broadcast()).checked_add(1)?,
                None if self.taken.contains(&at) => at = at.checked_add(1)?,
                None => return Some(at),
            }
        }
        None
    }

    fn has(&self, link: &Link) -> bool {
        self.prefix.contains(&link.client) && self.prefix.contains(&link.endpoint)
    }

    fn can_have(&self, link: &Link, excluded: &[IpNet]) -> bool {
        let is_free = |address: &IpAddr| {
            !self.taken.contains(&number(*address)) && !excluded.iter().any(|prefix| prefix.contains(address))
        };
        self.has(link) && link.client != link.endpoint && is_free(&link.client) && is_free(&link.endpoint)
    }

    fn take(&mut self, link: &Link) {
        self.taken.extend([number(link.client), number(link.endpoint)]);
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.prefix {
            IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

impl Link {
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
        context.dst_ip_addrs.retain(|address| *address != endpoint);
        context.src_routes.retain(|route| route.prefix != endpoint);
        context.dst_routes.retain(|route| route.prefix != client);
    }
}

/// The pairs that are in a context: the first client's address with the first endpoint's, and so on.
fn links_of(context: &IpContext) -> Vec<Link> {
    let address = |text: &String| text.parse::<IpNet>().map(|net| net.addr()).ok();
    let pairs = context.src_ip_addrs.iter().zip(&context.dst_ip_addrs);
    pairs
        .filter_map(|(client, endpoint)| Some(Link { client: address(client)?, endpoint: address(endpoint)? }))
        .collect()
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
        context.dst_ip_addrs = vec!["192.0.2.2/32".to_owned(), "10.0.0.8/32".to_owned()];
        let mut started = ipam(&["10.0.0.0/24"]);
        let mut other = context.clone();
        started.assign("a", &mut context).unwrap();
        assert_eq!(context.src_ip_addrs, ["192.0.2.1/32", "10.0.0.9/32"], "what others gave stays");
        started.assign("b", &mut other).unwrap();
        assert_eq!(other.src_ip_addrs, ["192.0.2.1/32", "10.0.0.1/32"], "they are not free any more");
    }
}
