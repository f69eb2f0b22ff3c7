//! What was asked for, checked and spelled out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use ferrule_dataplane::spec::SocketAddress;

use crate::case::{Case, Group, Kind, Way, line_rate};
use crate::contender::{self, Idle, Program};
use crate::load::{Mix, MixError, Touch};
use crate::machine::Cpus;
use crate::method::{Method, Settings};
use crate::{BenchArgs, BenchError};

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
        if args.method == MethodName::Fixed && args.rate.is_none() {
            return Err(BenchError::Usage("a fixed rate is given by --rate"));
        }
        let searches = args.method.is_search();
        let precision = args.precision.0;
        if !(0.0005..=0.5).contains(&precision) {
            return Err(BenchError::Usage("--precision is from 0.05% to 50%"));
        }
        Ok(Self {
            groups: groups(args)?,
            method: args.method,
            rounds: args.rounds.unwrap_or(if searches { SEARCHES } else { MEASUREMENTS }),
            time: args.time,
            warm_up: args.warm_up,
            flows: args.flows.max(u32::from(args.queues)),
            queues: args.queues,
            touch: args.touch.into(),
            idle: args.idle,
            cpus,
            report: stem(&args.report),
            rate: args.rate,
            max_rate: args.max_rate,
            precision,
            loss_goal: args.loss_goal.0,
        })
    }

    /// A method at its beginning.
    pub fn new_method(&self, case: &Case) -> Method {
        let directions = if case.both_ways { 2.0 } else { 1.0 };
        let frames = |rate: &Rate| rate.frames(&case.mix) * directions;
        let settings = Settings {
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

/// How to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodName {
    /// As fast as there is room: what goes through at most, nothing is refused
    Saturate,
    /// At --rate: loss and latency
    Fixed,
    /// RFC 2544, 26.1: the highest rate without a loss, by binary search
    Throughput,
    /// RFC 2544, 26.2: latency at 10, 50, 90 and 100 % of the throughput
    Latency,
    /// RFC 2544, 26.3: the loss at rates from 125 % of what goes through down
    LossRate,
    /// RFC 2544, 26.4: the longest burst without a loss
    BackToBack,
    /// The highest rates with no loss (NDR) and with --loss-goal (PDR), as MLRsearch does it
    NdrPdr,
}

impl MethodName {
    /// Whether one round of it has many trials.
    pub fn is_search(self) -> bool {
        !matches!(self, Self::Saturate | Self::Fixed)
    }
}

/// A rate in each direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Frames in a second.
    Frames(f64),
    /// Bits in a second on a line, with FCS, preamble and gap.
    Line(f64),
}

impl Rate {
    fn frames(&self, mix: &Mix) -> f64 {
        match self {
            Self::Frames(rate) => *rate,
            Self::Line(bits) => line_rate(*bits, mix.average()),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Frames(rate) => crate::quantity(rate, "frames/s"),
            Self::Line(bits) => format!("the line rate of {}", crate::quantity(bits, "bit/s")),
        }
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let problem = "a rate is like 500k or 14.88M (frames a second), or 10Gbit (of a line)";
        let (number, kind): (_, fn(f64) -> Self) = match text.strip_suffix("bit") {
            Some(number) => (number, Self::Line),
            None => (text, Self::Frames),
        };
        let (digits, factor) = match number.char_indices().last() {
            Some((at, 'k')) => (&number[..at], 1e3),
            Some((at, 'M')) => (&number[..at], 1e6),
            Some((at, 'G')) => (&number[..at], 1e9),
            _ => (number, 1.0),
        };
        let rate = digits.parse::<f64>().map_err(|_| problem)? * factor;
        if rate.is_finite() && rate > 0.0 { Ok(kind(rate)) } else { Err(problem) }
    }
}

/// A share, as in `0.5%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percent(pub f64);

