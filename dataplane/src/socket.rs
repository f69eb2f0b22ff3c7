//! Control sockets of every kind of end: where they are, who listens.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ferrule_ffi::netns;
use ferrule_ffi::unix::{Kind, UnixListener, UnixSocket};
use nix::sys::socket::UnixAddr;
use thiserror::Error;

use crate::spec::{NetNs, SocketAddress};

/// Connects to whoever listens on `address`.
pub fn connect(kind: Kind, address: &SocketAddress, netns: Option<&NetNs>) -> Result<UnixSocket, SocketError> {
    let failed = |source: io::Error| SocketError::Connect { address: address.clone(), source };
    let unix = unix_address(address).map_err(failed)?;
    inside(address, netns, || UnixSocket::connect(kind, &unix))?.map_err(failed)
}

/// A listening control socket. A path is removed again when this is dropped, if it is still ours.
pub struct Listener {
    socket: UnixListener,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens on `address`. A socket file that nobody listens on any more is replaced.
    pub fn bind(kind: Kind, address: &SocketAddress, netns: Option<&NetNs>) -> Result<Self, SocketError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::InUse { address: address.clone() },
            _ => SocketError::Listen { address: address.clone(), source },
        };
        let unix = unix_address(address).map_err(failed)?;
        let SocketAddress::Path(path) = address else {
            let socket = inside(address, netns, || UnixListener::bind(kind, &unix, BACKLOG))?.map_err(failed)?;
            return Ok(Self { socket, file: None });
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        remove_stale(kind, path, &unix).map_err(failed)?;
        let socket = UnixListener::bind(kind, &unix, BACKLOG).map_err(failed)?;
        let file = SocketFile::at(path).map_err(failed)?;
        // As VPP does: the group may connect.
        fs::set_permissions(path, fs::Permissions::from_mode(0o770)).map_err(failed)?;
        Ok(Self { socket, file: Some(file) })
    }

    /// The next client.
    pub fn accept(&self) -> io::Result<UnixSocket> {
        self.socket.accept()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.remove_if_ours();
        }
    }
}

/// A socket file that we made, so that we never remove somebody else's of the same name.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    fn remove_if_ours(&self) {
        if Self::at(&self.path).is_ok_and(|now| (now.device, now.inode) == (self.device, self.inode)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket file of a server that died.
fn remove_stale(kind: Kind, path: &Path, address: &UnixAddr) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        let text = "a file that is not a socket is there; remove it or choose another path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match UnixSocket::connect(kind, address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn unix_address(address: &SocketAddress) -> io::Result<UnixAddr> {
    Ok(match address {
        SocketAddress::Path(path) => UnixAddr::new(path)?,
        SocketAddress::Abstract(name) => UnixAddr::new_abstract(name.as_bytes())?,
    })
}

/// Does `work` where the address is meant: an abstract name belongs to a network namespace.
fn inside<T: Send>(
    address: &SocketAddress,
    netns: Option<&NetNs>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, SocketError> {
    match (address, netns) {
        (SocketAddress::Abstract(_), Some(place)) => netns::NetNs::open(&place.path())
            .and_then(|namespace| namespace.run(work))
            .map_err(|source| SocketError::Namespace { address: address.clone(), netns: place.clone(), source }),
        _ => Ok(work()),
    }
}

/// Why a control socket could not be had.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody else listens there.
    #[error("listen on {address}: another process does; stop it, or choose another address")]
    InUse {
        /// Where.
        address: SocketAddress,
    },
    /// The namespace of an abstract name cannot be entered.
    #[error("enter network namespace {netns} for socket {address}: {source}; does the namespace still exist?")]
    Namespace {
        /// Which socket.
        address: SocketAddress,
        /// Where.
        netns: NetNs,
        /// Why not.
        source: io::Error,
    },
    /// Anything else about listening.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddress,
        /// Why not.
        source: io::Error,
    },
    /// The server is not there, or does not let us in.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddress,
        /// Why not.
        source: io::Error,
    },
}

/// Clients that may wait for `accept`.
const BACKLOG: u8 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ferrule-socket-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let path = place("stale");
        let address = SocketAddress::Path(path.clone());
        let listener = Listener::bind(Kind::SeqPacket, &address, None).unwrap();
        assert!(matches!(Listener::bind(Kind::SeqPacket, &address, None), Err(SocketError::InUse { .. })));
        let mut dead = listener;
        dead.file = None;
        drop(dead);
        assert!(path.exists());
        drop(Listener::bind(Kind::SeqPacket, &address, None).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = place("file");
        fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(Kind::SeqPacket, &SocketAddress::Path(path.clone()), None).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_socket_file_that_somebody_replaced_is_not_removed() {
        let path = place("replaced");
        let address = SocketAddress::Path(path.clone());
        let ours = Listener::bind(Kind::SeqPacket, &address, None).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = Listener::bind(Kind::SeqPacket, &address, None).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }
}
