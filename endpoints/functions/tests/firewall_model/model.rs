//! A firewall as one reads it in `docs/endpoints.md`: rules from the first to the last, lists that are searched from end to end, and no
//! line of the firewall's own code.

use std::fmt::{self, Display, Formatter};

use ferrule_functions::Side;

use super::packets::{MadePacket, Part, Quote, Shape, counterpart, is_request};

/// A rule.
#[derive(Clone, Debug)]
pub struct PlainRule {
    pub action: &'static str,
    /// None: either.
    pub from: Option<Side>,
    pub protocol: Option<u8>,
    pub source: Option<Prefix>,
    pub destination: Option<Prefix>,
    /// Source and destination ports; of ICMP, types and codes.
    pub ranges: [Option<(u16, u16)>; 2],
    /// Of TCP: those that are looked at, and those of them that are set.
    pub flags: (u8, u8),
}

/// A network.
#[derive(Clone, Copy, Debug)]
pub struct Prefix {
    pub is_v6: bool,
    pub address: u128,
    pub len: u32,
}

/// What becomes of a frame, and why, as a trace says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    pub passes: bool,
    pub word: &'static str,
    pub rule: String,
    /// Frames that were held until now.
    pub released: Vec<Vec<u8>>,
}

/// The firewall.
pub struct PlainFirewall {
    rules: Vec<PlainRule>,
    ways_back: Vec<WayBack>,
    firsts: Vec<(PartsOf, Fate, u64)>,
    held: Vec<(PartsOf, Vec<u8>, u64)>,
    now_ms: u64,
}

/// What a rule opened.
struct WayBack {
    opening: MadePacket,
    /// Flags of TCP that were seen, by side.
    seen: [u8; 2],
    last_ms: u64,
}

/// Whose parts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PartsOf {
    side: Side,
    is_v6: bool,
    source: u128,
    destination: u128,
    /// Of IPv4 only.
    protocol: Option<u8>,
    id: u16,
}

impl PlainFirewall {
    pub fn new(rules: Vec<PlainRule>) -> Self {
        Self { rules, ways_back: Vec::new(), firsts: Vec::new(), held: Vec::new(), now_ms: 0 }
    }

    pub fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    pub fn set_rules(&mut self, rules: Vec<PlainRule>) {
        self.rules = rules;
        self.firsts.clear();
        self.held.clear();
    }

    /// Judges a packet or a part of one, that was sent as `frame`.
    pub fn judge(&mut self, packet: &MadePacket, shape: &Shape, part: Option<Part>, frame: &[u8]) -> Fate {
        let extensions = if packet.is_v6 { shape.extensions.len() + usize::from(part.is_some()) } else { 0 };
        if shape.vlan_tags > 2 || shape.is_cut || extensions > 8 {
            return Fate::dropped("malformed");
        }
        let Some(part) = part else { return self.judge_headers(packet, true) };
        let parts_of = PartsOf {
            side: packet.side,
            is_v6: packet.is_v6,
            source: packet.source,
            destination: packet.destination,
            protocol: (!packet.is_v6).then_some(packet.protocol),
            id: part.id,
        };
        let hides_header = if part.number == 0 {
            part.len < packet.header_len()
        } else {
            part.number * part.len < packet.header_len()
        };
        if hides_header {
            return Fate::dropped("tiny-fragment");
        }
        let now_ms = self.now_ms;
        self.held.retain(|(.., since_ms)| now_ms - since_ms < 2000);
        self.firsts.retain(|(.., since_ms)| now_ms - since_ms < 30_000);
        if part.number > 0 {
            if let Some((_, fate, _)) = self.firsts.iter().find(|(first, ..)| *first == parts_of) {
                return fate.clone();
            }
            self.held.push((parts_of, frame.to_vec(), now_ms));
            if self.held.len() > 256 {
                self.held.remove(0);
            }
            return Fate { passes: false, word: "held", rule: String::new(), released: Vec::new() };
        }
        let mut fate = self.judge_headers(packet, false);
        self.firsts.retain(|(first, ..)| *first != parts_of);
        self.firsts.push((parts_of.clone(), fate.clone(), now_ms));
        let ours = self.held.extract_if(.., |(whose, ..)| *whose == parts_of).map(|(_, frame, _)| frame).collect();
        if fate.passes {
            fate.released = ours;
        }
        fate
    }

