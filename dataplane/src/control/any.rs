//! The kinds of peers, joined. This is the one file of control that names them all: each match here leads to the file of
//! a kind, `memif.rs` or `vhost_user.rs`. What has no peer is a [device](super::device), whatever its kind.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ferrule_ffi::health::MemoryLost;
use ferrule_ffi::unix::UnixSocket;

use super::disconnect::DisconnectReason;
use super::end::{ConnectedPeer, End};
use super::keys::{EndId, ListenerKey};
use super::poller::Token;
use super::state::State;
use crate::port::any::LaneEnd;
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::Connection;
use crate::port::memif::peer::MemifPeer;
use crate::port::vhost_user::peer::VhostUserPeer;
use crate::spec::PeerProtocol;

/// What is asked of a peer, whatever it speaks.
pub trait PeerConnection: AsFd {
    /// Why its memory cannot be used any more, if so.
    fn memory_lost(&self) -> Option<MemoryLost>;

    /// Whether others may wait to take its place.
    fn has_queue(&self) -> bool;

    /// Tells it why the connection ends, if its protocol has words for that.
    fn send_disconnect(&self, reason: &DisconnectReason);
}

/// A peer of any kind, with the socket whose end is the connection's end.
pub enum Peer {
    /// One that speaks memif and has finished its handshake.
    Memif(Box<MemifPeer>),
    /// One that speaks vhost-user, whatever it has said so far.
    VhostUser(Box<VhostUserPeer>),
}

impl Peer {
    /// For what is asked of all of them.
    pub fn as_dyn(&self) -> &dyn PeerConnection {
        match self {
            Self::Memif(peer) => &**peer,
            Self::VhostUser(peer) => &**peer,
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.as_dyn().as_fd()
    }
}

impl End {
    /// A memif peer has come, with its rings.
    pub fn connect_memif(&mut self, channel: MemifChannel, connection: Connection, token: Token) {
        let Connection { peer: name, layout, queues, .. } = connection;
        let peer = Peer::Memif(Box::new(MemifPeer { channel, layout }));
        self.set_peer(ConnectedPeer { peer, name, token });
        self.rings = Some(LaneEnd::memif(queues));
        self.present = true;
    }

    /// A frontend has come; its rings are there once it has described them.
    pub fn connect_frontend(&mut self, frontend: VhostUserPeer, name: String, token: Token) {
        self.set_peer(ConnectedPeer { peer: Peer::VhostUser(Box::new(frontend)), name, token });
    }

    /// The peer that is there, if it speaks memif.
    pub fn memif(&self) -> Option<&MemifPeer> {
        match &self.peer()?.peer {
            Peer::Memif(peer) => Some(peer),
            Peer::VhostUser(_) => None,
        }
    }

    /// The peer that is there, if it speaks vhost-user.
    pub fn frontend(&self) -> Option<&VhostUserPeer> {
        match &self.peer()?.peer {
            Peer::VhostUser(peer) => Some(peer),
            Peer::Memif(_) => None,
        }
    }

    /// The same, to bring it on.
    pub fn frontend_mut(&mut self) -> Option<&mut VhostUserPeer> {
        match &mut self.peer_mut()?.peer {
            Peer::VhostUser(peer) => Some(peer),
            Peer::Memif(_) => None,
        }
    }
}

impl State {
    /// The socket of an end has something to say: an answer in a handshake, a goodbye, or whatever a frontend wants.
    pub(super) fn hear_peer(&mut self, id: EndId) {
        match self.protocol(id) {
            Some(PeerProtocol::Memif) => self.hear_memif(id),
            Some(PeerProtocol::VhostUser) => self.serve_frontend(id),
            None => {}
        }
    }

    /// A client end is connected to a socket: the conversation begins.
    pub(super) fn greet(&mut self, id: EndId, socket: UnixSocket) {
        match self.protocol(id) {
            Some(PeerProtocol::Memif) => self.greet_server(id, socket.into()),
            Some(PeerProtocol::VhostUser) => self.greet_frontend(id, socket.into()),
            None => {}
        }
    }

    /// A peer has come to a listening socket, whose end is not known yet.
    pub(super) fn welcome(&mut self, key: ListenerKey, protocol: PeerProtocol, socket: UnixSocket) -> io::Result<()> {
        match protocol {
            PeerProtocol::Memif => self.begin_handshake(key, socket),
            PeerProtocol::VhostUser => self.add_pending_frontend(key, socket),
        }
    }

    fn protocol(&self, id: EndId) -> Option<PeerProtocol> {
        Some(self.wires.get(id.wire)?.spec.ends[id.end].socket()?.protocol)
    }
}
