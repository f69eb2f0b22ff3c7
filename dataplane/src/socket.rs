//! Control sockets of every kind of end: where they are, who listens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ferrule_ffi::socket_file::{BindError, SocketFile};
use ferrule_ffi::unix::{Kind, UnixListener, UnixSocket};
use nix::sys::socket::UnixAddr;
use thiserror::Error;

use crate::spec::{NetNs, SocketAccess, SocketAddress};

/// Connects to whoever listens on `address`.
pub fn connect(kind: Kind, address: &SocketAddress, netns: Option<&NetNs>) -> Result<UnixSocket, SocketError> {
    let failed = |source: io::Error| SocketError::Connect { address: address.clone(), source };
    match address {
        SocketAddress::Path(path) => UnixSocket::connect_path(kind, path).map_err(failed),
        SocketAddress::Abstract(name) => inside(name, netns, |unix| UnixSocket::connect(kind, &unix))?.map_err(failed),
    }
}

/// A listening control socket. A path is removed again when this is dropped, if it is still ours.
pub struct Listener {
    socket: UnixListener,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens on `address`. A socket file that nobody listens on any more is replaced; a new one is for whoever has
    /// `access`.
    pub fn bind(
        kind: Kind,
        address: &SocketAddress,
        netns: Option<&NetNs>,
        access: &SocketAccess,
    ) -> Result<Self, SocketError> {
        let taken = || SocketError::InUse { address: address.clone() };
        let listen = |reason: String| SocketError::Listen { address: address.clone(), reason };
        match address {
            SocketAddress::Path(path) => {
                let access = access.resolve(USUAL_MODE).map_err(listen)?;
                let bound = UnixListener::bind_path(kind, path, access, BACKLOG).map_err(|error| match error {
                    BindError::Taken => taken(),
                    error => listen(error.to_string()),
                });
                bound.map(|(socket, file)| Self { socket, file: Some(file) })
            }
            SocketAddress::Abstract(name) => {
                let bound = inside(name, netns, |unix| UnixListener::bind(kind, &unix, BACKLOG))?;
                let socket = bound.map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => taken(),
                    _ => listen(error.to_string()),
                })?;
                Ok(Self { socket, file: None })
            }
        }
    }

    /// Whether peers still reach us by the address: a path may have been removed with its directory, or bound by
    /// another program. One system call.
    pub fn leads_here(&self) -> bool {
        self.file.as_ref().is_none_or(SocketFile::leads_here)
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

/// Does `work` where the abstract name is meant: such names belong to a network namespace.
fn inside<T: Send>(
    name: &str,
    netns: Option<&NetNs>,
    work: impl FnOnce(UnixAddr) -> io::Result<T> + Send,
) -> Result<io::Result<T>, SocketError> {
    let unix = match UnixAddr::new_abstract(name.as_bytes()) {
        Ok(unix) => unix,
        Err(errno) => return Ok(Err(errno.into())),
    };
    let Some(netns) = netns else { return Ok(work(unix)) };
    netns.open().and_then(|namespace| namespace.run(move || work(unix))).map_err(|source| SocketError::Namespace {
        address: SocketAddress::Abstract(name.to_owned()),
        netns: netns.clone(),
        source,
    })
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
    #[error("listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: SocketAddress,
        /// Why not.
        reason: String,
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

/// Owner and group may connect, as with VPP.
const USUAL_MODE: u32 = 0o770;
/// Clients that may wait for `accept`.
const BACKLOG: u8 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &std::path::Path, access: &SocketAccess) -> Result<Listener, SocketError> {
        Listener::bind(Kind::SeqPacket, &SocketAddress::Path(path.to_owned()), None, access)
    }

    #[test]
    fn a_listener_knows_whether_its_path_still_leads_to_it() {
        let path = std::env::temp_dir().join(format!("ferrule-listener-{}", std::process::id()));
        let listener = bind(&path, &SocketAccess::default()).unwrap();
        assert!(listener.leads_here());
        assert!(matches!(bind(&path, &SocketAccess::default()), Err(SocketError::InUse { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(!listener.leads_here());
        let theirs = bind(&path, &SocketAccess::default()).unwrap();
        assert!(theirs.leads_here() && !listener.leads_here());
        let name = format!("@ferrule-listener-{}", std::process::id());
        let named = Listener::bind(Kind::Stream, &name.parse().unwrap(), None, &SocketAccess::default());
        assert!(named.unwrap().leads_here(), "an abstract name is ours while it is bound");
    }

    #[test]
    fn a_group_that_is_not_here_is_named() {
        let path = std::env::temp_dir().join(format!("ferrule-no-group-{}", std::process::id()));
        let access = SocketAccess { group: "no-such-group".parse().ok(), ..SocketAccess::default() };
        let error = bind(&path, &access).err().unwrap().to_string();
        assert!(error.contains("there is no group `no-such-group`"), "{error}");
        assert!(!path.exists());
    }
}
