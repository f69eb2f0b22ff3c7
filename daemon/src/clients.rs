//! How many clients of a socket one user may be at once: each has a descriptor of the daemon, and memory.
//!
//! The daemon's own user and root have a share of their own, so that they reach it whoever else is there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::transport::server::{Connected, UdsConnectInfo};
use tracing::warn;

/// A client of a socket, and its place among those of its user.
#[derive(Debug)]
pub struct SocketClient {
    stream: UnixStream,
    _place: Place,
}

impl Connected for SocketClient {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for SocketClient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SocketClient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The clients of a socket.
#[derive(Debug)]
pub(crate) struct Clients {
    places: Arc<Places>,
    /// Refused ones that are told why.
    refusing: Arc<Semaphore>,
}

impl Clients {
    /// Those of a socket of this process.
    pub fn new() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(FILES_USUAL, |(soft, _)| soft);
        let places = Places::new(Limits::of(usize::try_from(files).unwrap_or(usize::MAX)));
        Self { places: Arc::new(places), refusing: Arc::new(Semaphore::new(REFUSING_MAX)) }
    }

    /// Takes a client, unless its user is too many already: then it is told so, and gone.
    pub fn admit(&self, stream: UnixStream) -> Option<SocketClient> {
        // Who cannot be told is somebody all the same.
        let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
        match Places::enter(&self.places, uid) {
            Ok(place) => Some(SocketClient { stream, _place: place }),
            Err(refusal) => {
                if refusal.is_news {
                    warn!(uid, "a client is refused: {}", refusal.why);
                }
                // So many have a descriptor beyond their share, for a moment; others are just closed.
                if let Ok(permit) = Arc::clone(&self.refusing).try_acquire_owned() {
                    tokio::spawn(async move {
                        let _ = timeout(REFUSING_LONGEST, refuse(stream, &refusal.why)).await;
                        drop(permit);
                    });
                }
                None
            }
        }
    }
}

/// Says in the words of HTTP/2 why nothing is answered: empty settings, and a GOAWAY.
async fn refuse(mut stream: UnixStream, why: &str) -> io::Result<()> {
    // Before it has said something, the end of the connection would be all that it sees.
    let _ = stream.read(&mut [0; 1024]).await?;
    let length = u8::try_from(8 + why.len()).unwrap_or(u8::MAX);
    let said = &why.as_bytes()[..usize::from(length) - 8];
    let header = [0, 0, length, GO_AWAY, 0, 0, 0, 0, 0];
    let frames = [&SETTINGS[..], &header, &[0; 4], &ENHANCE_YOUR_CALM, said].concat();
    stream.write_all(&frames).await?;
    stream.shutdown().await?;
    // Closed with something unread it would be reset, and its words lost.
    while stream.read(&mut [0; 1024]).await? != 0 {}
    Ok(())
}

/// Who has how many.
#[derive(Debug)]
struct Places {
    limits: Limits,
    /// Root, or our own user.
    own: [u32; 2],
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    /// How many each of them is.
    clients: HashMap<u32, usize>,
    /// When it was logged that one is refused.
    logged: Option<Instant>,
}

/// How many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// Of root, and of the daemon's own user.
    own: usize,
    /// Of any other user.
    user: usize,
    /// Of all of these others together: somebody may have very many users in a namespace of his.
    others: usize,
}

impl Limits {
    /// For a process that may have so many files open.
    fn of(files: usize) -> Self {
        Self { own: OWN_MAX.min(files / 4), user: USER_MAX.min(files / 16), others: files / 4 }
    }
}

#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    uid: u32,
}

struct Refusal {
    why: String,
    /// Nothing like it was logged lately.
    is_news: bool,
}

impl Places {
    fn new(limits: Limits) -> Self {
        Self { limits, own: [0, geteuid().as_raw()], users: Mutex::default() }
    }

    fn enter(places: &Arc<Self>, uid: u32) -> Result<Place, Refusal> {
        let mut users = places.users.lock().unwrap_or_else(PoisonError::into_inner);
        let is_own = |uid: &u32| places.own.contains(uid);
        let Limits { own, user: of_user, others } = places.limits;
        let limit = if is_own(&uid) { own } else { of_user };
        let there = users.clients.get(&uid).copied().unwrap_or_default();
        let all: usize = users.clients.iter().filter(|(uid, _)| !is_own(uid)).map(|(_, clients)| clients).sum();
        let why = if there >= limit {
            format!("the user {uid} has {there} connections: end some of them, or send more calls over one")
        } else if !is_own(&uid) && all >= others {
            format!("users other than root have {all} connections: end some of them")
        } else {
            *users.clients.entry(uid).or_default() += 1;
            return Ok(Place { places: Arc::clone(places), uid });
        };
        let now = Instant::now();
        let is_news = users.logged.is_none_or(|logged| now - logged >= LOG_PAUSE);
        if is_news {
            users.logged = Some(now);
        }
        Err(Refusal { why, is_news })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.places.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut clients) = users.clients.entry(self.uid) {
            *clients.get_mut() -= 1;
            if *clients.get() == 0 {
                clients.remove();
            }
        }
    }
}

/// A frame of HTTP/2 (RFC 9113) that sets nothing, which comes first.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// The type of the frame that ends a connection, and the reason: too much is asked.
const GO_AWAY: u8 = 7;
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
/// Each program that talks to a daemon has one or two.
const OWN_MAX: usize = 512;
const USER_MAX: usize = 128;
/// Where the limit of files cannot be asked.
const FILES_USUAL: u64 = 1024;
/// Clients that are told at the same time that they are too many.
const REFUSING_MAX: usize = 16;
/// How long that may take.
const REFUSING_LONGEST: Duration = Duration::from_secs(1);
/// Between two lines of the log about such clients.
const LOG_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn places(own: u32) -> Arc<Places> {
        let limits = Limits { own: 3, user: 2, others: 5 };
        Arc::new(Places { limits, own: [0, own], users: Mutex::default() })
    }

    #[test]
    fn a_user_has_his_share_and_no_other_s_and_gets_it_back() {
        let places = places(0);
        let enter = |uid| Places::enter(&places, uid);
        let mut held = vec![enter(1000).ok().unwrap(), enter(1000).ok().unwrap()];
        let refused = enter(1000).err().unwrap();
        assert!(refused.is_news && refused.why.contains("the user 1000 has 2 connections"), "{}", refused.why);
        assert!(!enter(1000).err().unwrap().is_news, "one line of the log is enough");
        held.push(enter(1001).ok().unwrap());
        drop(held);
        assert!(places.users.lock().unwrap().clients.is_empty());
        enter(1000).ok().unwrap();
    }

    #[test]
    fn very_many_users_leave_root_and_the_daemon_s_own_user_theirs() {
        let places = places(7);
        let enter = |uid| Places::enter(&places, uid);
        let held: Vec<_> = (1000..1005).map(|uid| enter(uid).ok().unwrap()).collect();
        let refused = enter(2000).err().unwrap();
        assert!(refused.why.contains("other than root have 5"), "{}", refused.why);
        for uid in [0, 7] {
            let own: Vec<_> = (0..3).map(|_| enter(uid).ok().unwrap()).collect();
            assert!(enter(uid).is_err());
            drop(own);
        }
        drop(held);
        enter(2000).ok().unwrap();
    }

    #[test]
    fn shares_leave_files_for_the_daemon() {
        for files in [256, 1024, 1 << 20] {
            let Limits { own, user, others } = Limits::of(files);
            // Root, our own user, and all the others.
            assert!(2 * own + others <= files * 3 / 4 && user <= others / 4 && user >= 16, "{files}");
        }
    }
}
