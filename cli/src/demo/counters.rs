//! What the forwarder counted, against what both sides of it saw.

use std::fs;

use ferrule_ffi::netns::NetNs;
use serde::Serialize;

use super::plan::DemoWire;
use crate::admin::proto::Wire;
use crate::wires::dropped;
use crate::wires::table::losses;

/// What crossed a wire of the demo from side A to side B, and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counters {
    /// Frames that left the last wire of each way.
    pub(super) frames: [u64; 2],
    /// Their bytes without FCS.
    pub(super) bytes: [u64; 2],
    /// Frames that were dropped anywhere, for any reason, since the wires were up.
    pub(super) drops: u64,
}

/// What a program at an end of a wire counted.
#[derive(Clone, Debug)]
pub(super) struct PeerCount {
    /// Which program.
    pub(super) peer: String,
    /// Which way the frames went: 0 is A to B.
    pub(super) way: usize,
    /// How many there were.
    pub(super) frames: u64,
    /// Whether several frames of the wire may be one here: the forwarder joins segments of TCP for a TAP interface.
    pub(super) joined: bool,
}

impl PeerCount {
    pub(super) fn new(peer: impl Into<String>, way: usize, frames: u64) -> Self {
        Self { peer: peer.into(), way, frames, joined: false }
    }

    /// The interface of a wire of the demo in the namespace of `side`, and what it received.
    pub(super) fn interface(demo_wire: DemoWire, side: usize, netns: &NetNs) -> Result<Self, String> {
        let name = demo_wire.interface().unwrap_or_default();
        // Not /proc/net: that is the namespace of the process, whichever thread reads it.
        let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).and_then(|text| text);
        let table = table.map_err(|error| format!("read the interfaces of namespace {}: {error}", SIDES[side]))?;
        let frames = received(&table, name);
        let frames = frames.ok_or_else(|| format!("there is no interface {name} in namespace {}", SIDES[side]))?;
        let joined = demo_wire != DemoWire::KernelKernel;
        Ok(Self { joined, ..Self::new(format!("{name} in {}", SIDES[side]), 1 - side, frames) })
    }
}

/// Takes out the drops from before the wires were up: what an interface says to a peer that is not there yet.
pub(super) fn forget_drops(wires: &mut [Wire], before: &[Wire]) {
    for wire in wires {
        let Some(before) = before.iter().find(|before| before.name == wire.name) else { continue };
        for (now, before) in wire.directions.iter_mut().zip(&before.directions) {
            for (now, before) in now.drops.iter_mut().zip(&before.drops) {
                now.frames = now.frames.saturating_sub(before.frames);
            }
        }
    }
}

/// The counters of a wire of the demo made of `wires`, in order, and everything that contradicts them.
pub(super) fn compare(wires: &[&Wire], peer_counts: &[PeerCount], bytes_min: u64) -> (Counters, Vec<String>) {
    let frames = |wire: &Wire, way: usize| wire.directions.get(way).map_or(0, |traffic| traffic.frames);
    let bytes = |wire: &Wire, way: usize| wire.directions.get(way).map_or(0, |traffic| traffic.bytes);
    let [Some(first), Some(last)] = [wires.first(), wires.last()] else {
        return (Counters::default(), vec!["the forwarder does not know it".to_owned()]);
    };
    let counters = Counters {
        frames: [frames(last, 0), frames(first, 1)],
        bytes: [bytes(last, 0), bytes(first, 1)],
        drops: wires.iter().flat_map(|wire| &wire.directions).map(dropped).sum(),
    };
    let mut problems: Vec<_> = wires.iter().flat_map(|wire| losses(wire)).collect();
    for way in [0, 1] {
        let by_wire = wires.iter().map(|wire| (format!("the wire {}", wire.name), frames(wire, way), false));
        let of_this_way = peer_counts.iter().filter(|count| count.way == way);
        let seen = by_wire.chain(of_this_way.map(|count| (count.peer.clone(), count.frames, count.joined)));
        let seen: Vec<_> = seen.collect();
        let all = seen[0].1;
        let agrees = |frames: u64, joined: bool| frames == all || (joined && (1..all).contains(&frames));
        if seen.iter().any(|(_, frames, joined)| !agrees(*frames, *joined)) {
            let told: Vec<_> = seen.iter().map(|(who, frames, _)| format!("{frames} at {who}")).collect();
            problems.push(format!("frames from {} do not agree: {}", WAYS[way], told.join(", ")));
        }
    }
    if counters.bytes[0] < bytes_min {
        problems.push(format!("{} bytes counted from A to B, but {bytes_min} arrived", counters.bytes[0]));
    }
    (counters, problems)
}

