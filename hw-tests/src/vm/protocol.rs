//! What a host and its guest say to each other: a line of JSON a message, over a virtio-serial port.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The port's name, which the guest finds under `/sys/class/virtio-ports`.
pub const PORT: &str = "ferrule";

/// What the host wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Start a program.
    Start {
        /// Names it from here on.
        job: u32,
        /// The program's path and its arguments.
        program: Vec<String>,
        /// After so long it is killed.
        timeout: Duration,
    },
    /// Kill it.
    Kill {
        /// Which.
        job: u32,
    },
}

/// What the guest tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromGuest {
    /// It has booted.
    Ready,
    /// A program printed a line, to its standard output or error.
    Line {
        /// Which program.
        job: u32,
        /// The line, without its end.
        text: String,
    },
    /// A program has ended.
    Ended {
        /// Which program.
        job: u32,
        /// How.
        end: End,
    },
}

/// How a program in a guest came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
    /// Its time was over, and it was killed.
    TimedOut,
    /// It was killed and did not go: it waits in the kernel for something that does not come.
    Stuck,
    /// Its machine went first.
    MachineGone,
}
