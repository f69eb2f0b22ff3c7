//! The firewall beside a slow and obvious one: hundreds of packets of few hosts and ports, while time goes on and rules change.
//!
//! A failure shows the rules and every packet that was judged. What the model is made of: `packets` and `model`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod model;
mod packets;

use std::fmt::{self, Debug, Formatter, Write as _};

use ferrule_functions::firewall::Firewall;
use ferrule_functions::firewall::file::read_text;
use ferrule_functions::packet::Link;
use ferrule_functions::{Disposition, Function as _, Side};
use proptest::prelude::*;
use proptest::sample::select;

use model::{ACK, FIN, Fate, File, PlainFirewall, PlainRule, Prefix, RST, SYN};
use packets::{
    AUTHENTICATION, DESTINATION_OPTIONS, HOP_BY_HOP, MadePacket, Part, Quote, ROUTING, Shape, frame, is_request,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_says_what_an_obvious_firewall_says(scenario in some_scenario()) {
        let mut pair = Pair::new(scenario.is_ethernet, scenario.rules);
        for step in scenario.steps {
            if let Err(difference) = pair.take(step) {
                return Err(TestCaseError::fail(format!("\n{}{difference}", pair.log)));
            }
        }
    }
}

/// What happens from the first rules on.
#[derive(Clone)]
struct Scenario {
    is_ethernet: bool,
    rules: Vec<PlainRule>,
    steps: Vec<Step>,
}

/// The failure says it in the order in which it happened.
impl Debug for Scenario {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} rules and {} steps, as above", self.rules.len(), self.steps.len())
    }
}

/// What happens next. Packets sent before are named by how long ago they were.
#[derive(Clone, Debug)]
enum Step {
    Send(MadePacket, Shape),
    Again {
        ago: usize,
        flags: u8,
        is_other: bool,
        shape: Shape,
    },
    Answer {
        ago: usize,
        flags: u8,
        is_other: bool,
        shape: Shape,
    },
    Part {
        ago: usize,
        is_answer: bool,
        part: Part,
        shape: Shape,
    },
    Error {
        ago: usize,
        error: SomeError,
        shape: Shape,
    },
    /// Neither IPv4 nor IPv6.
    NotIp([u8; 2]),
    Wait(u64),
    Tick,
    Rules(Vec<PlainRule>),
}

/// An ICMP error about a packet.
#[derive(Clone, Debug)]
struct SomeError {
    kind: usize,
    /// Who says so.
    router: u8,
    /// It goes to somebody else than whom the packet came from.
    is_astray: bool,
    /// It comes in where the packet did.
    is_from_sender: bool,
    quoted: Shape,
    quoted_part: Option<Part>,
    transport_len: usize,
}

/// The firewall and the obvious one.
struct Pair {
    firewall: Firewall,
    plain: PlainFirewall,
    is_ethernet: bool,
    now_ms: u64,
    sent: Vec<MadePacket>,
    log: String,
}

impl Pair {
    fn new(is_ethernet: bool, rules: Vec<PlainRule>) -> Self {
        let text = File(&rules).to_string();
        let policy = read_text("rules.yaml", &text).unwrap_or_else(|errors| panic!("{text}{errors}"));
        let link = if is_ethernet { Link::Ethernet } else { Link::Ip };
        let firewall = Firewall::new(link, policy, 1_000_000);
        Self { firewall, plain: PlainFirewall::new(rules), is_ethernet, now_ms: 0, sent: Vec::new(), log: text }
    }

