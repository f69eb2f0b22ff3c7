//! The mapping of RFC 6296: one prefix for another, and what that changes in the sum of an address is taken back in one of its other words.
//! So the checksums of TCP, UDP and ICMPv6 stay right, and nobody has to look for them.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

/// Two prefixes that stand for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixPair {
    /// That of the hosts inside.
    pub inside: Ipv6Net,
    /// What they are known by outside.
    pub outside: Ipv6Net,
    /// What is added to a word on the way out.
    adjustment: u16,
}

impl PrefixPair {
    /// The shorter one is filled with zeros to the length of the other one (section 3.1). None: longer than 64 bits, or one within the other, so
    /// that nobody could say on which side an address is.
    pub fn new(inside: Ipv6Net, outside: Ipv6Net) -> Option<Self> {
        let len = inside.prefix_len().max(outside.prefix_len());
        let of_len = |net: Ipv6Net| Ipv6Net::new(net.network(), len).ok();
        let (inside, outside) = (of_len(inside)?, of_len(outside)?);
        if len > PREFIX_MAX || inside == outside {
            return None;
        }
        Some(Self { inside, outside, adjustment: add(sum(inside.network()), !sum(outside.network())) })
    }

    /// The address outside of a host inside; none: it has none (section 3.5).
    pub fn outward(&self, address: Ipv6Addr) -> Option<Ipv6Addr> {
        map(address, self.outside, self.adjustment)
    }

    /// The address inside that an address outside stands for.
    pub fn inward(&self, address: Ipv6Addr) -> Option<Ipv6Addr> {
        map(address, self.inside, !self.adjustment)
    }
}

fn map(address: Ipv6Addr, to: Ipv6Net, adjustment: u16) -> Option<Ipv6Addr> {
    let hosts = u128::from(to.hostmask());
    let mut words = Ipv6Addr::from(u128::from(to.network()) | u128::from(address) & hosts).segments();
    // The subnet, or else the first word of the interface's identifier that is not all ones (sections 3.4 and 3.5). All ones are the other zero of
    // such sums: two addresses would become one.
    let candidates = if to.prefix_len() <= SUBNET_AT { 3..4 } else { 4..8 };
    let word = words[candidates].iter_mut().find(|word| **word != u16::MAX)?;
    *word = match add(*word, adjustment) {
        u16::MAX => 0,
        sum => sum,
    };
    Some(words.into())
}

fn sum(address: Ipv6Addr) -> u16 {
    address.segments().into_iter().fold(0, add)
}

/// In ones' complement.
fn add(one: u16, other: u16) -> u16 {
    let (sum, carry) = one.overflowing_add(other);
    sum + u16::from(carry)
}

/// The longest prefix that is mapped.
pub const PREFIX_MAX: u8 = 64;
/// Prefixes up to there leave the subnet's word whole.
const SUBNET_AT: u8 = 48;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(inside: &str, outside: &str) -> PrefixPair {
        PrefixPair::new(inside.parse().unwrap(), outside.parse().unwrap()).unwrap()
    }

    fn outward(pair: &PrefixPair, address: &str) -> Option<String> {
        let address = address.parse().unwrap();
        let outside = pair.outward(address)?;
        assert_eq!(pair.inward(outside), Some(address));
        Some(outside.to_string())
    }

    #[test]
    fn the_example_of_rfc_6296_comes_out() {
        let pair = pair("fd01:203:405::/48", "2001:db8:1::/48");
        assert_eq!(pair.adjustment, 0xd54f);
        assert_eq!(outward(&pair, "fd01:203:405:1::1234").unwrap(), "2001:db8:1:d550::1234");
    }

    #[test]
    fn the_word_that_is_adjusted_follows_the_longer_prefix() {
        let short = pair("fd01:203::/32", "2001:db8:1::/48");
        assert_eq!(outward(&short, "fd01:203:0:1::1"), Some(format!("2001:db8:1:{:x}::1", 1 + short.adjustment)));
        let long = pair("fd01:203:405:a000::/56", "2001:db8:1:ff00::/56");
        let outside = |host: &str| outward(&long, &format!("fd01:203:405:a012:{host}"));
        let adjusted = |word: u16| format!("{:x}", add(word, long.adjustment));
        assert_eq!(outside("0:0:0:1"), Some(format!("2001:db8:1:ff12:{}::1", adjusted(0))));
        assert_eq!(outside("ffff:5:0:1"), Some(format!("2001:db8:1:ff12:ffff:{}:0:1", adjusted(5))));
        assert_eq!(outside("ffff:ffff:ffff:7"), Some(format!("2001:db8:1:ff12:ffff:ffff:ffff:{}", adjusted(7))));
        assert_eq!(outside("ffff:ffff:ffff:ffff"), None);
        let subnet = pair("fd01:203:405::/48", "2001:db8:1::/48");
        assert_eq!(outward(&subnet, "fd01:203:405:ffff::1"), None);
        // What would become all ones becomes zero.
        let word = !subnet.adjustment;
        assert_eq!(outward(&subnet, &format!("fd01:203:405:{word:x}::1")).unwrap(), "2001:db8:1::1");
    }

    #[test]
    fn prefixes_that_are_too_long_or_the_same_are_none() {
        let new = |inside: &str, outside: &str| PrefixPair::new(inside.parse().unwrap(), outside.parse().unwrap());
        assert_eq!(new("fd01:203:405::/65", "2001:db8:1::/48"), None);
        assert_eq!(new("fd01::/48", "fd01::/48"), None);
        assert_eq!(new("fd01::/16", "fd01::/48"), None, "one filled with zeros is the other");
    }

    proptest! {
        #[test]
        fn the_way_back_is_the_way_there_and_no_sum_changes(
            inside in any::<u128>(),
            outside in any::<u128>(),
            lengths in (1..=64u8, 1..=64u8),
            host in prop::array::uniform8(prop_oneof![any::<u16>(), Just(0), Just(0xffff), Just(1)]),
        ) {
            let net = |address: u128, len| Ipv6Net::new(address.into(), len).unwrap().trunc();
            let pair = PrefixPair::new(net(inside, lengths.0), net(outside, lengths.1));
            prop_assume!(pair.is_some());
            let pair = pair.unwrap();
            let host = u128::from(Ipv6Addr::from(host)) & u128::from(pair.inside.hostmask());
            let host = Ipv6Addr::from(u128::from(pair.inside.network()) | host);
            if let Some(there) = pair.outward(host) {
                prop_assert!(pair.outside.contains(&there));
                prop_assert_eq!(pair.inward(there), Some(host));
                // Both zeros are one.
                prop_assert_eq!(sum(there) % 0xffff, sum(host) % 0xffff);
            }
        }
    }
}
