//! What callers of the engine are told.

use thiserror::Error;

use crate::spec::{FieldError, end_name};

/// What became of a wire that was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// There was none of that name, and now there is.
    Made,
    /// What no peer sees was changed; peers and counters stay.
    Updated,
    /// It was removed and made again; its counters go on.
    Remade,
    /// An interface that was gone was made again; the other end kept its peer.
    Mended,
    /// It was there, just so.
    Unchanged,
}

impl Applied {
    /// In a word, for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Updated => "updated",
            Self::Remade => "made anew",
            Self::Mended => "repaired",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Why the engine could not do what was asked.
#[derive(Clone, Debug, Error)]
pub enum EngineError {
    /// The specification contradicts itself.
    #[error("wire `{wire}`: {}", list(.errors))]
    Spec {
        /// The wire's name.
        wire: String,
        /// Everything that is wrong.
        errors: Vec<FieldError>,
    },
    /// There is a wire of that name.
    #[error("wire `{0}` exists already")]
    NameTaken(String),
    /// There is no wire of that name.
    #[error("there is no wire `{0}`")]
    NoSuchWire(String),
    /// Something outside said no: the message names what, where, why and the cure.
    #[error("wire `{wire}`: end {}: {problem}", end_name(*end))]
    End {
        /// The wire's name.
        wire: String,
        /// Which end: 0, shown as A, or 1, shown as B.
        end: usize,
        /// What was tried, on what, why not, and what to do.
        problem: String,
    },
    /// Copies of its frames are not to be had.
    #[error("wire `{wire}` cannot be traced: {problem}")]
    NotTraced {
        /// The wire's name.
        wire: String,
        /// Why not, and what to do.
        problem: &'static str,
    },
    /// Somebody removed it, or wanted another one in its place, before it was made.
    #[error("wire `{0}` was removed or changed by somebody else before it was made")]
    Cancelled(String),
    /// It takes longer than anybody should wait.
    #[error("wire `{0}` is still being made: a file system or the kernel does not answer; it goes on")]
    StillMaking(String),
    /// It takes longer than anybody should wait.
    #[error("wire `{0}` is still being removed: a worker or the kernel is busy; it goes on")]
    StillRemoving(String),
    /// All wires are being removed.
    #[error("the forwarder is draining; ask its successor")]
    Draining,
    /// The control thread is not there any more.
    #[error("the engine has ended: {0}")]
    Ended(String),
    /// The workers could not be started.
    #[error("start the workers: {0}")]
    Start(String),
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
