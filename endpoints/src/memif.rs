//! A memif interface for a program of ours that is the peer at one end of a wire: responder, generator, test.
//!
//! It blocks: the handshake is led on the calling thread, with a deadline. The data path is the same
//! as a wire's: [`Receiver`](ferrule_dataplane::port::memif::ring::Receiver) and [`Sender`](ferrule_dataplane::port::memif::ring::Sender).

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use ferrule_dataplane::port::Source;
use ferrule_dataplane::port::memif::channel::MemifChannel;
use ferrule_dataplane::port::memif::handshake::{Client, Connection, HandshakeError, MemifOffer, Outbox, Server};
use ferrule_dataplane::port::memif::layout::{Layout, Queues};
use ferrule_dataplane::socket::{Listener, SocketError};
use ferrule_dataplane::spec::{MemifSpec, Prealloc, Role, SocketAddress};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::region::Region;
use ferrule_ffi::unix::Kind;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

/// A connected interface.
pub struct Endpoint {
    /// What the peer calls itself.
    pub peer: String,
    /// Our ends of the rings.
    pub queues: Queues,
    channel: MemifChannel,
    layout: Layout,
    _listener: Option<Listener>,
}

impl Endpoint {
    /// Connects to a server that is or comes there, or listens until a client comes.
    pub fn open(spec: &MemifSpec, timeout: Duration) -> Result<Self, EndpointError> {
        let deadline = Instant::now() + timeout;
        match spec.role {
            Role::Client => Self::connect(spec, deadline),
            Role::Server => Self::listen(spec, deadline),
        }
    }

    /// The files of the memory that the connection has, in the order of its regions.
    pub fn regions(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.layout.regions().map(|(_, file)| file)
    }

    /// What becomes readable when the peer says something or goes; then ask [`Self::check_peer`].
    pub fn control(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Reads what the peer has said on the control socket, without waiting.
    ///
    /// # Errors
    /// The peer has gone, and why.
    pub fn check_peer(&self) -> Result<(), HandshakeError> {
        match self.channel.receive()? {
            None => Ok(()),
            Some((message, _)) => Err(HandshakeError::after_connect(message)),
        }
    }

    /// Sleeps until the peer rings for a frame, says something, or `timeout` is over.
    pub fn sleep(&mut self, timeout: Duration) {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        for receiver in &mut self.queues.receivers {
            receiver.enable_notify(true);
        }
        // Looked at once more after asking for eventfds, as the protocol wants.
        if !self.queues.receivers.iter_mut().any(|receiver| receiver.refresh().unwrap_or(true)) {
            let eventfds = self.queues.receivers.iter().filter_map(Source::notify_fd);
            let sockets = std::iter::once(self.channel.as_fd()).chain(eventfds);
            let mut waiting: Vec<_> = sockets.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let _ = poll(&mut waiting, timeout);
        }
        for receiver in &mut self.queues.receivers {
            receiver.enable_notify(false);
            receiver.clear_notify();
        }
    }

    fn connect(spec: &MemifSpec, deadline: Instant) -> Result<Self, EndpointError> {
        // Why the try before the last failed tells more than that the last had no time left.
        let mut problem = EndpointError::Timeout;
        loop {
            let outcome = MemifChannel::connect(&spec.socket, spec.netns.as_ref()).map_err(EndpointError::from);
            match outcome.and_then(|channel| lead_client(channel, spec, deadline)) {
                Ok(endpoint) => return Ok(endpoint),
                Err(EndpointError::Timeout) => return Err(problem),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(error) => problem = error,
            }
            thread::sleep(RETRY);
        }
    }

    fn listen(spec: &MemifSpec, deadline: Instant) -> Result<Self, EndpointError> {
        let listener = Listener::bind(Kind::SeqPacket, &spec.socket, spec.netns.as_ref(), &spec.access)?;
        loop {
            wait(&listener, deadline).map_err(|error| match error {
                EndpointError::Timeout => EndpointError::NoClient(spec.socket.clone()),
                error => error,
            })?;
            // A client that fails its handshake does not end the wait for a better one.
            if let Ok(socket) = listener.accept()
                && let Ok(endpoint) = lead_server(socket.into(), spec, deadline)
            {
                return Ok(Self { _listener: Some(listener), ..endpoint });
            }
        }
    }

    fn new(channel: MemifChannel, connection: Connection) -> Self {
        let Connection { peer, layout, queues, .. } = connection;
        Self { peer, queues, channel, layout, _listener: None }
    }
}

fn lead_client(channel: MemifChannel, spec: &MemifSpec, deadline: Instant) -> Result<Endpoint, EndpointError> {
    let mut client = Client::ExpectHello(None, MemoryBudget::unlimited());
    let mut out = Outbox::default();
    loop {
        wait(&channel, deadline)?;
        let Some((message, files)) = channel.receive()? else { continue };
        client = client.handle(message, &files, spec, &mut out)?;
        channel.send(&mut out)?;
        if let Client::Connected(connection) = client {
            if spec.prealloc != Prealloc::Never {
                connection.layout.own_regions().iter().for_each(Region::populate);
            }
            return Ok(Endpoint::new(channel, *connection));
        }
    }
}

fn lead_server(channel: MemifChannel, spec: &MemifSpec, deadline: Instant) -> Result<Endpoint, EndpointError> {
    // Nobody else pays for what our own peer makes us populate.
    let memory = &MemoryBudget::unlimited();
    let offer = |id| {
        let offer = MemifOffer { mode: spec.mode, secret: spec.secret.as_ref(), queues: spec.queues, memory };
        if id == spec.id { Ok(offer) } else { Err(HandshakeError::UnknownId(id)) }
    };
    let mut out = Outbox::default();
    let mut server = Server::greet(spec.queues, &mut out);
    loop {
        channel.send(&mut out)?;
        if let Server::Connected(connection) = server {
            return Ok(Endpoint::new(channel, *connection));
        }
        wait(&channel, deadline)?;
        let Some((message, files)) = channel.receive()? else { continue };
        let say_why = |refusal: &HandshakeError| {
            if refusal.should_tell_peer() {
                channel.send_disconnect(refusal);
            }
        };
        server = server.handle(message, files, offer, &mut out).inspect_err(say_why)?;
    }
}

/// Waits until something can be read.
fn wait(socket: &impl AsFd, deadline: Instant) -> Result<(), EndpointError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(EndpointError::Timeout),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(HandshakeError::Socket(errno.into()).into()),
    }
}

/// Why an endpoint has no peer.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The handshake.
    #[error("memif handshake: {0}")]
    HandshakeError(#[from] HandshakeError),
    /// The peer took too long.
    #[error("no peer came in time")]
    Timeout,
    /// We listen, and nobody came.
    #[error("nobody connected to {0}; is there a client end of the wire that has this socket?")]
    NoClient(SocketAddress),
}

/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(20);
