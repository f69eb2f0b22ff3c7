//! Where a case takes place, and what is judged after it.

use std::fs;
use std::time::{Duration, Instant};

use ferrule_dataplane::Engine;
use ferrule_dataplane::memif::endpoint::Endpoint;
use ferrule_dataplane::spec::{EndSpec, Full, MemifSpec, Role, WireSpec};
use ferrule_dataplane::status::EndState;

use crate::common::{engine, eventually, unique};
use crate::held::Held;
use crate::traffic::{HONEST, STEP, Traffic, is_from_far, put_one, take_one};

/// One attack, and how it must end.
pub struct Case {
    /// What the peer does.
    pub name: &'static str,
    /// The role of the end that is attacked.
    pub victim: Role,
    /// How it must end.
    pub expect: Expect,
    /// Does it. What it returns goes on with the attack until it is dropped.
    pub attack: fn(&Arena) -> Held,
}

/// How an attack must end.
#[derive(Clone, Copy)]
pub enum Expect {
    /// The peer loses its connection, or is not let in, and the wire shows this text.
    Loses(&'static str),
    /// The interface stays free for an honest client while the attack goes on.
    Free,
    /// The peer keeps its connection: it harms nobody else.
    Stays,
}

/// An engine with the attacked wire, its honest far end, and two bystanders.
pub struct Arena {
    pub engine: Engine,
    /// The attacked wire: its end 0 is attacked.
    pub wire: String,
    /// The attacked end as its peer sees it.
    pub place: MemifSpec,
    pub traffic: Traffic,
    files: usize,
}

impl Arena {
    pub fn prepare(case: &Case) -> Self {
        let engine = engine();
        let wire = unique("hostile");
        let place = memif(&wire, 0);
        let victim = MemifSpec { role: case.victim, secret: Some(SECRET.parse().unwrap()), ..place };
        let add = |name: String, ends: [MemifSpec; 2]| {
            engine.add(WireSpec { name, ends: ends.map(EndSpec::Memif), full: Full::Hold, trusted: false }).unwrap();
        };
        add(wire.clone(), [victim.clone(), memif(&format!("{wire}-far"), 0)]);
        // The first bystander lives on the attacked socket, if that is one of ours.
        let beside = if case.victim == Role::Server { wire.clone() } else { format!("{wire}-beside") };
        add(format!("{wire}-1"), [memif(&beside, 1), memif(&beside, 2)]);
        add(format!("{wire}-2"), [memif(&format!("{wire}-2"), 0), memif(&format!("{wire}-3"), 0)]);
        let open = |socket: &str, id| {
            let spec = MemifSpec { role: Role::Client, ring: 256, ..memif(socket, id) };
            Endpoint::open(&spec, PATIENCE).unwrap()
        };
        let pairs =
            [[open(&beside, 1), open(&beside, 2)], [open(&format!("{wire}-2"), 0), open(&format!("{wire}-3"), 0)]];
        let traffic = Traffic::start(pairs, open(&format!("{wire}-far"), 0));
        traffic.must_move();
        let role = if case.victim == Role::Server { Role::Client } else { Role::Server };
        let files = open_files();
        Self { engine, wire, place: MemifSpec { role, ..victim }, traffic, files }
    }

    pub fn judge(self, case: &Case) {
        let begun = Instant::now();
        let held = (case.attack)(&self);
        let others = self.traffic.must_move().as_millis();
        match case.expect {
            Expect::Loses(text) => {
                eventually(&format!("`{}` shows `{text}`, not {:?}", case.name, self.victim()), || self.shows(text));
            }
            Expect::Free => {}
            Expect::Stays => {
                let state = self.victim();
                assert!(matches!(state, EndState::Connected { .. }), "`{}`: {state:?}", case.name);
            }
        }
        // A peer that lost its place, or never had it, cannot keep it by going on. A listening one can.
        let goes_on = !matches!(case.expect, Expect::Stays) && case.victim == Role::Server;
        let held = goes_on.then_some(held);
        let took = self.an_honest_peer_takes_the_place(case.name);
        drop(held);
        eventually(&format!("`{}`: no descriptor is kept", case.name), || open_files() == self.files);
        let (whole, took) = (begun.elapsed().as_millis(), took.as_millis());
        let name = case.name;
        println!("{name:<60} {whole:>5} ms, others' {STEP} frames {others:>4} ms, next peer {took:>4} ms");
    }

    /// The state of the attacked end.
    pub fn victim(&self) -> EndState {
        self.engine.wire(&self.wire).unwrap().ends[0].clone()
    }

    /// Whether the attacked end is without a peer, and says this.
    pub fn shows(&self, text: &str) -> bool {
        match self.victim() {
            EndState::Listening { last_error } | EndState::Connecting { last_error } => {
                last_error.is_some_and(|error| error.contains(text))
            }
            _ => false,
        }
    }

    fn an_honest_peer_takes_the_place(&self, case: &str) -> Duration {
        let begun = Instant::now();
        let mut honest = Endpoint::open(&self.place, PATIENCE).unwrap_or_else(|error| panic!("`{case}`: {error}"));
        let heard = self.traffic.honest_frames();
        let mut hears = false;
        while !(hears && self.traffic.honest_frames() > heard) {
            put_one(&mut honest, HONEST);
            hears |= take_one(&mut honest).is_some_and(|frame| is_from_far(&frame));
            assert!(begun.elapsed() < PATIENCE, "`{case}`: no frames cross to an honest peer, {:?}", self.victim());
            std::thread::yield_now();
        }
        let took = begun.elapsed();
        assert!(took < AT_ONCE, "`{case}`: an honest peer waited {took:?}");
        took
    }
}

/// Descriptors that this process has open.
pub fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn memif(socket: &str, id: u32) -> MemifSpec {
    MemifSpec { id, ..MemifSpec::new(format!("@{socket}").parse().unwrap(), Role::Server) }
}

/// The secret of the attacked end.
pub const SECRET: &str = "open sesame";
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon an honest peer must be served, on a machine with other work to do.
const AT_ONCE: Duration = Duration::from_secs(1);
