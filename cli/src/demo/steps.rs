//! The steps of the demo: what is done, in order.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::runtime::Handle;

use super::counters::{self, PeerCount};
use super::daemon::{Daemon, beside_us};
use super::ping::{self, Pinged};
use super::plan::{self, DemoWire};
use super::rate::{self, Ends};
use super::report::{Pings, Report, TestbedNames, WireReport};
use super::responder::ResponderThread;
use super::testbed::Testbed;
use super::{DemoError, Progress, Stop, needs, tcp};
use crate::admin::proto::Wire;
use crate::admin::{Admin, AdminError};
use crate::wires::State;
use crate::wires::table::trouble;

/// Does all of it. Everything that it made is gone when it returns.
pub(super) fn run(forwarder: Option<PathBuf>, handle: &Handle, stop: &Stop, progress: Progress) -> Report {
    perform(forwarder, handle, stop, progress).unwrap_or_else(Report::aborted)
}

fn perform(program: Option<PathBuf>, handle: &Handle, stop: &Stop, progress: Progress) -> Result<Report, DemoError> {
    needs::check()?;
    let (worker_cpu, generator_cpu) = rate::cpus()?;
    // What is declared later is dropped earlier: the forwarder goes before its namespaces.
    let testbed = Testbed::make(2, progress)?;
    progress.say(format_args!("made namespaces {0}-a and {0}-b", testbed.name()));
    let program = program.map_or_else(|| beside_us("forwarder", "dpdk-forwarder", "--forwarder"), Ok)?;
    let launch = plan::forwarder(&testbed, "forwarder", program, &plan::wires_file(&testbed, worker_cpu))?;
    let mut forwarder = Daemon::start(launch, &testbed, stop, |mut command| command.spawn())?;
    progress.say(format_args!("started dpdk-forwarder, process {}, worker on CPU {worker_cpu}", forwarder.pid()));
    let responder = ResponderThread::start(DemoWire::KernelMemif, plan::responder_spec(&testbed))?;
    let ends = Ends::open(&plan::generator_specs(&testbed));
    let admin = handle.block_on(Admin::connect(&plan::admin_socket(&testbed)));
    let admin = admin.map_err(|error| forwarder.error(&error.to_string()))?;
    let mut steps =
        DemoRun::new(&testbed, responder, ForwarderView { admin, handle, forwarder: &mut forwarder }, progress);

    steps.wait_until_up(stop)?;
    steps.ping(stop)?;
    steps.transfer(stop)?;
    match ends {
        Ok(mut ends) => steps.rate(&mut ends, generator_cpu, stop)?,
        Err(error) => steps.report(DemoWire::MemifMemif).fail(&error.to_string()),
    }
    steps.count(stop)?;
    let reports = steps.reports;
    let log = forwarder.log().to_vec();
    progress.say("stopping the forwarder");
    forwarder.stop()?;
    Ok(Report::new(reports, &log))
}

/// What is known so far.
struct DemoRun<'a> {
    testbed: &'a Testbed,
    responder: ResponderThread,
    view: ForwarderView<'a>,
    progress: Progress,
    reports: Vec<WireReport>,
    /// Bytes that certainly went from A to B, by wire of the demo.
    carried: BTreeMap<&'static str, u64>,
    /// The wires when they had just come up.
    before: Vec<Wire>,
    /// Frames that the generator sent, those that the sink received.
    generated: [u64; 2],
}

impl<'a> DemoRun<'a> {
    fn new(testbed: &'a Testbed, responder: ResponderThread, view: ForwarderView<'a>, progress: Progress) -> Self {
        let path = testbed.namespace_path(0).display().to_string();
        let names = TestbedNames {
            namespace: path.trim_end_matches('a').to_owned(),
            directory: format!("{}/", testbed.directory().display()),
        };
        let reports = DemoWire::ALL.map(|demo_wire| WireReport::new(demo_wire, names.clone())).into();
        Self {
            testbed,
            responder,
            view,
            progress,
            reports,
            carried: BTreeMap::new(),
            before: Vec::new(),
            generated: [0; 2],
        }
    }

    fn report(&mut self, demo_wire: DemoWire) -> &mut WireReport {
        &mut self.reports[demo_wire as usize]
    }

    /// The wires of the demo that work as far as is known.
    fn sound(&self) -> Vec<DemoWire> {
        DemoWire::ALL.into_iter().filter(|demo_wire| self.reports[*demo_wire as usize].is_sound()).collect()
    }

