//! Packet sockets that a driver leaves blocking: a full one would hold up the worker, and with it every wire that it serves.

use std::fs;
use std::mem::{size_of, zeroed};
use std::os::fd::{BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

/// Makes the packet sockets of this process on these interfaces non-blocking. Drivers do not say which are theirs; with those of others
/// nobody waits either.
pub(crate) fn make_non_blocking(interfaces: &[u32]) {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let is_theirs = interface_of(number).is_some_and(|index| interfaces.contains(&index));
        // SAFETY: it may be closed by another thread by now, or be another one: then it is no packet socket, or one that is to be
        // non-blocking as well.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if is_theirs && let Ok(flags) = fcntl(fd, FcntlArg::F_GETFL) {
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            let _ = fcntl(fd, FcntlArg::F_SETFL(flags));
        }
    }
}

/// The interface that a packet socket is bound to. The kernel tells as much of its address as the interface has, which nix takes for an error.
fn interface_of(number: RawFd) -> Option<u32> {
    // SAFETY: of numbers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: it writes no more than is told that there is room for; whose descriptor it is does not matter to it.
    let status = unsafe { libc::getsockname(number, (&raw mut address).cast(), &raw mut length) };
    let is_packet = status == 0 && libc::c_int::from(address.sll_family) == libc::AF_PACKET;
    is_packet.then_some(address.sll_ifindex.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    use nix::errno::Errno;
    use nix::net::if_::if_nametoindex;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    #[test]
    fn a_packet_socket_on_an_interface_is_found_by_it_and_made_non_blocking() {
        let made = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
        if matches!(made, Err(Errno::EPERM)) {
            println!("skipped: packet sockets are for root");
            return;
        }
        let (socket, index) = (made.unwrap(), if_nametoindex("lo").unwrap());
        // SAFETY: of numbers.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        (address.sll_family, address.sll_ifindex) = (libc::AF_PACKET as u16, index.cast_signed());
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is there, and as long as is told.
        let status = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(status, 0, "{}", Errno::last());
        let blocks = || fcntl(&socket, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK == 0;
        make_non_blocking(&[index + 1000]);
        assert!(blocks());
        make_non_blocking(&[index]);
        assert!(!blocks());
    }
}
