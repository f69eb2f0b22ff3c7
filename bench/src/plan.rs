//! What was asked for, checked and spelled out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_dataplane::spec::MacAddress;

use crate::args::{Against, BenchArgs, MethodName, Rate, TouchArg};
use crate::case::{Case, EndKind, TrafficDirection};
use crate::doctor;
use crate::dut::{self, Idle, Program};
use crate::error::BenchError;
use crate::load::{Mix, MixError, Touch};
use crate::machine::Cpus;
use crate::method::{Method, MethodSettings};
use crate::ports::{DpdkStart, PortSetup};

/// All that a bench needs to know.
pub struct Plan {
    /// What is measured, one group after the other.
    pub groups: Vec<Group>,
    /// How.
    pub method: MethodName,
    /// How often.
    pub rounds: u32,
    /// Length of a trial.
    pub time: Duration,
    /// What is sent before each trial and not counted.
    pub warm_up: Duration,
    /// Flows in each direction.
    pub flows: u32,
    /// Queues of each end.
    pub queues: u16,
    /// What is done with the bytes.
    pub touch: Touch,
    /// What our workers do without work.
    pub idle: Idle,
    /// Where.
    pub cpus: Cpus,
    /// The forwarder was there before: its workers are where they are.
    pub is_running: bool,
    /// The rate of the ports' line in bits a second, if it was said.
    pub line: Option<f64>,
    /// Where frames go to, there and back, if it was said.
    pub macs: Option<[MacAddress; 2]>,
    /// Where the reports go, without their extension.
    pub report: PathBuf,
    rate: Option<Rate>,
    max_rate: Option<Rate>,
    precision: f64,
    loss_goal: f64,
}

impl Plan {
    /// Checks what was asked for.
    pub fn new(args: &BenchArgs) -> Result<Self, BenchError> {
        check_options(args)?;
        let on_ports = !args.port.is_empty();
        let cpus = Cpus::choose(&args.worker, &args.generator, !on_ports || args.at.is_empty())?;
        let method = args.method();
        let searches = method.is_search();
        let threads = cpus.generators.len() as u32;
        // RSS spreads what arrives by its flows: enough of them that each thread gets about as many.
        let flows = if threads > 1 { args.flows.max(FLOWS_PER_THREAD * threads) } else { args.flows };
        Ok(Self {
            groups: groups(args, &cpus)?,
            method,
            rounds: args.rounds.unwrap_or(if searches { SEARCHES } else { MEASUREMENTS }),
            time: args.time.unwrap_or(TRIAL),
            warm_up: args.warm_up,
            flows: flows.max(u32::from(args.queues)),
            queues: args.queues,
            touch: args.touch.into(),
            idle: args.idle.unwrap_or(Idle::Adaptive),
            is_running: !args.at.is_empty(),
            line: args.line_rate,
            macs: args.mac[..].try_into().ok(),
            cpus,
            report: stem(&args.report),
            rate: args.rate,
            max_rate: args.max_rate,
            precision: args.precision.map_or(PRECISION, |share| share.0),
            loss_goal: args.loss_goal.map_or(LOSS_GOAL, |share| share.0),
        })
    }

    /// A method at its beginning. Nobody sends faster than a line of so many bits in a second carries.
    pub fn new_method(&self, case: &Case, line: Option<f64>) -> Method {
        let frames = |rate: &Rate| rate.frames(&case.mix) * case.directions();
        let line = line.map(Rate::Line);
        let settings = MethodSettings {
            time: self.time,
            max_rate: self.max_rate.or(line).as_ref().map(frames),
            precision: self.precision,
            loss_goal: self.loss_goal,
        };
        match self.method {
            MethodName::Saturate => Method::saturate(&settings),
            MethodName::Fixed => Method::fixed(self.rate.as_ref().map_or(0.0, frames), &settings),
            MethodName::Throughput => Method::throughput(&settings),
            MethodName::Latency => Method::latency(&settings),
            MethodName::LossRate => Method::loss_rate(&settings),
            MethodName::BackToBack => Method::bursts(),
            MethodName::NdrPdr => Method::ndr_pdr(&settings),
        }
    }

