//! What is asked of the specification of an end, whatever its kind. Each kind answers in `port/<kind>/port_spec.rs`.

use std::fmt;

use ferrule_ffi::unix::Kind;

use super::{FieldError, Mode, NetNs, Role, SocketAccess, SocketAddress};
use crate::port::device::DeviceSpec;

/// The questions.
pub(crate) trait PortSpec: fmt::Display {
    /// One word for its kind, as in settings and metrics.
    fn kind(&self) -> &'static str;

    /// Everything that is wrong with it on its own.
    fn check(&self) -> Vec<FieldError>;

    /// What it takes for itself; none: nothing that another end could take.
    fn identity(&self) -> Option<EndIdentity>;

    /// Where its frames come from and go to.
    fn attachment(&self) -> Attachment<'_>;

    /// What its frames begin with.
    fn mode(&self) -> Mode {
        Mode::Ethernet
    }

    /// The most memory, in bytes, that its peers may make us populate.
    fn memory_limit(&self) -> u64 {
        0
    }

    /// Whether its frames may have checksums and segments that are left to whoever gets them.
    fn takes_offloads(&self) -> bool {
        false
    }

    /// Its role in a trusted wire, in which the memory of a server's peer is lent to a client's.
    fn lending_role(&self) -> Option<Role> {
        None
    }
}

/// What an end takes for itself: two ends of which it is the same cannot both be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndIdentity {
    /// The namespace that the words are meant in; none: the forwarder's own, or they mean the same everywhere.
    pub netns: Option<NetNs>,
    /// The thing, as in "both ends are ...".
    pub words: String,
}

/// Where the frames of an end come from and go to.
pub(crate) enum Attachment<'a> {
    /// A peer, which is met at a socket, comes and goes, and brings its rings.
    Socket(PeerSocket<'a>),
    /// A device, which we make.
    Device(&'a dyn DeviceSpec),
}

/// The socket at which an end meets its peers.
pub(crate) struct PeerSocket<'a> {
    /// Where it is.
    pub address: &'a SocketAddress,
    /// Whose abstract names are meant; none: the forwarder's own.
    pub netns: Option<&'a NetNs>,
    /// Whether we listen there or connect.
    pub role: Role,
    /// Who may connect to a socket that we listen on.
    pub access: &'a SocketAccess,
    /// What is spoken there.
    pub protocol: PeerProtocol,
    /// What tells its peers from those of other ends at the same socket; none: nothing does, and it has the socket for
    /// itself.
    pub id: Option<u32>,
}

/// What peers speak at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerProtocol {
    /// memif 2.0.
    Memif,
    /// vhost-user.
    VhostUser,
}

impl PeerProtocol {
    /// What its sockets carry.
    pub fn socket_kind(self) -> Kind {
        match self {
            Self::Memif => Kind::SeqPacket,
            Self::VhostUser => Kind::Stream,
        }
    }
}
