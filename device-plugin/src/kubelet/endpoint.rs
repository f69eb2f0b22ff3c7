//! One resource, registered with the kubelet again and again for as long as it is there.

use std::io;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrule_ffi::socket_file::{Access, BindError, SocketFile, listen_at};
use ferrule_ffi::unix::Kind;
use ferrule_kubelet::v1beta1::RegisterRequest;
use ferrule_kubelet::v1beta1::device_plugin_server::DevicePluginServer;
use ferrule_kubelet::v1beta1::registration_client::RegistrationClient;
use ferrule_kubelet::{ConnectError, KUBELET_SOCKET, VERSION, connect};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Server;
use tracing::{debug, info, warn};

use super::directory::{KubeletSocket, Seen};
use super::server::{ListStream, ResourceServer};
use crate::allocate::Allocator;

/// One resource.
pub struct Endpoint {
    /// Its name.
    pub resource: String,
    /// Where the kubelet listens, and plugins do.
    pub directory: PathBuf,
    /// What happens there.
    pub seen: watch::Receiver<Seen>,
    /// Who answers.
    pub allocator: Arc<Allocator>,
}

impl Endpoint {
    /// Registers, and again whenever the kubelet has lost the list, until `stop` is true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut pause = PAUSE_FIRST;
        let mut last = None;
        loop {
            let kubelet = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                kubelet = self.kubelet() => kubelet,
            };
            if last != Some(kubelet) {
                pause = PAUSE_FIRST;
            }
            last = Some(kubelet);
            let began = Instant::now();
            let ended = self.register_once(kubelet, &mut stop).await;
            if began.elapsed() >= LASTED {
                pause = PAUSE_FIRST;
            }
            let counters = &self.allocator.counters;
            match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Lost(why)) => {
                    counters.closed(&self.resource);
                    info!(resource = self.resource, "{why}; it is registered again");
                }
                Err(error) => {
                    counters.registered(&self.resource, false);
                    warn!(resource = self.resource, %error, "the kubelet does not take the resource; it is tried again");
                }
            }
            // This kubelet has to see that the list is closed; another one never had it, and its pods do not wait.
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = sleep(pause) => {}
                _ = self.seen.wait_for(|seen| seen.kubelet.is_some_and(|now| now != kubelet)) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn kubelet(&mut self) -> KubeletSocket {
        match self.seen.wait_for(|seen| seen.kubelet.is_some()).await.map(|seen| seen.kubelet) {
            Ok(Some(kubelet)) => kubelet,
            // Whoever looks is gone: so are we, soon.
            _ => std::future::pending().await,
        }
    }

    async fn register_once(
        &self,
        kubelet: KubeletSocket,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Ended, RegisterError> {
        let Some(list) = self.allocator.resources.list(&self.resource) else { return Ok(Ended::Stopped) };
        let (stream, mut opened) = watch::channel(ListStream::Awaited);
        let (close, closing) = watch::channel(false);
        let (calls, mut under_way) = watch::channel(0);
        let server = ResourceServer {
            resource: self.resource.clone(),
            allocator: Arc::clone(&self.allocator),
            list,
            stream,
            calls,
            closing: closing.clone(),
        };
        let name = socket_name(&self.resource);
        let serving = Serving::start(&self.directory.join(&name), server, closing)?;
        let mut seen = self.seen.clone();
        let ended = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => Ok(Ended::Stopped),
            why = lost(&mut seen, kubelet, &serving.file) => Ok(Ended::Lost(why)),
            ended = self.registered(&name, &mut opened) => ended,
        };
        if matches!(ended, Ok(Ended::Stopped)) {
            // The kubelet drops the connection with the list, and a pod whose Allocate is under way with that.
            let _ = timeout(CALLS_WAIT, under_way.wait_for(|calls| *calls == 0)).await;
        }
        // All of it is gone before the next try, also a call that may have worked: a socket is registered once.
        close.send_replace(true);
        serving.stop().await;
        ended
    }

    /// Registers; returns when the kubelet has no list any more.
    async fn registered(&self, name: &str, stream: &mut watch::Receiver<ListStream>) -> Result<Ended, RegisterError> {
        timeout(REGISTER_WAIT, self.register(name)).await.map_err(|_| RegisterError::Hangs)??;
        let is_late = timeout(OPEN_WAIT, stream.wait_for(|stream| *stream != ListStream::Awaited)).await.is_err();
        if is_late {
            return Err(RegisterError::NotOpened);
        }
        self.allocator.counters.registered(&self.resource, true);
        info!(resource = self.resource, socket = name, "registered");
        let _ = stream.wait_for(|stream| *stream == ListStream::Ended).await;
        Ok(Ended::Lost("the kubelet has closed the list"))
    }

    async fn register(&self, name: &str) -> Result<(), RegisterError> {
        let mut client = RegistrationClient::new(connect(&self.directory.join(KUBELET_SOCKET)).await?);
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: name.to_owned(),
            resource_name: self.resource.clone(),
            options: None,
        };
        client.register(request).await?;
        Ok(())
    }
}

