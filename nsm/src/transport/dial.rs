//! Connecting: one channel is exactly one connection, since files and tokens belong to it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ferrule_ffi::unix::{Kind, UnixSocket};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, TimeoutExpired};

use super::address::Address;
use super::connection::{Peer, SecureStream, Socket};
use super::tcp;
use super::tls::{Allowed, client_config};
use crate::files::FileStream;
use crate::identity::Identity;
use crate::token::TokenHeaders;

/// A connection to one process. It is not made again when it ends: that would be another one, without the files and perhaps
/// with another certificate.
#[derive(Clone)]
pub struct Connection {
    calls: Calls,
    peer: Peer,
    ended: watch::Receiver<()>,
    fresh_until: SystemTime,
    since: Instant,
    /// Places for those who share it.
    shares: Arc<Semaphore>,
    /// Somebody has waited for an answer in vain.
    given_up: Arc<AtomicBool>,
}

/// What clients of services are made with: each call carries a token.
pub type Calls = InterceptedService<Channel, TokenHeaders>;

/// How one connects.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// Who may be there.
    pub allowed: Allowed,
    /// How long it may take, all together.
    pub timeout: Duration,
    /// How long a token lives at most.
    pub token_lifetime: Duration,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            allowed: Allowed::AnyTrusted,
            timeout: Duration::from_millis(750),
            token_lifetime: Duration::from_mins(10),
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot connect to {address}: {problem}")]
pub struct DialError {
    address: Address,
    problem: String,
}

impl Connection {
    /// Connects to whoever listens at an address.
    pub async fn dial(address: &Address, identity: &Identity, options: &DialOptions) -> Result<Self, DialError> {
        let error = |problem| DialError { address: address.clone(), problem };
        match timeout(options.timeout, connect(address, identity, options)).await {
            Ok(made) => made.map_err(|problem| error(crate::causes(&*problem))),
            Err(_) => Err(error(format!("no answer within {:?}", options.timeout))),
        }
    }

    /// For a client of a service.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Who is there, who we are to it, and the files that are passed.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Waits until it is over.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // It ends by the drop of its sender, which never sends.
        let _ = ended.changed().await;
    }

    /// Whether it should go on being used by whoever is `identity` now. Either side signs tokens with the key of its certificate of now:
    /// those of the other side are denied to others once it has a new one, which it has after half of the old one's time.
    pub fn is_fresh(&self, identity: &Identity) -> bool {
        let is_ours = Arc::ptr_eq(self.peer.svid(), &identity.svid);
        is_ours && self.is_usable() && SystemTime::now() < self.fresh_until && !self.given_up.load(Ordering::Relaxed)
    }

    /// Nobody begins anything over it any more: the other side did not answer.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether it is there, with certificates that have not run out.
    pub(super) fn is_usable(&self) -> bool {
        let ends = self.peer.certificate().not_after().min(self.peer.svid().certificate().not_after());
        !self.has_ended() && SystemTime::now() < ends
    }

    /// Whether it is this one.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.peer.certificate(), other.peer.certificate())
    }

    /// When it was made.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// A place among those who share it, each with calls that last; `None`: all are taken.
    pub(crate) fn share(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shares).try_acquire_owned().ok()
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.ended.has_changed().is_err()
    }
}

async fn connect(
    address: &Address,
    identity: &Identity,
    options: &DialOptions,
) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let socket = match address {
        Address::Unix(path) => Socket::Unix(FileStream::new(connect_unix(path).await?)?),
        Address::Tcp(host_port) => {
            let stream = TcpStream::connect(host_port).await?;
            tcp::set_options(&stream)?;
            Socket::Tcp(stream)
        }
    };
    let connector = TlsConnector::from(client_config(identity, options.allowed.clone())?);
    let tls = connector.connect(ServerName::try_from(AUTHORITY)?, socket).await?;
    let mut stream = SecureStream::dialed(tls.into(), Arc::clone(&identity.svid)).await?;
    let (peer, ended) = (stream.peer().clone(), stream.ended());
    let now = SystemTime::now();
    let fresh_until = now + peer.certificate().not_after().duration_since(now).unwrap_or_default() / 2;
    let tokens = TokenHeaders::new(Arc::clone(peer.svid()), Arc::clone(peer.certificate()), options.token_lifetime);
    let calls = InterceptedService::new(channel(stream).await?, tokens);
    let (since, shares, given_up) = (Instant::now(), Arc::new(Semaphore::new(SHARES)), Arc::default());
    Ok(Connection { calls, peer, ended, fresh_until, since, shares, given_up })
}

/// A channel over this stream and no other.
async fn channel(stream: SecureStream) -> Result<Channel, tonic::transport::Error> {
    let stream = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = || io::Error::new(io::ErrorKind::NotConnected, "the connection has ended: connect again");
        std::future::ready(stream.map(TokioIo::new).ok_or_else(ended))
    });
    Endpoint::from_static("http://localhost")
        .origin(Uri::from_static("https://localhost"))
        .http2_max_header_list_size(HEADERS_MAX)
        .connect_with_connector(connector)
        .await
}

/// A path is looked up by a thread: a file system may take for ever to answer. A listener that is busy does not let one wait.
async fn connect_unix(path: &Path) -> io::Result<UnixSocket> {
    loop {
        let owned = path.to_owned();
        match tokio::task::spawn_blocking(move || UnixSocket::connect_path(Kind::Stream, &owned)).await? {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(BUSY_RETRY).await,
            done => return done,
        }
    }
}

/// A call whose time has run out: the library says of that that it was cancelled, which means "on purpose" to those who watch. It says so of
/// its own clock, and by the other side's.
pub(crate) fn ran_out(status: Status) -> Status {
    // The transport wraps it.
    let mut sources = std::iter::successors(std::error::Error::source(&status), |error| error.source());
    let is_told = status.code() == Code::Cancelled && status.message() == RAN_OUT;
    if is_told || sources.any(<dyn std::error::Error>::is::<TimeoutExpired>) {
        return Status::deadline_exceeded("the call was not answered in time");
    }
    status
}

/// What a server of the library says then.
const RAN_OUT: &str = "Timeout expired";
/// Not checked by anybody: certificates name processes.
const AUTHORITY: &str = "localhost";
/// A registration's answer has three tokens in a header, of long SPIFFE IDs perhaps.
const HEADERS_MAX: u32 = 64 << 10;
/// Whoever shares a connection watches the other side over it all the time, and calls it now and then: half of the calls that a server of ours
/// has at once over one.
const SHARES: usize = 512;
const BUSY_RETRY: Duration = Duration::from_millis(5);
