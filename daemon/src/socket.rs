//! The socket file of a daemon: made with care for one that is alive, and unmade with care for one that
//! came after us.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::UnixListener;

/// A listening socket whose file goes away with it.
#[derive(Debug)]
pub struct ServiceSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl ServiceSocket {
    /// Listens at `path`, for owner and group only. Missing directories are made; a socket that nobody
    /// listens on any more is replaced. Needs a tokio runtime.
    pub fn bind(program: &'static str, path: &Path) -> Result<Self, SocketError> {
        let failed = |tried, source| SocketError::Failed { tried, path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|error| failed("make the directory of", error))?;
        }
        make_way(program, path)?;
        let listener = UnixListener::bind(path).map_err(|error| failed("listen on", error))?;
        let file = SocketFile::of(path).map_err(|error| failed("look at", error))?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(MODE))
            .map_err(|error| failed("set the mode of", error))?;
        Ok(Self { listener, file })
    }

    /// The guard of the file, and the listener.
    pub fn into_parts(self) -> (SocketFile, UnixListener) {
        (self.file, self.listener)
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
    #[error("{tried} the socket {}: {source}", path.display())]
    Failed {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Removes a dead socket; leaves everything else as it is.
fn make_way(program: &'static str, path: &Path) -> Result<(), SocketError> {
    let failed = |tried, source| SocketError::Failed { tried, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match BlockingStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| failed("replace", error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog says `would block`: somebody is alive, only busy.
        Ok(_) => Err(SocketError::Taken { program, path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::Taken { program, path: path.to_owned() })
        }
        Err(error) => Err(failed("find out who owns", error)),
    }
}

/// Removes the file when dropped, if it is still the one that we made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // Nothing can be done about a failure, and the next start replaces a dead socket anyway.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whoever may write may give orders: the owner and the group.
const MODE: u32 = 0o660;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_made_with_its_directory_for_owner_and_group_and_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/admin.sock");
        let socket = ServiceSocket::bind("forwarder", &path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        // A listener of the standard library leaves its file behind, like a process that was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = ServiceSocket::bind("forwarder", &path).unwrap();
        let error = ServiceSocket::bind("forwarder", &path).unwrap_err();
        assert!(matches!(error, SocketError::Taken { .. }), "{error}");
        assert!(path.exists(), "the live one keeps its file");
        drop(socket);
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ServiceSocket::bind("forwarder", &path).unwrap_err(), SocketError::NotASocket { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_successor_keeps_its_socket_when_we_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let ours = ServiceSocket::bind("forwarder", &path).unwrap();
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        let theirs = ServiceSocket::bind("forwarder", &path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }
}
