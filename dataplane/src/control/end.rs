//! One end of a wire: what it is, whether its peer is there, and its rings while no lane has them.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::descriptor_account::DescriptorAccount;
use ferrule_ffi::health::MemoryLost;
use ferrule_ffi::tap::Tap;

use super::disconnect::DisconnectReason;
use super::keys::SocketJobId;
use super::poller::Token;
use super::token_bucket::TokenBucket;
use crate::port::any::LaneEnd;
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::Connection;
use crate::port::memif::layout::Layout;
use crate::port::memif::peer::{ClientHandshake, MemifPeer};
use crate::port::vhost_user::peer::VhostUserPeer;
use crate::status::EndState;

/// One end of a wire that workers join.
pub struct End {
    /// What it is.
    pub kind: EndKind,
    /// Its rings, while no lane has them.
    pub rings: Option<LaneEnd>,
    /// Whether the rings that are there, or that lanes have, are those of the present peer.
    pub present: bool,
    /// Why it was last away.
    pub last_error: Option<String>,
    /// Rings of peers that have gone, to be dropped where nobody waits.
    pub stale: Vec<LaneEnd>,
    /// How often its peers may have lanes recalled. It outlives them, or one that reconnects would have more.
    pub quiesces: TokenBucket,
    /// What the peers that it goes to hold of our descriptors. It outlives them, for the same reason.
    pub descriptors: Arc<DescriptorAccount>,
    /// Its peer has asked too often: it is not listened to until then.
    pub paused_until: Option<Instant>,
    /// The request that its peer has made was counted.
    pub is_counted: bool,
}

/// The kinds of ends, with what control keeps of them.
pub enum EndKind {
    /// One whose peers come to us.
    Server(Option<ConnectedPeer>),
    /// One that goes to its peer.
    Client(ClientState),
    /// A TAP interface, and why it is gone if it is.
    Tap(Arc<Tap>, Option<String>),
}

/// What one that goes to its peer is doing.
pub enum ClientState {
    /// Nothing until then.
    Waiting(Instant),
    /// Reaching its peer's socket, which this job does.
    Connecting(SocketJobId),
    /// In memif's handshake, with its socket's token.
    Handshake(ClientHandshake, Token),
    /// There.
    Connected(ConnectedPeer),
}

/// A peer that is there.
pub struct ConnectedPeer {
    /// The peer itself.
    pub peer: Peer,
    /// What it calls itself, or what the kernel calls it.
    pub name: String,
    /// The token of its socket.
    pub token: Token,
}

/// The kinds of peers, each with the socket whose end is the connection's end.
pub enum Peer {
    /// One that speaks memif and has finished its handshake.
    Memif(Box<MemifPeer>),
    /// One that speaks vhost-user, whatever it has said so far.
    VhostUser(Box<VhostUserPeer>),
}

impl Peer {
    /// Why its memory cannot be used any more, if so.
    pub fn memory_lost(&self) -> Option<MemoryLost> {
        match self {
            Self::Memif(peer) => peer.layout.memory_lost(),
            Self::VhostUser(peer) => peer.session.memory_lost(),
        }
    }

    /// Whether others may wait to take its place.
    pub fn is_frontend(&self) -> bool {
        match self {
            Self::Memif(_) => false,
            Self::VhostUser(_) => true,
        }
    }

    /// Tells it why the connection ends, if its protocol has words for that.
    pub fn send_disconnect(&self, reason: &DisconnectReason) {
        match self {
            Self::Memif(peer) => peer.channel.send_disconnect(reason),
            Self::VhostUser(_) => {}
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Memif(peer) => peer.channel.as_fd(),
            Self::VhostUser(peer) => peer.channel.as_fd(),
        }
    }
}

/// What is left of a peer, or of a try to reach one.
pub enum Former {
    /// One that was connected.
    Peer(ConnectedPeer),
    /// One that was in mid-handshake.
    Handshake(ClientHandshake, Token),
}

/// What an end is due for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// To connect.
    Connect,
    /// To give its peer up, which is too slow.
    GiveUp,
    /// To go on with requests that came too fast.
    Resume,
}

impl End {
    /// The end of one that listens, without a peer.
    pub fn server() -> Self {
        Self::new(EndKind::Server(None))
    }

    /// The end of one that connects, to be connected at once.
    pub fn client() -> Self {
        Self::new(EndKind::Client(ClientState::Waiting(Instant::now())))
    }

    /// A kernel interface's end.
    pub fn tap(tap: Tap) -> Self {
        let tap = Arc::new(tap);
        let rings = LaneEnd::tap(&tap);
        Self { rings: Some(rings), present: true, ..Self::new(EndKind::Tap(tap, None)) }
    }

    fn new(kind: EndKind) -> Self {
        let quiesces = TokenBucket::new(QUIESCES_BURST, QUIESCES_INTERVAL);
        Self {
            kind,
            rings: None,
            present: false,
            last_error: None,
            stale: Vec::new(),
            quiesces,
            descriptors: Arc::default(),
            paused_until: None,
            is_counted: false,
        }
    }

    /// The peer that is there.
    pub fn peer(&self) -> Option<&ConnectedPeer> {
        match &self.kind {
            EndKind::Server(peer) => peer.as_ref(),
            EndKind::Client(ClientState::Connected(peer)) => Some(peer),
            EndKind::Client(ClientState::Waiting(_) | ClientState::Connecting(_) | ClientState::Handshake(..))
            | EndKind::Tap(..) => None,
        }
    }

