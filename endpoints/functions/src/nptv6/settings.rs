//! What an NPTv6 translator is told.
//!
//! ```yaml
//! nptv6:
//!   inside: { address: "fd01:203:405:1::1/64" }
//!   outside: { address: "2001:db8:ffff::2/64" }
//!   prefixes: { inside: "fd01:203:405::/48", outside: "2001:db8:1::/48" }
//!   gateway: "2001:db8:ffff::1"
//! ```

use std::net::Ipv6Addr;

use ferrule_daemon::settings::Field;
use ferrule_dataplane::spec::MacAddress;
use ipnet::Ipv6Net;

use super::prefix::{PREFIX_MAX, PrefixPair};

/// The settings of a translator, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NptSettings {
    /// Where clients are.
    pub inside: NptInterface,
    /// Where servers are.
    pub outside: NptInterface,
    /// What stands for what.
    pub prefixes: PrefixPair,
    /// The router outside that leads everywhere else; none: only what is on the outside network is reached.
    pub gateway: Option<Ipv6Addr>,
}

/// One of its two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptInterface {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its address and the network that it is on.
    pub address: Ipv6Net,
}

impl NptInterface {
    /// One with a MAC address of its own, made of the end of its address: locally administered.
    pub fn at(address: Ipv6Net) -> Self {
        let [.., a, b, c, d] = address.addr().octets();
        Self { mac: MacAddress([2, 0xfe, a, b, c, d]), address }
    }
}

impl NptSettings {
    /// What cannot be: the field, and why, with the cure.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { inside, outside, prefixes, gateway } = self;
        if !prefixes.inside.contains(&inside.address) {
            let problem = format!("its network is not within {}, which is what is translated", prefixes.inside);
            return Err(("inside.address", problem));
        }
        for (prefix, whose) in [(prefixes.inside, "clients have"), (prefixes.outside, "clients are known by")] {
            if overlap(&prefix, &outside.address) {
                let problem = format!(
                    "its network overlaps {prefix}, which {whose}; the network between it and the router outside is another one"
                );
                return Err(("outside.address", problem));
            }
        }
        if gateway.is_some_and(|gateway| !outside.address.contains(&gateway)) {
            let problem =
                format!("it is not on the outside network {}; nobody there answers for it", outside.address.trunc());
            return Err(("gateway", problem));
        }
        Ok(())
    }
}

fn overlap(one: &Ipv6Net, other: &Ipv6Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Reads and checks them.
pub fn read(field: &Field<'_>) -> Option<NptSettings> {
    let table = field.table(&["inside", "outside", "prefixes", "gateway"])?;
    let interface = |key, what| table.required(key, what).and_then(|field| read_interface(&field));
    let (inside, outside) = (
        interface("inside", "the interface where clients are"),
        interface("outside", "the interface where servers are"),
    );
    let prefixes = table.required("prefixes", "`{ inside: PREFIX, outside: PREFIX }`");
    let prefixes = prefixes.and_then(|field| read_prefixes(&field));
    let gateway = table.optional("gateway").map_or(Some(None), |field| field.parse_as("an IPv6 address").map(Some));
    let settings = NptSettings { inside: inside?, outside: outside?, prefixes: prefixes?, gateway: gateway? };
    if let Err((place, problem)) = settings.check() {
        field.wrong_below(place, problem);
    }
    Some(settings)
}

fn read_interface(field: &Field<'_>) -> Option<NptInterface> {
    let table = field.table(&["address", "mac"])?;
    let what = "an address with its prefix as in fd01:203:405:1::1/64";
    let address: Ipv6Net = table.required("address", what).and_then(|field| field.parse_as(what))?;
    let own = NptInterface::at(address);
    let mac = table.optional("mac").map_or(Some(own.mac), |field| field.parse());
    Some(NptInterface { mac: mac?, ..own })
}

fn read_prefixes(field: &Field<'_>) -> Option<PrefixPair> {
    let table = field.table(&["inside", "outside"])?;
    let prefix = |key| {
        let what = "a prefix as in fd01:203:405::/48";
        let field = table.required(key, what)?;
        let prefix: Ipv6Net = field.parse_as(what)?;
        if prefix.prefix_len() > PREFIX_MAX {
            field.wrong(format!(
                "{prefix} is longer than {PREFIX_MAX} bits; the rest of an address is what makes up for it"
            ));
            return None;
        }
        if prefix.trunc() != prefix {
            field.wrong(format!("`{prefix}` has bits behind its length; write {}", prefix.trunc()));
        }
        Some(prefix.trunc())
    };
    let (inside, outside) = (prefix("inside"), prefix("outside"));
    let pair = PrefixPair::new(inside?, outside?);
    if pair.is_none() {
        field.wrong("both are the same; nothing is to be translated: use a passthrough");
    }
    pair
}
