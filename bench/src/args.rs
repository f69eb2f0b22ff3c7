//! What a person can ask for.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ferrule_dataplane::spec::{MacAddress, QUEUES_MAX};

use crate::case::{EndKind, line_rate};
use crate::doctor::DoctorArgs;
use crate::dut::Idle;
use crate::load::{Mix, Touch};

/// What to measure.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that a person types")]
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// Something else than measuring
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,

    /// What stands at the two ends of the wire; frames go from the first to the second
    #[arg(long, value_enum, value_name = "KIND,KIND", value_delimiter = ',', default_value = "memif,memif")]
    #[arg(help_heading = "What is sent")]
    pub(crate) ends: Vec<EndKind>,
    /// Bytes of a frame, without FCS: 60 to 65549; several are several cases [default: 64,1518, one way and both].
    /// On ports with FCS, from 64 on [default there: 64,128,256,512,1024,1280,1518]
    #[arg(long, value_name = "BYTES", value_delimiter = ',', help_heading = "What is sent")]
    pub(crate) size: Vec<usize>,
    /// A mix of sizes: seven frames of 64, four of 594, one of 1518 bytes
    #[arg(long, help_heading = "What is sent")]
    pub(crate) imix: bool,
    /// Both directions at once
    #[arg(long, help_heading = "What is sent")]
    pub(crate) both: bool,
    /// Flows in each direction: UDP source ports, each with its own sequence numbers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    #[arg(help_heading = "What is sent")]
    pub(crate) flows: u32,
    /// Queues of each end, at most 16; flows are dealt out to them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(QUEUES_MAX)))]
    #[arg(help_heading = "What is sent")]
    pub(crate) queues: u16,
    /// What the generator does with the bytes of a frame
    #[arg(long, value_enum, value_name = "HOW", default_value = "stamped", help_heading = "What is sent")]
    pub(crate) touch: TouchArg,
    /// A trusted wire: descriptors are switched, and frames stay where they are (memif,memif)
    #[arg(long, help_heading = "What is sent")]
    pub(crate) trusted: bool,
    /// All cases of the release report, instead of those above
    #[arg(long, conflicts_with_all = ["ends", "size", "imix", "both", "trusted", "at"])]
    #[arg(help_heading = "What is sent")]
    pub(crate) suite: bool,

    /// A port to send on or to receive at, by its devargs; given twice. A PCI address, or a device of DPDK's own such as
    /// net_af_xdp0,iface=eth1
    #[arg(long, value_name = "DEVARGS", help_heading = "Ports", conflicts_with_all = ["ends", "trusted", "suite", "against"])]
    pub(crate) port: Vec<String>,
    /// What our forwarder joins by a wire, given twice: the devices that the ports are cabled to
    #[arg(long, value_name = "DEVARGS", help_heading = "Ports", requires = "port", conflicts_with = "at")]
    pub(crate) device: Vec<String>,
    /// What the ports' line carries, as in 25Gbit [default: what the slower port says of its link]
    #[arg(long, value_name = "RATE", value_parser = line, help_heading = "Ports", requires = "port")]
    pub(crate) line_rate: Option<f64>,
    /// Where frames go to, and those that come back [default: the address of the port that is to receive them]
    #[arg(
        long,
        value_name = "MAC,MAC",
        value_delimiter = ',',
        num_args = 1..=2,
        help_heading = "Ports",
        requires = "port"
    )]
    pub(crate) mac: Vec<MacAddress>,
    /// Memory for DPDK in MiB, here and in our forwarder; in hugepages if as much is free [default: what the ports need]
    #[arg(long, value_name = "MIB", help_heading = "Ports", requires = "port", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) memory: Option<u32>,

    /// How to measure [default: saturate; on ports throughput]
    #[arg(long, value_enum, value_name = "METHOD", help_heading = "How")]
    pub(crate) method: Option<MethodName>,
    /// For `--method fixed`, in each direction: 5M or 500k frames a second, or 10Gbit of a line
    #[arg(long, value_name = "RATE", help_heading = "How")]
    pub(crate) rate: Option<Rate>,
    /// Length of a trial; `--method back-to-back` has none [default: 300ms]
    #[arg(long, value_name = "TIME", value_parser = trial_time, help_heading = "How")]
    pub(crate) time: Option<Duration>,
    /// The same is sent for so long before each trial, and not counted
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = humantime::parse_duration)]
    #[arg(help_heading = "How")]
    pub(crate) warm_up: Duration,
    /// Measurements of each program in each case [default: 9, or 3 searches]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "How")]
    pub(crate) rounds: Option<u32>,
    /// The highest rate that a search tries, in each direction [default: the line's, or a little above what goes through]
    #[arg(long, value_name = "RATE", help_heading = "How")]
    pub(crate) max_rate: Option<Rate>,
    /// A search ends when it knows the rate to this share [default: 1%]
    #[arg(long, value_name = "PERCENT", help_heading = "How")]
    pub(crate) precision: Option<Percent>,
    /// The loss that the PDR of `--method ndr-pdr` allows [default: 0.5%]
    #[arg(long, value_name = "PERCENT", help_heading = "How")]
    pub(crate) loss_goal: Option<Percent>,

    /// Run the same work through these programs too, in turn
    #[arg(long, value_enum, value_name = "PROGRAM", value_delimiter = ',', help_heading = "Who")]
    pub(crate) against: Vec<Against>,
    /// The forwarder to start; without it, the one beside this program
    #[arg(long, value_name = "PATH", help_heading = "Who")]
    pub(crate) forwarder: Option<PathBuf>,
    /// Start none: measure a forwarder that runs, between these two sockets of its ends; with --port, whatever is between
    /// the ports, by any name
    #[arg(long, value_name = "SOCKET,SOCKET", value_delimiter = ',', help_heading = "Who")]
    #[arg(conflicts_with_all = ["against", "forwarder"], num_args = 1..=2)]
    pub(crate) at: Vec<String>,
    /// What our forwarder's worker does without work: matters below saturation, for latency [default: adaptive]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Who")]
    pub(crate) idle: Option<Idle>,
    /// CPUs of the workers [default: the first that may be used]
    #[arg(long, value_name = "CPU", value_delimiter = ',', help_heading = "Who")]
    pub(crate) worker: Vec<usize>,
    /// The generator's CPU [default: the last that may be used]; on ports several, with a thread and a queue of each port each
    #[arg(long, value_name = "CPU", value_delimiter = ',', help_heading = "Who")]
    pub(crate) generator: Vec<usize>,

    /// A folder for report.json, report.details.json and report.html, or a name for them that ends in .json or .html
    #[arg(long, value_name = "PATH", default_value = "target/bench", help_heading = "Where the results go")]
    pub(crate) report: PathBuf,
}

