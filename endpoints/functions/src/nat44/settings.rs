//! What a NAT44 is told.
//!
//! ```yaml
//! nat44:
//!   inside: { address: 192.168.100.1/24 }
//!   outside: { address: 80.80.80.100/24 }
//!   pool: [80.80.80.100-80.80.80.105]
//!   forwards:
//!     - { protocol: tcp, outside: "80.80.80.100:80", inside: "192.168.100.10:8080" }
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;

use ferrule_daemon::settings::Field;
use ferrule_dataplane::spec::MacAddress;
use ipnet::Ipv4Net;

use crate::packet::{TCP, UDP};

/// The settings of a NAT44, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatSettings {
    /// Where clients are.
    pub inside: NatInterface,
    /// Where servers are.
    pub outside: NatInterface,
    /// The router outside that leads everywhere else; none: only what is on the outside network is reached.
    pub gateway: Option<Ipv4Addr>,
    /// Addresses inside that the mesh gives its clients; none: all that the inside network has.
    pub clients: Option<RangeInclusive<u32>>,
    /// Addresses that clients get.
    pub pool: Vec<RangeInclusive<u32>>,
    /// Ports and identifiers that clients get.
    pub ports: RangeInclusive<u16>,
    /// What servers inside are known as outside.
    pub forwards: Vec<PortForward>,
    /// Sessions at a time, and those of one client.
    pub sessions_max: usize,
    /// Sessions of one client at a time.
    pub client_sessions_max: usize,
}

/// One of its two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatInterface {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its address and the network that it is on.
    pub address: Ipv4Net,
    /// Bytes of the longest packet that it sends; none: packets leave as long as they come.
    pub mtu: Option<u16>,
}

/// What comes to an outside address and port goes to an inside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: u8,
    /// Where it comes to.
    pub outside: (u32, u16),
    /// Where it goes.
    pub inside: (u32, u16),
}

impl NatInterface {
    /// One with a MAC address of its own, made of its address: locally administered, and another one for each address of a network.
    pub fn at(address: Ipv4Net) -> Self {
        let [a, b, c, d] = address.addr().octets();
        Self { mac: MacAddress([2, 0xfe, a, b, c, d]), address, mtu: None }
    }
}

impl NatSettings {
    /// Those of a NAT for one client of several: it has one address of the pool, and that is its outside one.
    #[must_use]
    pub fn of_one(&self, outside: u32) -> Self {
        let address = Ipv4Addr::from(outside);
        let interface = if self.outside.address.addr() == address {
            self.outside
        } else {
            // An address has a prefix of any length up to 32.
            let made = Ipv4Net::new(address, self.outside.address.prefix_len()).map_or(self.outside, NatInterface::at);
            NatInterface { mtu: self.outside.mtu, ..made }
        };
        let forwards = self.forwards.iter().copied().filter(|forward| forward.outside.0 == outside).collect();
        Self { outside: interface, pool: vec![outside..=outside], forwards, ..self.clone() }
    }

    /// The same where the links on either side carry packets of no more than so many bytes; 0: nobody has said.
    #[must_use]
    pub fn with_mtu(mut self, mtu: u32) -> Self {
        // Less than that is no link of IP: whoever says it knows no better.
        let carried = u16::try_from(mtu).ok().filter(|mtu| u64::from(*mtu) >= MTU_MIN);
        for interface in [&mut self.inside, &mut self.outside] {
            interface.mtu = interface.mtu.into_iter().chain(carried).min();
        }
        self
    }

    /// One with defaults, and without a pool.
    pub fn new(inside: NatInterface, outside: NatInterface) -> Self {
        Self {
            inside,
            outside,
            gateway: None,
            clients: None,
            pool: Vec::new(),
            ports: PORTS_DEFAULT,
            forwards: Vec::new(),
            sessions_max: SESSIONS_DEFAULT,
            client_sessions_max: CLIENT_DEFAULT,
        }
    }

