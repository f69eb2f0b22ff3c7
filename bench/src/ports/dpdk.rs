//! The ports, opened by DPDK, and their queues as sides of the generator.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::{FRAME_MAX, Frame, Run, Source, Target};
use ferrule_dataplane::spec::MacAddress;
use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::eal::{Eal, EalSettings};
use ferrule_dpdk::error::PortError;
use ferrule_dpdk::port::Port;
use ferrule_dpdk::watch::LossCause;
use ferrule_ethdev::queue::{EthdevSource, EthdevTarget};
use ferrule_ffi::notifier::Notifier;
use ferrule_ffi::ticks;

use super::clock::NicClock;
use super::{PortInfo, PortSetup, PortsError};
use crate::generator::{self, RunError, RunResult, RxStream, Side, TxStream};
use crate::load::Load;
use crate::traffic::Addresses;

/// What was missing when this was built.
pub(crate) const MISSING: Option<&str> = ferrule_ethdev::MISSING;
/// The version of libdpdk that this was built for.
pub(crate) const VERSION: Option<&str> = Some(ferrule_dpdk::VERSION);

/// Two ports that run.
pub(crate) struct PortPair {
    ports: [TestPort; 2],
    info: [PortInfo; 2],
}

struct TestPort {
    port: Arc<Port>,
    queues: Vec<TestQueue>,
    /// Why it is lost, if it is.
    lost: Arc<Mutex<Option<LossCause>>>,
}

/// A queue pair, with a look at the NIC's clock of its own.
struct TestQueue {
    source: EthdevSource,
    target: EthdevTarget,
    clock: Option<NicClock>,
}

impl PortPair {
    /// Opens them, and waits until frames can leave.
    pub fn open(setup: &PortSetup, cancel: &AtomicBool) -> Result<Self, PortsError> {
        let settings = EalSettings { memory_mib: setup.dpdk.memory_mib, hugepages: setup.dpdk.hugepages };
        let eal = Eal::start(settings).map_err(|error| {
            let cure = error.cure().replace("the forwarder", "ferrule");
            PortsError::Start { reason: error.to_string(), cure }
        })?;
        let [near, far] = &setup.devices;
        let ports = [TestPort::open(eal, near, setup)?, TestPort::open(eal, far, setup)?];
        for port in &ports {
            port.wait_for_link(cancel)?;
        }
        let info = [ports[0].info()?, ports[1].info()?];
        Ok(Self { ports, info })
    }

    pub fn info(&self) -> &[PortInfo; 2] {
        &self.info
    }

    /// What each of them has counted so far, without what only its driver counts.
    pub fn counters(&self) -> [BTreeMap<String, u64>; 2] {
        self.ports.each_ref().map(|port| {
            let counters = port.port.counters().unwrap_or_default();
            counters.into_iter().filter(|(name, _)| !name.starts_with("x_")).collect()
        })
    }

    /// Frames that came to the ports and were dropped there, since the generator did not take them in time.
    pub fn missed(&self) -> u64 {
        let missed = |counters: &BTreeMap<String, u64>| {
            ["rx_missed", "rx_no_buffer"].iter().filter_map(|name| counters.get(*name)).sum::<u64>()
        };
        self.counters().iter().map(missed).sum()
    }

    /// Sends from the first to the second, or the other way; one thread for each queue.
    pub fn run(
        &mut self,
        load: &Load,
        reverse: bool,
        cpus: &[usize],
        cancel: &AtomicBool,
    ) -> Result<RunResult, RunError> {
        self.ports.iter().try_for_each(TestPort::check)?;
        let [near, far] = &mut self.ports;
        let (from, to) = if reverse { (far, near) } else { (near, far) };
        let lanes = from.queues.iter_mut().zip(&mut to.queues).enumerate();
        let lanes = lanes.map(|(number, (from, to))| (PortSide::new(number, from), PortSide::new(number, to)));
        let result = generator::run_lanes(load, lanes.collect(), cpus, cancel);
        self.ports.iter().try_for_each(TestPort::check)?;
        result
    }
}

impl TestPort {
    fn open(eal: &'static Eal, device: &str, setup: &PortSetup) -> Result<Self, PortsError> {
        let lost = Arc::new(Mutex::new(None));
        let note = Arc::clone(&lost);
        let told = move |why| {
            note.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        };
        let (queues, mtu, stamps) = (setup.queues, setup.mtu, setup.stamps);
        let config = PortConfig { queues, mtu, stamps, ..PortConfig::default() };
        let (port, queues) =
            Port::open(eal, device, &config, Arc::new(told)).map_err(|error| refused(device, &error))?;
        let queue = |(rx, tx)| TestQueue {
            source: EthdevSource::new(rx),
            target: EthdevTarget::new(tx),
            clock: if stamps { NicClock::of(&port) } else { None },
        };
        let queues = queues.into_iter().map(queue).collect();
        Ok(Self { port, queues, lost })
    }

