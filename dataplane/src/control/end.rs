//! One end of a wire: what it is, whether its peer or device is there, and its rings while no lane has them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::descriptor_account::DescriptorAccount;

use super::any::Peer;
use super::device::{DeviceCounters, DeviceEnd};
use super::done::NewDevice;
use super::keys::SocketJobId;
use super::poller::Token;
use super::token_bucket::TokenBucket;
use crate::port::any::LaneEnd;
use crate::port::device::DeviceSpec;
use crate::port::memif::peer::ClientHandshake;
use crate::status::EndState;

/// One end of a wire that workers join.
pub struct End {
    /// Its rings, while no lane has them.
    pub rings: Option<LaneEnd>,
    /// Rings of peers that have gone, or of its device that is lost, to be dropped where nobody waits. Like `rings`, they
    /// are dropped before the device.
    pub stale: Vec<LaneEnd>,
    /// What it is.
    pub kind: EndKind,
    /// Whether the rings that are there, or that lanes have, are those of the present peer.
    pub present: bool,
    /// Why it was last away.
    pub last_error: Option<String>,
    /// The last such reason that the log tells, since somebody was there.
    pub logged: Option<String>,
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
    /// One without a peer, which we make.
    Device(DeviceEnd),
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
    /// To make its device again.
    Make,
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

    /// The end of a device that has just been made; `carried`: what those of a former wire have counted.
    pub(super) fn device(spec: Arc<dyn DeviceSpec>, made: NewDevice, carried: DeviceCounters) -> Self {
        let (device, rings) = DeviceEnd::new(spec, made, carried);
        Self { rings: Some(rings), present: true, ..Self::new(EndKind::Device(device)) }
    }

    fn new(kind: EndKind) -> Self {
        let quiesces = TokenBucket::new(QUIESCES_BURST, QUIESCES_INTERVAL);
        Self {
            rings: None,
            stale: Vec::new(),
            kind,
            present: false,
            last_error: None,
            logged: None,
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
            | EndKind::Device(_) => None,
        }
    }

    /// The same, to bring it on.
    pub fn peer_mut(&mut self) -> Option<&mut ConnectedPeer> {
        match &mut self.kind {
            EndKind::Server(peer) => peer.as_mut(),
            EndKind::Client(ClientState::Connected(peer)) => Some(peer),
            EndKind::Client(ClientState::Waiting(_) | ClientState::Connecting(_) | ClientState::Handshake(..))
            | EndKind::Device(_) => None,
        }
    }

    /// Whether its peer wants to change rings as soon as no lane has them.
    pub fn has_request(&self) -> bool {
        self.paused_until.is_none() && self.frontend().is_some_and(|frontend| frontend.held.is_some())
    }

    /// The device, if it has one.
    pub fn as_device(&self) -> Option<&DeviceEnd> {
        match &self.kind {
            EndKind::Device(device) => Some(device),
            EndKind::Server(_) | EndKind::Client(_) => None,
        }
    }

    /// Whether frames can leave by it, as far as anybody knows.
    pub fn has_link(&self) -> bool {
        self.as_device().is_none_or(DeviceEnd::has_link)
    }

    /// Whether a job makes or closes its device.
    pub fn is_busy(&self) -> bool {
        self.as_device().is_some_and(DeviceEnd::is_busy)
    }

    /// Its device is not wanted any more.
    pub fn cancel_device(&mut self) {
        match &mut self.kind {
            EndKind::Device(device) => device.cancel(),
            EndKind::Server(_) | EndKind::Client(_) => {}
        }
    }

    /// Whether it is gone and cannot come back by itself.
    pub fn is_failed(&self) -> bool {
        self.as_device().is_some_and(DeviceEnd::is_failed)
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

    /// Somebody has come.
    pub fn set_peer(&mut self, peer: ConnectedPeer) {
        self.kind = match self.kind {
            EndKind::Server(_) => EndKind::Server(Some(peer)),
            EndKind::Client(_) => EndKind::Client(ClientState::Connected(peer)),
            EndKind::Device(_) => unreachable!("no peer connects to a device"),
        };
        (self.last_error, self.logged) = (None, None);
    }

    /// The peer, or the try to reach one, is gone. What is left of it comes back, to be closed.
    pub fn disconnect(&mut self, reason: String) -> Option<Former> {
        self.stale.extend(self.rings.take());
        self.present = false;
        self.paused_until = None;
        self.is_counted = false;
        self.last_error = Some(reason);
        match &mut self.kind {
            EndKind::Server(peer) => peer.take().map(Former::Peer),
            EndKind::Client(state) => {
                match std::mem::replace(state, ClientState::Waiting(Instant::now() + RECONNECT)) {
                    ClientState::Connected(peer) => Some(Former::Peer(peer)),
                    ClientState::Handshake(handshake, token) => Some(Former::Handshake(handshake, token)),
                    ClientState::Waiting(_) | ClientState::Connecting(_) => None,
                }
            }
            EndKind::Device(device) => {
                device.lose();
                None
            }
        }
    }

    /// Its device is there again, or cannot be made.
    pub(super) fn set_device(&mut self, made: Result<NewDevice, String>) -> Result<(), String> {
        let EndKind::Device(device) = &mut self.kind else { return Ok(()) };
        match made {
            Ok(made) => {
                self.rings = Some(device.set(made));
                self.present = true;
                (self.last_error, self.logged) = (None, None);
                Ok(())
            }
            Err(problem) => {
                device.wait();
                Err(problem)
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
            EndKind::Client(_) | EndKind::Server(_) | EndKind::Device(_) => None,
        }
    }

    /// When control has to do something about it, and what.
    pub fn deadline(&self) -> Option<(Instant, Due)> {
        match &self.kind {
            EndKind::Client(ClientState::Waiting(until)) => return Some((*until, Due::Connect)),
            EndKind::Client(ClientState::Handshake(handshake, _)) => return Some((handshake.deadline, Due::GiveUp)),
            EndKind::Device(device) => return device.deadline().map(|at| (at, Due::Make)),
            EndKind::Client(ClientState::Connecting(_) | ClientState::Connected(_)) | EndKind::Server(_) => {}
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
            EndKind::Device(device) => device.state(last_error.as_ref()),
        }
    }
}

/// How long a client waits before it tries again.
const RECONNECT: Duration = Duration::from_millis(200);
/// Requests that have lanes recalled, at once: as many as a driver of all queue pairs makes while it starts, twice.
const QUIESCES_BURST: u32 = 512;
/// And in the long run: each costs a worker about 10 us, and this thread some more.
const QUIESCES_INTERVAL: Duration = Duration::from_millis(10);
