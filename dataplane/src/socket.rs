//! Control sockets of every kind of end: where they are, who listens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use ferrule_ffi::descriptor_account::DescriptorAccount;
use ferrule_ffi::socket_file::{BindError, SocketFile, SocketLocation};
use ferrule_ffi::unix::{Kind, UnixListener, UnixSocket};
use nix::sys::socket::UnixAddr;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::port::saved::{FileId, RestoreError, SavedFiles};
use crate::spec::{NetNs, SocketAccess, SocketAddress};

/// Connects to whoever listens on `address`.
pub fn connect(kind: Kind, address: &SocketAddress, netns: Option<&NetNs>) -> Result<UnixSocket, SocketError> {
    let failed = |source: io::Error| SocketError::Connect { address: address.clone(), source };
    match address {
        SocketAddress::Path(path) => UnixSocket::connect_path(kind, path).map_err(failed),
        SocketAddress::Abstract(name) => inside(name, netns, |unix| UnixSocket::connect(kind, &unix))?.map_err(failed),
    }
}

/// A listening control socket. When this is dropped its file is removed, if it is still ours, and whoever waits there is
/// turned away. The removal looks the path up; nothing waits for a peer.
pub struct Listener {
    /// There until it is dropped or released.
    socket: Option<UnixListener>,
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
                bound.map(|(socket, file)| Self { socket: Some(socket), file: Some(file) })
            }
            SocketAddress::Abstract(name) => {
                let bound = inside(name, netns, |unix| UnixListener::bind(kind, &unix, BACKLOG))?;
                let socket = bound.map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => taken(),
                    _ => listen(error.to_string()),
                })?;
                Ok(Self { socket: Some(socket), file: None })
            }
        }
    }

    /// Where its file is, which another thread can ask whether it still leads here: a path may have been removed with
    /// its directory, or bound by another program. None: an abstract name is ours while it is bound.
    pub fn location(&self) -> Option<SocketLocation> {
        self.file.as_ref().map(|file| file.location().clone())
    }

    /// What its peers hold of our descriptors counts in this account, which outlives it.
    #[must_use]
    pub fn charged_to(mut self, account: &Arc<DescriptorAccount>) -> Self {
        self.socket = self.socket.take().map(|socket| socket.charged_to(account));
        self
    }

    /// Writes it down for a successor, which gets a copy of the socket: peers that have connected wait in it.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn save(&self, files: &mut SavedFiles) -> io::Result<SavedListener> {
        let file = self.file.as_ref().map(SocketFile::location);
        let file = file.map(|location| (location.path().to_path_buf(), location.identity()));
        Ok(SavedListener { socket: files.push_copy(self.socket())?, file })
    }

    /// Lets go of it, once a successor has it: its file stays, and nobody is turned away.
    pub fn release(mut self) {
        if let Some(file) = self.file.take() {
            file.release();
        }
        drop(self.socket.take());
    }

    /// Whether the peers that came here may hold the descriptors of one more message.
    pub fn has_room(&self) -> bool {
        self.socket().account().has_room_for(MESSAGE_FILES_MAX)
    }

    /// The next client.
    pub fn accept(&self) -> io::Result<UnixSocket> {
        self.socket().accept()
    }

    fn socket(&self) -> &UnixListener {
        self.socket.as_ref().expect("it is there until the value is dropped")
    }
}

impl Drop for Listener {
    /// The file goes first: while the socket is there, no other file can have its inode.
    fn drop(&mut self) {
        drop(self.file.take());
        if let Some(socket) = self.socket.take() {
            socket.turn_away();
        }
    }
}

/// A listening socket as it is written down.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedListener {
    socket: FileId,
    /// The path, and the device and inode of its file.
    file: Option<(PathBuf, (u64, u64))>,
}

impl SavedListener {
    /// Listens on: peers that connected meanwhile come next.
    ///
    /// # Errors
    /// The descriptor was not passed, or is no listening socket of this kind.
    pub fn restore(self, kind: Kind, files: &mut SavedFiles) -> Result<Listener, RestoreError> {
        let invalid = |source| RestoreError::File { what: "a listening socket", source };
        let socket = UnixListener::from_fd(files.take(self.socket)?, kind).map_err(invalid)?;
        let file = self.file.map(|(path, identity)| SocketFile::restore(SocketLocation::new(path, identity)));
        Ok(Listener { socket: Some(socket), file })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
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
    /// Looking it up takes for ever.
    #[error(
        "reach {address}: looking it up has taken longer than {seconds} s; is it of a file system that does not answer \
         (FUSE, NFS)?"
    )]
    Unanswered {
        /// Which socket.
        address: SocketAddress,
        /// How long was waited.
        seconds: u64,
    },
    /// Everything that could look it up is held up elsewhere.
    #[error(
        "reach {address}: no thread was free for it within {seconds} s: lookups in {directories} directories do not return, in \
         {example} for one; are those of a file system that does not answer (FUSE, NFS)?"
    )]
    NoThread {
        /// Which socket.
        address: SocketAddress,
        /// How long was waited.
        seconds: u64,
        /// How many hold a thread.
        directories: usize,
        /// One of them.
        example: PathBuf,
    },
    /// A defect of ours.
    #[error("reach {address}: the thread that was to do it has panicked; restart the forwarder, and report its log")]
    Panicked {
        /// Which socket.
        address: SocketAddress,
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
pub const USUAL_MODE: u32 = 0o770;
/// No message of memif or vhost-user has more descriptors.
const MESSAGE_FILES_MAX: usize = 32;
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
        let location = listener.location().unwrap();
        assert!(location.leads_here());
        assert!(matches!(bind(&path, &SocketAccess::default()), Err(SocketError::InUse { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(!location.leads_here());
        let theirs = bind(&path, &SocketAccess::default()).unwrap();
        assert!(theirs.location().unwrap().leads_here() && !location.leads_here());
        drop(listener);
        assert!(path.exists(), "the file is another's by now");
        drop(theirs);
        assert!(!path.exists());
        let name = format!("@ferrule-listener-{}", std::process::id());
        let named = || Listener::bind(Kind::Stream, &name.parse().unwrap(), None, &SocketAccess::default()).unwrap();
        assert!(named().location().is_none());
        drop(named());
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
