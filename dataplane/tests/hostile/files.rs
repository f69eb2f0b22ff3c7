//! Descriptors to pass where others belong.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
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