    /// What cannot be: the field, and why, with the cure.
    pub fn check(&self) -> Result<(), (String, String)> {
        let Self { inside, outside, .. } = self;
        let wrong = |place: &str, problem: String| Err((place.to_owned(), problem));
        if inside.address.contains(&outside.address.addr()) || outside.address.contains(&inside.address.addr()) {
            let problem = "it overlaps the inside network; a router joins two different ones";
            return wrong("outside.address", problem.to_owned());
        }
        let count = self.pool_len();
        if !(1..=POOL_MAX).contains(&count) {
            return wrong("pool", format!("{count} addresses; from 1 to {POOL_MAX} are wanted"));
        }
        if self.pool.iter().cloned().flatten().any(|address| inside.address.contains(&Ipv4Addr::from(address))) {
            let problem = "an address of it is on the inside network; those are what clients have already";
            return wrong("pool", problem.to_owned());
        }
        if let Some(range) = &self.clients
            && ![range.start(), range.end()].into_iter().all(|end| inside.address.contains(&Ipv4Addr::from(*end)))
        {
            let problem = "an address of it is not on the inside network; clients are there";
            return wrong("clients", problem.to_owned());
        }
        let nobody = |network: &Ipv4Net| format!("{}; nobody there answers for it", network.trunc());
        if self.gateway.is_some_and(|gateway| !outside.address.contains(&gateway)) {
            return wrong("gateway", format!("it is not on the outside network {}", nobody(&outside.address)));
        }
        for (number, forward) in self.forwards.iter().enumerate() {
            let place = |key: &str| format!("forwards[{number}].{key}");
            let [from, to] = [forward.outside.0, forward.inside.0].map(Ipv4Addr::from);
            if !inside.address.contains(&to) {
                let problem = format!("{to} is not on the inside network {}", nobody(&inside.address));
                return wrong(&place("inside"), problem);
            }
            if inside.address.contains(&from) {
                let problem = format!("{from} is on the inside network; an address outside is wanted");
                return wrong(&place("outside"), problem);
            }
            let is_same = |other: &PortForward| (other.protocol, other.outside) == (forward.protocol, forward.outside);
            if let Some(first) = self.forwards[..number].iter().position(is_same) {
                return wrong(&place("outside"), format!("forwards[{first}] has that address and port already"));
            }
        }
        Ok(())
    }

    /// The longest segment of TCP that passes both ways in one piece (RFC 879, section 3).
    pub fn mss_max(&self) -> Option<u16> {
        let mtu = [self.inside.mtu, self.outside.mtu].into_iter().flatten().min()?;
        Some(mtu.saturating_sub(HEADERS))
    }

    /// Whether an address is one of the pool.
    pub fn is_pool(&self, address: u32) -> bool {
        self.pool.iter().any(|range| range.contains(&address))
    }

    /// Whether a server inside is known by that.
    pub fn is_forwarded(&self, protocol: u8, outside: (u32, u16)) -> bool {
        self.forwards.iter().any(|forward| (forward.protocol, forward.outside) == (protocol, outside))
    }

    /// Whether somebody outside may ask for it by ARP.
    pub fn is_ours_outside(&self, address: u32) -> bool {
        self.is_pool(address)
            || address == u32::from(self.outside.address.addr())
            || self.forwards.iter().any(|forward| forward.outside.0 == address)
    }

    /// What cannot be where the mesh gives each client an address inside and one of the pool.
    pub fn check_of_mesh(&self) -> Result<(), (String, String)> {
        for (number, forward) in self.forwards.iter().enumerate() {
            let wrong = |key: &str, problem: String| Err((format!("forwards[{number}].{key}"), problem));
            let [from, to] = [forward.outside.0, forward.inside.0].map(Ipv4Addr::from);
            if !self.is_pool(forward.outside.0) {
                return wrong(
                    "outside",
                    format!("{from} is not of the pool; in a mesh no other address is known outside"),
                );
            }
            if !self.is_client(to) {
                return wrong("inside", format!("{to} is not one of `clients`; the mesh gives it to nobody"));
            }
            let parts =
                |other: &&PortForward| (other.outside.0 == forward.outside.0) != (other.inside.0 == forward.inside.0);
            if let Some(other) = self.forwards[..number].iter().find(parts) {
                let [from, to] = [other.outside.0, other.inside.0].map(Ipv4Addr::from);
                let problem = format!(
                    "another one leads from {from} to {to}; in a mesh a client has one address outside, which is its own"
                );
                return wrong("outside", problem);
            }
        }
        Ok(())
    }

