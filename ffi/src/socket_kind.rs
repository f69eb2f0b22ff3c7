//! The two kinds of Unix socket that peers use.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// What a socket keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each packet (SOCK_SEQPACKET).
    SeqPacket,
    /// Nothing: bytes follow bytes (SOCK_STREAM). Descriptors come no later than the byte that they were sent with.
    Stream,
}

/// A socket that does not block and is bound to nothing.
pub(crate) fn new_socket(kind: Kind) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, socket_type(kind), flags, None)
}

/// As the kernel calls it.
pub(crate) fn socket_type(kind: Kind) -> SockType {
    match kind {
        Kind::SeqPacket => SockType::SeqPacket,
        Kind::Stream => SockType::Stream,
    }
}
