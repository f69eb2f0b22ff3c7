//! The kernel's own news: kobject uevents, of which those about devices of ours start a new look at these, or at the tree.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::address::PciAddress;

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Functions that got another driver, interface or node.
    pub functions: BTreeSet<PciAddress>,
    /// Something else that is to be looked for everywhere.
    pub is_more: bool,
}

impl News {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty() && !self.is_more
    }

    /// Both.
    pub fn extend(&mut self, other: Self) {
        self.functions.extend(other.functions);
        self.is_more |= other.is_more;
    }
}

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
    /// passed.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<News> {
        let deadline = Instant::now() + timeout;
        let mut first: Option<Instant> = None;
        let mut news = News::default();
        loop {
            let now = Instant::now();
            let until = match first {
                // News come in flocks; the last of a flock may be the one that matters.
                Some(first) => (now + QUIET).min(first + FLOCK_MAX),
                None => deadline,
            };
            if now >= until || !self.readable(until - now)? {
                return Ok(news);
            }
            news.extend(self.drain()?);
            if !news.is_empty() {
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

    /// Reads what is there.
    fn drain(&mut self) -> io::Result<News> {
        let mut news = News::default();
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => note(&mut news, &self.received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(news),
                // Some were lost, and nobody knows which.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => news.is_more = true,
                Err(error) => return Err(error),
            }
        }
    }
}

/// `add@/devices/...`, then `KEY=value` texts, each with a NUL behind it (lib/kobject_uevent.c).
fn note(news: &mut News, message: &[u8]) {
    let mut texts = message.split(|&byte| byte == 0);
    let (what, path) = texts.next().and_then(|head| str::from_utf8(head).ok()?.split_once('@')).unwrap_or_default();
    let subsystem = texts.find_map(|text| text.strip_prefix(b"SUBSYSTEM="));
    let function = || path.rsplit('/').find_map(|part| part.parse().ok());
    let is_there = match subsystem {
        // The function itself comes or goes.
        Some(b"pci") => what != "add" && what != "remove",
        Some(b"net" | b"vfio-dev") => true,
        // A driver that is loaded makes VFs available.
        Some(b"iommu" | b"module" | b"drivers") => false,
        // A group of VFIO comes and goes with the driver of a function, which is told by itself.
        _ => return,
    };
    match function().filter(|_| is_there) {
        Some(function) => drop(news.functions.insert(function)),
        None => news.is_more = true,
    }
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

    fn heard(message: &[u8]) -> News {
        let mut news = News::default();
        note(&mut news, message);
        news
    }

    #[test]
    fn what_happens_to_a_function_that_stays_is_news_of_that_function_alone() {
        let vf = PciAddress::new(0, 2, 0x10, 0);
        let of_vf = News { functions: [vf].into(), is_more: false };
        let below = "/devices/pci0000:00/0000:00:03.0/0000:02:10.0";
        for (message, subsystem) in [
            (format!("bind@{below}"), "pci"),
            (format!("unbind@{below}"), "pci"),
            (format!("add@{below}/net/eth0"), "net"),
            (format!("remove@{below}/net/eth0"), "net"),
            (format!("add@{below}/vfio-dev/vfio0"), "vfio-dev"),
        ] {
            let text = format!("{message}\0ACTION=x\0SUBSYSTEM={subsystem}\0SEQNUM=7\0");
            assert_eq!(heard(text.as_bytes()), of_vf, "{text}");
        }
    }

    #[test]
    fn what_comes_or_goes_is_looked_for_everywhere() {
        let everywhere = News { is_more: true, ..News::default() };
        for message in [
            &b"add@/devices/pci0000:00/0000:02:10.0\0SUBSYSTEM=pci\0"[..],
            b"remove@/devices/pci0000:00/0000:02:10.0\0SUBSYSTEM=pci\0",
            // A bond, of any of its members.
            b"add@/devices/virtual/net/bond0\0SUBSYSTEM=net\0INTERFACE=bond0\0",
            b"add@/bus/pci/drivers/vfio-pci\0SUBSYSTEM=drivers\0",
            b"add@/module/vfio_pci\0SUBSYSTEM=module\0",
        ] {
            assert_eq!(heard(message), everywhere, "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn only_devices_of_ours_are_news() {
        for message in [
            &b"add@/x\0SUBSYSTEM=block\0"[..],
            b"add@/x\0XSUBSYSTEM=net\0",
            b"add@/devices/virtual/vfio/13\0SUBSYSTEM=vfio\0",
            b"",
        ] {
            assert!(heard(message).is_empty(), "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn nothing_happens_and_the_timeout_ends() {
        match Uevents::open() {
            Ok(mut uevents) => drop(uevents.wait(Duration::from_millis(1)).unwrap()),
            Err(error) => println!("skipped: a uevent socket ({error})"),
        }
    }
}
