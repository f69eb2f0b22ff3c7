//! Where a socket listens, and what it is like there.

use ferrule_ffi::unix::Kind;

use crate::spec::{EndSpec, NetNs, Role, SocketAccess, SocketAddress};

/// Where a socket listens: its address and, if that is abstract, its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    /// The address.
    pub address: SocketAddress,
    /// Whose abstract names are meant; none: the forwarder's own.
    pub netns: Option<NetNs>,
}

impl ListenAddress {
    /// Where an end listens; `None`: it does not.
    pub fn of(end: &EndSpec) -> Option<Self> {
        let (address, netns) = match end {
            EndSpec::Memif(spec) if spec.role == Role::Server => (&spec.socket, spec.netns.as_ref()),
            EndSpec::VhostUser(spec) if spec.role == Role::Server => (&spec.socket, None),
            EndSpec::Memif(_) | EndSpec::VhostUser(_) | EndSpec::Kernel(_) => return None,
        };
        let netns = netns.filter(|_| matches!(address, SocketAddress::Abstract(_))).cloned();
        Some(Self { address: address.clone(), netns })
    }
}

/// What a listening socket is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenKind {
    /// Packets or a stream.
    pub kind: Kind,
    /// Who may connect to its file.
    pub access: SocketAccess,
}

impl ListenKind {
    /// What an end that listens wants.
    pub fn of(end: &EndSpec) -> Self {
        match end {
            EndSpec::Memif(spec) => Self { kind: Kind::SeqPacket, access: spec.access.clone() },
            EndSpec::VhostUser(spec) => Self { kind: Kind::Stream, access: spec.access.clone() },
            EndSpec::Kernel(_) => Self { kind: Kind::Stream, access: SocketAccess::default() },
        }
    }
}
