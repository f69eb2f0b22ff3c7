//! What a hop has counted, as Prometheus reads it.

use std::fmt;
use std::net::Ipv4Addr;

use ferrule_daemon::metrics::{self, Labels, Process, counters, gauges};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::any::AnyCounters;
use crate::counter::Counter;
use crate::firewall::counters::{Counters, RuleCounters};
use crate::firewall::verdict::Reason;
use crate::function::Side;
use crate::hop::SideCounters;
use crate::nat44::counters::{NatCounters, NatReason};
use crate::nat44::pool::AddressCounters;
use crate::nptv6::counters::{NptCounters, NptReason};
use crate::running::{Functions, Running};

/// Everything that one scrape tells.
#[derive(Debug)]
pub(super) struct Snapshot {
    functions: Vec<Shown>,
    process: Option<Process>,
}

/// One function.
#[derive(Debug)]
struct Shown {
    labels: Labels,
    /// By side: connected, and what was counted.
    sides: [(bool, [u64; COUNTS.len()]); 2],
    function: AnyCounters,
}

impl Snapshot {
    /// Of this moment.
    pub(super) fn take(name: &str, functions: &Functions) -> Self {
        let all = functions.all();
        let functions = all.iter().map(|(connection, running)| Shown::new(name, connection, running)).collect();
        Self { functions, process: Process::read() }
    }

    /// In the `OpenMetrics` text format.
    pub(super) fn render(self) -> Result<String, fmt::Error> {
        metrics::render(self)
    }

    /// Each side of each function.
    fn sides(&self) -> impl Iterator<Item = (Labels, &(bool, [u64; COUNTS.len()]))> {
        self.functions.iter().flat_map(|shown| {
            Side::BOTH.into_iter().zip(&shown.sides).map(|(side, counted)| (shown.with("side", side.word()), counted))
        })
    }

    fn firewalls(&self) -> impl Iterator<Item = (&Shown, &Counters)> {
        self.functions.iter().filter_map(|shown| match &shown.function {
            AnyCounters::Firewall(firewall) => Some((shown, &**firewall)),
            _ => None,
        })
    }

    /// Each rule of each firewall.
    fn rules(&self) -> impl Iterator<Item = (Labels, &RuleCounters)> {
        self.firewalls()
            .flat_map(|(shown, firewall)| firewall.rules.iter().map(|rule| (shown.with("rule", &rule.name), rule)))
    }

    fn nats(&self) -> impl Iterator<Item = (&Shown, &NatCounters)> {
        self.functions.iter().filter_map(|shown| match &shown.function {
            AnyCounters::Nat44(nat) => Some((shown, &**nat)),
            _ => None,
        })
    }

    fn translators(&self) -> impl Iterator<Item = (&Shown, &NptCounters)> {
        self.functions.iter().filter_map(|shown| match &shown.function {
            AnyCounters::Nptv6(npt) => Some((shown, &**npt)),
            _ => None,
        })
    }

