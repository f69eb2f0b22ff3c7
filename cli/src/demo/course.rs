//! The course of the demo: what is done, in order.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::runtime::Handle;

use super::counters::{self, Witness};
use super::far_end::FarEnd;
use super::forwarder::Forwarder;
use super::ping::{self, Pinged};
use super::plan::{self, Subject};
use super::rate::{self, Ends};
use super::report::{Pings, Report, SiteNames, WireReport};
use super::site::Site;
use super::{DemoError, Stop, Voice, needs, tcp};
use crate::admin::proto::Wire;
use crate::admin::{Admin, AdminError};
use crate::wires::State;
use crate::wires::table::trouble;

/// Does all of it. Everything that it made is gone when it returns.
pub(super) fn run(forwarder: Option<PathBuf>, handle: &Handle, stop: &Stop, voice: Voice) -> Report {
    perform(forwarder, handle, stop, voice).unwrap_or_else(Report::aborted)
}

fn perform(program: Option<PathBuf>, handle: &Handle, stop: &Stop, voice: Voice) -> Result<Report, DemoError> {
    needs::check()?;
    let (worker_cpu, generator_cpu) = rate::cpus()?;
    // What is declared later is dropped earlier: the forwarder goes before its namespaces.
    let site = Site::make(voice)?;
    voice.say(format_args!("made namespaces {0}-a and {0}-b", site.name()));
    let mut forwarder = Forwarder::start(program, &site, worker_cpu, stop)?;
    voice.say(format_args!("started dpdk-forwarder, process {}, worker on CPU {worker_cpu}", forwarder.pid()));
    let far_end = FarEnd::start(Subject::KernelMemif, plan::responder_spec(&site))?;
    let ends = Ends::open(&plan::generator_specs(&site));
    let admin = handle.block_on(Admin::connect(&plan::admin_socket(&site)));
    let admin = admin.map_err(|error| forwarder.error(&error.to_string()))?;
    let mut course = Course::new(&site, far_end, ForwarderView { admin, handle, forwarder: &mut forwarder }, voice);

    course.wait_until_up(stop)?;
    course.ping(stop)?;
    course.transfer(stop)?;
    match ends {
        Ok(mut ends) => course.rate(&mut ends, generator_cpu, stop)?,
        Err(error) => course.report(Subject::MemifMemif).fail(&error.to_string()),
    }
    course.count(stop)?;
    let reports = course.reports;
    let log = forwarder.log().to_vec();
    voice.say("stopping the forwarder");
    forwarder.stop()?;
    Ok(Report::new(reports, &log))
}

/// What is known so far.
struct Course<'a> {
    site: &'a Site,
    far_end: FarEnd,
    view: ForwarderView<'a>,
    voice: Voice,
    reports: Vec<WireReport>,
    /// Bytes that certainly went from A to B, by subject.
    carried: BTreeMap<&'static str, u64>,
    /// The wires when they had just come up.
    before: Vec<Wire>,
    /// Frames that the generator sent, those that the sink received.
    generated: [u64; 2],
}

impl<'a> Course<'a> {
    fn new(site: &'a Site, far_end: FarEnd, view: ForwarderView<'a>, voice: Voice) -> Self {
        let path = site.namespace_path(0).display().to_string();
        let names = SiteNames {
            namespace: path.trim_end_matches('a').to_owned(),
            directory: format!("{}/", site.directory().display()),
        };
        let reports = Subject::ALL.map(|subject| WireReport::new(subject, names.clone())).into();
        Self { site, far_end, view, voice, reports, carried: BTreeMap::new(), before: Vec::new(), generated: [0; 2] }
    }

    fn report(&mut self, subject: Subject) -> &mut WireReport {
        &mut self.reports[subject as usize]
    }

    /// The subjects that work as far as is known.
    fn sound(&self) -> Vec<Subject> {
        Subject::ALL.into_iter().filter(|subject| self.reports[*subject as usize].is_sound()).collect()
    }

