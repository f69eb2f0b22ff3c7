//! Connections of the page: so many at a time, and none that says nothing for long or stays for ever. Everybody on the machine
//! may open them, and each holds a descriptor of the daemon. When all are taken and another client comes, the one that has
//! said nothing for the longest makes room.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tracing::warn;

/// Accepts connections while there is room for them; others wait in the backlog, and one at a time for room.
pub(super) struct BoundedListener {
    socket: TcpListener,
    room: Arc<Semaphore>,
    open: Arc<OpenConnections>,
}

impl BoundedListener {
    pub fn new(socket: TcpListener) -> Self {
        Self { socket, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)), open: Arc::default() }
    }

    /// Room for one more. There is none while all that are open say something.
    async fn room(&self) -> OwnedSemaphorePermit {
        loop {
            let room = Arc::clone(&self.room);
            if let Ok(room) = Arc::clone(&room).try_acquire_owned() {
                return room;
            }
            self.open.end_most_silent(Instant::now());
            // It is never closed.
            if let Ok(Ok(room)) = timeout(PAUSE, room.acquire_owned()).await {
                return room;
            }
        }
    }
}

impl serve::Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => return (Connection::new(stream, self.room().await, &self.open), peer),
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

/// What is known of each connection, by its number.
#[derive(Default)]
struct OpenConnections(Mutex<(HashMap<u64, OpenConnection>, u64)>);

struct OpenConnection {
    /// When it last said something; none: it never has.
    heard: Option<Instant>,
    /// Dropped to end it.
    _end: oneshot::Sender<()>,
}

impl OpenConnections {
    fn add(&self) -> (u64, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let (open, last) = &mut *self.lock();
        *last += 1;
        open.insert(*last, OpenConnection { heard: None, _end: end });
        (*last, ended)
    }

    fn heard(&self, number: u64) {
        if let Some(connection) = self.lock().0.get_mut(&number) {
            connection.heard = Some(Instant::now());
        }
    }

    fn remove(&self, number: u64) {
        self.lock().0.remove(&number);
    }

    /// Ends the oldest that never said anything, or else the one that has been silent for the longest, but for those that
    /// may wait for an answer.
    fn end_most_silent(&self, now: Instant) {
        let (open, _) = &mut *self.lock();
        let may_end = |connection: &OpenConnection| connection.heard.is_none_or(|heard| now - heard > ANSWER_MAX);
        let silent = open.iter().filter(|(_, connection)| may_end(connection));
        let most = silent.min_by_key(|(number, connection)| (connection.heard, **number)).map(|(&number, _)| number);
        if let Some(number) = most {
            open.remove(&number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (HashMap<u64, OpenConnection>, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection. It fails when nothing has moved for too long, when it is too old, and when it is to make room.
pub(super) struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    deadline: Instant,
    number: u64,
    /// It becomes none once it is told that this one is to make room.
    ended: Option<oneshot::Receiver<()>>,
    open: Arc<OpenConnections>,
    _room: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, room: OwnedSemaphorePermit, open: &Arc<OpenConnections>) -> Self {
        let (number, ended) = open.add();
        let (idle, deadline) = (Box::pin(sleep(IDLE_MAX)), Instant::now() + LIFE_MAX);
        Self { stream, idle, deadline, number, ended: Some(ended), open: Arc::clone(open), _room: room }
    }

    /// What the stream said, unless it has had nothing to say for too long.
    fn unless_idle<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            let end = self.deadline.min(Instant::now() + IDLE_MAX);
            self.idle.as_mut().reset(end);
        } else if self.idle.as_mut().poll(cx).is_ready() || self.is_ended(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        moved
    }

    /// Whether it is to make room.
    fn is_ended(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ended.as_mut().is_some_and(|ended| Pin::new(ended).poll(cx).is_ready()) {
            self.ended = None;
        }
        self.ended.is_none()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if moved.is_ready() {
            self.open.heard(self.number);
        }
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

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.remove(self.number);
    }
}

/// Prometheus and probes have one each.
const CONNECTIONS_MAX: usize = 64;
/// The next scrape may come on another connection.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Who sends a byte now and then makes room too. Prometheus connects again.
const LIFE_MAX: Duration = Duration::from_mins(1);
/// Whoever has said something less long ago may wait for his answer, and is not ended for others.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Between two tries to accept a client that failed, or to find room.
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

    #[test]
    fn who_never_said_anything_makes_room_first_and_who_waits_for_an_answer_does_not() {
        let open = OpenConnections::default();
        let mut ends: Vec<_> = (0..4).map(|_| open.add()).collect();
        open.heard(ends[0].0);
        open.heard(ends[2].0);
        let mut ended_at = |now: Instant| -> Vec<usize> {
            open.end_most_silent(now);
            let is_ended =
                |end: &mut oneshot::Receiver<()>| end.try_recv() == Err(oneshot::error::TryRecvError::Closed);
            (0..4).filter(|&number| is_ended(&mut ends[number].1)).collect()
        };
        let spoke = Instant::now();
        assert_eq!(ended_at(spoke), [1]);
        assert_eq!(ended_at(spoke), [1, 3]);
        assert_eq!(ended_at(spoke), [1, 3], "the others wait for an answer");
        assert_eq!(ended_at(spoke + 2 * ANSWER_MAX), [0, 1, 3]);
    }

    #[tokio::test]
    async fn a_client_that_comes_when_all_connections_are_silent_takes_the_place_of_one() {
        let _alone = crate::ALONE.lock().await;
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut bounded = BoundedListener::new(listener.socket);
        let address = listener.address;
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let client = TcpStream::connect(address).await.unwrap();
            open.push((client, serve::Listener::accept(&mut bounded).await.0));
        }
        let _late = TcpStream::connect(address).await.unwrap();
        // Silence alone does not end it here.
        let (_client, mut oldest) = open.remove(0);
        oldest.idle.as_mut().reset(Instant::now() + Duration::from_hours(1));
        let made_room = tokio::spawn(async move { oldest.read(&mut [0]).await.map_err(|error| error.kind()) });
        let accepted = timeout(Duration::from_mins(1), serve::Listener::accept(&mut bounded)).await;
        assert!(accepted.is_ok(), "it has room");
        assert_eq!(made_room.await.unwrap(), Err(io::ErrorKind::TimedOut));
        drop(open);
    }

    #[tokio::test]
    async fn clients_that_say_nothing_neither_take_every_descriptor_nor_the_page() {
        let _alone = crate::ALONE.lock().await;
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
