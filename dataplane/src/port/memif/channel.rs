//! A control socket, one message at a time.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::unix::{Kind, Lost, UnixSocket};

use crate::port::memif::handshake::{HandshakeError, Outbox};
use crate::port::memif::message::{MESSAGE_LEN, MemifMessage};
use crate::socket::{self, SocketError};
use crate::spec::{NetNs, SocketAddress};

/// A connected control socket.
pub struct MemifChannel(UnixSocket);

impl MemifChannel {
    /// Connects to a server.
    pub fn connect(address: &SocketAddress, netns: Option<&NetNs>) -> Result<Self, SocketError> {
        socket::connect(Kind::SeqPacket, address, netns).map(Self)
    }

    /// The next message and the files that came with it; `None`: nothing now.
    pub fn receive(&self) -> Result<Option<(MemifMessage, Vec<PeerFile>)>, HandshakeError> {
        // One byte more than a message, so that a longer packet is seen to be longer.
        let mut buffer = [0; MESSAGE_LEN + 1];
        let packet = match self.0.receive(&mut buffer, FILES_MAX) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err(HandshakeError::Closed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(HandshakeError::Closed),
            Err(error) => return Err(error.into()),
        };
        // Too many bytes or files are too many for every message, and refused for that.
        if let Some(lost @ (Lost::NoRoomForFiles | Lost::TableFull)) = packet.lost {
            return Err(HandshakeError::FilesLost(lost));
        }
        Ok(Some((MemifMessage::parse(&buffer[..packet.len])?, packet.files)))
    }

    /// Sends everything in the box.
    ///
    /// # Errors
    /// Also when the peer does not read: nobody waits for it.
    pub fn send(&self, out: &mut Outbox) -> Result<(), HandshakeError> {
        while let Some((message, file)) = out.0.pop_front() {
            let files: ArrayVec<_, 1> = file.iter().map(AsFd::as_fd).collect();
            self.0.send(&message.emit(), &files).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => HandshakeError::Deaf,
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => HandshakeError::Closed,
                _ => error.into(),
            })?;
        }
        Ok(())
    }

    /// Tells the peer why the connection ends.
    pub fn send_disconnect(&self, reason: &impl fmt::Display) {
        let message = MemifMessage::Disconnect { code: 0, reason: reason.to_string() };
        let _ = self.0.send(&message.emit(), &[]);
    }
}

impl From<UnixSocket> for MemifChannel {
    /// A client that a listener of packets accepted.
    fn from(socket: UnixSocket) -> Self {
        Self(socket)
    }
}

impl From<MemifChannel> for OwnedFd {
    /// The socket for a successor; the peer sees no end of the connection.
    fn from(channel: MemifChannel) -> Self {
        channel.0.into_fd()
    }
}

impl TryFrom<OwnedFd> for MemifChannel {
    type Error = io::Error;

    /// The socket of a connection that a predecessor has led.
    fn try_from(socket: OwnedFd) -> io::Result<Self> {
        UnixSocket::from_fd(socket, Kind::SeqPacket).map(Self)
    }
}

impl AsFd for MemifChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One more than any message has, so that a message with too many is refused for that.
const FILES_MAX: usize = 2;
