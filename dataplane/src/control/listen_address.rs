//! Where a socket listens, and what it is like there.

use ferrule_ffi::unix::Kind;

use crate::spec::{EndSpec, NetNs, PeerSocket, Role, SocketAccess, SocketAddress};

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
        let socket = end.socket().filter(|socket| socket.role == Role::Server)?;
        let netns = socket.netns.filter(|_| matches!(socket.address, SocketAddress::Abstract(_))).cloned();
        Some(Self { address: socket.address.clone(), netns })
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
    /// What an end wants that listens there.
    pub(super) fn of(socket: &PeerSocket<'_>) -> Self {
        Self { kind: socket.protocol.socket_kind(), access: socket.access.clone() }
    }
}