    /// Whether a client of the mesh can have an address inside.
    pub fn is_client(&self, address: Ipv4Addr) -> bool {
        let network = self.inside.address;
        // The first address and the last one are the network's own.
        let is_networks = network.prefix_len() < 31 && (address == network.network() || address == network.broadcast());
        let is_meant = self.clients.as_ref().is_none_or(|range| range.contains(&u32::from(address)));
        is_meant && network.contains(&address) && !is_networks && address != network.addr()
    }

    /// Whether a client of the mesh with that address inside can have this one outside: what forwards name belongs together.
    pub fn can_have(&self, inside: Ipv4Addr, outside: Ipv4Addr) -> bool {
        let (inside, outside) = (u32::from(inside), u32::from(outside));
        self.forwards.iter().all(|forward| (forward.outside.0 == outside) == (forward.inside.0 == inside))
    }

    /// Whether an address is one host's, so that what is for it or from it goes on and errors are told (RFC 1812, sections 4.3.2.7 and 5.3.7).
    pub fn is_unicast(&self, address: u32) -> bool {
        let is_broadcast = |network: &Ipv4Net| network.prefix_len() < 31 && u32::from(network.broadcast()) == address;
        let host = Ipv4Addr::from(address);
        let is_nobodys = host.octets()[0] == 0 || host.is_loopback() || host.is_multicast() || host.is_broadcast();
        !is_nobodys && ![self.inside.address, self.outside.address].iter().any(is_broadcast)
    }

    /// Addresses in the pool.
    pub fn pool_len(&self) -> u64 {
        self.pool.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum()
    }

    /// The address of this number in the pool, counted around.
    pub fn pool_address(&self, number: u64) -> u32 {
        let mut left = number % self.pool_len().max(1);
        for range in &self.pool {
            let len = u64::from(range.end() - range.start()) + 1;
            if left < len {
                // Below the range's length.
                return range.start() + left as u32;
            }
            left -= len;
        }
        0
    }
}

/// Reads and checks them.
pub fn read(field: &Field<'_>) -> Option<NatSettings> {
    let table = field.table(KEYS)?;
    let interface = |key, what| table.required(key, what).and_then(|field| read_interface(&field));
    let (inside, outside) = (
        interface("inside", "the interface where clients are"),
        interface("outside", "the interface where servers are"),
    );
    let gateway = table.optional("gateway").map_or(Some(None), |field| field.parse_as("an IPv4 address").map(Some));
    let clients = table.optional("clients").map_or(Some(None), |field| read_range(&field).map(Some));
    let pool = table.required("pool", "a list of addresses and ranges that clients get");
    let pool = pool.and_then(|field| read_pool(&field));
    let ports = table.optional("ports").map_or(Some(PORTS_DEFAULT), |field| read_ports(&field));
    let forwards = table.optional("forwards").and_then(|field| field.items()).unwrap_or_default();
    let forwards: Vec<_> = forwards.iter().filter_map(read_forward).collect();
    let number =
        |key, default| table.optional(key).map_or(Some(default), |field: Field<'_>| field.number(1..=SESSIONS_MAX));
    let (sessions_max, client_sessions_max) =
        (number("sessions", SESSIONS_DEFAULT), number("client_sessions", CLIENT_DEFAULT));
    let settings = NatSettings {
        gateway: gateway?,
        clients: clients?,
        pool: pool?,
        ports: ports?,
        forwards,
        sessions_max: sessions_max?,
        client_sessions_max: client_sessions_max?,
        ..NatSettings::new(inside?, outside?)
    };
    if let Err((place, problem)) = settings.check() {
        field.wrong_below(&place, problem);
    }
    Some(settings)
}

fn read_interface(field: &Field<'_>) -> Option<NatInterface> {
    let table = field.table(&["address", "mac", "mtu"])?;
    let what = "an address with its prefix as in 192.168.100.1/24";
    let address: Ipv4Net = table.required("address", what).and_then(|field| field.parse_as(what))?;
    let own = NatInterface::at(address);
    let mac = table.optional("mac").map_or(Some(own.mac), |field| field.parse());
    let mtu = table.optional("mtu").map_or(Some(None), |field| field.number(MTU_MIN..=u16::MAX.into()).map(Some));
    Some(NatInterface { mac: mac?, mtu: mtu?, ..own })
}

fn read_pool(field: &Field<'_>) -> Option<Vec<RangeInclusive<u32>>> {
    Some(field.items()?.iter().filter_map(read_range).collect())
}

/// One address, or from one to another.
fn read_range(field: &Field<'_>) -> Option<RangeInclusive<u32>> {
    let text = field.text()?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse::<Ipv4Addr>(), last.trim().parse::<Ipv4Addr>()) {
        (Ok(first), Ok(last)) if first <= last => return Some(u32::from(first)..=u32::from(last)),
        (Ok(first), Ok(last)) => field.wrong(format!("`{text}` begins behind its end; write {last}-{first}")),
        _ => field.wrong(format!("`{text}`; an IPv4 address, or two as in 10.0.0.1-10.0.0.9, is wanted")),
    }
    None
}

