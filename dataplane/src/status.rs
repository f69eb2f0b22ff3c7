//! What a wire is doing, as data: snapshots that [`Engine`](crate::Engine) hands out.

use std::time::Duration;

pub use crate::port::device_status::{DeviceStatus, LinkState};
use crate::spec::WireSpec;
pub use crate::traffic::{DropReason, Traffic};

/// One wire as it stood when it was asked for.
#[derive(Clone, Debug)]
pub struct WireStatus {
    /// What was asked for.
    pub spec: WireSpec,
    /// How often the specification of this wire has changed: 1 for one that was made once.
    pub generation: u64,
    /// The state of each end, in the order of `spec.ends`.
    pub ends: [EndState; 2],
    /// What the devices among them say of themselves.
    pub devices: [Option<DeviceStatus>; 2],
    /// Frames from end 0 to end 1, and from end 1 to end 0.
    pub directions: [Traffic; 2],
    /// How frames cross.
    pub crossing: Crossing,
    /// The queues that are joined now: 0 while an end is away. A kernel to kernel wire counts as one.
    pub queues: usize,
    /// Why frames cannot cross, or not by all queues, although both ends are there. It is tried again.
    pub problem: Option<String>,
}

impl WireStatus {
    /// A wire that could not be made.
    pub fn failed(spec: WireSpec, reason: &str) -> Self {
        let end = EndState::Failed { reason: reason.to_owned() };
        Self {
            spec,
            generation: 0,
            ends: [end.clone(), end],
            devices: [None, None],
            directions: <_>::default(),
            crossing: Crossing::Copied,
            queues: 0,
            problem: None,
        }
    }

    /// Whether frames can cross.
    pub fn is_up(&self) -> bool {
        self.queues > 0
    }

    /// Whether an end is gone, or cannot be made.
    pub fn has_failed(&self) -> bool {
        self.ends.iter().any(|end| matches!(end, EndState::Failed { .. }))
    }
}

/// One worker as it stood when it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerStatus {
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// Queues that it serves.
    pub queues: usize,
    /// Time spent on moving frames, and not on looking for some, since it was started.
    pub busy: Duration,
}

/// How frames cross a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// In one copy, or, between two kernel ends, by the kernel.
    Copied,
    /// Not at all: the peers of a trusted wire share the memory of one of them, and descriptors cross.
    Switched,
    /// In one copy, although the wire is trusted.
    CopiedThough {
        /// Why memory cannot be shared.
        reason: String,
    },
}

/// What one end is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndState {
    /// One that listens, without a peer.
    Listening {
        /// Why the last peer left, or was refused.
        last_error: Option<String>,
    },
    /// One that connects and has not reached its peer.
    Connecting {
        /// Why the last try failed, or why the connection ended.
        last_error: Option<String>,
    },
    /// A vhost-user frontend is there, whose driver does not run its rings yet.
    Starting {
        /// The frontend's process.
        peer: String,
    },
    /// A peer is there, with its rings.
    Connected {
        /// The name that the peer gave, or that of its process.
        peer: String,
    },
    /// A device that exists: a kernel interface, or a port of another crate.
    Up,
    /// A device that is gone, and is made again as soon as that is possible.
    Lost {
        /// Why it is gone, or why it could not be made again.
        reason: String,
    },
    /// Being made: the device or the listening socket is not there yet.
    Making,
    /// Being removed.
    Removing,
    /// An end that cannot come back by itself.
    Failed {
        /// Why.
        reason: String,
    },
}

impl EndState {
    /// One word for a table: `listening`, `connecting`, `starting`, `connected`, `up`, `lost`, `making`, `removing` or `failed`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Listening { .. } => "listening",
            Self::Connecting { .. } => "connecting",
            Self::Starting { .. } => "starting",
            Self::Connected { .. } => "connected",
            Self::Up => "up",
            Self::Lost { .. } => "lost",
            Self::Making => "making",
            Self::Removing => "removing",
            Self::Failed { .. } => "failed",
        }
    }
}
