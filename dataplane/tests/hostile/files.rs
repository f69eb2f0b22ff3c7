//! Descriptors to pass where others belong.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use nix::unistd::{ftruncate, pipe, write};

/// Harmless, and of no use.
pub fn null() -> File {
    File::open("/dev/null").unwrap()
}

/// A page of memory that can be sealed.
pub fn sealable() -> OwnedFd {
    let file = memfd_create(c"sealable", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&file, 4096).unwrap();
    file
}

/// A pipe that blocks whoever writes to it: its reading end, its writing end.
pub fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while write(&writer, &[0; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// A socket whose last close waits for a far end that never reads, and that far end.
pub fn lingering_socket() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    near.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &near, &[0; 8192]).is_ok() {}
    setsockopt(&near, Linger, &libc::linger { l_onoff: 1, l_linger: 600 }).unwrap();
    (near, far)
}
