//! Wires as messages of the admin API.

use std::time::Duration;

use ferrule_dataplane::engine::{Event, WireChange};
use ferrule_dataplane::spec::Full;
use ferrule_dataplane::status::{
    Crossing, DeviceStatus, DropReason, EndState, LinkState, Traffic, WireStatus, WorkerStatus,
};
use nix::time::{ClockId, clock_gettime};

use super::secrets::Secrets;
use super::spec::spec_to_proto;
use crate::wires::{Listed, Origin};
use dpdk_forwarder_client::v1;

/// The answer to a list or watch, with the time of now.
pub(in crate::admin) fn response(wires: &[Listed], workers: &[WorkerStatus]) -> v1::ListWiresResponse {
    v1::ListWiresResponse {
        wires: wires.iter().map(wire).collect(),
        monotonic_ns: monotonic_ns(),
        workers: workers.iter().map(worker).collect(),
        ..v1::ListWiresResponse::default()
    }
}

fn worker(status: &WorkerStatus) -> v1::Worker {
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    let busy_ns = u64::try_from(status.busy.as_nanos()).unwrap_or(u64::MAX);
    v1::Worker { cpu: number(status.cpu), queues: number(status.queues), busy_ns }
}

fn wire(listed: &Listed) -> v1::Wire {
    let status = &listed.status;
    let (origin, persistent) = match listed.origin {
        Origin::File => (v1::Origin::File, false),
        Origin::Admin { persistent } => (v1::Origin::Admin, persistent),
        Origin::Mesh => (v1::Origin::Mesh, false),
    };
    let full = match status.spec.full {
        Full::Hold => "hold",
        Full::Drop => "drop",
    };
    let (crossing, copied_because) = match &status.crossing {
        Crossing::Copied => ("copied", String::new()),
        Crossing::Switched => ("switched", String::new()),
        Crossing::CopiedThough { reason } => ("copied", reason.clone()),
    };
    v1::Wire {
        name: status.spec.name.clone(),
        origin: origin.into(),
        ends: (0..2).map(|number| end(status, number)).collect(),
        directions: status.directions.iter().map(traffic).collect(),
        queues: u32::try_from(status.queues).unwrap_or(u32::MAX),
        full: full.to_owned(),
        crossing: crossing.to_owned(),
        copied_because,
        generation: status.generation,
        spec: Some(spec_to_proto(&status.spec, Secrets::Hidden)),
        persistent,
        problem: status.problem.clone().unwrap_or_default(),
    }
}

fn end(status: &WireStatus, number: usize) -> v1::End {
    let (spec, state) = (&status.spec.ends[number], &status.ends[number]);
    let detail = match state {
        EndState::Listening { last_error } | EndState::Connecting { last_error } => {
            last_error.clone().unwrap_or_default()
        }
        EndState::Starting { peer } | EndState::Connected { peer } => peer.clone(),
        EndState::Up => status.devices[number].as_ref().map(device_words).unwrap_or_default(),
        EndState::Making | EndState::Removing => String::new(),
        EndState::Failed { reason } | EndState::Lost { reason } => reason.clone(),
    };
    v1::End { kind: spec.kind().to_owned(), description: spec.to_string(), state: state.word().to_owned(), detail }
}

