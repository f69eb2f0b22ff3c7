//! Listening: sockets whose connections become calls once their peers have shown who they are.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use ferrule_ffi::socket_file::{Access, SocketFile};
use ferrule_ffi::unix::{Kind, UnixListener};
use rustix::net::sockopt::socket_peercred;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::address::Address;
use super::connection::{PeerQuotas, SecureStream, Socket};
use super::handshakes::{Handshakes, Source};
use super::tcp;
use super::tls::{Allowed, server_config};
use crate::files::FileStream;
use crate::identity::IdentitySource;
use crate::quota::Quota;

/// A listening socket that is not served yet.
pub struct Listener {
    socket: ListeningSocket,
    identity: IdentitySource,
    allowed: Allowed,
    limits: ListenLimits,
}

/// What peers of one listening socket may take.
#[derive(Clone, Copy, Debug)]
pub struct ListenLimits {
    /// How many may be about to show who they are.
    pub handshakes_max: usize,
    /// How many of them may come from one user or address. Beyond that the oldest goes.
    pub handshakes_of_one_max: usize,
    /// How long one may take for it.
    pub handshake_timeout: Duration,
    /// How many connections there may be; a manager keeps one for each connection of the mesh. Further ones wait in the kernel.
    pub connections_max: usize,
    /// How many of them may be of one SPIFFE ID. Further ones are ended.
    pub connections_of_one_max: usize,
    /// How many files that peers have passed may wait for their calls.
    pub files_max: usize,
    /// How many of them may be of one SPIFFE ID.
    pub files_of_one_max: usize,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            handshakes_max: 512,
            handshakes_of_one_max: 256,
            handshake_timeout: Duration::from_secs(2),
            connections_max: 8 << 10,
            connections_of_one_max: 2 << 10,
            files_max: 4 << 10,
            files_of_one_max: 1 << 10,
        }
    }
}

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}: {problem}")]
pub struct ListenError {
    address: Address,
    problem: String,
}

impl ListenError {
    pub(super) fn new(address: &Address, problem: String) -> Self {
        Self { address: address.clone(), problem }
    }
}

impl Listener {
    /// Listens at an address, for whoever may connect there and is allowed here.
    pub async fn bind(
        address: &Address,
        identity: IdentitySource,
        allowed: Allowed,
        limits: ListenLimits,
    ) -> Result<Self, ListenError> {
        let error = |problem: String| ListenError::new(address, problem);
        let socket = match address {
            Address::Unix(path) => {
                let bound = UnixListener::bind_path(Kind::Stream, path, ACCESS, BACKLOG);
                let (listener, file) = bound.map_err(|problem| error(problem.to_string()))?;
                ListeningSocket::unix(listener, file).map_err(|problem| error(problem.to_string()))?
            }
            Address::Tcp(host_port) => {
                let listener = TcpListener::bind(host_port).await;
                ListeningSocket::Tcp(listener.map_err(|problem| error(problem.to_string()))?)
            }
        };
        Ok(Self { socket, identity, allowed, limits })
    }

    /// The port, if it is one.
    pub fn port(&self) -> Option<u16> {
        match &self.socket {
            ListeningSocket::Unix(..) => None,
            ListeningSocket::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
        }
    }

    /// Its connections, for [`server`]. It listens until the stream is dropped.
    pub fn connections(self) -> ReceiverStream<io::Result<SecureStream>> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let closed = sender.clone();
            tokio::select! {
                () = closed.closed() => {}
                () = self.accept_all(sender) => {}
            }
        });
        ReceiverStream::new(receiver)
    }

    async fn accept_all(&self, sender: mpsc::Sender<io::Result<SecureStream>>) {
        let limits = &self.limits;
        let handshakes = Handshakes::new(limits.handshakes_max, limits.handshakes_of_one_max);
        let connections = Arc::new(Semaphore::new(limits.connections_max));
        let quotas = Arc::new(PeerQuotas {
            connections: Quota::new(limits.connections_max, limits.connections_of_one_max),
            files: Quota::new(limits.files_max, limits.files_of_one_max),
        });
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let (socket, source) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, say. Whoever waits goes on waiting.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            // What is wrong with one connection, which may have been reset already, delays no other.
            let Ok(socket) = socket.inspect_err(|error| tracing::debug!(%error, "a peer is not served")) else {
                continue;
            };
            let secured = self.secure(socket, permit, Arc::clone(&quotas));
            let sender = sender.clone();
            let handshake = async move {
                match secured.await {
                    // It is not to be ended any more.
                    Ok(stream) => drop(tokio::spawn(async move { drop(sender.send(Ok(stream)).await) })),
                    Err(error) => tracing::debug!(%error, "a peer is not served"),
                }
            };
            handshakes.run(source, handshake).await;
        }
    }

    /// The handshake, with the identity of now.
    fn secure(
        &self,
        socket: Socket,
        permit: OwnedSemaphorePermit,
        quotas: Arc<PeerQuotas>,
    ) -> impl Future<Output = io::Result<SecureStream>> + Send + 'static {
        let identity = self.identity.current();
        let config = server_config(&identity, self.allowed.clone());
        let limit = self.limits.handshake_timeout;
        async move {
            let acceptor = TlsAcceptor::from(config.map_err(io::Error::other)?);
            let tls = timeout(limit, acceptor.accept(socket)).await??;
            SecureStream::accepted(tls.into(), identity.svid, permit, &quotas)
        }
    }
}

/// A server of the calls of many peers, with the limits that one of them may not break.
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
}

enum ListeningSocket {
    /// With its file, which goes when this is dropped.
    Unix(AsyncFd<Listening>, #[expect(dead_code, reason = "it is held")] SocketFile),
    Tcp(TcpListener),
}

impl ListeningSocket {
    #[expect(
        deprecated,
        reason = "unsafe only for types that do not own their descriptor; ours does, and the successor is an unsafe fn"
    )]
    fn unix(listener: UnixListener, file: SocketFile) -> io::Result<Self> {
        Ok(Self::Unix(AsyncFd::new(Listening(listener))?, file))
    }

    /// The next connection, or what is wrong with it, and where it comes from. An error of the outer kind is of the listening socket.
    async fn accept(&self) -> io::Result<(io::Result<Socket>, Source)> {
        match self {
            Self::Unix(listener, _) => {
                let socket = listener.async_io(tokio::io::Interest::READABLE, |listener| listener.0.accept()).await?;
                let source = Source::User(socket_peercred(&socket)?.uid.as_raw());
                Ok((FileStream::new(socket).map(Socket::Unix), source))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let socket = tcp::set_options(&stream).map(|()| Socket::Tcp(stream));
                Ok((socket, Source::of_address(address.ip())))
            }
        }
    }
}

struct Listening(UnixListener);

impl AsRawFd for Listening {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Go programs at log level TRACE send 47 values, some 8 KiB.
const HEADERS_MAX: u32 = 16 << 10;
/// Calls of one connection at once, of which each watcher is one.
const STREAMS_MAX: u32 = 1024;
const RESETS_MAX: usize = 64;
/// Whoever can reach the directory may connect: certificates tell who it is.
const ACCESS: Access = Access { mode: 0o666, owner: None, group: None };
pub(super) const BACKLOG: u8 = 255;
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(100);