/// How a registration ended.
enum Ended {
    /// We are to stop.
    Stopped,
    /// The kubelet has the list no more.
    Lost(&'static str),
}

/// Returns when the kubelet is another one, or has removed our socket, with what happened.
async fn lost(seen: &mut watch::Receiver<Seen>, kubelet: KubeletSocket, socket: &SocketFile) -> &'static str {
    loop {
        let now = *seen.borrow_and_update();
        if now.kubelet.is_some_and(|now| now != kubelet) {
            return "the kubelet was restarted";
        }
        if !socket.leads_here() {
            return "the kubelet has removed the socket";
        }
        if seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A server on a socket of its own.
struct Serving {
    /// Removed with us.
    file: SocketFile,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    accepting: JoinHandle<()>,
    connections: Connections,
}

/// Open connections, to be cut at the end.
type Connections = Arc<Mutex<Vec<StdUnixStream>>>;

impl Serving {
    fn start(path: &Path, server: ResourceServer, mut closing: watch::Receiver<bool>) -> Result<Self, RegisterError> {
        let failed = |source| RegisterError::Bind { path: path.to_owned(), source };
        let (socket, file) = listen_at(Kind::Stream, path, ACCESS, BACKLOG)?;
        let listener = UnixListener::from_std(StdUnixListener::from(socket)).map_err(failed)?;
        let connections = Connections::default();
        let (clients, incoming) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, clients, Arc::clone(&connections)));
        let server = Server::builder().add_service(DevicePluginServer::new(server)).serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            async move {
                let _ = closing.wait_for(|closing| *closing).await;
            },
        );
        Ok(Self { file, server: tokio::spawn(server), accepting, connections })
    }

    /// Takes no more calls, lets those under way end for a moment, and cuts what is left.
    async fn stop(mut self) {
        self.accepting.abort();
        if timeout(CALLS_WAIT, &mut self.server).await.is_err() {
            debug!(socket = %self.file.path().display(), "calls are still under way; their connections are cut");
        }
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.accepting.abort();
        self.server.abort();
    }
}

async fn accept(listener: UnixListener, clients: mpsc::Sender<io::Result<UnixStream>>, connections: Connections) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let Ok(client) = keep(client, &connections) else { continue };
                if clients.send(Ok(client)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(%error, "the kubelet cannot be accepted");
                sleep(PAUSE_FIRST).await;
            }
        }
    }
}

/// Notes a connection, and forgets those that are over.
fn keep(client: UnixStream, connections: &Connections) -> io::Result<UnixStream> {
    let client = client.into_std()?;
    let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
    connections.push(client.try_clone()?);
    let excess = connections.len().saturating_sub(CONNECTIONS_KEPT);
    connections.drain(..excess);
    UnixStream::from_std(client)
}

/// A name that was never used before, by this process or another one, in a path of at most 107 bytes.
fn socket_name(resource: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let readable: String = resource.replace('/', "_").chars().take(NAME_CHARS_MAX).collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{SOCKET_PREFIX}{readable}-{}-{count}-{:x}.sock", process::id(), now & 0xff_ffff)
}

/// Why the kubelet does not take a resource.
#[derive(Debug, Error)]
enum RegisterError {
    #[error(transparent)]
    Listen(#[from] BindError),
    #[error("listen on {}: {source}", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("the kubelet answers: {}", .0.message())]
    Refused(#[from] Status),
    #[error("the kubelet has not answered Register for {} s", REGISTER_WAIT.as_secs())]
    Hangs,
    #[error("the kubelet has taken the resource, and has not asked for its devices for {} s", OPEN_WAIT.as_secs())]
    NotOpened,
}

/// The kubelet is root, and nobody else has business here.
const ACCESS: Access = Access { mode: 0o600, owner: None, group: None };
const BACKLOG: u8 = 16;
/// What our sockets' names begin with.
pub(super) const SOCKET_PREFIX: &str = "ferrule-";
/// The kubelet itself gives up after 10 s.
const REGISTER_WAIT: Duration = Duration::from_secs(12);
/// It opens the list in the background, at once.
const OPEN_WAIT: Duration = Duration::from_secs(5);
/// For calls under way: an Allocate that is cut kills a pod.
const CALLS_WAIT: Duration = Duration::from_secs(4);
/// How long a kubelet may take to see that a connection is closed.
pub(super) const SETTLE: Duration = Duration::from_millis(50);
const PAUSE_FIRST: Duration = SETTLE;
/// A registration that was good for this long is no reason to wait before the next.
const LASTED: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The kubelet has one.
const CONNECTIONS_KEPT: usize = 16;
/// Of 107 bytes the directory takes 32, and what makes the name unique up to 40.
const NAME_CHARS_MAX: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_comes_twice_and_each_fits_into_an_address() {
        let resource = format!("{}/{}", "prefix.example.com", "x".repeat(63));
        let (first, second) = (socket_name(&resource), socket_name(&resource));
        assert_ne!(first, second);
        let path = Path::new(ferrule_kubelet::PLUGINS_DIRECTORY).join(&first);
        assert!(path.as_os_str().len() <= 107, "{}", path.display());
    }
}