/// What a device says of itself, in a line.
fn device_words(device: &DeviceStatus) -> String {
    let link = match device.link {
        LinkState::Unknown => None,
        LinkState::Up => Some("link up".to_owned()),
        LinkState::Down => Some("link down".to_owned()),
    };
    let words = Some(device.words.clone()).filter(|words| !words.is_empty());
    let mac = device.mac.map(|mac| format!("MAC {mac}"));
    let mtu = device.mtu.map(|mtu| format!("MTU {mtu}"));
    let numa_node = device.numa_node.map(|node| format!("NUMA node {node}"));
    [words, link, mac, mtu, numa_node].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn traffic(traffic: &Traffic) -> v1::Traffic {
    let drops = DropReason::ALL.iter().zip(traffic.drops);
    v1::Traffic {
        frames: traffic.frames,
        bytes: traffic.bytes,
        drops: drops.map(|(reason, frames)| v1::Drop { reason: reason.word().to_owned(), frames }).collect(),
        stalls: traffic.stalls,
    }
}

/// What happened, for a watcher; none: it is of no wire.
pub(in crate::admin) fn event(event: Event) -> Option<v1::WireEvent> {
    use v1::wire_event as is;
    let number = |end| u32::try_from(end).unwrap_or(u32::MAX);
    let (wire, change) = match event {
        Event::Wire { wire, change } => (wire, change),
        Event::Lagged(events) => {
            let change = Some(is::Change::Lagged(is::Lagged { events }));
            return Some(v1::WireEvent { wire: String::new(), change });
        }
        Event::ThreadDied { .. } => return None,
    };
    let change = match change {
        WireChange::Made => is::Change::Made(is::Made {}),
        WireChange::Updated => is::Change::Updated(is::Updated {}),
        WireChange::Up { queues } => is::Change::Up(is::Up { queues: number(queues) }),
        WireChange::Down => is::Change::Down(is::Down {}),
        WireChange::PeerConnected { end, peer } => {
            is::Change::PeerConnected(is::PeerConnected { end: number(end), peer })
        }
        WireChange::PeerGone { end, reason } => is::Change::PeerGone(is::PeerGone { end: number(end), reason }),
        WireChange::Stalled { from } => is::Change::Stalled(is::Stalled { from: number(from) }),
        WireChange::Failed { end, reason } => is::Change::Failed(is::Failed { end: end.map(number), reason }),
        WireChange::Removed => is::Change::Removed(is::Removed {}),
    };
    Some(v1::WireEvent { wire, change: Some(change) })
}

fn monotonic_ns() -> u64 {
    // The clock has been there since Linux 2.6; 0 would only spoil a rate.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_wire;

    #[test]
    fn a_wire_tells_its_ends_states_and_counters() {
        let spec = parse_wire(
            "{name: w, full: drop, owner: nsm, labels: {app: nat}, ends: [{memif: {socket: /m, id: 3, role: server}}, {kernel: {name: eth9}}]}",
        )
        .unwrap();
        let sent = Traffic { frames: 5, bytes: 300, drops: [1, 0, 0, 0, 2, 0], stalls: 9 };
        let ends = [EndState::Connected { peer: "vpp".into() }, EndState::Failed { reason: "gone".into() }];
        let status = WireStatus {
            ends,
            directions: [sent, Traffic::default()],
            crossing: Crossing::Switched,
            queues: 1,
            generation: 3,
            ..WireStatus::failed(spec, "")
        };
        let before = monotonic_ns();
        let worker = WorkerStatus { cpu: 1, queues: 2, busy: Duration::from_micros(3) };
        let answer = response(&[Listed { origin: Origin::Admin { persistent: true }, status }], &[worker]);
        assert_eq!(answer.workers, [v1::Worker { cpu: 1, queues: 2, busy_ns: 3000 }]);
        assert!(answer.monotonic_ns >= before && before > 0);
        let [wire] = &answer.wires[..] else { panic!("one wire") };
        assert_eq!((wire.name.as_str(), wire.full.as_str(), wire.queues), ("w", "drop", 1));
        assert_eq!(wire.origin(), v1::Origin::Admin);
        assert_eq!((wire.crossing.as_str(), wire.copied_because.as_str()), ("switched", ""));
        let told: Vec<_> =
            wire.ends.iter().map(|end| [&end.kind[..], &end.description, &end.state, &end.detail]).collect();
        assert_eq!(
            told,
            [["memif", "memif /m id 3 server", "connected", "vpp"], ["kernel", "kernel eth9", "failed", "gone"]]
        );
        assert_eq!((wire.directions[0].frames, wire.directions[0].bytes, wire.directions[0].stalls), (5, 300, 9));
        assert_eq!((wire.generation, wire.persistent), (3, true));
        let spec = wire.spec.as_ref().expect("what was asked for");
        assert_eq!((spec.owner.as_str(), spec.labels["app"].as_str()), ("nsm", "nat"));
        let drops: Vec<_> = wire.directions[0].drops.iter().map(|drop| (drop.reason.as_str(), drop.frames)).collect();
        assert_eq!(
            drops,
            [("full", 1), ("too_long", 0), ("too_short", 0), ("bad_offload", 0), ("refused", 2), ("disabled", 0)]
        );
    }

    #[test]
    fn a_device_says_what_it_knows_of_itself() {
        let device = DeviceStatus {
            words: "mlx5_core 0000:3b:02.1".into(),
            link: LinkState::Down,
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            mtu: Some(9000),
            numa_node: Some(1),
            ..DeviceStatus::default()
        };
        let spec = parse_wire("{name: w, ends: [{kernel: {name: a}}, {kernel: {name: b}}]}").unwrap();
        let ends = [EndState::Up, EndState::Lost { reason: "pulled out".into() }];
        let status = WireStatus { ends, devices: [Some(device), None], ..WireStatus::failed(spec, "") };
        assert_eq!(
            end(&status, 0).detail,
            "mlx5_core 0000:3b:02.1, link down, MAC 02:00:00:00:00:07, MTU 9000, NUMA node 1"
        );
        let lost = end(&status, 1);
        assert_eq!((&*lost.state, &*lost.detail), ("lost", "pulled out"));
    }
}
