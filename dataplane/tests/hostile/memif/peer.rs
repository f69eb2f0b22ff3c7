//! A client that says what it likes on the control socket.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ferrule_dataplane::port::memif::message::{AddRegion, Init, MESSAGE_LEN, MemifMessage, VERSION};
use ferrule_dataplane::spec::SocketAddress;
use nix::sys::socket::{MsgFlags, SockType, recvmsg};

use crate::raw;
use crate::testbed::{SECRET, Testbed};

/// A control socket without manners.
pub struct Peer(pub OwnedFd);

impl Peer {
    /// Connects and says nothing.
    pub fn connect(testbed: &Testbed) -> Self {
        Self::connect_to(&testbed.socket)
    }

    pub fn connect_to(address: &SocketAddress) -> Self {
        Self::try_connect(address).expect("the server listens")
    }

    /// `None`: there is no descriptor left.
    pub fn try_connect(address: &SocketAddress) -> Option<Self> {
        raw::connect(SockType::SeqPacket, address).map(Self)
    }

    /// Connects and asks for the attacked interface.
    pub fn init(testbed: &Testbed) -> Self {
        let peer = Self::connect(testbed);
        peer.say(&MemifMessage::Init(init()), &[]);
        assert!(matches!(peer.hear(), Some(MemifMessage::Hello(_))));
        assert_eq!(peer.hear(), Some(MemifMessage::Ack));
        peer
    }

    /// Sends any bytes with any descriptors. Whether the socket took them.
    pub fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> bool {
        raw::send(&self.0, bytes, files).is_ok()
    }

    pub fn say(&self, message: &MemifMessage, files: &[BorrowedFd<'_>]) {
        self.send(&message.emit(), files);
    }

    /// Announces a file as the next region.
    pub fn region(&self, index: u16, size: u64, file: impl AsFd) {
        self.say(&MemifMessage::AddRegion(AddRegion { index, size }), &[file.as_fd()]);
    }

    /// Says CONNECT and is let in.
    pub fn finish(&self) {
        self.say(&MemifMessage::Connect { name: "setup".to_owned() }, &[]);
        assert!(matches!(self.hear(), Some(MemifMessage::Connected { .. })));
    }

    /// The next message; `None`: the other side has closed.
    pub fn hear(&self) -> Option<MemifMessage> {
        let mut bytes = [0; MESSAGE_LEN];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut receive =
            || recvmsg::<()>(self.0.as_raw_fd(), &mut parts, None, MsgFlags::empty()).map(|received| received.bytes);
        // A side that closes without having read everything is reported first, and what it said comes behind that.
        let received = match receive() {
            Err(nix::Error::ECONNRESET) => receive(),
            received => received,
        };
        match received {
            Ok(0) | Err(nix::Error::ECONNRESET | nix::Error::EPIPE) => None,
            Ok(_) => Some(MemifMessage::parse(&bytes).unwrap()),
            Err(errno) => panic!("nothing heard on the control socket: {errno}"),
        }
    }

    /// Hears everything until the other side closes. The reason it gave, if any.
    pub fn goodbye(&self) -> Option<String> {
        let mut reason = None;
        while let Some(message) = self.hear() {
            if let MemifMessage::Disconnect { reason: given, .. } = message {
                reason = Some(given);
            }
        }
        reason
    }

    /// Waits for a goodbye that says `text`.
    pub fn is_refused(&self, text: &str) {
        let reason = self.goodbye();
        assert!(reason.as_ref().is_some_and(|reason| reason.contains(text)), "`{text}` expected, {reason:?} heard");
    }
}

/// A correct INIT for the attacked interface.
pub fn init() -> Init {
    let mut secret = [0; 24];
    secret[..SECRET.len()].copy_from_slice(SECRET.as_bytes());
    Init { version: VERSION, id: 0, mode: 0, secret, name: "\u{1b}[2Jhostile\n".to_owned() }
}
