//! A Unix socket without TLS, for this process's user alone.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ferrule_ffi::socket_file::{Access, SocketFile, listen_at};
use ferrule_ffi::unix::Kind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::address::Address;
use super::listen::{ACCEPT_RETRY, BACKLOG, ListenError};

/// Listens, and its file goes when this is dropped.
pub(crate) struct PlainListener {
    listener: UnixListener,
    file: SocketFile,
}

/// One of its connections.
pub(crate) struct PlainStream {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
}

impl PlainListener {
    /// At a path where a dead process may have left one.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let error = |problem| ListenError::new(&Address::Unix(path.to_owned()), problem);
        let (fd, file) = listen_at(Kind::Stream, path, PRIVATE, BACKLOG).map_err(|failed| error(failed.to_string()))?;
        let listener = UnixListener::from_std(fd.into()).map_err(|failed| error(failed.to_string()))?;
        Ok(Self { listener, file })
    }

    /// Its connections, so many at once, until the stream is dropped; and its file.
    pub(crate) fn connections(self, max: usize) -> (ReceiverStream<io::Result<PlainStream>>, SocketFile) {
        let Self { listener, file } = self;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let closed = sender.clone();
            tokio::select! {
                () = closed.closed() => {}
                () = accept_all(&listener, max, sender) => {}
            }
        });
        (ReceiverStream::new(receiver), file)
    }
}

async fn accept_all(listener: &UnixListener, max: usize, sender: mpsc::Sender<io::Result<PlainStream>>) {
    let connections = Arc::new(Semaphore::new(max));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => drop(sender.send(Ok(PlainStream { stream, _permit: permit })).await),
            Err(error) => {
                // Out of descriptors, say. Whoever waits goes on waiting.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

impl Connected for PlainStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for PlainStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for PlainStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Whoever connects without a certificate is whom the socket is for.
const PRIVATE: Access = Access { mode: 0o600, owner: None, group: None };