    fn encode_firewalls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let frames =
            ("ferrule_firewall_rule_frames", "Frames that the rule decided, itself or by a session that it opened");
        counters(encoder, frames, self.rules().map(|(labels, rule)| (labels, rule.frames.get())))?;
        let bytes = ("ferrule_firewall_rule_bytes", "Their bytes");
        counters(encoder, bytes, self.rules().map(|(labels, rule)| (labels, rule.bytes.get())))?;
        let of_reasons = |(shown, firewall): (&Shown, &Counters)| {
            Reason::ALL.map(|reason| (shown.with("reason", reason.word()), firewall.of(reason)))
        };
        let reasons = ("ferrule_firewall_other_frames", "Frames that passed or were dropped without a rule, by reason");
        counters(encoder, reasons, self.firewalls().flat_map(of_reasons))?;
        let sessions = ("ferrule_firewall_sessions", "Sessions that there are");
        gauges(
            encoder,
            sessions,
            self.firewalls().map(|(shown, firewall)| (shown.labels.clone(), firewall.sessions.get())),
        )
    }

    fn encode_nats(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let translated = ("ferrule_nat44_translated", "Packets of this side that were translated");
        let of_sides = |(shown, nat): (&Shown, &NatCounters)| {
            Side::BOTH.map(|side| (shown.with("side", side.word()), nat.translated[side.index()].get()))
        };
        counters(encoder, translated, self.nats().flat_map(of_sides))?;
        let of_reasons = |(shown, nat): (&Shown, &NatCounters)| {
            NatReason::ALL.map(|reason| (shown.with("reason", reason.word()), nat.of(reason)))
        };
        let reasons = ("ferrule_nat44_other_frames", "Frames that were not translated, by reason");
        counters(encoder, reasons, self.nats().flat_map(of_reasons))?;
        let sessions = ("ferrule_nat44_sessions", "Sessions that there are");
        gauges(encoder, sessions, self.nats().map(|(shown, nat)| (shown.labels.clone(), nat.sessions.get())))?;
        self.encode_pools(encoder)
    }

    /// Of the addresses that somebody has used or wanted: a pool may be a large one.
    fn encode_pools(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let used = || {
            self.nats().flat_map(|(shown, nat)| {
                nat.pool.used().map(move |(address, counted)| {
                    (shown.with("address", &Ipv4Addr::from(address).to_string()), counted)
                })
            })
        };
        let of_sides = |counted: fn(&AddressCounters) -> &[Counter; 2]| {
            used().flat_map(move |(labels, address)| {
                Side::BOTH.map(|side| {
                    let labels = labels.iter().cloned().chain([("side", side.word().to_owned())]).collect::<Labels>();
                    (labels, counted(address)[side.index()].get())
                })
            })
        };
        let sessions = ("ferrule_nat44_pool_sessions", "Sessions of the address");
        gauges(encoder, sessions, used().map(|(labels, address)| (labels, address.sessions.get())))?;
        let ports = ("ferrule_nat44_pool_ports", "Ports and identifiers of the address that sessions use");
        gauges(encoder, ports, used().map(|(labels, address)| (labels, address.ports.get())))?;
        let packets = ("ferrule_nat44_pool_packets", "Packets of this side that were translated and have the address");
        counters(encoder, packets, of_sides(|address| &address.packets))?;
        let bytes = ("ferrule_nat44_pool_bytes", "Their bytes, without Ethernet headers");
        counters(encoder, bytes, of_sides(|address| &address.bytes))?;
        let refused =
            ("ferrule_nat44_pool_refused", "Packets that found no port of the address, or no room for a session");
        counters(encoder, refused, used().map(|(labels, address)| (labels, address.refused.get())))
    }

    fn encode_translators(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let translated = ("ferrule_nptv6_translated", "Packets of this side that were translated");
        let of_sides = |(shown, npt): (&Shown, &NptCounters)| {
            Side::BOTH.map(|side| (shown.with("side", side.word()), npt.translated[side.index()].get()))
        };
        counters(encoder, translated, self.translators().flat_map(of_sides))?;
        let of_reasons = |(shown, npt): (&Shown, &NptCounters)| {
            NptReason::ALL.map(|reason| (shown.with("reason", reason.word()), npt.of(reason)))
        };
        let reasons = ("ferrule_nptv6_other_frames", "Frames that were not translated, by reason");
        counters(encoder, reasons, self.translators().flat_map(of_reasons))
    }
}

impl Shown {
    /// One alone has no name of its own; those of the mesh are named after their connections.
    fn new(name: &str, connection: &str, running: &Running) -> Self {
        let sides = running.hop().counters().sides.each_ref();
        let sides = sides.map(|side| (side.is_connected(), COUNTS.map(|(_, _, count)| count(side).get())));
        let mut labels = vec![("function", name.to_owned())];
        labels.extend((!connection.is_empty()).then(|| ("connection", connection.to_owned())));
        Self { labels, sides, function: running.counters() }
    }

    fn with(&self, name: &'static str, value: &str) -> Labels {
        let mut labels = self.labels.clone();
        labels.push((name, value.to_owned()));
        labels
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let connected = ("ferrule_function_connected", "Whether the peer of this side is there");
        gauges(encoder, connected, self.sides().map(|(labels, (connected, _))| (labels, u64::from(*connected))))?;
        for (index, (name, help, _)) in COUNTS.iter().enumerate() {
            counters(encoder, (name, help), self.sides().map(|(labels, (_, counts))| (labels, counts[index])))?;
        }
        if self.firewalls().next().is_some() {
            self.encode_firewalls(encoder)?;
        }
        if self.nats().next().is_some() {
            self.encode_nats(encoder)?;
        }
        if self.translators().next().is_some() {
            self.encode_translators(encoder)?;
        }
        match &self.process {
            Some(process) => process.encode(encoder),
            None => Ok(()),
        }
    }
}

type Count = (&'static str, &'static str, fn(&SideCounters) -> &Counter);

const COUNTS: [Count; 6] = [
    ("ferrule_function_frames", "Frames that came in on this side", |side| &side.frames),
    ("ferrule_function_bytes", "Bytes that came in on this side", |side| &side.bytes),
    ("ferrule_function_forwarded", "Frames of this side that left on the other one", |side| &side.forwarded),
    ("ferrule_function_dropped", "Frames of this side that the function let go no further", |side| &side.dropped),
    ("ferrule_function_made", "Frames that the function made and sent to this side", |side| &side.made),
    (
        "ferrule_function_lost",
        "Frames of this side that found nobody on the other one, or that it cannot take",
        |side| &side.lost,
    ),
];
