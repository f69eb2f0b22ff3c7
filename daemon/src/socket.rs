//! The socket file of a daemon: made with care for one that is alive, and unmade with care for one that
//! came after us.

use std::io;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_ffi::socket_access::SocketAccess;
use ferrule_ffi::socket_file::{self, BindError, SocketFile};
use ferrule_ffi::unix::Kind;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{error, warn};

use crate::clients::{Clients, SocketClient};

/// A listening socket whose file goes away with it.
#[derive(Debug)]
pub struct ServiceSocket {
    listener: UnixListener,
    file: SocketFile,
    /// What it is called when another one is in the way.
    program: &'static str,
    access: SocketAccess,
    /// It was said that the path leads elsewhere.
    lost: bool,
}

impl ServiceSocket {
    /// Listens at `path`, for owner and group unless `access` says otherwise. Missing directories are made; a socket that
    /// nobody listens on any more is replaced. Needs a tokio runtime.
    pub fn bind(program: &'static str, path: &Path, access: &SocketAccess) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Failed { path: path.to_owned(), source };
        let numbers = access.resolve(USUAL_MODE).map_err(|problem| failed(io::Error::other(problem)))?;
        let bound = socket_file::listen_at(Kind::Stream, path, numbers, BACKLOG).map_err(|error| match error {
            BindError::Taken => SocketError::Taken { program, path: path.to_owned() },
            BindError::NotASocket => SocketError::NotASocket { path: path.to_owned() },
            error @ (BindError::Owner { .. } | BindError::Group { .. } | BindError::Failed { .. }) => {
                failed(io::Error::other(error.to_string()))
            }
        });
        let (socket, file) = bound?;
        // It does not block, as tokio demands.
        let listener = UnixListener::from_std(net::UnixListener::from(socket)).map_err(failed)?;
        Ok(Self { listener, file, program, access: access.clone(), lost: false })
    }

    /// Clients as they come, until the stream is dropped; the task has ended when the file is gone. Of one user there are
    /// only so many at once (see [`crate::clients`]). A path that does not lead here any more, because its directory was
    /// removed or another program bound it, is listened on again.
    pub fn accept(self) -> (ReceiverStream<io::Result<SocketClient>>, JoinHandle<()>) {
        let (clients, incoming) = mpsc::channel(1);
        (ReceiverStream::new(incoming), tokio::spawn(self.accept_for(clients)))
    }

    async fn accept_for(mut self, clients: mpsc::Sender<io::Result<SocketClient>>) {
        let admitted = Clients::new();
        let mut checks = interval(CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = clients.closed() => return,
                _ = checks.tick() => self.listen_again_if_lost(),
                client = self.listener.accept() => match client {
                    Ok((client, _)) => if let Some(client) = admitted.admit(client)
                        && clients.send(Ok(client)).await.is_err() { return },
                    Err(error) => {
                        // Out of descriptors: the client waits at the socket, which would be ready again at once.
                        warn!(path = %self.file.path().display(), %error, "a client cannot be accepted");
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    fn listen_again_if_lost(&mut self) {
        if self.file.leads_here() {
            self.lost = false;
            return;
        }
        let path = self.file.path();
        match Self::bind(self.program, path, &self.access) {
            Ok(again) => {
                warn!(path = %path.display(), "the socket's path led elsewhere; it is listened on again");
                *self = again;
            }
            Err(error) if !self.lost => {
                error!(%error, "clients do not reach this daemon: its socket's path leads elsewhere; it is tried again");
                self.lost = true;
            }
            Err(_) => {}
        }
    }
}

/// Why the API cannot listen.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another one is alive.
    #[error("listen on {}: another {program} answers there; stop it, or give this one another socket", path.display())]
    Taken {
        /// What answers.
        program: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The path is some other file.
    #[error("listen on {}: it exists and is not a socket; remove it, or choose another path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The kernel said no.
    #[error("listen on {}: {source}", path.display())]
    Failed {
        /// Where.
        path: PathBuf,
        /// What was tried, and why not.
        source: io::Error,
    },
}

/// Whoever may write may give orders: the owner and the group.
const USUAL_MODE: u32 = 0o660;
/// How often a daemon looks whether its path still leads to it.
const CHECK: Duration = Duration::from_secs(1);
/// Between two tries to accept a client that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// Clients that may wait to be accepted.
const BACKLOG: u8 = 128;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tokio::net::UnixStream;

    use super::*;

    fn bind(path: &Path) -> Result<ServiceSocket, SocketError> {
        ServiceSocket::bind("forwarder", path, &SocketAccess::default())
    }

    #[tokio::test]
    async fn the_socket_is_made_with_its_directory_for_owner_and_group_and_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/admin.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_socket_is_for_whom_it_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let access = SocketAccess { mode: "0606".parse().ok(), ..SocketAccess::default() };
        let socket = ServiceSocket::bind("forwarder", &path, &access).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o606);
        drop(socket);
        let access = SocketAccess { owner: "no-such-user".parse().ok(), ..SocketAccess::default() };
        let error = ServiceSocket::bind("forwarder", &path, &access).unwrap_err().to_string();
        assert!(error.contains("there is no user `no-such-user`"), "{error}");
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        // A listener of the standard library leaves its file behind, like a process that was killed.
        drop(net::UnixListener::bind(&path).unwrap());
        let socket = bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::Taken { .. }), "{error}");
        assert!(path.exists(), "the live one keeps its file");
        drop(socket);
    }

    #[tokio::test]
    async fn a_socket_whose_path_was_taken_away_is_there_again_within_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        let (mut incoming, accepting) = bind(&path).unwrap().accept();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let client = async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(client) => break client,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let _client = tokio::time::timeout(Duration::from_secs(20), client).await.expect("it listens again");
        assert!(tokio_stream::StreamExt::next(&mut incoming).await.unwrap().is_ok());
        drop(incoming);
        accepting.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn another_program_s_socket_is_left_alone_until_it_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let mut ours = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = bind(&path).unwrap();
        ours.listen_again_if_lost();
        assert!(other.file.leads_here() && ours.lost);
        drop(other);
        ours.listen_again_if_lost();
        assert!(ours.file.leads_here());
        ours.listen_again_if_lost();
        assert!(ours.file.leads_here() && !ours.lost);
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path).unwrap_err(), SocketError::NotASocket { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_successor_keeps_its_socket_when_we_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let ours = bind(&path).unwrap();
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        let theirs = bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }
}
