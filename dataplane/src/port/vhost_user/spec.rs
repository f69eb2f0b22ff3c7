//! What a vhost-user end should be.

use std::fmt;

use crate::spec::{ByteSize, MacAddress, Role, SocketAccess, SocketAddress};

/// A vhost-user end: we are the backend, whoever listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserSpec {
    /// Where the control socket is. An abstract name is one of the forwarder's own namespace.
    pub socket: SocketAddress,
    /// Whether we listen there or connect; the roles of the protocol do not depend on it.
    pub role: Role,
    /// Queue pairs that the frontend may use.
    pub queues: u16,
    /// What is offered to the frontend.
    pub features: VhostFeatures,
    /// The MTU that the guest is told; none: it is told nothing.
    pub mtu: Option<u16>,
    /// The MAC address that the guest is told; none: the frontend knows.
    pub mac: Option<MacAddress>,
    /// Who may connect to a socket that we listen on.
    pub access: SocketAccess,
    /// The most memory that the frontends of this end may make the forwarder populate.
    pub memory: ByteSize,
}

impl VhostUserSpec {
    /// The limit of memory unless told otherwise. A guest's pages are mostly populated by the guest itself.
    pub const MEMORY_DEFAULT: ByteSize = ByteSize::mebibytes(256);

    /// An end with one queue pair that offers everything.
    pub fn new(socket: SocketAddress, role: Role) -> Self {
        Self {
            socket,
            role,
            queues: 1,
            features: VhostFeatures::default(),
            mtu: None,
            mac: None,
            access: SocketAccess::default(),
            memory: Self::MEMORY_DEFAULT,
        }
    }

    /// Takes over what no peer sees.
    pub(crate) fn adopt_unseen(&mut self, newer: &Self) {
        self.memory = newer.memory;
    }
}

impl fmt::Display for VhostUserSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vhost-user {} {}", self.socket, self.role)
    }
}

/// What a vhost-user end offers; all of it, unless something is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a feature that is switched by itself")]
pub struct VhostFeatures {
    /// Rings of the packed layout.
    pub packed: bool,
    /// Buffers are used in their order.
    pub in_order: bool,
    /// A received frame may lie in several buffers.
    pub mrg_rxbuf: bool,
    /// Tables of descriptors.
    pub indirect: bool,
    /// Kicks and interrupts at an index.
    pub event_idx: bool,
    /// Unfinished checksums and large TCP frames, if the other end is one that takes and gives them.
    pub offloads: bool,
}

impl Default for VhostFeatures {
    fn default() -> Self {
        Self { packed: true, in_order: true, mrg_rxbuf: true, indirect: true, event_idx: true, offloads: true }
    }
}
