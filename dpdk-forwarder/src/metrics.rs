//! The state of the forwarder as Prometheus reads it, made anew for every scrape.

use std::fmt;

use ferrule_daemon::metrics::{self, Labels, Process, counters, gauges};
use ferrule_dataplane::status::{DropReason, LinkState, WorkerStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::wires::Listed;

/// Everything that one scrape tells.
#[derive(Debug)]
pub struct Snapshot {
    wires: Vec<Listed>,
    workers: Vec<WorkerStatus>,
    is_file_refused: bool,
    process: Option<Process>,
}

impl Snapshot {
    /// The wires, and this process as it is now.
    pub fn take(wires: Vec<Listed>, workers: Vec<WorkerStatus>, is_file_refused: bool) -> Self {
        Self { wires, workers, is_file_refused, process: Process::read() }
    }

    /// In the `OpenMetrics` text format, version 1.0.0.
    pub fn render(self) -> Result<String, fmt::Error> {
        metrics::render(self)
    }

    fn wires(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauges(
            encoder,
            ("ferrule_wire_up", "Whether frames can cross the wire"),
            self.wires.iter().map(|wire| (of_wire(wire), u64::from(wire.status.is_up()))),
        )?;
        gauges(
            encoder,
            ("ferrule_wire_queues", "Queues of the wire that are joined now"),
            self.wires.iter().map(|wire| (of_wire(wire), wire.status.queues as u64)),
        )?;
        gauges(
            encoder,
            ("ferrule_wire_generation", "How often the wire has changed, from 1 on"),
            self.wires.iter().map(|wire| (of_wire(wire), wire.status.generation)),
        )?;
        let states = self.wires.iter().flat_map(|wire| {
            let states = wire.status.ends.iter().enumerate();
            states.map(move |(end, state)| {
                let mut labels = of_end(wire, end);
                labels.push(("state", state.word().to_owned()));
                (labels, 1_u64)
            })
        });
        gauges(encoder, ("ferrule_end_state", "The state of each end of each wire"), states)
    }

    fn devices(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let devices = || {
            self.wires.iter().flat_map(|wire| {
                let devices = wire.status.devices.iter().enumerate();
                devices.filter_map(move |(end, device)| Some((of_end(wire, end), device.as_ref()?)))
            })
        };
        let links = devices().filter_map(|(labels, device)| match device.link {
            LinkState::Up => Some((labels, 1_u64)),
            LinkState::Down => Some((labels, 0)),
            LinkState::Unknown => None,
        });
        gauges(encoder, ("ferrule_device_link_up", "Whether the link of the device is up, if it knows"), links)?;
        let counts = devices().flat_map(|(labels, device)| {
            device.counters.iter().map(move |(name, count)| {
                let mut labels = labels.clone();
                labels.push(("counter", name.clone()));
                (labels, *count)
            })
        });
        counters(encoder, ("ferrule_device_count", "What the driver of the device counts"), counts)
    }

    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let cpu = |worker: &WorkerStatus| vec![("cpu", worker.cpu.to_string())];
        gauges(
            encoder,
            ("ferrule_worker_queues", "Queues that the worker serves"),
            self.workers.iter().map(|worker| (cpu(worker), worker.queues as u64)),
        )?;
        counters(
            encoder,
            ("ferrule_worker_busy_seconds", "Time that the worker spent on moving frames, in seconds"),
            self.workers.iter().map(|worker| (cpu(worker), worker.busy.as_secs_f64())),
        )
    }

    fn traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let directions = || {
            self.wires.iter().flat_map(|wire| {
                let named = DIRECTIONS.iter().zip(&wire.status.directions);
                named.map(|(direction, traffic)| {
                    let mut labels = of_wire(wire);
                    labels.push(("direction", (*direction).to_owned()));
                    (labels, traffic)
                })
            })
        };
        counters(
            encoder,
            ("ferrule_wire_frames", "Frames delivered"),
            directions().map(|(labels, traffic)| (labels, traffic.frames)),
        )?;
        counters(
            encoder,
            ("ferrule_wire_bytes", "Bytes delivered, without FCS"),
            directions().map(|(labels, traffic)| (labels, traffic.bytes)),
        )?;
        let stalls = ("ferrule_wire_stalls", "Visits of a worker that ended because the target had no room");
        counters(encoder, stalls, directions().map(|(labels, traffic)| (labels, traffic.stalls)))?;
        let drops = directions().flat_map(|(labels, traffic)| {
            DropReason::ALL.iter().zip(traffic.drops).map(move |(reason, frames)| {
                let mut labels = labels.clone();
                labels.push(("reason", reason.word().to_owned()));
                (labels, frames)
            })
        });
        counters(encoder, ("ferrule_wire_drops", "Frames not delivered, by reason"), drops)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauges(encoder, ("ferrule_build_info", "The forwarder that runs"), [(build, 1_u64)])?;
        let help = "Whether the wires file as it is now is not used";
        gauges(encoder, ("ferrule_wires_refused", help), [(Labels::new(), u64::from(self.is_file_refused))])?;
        self.wires(encoder)?;
        self.devices(encoder)?;
        self.traffic(encoder)?;
        self.workers(encoder)?;
        self.process.as_ref().map_or(Ok(()), |process| process.encode(encoder))
    }
}