fn read_ports(field: &Field<'_>) -> Option<RangeInclusive<u16>> {
    let text = field.text()?;
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let ends = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
    let range = ends.filter(|(first, last)| first <= last).map(|(first, last)| first..=last);
    if range.is_none() {
        field.wrong(format!("`{text}`; a range as in 1024-65535 is wanted"));
    }
    range
}

fn read_forward(field: &Field<'_>) -> Option<PortForward> {
    let table = field.table(&["protocol", "outside", "inside"])?;
    let protocol = table.required("protocol", "`tcp` or `udp`");
    let protocol = protocol.and_then(|field| field.choice(&[("tcp", TCP), ("udp", UDP)]));
    let end = |key| {
        let what = "an address and a port as in \"10.0.0.1:80\"";
        let end: SocketAddrV4 = table.required(key, what).and_then(|field| field.parse_as(what))?;
        Some((u32::from(*end.ip()), end.port()))
    };
    let (outside, inside) = (end("outside"), end("inside"));
    Some(PortForward { protocol: protocol?, outside: outside?, inside: inside? })
}

const KEYS: &[&str] =
    &["inside", "outside", "gateway", "clients", "pool", "ports", "forwards", "sessions", "client_sessions"];
/// Ports below are kept for those whom they mean something to.
const PORTS_DEFAULT: RangeInclusive<u16> = 1024..=u16::MAX;
/// As in the example.
const CLIENT_DEFAULT: usize = 10_000;
const SESSIONS_DEFAULT: usize = 500_000;
const SESSIONS_MAX: u64 = 16_000_000;
/// Every link carries that much (RFC 791, section 3.2).
const MTU_MIN: u64 = 68;
/// Those of IP and TCP, without options.
const HEADERS: u16 = 40;
/// A /16.
const POOL_MAX: u64 = 65_536;

#[cfg(test)]
mod tests {
    use ferrule_daemon::settings::parse;

    use super::*;

