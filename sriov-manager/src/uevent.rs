//! The kernel's own news: kobject uevents, of which those about devices of ours start a new look at the tree.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A socket that hears uevents.
pub struct Uevents {
    socket: Socket,
    received: Vec<u8>,
}

impl Uevents {
    /// Listens from now on.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        // Group 1 is the kernel's own; group 2 is what udev repeats.
        socket.bind(&SocketAddr::new(0, KERNEL_GROUP))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, received: Vec::with_capacity(UEVENT_MAX) })
    }

    /// Waits until something happened to a device of ours and has been quiet for a moment, or until `timeout` has
    /// passed. True: something happened.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        let mut first: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let until = match first {
                // News come in flocks; the last of a flock may be the one that matters.
                Some(first) => (now + QUIET).min(first + FLOCK_MAX),
                None => deadline,
            };
            if now >= until || !self.readable(until - now)? {
                return Ok(first.is_some());
            }
            if self.drain()? {
                first.get_or_insert(now);
            }
        }
    }

    fn readable(&self, timeout: Duration) -> io::Result<bool> {
        let mut files = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut files, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads what is there. True: some of it is about a device of ours.
    fn drain(&mut self) -> io::Result<bool> {
        let mut ours = false;
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => ours |= is_ours(&self.received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(ours),
                // Some were lost, and nobody knows which.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => ours = true,
                Err(error) => return Err(error),
            }
        }
    }
}

/// `add@/devices/...`, then `KEY=value` texts, each with a NUL behind it (lib/kobject_uevent.c).
fn is_ours(message: &[u8]) -> bool {
    let subsystem = message.split(|&byte| byte == 0).find_map(|text| text.strip_prefix(b"SUBSYSTEM="));
    // A driver that is loaded makes VFs available.
    matches!(subsystem, Some(b"pci" | b"net" | b"vfio" | b"vfio-dev" | b"iommu" | b"module" | b"drivers"))
}

/// `nlmsg_multicast_filtered(.., 1, ..)` of lib/kobject_uevent.c.
const KERNEL_GROUP: u32 = 1;
/// `UEVENT_BUFFER_SIZE` is 2 KiB, and the header comes before it.
const UEVENT_MAX: usize = 8 << 10;
const QUIET: Duration = Duration::from_millis(20);
const FLOCK_MAX: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_ours_are_news() {
        assert!(is_ours(b"bind@/devices/pci0000:00/0000:02:10.0\0ACTION=bind\0SUBSYSTEM=pci\0SEQNUM=7\0"));
        assert!(is_ours(b"add@/x\0SUBSYSTEM=net\0INTERFACE=eth0\0"));
        assert!(is_ours(b"add@/bus/pci/drivers/vfio-pci\0SUBSYSTEM=drivers\0"));
        assert!(!is_ours(b"add@/x\0SUBSYSTEM=block\0"));
        assert!(!is_ours(b"add@/x\0XSUBSYSTEM=net\0"));
        assert!(!is_ours(b""));
    }

    #[test]
    fn nothing_happens_and_the_timeout_ends() {
        match Uevents::open() {
            Ok(mut uevents) => drop(uevents.wait(Duration::from_millis(1)).unwrap()),
            Err(error) => println!("skipped: a uevent socket ({error})"),
        }
    }
}