    /// What differs is an error.
    fn take(&mut self, step: Step) -> Result<(), String> {
        let (packet, shape, part) = match step {
            Step::Send(packet, shape) => (packet, shape, None),
            Step::Again { ago, flags, is_other, shape } => {
                let Some(packet) = self.before(ago) else { return Ok(()) };
                (of_next(packet, is_other, flags), shape, None)
            }
            Step::Answer { ago, flags, is_other, shape } => {
                let Some(packet) = self.before(ago) else { return Ok(()) };
                (of_next(packet.answer(), is_other, flags), shape, None)
            }
            Step::Part { ago, is_answer, part, shape } => {
                // What an error quotes would be in parts, too.
                let Some(packet) = self.before(ago).filter(|packet| packet.quote.is_none()) else { return Ok(()) };
                (if is_answer { packet.answer() } else { packet }, shape, Some(part))
            }
            Step::Error { ago, error, shape } => {
                let Some(packet) = self.before(ago).filter(|packet| packet.quote.is_none()) else { return Ok(()) };
                (error.about(packet), shape, None)
            }
            Step::NotIp(ethertype) => return self.take_other(ethertype),
            Step::Wait(ms) => {
                self.now_ms += ms;
                self.plain.wait(ms);
                writeln!(self.log, "{ms} ms later").unwrap();
                return Ok(());
            }
            Step::Tick => {
                self.firewall.tick(self.now_ms);
                return Ok(());
            }
            Step::Rules(rules) => {
                let text = File(&rules).to_string();
                self.log += &text;
                self.firewall.set_policy(read_text("rules.yaml", &text).map_err(|errors| errors.to_string())?);
                self.plain.set_rules(rules);
                return Ok(());
            }
        };
        let frame = frame(&packet, &shape, part, self.is_ethernet);
        // Without Ethernet there are no tags.
        let shape = Shape { vlan_tags: if self.is_ethernet { shape.vlan_tags } else { 0 }, ..shape };
        writeln!(self.log, "{packet} {shape}{}", part.map(|part| part.to_string()).unwrap_or_default()).unwrap();
        let wanted = self.plain.judge(&packet, &shape, part, &frame);
        let side = packet.side;
        if part.is_none() {
            self.sent.push(packet);
        }
        self.compare(side, &frame, &wanted)
    }

    fn take_other(&mut self, ethertype: [u8; 2]) -> Result<(), String> {
        if !self.is_ethernet {
            return Ok(());
        }
        writeln!(self.log, "ethertype {ethertype:02x?}").unwrap();
        let wanted = if ethertype == ARP { Fate::passed("arp") } else { Fate::dropped("not-ip") };
        self.compare(Side::Client, &[&[2; 12][..], &ethertype, &[1; 46]].concat(), &wanted)
    }

    fn compare(&mut self, side: Side, frame: &[u8], wanted: &Fate) -> Result<(), String> {
        let (mut bytes, mut out) = (frame.to_vec(), Vec::new());
        let passes = self.firewall.frame(side, &mut bytes, self.now_ms, &mut out) == Disposition::Forward;
        let remark = self.firewall.remark();
        let is_astray = out.iter().any(|extra| extra.to == side);
        let released = out.into_iter().map(|extra| extra.frame).collect();
        let said = Fate { passes, word: remark.word, rule: remark.rule.to_owned(), released };
        if bytes != frame || is_astray || remark.dropped == (passes || said.word == "held") {
            return Err(format!("the last one was changed, or is not what is said of it: {said:?}, {remark:?}"));
        }
        if said != *wanted {
            return Err(format!("of the last one it says {said:?}\n        and is to say {wanted:?}"));
        }
        Ok(())
    }

    fn before(&self, ago: usize) -> Option<MadePacket> {
        let last = self.sent.len().checked_sub(1)?;
        Some(self.sent[last - ago % (last + 1)].clone())
    }
}