    /// About how many trials there will be.
    pub fn trials(&self) -> usize {
        let rounds = self.rounds as usize + usize::from(!self.method.is_search());
        let of_group = |group: &Group| {
            let trials = group.cases.iter().map(|case| self.new_method(case, self.line).trials()).sum::<usize>();
            trials * group.programs.len()
        };
        rounds * self.groups.iter().map(of_group).sum::<usize>()
    }

    /// The method in a sentence.
    pub fn describe(&self) -> String {
        let time = humantime::format_duration(self.time);
        let goal = self.loss_goal * 100.0;
        let mut text = match (self.method, self.rate) {
            (MethodName::Saturate, _) => format!("as fast as the wire takes it, {time} each"),
            (MethodName::Fixed, Some(rate)) => format!("at {} in each direction, {time} each", rate.text()),
            (MethodName::Fixed, None) => "at a fixed rate".to_owned(),
            (MethodName::Throughput, _) => format!("RFC 2544 throughput, trials of {time}"),
            (MethodName::Latency, _) => format!("RFC 2544 latency at parts of the throughput, trials of {time}"),
            (MethodName::LossRate, _) => format!("RFC 2544 frame loss rate, trials of {time}"),
            (MethodName::BackToBack, _) => "RFC 2544 back-to-back frames".to_owned(),
            (MethodName::NdrPdr, _) => format!("NDR and PDR ({goal} % loss), trials up to {time}"),
        };
        let touch = match self.touch {
            Touch::Untouched => "frames are not touched",
            Touch::Stamped => "the first 64 bytes of each frame are written and read",
            Touch::Whole | Touch::Verified => "every byte of each frame is written and read",
        };
        let number = |count: u32, name: &str| format!("{count} {name}{}", if count == 1 { "" } else { "s" });
        let (rounds, flows) = (number(self.rounds, "round"), number(self.flows, "flow"));
        let queues = number(self.queues.into(), "queue");
        let _ = write!(text, "; {rounds}, {flows}, {queues}; {touch}");
        if self.cpus.generators.len() > 1 {
            let _ = write!(text, "; {} generator threads", self.cpus.generators.len());
        }
        if self.idle == Idle::Poll {
            text += "; our workers never sleep";
        }
        text
    }
}

/// Every option must mean something to the method.
fn check_options(args: &BenchArgs) -> Result<(), BenchError> {
    use MethodName::{Fixed, Latency, LossRate, NdrPdr, Saturate, Throughput};
    let refuse = |problem: String| Err(BenchError::Usage(problem));
    let options: [(_, _, &[MethodName]); 5] = [
        ("--rate", args.rate.is_some(), &[Fixed]),
        ("--max-rate", args.max_rate.is_some(), &[Throughput, Latency, LossRate, NdrPdr]),
        ("--precision", args.precision.is_some(), &[Throughput, Latency, NdrPdr]),
        ("--loss-goal", args.loss_goal.is_some(), &[NdrPdr]),
        ("--time", args.time.is_some(), &[Saturate, Fixed, Throughput, Latency, LossRate, NdrPdr]),
    ];
    for (option, given, methods) in options {
        if given && !methods.contains(&args.method()) {
            let (method, words) =
                (args.method().word(), methods.iter().map(|method| method.word()).collect::<Vec<_>>());
            let words = words.join(", ");
            return refuse(format!(
                "{option} means nothing to --method {method}; it is for --method {words}: choose that, or leave {option} out"
            ));
        }
    }
    if args.method() == Fixed && args.rate.is_none() {
        return refuse("--method fixed needs a rate; add --rate, as in --rate 1M".to_owned());
    }
    if matches!(args.method(), Fixed | Latency) && args.touch == TouchArg::Untouched {
        return refuse(format!(
            "--method {} looks at when each frame was sent, and --touch untouched looks at none; leave --touch out",
            args.method().word()
        ));
    }
    if args.port.is_empty() {
        check_programs(args)?;
    } else {
        check_ports(args)?;
    }
    if args.precision.is_some_and(|share| !(0.0005..=0.5).contains(&share.0)) {
        return refuse("--precision is from 0.05% to 50%".to_owned());
    }
    Ok(())
}