impl FromStr for Percent {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let share = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok().map(|percent| percent / 100.0);
        share.filter(|share| (0.0..=1.0).contains(share)).map(Self).ok_or("a share is like 0.5%, from 0 to 100%")
    }
}

/// Whose program is measured beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Against {
    /// DPDK's test program (Debian's dpdk-dev), at several burst sizes
    Testpmd,
    /// Open vSwitch with DPDK (Debian's openvswitch-switch-dpdk); vhost ends only
    Ovs,
}

fn groups(args: &BenchArgs) -> Result<Vec<Group>, BenchError> {
    if args.suite {
        return suite(args);
    }
    let [first, second] = args.ends[..] else {
        return Err(BenchError::Usage("--ends names two kinds, as in memif,vhost"));
    };
    let ends = [first, second];
    if args.trusted && ends != [Kind::Memif; 2] {
        return Err(BenchError::Usage("a trusted wire has two memif ends (--ends memif,memif)"));
    }
    let mut mixes = args.size.iter().map(|&size| Mix::new([size])).collect::<Result<Vec<_>, _>>()?;
    if args.imix {
        mixes.push(Mix::imix());
    }
    let plain = mixes.is_empty();
    if plain {
        mixes = SIZES.map(|size| Mix::new([size])).into_iter().collect::<Result<_, MixError>>()?;
    }
    let ways: &[Way] = match (args.both, plain) {
        (true, _) => &[Way::Both],
        (false, true) => &[Way::There, Way::Both],
        (false, false) => &[Way::There],
    };
    let cases = mixes.iter().flat_map(|mix| ways.iter().map(|&way| Case::new(ends, args.trusted, mix.clone(), way)));
    Ok(by_buffer(ends, &programs(args, ends, args.trusted)?, cases.collect()))
}

/// What `make bench` measures.
fn suite(args: &BenchArgs) -> Result<Vec<Group>, BenchError> {
    let (small, large) = (Mix::new([SIZES[0]])?, Mix::new([SIZES[1]])?);
    let (memif, vhost) = ([Kind::Memif; 2], [Kind::Vhost; 2]);
    let mixed = [Kind::Memif, Kind::Vhost];
    let four = [(&small, Way::There), (&small, Way::Both), (&large, Way::There), (&large, Way::Both)];
    let three = [(&small, Way::There), (&small, Way::Back), (&small, Way::Both)];
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
fn programs(args: &BenchArgs, ends: [Kind; 2], trusted: bool) -> Result<Vec<Program>, BenchError> {
    if let [near, far] = &args.at[..] {
        let sockets: [SocketAddress; 2] = [near.clone(), far.clone()];
        return Ok(vec![Program::Running { sockets, trusted }]);
    }
    let forwarder = contender::forwarder(args.forwarder.as_deref())?;
    let mut programs = vec![Program::Ferrule { forwarder: forwarder.clone(), trusted }];
    if trusted {
        programs.push(Program::Ferrule { forwarder, trusted: false });
    }
    if args.against.contains(&Against::Testpmd) {
        programs.extend(TESTPMD_BURSTS.map(|burst| Program::Testpmd { burst }));
    }
    if args.against.contains(&Against::Ovs) && ends == [Kind::Vhost; 2] {
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
fn by_buffer(ends: [Kind; 2], programs: &[Program], cases: Vec<Case>) -> Vec<Group> {
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
/// Rounds, unless told otherwise.
const MEASUREMENTS: u32 = 9;
const SEARCHES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    /// The plan of a command line, with a forwarder that need not be there.
    fn plan(words: &str) -> Result<Plan, BenchError> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: BenchArgs,
        }
        let words = ["bench", "--forwarder", "/forwarder"].into_iter().chain(words.split_whitespace());
        Plan::new(&Line::try_parse_from(words).unwrap().args)
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
    fn what_makes_no_sense_is_refused() {
        for words in ["--size 63", "--ends vhost,memif --trusted", "--method fixed", "--precision 0%", "--ends memif"] {
            assert!(plan(words).is_err(), "{words}");
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
