//! Why a request is refused, and why a conversation ends.

use thiserror::Error;

use super::table::TableError;
use crate::port::vhost_user::channel::VhostUserChannelError;
use crate::port::vhost_user::message::{LogArea, VhostUserMessageError};
use crate::port::vhost_user::vring::VringError;

/// Why a request is refused.
#[derive(Debug, Error)]
pub enum RequestError {
    /// It belongs to a feature that was not chosen.
    #[error("{request} without the protocol feature {feature}")]
    NotNegotiated {
        /// The request.
        request: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// Nothing that a net device has, or that we offer.
    #[error("{request}, which this backend has no use for")]
    Unsupported {
        /// The request.
        request: &'static str,
    },
    /// Too many descriptors, or too few.
    #[error("{count} descriptors came with {request}, which is not what belongs to it")]
    Files {
        /// The request.
        request: &'static str,
        /// How many.
        count: usize,
    },
    /// Features that were not offered.
    #[error("feature bits {bits:#x} were chosen and not offered")]
    Unoffered {
        /// Those.
        bits: u64,
    },
    /// Features change only while all rings are stopped, but for logging.
    #[error("feature bits {bits:#x} change while rings are started")]
    FeaturesInUse {
        /// Those.
        bits: u64,
    },
    /// No such ring.
    #[error("vring {index}: there are {rings}")]
    Index {
        /// What was asked for.
        index: u32,
        /// How many there are.
        rings: usize,
    },
    /// Its size and base stand while it is started.
    #[error("vring {index}: it is started; GET_VRING_BASE stops it")]
    Running {
        /// The ring.
        index: u32,
    },
    /// A pipe or whatever else.
    #[error("vring {index}: the descriptor is not an eventfd")]
    NotAnEventfd {
        /// The ring.
        index: u32,
    },
    /// A ring that cannot be.
    #[error(transparent)]
    Vring(#[from] VringError),
    /// Memory that does not do.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A log that does not do.
    #[error("log {} bytes from {:#x} on: {problem}", .area.size, .area.offset)]
    Log {
        /// Where it should be.
        area: LogArea,
        /// Why not.
        problem: String,
    },
    /// Memory for what is in flight that does not do.
    #[error("memory for what is in flight: {0}")]
    Inflight(String),
    /// An MTU that no link has.
    #[error("an MTU of {0} bytes; {MTU_MIN} to {MTU_MAX} are possible")]
    Mtu(u64),
    /// A status of more than 8 bits.
    #[error("device status {0:#x}")]
    Status(u64),
    /// Nothing in the configuration is the driver's to write.
    #[error("SET_CONFIG: the configuration of a net device is read-only")]
    ReadOnly,
}

/// Why a conversation ends.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The channel.
    #[error(transparent)]
    Channel(#[from] VhostUserChannelError),
    /// Not a message.
    #[error(transparent)]
    Message(#[from] VhostUserMessageError),
    /// A request that was refused, and no reply was wanted that would say so.
    #[error("refused: {0}")]
    Request(#[from] RequestError),
    /// A ring that lies where it cannot.
    #[error(transparent)]
    Vring(#[from] VringError),
    /// Descriptors before anything else.
    #[error("descriptors came before the first message was whole")]
    FilesFirst,
    /// A reply to nothing.
    #[error("a reply came where a request was expected")]
    NotAsked,
}

/// The smallest MTU (virtio 1.2, 5.1.4.1).
pub(super) const MTU_MIN: u64 = 68;
pub(super) const MTU_MAX: u64 = 65_535;
