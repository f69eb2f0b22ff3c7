//! What goes through a wire on one core, beside a peer's program doing the same work: what `ferrule bench` runs.
//!
//! In reading order:
//!
//! - [`traffic`]: stamped frames, and the count of what became of them; [`load`]: what to send, and how;
//! - [`generator`]: sends through a wire and checks what arrives; [`latency`]: how long frames were under way;
//! - `plan`: what was asked for, spelled out; `case`: kinds of ends and of work;
//! - `method`: what is tried and concluded, without any traffic;
//! - `contender`: the programs, and how they are started; `folder`: where their sockets are;
//! - `session`: gives each its turn; `progress`: says so;
//! - `report`: the table, the JSON, the HTML; `spread`: medians; `machine`: where it was.

mod case;
mod contender;
mod folder;
pub mod generator;
pub mod latency;
pub mod load;
mod machine;
mod method;
mod plan;
mod progress;
mod quantity;
mod report;
mod session;
mod spread;
pub mod traffic;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ferrule_dataplane::spec::SocketAddress;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::case::Kind;
use crate::contender::{ContenderError, Idle};
use crate::generator::RunError;
use crate::load::{MixError, Touch};
use crate::plan::{Against, MethodName, Percent, Plan, Rate};

pub use quantity::quantity;
pub use traffic::{Pattern, Sink};

/// What to measure.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that a person types")]
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// What stands at the two ends of the wire; frames go from the first to the second
    #[arg(long, value_enum, value_name = "KIND,KIND", value_delimiter = ',', default_value = "memif,memif")]
    #[arg(help_heading = "What is sent")]
    ends: Vec<Kind>,
    /// Bytes of a frame, without FCS: 64 to 65549; several are several cases [default: 64,1518, one way and both]
    #[arg(long, value_name = "BYTES", value_delimiter = ',', help_heading = "What is sent")]
    size: Vec<usize>,
    /// A mix of sizes: seven frames of 64, four of 594, one of 1518 bytes
    #[arg(long, help_heading = "What is sent")]
    imix: bool,
    /// Both directions at once
    #[arg(long, help_heading = "What is sent")]
    both: bool,
    /// Flows in each direction: UDP source ports, each with its own sequence numbers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    #[arg(help_heading = "What is sent")]
    flows: u32,
    /// Queues of each end; flows are dealt out to them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    #[arg(help_heading = "What is sent")]
    queues: u16,
    /// What the generator does with the bytes of a frame
    #[arg(long, value_enum, value_name = "HOW", default_value = "stamped", help_heading = "What is sent")]
    touch: Touching,
    /// A trusted wire: descriptors are switched, and frames stay where they are (memif,memif)
    #[arg(long, help_heading = "What is sent")]
    trusted: bool,
    /// All cases of the release report, instead of those above
    #[arg(long, conflicts_with_all = ["ends", "size", "imix", "both", "trusted", "at"])]
    #[arg(help_heading = "What is sent")]
    suite: bool,

    /// How to measure
    #[arg(long, value_enum, value_name = "METHOD", default_value = "saturate", help_heading = "How")]
    method: MethodName,
    /// For `--method fixed`, in each direction: 5M or 500k frames a second, or 10Gbit of a line
    #[arg(long, value_name = "RATE", help_heading = "How")]
    rate: Option<Rate>,
    /// Length of a trial
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = humantime::parse_duration)]
    #[arg(help_heading = "How")]
    time: Duration,
    /// The same is sent for so long before each trial, and not counted
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = humantime::parse_duration)]
    #[arg(help_heading = "How")]
    warm_up: Duration,
    /// Measurements of each program in each case [default: 9, or 3 searches]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "How")]
    rounds: Option<u32>,
    /// Where a search begins, in each direction [default: a little above what goes through]
    #[arg(long, value_name = "RATE", help_heading = "How")]
    max_rate: Option<Rate>,
    /// A search ends when it knows the rate to this share
    #[arg(long, value_name = "PERCENT", default_value = "1%", help_heading = "How")]
    precision: Percent,
    /// The loss that the PDR allows
    #[arg(long, value_name = "PERCENT", default_value = "0.5%", help_heading = "How")]
    loss_goal: Percent,

    /// Run the same work through these programs too, in turn
    #[arg(long, value_enum, value_name = "PROGRAM", value_delimiter = ',', help_heading = "Who")]
    against: Vec<Against>,
    /// The forwarder to start; without it, the one beside this program
    #[arg(long, value_name = "PATH", help_heading = "Who")]
    forwarder: Option<PathBuf>,
    /// Start none: measure a forwarder that runs, between these two sockets of its ends
    #[arg(long, value_name = "SOCKET,SOCKET", value_delimiter = ',', help_heading = "Who")]
    #[arg(conflicts_with_all = ["against", "forwarder"], num_args = 1..=2)]
    at: Vec<SocketAddress>,
    /// What our forwarder's worker does without work: matters below saturation, for latency
    #[arg(long, value_enum, value_name = "HOW", default_value = "adaptive", help_heading = "Who")]
    idle: Idle,
    /// CPUs of the workers [default: the first that may be used]
    #[arg(long, value_name = "CPU", value_delimiter = ',', help_heading = "Who")]
    worker: Vec<usize>,
    /// The generator's CPU [default: the last that may be used]
    #[arg(long, value_name = "CPU", help_heading = "Who")]
    generator: Option<usize>,

    /// A folder for report.json, report.details.json and report.html, or a name for them that ends in .json or .html
    #[arg(long, value_name = "PATH", default_value = "target/bench", help_heading = "Where the results go")]
    report: PathBuf,
}

