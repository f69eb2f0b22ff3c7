//! Turns of a wire and of its peers.

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use ferrule_bench::generator;
use ferrule_bench::load::{Load, Mix};
use ferrule_dataplane::port::Target;
use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::device::{Device, DeviceContext, MadeDevice};
use ferrule_dataplane::port::device_status::DeviceStatus;
use ferrule_dataplane::port::external::{DeviceError, ExternalPort};
use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, SocketAddress, WireSpec};
use ferrule_dataplane::{Engine, Idle, Settings};
use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::eal::{Eal, EalSettings};
use ferrule_dpdk::port::Port;
use ferrule_endpoints::end::End;
use ferrule_endpoints::memif::Endpoint;
use ferrule_ethdev::EthdevSpec;
use ferrule_ethdev::queue::{EthdevSource, EthdevTarget};
use ferrule_ffi::span::Span;
use ferrule_hw_tests::need::{TESTPMD, lacks};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::{TIMEOUT, eventually};

pub fn run() -> Result<(), Box<dyn Error>> {
    if lacks("ports", &[TESTPMD]) {
        return Ok(());
    }
    let engine = Engine::start(&Settings { idle: Idle::Poll, ..Settings::new(vec![WORKER]) })?;
    println!("| Devices | Ferrule, ns a frame | testpmd, burst 32 | ratio | burst 64 | ratio |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for devices in [["net_null0,size=64", "net_null1,size=64"], ["net_ring0", "net_ring1"]] {
        let mut peers = [32, 64].map(|burst| Testpmd::start(&devices, burst));
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            costs[0].push(of_wire(&engine, devices)?);
            for (peer, costs) in peers.iter_mut().zip(&mut costs[1..]) {
                costs.push(peer.turn());
            }
        }
        let [ours, small, large] = costs.map(median);
        // The ratio of rates: more is better.
        println!(
            "| `{}` | {ours:.2} | {small:.2} | {:.2} | {large:.2} | {:.2} |",
            devices[0],
            small / ours,
            large / ours
        );
    }
    println!("\n| Size | Our memif, ns a frame | `net_memif` of DPDK | ratio |\n| --- | ---: | ---: | ---: |");
    for size in [64, 1518] {
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (through_dpdk, costs) in [false, true].into_iter().zip(&mut costs) {
                costs.push(of_memif(&engine, through_dpdk, size)?);
            }
        }
        let [ours, theirs] = costs.map(median);
        println!("| {size} | {ours:.1} | {theirs:.1} | {:.2} |", theirs / ours);
    }
    Ok(())
}

/// A turn of a wire between these devices.
fn of_wire(engine: &Engine, devices: [&str; 2]) -> Result<f64, Box<dyn Error>> {
    let ends = devices.map(|device| EndSpec::External(Primed { device: device.to_owned() }.into()));
    engine.apply(WireSpec::new("devices", ends))?;
    let frames = || engine.wire("devices").map_or(0, |wire| wire.directions.iter().map(|traffic| traffic.frames).sum());
    let cost = turn(std::process::id(), frames);
    engine.remove("devices")?;
    Ok(cost)
}

/// CPU time in ns for each frame that is counted, of the busiest thread of a process.
fn turn(process: u32, mut frames: impl FnMut() -> u64) -> f64 {
    thread::sleep(WARM_UP);
    let (before, counted) = (cpu_times(process), frames());
    thread::sleep(TURN);
    let (after, counted) = (cpu_times(process), frames() - counted);
    let spent = after.iter().filter_map(|(task, time)| {
        let (_, earlier) = before.iter().find(|(other, _)| other == task)?;
        Some(time - earlier)
    });
    spent.max().unwrap_or(0) as f64 / counted as f64
}

/// Every thread with its time on CPUs, in ns.
fn cpu_times(process: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let time = |task: &Path| fs::read_to_string(task.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok();
    tasks.filter_map(|task| Some((task.file_name().to_string_lossy().into_owned(), time(&task.path())?))).collect()
}

/// A turn of a wire between two memif peers, at both ends of which is our memif, or DPDK's.
fn of_memif(engine: &Engine, through_dpdk: bool, size: usize) -> Result<f64, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let socket = |end: usize| folder.path().join(format!("{end}.sock"));
    let ends = [0, 1].map(|end| {
        if through_dpdk {
            let device = format!("net_memif{end},role=server,socket={},socket-abstract=no", socket(end).display());
            return EndSpec::External(EthdevSpec::new(device).into());
        }
        EndSpec::Memif(MemifSpec::new(SocketAddress::Path(socket(end)), Role::Server))
    });
    engine.apply(WireSpec::new("memif", ends))?;
    let mut peers = [0, 1].map(|end| {
        let spec = MemifSpec::new(SocketAddress::Path(socket(end)), Role::Client);
        Endpoint::open(&spec, TIMEOUT).map(End::Memif)
    });
    let [Ok(near), Ok(far)] = &mut peers else { return Err("the wire has no peers".into()) };
    eventually("the wire is up", || engine.wire("memif").is_some_and(|wire| wire.is_up()));
    let load = Load { warm_up: WARM_UP, ..Load::new(Mix::new([size])?, WARM_UP + TURN) };
    let cost = thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let now = || {
                let frames: u64 = engine.wire("memif").map_or(0, |wire| wire.directions.iter().map(|t| t.frames).sum());
                (engine.workers()[0].busy, frames)
            };
            thread::sleep(WARM_UP);
            let before = now();
            thread::sleep(TURN);
            let after = now();
            after.0.saturating_sub(before.0).as_nanos() as f64 / (after.1 - before.1) as f64
        });
        generator::run(&load, near, far, &AtomicBool::new(false)).map(|_| measured.join().unwrap_or(f64::NAN))
    })?;
    engine.remove("memif")?;
    Ok(cost)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A testpmd that forwards between two devices in its turns.