    fn wait_for_link(&self, cancel: &AtomicBool) -> Result<(), PortsError> {
        let deadline = Instant::now() + LINK_TIMEOUT;
        loop {
            if self.port.status().is_ok_and(|status| status.link_is_up != Some(false)) {
                return Ok(());
            }
            if cancel.load(Relaxed) {
                return Err(PortsError::Cancelled);
            }
            if Instant::now() > deadline {
                return Err(PortsError::Link {
                    device: self.port.device().to_owned(),
                    seconds: LINK_TIMEOUT.as_secs(),
                });
            }
            thread::sleep(LINK_INTERVAL);
        }
    }

    fn info(&self) -> Result<PortInfo, PortsError> {
        let port = &self.port;
        let read = || Ok((port.status()?, port.mac()?));
        let (status, mac) = read().map_err(|error: PortError| refused(port.device(), &error))?;
        Ok(PortInfo {
            device: port.device().to_owned(),
            driver: port.driver().to_owned(),
            speed_mbps: status.speed_mbps,
            mac: MacAddress(mac),
            numa_node: status.numa_node,
            queues: self.queues.len() as u16,
            is_promiscuous: port.is_promiscuous(),
            has_clock: self.queues.iter().any(|queue| queue.clock.is_some()),
        })
    }

    fn check(&self) -> Result<(), RunError> {
        if let Some(why) = &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(RunError::Port(format!("port {}: {why}", self.port.device())));
        }
        self.port.check_presence().map_err(|error| RunError::Port(error.to_string()))
    }
}

fn refused(device: &str, error: &PortError) -> PortsError {
    let cure = match error.call {
        "rte_pktmbuf_pool_create" => "give DPDK more with --memory",
        "rte_dev_probe" => {
            "a PCI device has to be bound to vfio-pci, and its driver installed; `ferrule bench doctor` looks at both"
        }
        _ => "see the page of its driver in DPDK's manual",
    };
    PortsError::Open { device: device.to_owned(), reason: error.to_string(), cure }
}

/// One queue of a port, for one thread.
struct PortSide<'a> {
    source: &'a mut EthdevSource,
    target: &'a mut EthdevTarget,
    clock: &'a mut Option<NicClock>,
    /// One of the threads speaks for the port.
    is_first: bool,
}

impl<'a> PortSide<'a> {
    fn new(number: usize, TestQueue { source, target, clock }: &'a mut TestQueue) -> Self {
        Self { source, target, clock, is_first: number == 0 }
    }
}

impl Side for PortSide<'_> {
    fn queues(&self) -> usize {
        1
    }

    /// Frames are copied into new buffers.
    fn buffers(&self) -> u32 {
        0
    }

    fn prepare(&mut self, addresses: &Addresses) -> Result<(), RunError> {
        let mut gather = vec![0; FRAME_MAX];
        let mut bursts = 0;
        while bursts < BURSTS_LEFT && self.source.refresh()? {
            let mut run = Run::new();
            self.source.run(&mut run);
            let shown = run.len();
            drop(run);
            self.source.advance_run(shown);
            if shown == 0
                && let Some(frame) = self.source.peek(&mut gather)?
            {
                let slots = frame.slots;
                self.source.advance(slots);
            }
            self.source.release();
            bursts += 1;
        }
        if self.is_first {
            // A switch learns where the address is (RFC 2544, section 23).
            let frame = learning_frame(addresses);
            self.target.put(&Frame { bytes: frame[..].into(), offload: None, slots: 0 })?;
            self.target.publish();
        }
        Ok(())
    }

    #[inline(always)]
    fn send(
        &mut self,
        _queue: usize,
        stream: &mut TxStream,
        due: u32,
        now: u64,
        _: &mut Notifier,
    ) -> Result<u32, RunError> {
        stream.send_copies(self.target, due, now)
    }

    fn flush(&mut self) {
        self.target.reclaim();
    }

    #[inline(always)]
    fn receive(&mut self, rx: &mut RxStream, notifier: &mut Notifier) -> Result<u32, RunError> {
        let Some(clock) = self.clock else { return rx.receive(self.source, notifier) };
        rx.receive_at(self.source, notifier, |source, arrived| {
            let now = ticks::now();
            clock.follow(now);
            let known = source.stamps(arrived);
            arrived[..known].iter_mut().for_each(|stamp| *stamp = clock.ticks(*stamp));
            // A driver whose frames go by another clock than the one that it shows.
            let is_possible =
                |time: &u64| now.wrapping_sub(*time).cast_signed().unsigned_abs() < ticks::of(Duration::from_secs(1));
            arrived[..known].iter().take_while(|time| is_possible(time)).count()
        })
    }
}

/// A frame without a stamp, from the address that frames to this side go to.
fn learning_frame(addresses: &Addresses) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&addresses.destination_mac.0);
    frame[6..12].copy_from_slice(&addresses.source_mac.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_EXPERIMENTAL.to_be_bytes());
    frame
}

