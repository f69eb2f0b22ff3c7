//! A wire as control sees it: two ends that come and go, and the lanes that join them meanwhile.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::health::MemoryLost;
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::tap::Tap;
use nix::errno::Errno;

use crate::control::disconnect::DisconnectReason;
use crate::control::log_limit::LogLimit;
use crate::counters::LinkCounters;
use crate::lane::{Lane, collect};
use crate::port::Fault;
use crate::port::any::LaneEnd;
use crate::port::kernel::{PairEnd, PairStatus, VethPair};
use crate::port::memif::handshake::{Client, Connection};
use crate::port::memif::layout::{Layout, NoLoan};
use crate::port::vhost_user::peer::VhostUserPeer;
use crate::port::{memif, vhost_user as vhost};
use crate::spec::{ByteSize, EndSpec, WireSpec};
use crate::status::{Crossing, EndState, WireStatus};

/// A wire and how it is served.
pub struct Wire {
    /// What was asked for.
    pub spec: WireSpec,
    /// Its counters, over all lanes and reconnects.
    pub counters: Arc<[LinkCounters; 2]>,
    /// How it is served.
    pub body: Body,
}

/// How a wire is served.
pub enum Body {
    /// By the kernel alone.
    Veth(VethPair),
    /// By workers.
    Lanes(Box<Joint>),
}

/// Two ends that workers join whenever both are there.
pub struct Joint {
    /// In the order of the specification.
    pub ends: [End; 2],
    /// The lanes that workers have or are handing back, by their number.
    pub lanes: Vec<LanePlace>,
    /// The wire is being removed.
    pub leaving: bool,
    /// Why the memory of one end is not lent to the other, if it should be.
    pub no_loan: Option<NoLoan>,
    /// Why the lanes could not be served, if they could not.
    pub problem: Option<String>,
    /// What is said of its peers in the log.
    pub log_limit: LogLimit,
}

/// Where a lane is.
pub enum LanePlace {
    /// With this worker, in this slot.
    Served(usize, crate::worker::LaneId),
    /// Back from it.
    Back(Box<Lane>),
}

/// One end of a joint.
pub struct End {
    /// What it is.
    pub kind: EndKind,
    /// Its rings, while no lane has them.
    pub rings: Option<LaneEnd>,
    /// Whether the rings that are there, or that lanes have, are those of the present peer.
    pub present: bool,
    /// Why it was last away.
    pub last_error: Option<String>,
    /// What the memory of its peers, one after the other, may cost us.
    pub memory: Arc<MemoryBudget>,
}

/// The kinds of ends, with what control keeps of them.
pub enum EndKind {
    /// One whose peers come to us; the listener of memif servers is shared with other wires.
    Server(Option<Live>),
    /// One that goes to its peer.
    Client(Dialling),
    /// A TAP interface; `true`: it is gone.
    Tap(Arc<Tap>, bool),
}

/// A peer that is there: with the positions of the queues, all that a successor would need.
pub struct Live {
    /// The peer itself.
    pub peer: Peer,
    /// What it calls itself, or what the kernel calls it.
    pub name: String,
    /// The token of its socket in epoll.
    pub token: u64,
}

impl Live {
    /// The shared memory of a memif peer.
    pub fn layout(&self) -> Option<&Layout> {
        match &self.peer {
            Peer::Memif(_, layout) => Some(layout),
            Peer::Vhost(_) => None,
        }
    }
}

/// The kinds of peers, each with the socket whose end is the connection's end.
pub enum Peer {
    /// One that speaks memif and has finished its handshake.
    Memif(memif::channel::Channel, Layout),
    /// One that speaks vhost-user, whatever it has said so far.
    Vhost(Box<VhostUserPeer>),
}

impl Peer {
    /// Why its memory cannot be used any more, if so.
    pub fn memory_lost(&self) -> Option<MemoryLost> {
        match self {
            Self::Memif(_, layout) => layout.memory_lost(),
            Self::Vhost(frontend) => frontend.session.memory_lost(),
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Memif(channel, _) => channel.as_fd(),
            Self::Vhost(frontend) => frontend.channel.as_fd(),
        }
    }
}