/// Whom to measure must be clear, and every one of them able to.
fn check_programs(args: &BenchArgs) -> Result<(), BenchError> {
    let refuse = |problem: &str| Err(BenchError::Usage(problem.to_owned()));
    let is_running = !args.at.is_empty();
    if is_running && args.at.len() != 2 {
        return refuse("--at names two sockets, as in --at /run/a.sock,/run/b.sock");
    }
    if is_running && (args.idle.is_some() || !args.worker.is_empty()) {
        return refuse("--idle and --worker are for a forwarder that is started here; leave them out with --at");
    }
    if args.against.contains(&Against::Ovs) && !args.suite && args.ends != [EndKind::Vhost; 2] {
        return refuse("Open vSwitch has no memif; add --ends vhost,vhost, or leave out --against ovs");
    }
    Ok(())
}

/// There are two ports, and something between them.
fn check_ports(args: &BenchArgs) -> Result<(), BenchError> {
    let refuse = |problem: &str| Err(BenchError::Usage(problem.to_owned()));
    if args.port.len() != 2 {
        return refuse("--port is given twice, as in --port 0000:3b:00.0 --port 0000:3b:00.1");
    }
    let name = |devargs: &String| devargs.split(',').next().map(str::to_owned);
    let all: Vec<_> = args.port.iter().chain(&args.device).map(name).collect();
    if all.iter().enumerate().any(|(place, name)| all[..place].contains(name)) {
        return refuse(
            "one device is named twice; give each --port and --device a name of its own, as in net_af_packet0 and net_af_packet1",
        );
    }
    match (args.device.len(), args.at.len()) {
        (2, 0) | (0, 1..) => {}
        (0, 0) => {
            return refuse(
                "what is between the ports? --device A --device B has our forwarder join these two, --at NAME measures what is there",
            );
        }
        _ => return refuse("--device is given twice: the two devices that the ports are cabled to, in the same order"),
    }
    if !args.at.is_empty() && (args.idle.is_some() || !args.worker.is_empty() || args.queues > 1) {
        return refuse(
            "--idle, --worker and --queues are for a forwarder that is started here; leave them out with --at",
        );
    }
    if !matches!(args.mac.len(), 0 | 2) {
        return refuse("--mac names two addresses: where frames go to, and where those go to that come back");
    }
    if args.touch == TouchArg::Untouched {
        return refuse(
            "a port receives what others send too, and --touch untouched does not tell it apart; leave --touch out",
        );
    }
    Ok(())
}

/// Cases that share their programs: these run from the first of them to the last.
#[derive(Clone, Debug)]
pub struct Group {
    /// What stands at the two sides of the programs.
    pub ends: [EndKind; 2],
    /// Bytes of the buffers at both ends.
    pub buffer: u32,
    /// What is measured. The first is ours, and the others are compared with it.
    pub programs: Vec<Program>,
    /// The work.
    pub cases: Vec<Case>,
    /// The ports, if the ends are some.
    pub ports: Option<PortSetup>,
    /// The devices that our forwarder joins then.
    pub devices: Option<[String; 2]>,
}

fn groups(args: &BenchArgs, cpus: &Cpus) -> Result<Vec<Group>, BenchError> {
    if let [near, far] = &args.port[..] {
        return on_ports(args, &[near.clone(), far.clone()], cpus);
    }
    if args.generator.len() > 1 {
        return Err(BenchError::Usage("several --generator CPUs are for ports; a wire of rings has one".to_owned()));
    }
    if args.suite {
        return suite(args);
    }
    let [first, second] = args.ends[..] else {
        return Err(BenchError::Usage("--ends names two kinds, as in memif,vhost".to_owned()));
    };
    let ends = [first, second];
    if args.trusted && ends != [EndKind::Memif; 2] {
        return Err(BenchError::Usage("a trusted wire has two memif ends; leave out --trusted, or --ends".to_owned()));
    }
    let mut mixes = args.size.iter().map(|&size| Mix::new([size])).collect::<Result<Vec<_>, _>>()?;
    if args.imix {
        mixes.push(Mix::imix());
    }
    let plain = mixes.is_empty();
    if plain {
        mixes = SIZES.map(|size| Mix::new([size])).into_iter().collect::<Result<_, MixError>>()?;
    }
    let ways: &[TrafficDirection] = match (args.both, plain) {
        (true, _) => &[TrafficDirection::Both],
        (false, true) => &[TrafficDirection::Forward, TrafficDirection::Both],
        (false, false) => &[TrafficDirection::Forward],
    };
    let cases = mixes.iter().flat_map(|mix| ways.iter().map(|&way| Case::new(ends, args.trusted, mix.clone(), way)));
    Ok(by_buffer(ends, &programs(args, ends, args.trusted)?, cases.collect()))
}

