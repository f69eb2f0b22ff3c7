//! Wires between namespaces and memif ends.

use ferrule_dataplane::spec::{EndSpec, Full, KernelSpec, MemifSpec, Role, WireSpec};
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::netns::TestNetNs;
use ferrule_hw_tests::{TIMEOUT, eventually, unique};

/// An engine with one worker.
pub fn engine() -> Engine {
    Engine::start(&Settings::new(vec![0])).unwrap()
}

/// A server on an abstract socket of its own.
pub fn server() -> MemifSpec {
    MemifSpec::new(format!("@{}", unique("end")).parse().unwrap(), Role::Server)
}

/// Who connects to it.
pub fn client(server: &MemifSpec) -> MemifSpec {
    MemifSpec { role: Role::Client, ..server.clone() }
}

/// A wire between a namespace and a memif end.
pub fn wire(kernel: &KernelSpec, memif: &MemifSpec) -> WireSpec {
    let ends = [EndSpec::Kernel(kernel.clone()), EndSpec::Memif(memif.clone())];
    WireSpec::new(unique("wire"), ends)
}

/// Makes such a wire; returns its name and its far end, connected.
pub fn wire_to_us(engine: &Engine, kernel: &KernelSpec) -> (String, Endpoint) {
    let memif = server();
    let wire = wire(kernel, &memif);
    let name = wire.name.clone();
    engine.add(wire).unwrap();
    (name, Endpoint::open(&client(&memif), TIMEOUT).unwrap())
}

/// How two namespaces are joined.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of both interfaces.
    pub mtu: u32,
    /// Slots of the memif rings between them.
    pub ring: u32,
    /// Of both wires.
    pub full: Full,
}

/// Two namespaces, each with a wire that ends in memif.
pub struct Pair {
    /// What serves the wires; first, so that its interfaces go before their namespaces.
    pub engine: Engine,
    /// The namespaces.
    pub sides: [TestNetNs; 2],
    /// The names of the wires.
    pub wires: [String; 2],
    /// The memif ends in the middle.
    pub middle: [MemifSpec; 2],
}

/// The addresses of the two sides of a [`Pair`], by family.
pub const ADDRESSES: [[&str; 2]; 2] = [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]];

/// The interface of each side.
pub const INTERFACE: &str = "nsm-1";

impl Pair {
    /// The two wires are joined: the second one's memif end is the client of the first one's.
    pub fn joined(shape: Shape) -> Self {
        let first = server();
        let second = MemifSpec { ring: shape.ring, ..client(&first) };
        let pair = Self::new(shape, [first, second]);
        pair.wait_for_carrier();
        pair
    }

    /// The test itself is in the middle, as the client of both wires.
    pub fn inspected(shape: Shape) -> (Self, [Endpoint; 2]) {
        let pair = Self::new(shape, [server(), server()]);
        let open = |spec: &MemifSpec| {
            let spec = MemifSpec { ring: shape.ring, ..client(spec) };
            Endpoint::open(&spec, TIMEOUT).unwrap()
        };
        let ends = pair.middle.each_ref().map(open);
        pair.wait_for_carrier();
        (pair, ends)
    }

    fn new(shape: Shape, middle: [MemifSpec; 2]) -> Self {
        let engine = engine();
        let sides = [TestNetNs::new(), TestNetNs::new()];
        let wires = [0, 1].map(|side| {
            let addresses = [format!("{}/30", ADDRESSES[0][side]), format!("{}/64", ADDRESSES[1][side])];
            let kernel = sides[side].interface(INTERFACE, &addresses.each_ref().map(String::as_str));
            let wire = wire(&KernelSpec { mtu: Some(shape.mtu), ..kernel }, &middle[side]);
            let name = wire.name.clone();
            engine.add(WireSpec { full: shape.full, ..wire }).unwrap();
            name
        });
        Self { engine, sides, wires, middle }
    }

    fn wait_for_carrier(&self) {
        eventually("both wires are up", || self.wires.iter().all(|wire| self.engine.wire(wire).unwrap().is_up()));
        self.sides.iter().for_each(|side| side.wait_for_carrier(INTERFACE));
    }

    /// Frames dropped, for any reason, anywhere.
    pub fn dropped(&self) -> u64 {
        let wires = self.wires.iter().map(|wire| self.engine.wire(wire).unwrap());
        wires.flat_map(|wire| wire.directions).map(|direction| direction.dropped()).sum()
    }
}
