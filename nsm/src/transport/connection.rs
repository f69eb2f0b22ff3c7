//! One connection: TLS over a socket, and who is at its ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use crate::files::{FileStream, Files};
use crate::identity::{Certificate, Svid};
use crate::quota::{Quota, Share};

/// Who is at the other end of one connection, and who we are there. Every call has it in its extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    certificate: Arc<Certificate>,
    svid: Arc<Svid>,
    files: Option<Files>,
}

impl Peer {
    /// Who it is.
    pub fn certificate(&self) -> &Arc<Certificate> {
        &self.certificate
    }

    /// Who we are here: a rotation changes new connections only, and tokens are checked against the certificate of theirs.
    pub fn svid(&self) -> &Arc<Svid> {
        &self.svid
    }

    /// Files that are passed beside the calls; none over TCP.
    pub fn files(&self) -> Option<&Files> {
        self.files.as_ref()
    }
}

/// The bytes of a connection whose handshake is over.
pub struct SecureStream {
    tls: TlsStream<Socket>,
    peer: Peer,
    /// The first bytes, if they were waited for.
    first: Vec<u8>,
    /// When it is dropped, those who wait for the end learn of it.
    ends: Option<watch::Sender<()>>,
    /// What it counts in, until it ends.
    counted: Option<(OwnedSemaphorePermit, Share)>,
}

impl SecureStream {
    /// One that was accepted.
    pub(super) fn accepted(
        tls: TlsStream<Socket>,
        svid: Arc<Svid>,
        permit: OwnedSemaphorePermit,
        quotas: &PeerQuotas,
    ) -> io::Result<Self> {
        let mut stream = Self::new(tls, svid, &quotas.files)?;
        let id = stream.peer.certificate.id();
        let full = |error| io::Error::new(io::ErrorKind::QuotaExceeded, format!("a connection of {id}: {error}"));
        let share = quotas.connections.take(id.as_str()).map_err(full)?;
        stream.counted = Some((permit, share));
        Ok(stream)
    }

    /// One that we have made. The other side believes us when its first bytes come: nothing is passed to it before.
    pub(super) async fn dialed(tls: TlsStream<Socket>, svid: Arc<Svid>) -> io::Result<Self> {
        let mut stream = Self::new(tls, svid, &Quota::new(DIALED_FILES_MAX, DIALED_FILES_MAX))?;
        let mut first = vec![0; FIRST_MAX];
        let len = stream.tls.read(&mut first).await?;
        if len == 0 {
            let problem = "the other side has ended the connection: it does not believe us, or has enough connections";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        first.truncate(len);
        stream.first = first;
        Ok(stream)
    }

    fn new(tls: TlsStream<Socket>, svid: Arc<Svid>, files: &Arc<Quota>) -> io::Result<Self> {
        let (socket, session) = tls.get_ref();
        let leaf: Option<&CertificateDer<'_>> = session.peer_certificates().and_then(<[_]>::first);
        let leaf =
            leaf.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the peer has shown no certificate"))?;
        let certificate = Certificate::from_der(leaf)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let peer = Peer { certificate: Arc::new(certificate), svid, files: socket.files().cloned() };
        if let Some(opened) = peer.files() {
            opened.open(files, peer.certificate.id());
        }
        Ok(Self { tls, peer, first: Vec::new(), ends: None, counted: None })
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Ends for whoever waits when this stream is dropped.
    pub(super) fn ended(&mut self) -> watch::Receiver<()> {
        let (sender, receiver) = watch::channel(());
        self.ends = Some(sender);
        receiver
    }
}

impl Connected for SecureStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..count]);
            self.first.drain(..count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

/// What the peers of one listening socket may have, once it is known who they are.
pub(super) struct PeerQuotas {
    pub(super) connections: Arc<Quota>,
    pub(super) files: Arc<Quota>,
}

/// What TLS runs over.
pub(super) enum Socket {
    Unix(FileStream),
    Tcp(TcpStream),
}

impl Socket {
    fn files(&self) -> Option<&Files> {
        match self {
            Self::Unix(stream) => Some(stream.files()),
            Self::Tcp(_) => None,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A registry passes as many at once as there are endpoints on a node.
const DIALED_FILES_MAX: usize = 4 << 10;
/// The settings of HTTP/2, which come first.
const FIRST_MAX: usize = 4 << 10;

#[cfg(test)]
impl Peer {
    /// As a server with the identity `own` sees a caller, without a connection.
    pub(crate) fn seen_by(own: &crate::identity::Identity, caller: &crate::identity::Identity) -> Self {
        Self { certificate: Arc::new(caller.svid.certificate().clone()), svid: Arc::clone(&own.svid), files: None }
    }
}
