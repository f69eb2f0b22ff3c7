//! Connections of the page: so many at a time, and none that says nothing for long or stays for ever. Everybody on the machine may open them,
//! and each holds a descriptor of the daemon.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tracing::warn;

/// Accepts connections while there is room for them; others wait in the backlog.
pub(super) struct BoundedListener {
    socket: TcpListener,
    room: Arc<Semaphore>,
}

impl BoundedListener {
    pub fn new(socket: TcpListener) -> Self {
        Self { socket, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl serve::Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // It is never closed.
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else { std::future::pending().await };
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    let (idle, deadline) = (Box::pin(sleep(IDLE_MAX)), Instant::now() + LIFE_MAX);
                    return (Connection { stream, idle, deadline, _room: room }, peer);
                }
                Err(error) => {
                    warn!(%error, "a client of the metrics page cannot be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// One connection. It fails when nothing has moved for too long, and when it is too old.
pub(super) struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    deadline: Instant,
    _room: OwnedSemaphorePermit,
}

impl Connection {
    /// What the stream said, unless it has had nothing to say for too long.
    fn unless_idle<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            let end = self.deadline.min(Instant::now() + IDLE_MAX);
            self.idle.as_mut().reset(end);
        } else if self.idle.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        moved
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.unless_idle(cx, moved)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_idle(cx, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Prometheus and probes have one each.
const CONNECTIONS_MAX: usize = 64;
/// The next scrape may come on another connection.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Who sends a byte now and then makes room too. Prometheus connects again.
const LIFE_MAX: Duration = Duration::from_mins(1);
/// Between two tries to accept a client that failed.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::super::{Listener, Probes, serve};
    use super::*;
    use crate::Phase;

    #[tokio::test]
    async fn clients_that_say_nothing_neither_take_every_descriptor_nor_the_page() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address();
        let (phase, phases) = watch::channel(Phase::Serving);
        let server = tokio::spawn(serve(listener, Arc::new(|| Ok(String::new())), Probes::default(), phases));
        let mut silent = Vec::new();
        for _ in 0..150 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Ours and the daemon's are in one process here.
        let open = fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(open < silent.len() + CONNECTIONS_MAX + 60, "{open} descriptors");
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = timeout(Duration::from_mins(1), client.read_to_string(&mut answer)).await;
        read.expect("those that say nothing make room").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(silent);
        phase.send_replace(Phase::Stopped);
        server.await.unwrap().unwrap();
    }
}