    /// Judges a packet that is whole, or the first part of one.
    fn judge_headers(&mut self, packet: &MadePacket, is_whole: bool) -> Fate {
        if let Some(number) = self.find(packet) {
            let rule = self.first_match(&self.ways_back[number].opening);
            self.ways_back[number].see(packet, self.now_ms);
            return Fate::by("session", true, rule.unwrap_or_default());
        }
        let some_v6_may = self.rules.iter().any(|rule| rule.action != "deny" && rule.can_be(true));
        let is_discovery = packet.is_v6 && packet.is_icmp() && matches!(packet.ports, [135 | 136, 0]);
        // In parts it is none (RFC 6980).
        if some_v6_may && is_discovery && packet.hop_limit == 255 && is_whole {
            return Fate::passed("neighbour-discovery");
        }
        let rule = self.first_match(packet);
        let action = rule.map_or("", |rule| self.rules[rule].action);
        match (rule, action) {
            (Some(rule), "permit") => Fate::by("rule", true, rule),
            (Some(rule), "reflect") => {
                if !packet.is_icmp() || is_request(packet.is_v6, packet.ports[0]) {
                    let mut opened = WayBack { opening: packet.clone(), seen: [0; 2], last_ms: 0 };
                    opened.see(packet, self.now_ms);
                    self.ways_back.push(opened);
                }
                Fate::by("rule", true, rule)
            }
            _ if self.is_error_of_session(packet) => Fate::passed("icmp-error"),
            (Some(rule), _) => Fate::by("rule", false, rule),
            (None, _) => Fate::dropped("unmatched"),
        }
    }

    /// The way that a packet goes; one that is idle, or that the rules of now would not open, is none.
    fn find(&mut self, packet: &MadePacket) -> Option<usize> {
        let number = self.ways_back.iter().position(|way| way.is_of(packet))?;
        let way = &self.ways_back[number];
        let rule = self.first_match(&way.opening);
        let is_open = rule.is_some_and(|rule| self.rules[rule].action == "reflect");
        if !is_open || self.now_ms - way.last_ms >= way.idle_ms() {
            self.ways_back.remove(number);
            return None;
        }
        Some(number)
    }

    fn is_error_of_session(&mut self, error: &MadePacket) -> bool {
        let Some(quote) = &error.quote else { return false };
        let Quote { packet, part, transport_len, .. } = &**quote;
        let says_whose = part.is_none_or(|part| part.number == 0) && *transport_len.min(&quote.carried_len()) >= 8;
        let was_sent = MadePacket { side: error.side.other(), ..packet.clone() };
        says_whose && packet.source == error.destination && self.find(&was_sent).is_some()
    }

    fn first_match(&self, packet: &MadePacket) -> Option<usize> {
        self.rules.iter().position(|rule| rule.is_about(packet))
    }
}

impl PlainRule {
    fn is_about(&self, packet: &MadePacket) -> bool {
        let [sources, destinations] = self.ranges;
        let within = |range: Option<(u16, u16)>, port| range.is_none_or(|(first, last)| first <= port && port <= last);
        self.from.is_none_or(|side| side == packet.side)
            && self.can_be(packet.is_v6)
            && self.protocol.is_none_or(|protocol| protocol == packet.protocol)
            && self.source.is_none_or(|prefix| prefix.has(packet.source))
            && self.destination.is_none_or(|prefix| prefix.has(packet.destination))
            && within(sources, packet.ports[0])
            && within(destinations, packet.ports[1])
            && packet.flags & self.flags.0 == self.flags.1
    }

    /// Whether it is about some packets of this family: ICMP is IPv4, ICMPv6 is IPv6.
    pub fn can_be(&self, is_v6: bool) -> bool {
        let by_prefix = [self.source, self.destination].into_iter().flatten().all(|prefix| prefix.is_v6 == is_v6);
        by_prefix && self.protocol != Some(if is_v6 { 1 } else { 58 })
    }
}

impl Prefix {
    fn has(self, address: u128) -> bool {
        let bits = if self.is_v6 { 128 } else { 32 };
        (0..self.len).all(|bit| (address ^ self.address) >> (bits - 1 - bit) & 1 == 0)
    }
}