impl SomeError {
    fn about(self, packet: MadePacket) -> MadePacket {
        let Self { kind, router, is_astray, is_from_sender, quoted, quoted_part, transport_len } = self;
        let kinds = if packet.is_v6 { [1, 2, 3, 4] } else { [3, 4, 11, 12] };
        MadePacket {
            side: if is_from_sender { packet.side } else { packet.side.other() },
            is_v6: packet.is_v6,
            source: 0x0a00_0000 + u128::from(router),
            destination: packet.source ^ u128::from(is_astray),
            protocol: if packet.is_v6 { 58 } else { 1 },
            ports: [kinds[kind], 0],
            identifier: 0,
            flags: 0,
            hop_limit: 64,
            quote: Some(Box::new(Quote { packet, shape: quoted, part: quoted_part, transport_len })),
        }
    }
}

/// The next packet of a conversation, or one that is nearly of it.
fn of_next(mut packet: MadePacket, is_other: bool, flags: u8) -> MadePacket {
    packet.flags = flags_of(&packet, flags);
    let other = u16::from(is_other);
    if packet.has_ports() {
        packet.ports[0] ^= other;
    } else if packet.is_icmp() {
        packet.identifier ^= other;
    } else {
        packet.source ^= u128::from(other);
    }
    packet
}

fn flags_of(packet: &MadePacket, flags: u8) -> u8 {
    if packet.protocol == 6 { flags } else { 0 }
}

fn some_scenario() -> impl Strategy<Value = Scenario> {
    let steps = prop_oneof![12 => some_step().prop_map(|step| vec![step]), 1 => some_handshake(), 1 => some_pause()];
    let steps = prop::collection::vec(steps, 1..400);
    (prop::bool::weighted(0.9), some_rules(), steps).prop_map(|(is_ethernet, rules, steps)| Scenario {
        is_ethernet,
        rules,
        steps: steps.concat(),
    })
}

/// A connection is opened: one that is new, open, or at its end.
fn some_handshake() -> impl Strategy<Value = Vec<Step>> {
    (0..6usize, prop::bool::weighted(0.5)).prop_map(|(ago, was_open)| {
        let again = |ago, flags| Step::Again { ago, flags, is_other: false, shape: Shape::default() };
        let answer = |flags| Step::Answer { ago: 0, flags, is_other: false, shape: Shape::default() };
        let fin = was_open.then(|| again(ago, FIN | ACK));
        let opened = [again(if was_open { 0 } else { ago }, SYN), answer(SYN | ACK), answer(ACK)];
        fin.into_iter().chain(opened).collect()
    })
}

/// Nobody says anything for a time.
fn some_pause() -> impl Strategy<Value = Vec<Step>> {
    (0..3usize, select(&WAITS_MS[..])).prop_map(|(ago, ms)| {
        vec![Step::Wait(ms), Step::Answer { ago, flags: ACK, is_other: false, shape: Shape::default() }]
    })
}

fn some_step() -> impl Strategy<Value = Step> {
    let ago = || prop_oneof![4 => 0..3usize, 2 => 0..24usize];
    let next = || (ago(), some_flags(), prop::bool::weighted(0.1), some_shape());
    let part = (ago(), prop::bool::weighted(0.3), some_part(), some_shape());
    prop_oneof![
        10 => (some_packet(), some_shape()).prop_map(|(packet, shape)| Step::Send(packet, shape)),
        8 => next().prop_map(|(ago, flags, is_other, shape)| Step::Again { ago, flags, is_other, shape }),
        14 => next().prop_map(|(ago, flags, is_other, shape)| Step::Answer { ago, flags, is_other, shape }),
        10 => part.prop_map(|(ago, is_answer, part, shape)| Step::Part { ago, is_answer, part, shape }),
        6 => (ago(), some_error(), some_shape()).prop_map(|(ago, error, shape)| Step::Error { ago, error, shape }),
        1 => select(vec![ARP, [0x88, 0xcc]]).prop_map(Step::NotIp),
        6 => select(&WAITS_MS[..]).prop_map(Step::Wait),
        1 => Just(Step::Tick),
        1 => some_rules().prop_map(Step::Rules),
    ]
}