/// The control socket of a peer that is parted from, to be closed.
pub enum ControlSocket {
    /// It hears why.
    Memif(memif::channel::Channel),
    /// It has no words for it.
    Vhost(vhost::channel::Channel),
}

impl ControlSocket {
    /// Tells the peer why, if there is somebody left to tell.
    pub fn send_disconnect(&self, reason: &DisconnectReason) {
        if let Self::Memif(channel) = self
            && reason.should_tell_peer()
        {
            channel.send_disconnect(reason);
        }
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Memif(channel) => channel.as_fd(),
            Self::Vhost(channel) => channel.as_fd(),
        }
    }
}

impl From<Peer> for ControlSocket {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Memif(channel, _) => Self::Memif(channel),
            Peer::Vhost(frontend) => Self::Vhost(frontend.channel),
        }
    }
}

/// A client's way to its server.
pub enum Dialling {
    /// Nothing until then.
    Waiting(Instant),
    /// In memif's handshake.
    Attempt {
        /// The socket.
        channel: memif::channel::Channel,
        /// The conversation; taken while it is being led.
        client: Option<Client>,
        /// When it is given up.
        deadline: Instant,
        /// The socket's token in epoll.
        token: u64,
    },
    /// There.
    Connected(Live),
}

impl Wire {
    /// A wire whose ends workers will join.
    pub fn joint(spec: WireSpec, ends: [End; 2]) -> Self {
        let joint = Joint {
            ends,
            lanes: Vec::new(),
            leaving: false,
            no_loan: None,
            problem: None,
            log_limit: LogLimit::default(),
        };
        Self { spec, counters: Arc::default(), body: Body::Lanes(Box::new(joint)) }
    }

    /// What it is doing.
    pub fn status(&self) -> WireStatus {
        let (ends, queues, directions) = match &self.body {
            Body::Veth(pair) => {
                let PairStatus { traffic, ends } = pair.status();
                let queues = usize::from(!ends.iter().any(|end| matches!(end, PairEnd::Gone(_))));
                let state = |end| match end {
                    PairEnd::Up | PairEnd::Unknown(_) => EndState::Up,
                    PairEnd::Gone(error) => EndState::Failed { reason: error.to_string() },
                };
                (ends.map(state), queues, traffic)
            }
            Body::Lanes(joint) => {
                let queues = joint.lanes.iter().filter(|lane| matches!(lane, LanePlace::Served(..))).count();
                (
                    joint.ends.each_ref().map(|end| end.state(joint.problem.as_ref())),
                    queues,
                    self.counters.each_ref().map(LinkCounters::read),
                )
            }
        };
        WireStatus { spec: self.spec.clone(), ends, directions, crossing: self.crossing(), queues }
    }
}

impl Wire {
    fn crossing(&self) -> Crossing {
        let (Some(borrower), Body::Lanes(joint)) = (self.spec.borrower(), &self.body) else { return Crossing::Copied };
        match &joint.no_loan {
            Some(reason) => Crossing::CopiedThough { reason: reason.to_string() },
            None if joint.ends[borrower].live().and_then(Live::layout).is_some_and(Layout::is_lent) => {
                Crossing::Switched
            }
            None => Crossing::Copied,
        }
    }
}

impl Joint {
    /// Takes the rings of both ends, if they are there, nobody wants to change them, and no lane is out.
    pub fn take_rings(&mut self) -> Option<[LaneEnd; 2]> {
        let wanting = |end: &End| end.rings.is_none() || end.frontend().is_some_and(|frontend| frontend.held.is_some());
        if !self.lanes.is_empty() || self.leaving || self.ends.iter().any(wanting) {
            return None;
        }
        let [a, b] = &mut self.ends;
        a.rings.take().zip(b.rings.take()).map(|(a, b)| [a, b])
    }