    /// Every wire up, or a reason for each that is not.
    fn wait_until_up(&mut self, stop: &Stop) -> Result<(), DemoError> {
        let deadline = Instant::now() + PATIENCE;
        let wires = loop {
            stop.check()?;
            let wires = self.view.wires()?;
            let done = wires.iter().all(|wire| State::of(wire) == State::Up) && self.interfaces_run();
            if done || Instant::now() > deadline {
                break wires;
            }
            thread::sleep(TICK);
        };
        for subject in Subject::ALL {
            let made_of = parts(&wires, subject);
            let [Some(first), Some(last)] = [made_of.first(), made_of.last()] else {
                self.report(subject).fail("the forwarder does not know it");
                continue;
            };
            let end =
                |wire: &Wire, side: usize| wire.ends.get(side).map_or_else(String::new, |end| end.description.clone());
            self.report(subject).ends = [end(first, 0), end(last, 1)];
            for wire in made_of {
                if let Some(reason) = reason(wire) {
                    self.report(subject).fail(&reason);
                }
            }
        }
        let up = wires.iter().filter(|wire| State::of(wire) == State::Up).count();
        self.voice.say(format_args!("{up} of {} wires are up", wires.len()));
        self.before = wires;
        Ok(())
    }

    /// Whether the kernel sends through every interface. It takes notice of a carrier some time after it was switched
    /// on, and loses what is sent until then: a lost ARP request would cost a second.
    fn interfaces_run(&self) -> bool {
        [0, 1].into_iter().all(|side| {
            let running = self.site.namespace(side).run(running_interfaces).unwrap_or_default();
            let here = Subject::ALL.into_iter().filter(|subject| side == 0 || subject.ends_in_kernel());
            here.filter_map(Subject::interface).all(|name| running.iter().any(|running| running == name))
        })
    }