/// Something else than measuring.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Check this machine against docs/bare-metal.md: what is, what should be, how to change it
    Doctor(DoctorArgs),
}

impl BenchArgs {
    /// How to measure.
    pub(crate) fn method(&self) -> MethodName {
        let usual = if self.port.is_empty() { MethodName::Saturate } else { MethodName::Throughput };
        self.method.unwrap_or(usual)
    }
}

/// What is done with the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TouchArg {
    /// Every byte is written, and read at the other end: what two applications would do
    Whole,
    /// Buffers stay filled; the first 64 bytes, with sequence number and time, are written and read
    Stamped,
    /// Descriptors only: the wire alone, and losses are told by counts
    Untouched,
}

impl From<TouchArg> for Touch {
    fn from(touching: TouchArg) -> Self {
        match touching {
            TouchArg::Whole => Self::Whole,
            TouchArg::Stamped => Self::Stamped,
            TouchArg::Untouched => Self::Untouched,
        }
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
    /// What it is called on the command line.
    pub fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether one round of it has many trials.
    pub fn is_search(self) -> bool {
        !matches!(self, Self::Saturate | Self::Fixed)
    }
}

/// A trial of no length measures nothing.
fn trial_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time < TRIAL_MIN { Err(format!("a trial has at least {TRIAL_MIN:?}, as in 300ms")) } else { Ok(time) }
}

/// Bits in a second.
fn line(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(Rate::Line(bits)) => Ok(bits),
        _ => Err("the rate of a line is like 25Gbit"),
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
    pub fn frames(&self, mix: &Mix) -> f64 {
        match self {
            Self::Frames(rate) => *rate,
            Self::Line(bits) => line_rate(*bits, mix.average()),
        }
    }

    pub fn text(self) -> String {
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

const TRIAL_MIN: Duration = Duration::from_millis(1);
const EXAMPLES: &str = "\
Examples:
  What a wire carries, beside DPDK's test program:
    ferrule bench --against testpmd
  A virtual machine's end to a pod's, in every usual size, with a report to look at:
    ferrule bench --ends vhost,memif --size 64,128,256,512,1024,1280,1518,9000 --imix
  The highest rate without a loss, and with half a percent:
    ferrule bench --method ndr-pdr --size 64 --time 2s
  Latency at one million frames a second:
    ferrule bench --method fixed --rate 1M --size 64 --time 5s --rounds 3
  RFC 2544 throughput of a switch between two ports, with three threads:
    ferrule bench --port 0000:3b:00.0 --port 0000:3b:00.1 --at switch --generator 2,4,6 --time 10s

Frames that find no room in the wire's ring when they are due count as lost, as a NIC would drop them. A program is stopped \
while another has its turn; ratios are those of a round, and medians of the rounds are what is printed. docs/bench.md says more.";