    /// Notes that lane `number` came back. `true`: no lane is out any more.
    pub fn lane_back(&mut self, number: usize, lane: Box<Lane>) -> bool {
        self.lanes[number] = LanePlace::Back(lane);
        self.reunite()
    }

    /// Once all lanes are back, puts the rings of the peers that are still there together again.
    /// `true`: no lane is out any more.
    pub fn reunite(&mut self) -> bool {
        if self.lanes.iter().any(|place| matches!(place, LanePlace::Served(..))) {
            return false;
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for place in self.lanes.drain(..) {
            if let LanePlace::Back(lane) = place {
                let [a, b] = lane.ends;
                first.push(a);
                second.push(b);
            }
        }
        for (end, halves) in self.ends.iter_mut().zip([first, second]) {
            // A peer that came meanwhile has brought rings of its own.
            if end.present && end.rings.is_none() {
                end.rings = Some(collect(halves));
            }
        }
        self.problem = None;
        true
    }

    /// Where the lanes are that workers still have.
    pub fn served(&self) -> impl Iterator<Item = (usize, crate::worker::LaneId)> {
        self.lanes.iter().filter_map(|place| match place {
            LanePlace::Served(worker, slot) => Some((*worker, *slot)),
            LanePlace::Back(_) => None,
        })
    }

    /// Tells the kernel whether somebody is at the other end of its interfaces.
    pub fn set_carrier(&self, up: bool) {
        for end in &self.ends {
            if let EndKind::Tap(tap, false) = &end.kind {
                // It fails only when the interface is gone, which its lane finds out.
                let _ = tap.set_carrier(up);
            }
        }
    }
}

impl End {
    /// The end of one that listens, without a peer.
    pub fn server(memory: ByteSize) -> Self {
        Self {
            kind: EndKind::Server(None),
            rings: None,
            present: false,
            last_error: None,
            memory: MemoryBudget::new(memory.as_bytes()),
        }
    }

    /// The end of one that connects, to be connected at once.
    pub fn client(memory: ByteSize) -> Self {
        let kind = EndKind::Client(Dialling::Waiting(Instant::now()));
        Self { kind, rings: None, present: false, last_error: None, memory: MemoryBudget::new(memory.as_bytes()) }
    }

    /// A kernel interface's end.
    pub fn tap(tap: Tap) -> Self {
        let tap = Arc::new(tap);
        let rings = LaneEnd::tap(&tap);
        let memory = MemoryBudget::new(0);
        Self { kind: EndKind::Tap(tap, false), rings: Some(rings), present: true, last_error: None, memory }
    }

    /// The peer that is there.
    pub fn live(&self) -> Option<&Live> {
        match &self.kind {
            EndKind::Server(Some(live)) | EndKind::Client(Dialling::Connected(live)) => Some(live),
            _ => None,
        }
    }

    /// The same, to bring it on.
    pub fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.kind {
            EndKind::Server(Some(live)) | EndKind::Client(Dialling::Connected(live)) => Some(live),
            _ => None,
        }
    }

    /// The peer that is there, if it speaks vhost-user.
    pub fn frontend(&self) -> Option<&VhostUserPeer> {
        match &self.live()?.peer {
            Peer::Vhost(frontend) => Some(frontend),
            Peer::Memif(..) => None,
        }
    }

    /// The same, to bring it on.
    pub fn frontend_mut(&mut self) -> Option<&mut VhostUserPeer> {
        match &mut self.live_mut()?.peer {
            Peer::Vhost(frontend) => Some(frontend),
            Peer::Memif(..) => None,
        }
    }

    /// Whether anybody is there.
    pub fn has_peer(&self) -> bool {
        matches!(self.kind, EndKind::Tap(_, false)) || self.live().is_some()
    }

