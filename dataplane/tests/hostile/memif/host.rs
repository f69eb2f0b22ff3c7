//! A server that says what it likes to our client ends.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ferrule_dataplane::port::memif::message::{AddRing, Direction, Hello, MESSAGE_LEN, MemifMessage, VERSION};
use ferrule_ffi::region::{Index, Region, Table};
use ferrule_ffi::unix::{Kind, UnixListener, UnixSocket};
use nix::poll::{PollFd, PollFlags, poll};

use crate::raw::unix_address;
use crate::testbed::Testbed;

/// A listening socket in the place where the attacked client expects an honest server.
pub struct Host {
    listener: UnixListener,
}

/// A client that came.
pub struct Guest {
    pub socket: UnixSocket,
    pub regions: Vec<Region>,
    pub rings: Vec<AddRing>,
    pub files: Vec<OwnedFd>,
}

impl Host {
    pub fn open(testbed: &Testbed) -> Self {
        Self { listener: UnixListener::bind(Kind::SeqPacket, &unix_address(&testbed.socket), 16).unwrap() }
    }

    /// The next client that comes, or comes back.
    pub fn welcome(&self) -> Guest {
        wait(&self.listener);
        let socket = self.listener.accept().unwrap();
        Guest { socket, regions: Vec::new(), rings: Vec::new(), files: Vec::new() }
    }
}

impl Guest {
    pub fn say(&self, message: &MemifMessage) {
        // A client that has already had enough hears nothing more.
        let _ = self.socket.send(&message.emit(), &[]);
    }

    /// The next message; `None`: the client has gone.
    pub fn hear(&mut self) -> Option<MemifMessage> {
        wait(&self.socket);
        let mut bytes = [0; MESSAGE_LEN];
        let packet = self.socket.receive(&mut bytes, 2).ok()??;
        self.files.extend(packet.files.into_iter().map(|file| file.as_fd().try_clone_to_owned().unwrap()));
        Some(MemifMessage::parse(&bytes).unwrap())
    }

    /// Hears everything until the client goes. The reason it gave, if any.
    pub fn goodbye(&mut self) -> Option<String> {
        let mut reason = None;
        while let Some(message) = self.hear() {
            if let MemifMessage::Disconnect { reason: given, .. } = message {
                reason = Some(given);
            }
        }
        reason
    }

    /// Leads the handshake to its end, with any HELLO.
    pub fn serve(&mut self, hello: Hello) {
        self.say(&MemifMessage::Hello(hello));
        loop {
            match self.hear().expect("the client announces itself") {
                MemifMessage::AddRegion(region) => {
                    let file = self.files.last().unwrap().try_clone().unwrap();
                    self.regions.push(Region::map(file, region.size, &Arc::default()).unwrap());
                }
                MemifMessage::AddRing(ring) => self.rings.push(ring),
                MemifMessage::Connect { .. } => break,
                _ => {}
            }
            self.say(&MemifMessage::Ack);
        }
        self.say(&MemifMessage::Connected { name: "host".to_owned() });
    }

    /// The parts of the first ring of a direction: head, tail, flags and slots.
    pub fn ring(&self, direction: Direction) -> (Index, Index, Index, Table) {
        let ring = self.rings.iter().find(|ring| ring.direction == direction).unwrap();
        let (memory, at) = (&self.regions[usize::from(ring.region)], u64::from(ring.offset));
        let index = |offset| memory.index(at + offset).unwrap();
        (index(6), index(64), index(4), memory.table(at + 128, 1 << ring.log2_size).unwrap())
    }
}

/// An honest HELLO.
pub fn hello() -> Hello {
    Hello {
        name: "host".to_owned(),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 255,
        max_m2s_ring: 255,
        max_s2m_ring: 255,
        max_log2_ring_size: 14,
    }
}

fn wait(socket: &impl AsFd) {
    let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], 5000u16);
    assert_eq!(ready, Ok(1), "nobody came, or nothing was said");
}