/// Packets received by an interface, from the table of `/proc/net/dev`.
fn received(table: &str, interface: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

const SIDES: [&str; 2] = ["a", "b"];
const WAYS: [&str; 2] = ["A to B", "B to A"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wires::fixtures;

    #[test]
    fn agreement_is_no_problem() {
        let wire = &fixtures::wires()[0];
        let peer_counts = [PeerCount::new("sink", 0, 1_234_567), PeerCount::new("generator", 1, 42)];
        let (counters, problems) = compare(&[wire], &peer_counts, 1000);
        assert_eq!(counters, Counters { frames: [1_234_567, 42], bytes: [79_012_288, 2688], drops: 12 });
        assert_eq!(problems, ["12 frames dropped from A to B: no room in the target"]);
    }

    #[test]
    fn a_peer_that_counted_another_number_is_told() {
        let mut wire = fixtures::wires().remove(1);
        wire.directions = vec![fixtures::traffic(10, 640, 0), fixtures::traffic(0, 0, 0)];
        let (_, problems) = compare(&[&wire], &[PeerCount::new("the sink", 0, 9)], 641);
        assert_eq!(
            problems,
            [
                "frames from A to B do not agree: 10 at the wire b-c, 9 at the sink",
                "640 bytes counted from A to B, but 641 arrived",
            ]
        );
    }

    #[test]
    fn an_interface_may_have_seen_several_frames_as_one_but_not_more_or_none() {
        let mut wire = fixtures::wires().remove(1);
        wire.directions = vec![fixtures::traffic(10, 640, 0), fixtures::traffic(0, 0, 0)];
        for (frames, good) in [(0, false), (1, true), (10, true), (11, false)] {
            let count = PeerCount { joined: true, ..PeerCount::new("tap0 in b", 0, frames) };
            assert_eq!(compare(&[&wire], &[count], 0).1.is_empty(), good, "{frames}");
        }
    }

    #[test]
    fn two_wires_in_a_row_must_agree() {
        let wires = fixtures::wires();
        let (counters, problems) = compare(&[&wires[0], &wires[1]], &[], 0);
        assert_eq!((counters.frames, counters.drops), ([0, 42], 12));
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(compare(&[], &[], 0).1, ["the forwarder does not know it"]);
    }

    #[test]
    fn drops_from_before_the_wire_was_up_are_forgotten() {
        let (before, mut wires) = (fixtures::wires(), fixtures::wires());
        wires[0].directions[0].drops[0].frames += 1;
        forget_drops(&mut wires, &before);
        assert_eq!(compare(&[&wires[0]], &[], 0).0.drops, 1);
        forget_drops(&mut wires, &[]);
        assert_eq!(compare(&[&wires[0]], &[], 0).0.drops, 1);
    }

    #[test]
    fn received_packets_are_found_by_the_whole_name() {
        let table = "Inter-|   Receive\n face |bytes packets errs\n    lo: 0 1 0\n  tap01: 5 6 7\n  tap0:1000 12 0 0\n";
        assert_eq!(received(table, "tap0"), Some(12));
        assert_eq!(received(table, "tap"), None);
    }
}
