//! Sockets without manners: any bytes, any descriptors.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ferrule_dataplane::spec::SocketAddress;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socket,
};
use nix::sys::time::TimeVal;

/// Connects. `None`: nobody listens, or there is no descriptor left.
pub fn connect(kind: SockType, address: &SocketAddress) -> Option<OwnedFd> {
    let socket = new_socket(kind)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &unix_address(address)).ok()?;
    Some(socket)
}

/// Sends bytes with descriptors. How many bytes the socket took.
pub fn send(socket: &impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> nix::Result<usize> {
    let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let socket = socket.as_fd().as_raw_fd();
    sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
}

/// A socket that does not wait for an answer for ever.
pub fn new_socket(kind: SockType) -> Option<OwnedFd> {
    let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).ok()?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(5, 0)).unwrap();
    Some(socket)
}

pub fn unix_address(address: &SocketAddress) -> UnixAddr {
    let SocketAddress::Abstract(name) = address else { panic!("tests use abstract names") };
    UnixAddr::new_abstract(name.as_bytes()).unwrap()
}
