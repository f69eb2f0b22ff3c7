//! What was asked for, checked and spelled out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{Against, BenchArgs, MethodName, Rate, TouchArg};
use crate::case::{Case, EndKind, TrafficDirection};
use crate::dut::{self, Idle, Program};
use crate::error::BenchError;
use crate::load::{Mix, MixError, Touch};
use crate::machine::Cpus;
use crate::method::{Method, MethodSettings};

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
        let cpus = Cpus::choose(&args.worker, args.generator)?;
        check_options(args)?;
        let searches = args.method.is_search();
        Ok(Self {
            groups: groups(args)?,
            method: args.method,
            rounds: args.rounds.unwrap_or(if searches { SEARCHES } else { MEASUREMENTS }),
            time: args.time.unwrap_or(TRIAL),
            warm_up: args.warm_up,
            flows: args.flows.max(u32::from(args.queues)),
            queues: args.queues,
            touch: args.touch.into(),
            idle: args.idle.unwrap_or(Idle::Adaptive),
            is_running: !args.at.is_empty(),
            cpus,
            report: stem(&args.report),
            rate: args.rate,
            max_rate: args.max_rate,
            precision: args.precision.map_or(PRECISION, |share| share.0),
            loss_goal: args.loss_goal.map_or(LOSS_GOAL, |share| share.0),
        })
    }

    /// A method at its beginning.
    pub fn new_method(&self, case: &Case) -> Method {
        let directions = if case.both_ways { 2.0 } else { 1.0 };
        let frames = |rate: &Rate| rate.frames(&case.mix) * directions;
        let settings = MethodSettings {
            time: self.time,
            max_rate: self.max_rate.as_ref().map(frames),
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
            let trials = group.cases.iter().map(|case| self.new_method(case).trials()).sum::<usize>();
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
        if given && !methods.contains(&args.method) {
            let (method, words) = (args.method.word(), methods.iter().map(|method| method.word()).collect::<Vec<_>>());
            let words = words.join(", ");
            return refuse(format!(
                "{option} means nothing to --method {method}; it is for --method {words}: choose that, or leave {option} out"
            ));
        }
    }
    if args.method == Fixed && args.rate.is_none() {
        return refuse("--method fixed needs a rate; add --rate, as in --rate 1M".to_owned());
    }
    if matches!(args.method, Fixed | Latency) && args.touch == TouchArg::Untouched {
        return refuse(format!(
            "--method {} looks at when each frame was sent, and --touch untouched looks at none; leave --touch out",
            args.method.word()
        ));
    }
    check_programs(args)?;
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
}

fn groups(args: &BenchArgs) -> Result<Vec<Group>, BenchError> {
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
        let sockets = [near.clone(), far.clone()];
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
        (!cases.is_empty()).then(|| Group { ends, buffer, programs: programs.to_vec(), cases })
    };
    // At most SIZE_MAX.
    let large = group(largest.next_multiple_of(64) as u32, large);
    group(BUFFER, usual).into_iter().chain(large).collect()
}

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
    fn rates_are_frames_or_bits_of_a_line() {
        assert_eq!("14.88M".parse(), Ok(Rate::Frames(14.88e6)));
        assert_eq!("500k".parse(), Ok(Rate::Frames(5e5)));
        assert_eq!("7".parse(), Ok(Rate::Frames(7.0)));
        assert_eq!("10Gbit".parse(), Ok(Rate::Line(1e10)));
        for wrong in ["", "k", "-1", "0", "1T", "nan", "inf", "10Gbit/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        let plan = plan("--method fixed --rate 10Gbit --size 64 --both").unwrap();
        let trial = plan.new_method(&plan.groups[0].cases[0]).next().unwrap();
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