    /// Every wire up, or a reason for each that is not.
    fn wait_until_up(&mut self, stop: &Stop) -> Result<(), DemoError> {
        let deadline = Instant::now() + TIMEOUT;
        let wires = loop {
            stop.check()?;
            let wires = self.view.wires()?;
            let done = wires.iter().all(|wire| State::of(wire) == State::Up) && self.interfaces_run();
            if done || Instant::now() > deadline {
                break wires;
            }
            thread::sleep(TICK);
        };
        for demo_wire in DemoWire::ALL {
            let made_of = parts(&wires, demo_wire);
            let [Some(first), Some(last)] = [made_of.first(), made_of.last()] else {
                self.report(demo_wire).fail("the forwarder does not know it");
                continue;
            };
            let end =
                |wire: &Wire, side: usize| wire.ends.get(side).map_or_else(String::new, |end| end.description.clone());
            self.report(demo_wire).ends = [end(first, 0), end(last, 1)];
            for wire in made_of {
                if let Some(reason) = reason(wire) {
                    self.report(demo_wire).fail(&reason);
                }
            }
        }
        let up = wires.iter().filter(|wire| State::of(wire) == State::Up).count();
        self.progress.say(format_args!("{up} of {} wires are up", wires.len()));
        self.before = wires;
        Ok(())
    }

    /// Whether the kernel sends through every interface. It takes notice of a carrier some time after it was switched
    /// on, and loses what is sent until then: a lost ARP request would cost a second.
    fn interfaces_run(&self) -> bool {
        [0, 1].into_iter().all(|side| {
            let running = self.testbed.namespace(side).run(running_interfaces).unwrap_or_default();
            let here = DemoWire::ALL.into_iter().filter(|demo_wire| side == 0 || demo_wire.ends_in_kernel());
            here.filter_map(DemoWire::interface).all(|name| running.iter().any(|running| running == name))
        })
    }

    /// All of them at once.
    fn ping(&mut self, stop: &Stop) -> Result<(), DemoError> {
        stop.check()?;
        let demo_wires = self.sound().into_iter().filter(|demo_wire| demo_wire.interface().is_some());
        let jobs: Vec<_> =
            demo_wires.flat_map(|demo_wire| [(demo_wire, demo_wire.v4(1)), (demo_wire, demo_wire.v6(1))]).collect();
        self.progress.say(format_args!(
            "pinging {} addresses from namespace a, {} times each",
            jobs.len(),
            ping::COUNT
        ));
        let from = self.testbed.namespace(0);
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                jobs.iter().map(|&(_, address)| scope.spawn(move || ping::ping(from, address))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        // A signal that a terminal sends ends `ping` too: that is no failure of the wire.
        stop.check()?;
        for ((demo_wire, address), result) in jobs.into_iter().zip(results) {
            let report = self.report(demo_wire);
            let problem = match &result {
                Ok(pinged) => ping_problem(address, pinged),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                report.fail(&problem);
            }
            let pings = report.ping.get_or_insert(Pings { v4: None, v6: None });
            *(if address.is_ipv4() { &mut pings.v4 } else { &mut pings.v6 }) = result.ok();
        }
        Ok(())
    }

    /// One after the other, so that each has the machine for itself.
    fn transfer(&mut self, stop: &Stop) -> Result<(), DemoError> {
        for demo_wire in self.sound().into_iter().filter(|demo_wire| demo_wire.ends_in_kernel()) {
            stop.check()?;
            self.progress.say(format_args!("sending TCP through {} for {TCP_TIME:?}", demo_wire.name()));
            let (from, to) = (self.testbed.namespace(0), self.testbed.namespace(1));
            match tcp::transfer(from, to, demo_wire.v4(1), TCP_TIME) {
                Ok(transfer) => {
                    self.report(demo_wire).tcp_gbit_s = Some(transfer.gbit_s());
                    self.carried.insert(demo_wire.name(), transfer.bytes);
                }
                Err(error) => self.report(demo_wire).fail(&format!("TCP from A to {}: {error}", demo_wire.v4(1))),
            }
        }
        Ok(())
    }

    fn rate(&mut self, ends: &mut Ends, cpu: usize, stop: &Stop) -> Result<(), DemoError> {
        let demo_wire = DemoWire::MemifMemif;
        for size in SIZES {
            stop.check()?;
            if !self.report(demo_wire).is_sound() {
                break;
            }
            self.progress
                .say(format_args!("sending frames of {size} B through {}, generator on CPU {cpu}", demo_wire.name()));
            match ends.run(size, cpu) {
                Ok(outcome) => {
                    self.generated[0] += outcome.sent;
                    self.generated[1] += outcome.received.frames;
                    *self.carried.entry(demo_wire.name()).or_default() += outcome.received.bytes;
                    let report = self.report(demo_wire);
                    let rate = outcome.frames_per_second() / 1e6;
                    report.rate_mpps.get_or_insert_default().insert(size, rate);
                    if let Some(problem) = rate::problem(size, &outcome) {
                        report.fail(&problem);
                    }
                }
                Err(problem) => self.report(demo_wire).fail(&problem),
            }
        }
        Ok(())
    }

    /// Waits until what is under way has arrived and everybody agrees, or for a while.
    fn count(&mut self, stop: &Stop) -> Result<(), DemoError> {
        self.progress.say("comparing the forwarder's counters with what was sent and received");
        let deadline = Instant::now() + SETTLE;
        loop {
            stop.check()?;
            let mut wires = self.view.wires()?;
            counters::forget_drops(&mut wires, &self.before);
            let compared = DemoWire::ALL.map(|demo_wire| {
                let bytes_min = self.carried.get(demo_wire.name()).copied().unwrap_or(0);
                match self.peer_counts(demo_wire) {
                    Ok(peer_counts) => counters::compare(&parts(&wires, demo_wire), &peer_counts, bytes_min),
                    Err(problem) => (counters::Counters::default(), vec![problem]),
                }
            });
            if compared.iter().any(|(_, problems)| !problems.is_empty()) && Instant::now() < deadline {
                thread::sleep(TICK);
                continue;
            }
            for (demo_wire, (counters, problems)) in DemoWire::ALL.into_iter().zip(compared) {
                self.report(demo_wire).counters = Some(counters);
                for problem in &problems {
                    self.report(demo_wire).fail(problem);
                }
            }
            return Ok(());
        }
    }

    /// Everybody who saw frames of a wire of the demo.
    fn peer_counts(&self, demo_wire: DemoWire) -> Result<Vec<PeerCount>, String> {
        let mut peer_counts = Vec::new();
        if demo_wire.interface().is_some() {
            peer_counts.push(PeerCount::interface(demo_wire, 0, self.testbed.namespace(0))?);
        }
        if demo_wire.ends_in_kernel() {
            peer_counts.push(PeerCount::interface(demo_wire, 1, self.testbed.namespace(1))?);
        }
        match demo_wire {
            DemoWire::KernelMemif => {
                let tally = self.responder.tally();
                peer_counts.push(PeerCount::new("the responder", 0, tally.frames));
                peer_counts.push(PeerCount::new("the responder", 1, tally.replies));
            }
            DemoWire::MemifMemif => {
                let [sent, received] = self.generated;
                peer_counts.push(PeerCount::new("the generator", 0, sent));
                peer_counts.push(PeerCount::new("the sink", 0, received));
                peer_counts.push(PeerCount::new("the sink, which sends nothing", 1, 0));
            }
            DemoWire::KernelKernel | DemoWire::KernelMemifKernel => {}
        }
        Ok(peer_counts)
    }
}

/// The forwarder as its admin API shows it.
struct ForwarderView<'a> {
    admin: Admin,
    handle: &'a Handle,
    forwarder: &'a mut Daemon,
}

