//! A gRPC API on a Unix socket: served with health and reflection, and reached by its clients.

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_core::future::BoxFuture;
use nix::unistd::{Group, User};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::{Phase, ServiceSocket};

/// Serves an API with health and reflection until the daemon has stopped. `names` are those of the services
/// whose health follows the phase.
pub fn serve<'a>(
    socket: ServiceSocket,
    api: Routes,
    descriptors: &'static [&'static [u8]],
    names: &'a [&'a str],
    phase: watch::Receiver<Phase>,
) -> BoxFuture<'a, Result<(), ServeError>> {
    // In a box, and so compiled here. The code of an `async fn` is compiled again in each program that waits for it, with all that
    // it calls: here that is a whole HTTP server.
    Box::pin(serve_here(socket, api, descriptors, names, phase))
}

async fn serve_here(
    socket: ServiceSocket,
    api: Routes,
    descriptors: &'static [&'static [u8]],
    names: &[&str],
    phase: watch::Receiver<Phase>,
) -> Result<(), ServeError> {
    let reporter = HealthReporter::new();
    let now = *phase.borrow();
    set_health(&reporter, names, now).await;
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(reporter.clone()),
    );
    let mut reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    for set in descriptors {
        reflection = reflection.register_encoded_file_descriptor_set(set);
    }
    let reflection = reflection.build_v1().map_err(|error| ServeError(error.to_string()))?;
    let (incoming, accepting) = socket.accept();
    let mut stopped = phase.clone();
    let routes = api.add_service(health).add_service(reflection);
    let server = Server::builder().add_routes(routes).serve_with_incoming_shutdown(incoming, async move {
        // An error means that the spine is gone, which is a stop as well.
        let _ = stopped.wait_for(|phase| *phase == Phase::Stopped).await;
    });
    let result = tokio::select! {
        result = server => result.map_err(|error| ServeError(error.to_string())),
        () = follow(reporter, names, phase) => Ok(()),
    };
    // The socket's file goes now that nobody takes clients any more.
    let _ = accepting.await;
    result
}

/// Why an API cannot be served.
#[derive(Debug, Error)]
#[error("serve the API: {0}")]
pub struct ServeError(String);

/// Keeps health in step with the phase. Never ends: the server does.
async fn follow(reporter: HealthReporter, names: &[&str], phase: watch::Receiver<Phase>) {
    let mut phases = WatchStream::new(phase);
    while let Some(phase) = phases.next().await {
        set_health(&reporter, names, phase).await;
    }
    std::future::pending::<()>().await;
}

async fn set_health(reporter: &HealthReporter, names: &[&str], phase: Phase) {
    let status = if phase == Phase::Serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in names {
        reporter.set_service_status(name, status).await;
    }
}

/// Connects to the daemon whose socket is at `path`.
pub fn connect(path: &Path) -> BoxFuture<'_, Result<Channel, ConnectError>> {
    // Compiled here, as `serve` is.
    Box::pin(async move {
        let failed = |problem: String| ConnectError { path: path.to_owned(), problem, is_denied: false };
        let text = path.to_str().ok_or_else(|| failed("the path is not UTF-8".to_owned()))?;
        let endpoint = Endpoint::from_shared(format!("unix://{text}")).map_err(|error| failed(root_cause(&error).0))?;
        // A daemon at work answers them, whatever it works on; one that was stopped has its socket, and answers nobody.
        let endpoint = endpoint.http2_keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
        endpoint.connect().await.map_err(|error| {
            let (problem, is_denied) = root_cause(&error);
            ConnectError { path: path.to_owned(), problem, is_denied }
        })
    })
}

/// Whether a request failed because the daemon is there and does not answer at all.
pub fn is_silent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        // The type is private to hyper.
        if error.to_string() == "keep-alive timed out" {
            return true;
        }
        source = error.source();
    }
    false
}

/// Nobody could be reached.
#[derive(Debug, Error)]
#[error("{} ({problem})", path.display())]
pub struct ConnectError {
    path: PathBuf,
    problem: String,
    is_denied: bool,
}

impl ConnectError {
    /// What to say if somebody may listen there and the caller may not ask; none: nobody listens.
    pub fn denied(&self) -> Option<String> {
        self.is_denied.then(|| denied(&self.path))
    }
}

/// What to say to whoever may not use a socket.
pub fn denied(path: &Path) -> String {
    let shown = path.display();
    let Ok(metadata) = fs::metadata(path) else {
        return format!("you may not use {shown}: run this as root");
    };
    let user = User::from_uid(metadata.uid().into()).ok().flatten();
    let user = user.map_or_else(|| metadata.uid().to_string(), |user| user.name);
    let group = Group::from_gid(metadata.gid().into()).ok().flatten();
    let group = group.map_or_else(|| metadata.gid().to_string(), |group| group.name);
    let mode = metadata.mode() & 0o777;
    let member = if mode & 0o020 == 0 { "" } else { " or as a member of that group" };
    format!(
        "you may not use {shown} (owner {user}, group {group}, mode {mode:04o}): run this as that owner or root{member}"
    )
}

