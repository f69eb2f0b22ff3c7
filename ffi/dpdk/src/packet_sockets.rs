//! Packet sockets that a driver leaves blocking: a full one would hold up the worker, and with it every wire that it serves.

use std::fs;
use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{LinkAddr, getsockname};
use std::os::fd::AsRawFd;

/// Makes the packet sockets of this process on these interfaces non-blocking. Drivers do not say which are theirs; with those of others
/// nobody waits either.
pub(crate) fn make_non_blocking(interfaces: &[u32]) {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        // SAFETY: it may be closed by another thread by now, or be another one: then it is no packet socket, or one that is to be
        // non-blocking as well.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let is_theirs = getsockname::<LinkAddr>(fd.as_raw_fd())
            .is_ok_and(|address| interfaces.contains(&(address.ifindex() as u32)));
        if is_theirs && let Ok(flags) = fcntl(fd, FcntlArg::F_GETFL) {
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            let _ = fcntl(fd, FcntlArg::F_SETFL(flags));
        }
    }
}
