//! Which frames are wanted.

use std::net::IpAddr;

use ferrule_dataplane::capture::Remark;
use ipnet::IpNet;
use thiserror::Error;

use crate::decode::{Decoded, Network, number_of};
use crate::v1;

/// Which frames are wanted: those that fit all that is said, and of a list one. By default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    hosts: Vec<IpNet>,
    ports: Vec<u16>,
    protocols: Vec<Wanted>,
    rules: Vec<String>,
    dropped: bool,
}

/// What is wanted of the protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Arp,
    V4,
    V6,
    Protocol(u8),
}

/// A filter is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// An address is none.
    #[error("host `{0}`; an address or a prefix is wanted, as in 10.0.0.1 or 10.0.0.0/8")]
    Host(String),
    /// A port is none.
    #[error("port {0}; 0 to 65535 is wanted")]
    Port(u32),
    /// A protocol is none.
    #[error("protocol `{0}`; one of tcp, udp, icmp, icmpv6, arp, ip, ipv6 and a number from 0 to 255 is wanted")]
    Protocol(String),
}

impl Filter {
    /// As it was asked for.
    pub fn read(asked: &v1::Filter) -> Result<Self, FilterError> {
        let host = |text: &String| {
            let alone = || text.parse::<IpAddr>().map(IpNet::from).ok();
            text.parse().ok().or_else(alone).ok_or_else(|| FilterError::Host(shown(text)))
        };
        let port = |port: &u32| u16::try_from(*port).map_err(|_| FilterError::Port(*port));
        Ok(Self {
            hosts: asked.hosts.iter().map(host).collect::<Result<_, _>>()?,
            ports: asked.ports.iter().map(port).collect::<Result<_, _>>()?,
            protocols: asked.protocols.iter().map(|text| protocol(text)).collect::<Result<_, _>>()?,
            rules: asked.rules.clone(),
            dropped: asked.dropped,
        })
    }

    /// Whether a frame fits.
    pub fn fits(&self, bytes: &[u8], is_ip: bool, remark: Remark<'_>) -> bool {
        if self.dropped && !remark.dropped || !fits_one(&self.rules, |rule| *rule == remark.rule) {
            return false;
        }
        if self.hosts.is_empty() && self.ports.is_empty() && self.protocols.is_empty() {
            return true;
        }
        let decoded = Decoded::of(bytes, is_ip);
        let ends = decoded.addresses.iter().flatten();
        fits_one(&self.hosts, |host| ends.clone().any(|end| host.contains(end)))
            && fits_one(&self.ports, |port| decoded.ports.is_some_and(|ports| ports.contains(port)))
            && fits_one(&self.protocols, |wanted| wanted.is(&decoded))
    }
}

impl Wanted {
    fn is(self, decoded: &Decoded) -> bool {
        let is_v4 = decoded.addresses.is_some_and(|[source, _]| source.is_ipv4());
        match (self, decoded.network) {
            (Self::Arp, network) => network == Network::Arp,
            (Self::V4, Network::Ip(_)) => is_v4,
            (Self::V6, Network::Ip(_)) => !is_v4,
            (Self::Protocol(wanted), Network::Ip(protocol)) => wanted == protocol,
            _ => false,
        }
    }
}

/// An empty list fits everything.
fn fits_one<T>(list: &[T], fits: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(fits)
}

fn protocol(text: &str) -> Result<Wanted, FilterError> {
    let word = match text.to_ascii_lowercase().as_str() {
        "arp" => Some(Wanted::Arp),
        "ip" | "ipv4" => Some(Wanted::V4),
        "ipv6" => Some(Wanted::V6),
        other => number_of(other).or_else(|| other.parse().ok()).map(Wanted::Protocol),
    };
    word.ok_or_else(|| FilterError::Protocol(shown(text)))
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn asked(change: impl FnOnce(&mut v1::Filter)) -> v1::Filter {
        let mut filter = v1::Filter::default();
        change(&mut filter);
        filter
    }

    #[test]
    fn a_frame_is_wanted_that_fits_one_of_each_list() {
        let mut udp = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder.udp(53, 4000).write(&mut udp, &[]).unwrap();
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let passed = Remark { dropped: false, word: "rule", rule: "dns" };
        for (filter, fits) in [
            (asked(|_| ()), true),
            (asked(|filter| filter.hosts = texts(&["192.0.2.1", "10.0.0.2"])), true),
            (asked(|filter| filter.hosts = texts(&["10.0.0.0/31"])), true),
            (asked(|filter| filter.hosts = texts(&["2001:db8::/32"])), false),
            (asked(|filter| filter.ports = vec![53]), true),
            (asked(|filter| filter.ports = vec![54, 55]), false),
            (asked(|filter| filter.protocols = texts(&["tcp", "17"])), true),
            (asked(|filter| filter.protocols = texts(&["IP"])), true),
            (asked(|filter| filter.protocols = texts(&["arp", "ipv6", "icmp"])), false),
            (asked(|filter| filter.rules = texts(&["dns"])), true),
            (asked(|filter| filter.rules = texts(&["web"])), false),
            (asked(|filter| filter.dropped = true), false),
            (asked(|filter| (filter.ports, filter.protocols) = (vec![53], texts(&["tcp"]))), false),
        ] {
            assert_eq!(Filter::read(&filter).unwrap().fits(&udp, false, passed), fits, "{filter:?}");
        }
        let dropped = Filter::read(&asked(|filter| filter.dropped = true)).unwrap();
        assert!(dropped.fits(&udp, false, Remark { dropped: true, ..passed }));
    }

    #[test]
    fn what_is_none_is_named() {
        for (filter, problem) in [
            (asked(|filter| filter.hosts = vec!["ten".to_owned()]), "host `ten`"),
            (asked(|filter| filter.ports = vec![65536]), "port 65536"),
            (asked(|filter| filter.protocols = vec!["tpc".to_owned()]), "protocol `tpc`"),
        ] {
            let error = Filter::read(&filter).unwrap_err().to_string();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}