impl ForwarderView<'_> {
    fn wires(&mut self) -> Result<Vec<Wire>, DemoError> {
        let answer: Result<_, AdminError> = self.handle.block_on(self.admin.list());
        answer.map(|response| response.wires).map_err(|error| self.forwarder.error(&error.to_string()))
    }
}

/// The wires that a wire of the demo is made of, if all of them are there.
fn parts(wires: &[Wire], demo_wire: DemoWire) -> Vec<&Wire> {
    let parts = demo_wire.wires().iter().map(|name| wires.iter().find(|wire| wire.name == *name));
    parts.collect::<Option<_>>().unwrap_or_default()
}

/// Names of the interfaces of this namespace through which the kernel sends.
pub(super) fn running_interfaces() -> Vec<String> {
    let interfaces = getifaddrs().into_iter().flatten();
    let running = interfaces.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_RUNNING));
    running.map(|interface| interface.interface_name).collect()
}

/// Why a wire is not up.
fn reason(wire: &Wire) -> Option<String> {
    let ends = wire.ends.iter().filter_map(|end| Some(format!("{} {}", end.description, trouble(wire, end)?)));
    let reasons: Vec<_> = ends.collect();
    match State::of(wire) {
        State::Up => None,
        _ if reasons.is_empty() => Some(format!("the wire {} is not up", wire.name)),
        _ => Some(reasons.join("; ")),
    }
}

fn ping_problem(address: IpAddr, pinged: &Pinged) -> Option<String> {
    let Pinged { sent, received, .. } = pinged;
    (received < sent || *sent == 0).then(|| format!("ping {address}: {sent} sent, {received} answered"))
}

/// The shortest frame of the usual sizes, and the longest.
const SIZES: [usize; 2] = [64, 1518];
const TCP_TIME: Duration = Duration::from_secs(1);
/// How long wires may take to come up.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long frames under way may take to be counted.
const SETTLE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(10);