/// The sizes of RFC 2544 on two ports; those that need a larger MTU have ports of their own.
fn on_ports(args: &BenchArgs, devices: &[String; 2], cpus: &Cpus) -> Result<Vec<Group>, BenchError> {
    let sizes = if args.size.is_empty() && !args.imix { &PORT_SIZES[..] } else { &args.size };
    let mut mixes = sizes.iter().map(|&size| Mix::new([size])).collect::<Result<Vec<_>, _>>()?;
    if args.imix {
        mixes.push(Mix::imix());
    }
    let way = if args.both { TrafficDirection::Both } else { TrafficDirection::Forward };
    let cases = mixes.iter().map(|mix| Case::on_ports(mix, way)).collect::<Result<Vec<_>, _>>()?;
    let program = match &args.at[..] {
        [] => Program::Ferrule { forwarder: dut::forwarder(args.forwarder.as_deref())?, trusted: false },
        words => Program::Between(words.join(",")),
    };
    let (jumbo, usual): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.mix.largest() > FRAME_USUAL);
    let largest = jumbo.iter().map(|case| case.mix.largest()).max();
    let queues = cpus.generators.len() as u32;
    let needed = 2
        * queues
        * (QUEUE_MIB + largest.map_or(0, |largest| JUMBO_QUEUE_MIB * largest.div_ceil(BUFFER as usize) as u32));
    let memory_mib = args.memory.unwrap_or_else(|| MEMORY_MIB.max(needed + needed / 4));
    // A forwarder beside the bench takes as much.
    let all_mib = u64::from(memory_mib) * if args.at.is_empty() { 2 } else { 1 };
    let dpdk = DpdkStart { memory_mib, hugepages: doctor::free_hugepages_mib() >= all_mib };
    let stamps = matches!(args.method(), MethodName::Fixed | MethodName::Latency);
    let group = |cases: Vec<Case>, mtu: Option<u16>| {
        (!cases.is_empty()).then(|| Group {
            ends: [EndKind::Port; 2],
            buffer: BUFFER,
            programs: vec![program.clone()],
            cases,
            ports: Some(PortSetup { devices: devices.clone(), queues: queues as u16, mtu, stamps, dpdk }),
            devices: args.device.clone().try_into().ok(),
        })
    };
    // The largest frame is checked by the mix.
    let mtu = largest.map(|largest| (largest - ETHERNET) as u16);
    Ok(group(usual, None).into_iter().chain(group(jumbo, mtu)).collect())
}

/// What `make bench` measures.
fn suite(args: &BenchArgs) -> Result<Vec<Group>, BenchError> {
    let (small, large) = (Mix::new([SIZES[0]])?, Mix::new([SIZES[1]])?);
    let (memif, vhost) = ([EndKind::Memif; 2], [EndKind::Vhost; 2]);
    let mixed = [EndKind::Memif, EndKind::Vhost];
    let four = [
        (&small, TrafficDirection::Forward),
        (&small, TrafficDirection::Both),
        (&large, TrafficDirection::Forward),
        (&large, TrafficDirection::Both),
    ];
    let three =
        [(&small, TrafficDirection::Forward), (&small, TrafficDirection::Reverse), (&small, TrafficDirection::Both)];
    let mut groups = Vec::new();
    for (ends, trusted, work) in
        [(memif, false, &four[..]), (vhost, false, &four), (mixed, false, &three), (memif, true, &four)]
    {
        let cases = work.iter().map(|&(mix, way)| Case::new(ends, trusted, mix.clone(), way)).collect();
        groups.extend(by_buffer(ends, &programs(args, ends, trusted)?, cases));
    }
    Ok(groups)
}

