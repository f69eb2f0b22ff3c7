//! Two readings of counters become rates. No clock is read here: the forwarder says when it counted.

use std::collections::HashMap;

use crate::admin::proto::{ListWiresResponse, Traffic, Wire, Worker};
use crate::wires::{State, dropped};

/// One wire as it stands, and how fast its counters move.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WireRates {
    pub(super) wire: Wire,
    pub(super) state: State,
    /// None until it was read twice, and when its counters began anew.
    pub(super) rates: Option<Rates>,
}

/// How fast the counters of a wire move.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// From end A to end B, and from end B to end A.
    pub(super) directions: [Rate; 2],
}

/// How fast the counters of one direction move, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) frames: f64,
    /// Without FCS, preamble and gap.
    pub(super) bits: f64,
    pub(super) drops: f64,
}

impl Rates {
    pub(super) fn frames(&self) -> f64 {
        self.directions.iter().map(|rate| rate.frames).sum()
    }

    pub(super) fn bits(&self) -> f64 {
        self.directions.iter().map(|rate| rate.bits).sum()
    }

    pub(super) fn drops(&self) -> f64 {
        self.directions.iter().map(|rate| rate.drops).sum()
    }
}

/// The wires of the later reading with their rates since the earlier one.
pub(super) fn rates(before: Option<&ListWiresResponse>, now: &ListWiresResponse) -> Vec<WireRates> {
    let elapsed = before.and_then(|before| now.monotonic_ns.checked_sub(before.monotonic_ns)).filter(|&ns| ns > 0);
    let seconds = elapsed.map(|ns| ns as f64 / 1e9);
    let old: HashMap<&str, &Wire> =
        before.into_iter().flat_map(|before| &before.wires).map(|wire| (wire.name.as_str(), wire)).collect();
    let rates_of = |wire: &Wire| wire_rates(old.get(wire.name.as_str())?, wire, seconds?);
    now.wires
        .iter()
        .map(|wire| WireRates { wire: wire.clone(), state: State::of(wire), rates: rates_of(wire) })
        .collect()
}

/// The workers of the later reading: their CPUs, and which part of the time since the earlier one they spent on frames.
pub(super) fn loads(before: &ListWiresResponse, now: &ListWiresResponse) -> Vec<(u32, f64)> {
    let elapsed = now.monotonic_ns.checked_sub(before.monotonic_ns).filter(|&ns| ns > 0);
    let load = |worker: &Worker| {
        let old = before.workers.iter().find(|old| old.cpu == worker.cpu)?;
        // Counted at another moment than the clock was read.
        let load = worker.busy_ns.checked_sub(old.busy_ns)? as f64 / elapsed? as f64;
        Some((worker.cpu, load.min(1.0)))
    };
    now.workers.iter().filter_map(load).collect()
}

fn wire_rates(before: &Wire, now: &Wire, seconds: f64) -> Option<Rates> {
    let direction = |way: usize| direction_rate(before.directions.get(way)?, now.directions.get(way)?, seconds);
    Some(Rates { directions: [direction(0)?, direction(1)?] })
}

/// None if a counter went back: a wire was removed and another of its name added.
fn direction_rate(before: &Traffic, now: &Traffic, seconds: f64) -> Option<Rate> {
    let per_s = |before: u64, now: u64| Some(now.checked_sub(before)? as f64 / seconds);
    Some(Rate {
        frames: per_s(before.frames, now.frames)?,
        bits: per_s(before.bytes, now.bytes)? * 8.0,
        drops: per_s(dropped(before), dropped(now))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wires::fixtures::{self, traffic};

    fn reading(at_ms: u64, directions: [Traffic; 2]) -> ListWiresResponse {
        let mut wires = fixtures::wires();
        wires.truncate(1);
        wires[0].directions = directions.into();
        ListWiresResponse { wires, monotonic_ns: at_ms * 1_000_000, ..ListWiresResponse::default() }
    }

    #[test]
    fn rates_are_differences_per_second_of_the_forwarders_clock() {
        let before = reading(1000, [traffic(100, 6400, 1), traffic(0, 0, 0)]);
        let now = reading(1500, [traffic(1100, 70_400, 3), traffic(1, 60, 0)]);
        let rates = rates(Some(&before), &now)[0].rates.unwrap();
        assert_eq!(
            rates.directions,
            [Rate { frames: 2000.0, bits: 1_024_000.0, drops: 4.0 }, Rate { frames: 2.0, bits: 960.0, drops: 0.0 },]
        );
        assert_eq!((rates.frames(), rates.drops()), (2002.0, 4.0));
    }

    #[test]
    fn a_load_is_the_part_of_the_time_that_was_spent_on_frames() {
        let at = |ms, busy: [u64; 2]| {
            let busy = [0, 1].map(|cpu| Worker { cpu, queues: 1, busy_ns: busy[cpu as usize] * 1_000_000 });
            ListWiresResponse { workers: busy.into(), ..reading(ms, Default::default()) }
        };
        assert_eq!(loads(&at(1000, [0, 7]), &at(2000, [250, 1008])), [(0, 0.25), (1, 1.0)]);
        assert_eq!(loads(&at(1000, [9, 7]), &at(2000, [8, 7])), [(1, 0.0)], "the first began anew");
        assert_eq!(loads(&at(1000, [0, 0]), &at(1000, [0, 0])), []);
    }

    #[test]
    fn there_are_no_rates_without_two_readings_of_the_same_wire() {
        let old = reading(1000, [traffic(100, 6400, 0), traffic(0, 0, 0)]);
        let none = |before, now: &ListWiresResponse| rates(before, now)[0].rates.is_none();
        assert!(none(None, &old));
        assert!(none(Some(&old), &old), "no time has passed");
        let restarted = reading(500, [traffic(100, 6400, 0), traffic(0, 0, 0)]);
        assert!(none(Some(&old), &restarted), "another forwarder with another clock");
        let anew = reading(2000, [traffic(99, 6400, 0), traffic(0, 0, 0)]);
        assert!(none(Some(&old), &anew), "the counters began anew");
        let mut renamed = reading(2000, [traffic(200, 6400, 0), traffic(0, 0, 0)]);
        renamed.wires[0].name = "other".to_owned();
        assert!(none(Some(&old), &renamed), "the wire is new");
        renamed.wires[0].directions.clear();
        renamed.wires[0].name = old.wires[0].name.clone();
        assert!(none(Some(&old), &renamed), "a server that leaves things out");
    }
}
