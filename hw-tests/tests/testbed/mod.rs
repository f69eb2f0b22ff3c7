//! Two wires of ours with testpmd between them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, SocketAddress, WireSpec};
use ferrule_dataplane::status::WireStatus;
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::testpmd::{Testpmd, TestpmdOptions};
use ferrule_hw_tests::{TIMEOUT, eventually, unique};

/// How testpmd and our wires are joined.
#[derive(Clone, Debug)]
pub struct Link {
    /// Our side of the protocol towards testpmd; it plays the other.
    pub ours: Role,
    /// Where the sockets are; none: abstract.
    pub folder: Option<std::path::PathBuf>,
    /// What both sides know.
    pub secret: Option<&'static str>,
    /// Slots of a ring, as a power of two, made by whoever is the client.
    pub log2_ring: u32,
    /// Bytes of a buffer, made by whoever is the client.
    pub buffer: u32,
    /// Queue pairs.
    pub queues: u16,
    /// testpmd, as server, gets the memory of our ends.
    pub trusted: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self { ours: Role::Server, folder: None, secret: None, log2_ring: 10, buffer: 9216, queues: 1, trusted: false }
    }
}

/// An engine with a wire for each of testpmd's two ports.
pub struct Testbed {
    /// What serves the wires.
    pub engine: Engine,
    name: String,
    link: Link,
}

impl Testbed {
    /// The engine and its wires; nobody is at their ends yet.
    pub fn new(link: &Link) -> Self {
        Self::called(unique("pmd"), link)
    }

    /// The same with sockets known by `name`, to take the place of another.
    pub fn called(name: String, link: &Link) -> Self {
        let testbed = Self { engine: engine(), name, link: link.clone() };
        for port in 0..2 {
            let towards_testpmd = testbed.towards_testpmd(port);
            let towards_us = MemifSpec { role: Role::Server, ..testbed.end(port) };
            let ends = [EndSpec::Memif(towards_us), EndSpec::Memif(towards_testpmd)];
            let wire = WireSpec { trusted: link.trusted, ..WireSpec::new(testbed.wire(port), ends) };
            testbed.engine.add(wire).unwrap();
        }
        testbed
    }

    /// By what name its sockets are known.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A testpmd that fits.
    pub fn options(&self) -> TestpmdOptions {
        let devices = (0..2).map(|port| self.device(port)).collect();
        TestpmdOptions { devices, queues: self.link.queues, ..TestpmdOptions::default() }
    }

    /// testpmd's side of wire `port`.
    pub fn device(&self, port: u32) -> String {
        let Link { ours, folder, secret, log2_ring, buffer, .. } = &self.link;
        let role = if *ours == Role::Server { "client" } else { "server" };
        let socket = match folder {
            Some(folder) => format!("socket={}/{}.sock,socket-abstract=no", folder.display(), self.name),
            None => format!("socket={}", self.name),
        };
        let secret = secret.map_or(String::new(), |secret| format!(",secret={secret}"));
        format!("net_memif{port},role={role},id={port},{socket},bsize={buffer},rsize={log2_ring}{secret}")
    }

    /// Our ends of both wires.
    pub fn ends(&self) -> [Endpoint; 2] {
        [0, 1].map(|port| Endpoint::open(&self.end(port), TIMEOUT).unwrap())
    }

    /// What wire `port` is doing.
    pub fn status(&self, port: u32) -> WireStatus {
        self.engine.wire(&self.wire(port)).unwrap()
    }

    /// Waits until testpmd is at both wires, in its eyes (for the `times`-th time) and in ours: a port takes no
    /// frame before its client has seen the connection and, if that is us, has offered buffers.
    pub fn wait_for(&self, testpmd: &Testpmd, times: usize) {
        if !self.link.trusted {
            testpmd.wait_for_connections(2 * times);
        }
        eventually("testpmd is at both wires", || (0..2).all(|port| self.status(port).ends[1].word() == "connected"));
    }

    /// Our end of wire `port`.
    pub fn end(&self, port: u32) -> MemifSpec {
        let socket = format!("@{}-end", self.name).parse().unwrap();
        MemifSpec { id: port, queues: self.link.queues, ..MemifSpec::new(socket, Role::Client) }
    }

    fn wire(&self, port: u32) -> String {
        format!("{}-{port}", self.name)
    }

    fn towards_testpmd(&self, port: u32) -> MemifSpec {
        let socket = match &self.link.folder {
            Some(folder) => SocketAddress::Path(folder.join(format!("{}.sock", self.name))),
            None => SocketAddress::Abstract(self.name.clone()),
        };
        MemifSpec {
            id: port,
            queues: self.link.queues,
            ring: 1 << self.link.log2_ring,
            buffer: self.link.buffer,
            secret: self.link.secret.map(|secret| secret.parse().unwrap()),
            ..MemifSpec::new(socket, self.link.ours)
        }
    }
}

/// An engine with one worker.
pub fn engine() -> Engine {
    Engine::start(&Settings::new(vec![0])).unwrap()
}

/// One testpmd at a time: it polls, and a machine may have two CPUs.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}