/// Ours, and all that can join such ends.
fn programs(args: &BenchArgs, ends: [EndKind; 2], trusted: bool) -> Result<Vec<Program>, BenchError> {
    if let [near, far] = &args.at[..] {
        let socket = |text: &String| text.parse().map_err(|error| BenchError::Usage(format!("--at {text}: {error}")));
        let sockets = [socket(near)?, socket(far)?];
        return Ok(vec![Program::Running { sockets, trusted }]);
    }
    let forwarder = dut::forwarder(args.forwarder.as_deref())?;
    let mut programs = vec![Program::Ferrule { forwarder: forwarder.clone(), trusted }];
    if trusted {
        programs.push(Program::Ferrule { forwarder, trusted: false });
    }
    if args.against.contains(&Against::Testpmd) {
        programs.extend(TESTPMD_BURSTS.map(|burst| Program::Testpmd { burst }));
    }
    if args.against.contains(&Against::Ovs) && ends == [EndKind::Vhost; 2] {
        programs.push(Program::Ovs);
    }
    Ok(programs)
}

/// Of a report's file, or of the file that a folder gets.
fn stem(report: &Path) -> PathBuf {
    let is_file = report.extension().is_some_and(|extension| extension == "json" || extension == "html");
    if is_file { report.with_extension("") } else { report.join("report") }
}

/// Frames that do not fit into the usual buffers have ends with larger ones, and small frames do not pay for that.
fn by_buffer(ends: [EndKind; 2], programs: &[Program], cases: Vec<Case>) -> Vec<Group> {
    let (large, usual): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.mix.largest() > BUFFER as usize);
    let largest = large.iter().map(|case| case.mix.largest()).max().unwrap_or_default();
    let group = |buffer, cases: Vec<Case>| {
        (!cases.is_empty()).then(|| Group {
            ends,
            buffer,
            programs: programs.to_vec(),
            cases,
            ports: None,
            devices: None,
        })
    };
    // At most SIZE_MAX.
    let large = group(largest.next_multiple_of(64) as u32, large);
    group(BUFFER, usual).into_iter().chain(large).collect()
}

