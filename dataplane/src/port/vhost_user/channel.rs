//! A control socket, one message at a time: a stream that messages arrive on in any segments.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::unix::{Kind, Lost, Packet, UnixSocket};
use thiserror::Error;

use crate::port::vhost_user::message::{FILES_MAX, HEADER_LEN, Header, VhostUserMessageError, word_of};
use crate::socket::{self, SocketError};
use crate::spec::SocketAddress;

/// A connected control socket; either side may have connected.
pub struct VhostUserChannel {
    socket: UnixSocket,
    /// What came of the next message so far.
    header: [u8; HEADER_LEN],
    payload: Vec<u8>,
    filled: usize,
    files: Vec<PeerFile>,
}

/// What has come of a message that is not whole yet.
pub(crate) struct HalfMessage<'a> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) files: &'a [PeerFile],
}

/// A whole message, not yet understood.
pub struct RawMessage {
    /// Its header.
    pub header: Header,
    /// Its payload, as long as the header says.
    pub payload: Vec<u8>,
    /// The files that came with it.
    pub files: Vec<PeerFile>,
}

impl VhostUserChannel {
    /// Connects to a peer that listens.
    pub fn connect(address: &SocketAddress) -> Result<Self, SocketError> {
        socket::connect(Kind::Stream, address, None).map(Self::from)
    }

    /// The next message, once it is there as a whole; `None`: not yet.
    pub fn receive(&mut self) -> Result<Option<RawMessage>, VhostUserChannelError> {
        loop {
            // Never more than is left of this message: the files of the next one come with its first byte.
            if self.filled < HEADER_LEN {
                let filled = self.filled;
                let Some(packet) = read(&self.socket, &mut self.header[filled..])? else { return Ok(None) };
                self.take(packet)?;
                continue;
            }
            let header = Header::parse(&self.header)?;
            self.payload.resize(header.size as usize, 0);
            let at = self.filled - HEADER_LEN;
            if at == self.payload.len() {
                self.filled = 0;
                let (payload, files) = (std::mem::take(&mut self.payload), std::mem::take(&mut self.files));
                return Ok(Some(RawMessage { header, payload, files }));
            }
            let Some(packet) = read(&self.socket, &mut self.payload[at..])? else { return Ok(None) };
            self.take(packet)?;
        }
    }

    /// What has come of the next message, for a successor.
    pub(crate) fn half_message(&self) -> HalfMessage<'_> {
        let header = self.filled.min(HEADER_LEN);
        let payload = self.payload.get(..self.filled - header).unwrap_or_default();
        HalfMessage { bytes: [&self.header[..header], payload].concat(), files: &self.files }
    }

    /// A socket whose peer has sent these bytes of its next message already.
    ///
    /// # Errors
    /// The descriptor is no such socket, or the bytes are not the beginning of one message.
    pub(crate) fn restore(socket: OwnedFd, bytes: &[u8], files: Vec<PeerFile>) -> io::Result<Self> {
        let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidInput, problem);
        let mut channel = Self { files, filled: bytes.len(), ..UnixSocket::from_fd(socket, Kind::Stream)?.into() };
        let Some((header, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            channel.header[..bytes.len()].copy_from_slice(bytes);
            return Ok(channel);
        };
        let size = Header::parse(header).map_err(|error| invalid(&error.to_string()))?.size;
        if payload.len() > size as usize {
            return Err(invalid("more has come than one message"));
        }
        (channel.header, channel.payload) = (*header, payload.to_vec());
        Ok(channel)
    }

    /// Lets go of the socket, which a successor has: its peer does not notice.
    pub fn release(self) {
        drop(self.socket.into_fd());
    }

    /// Whether files came with a message that is not whole yet.
    pub fn holds_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Sends a whole message with its files.
    ///
    /// # Errors
    /// Also when the peer does not read: nobody waits for it.
    pub fn send(&self, message: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), VhostUserChannelError> {
        match self.socket.send(message, files) {
            Ok(sent) if sent == message.len() => Ok(()),
            Ok(_) => Err(VhostUserChannelError::NotRead),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::WouldBlock => VhostUserChannelError::NotRead,
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => VhostUserChannelError::Closed,
                _ => error.into(),
            }),
        }
    }

    fn take(&mut self, packet: Packet) -> Result<(), VhostUserChannelError> {
        let request = word_of(u32::from_ne_bytes([self.header[0], self.header[1], self.header[2], self.header[3]]));
        self.filled += packet.len;
        self.files.extend(packet.files);
        if self.files.len() > FILES_MAX {
            return Err(VhostUserChannelError::TooManyFiles { request, count: self.files.len() });
        }
        packet.lost.map_or(Ok(()), |lost| Err(VhostUserChannelError::FilesLost(lost)))
    }
}