/// The labels that everything about a wire has: its name, and its owner if it has one.
fn of_wire(wire: &Listed) -> Labels {
    let spec = &wire.status.spec;
    let owner = (!spec.owner.is_empty()).then(|| ("owner", spec.owner.clone()));
    [("wire", spec.name.clone())].into_iter().chain(owner).collect()
}

/// The labels that everything about an end has.
fn of_end(wire: &Listed, end: usize) -> Labels {
    let mut labels = of_wire(wire);
    labels.push(("end", end.to_string()));
    labels.push(("kind", wire.status.spec.ends[end].kind().to_owned()));
    labels
}

/// The labels of [`WireStatus::directions`](ferrule_dataplane::status::WireStatus::directions).
const DIRECTIONS: [&str; 2] = ["0-1", "1-0"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use ferrule_dataplane::status::{DeviceStatus, EndState, Traffic, WireStatus};

    use super::*;
    use crate::config::parse_wire;
    use crate::wires::Origin;

    #[test]
    fn a_scrape_tells_each_wire_with_its_counters_and_states() {
        let spec = parse_wire(
            "{name: 'a\"b', owner: nsm, ends: [{memif: {socket: /m, role: server}}, {kernel: {name: eth9}}]}",
        )
        .unwrap();
        let directions = [Traffic { frames: 7, bytes: 420, drops: [3, 0, 0, 0, 1, 0], stalls: 5 }, Traffic::default()];
        let ends = [EndState::Listening { last_error: None }, EndState::Up];
        let counters = BTreeMap::from([("rx_missed".to_owned(), 6)]);
        let device = DeviceStatus { link: LinkState::Down, counters, ..DeviceStatus::default() };
        let devices = [None, Some(device)];
        let status = WireStatus { ends, devices, directions, queues: 2, generation: 4, ..WireStatus::failed(spec, "") };
        let worker = WorkerStatus { cpu: 3, queues: 2, busy: Duration::from_millis(1500) };
        let text = Snapshot::take(vec![Listed { origin: Origin::File, status }], vec![worker], true).render().unwrap();
        for line in [
            concat!("ferrule_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "ferrule_wires_refused 1",
            r#"ferrule_wire_up{wire="a\"b",owner="nsm"} 1"#,
            r#"ferrule_wire_queues{wire="a\"b",owner="nsm"} 2"#,
            r#"ferrule_wire_frames_total{wire="a\"b",owner="nsm",direction="0-1"} 7"#,
            r#"ferrule_wire_bytes_total{wire="a\"b",owner="nsm",direction="0-1"} 420"#,
            r#"ferrule_wire_frames_total{wire="a\"b",owner="nsm",direction="1-0"} 0"#,
            r#"ferrule_wire_drops_total{wire="a\"b",owner="nsm",direction="0-1",reason="full"} 3"#,
            r#"ferrule_wire_drops_total{wire="a\"b",owner="nsm",direction="0-1",reason="refused"} 1"#,
            r#"ferrule_wire_stalls_total{wire="a\"b",owner="nsm",direction="0-1"} 5"#,
            r#"ferrule_wire_generation{wire="a\"b",owner="nsm"} 4"#,
            r#"ferrule_end_state{wire="a\"b",owner="nsm",end="0",kind="memif",state="listening"} 1"#,
            r#"ferrule_end_state{wire="a\"b",owner="nsm",end="1",kind="kernel",state="up"} 1"#,
            r#"ferrule_device_link_up{wire="a\"b",owner="nsm",end="1",kind="kernel"} 0"#,
            r#"ferrule_device_count_total{wire="a\"b",owner="nsm",end="1",kind="kernel",counter="rx_missed"} 6"#,
            r#"ferrule_worker_queues{cpu="3"} 2"#,
            r#"ferrule_worker_busy_seconds_total{cpu="3"} 1.5"#,
            "# TYPE ferrule_wire_drops counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|there| there == line), "missing: {line}\nin:\n{text}");
        }
        for name in ["process_resident_memory_bytes ", "process_open_fds ", "process_cpu_seconds_total "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "missing: {name}\nin:\n{text}");
        }
    }
}