/// What the operating system said, without `(os error 111)`: the layers above it only say "transport error". And whether it was about
/// rights.
fn root_cause(error: &(dyn Error + 'static)) -> (String, bool) {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let kind = root.downcast_ref::<io::Error>().map(io::Error::kind);
    let text = match kind {
        Some(io::ErrorKind::NotFound) => "no such file".to_owned(),
        Some(kind @ (io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied)) => kind.to_string(),
        _ => root.to_string(),
    };
    (text, kind == Some(io::ErrorKind::PermissionDenied))
}

/// Runs what may wait where waiting holds up nobody.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    spawn_blocking(work).await.map_err(|error| Status::internal(format!("the daemon failed at this request: {error}")))
}

/// A status whose message fits into the header that carries it.
pub fn status(code: Code, message: &str) -> Status {
    if message.len() <= MESSAGE_MAX {
        return Status::new(code, message);
    }
    let kept = &message[..message.floor_char_boundary(MESSAGE_MAX)];
    let left = message.lines().count() - kept.lines().count();
    Status::new(code, format!("{kept}...\nand {left} more lines"))
}

/// How long a request waits before the daemon is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// HTTP/2 peers take 16 KiB of headers by default, and a byte may be escaped into three.
const MESSAGE_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use ferrule_ffi::socket_access::SocketAccess;

    use super::*;

    #[tokio::test]
    async fn a_daemon_that_has_its_socket_and_answers_nobody_is_told_from_one_that_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        // Clients stay in its backlog.
        let _stopped = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = tonic_health::pb::health_client::HealthClient::new(connect(&path).await.unwrap());
        let asked = client.check(tonic_health::pb::HealthCheckRequest::default());
        let status = tokio::time::timeout(Duration::from_mins(1), asked).await.expect("it is given up").unwrap_err();
        assert!(is_silent(&status), "{status:?}");
        assert!(!is_silent(&Status::unavailable("keep-alive timed out")));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_with_very_many_connections_is_told_so_and_what_he_has_goes_on() {
        let _alone = crate::ALONE.lock().await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let socket = ServiceSocket::bind("forwarder", &path, &SocketAccess::default()).unwrap();
        let (stop, phase) = watch::channel(Phase::Serving);
        let serving = tokio::spawn(serve(socket, Routes::default(), &[], &[""], phase));
        let health = async || tonic_health::pb::health_client::HealthClient::new(connect(&path).await.unwrap());
        let check = tonic_health::pb::HealthCheckRequest::default;
        let mut first = health().await;
        first.check(check()).await.unwrap();
        let mut idle = Vec::new();
        let refused = loop {
            let mut next = health().await;
            match next.check(check()).await {
                Ok(_) => idle.push(next),
                Err(status) => break status,
            }
            assert!(idle.len() < 2000, "there is a limit");
        };
        let mut said = refused.to_string();
        let mut source = refused.source();
        while let Some(error) = source {
            said += &error.to_string();
            source = error.source();
        }
        assert!(said.contains("connections: end some of them"), "{said}");
        first.check(check()).await.unwrap();
        // Thousands that are not even waited for.
        for _ in 0..3000 {
            drop(tokio::net::UnixStream::connect(&path).await);
        }
        first.check(check()).await.unwrap();
        drop(idle);
        let again = async {
            while health().await.check(check()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.expect("places are given back");
        drop(first);
        stop.send(Phase::Stopped).unwrap();
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn whoever_may_not_use_a_socket_is_told_who_may() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        fs::write(&path, "").unwrap();
        for (mode, told) in [
            (0o660, "mode 0660): run this as that owner or root or as a member of that group"),
            (0o600, "mode 0600): run this as that owner or root"),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let said = denied(&path);
            assert!(
                said.starts_with(&format!("you may not use {} (owner ", path.display())) && said.ends_with(told),
                "{said}"
            );
        }
        assert!(denied(&directory.path().join("gone")).ends_with("gone: run this as root"));
    }

    #[test]
    fn a_message_too_long_for_a_header_is_cut_and_says_so() {
        let lines = "one wrong thing\n".repeat(1000);
        let cut = status(Code::InvalidArgument, &lines);
        assert!(cut.message().len() < MESSAGE_MAX + 40 && cut.message().ends_with(" more lines"));
    }
}
