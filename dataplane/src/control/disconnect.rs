//! Why an end and its peer part.

use thiserror::Error;

use crate::port::Fault;
use crate::port::memif::handshake as memif;
use crate::port::vhost_user::session::error as vhost;

/// What ends a connection, or a try at one.
#[derive(Debug, Error)]
pub enum DisconnectReason {
    /// The wire went; not the peer's fault.
    #[error("the wire was removed")]
    Removed,
    /// The peer took too long to say what it wants.
    #[error("the handshake took longer than {0} s")]
    TooSlow(u64),
    /// More clients in mid-handshake than a socket serves: one has to go.
    #[error("too many unfinished handshakes on this socket")]
    Crowded,
    /// Somebody else is the peer of its end.
    #[error("another frontend is connected")]
    Occupied,
    /// Others came and went faster than what they gave us is dropped.
    #[error("memory and descriptors of former frontends are still being released; try again")]
    Releasing,
    /// It broke the rules of the rings.
    #[error("{0}")]
    Fault(Fault),
    /// It closed its socket, which nobody had noticed.
    #[error("the peer closed its socket")]
    Closed,
    /// A device says that it is lost.
    #[error("{0}")]
    Device(String),
    /// What memif says.
    #[error(transparent)]
    Memif(#[from] memif::HandshakeError),
    /// What vhost-user says.
    #[error(transparent)]
    Vhost(#[from] vhost::SessionError),
}

impl DisconnectReason {
    /// Whether there is somebody left to tell.
    pub fn should_tell_peer(&self) -> bool {
        match self {
            Self::Closed => false,
            Self::Memif(refusal) => refusal.should_tell_peer(),
            _ => true,
        }
    }
}
