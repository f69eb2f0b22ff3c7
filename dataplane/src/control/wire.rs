//! A wire as control sees it: two ends that come and go, and the lanes that join them meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_ffi::tap::Tap;
use nix::errno::Errno;

use crate::control::voice::Voice;
use crate::kernel::VethPair;
use crate::kernel::port::{TapSource, TapTarget};
use crate::lane::{Lane, LaneEnd, collect};
use crate::link::{AnySource, AnyTarget, LinkCounters};
use crate::memif::handshake::{Client, Connection};
use crate::memif::layout::{Layout, NoLoan};
use crate::memif::socket::Channel;
use crate::port::Fault;
use crate::spec::{EndSpec, WireSpec};
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
    pub voice: Voice,
}

/// Where a lane is.
pub enum LanePlace {
    /// With this worker, in this slot.
    Served(usize, crate::worker::Slot),
    /// Back from it.
    Back(Box<Lane>),
}

/// One end of a joint.
pub struct End {
    /// What it is.
    pub kind: EndKind,
    /// Its rings, while no lane has them.
    pub rings: Option<LaneEnd>,
    /// Whether the rings that lanes have are still those of the present peer.
    pub present: bool,
    /// Why it was last away.
    pub last_error: Option<String>,
}

/// The kinds of ends, with what control keeps of them.
pub enum EndKind {
    /// A memif server; its listener is shared with other wires.
    Server(Option<Live>),
    /// A memif client.
    Client(Dialling),
    /// A TAP interface; `true`: it is gone.
    Tap(Arc<Tap>, bool),
}

/// A peer that is there: with the positions of the queues, all that a successor would need.
pub struct Live {
    /// The socket whose end is the connection's end.
    pub channel: Channel,
    /// What the peer calls itself.
    pub peer: String,
    /// The shared memory.
    pub layout: Layout,
    /// The socket's token in epoll.
    pub token: u64,
}

/// A client's way to its server.
pub enum Dialling {
    /// Nothing until then.
    Waiting(Instant),
    /// In the handshake.
    Attempt {
        /// The socket.
        channel: Channel,
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
        let joint =
            Joint { ends, lanes: Vec::new(), leaving: false, no_loan: None, problem: None, voice: Voice::default() };
        Self { spec, counters: Arc::default(), body: Body::Lanes(Box::new(joint)) }
    }

    /// What it is doing.
    pub fn status(&self) -> WireStatus {
        let (ends, queues, directions) = match &self.body {
            Body::Veth(pair) => match pair.stats() {
                Ok(directions) => ([EndState::Up, EndState::Up], 1, directions),
                Err(error) => {
                    let failed = EndState::Failed { reason: error.to_string() };
                    ([failed.clone(), failed], 0, <_>::default())
                }
            },
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
            None if joint.ends[borrower].live().is_some_and(|live| live.layout.is_lent()) => Crossing::Switched,
            None => Crossing::Copied,
        }
    }
}

impl Joint {
    /// Takes the rings of both ends, if they are there and no lane is out.
    pub fn take_rings(&mut self) -> Option<[LaneEnd; 2]> {
        if !self.lanes.is_empty() || self.leaving || self.ends.iter().any(|end| end.rings.is_none()) {
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
    pub fn served(&self) -> impl Iterator<Item = (usize, crate::worker::Slot)> {
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
    /// A memif server's end, without a peer.
    pub fn server() -> Self {
        Self { kind: EndKind::Server(None), rings: None, present: false, last_error: None }
    }

    /// A memif client's end, to be connected at once.
    pub fn client() -> Self {
        let kind = EndKind::Client(Dialling::Waiting(Instant::now()));
        Self { kind, rings: None, present: false, last_error: None }
    }

    /// A kernel interface's end.
    pub fn tap(tap: Tap) -> Self {
        let tap = Arc::new(tap);
        let rings = LaneEnd {
            sources: vec![AnySource::Tap(TapSource::new(Arc::clone(&tap))).into()],
            targets: vec![AnyTarget::Tap(TapTarget::new(Arc::clone(&tap)))],
        };
        Self { kind: EndKind::Tap(tap, false), rings: Some(rings), present: true, last_error: None }
    }

    /// The peer that is there.
    pub fn live(&self) -> Option<&Live> {
        match &self.kind {
            EndKind::Server(Some(live)) | EndKind::Client(Dialling::Connected(live)) => Some(live),
            _ => None,
        }
    }

    /// A peer has come.
    pub fn connected(&mut self, channel: Channel, connection: Connection, token: u64) {
        let Connection { peer, layout, queues, .. } = connection;
        let live = Live { channel, peer, layout, token };
        self.kind = match self.kind {
            EndKind::Server(_) => EndKind::Server(Some(live)),
            EndKind::Client(_) => EndKind::Client(Dialling::Connected(live)),
            EndKind::Tap(..) => unreachable!("only memif ends have peers that connect"),
        };
        self.rings = Some(LaneEnd {
            sources: queues.receivers.into_iter().map(|receiver| AnySource::Memif(receiver).into()).collect(),
            targets: queues.senders.into_iter().map(AnyTarget::Memif).collect(),
        });
        self.present = true;
        self.last_error = None;
    }

    /// The peer, or the try to reach one, is gone. Its control socket comes back, to be closed.
    pub fn disconnected(&mut self, reason: String) -> Option<(Channel, u64)> {
        self.rings = None;
        self.present = false;
        self.last_error = Some(reason);
        match &mut self.kind {
            EndKind::Server(live) => live.take().map(|live| (live.channel, live.token)),
            EndKind::Client(dialling) => {
                match std::mem::replace(dialling, Dialling::Waiting(Instant::now() + REDIAL)) {
                    Dialling::Connected(Live { channel, token, .. }) | Dialling::Attempt { channel, token, .. } => {
                        Some((channel, token))
                    }
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
            _ => None,
        }
    }

    fn state(&self, problem: Option<&String>) -> EndState {
        let last_error = self.last_error.clone();
        match (&self.kind, problem) {
            (EndKind::Tap(_, true), _) => EndState::Failed { reason: last_error.unwrap_or_default() },
            (_, Some(problem)) => EndState::Failed { reason: problem.clone() },
            (EndKind::Server(None), None) => EndState::Listening { last_error },
            (EndKind::Server(Some(live)) | EndKind::Client(Dialling::Connected(live)), None) => {
                EndState::Connected { peer: live.peer.clone() }
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
