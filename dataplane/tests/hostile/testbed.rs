//! Where a case takes place, and what is checked after it.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::Engine;
use ferrule_dataplane::engine::{Event, Subscription, WireChange};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::spec::{EndSpec, MemifSpec, QUEUES_MAX, Role, SocketAddress, VhostUserSpec, WireSpec};
use ferrule_dataplane::status::EndState;

use crate::common::{eventually, unique};
use crate::held::Held;
use crate::honest::{DEADLINE, Honest};
use crate::traffic::{HONEST, STEP, Traffic, is_from_far};

/// One attack, and how it must end.
pub struct Case {
    /// What the peer does.
    pub name: &'static str,
    /// What is attacked.
    pub victim: Victim,
    /// How it must end.
    pub expect: Expect,
    /// Does it. What it returns goes on with the attack until it is dropped.
    pub attack: fn(&Testbed) -> Held,
}

/// The end that is attacked, and who is at the other end of its wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// A memif end that listens.
    MemifServer,
    /// A memif end that connects.
    MemifClient,
    /// A vhost-user end that listens.
    VhostServer(Far),
    /// A vhost-user end that connects.
    VhostClient,
}

/// Who is at the other end of an attacked vhost-user end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Far {
    /// A memif peer: no unfinished frames are offered.
    Memif,
    /// A frontend that takes finished frames only: what is missing is done on the way.
    Finished,
    /// A frontend that takes unfinished checksums and large frames: they are passed on.
    Unfinished,
}

/// How an attack must end.
#[derive(Clone, Copy)]
pub enum Expect {
    /// The peer loses its connection, or is not let in, and the wire shows this text.
    Loses(&'static str),
    /// The interface stays free for an honest peer while the attack goes on.
    Free,
    /// The peer keeps its connection: it harms nobody else.
    Stays,
    /// The peer keeps its connection or loses it, by what is seen of it when.
    MayStay,
}

/// An engine with the attacked wire, its honest far end, and two bystanders, which are removed again in the end.
pub struct Testbed {
    pub engine: Arc<Engine>,
    /// The attacked wire: its end 0 is attacked.
    pub wire: String,
    /// The socket of the attacked end.
    pub socket: SocketAddress,
    pub traffic: Traffic,
    victim: Victim,
    files: usize,
    /// A listening peer is connected to again at once, and then the end shows no reason any more.
    events: Subscription,
}

impl Victim {
    fn spec(self, socket: &str) -> EndSpec {
        let memif = |role| MemifSpec { role, secret: Some(SECRET.parse().unwrap()), ..memif(socket, 0) };
        match self {
            Self::MemifServer => EndSpec::Memif(memif(Role::Server)),
            Self::MemifClient => EndSpec::Memif(MemifSpec { queues: 1, ..memif(Role::Client) }),
            // With several queues and a configuration, so that there is more to attack.
            Self::VhostServer(_) => {
                EndSpec::VhostUser(VhostUserSpec { queues: PAIRS, mtu: Some(9000), ..vhost(socket) })
            }
            Self::VhostClient => EndSpec::VhostUser(VhostUserSpec { role: Role::Client, ..vhost(socket) }),
        }
    }

    fn far_spec(self, socket: &str) -> EndSpec {
        match self {
            Self::VhostServer(Far::Finished | Far::Unfinished) => EndSpec::VhostUser(vhost(socket)),
            _ => EndSpec::Memif(memif(socket, 0)),
        }
    }

    fn open_far(self, socket: &str) -> Honest {
        match self {
            Self::VhostServer(Far::Finished) => Honest::vhost(&address(socket), false, Features::default()),
            Self::VhostServer(Far::Unfinished) => Honest::vhost(&address(socket), false, UNFINISHED),
            _ => Honest::memif(&client(socket, 0)),
        }
    }

    /// An honest peer of the attacked end.
    fn open_peer(self, socket: &str) -> Honest {
        let memif = |role| MemifSpec { role, queues: 1, secret: Some(SECRET.parse().unwrap()), ..memif(socket, 0) };
        match self {
            Self::MemifServer => Honest::memif(&memif(Role::Client)),
            Self::MemifClient => Honest::memif(&memif(Role::Server)),
            Self::VhostServer(_) => Honest::vhost(&address(socket), false, Features::default()),
            Self::VhostClient => Honest::vhost(&address(socket), true, Features::default()),
        }
    }

