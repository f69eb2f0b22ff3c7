//! What a hop has counted, as Prometheus reads it.

use std::fmt;

use ferrule_daemon::metrics::{self, Labels, Process, counters, gauges};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::any::AnyCounters;
use crate::counter::Counter;
use crate::firewall::counters::Counters;
use crate::firewall::verdict::Reason;
use crate::function::Side;
use crate::hop::{HopCounters, SideCounters};
use crate::nat44::counters::{NatCounters, NatReason};

/// Everything that one scrape tells.
#[derive(Debug)]
pub(super) struct Snapshot {
    name: String,
    /// By side: connected, and what was counted.
    sides: [(bool, [u64; COUNTS.len()]); 2],
    function: AnyCounters,
    process: Option<Process>,
}

impl Snapshot {
    /// Of this moment.
    pub(super) fn take(name: &str, hop: &HopCounters, function: AnyCounters) -> Self {
        let sides =
            hop.sides.each_ref().map(|side| (side.is_connected(), COUNTS.map(|(_, _, count)| count(side).get())));
        Self { name: name.to_owned(), sides, function, process: Process::read() }
    }

    /// In the `OpenMetrics` text format.
    pub(super) fn render(self) -> Result<String, fmt::Error> {
        metrics::render(self)
    }

    fn labels(&self) -> Labels {
        vec![("function", self.name.clone())]
    }

    fn of_side(&self, side: Side) -> Labels {
        let mut labels = self.labels();
        labels.push(("side", side.word().to_owned()));
        labels
    }

    fn firewall(&self, encoder: &mut DescriptorEncoder<'_>, firewall: &Counters) -> fmt::Result {
        let of_rule = |name: &str| {
            let mut labels = self.labels();
            labels.push(("rule", name.to_owned()));
            labels
        };
        let rules = || firewall.rules.iter();
        let frames =
            ("ferrule_firewall_rule_frames", "Frames that the rule decided, itself or by a session that it opened");
        counters(encoder, frames, rules().map(|rule| (of_rule(&rule.name), rule.frames.get())))?;
        let bytes = ("ferrule_firewall_rule_bytes", "Their bytes");
        counters(encoder, bytes, rules().map(|rule| (of_rule(&rule.name), rule.bytes.get())))?;
        let of_reason = |reason: Reason| {
            let mut labels = self.labels();
            labels.push(("reason", reason.word().to_owned()));
            labels
        };
        let reasons = ("ferrule_firewall_other_frames", "Frames that passed or were dropped without a rule, by reason");
        counters(encoder, reasons, Reason::ALL.map(|reason| (of_reason(reason), firewall.of(reason))))?;
        let sessions = ("ferrule_firewall_sessions", "Sessions that there are");
        gauges(encoder, sessions, [(self.labels(), firewall.sessions.get())])
    }

    fn nat44(&self, encoder: &mut DescriptorEncoder<'_>, nat: &NatCounters) -> fmt::Result {
        let translated = ("ferrule_nat44_translated", "Packets of this side that were translated");
        let of_side = |side: Side| (self.of_side(side), nat.translated[side.index()].get());
        counters(encoder, translated, Side::BOTH.map(of_side))?;
        let of_reason = |reason: NatReason| {
            let mut labels = self.labels();
            labels.push(("reason", reason.word().to_owned()));
            (labels, nat.of(reason))
        };
        let reasons = ("ferrule_nat44_other_frames", "Frames that were not translated, by reason");
        counters(encoder, reasons, NatReason::ALL.map(of_reason))?;
        gauges(encoder, ("ferrule_nat44_sessions", "Sessions that there are"), [(self.labels(), nat.sessions.get())])
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let sides = || Side::BOTH.into_iter().zip(&self.sides);
        let connected = ("ferrule_function_connected", "Whether the peer of this side is there");
        gauges(encoder, connected, sides().map(|(side, (connected, _))| (self.of_side(side), u64::from(*connected))))?;
        for (index, (name, help, _)) in COUNTS.iter().enumerate() {
            counters(encoder, (name, help), sides().map(|(side, (_, counts))| (self.of_side(side), counts[index])))?;
        }
        match &self.function {
            AnyCounters::Passthrough => {}
            AnyCounters::Firewall(firewall) => self.firewall(encoder, firewall)?,
            AnyCounters::Nat44(nat) => self.nat44(encoder, nat)?,
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
