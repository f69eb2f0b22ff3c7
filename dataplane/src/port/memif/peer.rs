//! What control keeps of a memif peer, as server and as client.

use std::sync::Arc;
use std::time::Instant;

use ferrule_ffi::memory_budget::MemoryBudget;

use crate::port::memif::channel::Channel;
use crate::port::memif::handshake::{Client, Connection, HandshakeError, Outbox};
use crate::port::memif::layout::{Layout, Loan};
use crate::spec::MemifSpec;

/// A peer whose handshake is finished: with the positions of its queues, all that a successor would need.
pub struct MemifPeer {
    /// Its control socket.
    pub channel: Channel,
    /// The shared memory.
    pub layout: Layout,
}

impl MemifPeer {
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
    pub channel: Channel,
    /// When it is given up.
    pub deadline: Instant,
    /// Taken while it is being led.
    client: Option<Client>,
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
    pub fn new(channel: Channel, loan: Option<Loan>, budget: &Arc<MemoryBudget>, deadline: Instant) -> Self {
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
        while let Ok(Some((message, _))) = self.channel.receive() {
            if let left @ HandshakeError::Left(_) = HandshakeError::after_connect(message) {
                return left;
            }
        }
        error
    }
}