    /// A memif peer has come, with its rings.
    pub fn connected(&mut self, channel: memif::channel::Channel, connection: Connection, token: u64) {
        let Connection { peer: name, layout, queues, .. } = connection;
        self.set_live(Live { peer: Peer::Memif(channel, layout), name, token });
        self.rings = Some(LaneEnd::memif(queues));
        self.present = true;
    }

    /// A frontend has come; its rings are there once it has described them.
    pub fn approached(&mut self, frontend: VhostUserPeer, name: String, token: u64) {
        self.set_live(Live { peer: Peer::Vhost(Box::new(frontend)), name, token });
    }

    /// The frontend has described its rings.
    pub fn described(&mut self, rings: LaneEnd) {
        self.rings = Some(rings);
        self.present = true;
    }

    /// The rings, which are to be described anew; `None`: they are not here.
    pub fn park(&mut self) -> Option<LaneEnd> {
        let rings = self.rings.take()?;
        self.present = false;
        Some(rings)
    }

    fn set_live(&mut self, live: Live) {
        self.kind = match self.kind {
            EndKind::Server(_) => EndKind::Server(Some(live)),
            EndKind::Client(_) => EndKind::Client(Dialling::Connected(live)),
            EndKind::Tap(..) => unreachable!("no peer connects to a kernel interface"),
        };
        self.last_error = None;
    }

    /// The peer, or the try to reach one, is gone. Its control socket comes back, to be closed.
    pub fn disconnected(&mut self, reason: String) -> Option<(ControlSocket, u64)> {
        self.rings = None;
        self.present = false;
        self.last_error = Some(reason);
        match &mut self.kind {
            EndKind::Server(live) => live.take().map(|live| (live.peer.into(), live.token)),
            EndKind::Client(dialling) => {
                match std::mem::replace(dialling, Dialling::Waiting(Instant::now() + REDIAL)) {
                    Dialling::Connected(live) => Some((live.peer.into(), live.token)),
                    Dialling::Attempt { channel, token, .. } => Some((ControlSocket::Memif(channel), token)),
                    Dialling::Waiting(_) => None,
                }
            }
            EndKind::Tap(_, gone) => {
                *gone = true;
                None
            }
        }
    }

    /// A client that is not connected tries at once.
    pub fn hurry(&mut self) {
        if let EndKind::Client(Dialling::Waiting(until)) = &mut self.kind {
            *until = Instant::now();
        }
    }

    /// When control has to do something about it.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.kind {
            EndKind::Client(Dialling::Waiting(until)) => Some(*until),
            EndKind::Client(Dialling::Attempt { deadline, .. }) => Some(*deadline),
            _ => self.frontend()?.silent_until,
        }
    }

    fn state(&self, problem: Option<&String>) -> EndState {
        let last_error = self.last_error.clone();
        match (&self.kind, problem) {
            (EndKind::Tap(_, true), _) => EndState::Failed { reason: last_error.unwrap_or_default() },
            (_, Some(problem)) => EndState::Failed { reason: problem.clone() },
            (EndKind::Server(None), None) => EndState::Listening { last_error },
            (EndKind::Server(Some(live)) | EndKind::Client(Dialling::Connected(live)), None) => {
                let peer = live.name.clone();
                if self.present { EndState::Connected { peer } } else { EndState::Starting { peer } }
            }
            (EndKind::Client(_), None) => EndState::Connecting { last_error },
            // No lane has it, which would find out.
            (EndKind::Tap(tap, false), None) if self.rings.is_some() && tap.is_gone() => {
                EndState::Failed { reason: Fault::InterfaceGone(Errno::EBADFD as i32).to_string() }
            }
            (EndKind::Tap(_, false), None) => EndState::Up,
        }
    }
}

/// Whether a specification is served by the kernel alone.
pub fn is_kernel_only(spec: &WireSpec) -> bool {
    matches!(spec.ends, [EndSpec::Kernel(_), EndSpec::Kernel(_)])
}

/// How long a client waits before it tries again.
const REDIAL: Duration = Duration::from_millis(200);
