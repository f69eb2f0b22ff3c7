//! Tells people why: everything that is known goes to whoever connects to a socket, once.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrule_ffi::socket_file::{Access, BindError, SocketFile, listen_at};
use ferrule_ffi::unix::Kind;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::allocate::Allocator;

/// Answers for as long as it is polled. One that cannot listen tries again: a plugin before may still be there.
pub async fn serve(path: PathBuf, allocator: Arc<Allocator>) {
    let mut was_told = false;
    loop {
        match listen(&path) {
            Ok((listener, _file)) => answer(&listener, &allocator).await,
            Err(error) if was_told => debug!(%error, "nobody can ask why"),
            Err(error) => {
                warn!(%error, "`ferrule vf explain` cannot ask this plugin; it is tried again");
                was_told = true;
            }
        }
        sleep(RETRY_AFTER).await;
    }
}

fn listen(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let (socket, file) = listen_at(Kind::Stream, path, ACCESS, BACKLOG)?;
    let listener = UnixListener::from_std(StdUnixListener::from(socket));
    let listener = listener.map_err(|source| BindError::Failed { tried: "wait for clients", source })?;
    Ok((listener, file))
}

/// One client after the other; returns when there can be no more.
async fn answer(listener: &UnixListener, allocator: &Arc<Allocator>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let told = timeout(CLIENT_WAIT, tell(client, Arc::clone(allocator))).await;
                debug!(is_in_time = told.is_ok(), "somebody asked why");
            }
            Err(error) => {
                warn!(%error, "who asks why cannot be accepted");
                return;
            }
        }
    }
}

async fn tell(mut client: UnixStream, allocator: Arc<Allocator>) {
    let registered = allocator.counters.all();
    let is_registered = move |name: &str| registered.get(name).is_some_and(|counts| counts.is_registered);
    let report = spawn_blocking(move || {
        let mut report = allocator.resources.report(is_registered);
        let forwarder = allocator.forwarder.problem().filter(|_| allocator.resources.has_software());
        report.problems.extend(forwarder.map(|problem| {
            format!("pods with software endpoints do not start until dpdk-forwarder joins them: {problem}")
        }));
        serde_json::to_vec(&report)
    });
    let report = report.await;
    let Ok(Ok(report)) = report else { return };
    // Whoever goes away early does not want it.
    let _ = client.write_all(&report).await;
}

/// It names pods.
const ACCESS: Access = Access { mode: 0o600, owner: None, group: None };
const BACKLOG: u8 = 16;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Whoever reads slower than this gets a part, and the next one has his turn.
const CLIENT_WAIT: Duration = Duration::from_secs(5);