fn some_error() -> impl Strategy<Value = SomeError> {
    let lengths = prop_oneof![4 => Just(8), 1 => Just(7), 2 => 0..40usize];
    let rarely = || prop::bool::weighted(0.1);
    let part = prop::option::weighted(0.2, some_part());
    (0..4usize, 0..4u8, rarely(), rarely(), some_shape(), part, lengths).prop_map(
        |(kind, router, is_astray, is_from_sender, quoted, quoted_part, transport_len)| {
            // Nobody sends what nobody forwards.
            let quoted = Shape { extensions: quoted.extensions.into_iter().take(3).collect(), ..quoted };
            SomeError { kind, router, is_astray, is_from_sender, quoted, quoted_part, transport_len }
        },
    )
}

fn some_packet() -> impl Strategy<Value = MadePacket> {
    let side = select(&Side::BOTH[..]);
    let numbers = (0..5usize, 0..5usize, select(&PORTS[..]), select(&PORTS[..]), 0..2u16);
    let protocol =
        prop_oneof![4 => Just(6), 3 => Just(17), 4 => Just(1), 2 => Just(58), 2 => select(vec![47, 132, 59])];
    let icmp = (any::<prop::sample::Index>(), prop_oneof![4 => Just(0), 1 => 1..3u16]);
    (side, any::<bool>(), numbers, protocol, icmp, some_flags(), select(vec![64, 255])).prop_map(
        |(side, is_v6, (from, to, near, far, identifier), protocol, (kind, code), flags, hop_limit)| {
            // That of its family, most of the time.
            let protocol =
                if matches!(protocol, 1 | 58) && identifier == 0 { if is_v6 { 58 } else { 1 } } else { protocol };
            let hosts = if is_v6 { HOSTS_V6 } else { HOSTS_V4 };
            let mut packet = MadePacket {
                side,
                is_v6,
                source: hosts[from],
                destination: hosts[to],
                protocol,
                ports: [0; 2],
                identifier: 0,
                flags: 0,
                hop_limit,
                quote: None,
            };
            if packet.has_ports() {
                packet.ports = [near, far];
                packet.flags = flags_of(&packet, flags);
            } else if packet.is_icmp() {
                packet.ports = [*kind.get(if is_v6 { &TYPES_V6[..] } else { &TYPES_V4[..] }), code];
                packet.identifier = identifier;
            }
            packet
        },
    )
}

fn some_shape() -> impl Strategy<Value = Shape> {
    let extension = || select(vec![HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION_OPTIONS]);
    let extensions = prop_oneof![
        8 => Just(Vec::new()),
        3 => prop::collection::vec(extension(), 1..4),
        1 => prop::collection::vec(extension(), 6..10),
    ];
    let tags = prop_oneof![8 => Just(0), 2 => 1..3usize, 1 => Just(3)];
    (tags, extensions, prop::bool::weighted(0.2), select(vec![0, 0, 6]), prop::bool::weighted(0.02)).prop_map(
        |(vlan_tags, extensions, has_options, padding_len, is_cut)| Shape {
            vlan_tags,
            extensions,
            has_options,
            padding_len,
            is_cut,
        },
    )
}

fn some_part() -> impl Strategy<Value = Part> {
    let len = prop_oneof![6 => Just(32), 1 => Just(16), 1 => Just(8)];
    (0..2u16, 0..3usize, len).prop_map(|(id, number, len)| Part { id, number, len })
}

fn some_flags() -> impl Strategy<Value = u8> {
    select(vec![SYN, SYN | ACK, SYN | ACK, ACK, ACK, FIN | ACK, RST])
}

fn some_rules() -> impl Strategy<Value = Vec<PlainRule>> {
    let many = prop::collection::vec(some_rule(), 60..140);
    prop_oneof![12 => prop::collection::vec(some_rule(), 0..12), 1 => many]
}