/// What is done with the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Touching {
    /// Every byte is written, and read at the other end: what two applications would do
    Whole,
    /// Buffers stay filled; the first 64 bytes, with sequence number and time, are written and read
    Stamped,
    /// Descriptors only: the wire alone, and losses are told by counts
    Untouched,
}

impl From<Touching> for Touch {
    fn from(touching: Touching) -> Self {
        match touching {
            Touching::Whole => Self::Whole,
            Touching::Stamped => Self::Stamped,
            Touching::Untouched => Self::Untouched,
        }
    }
}

/// Measures and reports. Signals that end a program end it here too, and nothing stays behind.
pub async fn run(args: &BenchArgs) -> Result<(), BenchError> {
    let plan = Plan::new(args)?;
    let cancel = Arc::new(AtomicBool::new(false));
    let (done, mut outcome) = oneshot::channel();
    let flag = Arc::clone(&cancel);
    // A thread of its own: the programs it starts end with it.
    let work = move || {
        let results = session::run(&plan, &flag).and_then(|results| report::publish(&plan, &results));
        // Nobody waits any more only if this process ends anyway.
        let _ = done.send(results);
    };
    let worker = thread::Builder::new().name("bench".to_owned()).spawn(work)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let result = loop {
        tokio::select! {
            result = &mut outcome => break result,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        cancel.store(true, Relaxed);
    };
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
    // Without a panic the outcome was sent.
    result.unwrap_or(Err(BenchError::Interrupted))
}

/// Why nothing was measured, or not all of it.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The options.
    #[error("{0}")]
    Usage(&'static str),
    /// The sizes.
    #[error(transparent)]
    Mix(#[from] MixError),
    /// A program did not come up.
    #[error(transparent)]
    Contender(#[from] ContenderError),
    /// The generator failed.
    #[error("measure {program}: {source}")]
    Run {
        /// What was measured.
        program: String,
        /// Why not.
        source: RunError,
    },
    /// Nothing came.
    #[error("{program} let no frame through in the case {case}")]
    Silent {
        /// What was measured.
        program: String,
        /// The work.
        case: String,
    },
    /// What came is not what was sent.
    #[error("{program} changed, reordered or repeated {frames} frames in the case {case}")]
    Disorder {
        /// Who.
        program: String,
        /// How many.
        frames: u64,
        /// The work.
        case: String,
    },
    /// Worker and generator would share it.
    #[error("the workers and the generator need a CPU each (see `taskset -p`, --worker and --generator)")]
    OneCpu,
    /// It is not there.
    #[error("this process may not use CPU {0} (see `taskset -p`)")]
    NoCpu(usize),
    /// A system call.
    #[error("pin or stop a program: {0}")]
    System(#[from] nix::errno::Errno),
    /// No case at all.
    #[error("nothing was measured:\n{0}")]
    Nothing(String),
    /// A program or a case is missing from the report.
    #[error("the report is not complete:\n{0}")]
    Incomplete(String),
    /// A signal.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// Files.
    #[error("write the report: {0}")]
    Report(#[from] std::io::Error),
}

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

Frames that find no room in the wire's ring when they are due count as lost, as a NIC would drop them. A program is stopped \
while another has its turn; ratios are those of a round, and medians of the rounds are what is printed. docs/bench.md says more.";