    const GOOD: &str = "
inside: { address: 192.168.100.1/24 }
outside: { address: 80.80.80.100/24, mac: \"02:00:00:00:00:09\" }
pool: [80.80.80.100-80.80.80.105, 80.80.80.110]
forwards: [{ protocol: tcp, outside: \"80.80.80.100:80\", inside: \"192.168.100.10:8080\" }]
";

    fn read_all(text: &str) -> Result<Option<NatSettings>, Vec<String>> {
        parse("nat.yaml", text, |field, _| read(field)).map_err(|errors| errors.lines().collect())
    }

    #[test]
    fn a_pool_is_counted_through_its_ranges() {
        let settings = read_all(GOOD).unwrap().unwrap();
        let addresses = [6, 7].map(|number| settings.pool_address(number));
        assert_eq!((settings.pool_len(), addresses), (7, [0x5050_506e, 0x5050_5064]));
        assert_eq!((settings.inside.mac, settings.ports), (MacAddress([2, 0xfe, 192, 168, 100, 1]), PORTS_DEFAULT));
        assert_eq!(settings.forwards[0].inside, (0xc0a8_640a, 8080));
    }

    #[test]
    fn a_nat_for_one_client_of_several_has_one_address_and_what_is_forwarded_from_there() {
        let settings = read_all(GOOD).unwrap().unwrap();
        let [first, second] = [0x5050_5064, 0x5050_506e].map(|outside| settings.of_one(outside));
        assert_eq!((first.outside, first.forwards.len()), (settings.outside, 1));
        assert_eq!(first.pool, [0x5050_5064..=0x5050_5064]);
        assert_eq!((second.outside.address.to_string().as_str(), second.forwards.len()), ("80.80.80.110/24", 0));
        assert_eq!(second.outside.mac, MacAddress([2, 0xfe, 80, 80, 80, 110]));
    }

    #[test]
    fn what_a_mesh_cannot_forward_is_named() {
        let check = |forwards: &str| {
            let text =
                GOOD.replace("forwards: [", &format!("clients: 192.168.100.9-192.168.100.11\nforwards: [{forwards}"));
            let (place, problem) = read_all(&text).unwrap().unwrap().check_of_mesh().err().unwrap_or_default();
            format!("{place}: {problem}")
        };
        let forward = |outside: &str, inside: &str| {
            format!("{{ protocol: udp, outside: \"{outside}\", inside: \"{inside}\" }}, ")
        };
        assert_eq!(check(""), ": ");
        assert_eq!(check(&forward("80.80.80.100:53", "192.168.100.10:53")), ": ", "two of one client");
        for (outside, inside, problem) in [
            ("80.80.80.99:53", "192.168.100.10:53", "forwards[0].outside: 80.80.80.99 is not of the pool"),
            ("80.80.80.101:53", "192.168.100.12:53", "forwards[0].inside: 192.168.100.12 is not one of `clients`"),
            ("80.80.80.100:53", "192.168.100.11:53", "forwards[1].outside: another one leads from 80.80.80.100 to"),
            ("80.80.80.101:53", "192.168.100.10:53", "forwards[1].outside: another one leads from 80.80.80.101 to"),
        ] {
            let found = check(&forward(outside, inside));
            assert!(found.starts_with(problem), "{found}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_cure() {
        for (old, new, place, problem) in [
            ("192.168.100.1/24", "192.168.100.1", "inside.address", "with its prefix"),
            ("192.168.100.1/24", "80.80.1.1/8", "outside.address", "overlaps"),
            ("100.1/24 }", "100.1/24, mtu: 60 }", "inside.mtu", "a number from 68"),
            ("100-80.80.80.105", "105-80.80.80.100", "pool[0]", "write 80.80.80.100-80.80.80.105"),
            ("[80.80.80.100-80.80.80.105, 80.80.80.110]", "[]", "pool", "from 1 to 65536"),
            ("80.80.80.110", "192.168.100.9", "pool", "on the inside network"),
            ("protocol: tcp", "protocol: icmp", "forwards[0].protocol", "`udp`"),
            ("100:80\"", "100\"", "forwards[0].outside", "an address and a port"),
            ("pool", "ports: 90-80\npool", "ports", "1024-65535"),
            ("pool", "gateway: here\npool", "gateway", "an IPv4 address"),
            ("pool", "clients: 192.168.101.9\npool", "clients", "not on the inside network"),
            ("pool", "gateway: 192.168.100.9\npool", "gateway", "not on the outside network 80.80.80.0/24"),
            ("192.168.100.10:8080", "192.168.101.10:8080", "forwards[0].inside", "not on the inside network"),
            ("80.80.80.100:80", "192.168.100.3:80", "forwards[0].outside", "an address outside is wanted"),
            (
                "forwards: [",
                "forwards: [{ protocol: tcp, outside: \"80.80.80.100:80\", inside: \"192.168.100.11:80\" }, ",
                "forwards[1].outside",
                "forwards[0] has that",
            ),
        ] {
            assert!(GOOD.contains(old), "{old}");
            let lines = read_all(&GOOD.replacen(old, new, 1)).unwrap_err();
            assert!(lines.iter().any(|line| line.contains(place) && line.contains(problem)), "{new}: {lines:#?}");
        }
    }
}