/// Copper takes seconds to negotiate.
const LINK_TIMEOUT: Duration = Duration::from_secs(15);
const LINK_INTERVAL: Duration = Duration::from_millis(20);
/// More than any ring has.
const BURSTS_LEFT: usize = 1024;
/// For local experiments (IEEE 802, 9.2.4).
const ETHERTYPE_EXPERIMENTAL: u16 = 0x88b5;

#[cfg(test)]
mod tests {
    use ferrule_dataplane::port::BURST;
    use nix::sched::{CpuSet, sched_getaffinity};
    use nix::unistd::Pid;
    use tempfile::TempDir;

    use super::*;
    use crate::load::{Mix, Pace, Stop, Touch};
    use crate::ports::DpdkStart;

    /// Two ports that are joined as by a cable: the two ends of one memif connection.
    fn cable(queues: u16) -> (PortPair, TempDir) {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("memif.sock");
        let device = |number, role: &str| {
            format!("net_memif_{queues}_{number},role={role},socket={},socket-abstract=no", socket.display())
        };
        let devices = [device(0, "server"), device(1, "client")];
        let dpdk = DpdkStart { memory_mib: 512, hugepages: false };
        let setup = PortSetup { devices, queues, mtu: None, stamps: false, dpdk };
        (PortPair::open(&setup, &AtomicBool::new(false)).unwrap(), folder)
    }

    fn cpus(count: usize) -> Vec<usize> {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu).unwrap()).cycle().take(count).collect()
    }

    #[test]
    fn threads_on_queues_of_their_own_send_both_ways_and_each_frame_is_counted_once() {
        let (mut ports, _folder) = cable(2);
        for touch in [Touch::Stamped, Touch::Whole, Touch::Verified] {
            let before = ports.counters();
            let load = Load {
                flows: 7,
                both_ways: true,
                touch,
                stop: Stop::Frames(FRAMES),
                latency: touch == Touch::Stamped,
                ..Load::new(Mix::imix(), Duration::ZERO)
            };
            let run = ports.run(&load, false, &cpus(2), &AtomicBool::new(false)).unwrap();
            assert!(!run.has_dead_direction);
            for outcome in run.outcomes() {
                let received = &outcome.received;
                assert_eq!(
                    (outcome.sent, received.frames, outcome.lost()),
                    (FRAMES, FRAMES, 0),
                    "{touch:?}: {outcome:?}"
                );
                assert_eq!([received.lost, received.reordered, received.duplicated, received.corrupt], [0; 4]);
                assert_eq!(
                    outcome.latency.as_ref().map(crate::latency::Latency::count),
                    load.latency.then_some(FRAMES)
                );
            }
            let after = ports.counters();
            for (near, far) in [(0, 1), (1, 0)] {
                let counted = |port: usize, name: &str| after[port][name] - before[port][name];
                // And one by which a switch learns.
                assert_eq!(counted(near, "tx_frames"), FRAMES + 1);
                assert_eq!(counted(far, "rx_frames"), FRAMES + 1);
            }
        }
    }

    #[test]
    fn a_pace_is_shared_out_and_what_was_left_from_before_is_not_counted() {
        let (mut ports, _folder) = cable(1);
        // Nobody takes it. A memif server has no buffers before its client has looked at the ring: so the client sends.
        let frame = learning_frame(&Addresses::default());
        let target = &mut ports.ports[1].queues[0].target;
        for _ in 0..BURST {
            target.put(&Frame { bytes: frame[..].into(), offload: None, slots: 0 }).unwrap();
        }
        target.publish();
        let load =
            Load { pace: Pace::PerSecond(5000.0), ..Load::new(Mix::new([60]).unwrap(), Duration::from_millis(100)) };
        for reverse in [true, false] {
            let run = ports.run(&load, reverse, &cpus(1), &AtomicBool::new(false)).unwrap();
            let there = &run.there;
            assert!((499..=500).contains(&(there.offered() + there.skipped)), "{there:?}");
            assert!(there.lost() == 0 && there.received.foreign <= 1, "{there:?}");
        }
        let cancelled = ports.run(&load, false, &cpus(1), &AtomicBool::new(true));
        assert!(matches!(cancelled, Err(RunError::Cancelled)));
    }

    #[test]
    fn a_port_that_cannot_be_opened_says_what_helps() {
        let open = |device: &str| {
            let devices = ["net_ring_x".to_owned(), device.to_owned()];
            let dpdk = DpdkStart { memory_mib: 512, hugepages: false };
            let setup = PortSetup { devices, queues: 1, mtu: None, stamps: false, dpdk };
            PortPair::open(&setup, &AtomicBool::new(true)).err().unwrap().to_string()
        };
        let error = open("0000:ff:1f.7");
        assert!(
            error.contains("open port 0000:ff:1f.7") && error.contains("vfio-pci") && error.contains("doctor"),
            "{error}"
        );
        assert!(open("net_nothing").contains("ferrule bench doctor"));
    }

    const FRAMES: u64 = 20_000;
}
