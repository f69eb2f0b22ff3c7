//! Listening: sockets whose connections become calls once their peers have shown who they are.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferrule_ffi::socket_file::{Access, SocketFile, listen_at};
use ferrule_ffi::unix::{Kind, UnixListener};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::address::Address;
use super::connection::{SecureStream, Socket};
use super::tcp;
use super::tls::{Allowed, server_config};
use crate::files::FileStream;
use crate::identity::IdentitySource;

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
    /// How many may be about to show who they are; further ones wait in the kernel.
    pub handshakes_max: usize,
    /// How long one may take for it.
    pub handshake_timeout: Duration,
    /// How many connections there may be; a manager keeps one for each connection of the mesh.
    pub connections_max: usize,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self { handshakes_max: 128, handshake_timeout: Duration::from_secs(5), connections_max: 4096 }
    }
}

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}: {problem}")]
pub struct ListenError {
    address: Address,
    problem: String,
}

impl Listener {
    /// Listens at an address, for whoever may connect there and is allowed here.
    pub async fn bind(
        address: &Address,
        identity: IdentitySource,
        allowed: Allowed,
        limits: ListenLimits,
    ) -> Result<Self, ListenError> {
        let error = |problem: String| ListenError { address: address.clone(), problem };
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
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes_max));
        let connections = Arc::new(Semaphore::new(self.limits.connections_max));
        loop {
            let (Ok(handshake), Ok(connection)) =
                (Arc::clone(&handshakes).acquire_owned().await, Arc::clone(&connections).acquire_owned().await)
            else {
                return;
            };
            let socket = match self.socket.accept().await {
                Ok(socket) => socket,
                Err(error) => {
                    // Out of descriptors, say. Whoever waits goes on waiting.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let secured = self.secure(socket, connection);
            let sender = sender.clone();
            tokio::spawn(async move {
                match secured.await {
                    Ok(stream) => drop(sender.send(Ok(stream)).await),
                    Err(error) => tracing::debug!(%error, "a peer has not shown who it is"),
                }
                drop(handshake);
            });
        }
    }

    /// The handshake, with the identity of now.
    fn secure(
        &self,
        socket: Socket,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = io::Result<SecureStream>> + Send + 'static {
        let identity = self.identity.current();
        let config = server_config(&identity, self.allowed.clone());
        let limit = self.limits.handshake_timeout;
        async move {
            let acceptor = TlsAcceptor::from(config.map_err(io::Error::other)?);
            let tls = timeout(limit, acceptor.accept(socket)).await??;
            SecureStream::new(tls.into(), identity.svid, Some(permit))
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

/// A Unix socket without TLS, for this process's user alone, whose file goes when this is dropped.
pub(crate) struct PlainListener {
    pub(crate) listener: tokio::net::UnixListener,
    /// Of the listening socket.
    pub(crate) file: SocketFile,
}

impl PlainListener {
    /// At a path where a dead process may have left one.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let error = |problem| ListenError { address: Address::Unix(path.to_owned()), problem };
        let (fd, file) = listen_at(Kind::Stream, path, PRIVATE, BACKLOG).map_err(|failed| error(failed.to_string()))?;
        let listener = tokio::net::UnixListener::from_std(fd.into()).map_err(|failed| error(failed.to_string()))?;
        Ok(Self { listener, file })
    }
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

    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(listener, _) => {
                let socket = listener.async_io(tokio::io::Interest::READABLE, |listener| listener.0.accept()).await?;
                Ok(Socket::Unix(FileStream::new(socket)?))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                tcp::set_options(&stream)?;
                Ok(Socket::Tcp(stream))
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
/// Whoever connects without a certificate is whom the socket is for.
const PRIVATE: Access = Access { mode: 0o600, owner: None, group: None };
const BACKLOG: u8 = 255;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