    /// All of them at once.
    fn ping(&mut self, stop: &Stop) -> Result<(), DemoError> {
        stop.check()?;
        let subjects = self.sound().into_iter().filter(|subject| subject.interface().is_some());
        let jobs: Vec<_> = subjects.flat_map(|subject| [(subject, subject.v4(1)), (subject, subject.v6(1))]).collect();
        self.voice.say(format_args!("pinging {} addresses from namespace a, {} times each", jobs.len(), ping::COUNT));
        let from = self.site.namespace(0);
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                jobs.iter().map(|&(_, address)| scope.spawn(move || ping::ping(from, address))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        // A signal that a terminal sends ends `ping` too: that is no failure of the wire.
        stop.check()?;
        for ((subject, address), result) in jobs.into_iter().zip(results) {
            let report = self.report(subject);
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
        for subject in self.sound().into_iter().filter(|subject| subject.ends_in_kernel()) {
            stop.check()?;
            self.voice.say(format_args!("sending TCP through {} for {TCP_TIME:?}", subject.name()));
            let (from, to) = (self.site.namespace(0), self.site.namespace(1));
            match tcp::transfer(from, to, subject.v4(1), TCP_TIME) {
                Ok(transfer) => {
                    self.report(subject).tcp_gbit_s = Some(transfer.gbit_s());
                    self.carried.insert(subject.name(), transfer.bytes);
                }
                Err(error) => self.report(subject).fail(&format!("TCP from A to {}: {error}", subject.v4(1))),
            }
        }
        Ok(())
    }

    fn rate(&mut self, ends: &mut Ends, cpu: usize, stop: &Stop) -> Result<(), DemoError> {
        let subject = Subject::MemifMemif;
        for size in SIZES {
            stop.check()?;
            if !self.report(subject).is_sound() {
                break;
            }
            self.voice
                .say(format_args!("sending frames of {size} B through {}, generator on CPU {cpu}", subject.name()));
            match ends.run(size, cpu) {
                Ok(outcome) => {
                    self.generated[0] += outcome.sent;
                    self.generated[1] += outcome.received.frames;
                    *self.carried.entry(subject.name()).or_default() += outcome.received.bytes;
                    let report = self.report(subject);
                    let rate = outcome.frames_per_second() / 1e6;
                    report.rate_mpps.get_or_insert_default().insert(size, rate);
                    if let Some(problem) = rate::problem(size, &outcome) {
                        report.fail(&problem);
                    }
                }
                Err(problem) => self.report(subject).fail(&problem),
            }
        }
        Ok(())
    }

    /// Waits until what is under way has arrived and everybody agrees, or for a while.
    fn count(&mut self, stop: &Stop) -> Result<(), DemoError> {
        self.voice.say("comparing the forwarder's counters with what was sent and received");
        let deadline = Instant::now() + SETTLE;
        loop {
            stop.check()?;
            let mut wires = self.view.wires()?;
            counters::forget_drops(&mut wires, &self.before);
            let judged = Subject::ALL.map(|subject| {
                let bytes_min = self.carried.get(subject.name()).copied().unwrap_or(0);
                match self.witnesses(subject) {
                    Ok(witnesses) => counters::judge(&parts(&wires, subject), &witnesses, bytes_min),
                    Err(problem) => (counters::Counters::default(), vec![problem]),
                }
            });
            if judged.iter().any(|(_, problems)| !problems.is_empty()) && Instant::now() < deadline {
                thread::sleep(TICK);
                continue;
            }
            for (subject, (counters, problems)) in Subject::ALL.into_iter().zip(judged) {
                self.report(subject).counters = Some(counters);
                for problem in &problems {
                    self.report(subject).fail(problem);
                }
            }
            return Ok(());
        }
    }

    /// Everybody who saw frames of a subject.
    fn witnesses(&self, subject: Subject) -> Result<Vec<Witness>, String> {
        let mut witnesses = Vec::new();
        if subject.interface().is_some() {
            witnesses.push(Witness::interface(subject, 0, self.site.namespace(0))?);
        }
        if subject.ends_in_kernel() {
            witnesses.push(Witness::interface(subject, 1, self.site.namespace(1))?);
        }
        match subject {
            Subject::KernelMemif => {
                let tally = self.far_end.tally();
                witnesses.push(Witness::new("the responder", 0, tally.frames));
                witnesses.push(Witness::new("the responder", 1, tally.replies));
            }
            Subject::MemifMemif => {
                let [sent, received] = self.generated;
                witnesses.push(Witness::new("the generator", 0, sent));
                witnesses.push(Witness::new("the sink", 0, received));
                witnesses.push(Witness::new("the sink, which sends nothing", 1, 0));
            }
            Subject::KernelKernel | Subject::KernelMemifKernel => {}
        }
        Ok(witnesses)
    }
}

/// The forwarder as its admin API shows it.
struct ForwarderView<'a> {
    admin: Admin,
    handle: &'a Handle,
    forwarder: &'a mut Forwarder,
}

impl ForwarderView<'_> {
    fn wires(&mut self) -> Result<Vec<Wire>, DemoError> {
        let answer: Result<_, AdminError> = self.handle.block_on(self.admin.list());
        answer.map(|response| response.wires).map_err(|error| self.forwarder.error(&error.to_string()))
    }
}

/// The wires that a subject is made of, if all of them are there.
fn parts(wires: &[Wire], subject: Subject) -> Vec<&Wire> {
    let parts = subject.wires().iter().map(|name| wires.iter().find(|wire| wire.name == *name));
    parts.collect::<Option<_>>().unwrap_or_default()
}

/// Names of the interfaces of this namespace through which the kernel sends.
fn running_interfaces() -> Vec<String> {
    let interfaces = getifaddrs().into_iter().flatten();
    let running = interfaces.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_RUNNING));
    running.map(|interface| interface.interface_name).collect()
}

/// Why a wire is not up.
fn reason(wire: &Wire) -> Option<String> {
    let ends = wire.ends.iter().filter_map(|end| Some(format!("{} {}", end.description, trouble(end)?)));
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
const PATIENCE: Duration = Duration::from_secs(5);
/// How long frames under way may take to be counted.
const SETTLE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(10);
