//! Why nothing was measured, or not all of it.

use thiserror::Error;

use crate::dut::DutError;
use crate::generator::RunError;
use crate::load::MixError;

/// Why nothing was measured, or not all of it.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The options.
    #[error("{0}")]
    Usage(String),
    /// The sizes.
    #[error(transparent)]
    Mix(#[from] MixError),
    /// A program did not come up.
    #[error(transparent)]
    Dut(#[from] DutError),
    /// The generator failed.
    #[error("measure {program}: {source}")]
    Run {
        /// What was measured.
        program: String,
        /// Why not.
        source: RunError,
    },
    /// Nothing came.
    #[error("no frame came through {program} in the case {case}")]
    NoFrames {
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
    /// What the doctor found.
    #[error("{errors} errors and {warnings} warnings")]
    Unfit {
        /// The bench does not run, or its figures mean nothing.
        errors: usize,
        /// Its figures are not what the machine could have.
        warnings: usize,
    },
    /// Files.
    #[error("write the report: {0}")]
    Report(#[from] std::io::Error),
}

impl BenchError {
    /// Whether what was asked for makes no sense: nothing was tried.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::Mix(_) | Self::OneCpu | Self::NoCpu(_))
    }

    /// What the process ends with: 2 for what makes no sense, 3 for warnings, 1 for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unfit { errors: 0, .. } => 3,
            error if error.is_usage() => 2,
            _ => 1,
        }
    }
}