    /// Whether peers of the attacked end come to it.
    fn listens(self) -> bool {
        matches!(self, Self::MemifServer | Self::VhostServer(_))
    }
}

impl Testbed {
    pub fn prepare(case: &Case, engine: &Arc<Engine>) -> Self {
        let (victim, wire) = (case.victim, unique("hostile"));
        let far = format!("{wire}-far");
        let add = |name: String, ends| engine.add(WireSpec::new(name, ends)).unwrap();
        add(wire.clone(), [victim.spec(&wire), victim.far_spec(&far)]);
        // The first bystander lives on the attacked socket, if others can.
        let beside = if victim == Victim::MemifServer { wire.clone() } else { format!("{wire}-beside") };
        let guests = [0, 1].map(|number| format!("{wire}-guest-{number}"));
        add(format!("{wire}-1"), [1, 2].map(|id| EndSpec::Memif(memif(&beside, id))));
        add(format!("{wire}-2"), guests.each_ref().map(|socket| EndSpec::VhostUser(vhost(socket))));
        let pairs = [
            [1, 2].map(|id| Honest::memif(&client(&beside, id))),
            guests.each_ref().map(|socket| Honest::vhost(&address(socket), false, Features::default())),
        ];
        let traffic = Traffic::start(pairs, victim.open_far(&far));
        traffic.must_move();
        // The least of a few: an end that connects has a descriptor more while it tries.
        let files = (0..3).map(|_| (open_files(), thread::sleep(Duration::from_millis(1))).0).min().unwrap();
        let (socket, events) = (address(&wire), engine.subscribe(EVENTS_MAX));
        Self { engine: Arc::clone(engine), wire, socket, traffic, victim, files, events }
    }

    pub fn check(self, case: &Case) {
        let begun = Instant::now();
        let held = (case.attack)(&self);
        let others = self.traffic.must_move().as_millis();
        match case.expect {
            Expect::Loses(text) => {
                eventually(&format!("`{}` shows `{text}`, not {:?}", case.name, self.victim()), || self.shows(text));
            }
            Expect::Free | Expect::MayStay => {}
            Expect::Stays => {
                let state = self.victim();
                let is_there = matches!(state, EndState::Starting { .. } | EndState::Connected { .. });
                assert!(is_there, "`{}`: {state:?}", case.name);
            }
        }
        // A peer that lost its place, or never had it, cannot keep it by going on. A listening one can.
        let goes_on = !matches!(case.expect, Expect::Stays | Expect::MayStay) && self.victim.listens();
        let held = goes_on.then_some(held);
        let took = self.an_honest_peer_takes_the_place(case.name);
        drop(held);
        eventually(&format!("`{}`: no descriptor is kept", case.name), || open_files() <= self.files);
        let (whole, took) = (begun.elapsed().as_millis(), took.as_millis());
        let name = case.name;
        println!("{name:<60} {whole:>5} ms, others' {STEP} frames {others:>4} ms, next peer {took:>4} ms");
    }

    /// The state of the attacked end.
    pub fn victim(&self) -> EndState {
        self.engine.wire(&self.wire).unwrap().ends[0].clone()
    }

    /// Whether the attacked end is without a peer and says this, or a peer of it has gone with this reason.
    pub fn shows(&self, text: &str) -> bool {
        let gone = std::iter::from_fn(|| self.events.try_next_event()).any(|event| match event {
            Event::Wire { wire, change: WireChange::PeerGone { end: 0, reason } } => {
                wire == self.wire && reason.contains(text)
            }
            _ => false,
        });
        gone || match self.victim() {
            EndState::Listening { last_error } | EndState::Connecting { last_error } => {
                last_error.is_some_and(|error| error.contains(text))
            }
            _ => false,
        }
    }

    fn an_honest_peer_takes_the_place(&self, case: &str) -> Duration {
        let begun = Instant::now();
        let mut honest = self.victim.open_peer(&self.wire);
        let heard = self.traffic.honest_frames();
        let mut hears = false;
        while !(hears && self.traffic.honest_frames() > heard) {
            honest.put(HONEST);
            hears |= honest.take().is_some_and(|frame| is_from_far(&frame));
            assert!(begun.elapsed() < DEADLINE, "`{case}`: no frames cross to an honest peer, {:?}", self.victim());
            thread::yield_now();
        }
        begun.elapsed()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.traffic.stop();
        for name in ["", "-1", "-2"].map(|end| format!("{}{end}", self.wire)) {
            // Not there, if preparing it was what failed.
            let _ = self.engine.remove(&name);
        }
    }
}

/// Descriptors that this process has open.
pub fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn memif(socket: &str, id: u32) -> MemifSpec {
    MemifSpec { id, queues: QUEUES_MAX, ..MemifSpec::new(address(socket), Role::Server) }
}

/// An honest client of an end with [`memif`].
fn client(socket: &str, id: u32) -> MemifSpec {
    MemifSpec { role: Role::Client, ring: 256, queues: 1, ..memif(socket, id) }
}

fn vhost(socket: &str) -> VhostUserSpec {
    VhostUserSpec::new(address(socket), Role::Server)
}

fn address(socket: &str) -> SocketAddress {
    format!("@{socket}").parse().unwrap()
}

/// The secret of an attacked memif end.
pub const SECRET: &str = "open sesame";
/// Queue pairs that an attacked vhost-user end offers.
pub const PAIRS: u16 = 4;
/// What an attack may cause before it is looked at.
const EVENTS_MAX: usize = 1024;
const UNFINISHED: Features = Features::GUEST_CSUM.with(Features::GUEST_TSO4).with(Features::GUEST_TSO6);