/// What there is now; `None`: nothing.
fn read(socket: &UnixSocket, buffer: &mut [u8]) -> Result<Option<Packet>, VhostUserChannelError> {
    match socket.receive(buffer, FILES_MAX + 1) {
        Ok(Some(packet)) => Ok(Some(packet)),
        Ok(None) => Err(VhostUserChannelError::Closed),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(VhostUserChannelError::Closed),
        Err(error) => Err(error.into()),
    }
}

impl From<UnixSocket> for VhostUserChannel {
    /// A peer that was accepted.
    fn from(socket: UnixSocket) -> Self {
        Self { socket, header: [0; HEADER_LEN], payload: Vec::new(), filled: 0, files: Vec::new() }
    }
}

impl AsFd for VhostUserChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Why a channel carries no more messages.
#[derive(Debug, Error)]
pub enum VhostUserChannelError {
    /// What came is no message.
    #[error(transparent)]
    Message(#[from] VhostUserMessageError),
    /// More descriptors than any message has.
    #[error("at least {count} descriptors came with {request}; at most {FILES_MAX} are taken")]
    TooManyFiles {
        /// The message.
        request: &'static str,
        /// How many.
        count: usize,
    },
    /// The kernel could not hand over all descriptors.
    #[error("{0}")]
    FilesLost(Lost),
    /// The peer's socket was closed.
    #[error("the peer closed its socket")]
    Closed,
    /// What we send is not read.
    #[error("the peer does not read its control socket")]
    NotRead,
    /// The socket itself.
    #[error("control socket: {0}")]
    Socket(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::vhost_user::message::{PAYLOAD_MAX, VhostUserRequest, VringFile};
    use ferrule_ffi::notifier::eventfd;
    use ferrule_ffi::unix::UnixListener;
    use nix::sys::socket::UnixAddr;

    fn pair(name: &str) -> (UnixSocket, VhostUserChannel) {
        let name = format!("ferrule-vhost-{name}-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let listener = UnixListener::bind(Kind::Stream, &address, 5).unwrap();
        let peer = UnixSocket::connect(Kind::Stream, &address).unwrap();
        (peer, listener.accept().unwrap().into())
    }

    fn understood(envelope: &RawMessage) -> VhostUserRequest {
        VhostUserRequest::parse(envelope.header.request, &envelope.payload).unwrap()
    }

    #[test]
    fn a_message_that_comes_byte_by_byte_is_whole_at_its_last_byte() {
        let (peer, mut channel) = pair("bytes");
        let request = VhostUserRequest::SetFeatures(0x1234_5678_9abc_def0);
        let bytes = request.emit(false);
        for &byte in &bytes {
            assert!(channel.receive().unwrap().is_none());
            peer.send(&[byte], &[]).unwrap();
        }
        assert_eq!(understood(&channel.receive().unwrap().unwrap()), request);
    }

    #[test]
    fn messages_sent_at_once_are_told_apart_with_their_files() {
        let (peer, mut channel) = pair("together");
        let kick = VhostUserRequest::SetVringKick(VringFile { index: 1, has_file: true });
        let eventfd = eventfd().unwrap();
        peer.send(&[VhostUserRequest::GetFeatures.emit(false), VhostUserRequest::SetOwner.emit(false)].concat(), &[])
            .unwrap();
        peer.send(&kick.emit(false), &[eventfd.as_fd()]).unwrap();
        peer.send(&VhostUserRequest::GetQueueNum.emit(true), &[]).unwrap();
        let mut next = || {
            let envelope = channel.receive().unwrap().unwrap();
            (understood(&envelope), envelope.files.len())
        };
        assert_eq!(next(), (VhostUserRequest::GetFeatures, 0));
        assert_eq!(next(), (VhostUserRequest::SetOwner, 0));
        assert_eq!(next(), (kick, 1));
        assert_eq!(next(), (VhostUserRequest::GetQueueNum, 0));
        assert!(channel.receive().unwrap().is_none());
    }

    #[test]
    fn files_beyond_the_limit_and_headers_that_lie_end_the_channel() {
        let (peer, mut channel) = pair("files");
        let eventfd = eventfd().unwrap();
        peer.send(&VhostUserRequest::GetFeatures.emit(false), &[eventfd.as_fd(); FILES_MAX + 1]).unwrap();
        assert!(matches!(channel.receive(), Err(VhostUserChannelError::TooManyFiles { count: 33, .. })));
        let (peer, mut channel) = pair("header");
        let header = Header { request: 5, flags: 1, size: PAYLOAD_MAX as u32 + 1 };
        peer.send(&header.emit(), &[]).unwrap();
        assert!(matches!(
            channel.receive(),
            Err(VhostUserChannelError::Message(VhostUserMessageError::TooLong { .. }))
        ));
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_waited_for() {
        let (_peer, channel) = pair("deaf");
        let sent = (0..100_000).find_map(|_| channel.send(&VhostUserRequest::GetFeatures.emit(false), &[]).err());
        assert!(matches!(sent, Some(VhostUserChannelError::NotRead)));
    }
}