struct Testpmd {
    process: Process,
    turns: usize,
    asked: usize,
}

impl Testpmd {
    fn start(devices: &[&str; 2], burst: u16) -> Self {
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"]);
        command.args(["--lcores", &format!("0@1,1@{WORKER}"), "--file-prefix", &format!("ports{burst}")]);
        command.args(devices.iter().map(|device| format!("--vdev={device}")));
        command.args(["--", "-i", "--total-num-mbufs=8192", "--mbuf-size=2176", "--forward-mode=io"]);
        command.args(["--disable-link-check".to_owned(), format!("--burst={burst}")]);
        let process = Process::start(&mut command);
        process.wait_for("testpmd> ");
        Self { process, turns: 0, asked: 0 }
    }

    fn turn(&mut self) -> f64 {
        self.turns += 1;
        // Rings keep what is in them from turn to turn.
        self.process.type_in(if self.turns == 1 { "start tx_first 8\n" } else { "start\n" });
        self.process.wait_for_times("packets/burst=", self.turns);
        let process = self.process.id();
        // It is stdbuf's, which becomes testpmd.
        let cost = turn(process, || self.frames());
        self.process.type_in("stop\n");
        self.process.wait_for_times("\nDone.\n", self.turns);
        cost
    }

    /// Frames that both devices have sent.
    fn frames(&mut self) -> u64 {
        // A stop tells such numbers too, of its turn.
        let before = self.process.output().matches(SENT).count();
        self.process.type_in("show port stats all\n");
        self.process.wait_for_times(SENT, before + 2);
        self.process.wait_for_times("TX-bytes: ", 2 * (self.asked + 1));
        self.asked += 1;
        let output = self.process.output();
        let counts = output.split(SENT).skip(before + 1);
        counts.filter_map(|count| count.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }
}

/// A device with as many frames on their way as testpmd begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Primed {
    device: String,
}

impl fmt::Display for Primed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "primed {}", self.device)
    }
}

impl ExternalPort for Primed {
    fn kind(&self) -> &'static str {
        "primed"
    }

    fn identity(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn is_same(&self, other: &dyn ExternalPort) -> bool {
        other.downcast_ref() == Some(self)
    }

    fn make(&self, _context: &DeviceContext) -> Result<MadeDevice, DeviceError> {
        let failed = |reason: String| DeviceError {
            tried: "make".to_owned(),
            device: self.to_string(),
            reason,
            cure: "look at the reason".to_owned(),
        };
        let eal = Eal::start(EalSettings::default()).map_err(|error| failed(error.to_string()))?;
        let opened = Port::open(eal, &self.device, &PortConfig::default(), Arc::new(|_| {}));
        let (port, mut queues) = opened.map_err(|error| failed(error.to_string()))?;
        let (rx, mut tx) = queues.remove(0);
        let frame = [0x5a; 64];
        for _ in 0..FIRST / BURST {
            tx.store_run(&[Span::from(&frame[..]); BURST]);
            tx.flush();
        }
        let target: Box<dyn Target + Send> = Box::new(EthdevTarget::new(tx));
        let rings = LaneEnd::external([(Box::new(EthdevSource::new(rx)) as _, target)]);
        Ok(MadeDevice { rings, device: Arc::new(PrimedDevice { _port: port }) })
    }
}

struct PrimedDevice {
    _port: Arc<Port>,
}

impl Device for PrimedDevice {
    fn status(&self) -> Result<DeviceStatus, String> {
        Ok(DeviceStatus::default())
    }
}

/// In front of a number of frames.
const SENT: &str = "TX-packets: ";
/// The CPU of the worker, and of testpmd's.
const WORKER: usize = 0;
const ROUNDS: usize = 9;
const WARM_UP: Duration = Duration::from_millis(200);
const TURN: Duration = Duration::from_millis(800);
/// Frames in each device at the beginning: 8 bursts of testpmd's.
const FIRST: usize = 256;
const BURST: usize = 32;