fn some_rule() -> impl Strategy<Value = PlainRule> {
    let action = select(vec!["permit", "deny", "deny", "reflect", "reflect", "reflect"]);
    let from = prop_oneof![1 => Just(None), 4 => select(&Side::BOTH[..]).prop_map(Some)];
    let protocol = prop_oneof![2 => Just(None), 8 => select(vec![6, 6, 17, 1, 58, 47, 132]).prop_map(Some)];
    let prefix = || prop::option::weighted(0.4, some_prefix());
    let range = |of: &'static [u16]| {
        let range = (select(of), select(of)).prop_map(|(one, other)| (one.min(other), one.max(other)));
        prop_oneof![2 => Just(None), 1 => range.prop_map(Some), 1 => select(of).prop_map(|one| Some((one, one)))]
    };
    let types = prop_oneof![2 => Just(None), 1 => Just(Some((8, 8))), 1 => Just(Some((128, 128))), 1 => range(&TYPES)];
    let ranges = (range(&PORTS), range(&PORTS), types, range(&[0, 1, 2]));
    let flags = select(vec![(0, 0), (0, 0), (SYN | ACK, SYN), (ACK, ACK), (SYN | ACK, 0), (RST, 0)]);
    (action, from, protocol, prefix(), prefix(), ranges, flags).prop_map(
        |(action, from, protocol, source, destination, (near, far, kind, code), flags)| {
            let ranges = match protocol {
                Some(6 | 17) => [near, far],
                Some(1 | 58) => [kind, code],
                _ => [None; 2],
            };
            let flags = if protocol == Some(6) { flags } else { (0, 0) };
            let mut rule = PlainRule { action, from, protocol, source, destination, ranges, flags };
            // A file says no such things.
            if !rule.can_be(false) && !rule.can_be(true) {
                rule.destination = None;
            }
            if !rule.can_be(false) && !rule.can_be(true) {
                rule.source = None;
            }
            if let (Some(protocol @ (1 | 58)), Some((first, last))) = (protocol, ranges[0])
                && first == last
                && !is_request(protocol == 58, first)
                && action == "reflect"
            {
                rule.action = "permit";
            }
            rule
        },
    )
}

fn some_prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (select(&HOSTS_V4[..]), select(vec![0, 8, 29, 30, 31, 32])).prop_map(|(host, len)| (false, host, len, 32));
    let v6 =
        (select(&HOSTS_V6[..]), select(vec![0, 8, 97, 126, 127, 128])).prop_map(|(host, len)| (true, host, len, 128));
    prop_oneof![v4, v6].prop_map(|(is_v6, host, len, bits)| {
        let address = if len == 0 { 0 } else { host >> (bits - len) << (bits - len) };
        Prefix { is_v6, address, len }
    })
}

const CASES: u32 = 256;
const ARP: [u8; 2] = [8, 6];
/// Two of IPv6 are numbers as two of IPv4 are.
const HOSTS_V4: [u128; 5] = [0x0a00_0000, 0x0a00_0001, 0x0a00_0002, 0x0a00_0003, 0x0a00_0004];
const HOSTS_V6: [u128; 5] = [0x0a00_0000, 0x0a00_0001, 0xfd00 << 112, 0xfd00 << 112 | 1, 0xfd00 << 112 | 2];
const PORTS: [u16; 7] = [0, 1, 2, 255, 256, 65534, 65535];
const TYPES: [u16; 8] = [0, 3, 8, 13, 14, 128, 129, 255];
const TYPES_V4: [u16; 14] = [8, 8, 8, 0, 0, 13, 14, 15, 16, 17, 18, 3, 5, 11];
const TYPES_V6: [u16; 14] = [128, 128, 128, 129, 129, 139, 140, 135, 135, 136, 134, 1, 3, 130];
/// On either side of each limit.
const WAITS_MS: [u64; 14] =
    [1, 1, 40, 500, 1999, 2000, 29_999, 30_000, 60_000, 119_999, 120_000, 599_999, 600_000, 86_400_000];