/// Those of RFC 2544, section 9.1, with FCS.
const PORT_SIZES: [usize; 7] = [64, 128, 256, 512, 1024, 1280, 1518];
/// The longest frame of the usual MTU, without FCS, and its header.
const FRAME_USUAL: usize = 1500 + ETHERNET;
const ETHERNET: usize = 14;
/// What a queue takes of DPDK's memory without hugepages: of frames of the usual MTU, and for each 2 KiB of longer ones.
const QUEUE_MIB: u32 = 17;
const JUMBO_QUEUE_MIB: u32 = 9;
/// At least so much for DPDK.
const MEMORY_MIB: u32 = 256;
const FLOWS_PER_THREAD: u32 = 16;
/// The smallest frame in common use, and the largest of the usual MTU.
const SIZES: [usize; 2] = [64, 1518];
/// Bytes of a buffer, as DPDK and memif have it.
const BUFFER: u32 = 2048;
/// Its default, and larger ones among which is its best.
const TESTPMD_BURSTS: [u16; 3] = [32, 64, 128];
/// Length of a trial, unless told otherwise.
const TRIAL: Duration = Duration::from_millis(300);
/// How well a search knows the rate, and the loss that a PDR allows, unless told otherwise.
const PRECISION: f64 = 0.01;
const LOSS_GOAL: f64 = 0.005;
/// Rounds, unless told otherwise.
const MEASUREMENTS: u32 = 9;
const SEARCHES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Percent;
    use clap::Parser as _;

    /// The plan of a command line, with a forwarder that need not be there.
    fn plan(words: &str) -> Result<Plan, BenchError> {
        Plan::new(&TestArgs::try_parse_from(line(words)).unwrap().args)
    }

    fn line(words: &str) -> impl Iterator<Item = &str> {
        ["bench", "--forwarder", "/forwarder"].into_iter().chain(words.split_whitespace())
    }

    #[derive(clap::Parser)]
    struct TestArgs {
        #[command(flatten)]
        args: BenchArgs,
    }

    /// The plan of ports; what is between them needs no forwarder.
    fn ports_plan(words: &str) -> Result<Plan, BenchError> {
        Plan::new(&TestArgs::try_parse_from(["bench"].into_iter().chain(words.split_whitespace())).unwrap().args)
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.groups.iter().flat_map(|group| &group.cases).map(|case| &*case.name).collect()
    }

    #[test]
    fn without_options_small_and_large_frames_go_one_way_and_both() {
        let plan = plan("").unwrap();
        assert_eq!(
            names(&plan),
            [
                "memif-memif 64 B one way",
                "memif-memif 64 B both ways",
                "memif-memif 1518 B one way",
                "memif-memif 1518 B both ways"
            ]
        );
        assert_eq!((plan.rounds, plan.trials()), (9, 40));
    }

    #[test]
    fn the_suite_holds_every_case_of_the_release_report() {
        let plan = plan("--suite --against testpmd,ovs").unwrap();
        assert_eq!(names(&plan).len(), 15);
        assert!(names(&plan).contains(&"vhost-memif 64 B one way"));
        assert!(names(&plan).contains(&"trusted memif-memif 1518 B both ways"));
        let programs = |at: usize| plan.groups[at].programs.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(programs(0), ["ferrule", "testpmd burst 32", "testpmd burst 64", "testpmd burst 128"]);
        assert_eq!(programs(1).last().map(String::as_str), Some("ovs-dpdk"));
        assert_eq!(programs(2).len(), 4);
        assert_eq!(programs(3)[..2], ["ferrule trusted", "ferrule"]);
    }

    #[test]
    fn sizes_and_a_mix_are_cases_and_large_frames_have_programs_of_their_own() {
        let plan = plan("--ends vhost,memif --size 64,9000 --imix --both").unwrap();
        assert_eq!(
            names(&plan),
            ["vhost-memif 64 B both ways", "vhost-memif IMIX both ways", "vhost-memif 9000 B both ways"]
        );
        assert_eq!(plan.groups.iter().map(|group| group.buffer).collect::<Vec<_>>(), [2048, 9024]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_cure() {
        for (words, cure) in [
            ("--size 59", "60 to"),
            ("--ends vhost,memif --trusted", "leave out --trusted"),
            ("--method fixed", "add --rate"),
            ("--method throughput --precision 0%", "from 0.05%"),
            ("--ends memif", "as in memif,vhost"),
            ("--rate 1M", "it is for --method fixed"),
            ("--method throughput --rate 1M", "leave --rate out"),
            ("--method throughput --loss-goal 1%", "it is for --method ndr-pdr"),
            ("--max-rate 1M", "throughput, latency, loss-rate, ndr-pdr"),
            ("--method fixed --rate 1M --precision 2%", "leave --precision out"),
            ("--method back-to-back --time 1s", "leave --time out"),
            ("--method fixed --rate 1M --touch untouched", "leave --touch out"),
            ("--method latency --touch untouched", "leave --touch out"),
            ("--against ovs", "--ends vhost,vhost"),
            ("--ends vhost,memif --against testpmd,ovs", "--ends vhost,vhost"),
        ] {
            let error = plan(words).err().unwrap_or_else(|| panic!("{words}"));
            assert!(error.is_usage() && error.to_string().contains(cure), "{words}: {error}");
        }
        for words in ["--time 0s", "--time 0.5ms", "--queues 0", "--queues 17", "--rounds 0"] {
            assert!(TestArgs::try_parse_from(line(words)).is_err(), "{words}");
        }
        for words in ["--size 60", "--queues 16", "--method ndr-pdr --loss-goal 1%", "--time 1ms", "--warm-up 0s"] {
            assert!(plan(words).is_ok(), "{words}");
        }
    }

    #[test]
    fn a_running_forwarder_has_two_sockets_and_settings_of_its_own() {
        let plan = |words: &str| {
            Plan::new(&TestArgs::try_parse_from(["bench"].into_iter().chain(words.split(' '))).unwrap().args)
        };
        for (words, cure) in [
            ("--at /a", "two sockets"),
            ("--at /a,/b --at /c", "two sockets"),
            ("--at /a,/b --idle poll", "leave them out"),
            ("--at /a,/b --worker 0", "leave them out"),
        ] {
            let error = plan(words).err().unwrap_or_else(|| panic!("{words}"));
            assert!(error.is_usage() && error.to_string().contains(cure), "{words}: {error}");
        }
        let plan = plan("--at /a,/b").unwrap();
        assert_eq!(plan.groups[0].programs.len(), 1);
        assert!(matches!(plan.groups[0].programs[0], Program::Running { .. }) && plan.is_running);
    }

    #[test]
    fn ports_have_the_sizes_of_rfc_2544_and_something_between_them() {
        let plan = |words: &str| ports_plan(&format!("--port net_ring0 --port 0000:3b:00.1 {words}")).unwrap();
        let switch = plan("--at switch");
        assert_eq!((names(&switch).len(), names(&switch)[0]), (7, "port-port 64 B one way"));
        assert_eq!(
            (switch.method, &switch.groups[0].programs[0]),
            (MethodName::Throughput, &Program::Between("switch".to_owned()))
        );
        let ports = switch.groups[0].ports.as_ref().unwrap();
        assert_eq!((&*ports.devices[1], ports.queues, ports.mtu, ports.stamps), ("0000:3b:00.1", 1, None, false));
        let latency = plan("--at switch --method latency");
        assert!(latency.groups[0].ports.as_ref().unwrap().stamps, "stamps are asked for where latency is");
        let jumbo = plan("--size 64,1518,9018 --both --at x --memory 512");
        let of = |group: usize| jumbo.groups[group].ports.as_ref().unwrap();
        assert_eq!((of(0).mtu, of(1).mtu, of(1).dpdk.memory_mib), (None, Some(9000), 512));
        let wire = plan("--device net_a0,x=y --device net_b0 --forwarder /forwarder");
        assert_eq!(wire.groups[0].devices.as_ref().unwrap()[0], "net_a0,x=y");
        assert!(matches!(wire.groups[0].programs[0], Program::Ferrule { trusted: false, .. }));
        // Of both directions.
        let case = &jumbo.groups[0].cases[0];
        let trial = jumbo.new_method(case, Some(10e9)).next().unwrap();
        let crate::load::Pace::PerSecond(rate) = trial.pace else { panic!("it begins at the line rate") };
        assert!((rate / 2.0 / 14_880_952.0 - 1.0).abs() < 1e-6, "{rate}");
    }

    #[test]
    fn ports_that_make_no_sense_are_refused_with_the_cure() {
        for (words, cure) in [
            ("--port a --at x", "given twice"),
            ("--port a --port b", "what is between"),
            ("--port a,x=1 --port a,x=2 --at x", "named twice"),
            ("--port a --port b --device c", "--device is given twice"),
            ("--port a --port b --device c --device b", "named twice"),
            ("--port a --port b --at x --worker 0", "leave them out"),
            ("--port a --port b --at x --touch untouched", "leave --touch out"),
            ("--port a --port b --at x --size 63", "64 to"),
            ("--port a --port b --at x --mac 02:00:00:00:00:01", "two addresses"),
        ] {
            let error = ports_plan(words).err().unwrap_or_else(|| panic!("{words}"));
            assert!(error.is_usage() && error.to_string().contains(cure), "{words}: {error}");
        }
        for words in
            ["--line-rate 5M", "--port a --port b --at x --line-rate 5M", "--port a --port b --ends memif,memif"]
        {
            assert!(TestArgs::try_parse_from(line(words)).is_err(), "{words}");
        }
    }

    #[test]
    fn rates_are_frames_or_bits_of_a_line() {
        assert_eq!("14.88M".parse(), Ok(Rate::Frames(14.88e6)));
        assert_eq!("500k".parse(), Ok(Rate::Frames(5e5)));
        assert_eq!("7".parse(), Ok(Rate::Frames(7.0)));
        assert_eq!("10Gbit".parse(), Ok(Rate::Line(1e10)));
        for wrong in ["", "k", "-1", "0", "1T", "nan", "inf", "10Gbit/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        let plan = plan("--method fixed --rate 10Gbit --size 64 --both").unwrap();
        let trial = plan.new_method(&plan.groups[0].cases[0], None).next().unwrap();
        let crate::load::Pace::PerSecond(rate) = trial.pace else { panic!("it has a pace") };
        assert!((rate - 2.0 * 1e10 / (88.0 * 8.0)).abs() < 1.0, "both directions together");
    }

    #[test]
    fn a_report_is_a_file_or_lies_in_a_folder() {
        assert_eq!(stem(Path::new("out")), Path::new("out/report"));
        assert_eq!(stem(Path::new("out/x.json")), Path::new("out/x"));
        assert_eq!(stem(Path::new("x.html")), Path::new("x"));
    }

    #[test]
    fn shares_are_percents() {
        assert_eq!("0.5%".parse(), Ok(Percent(0.005)));
        assert!("101%".parse::<Percent>().is_err() && "x".parse::<Percent>().is_err());
    }
}
