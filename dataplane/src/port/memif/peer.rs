//! What control keeps of a memif peer, as server and as client.

use std::sync::Arc;
use std::time::Instant;

use ferrule_ffi::memory_budget::MemoryBudget;

use crate::port::MESSAGES_PER_EVENT;
use crate::port::memif::channel::MemifChannel;
use crate::port::memif::handshake::{Client, Connection, HandshakeError, Outbox};
use crate::port::memif::layout::{Layout, Loan};
use crate::spec::MemifSpec;

/// A peer whose handshake is finished: with the positions of its queues, all that a successor would need.
pub struct MemifPeer {
    /// Its control socket.
    pub channel: MemifChannel,
    /// The shared memory.
    pub layout: Layout,
}

impl MemifPeer {
    /// Whether its memory is that of another peer.
    pub fn is_lent(&self) -> bool {
        self.layout.is_lent()
    }

    /// Listens to its control socket. Nothing that a peer can say there leaves it connected.
    pub fn listen(&self) -> Result<(), HandshakeError> {
        match self.channel.receive()? {
            None => Ok(()),
            Some((message, _)) => Err(HandshakeError::after_connect(message)),
        }
    }
}

/// Our conversation as client with a server.
pub struct ClientHandshake {
    /// The control socket.
    pub channel: MemifChannel,
    /// When it is given up.
    pub deadline: Instant,
    /// Taken while it is being led.
    pub(super) client: Option<Client>,
}

/// What one message of the server has brought.
pub enum ClientStep {
    /// There was none.
    Nothing,
    /// One more step.
    Continued,
    /// The last one.
    Connected(Box<Connection>),
}

impl ClientHandshake {
    /// On a socket that is connected; `loan` is another peer's memory, to be lent to the server. What we populate of our
    /// own is charged to `budget`: the server may keep it.
    pub fn new(channel: MemifChannel, loan: Option<Loan>, budget: &Arc<MemoryBudget>, deadline: Instant) -> Self {
        Self { channel, deadline, client: Some(Client::ExpectHello(loan, Arc::clone(budget))) }
    }

    /// Takes one message of the server, if there is one, and answers it.
    pub fn step(&mut self, spec: &MemifSpec) -> Result<ClientStep, HandshakeError> {
        let Some((message, files)) = self.channel.receive()? else { return Ok(ClientStep::Nothing) };
        let mut out = Outbox::default();
        let client = self.client.take().ok_or(HandshakeError::Closed)?;
        let next = client.handle(message, &files, spec, &mut out)?;
        self.channel.send(&mut out).map_err(|error| self.reason_of_close(error))?;
        if let Client::Connected(connection) = next {
            return Ok(ClientStep::Connected(connection));
        }
        self.client = Some(next);
        Ok(ClientStep::Continued)
    }

    /// A server that refuses us says why and closes its socket. What it said may still be there to be read when our
    /// next message does not reach it any more.
    fn reason_of_close(&self, error: HandshakeError) -> HandshakeError {
        if !matches!(error, HandshakeError::Closed) {
            return error;
        }
        // A server that reads no more can still send for ever.
        for _ in 0..MESSAGES_PER_EVENT {
            let Ok(Some((message, _))) = self.channel.receive() else { break };
            if let left @ HandshakeError::Left(_) = HandshakeError::after_connect(message) {
                return left;
            }
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use crate::port::memif::message::MemifMessage;

    fn handshake() -> (ClientHandshake, MemifChannel) {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (client, server) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let channel = |socket: OwnedFd| MemifChannel::try_from(socket).unwrap();
        let client = ClientHandshake::new(channel(client), None, &MemoryBudget::new(0), Instant::now());
        (client, channel(server))
    }

    fn send(channel: &MemifChannel, message: MemifMessage) {
        let mut out = Outbox::default();
        out.0.push_back((message, None));
        channel.send(&mut out).unwrap();
    }

    #[test]
    fn the_reason_of_a_server_that_has_closed_is_read_and_a_flood_is_not() {
        let (client, server) = handshake();
        send(&server, MemifMessage::Ack);
        server.send_disconnect(&"no such interface");
        let reason = client.reason_of_close(HandshakeError::Closed);
        assert!(matches!(reason, HandshakeError::Left(_)), "{reason}");

        let (client, server) = handshake();
        (0..2 * MESSAGES_PER_EVENT).for_each(|_| send(&server, MemifMessage::Ack));
        assert!(matches!(client.reason_of_close(HandshakeError::Closed), HandshakeError::Closed));
        let left = std::iter::from_fn(|| client.channel.receive().unwrap()).count();
        assert_eq!(left, MESSAGES_PER_EVENT);
    }
}