    /// The same, to bring it on.
    pub fn peer_mut(&mut self) -> Option<&mut ConnectedPeer> {
        match &mut self.kind {
            EndKind::Server(peer) => peer.as_mut(),
            EndKind::Client(ClientState::Connected(peer)) => Some(peer),
            EndKind::Client(ClientState::Waiting(_) | ClientState::Connecting(_) | ClientState::Handshake(..))
            | EndKind::Tap(..) => None,
        }
    }

    /// The shared memory of a memif peer that is there.
    pub fn layout(&self) -> Option<&Layout> {
        match &self.peer()?.peer {
            Peer::Memif(peer) => Some(&peer.layout),
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

    /// Whether its peer wants to change rings as soon as no lane has them.
    pub fn has_request(&self) -> bool {
        self.paused_until.is_none() && self.frontend().is_some_and(|frontend| frontend.held.is_some())
    }

    /// Whether anybody is there.
    pub fn has_peer(&self) -> bool {
        matches!(self.kind, EndKind::Tap(_, None)) || self.peer().is_some()
    }

    /// Whether it is gone and cannot come back by itself.
    pub fn is_failed(&self) -> bool {
        matches!(self.kind, EndKind::Tap(_, Some(_)))
    }

    /// The kernel interface, if it is one that is there.
    pub fn interface(&self) -> Option<&Arc<Tap>> {
        match &self.kind {
            EndKind::Tap(tap, None) => Some(tap),
            EndKind::Tap(_, Some(_)) | EndKind::Server(_) | EndKind::Client(_) => None,
        }
    }

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

    /// The frontend has described its rings.
    pub fn set_rings(&mut self, rings: LaneEnd) {
        self.rings = Some(rings);
        self.present = true;
    }

    /// The rings, which are to be described anew; `None`: they are not here.
    pub fn park(&mut self) -> Option<LaneEnd> {
        let rings = self.rings.take()?;
        self.present = false;
        Some(rings)
    }

    fn set_peer(&mut self, peer: ConnectedPeer) {
        self.kind = match self.kind {
            EndKind::Server(_) => EndKind::Server(Some(peer)),
            EndKind::Client(_) => EndKind::Client(ClientState::Connected(peer)),
            EndKind::Tap(..) => unreachable!("no peer connects to a kernel interface"),
        };
        self.last_error = None;
    }

    /// The peer, or the try to reach one, is gone. What is left of it comes back, to be closed.
    pub fn disconnect(&mut self, reason: String) -> Option<Former> {
        self.stale.extend(self.rings.take());
        self.present = false;
        self.paused_until = None;
        self.is_counted = false;
        self.last_error = Some(reason.clone());
        match &mut self.kind {
            EndKind::Server(peer) => peer.take().map(Former::Peer),
            EndKind::Client(state) => {
                match std::mem::replace(state, ClientState::Waiting(Instant::now() + RECONNECT)) {
                    ClientState::Connected(peer) => Some(Former::Peer(peer)),
                    ClientState::Handshake(handshake, token) => Some(Former::Handshake(handshake, token)),
                    ClientState::Waiting(_) | ClientState::Connecting(_) => None,
                }
            }
            EndKind::Tap(_, gone) => {
                gone.get_or_insert(reason);
                None
            }
        }
    }

    /// A client that is not connected tries at once.
    pub fn connect_now(&mut self) {
        if let EndKind::Client(ClientState::Waiting(until)) = &mut self.kind {
            *until = Instant::now();
        }
    }

    /// The job that reaches its peer's socket.
    pub fn connecting(&self) -> Option<SocketJobId> {
        match self.kind {
            EndKind::Client(ClientState::Connecting(job)) => Some(job),
            EndKind::Client(_) | EndKind::Server(_) | EndKind::Tap(..) => None,
        }
    }

    /// When control has to do something about it, and what.
    pub fn deadline(&self) -> Option<(Instant, Due)> {
        match &self.kind {
            EndKind::Client(ClientState::Waiting(until)) => return Some((*until, Due::Connect)),
            EndKind::Client(ClientState::Handshake(handshake, _)) => return Some((handshake.deadline, Due::GiveUp)),
            EndKind::Client(ClientState::Connecting(_) | ClientState::Connected(_))
            | EndKind::Server(_)
            | EndKind::Tap(..) => {}
        }
        let resume = self.paused_until.map(|at| (at, Due::Resume));
        resume.or_else(|| Some((self.frontend()?.silent_until?, Due::GiveUp)))
    }

    /// What readers see of it.
    pub fn state(&self) -> EndState {
        let last_error = self.last_error.clone();
        match &self.kind {
            EndKind::Server(None) => EndState::Listening { last_error },
            EndKind::Client(ClientState::Waiting(_) | ClientState::Connecting(_) | ClientState::Handshake(..)) => {
                EndState::Connecting { last_error }
            }
            EndKind::Server(Some(peer)) | EndKind::Client(ClientState::Connected(peer)) => {
                let peer = peer.name.clone();
                if self.present { EndState::Connected { peer } } else { EndState::Starting { peer } }
            }
            EndKind::Tap(_, None) => EndState::Up,
            EndKind::Tap(_, Some(reason)) => EndState::Failed { reason: reason.clone() },
        }
    }
}

/// How long a client waits before it tries again.
const RECONNECT: Duration = Duration::from_millis(200);
/// Requests that have lanes recalled, at once: as many as a driver of all queue pairs makes while it starts, twice.
const QUIESCES_BURST: u32 = 512;
/// And in the long run: each costs a worker about 10 us, and this thread some more.
const QUIESCES_INTERVAL: Duration = Duration::from_millis(10);