impl WayBack {
    fn is_of(&self, packet: &MadePacket) -> bool {
        let Self { opening, .. } = self;
        if (opening.is_v6, opening.protocol) != (packet.is_v6, packet.protocol) {
            return false;
        }
        let is_back = opening.side != packet.side;
        let addresses = [packet.source, packet.destination];
        let [source, destination] =
            if is_back { [opening.destination, opening.source] } else { [opening.source, opening.destination] };
        if addresses != [source, destination] {
            return false;
        }
        let [near, far] = opening.ports;
        if packet.is_icmp() {
            let wanted = if is_back { counterpart(packet.is_v6, near) } else { Some(near) };
            return wanted == Some(packet.ports[0]) && opening.identifier == packet.identifier;
        }
        !packet.has_ports() || packet.ports == if is_back { [far, near] } else { [near, far] }
    }

    fn see(&mut self, packet: &MadePacket, now_ms: u64) {
        self.last_ms = now_ms;
        if packet.protocol == 6 {
            if packet.flags & (SYN | ACK) == SYN && self.is_ending() {
                self.seen = [0; 2];
            }
            self.seen[packet.side as usize] |= packet.flags;
        }
    }

    fn is_ending(&self) -> bool {
        self.seen.iter().any(|seen| seen & (FIN | RST) != 0)
    }

    fn idle_ms(&self) -> u64 {
        let is_established = self.seen.iter().all(|seen| seen & SYN != 0 && seen & ACK != 0) && !self.is_ending();
        match self.opening.protocol {
            6 if is_established => 86_400_000,
            6 => 120_000,
            _ => 600_000,
        }
    }
}

impl Fate {
    pub fn passed(word: &'static str) -> Self {
        Self { passes: true, word, rule: String::new(), released: Vec::new() }
    }

    pub fn dropped(word: &'static str) -> Self {
        Self { passes: false, ..Self::passed(word) }
    }

    fn by(word: &'static str, passes: bool, rule: usize) -> Self {
        Self { passes, rule: format!("r{rule}"), ..Self::passed(word) }
    }
}

/// The rules as a file has them.
pub struct File<'a>(pub &'a [PlainRule]);

impl Display for File<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(f, "rules: []");
        }
        writeln!(f, "rules:")?;
        for (number, rule) in self.0.iter().enumerate() {
            let from = rule.from.map_or("either", Side::word);
            write!(f, "  - {{ name: r{number}, action: {}, from: {from}", rule.action)?;
            if let Some(protocol) = rule.protocol {
                let names = [(6, "tcp"), (17, "udp"), (1, "icmp"), (58, "icmpv6")];
                let name = names.iter().find(|(known, _)| *known == protocol);
                write!(f, ", protocol: {}", name.map_or(protocol.to_string(), |(_, name)| (*name).to_owned()))?;
            }
            for (key, prefix) in [("source", rule.source), ("destination", rule.destination)] {
                if let Some(Prefix { is_v6, address, len }) = prefix {
                    let address = if is_v6 {
                        std::net::Ipv6Addr::from(address).to_string()
                    } else {
                        std::net::Ipv4Addr::from(address as u32).to_string()
                    };
                    write!(f, ", {key}: \"{address}/{len}\"")?;
                }
            }
            let is_icmp = matches!(rule.protocol, Some(1 | 58));
            let keys = if is_icmp { ["icmp_type", "icmp_code"] } else { ["source_ports", "ports"] };
            for (key, range) in keys.iter().zip(rule.ranges) {
                if let Some((first, last)) = range {
                    write!(f, ", {key}: \"{first}-{last}\"")?;
                }
            }
            if rule.flags.0 != 0 {
                let words = ["fin", "syn", "rst", "psh", "ack"].iter().enumerate();
                let asked = words.filter(|(bit, _)| rule.flags.0 >> bit & 1 == 1);
                let words =
                    asked.map(
                        |(bit, word)| {
                            if rule.flags.1 >> bit & 1 == 1 { (*word).to_owned() } else { format!("!{word}") }
                        },
                    );
                write!(f, ", tcp_flags: \"{}\"", words.collect::<Vec<_>>().join(","))?;
            }
            writeln!(f, " }}")?;
        }
        Ok(())
    }
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
