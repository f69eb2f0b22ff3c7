//! The interface of the kernel that a software device is made of: whether it is still there, and how it was before.
//!
//! Drivers change its MTU and have it receive everything, and leave both behind.

use std::ffi::c_int;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// An interface, as it was when its device was made.
pub(crate) struct Interface {
    index: u32,
    /// Of the namespace that it is in, whoever asks.
    socket: OwnedFd,
    flags: i32,
    mtu: c_int,
    /// What the device has set its MTU to.
    mtu_set: Option<c_int>,
}

impl Interface {
    /// The one with this number in the namespace of this thread.
    pub fn of(index: u32) -> Option<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
        let mut interface = Self { index, socket, flags: 0, mtu: 0, mtu_set: None };
        let mut request = interface.request().ok()?;
        interface.flags = interface.flags_of(&mut request).ok()?;
        interface.mtu = interface.mtu_of(&mut request).ok()?;
        Some(interface)
    }

    /// Its MTU was set to this.
    pub fn note_mtu(&mut self, mtu: u16) {
        self.mtu_set = Some(mtu.into());
    }

    /// Whether it is gone. Most drivers do not notice.
    pub fn is_gone(&self) -> bool {
        self.request().is_err_and(|errno| matches!(errno, Errno::ENODEV | Errno::ENXIO))
    }

    /// Makes it what it was, as far as the device has changed it, if it is there.
    pub fn restore(&self) -> Result<(), Errno> {
        let mut request = match self.request() {
            Err(Errno::ENODEV | Errno::ENXIO) => return Ok(()),
            request => request?,
        };
        let flags = self.flags_of(&mut request)?;
        let wanted = flags & !(CHANGED & !self.flags);
        if wanted != flags {
            request.ifr_ifru.ifru_flags = wanted as i16;
            self.ask(libc::SIOCSIFFLAGS, &mut request)?;
        }
        let mtu = self.mtu_of(&mut request)?;
        if mtu != self.mtu && Some(mtu) == self.mtu_set {
            request.ifr_ifru.ifru_mtu = self.mtu;
            self.ask(libc::SIOCSIFMTU, &mut request)?;
        }
        Ok(())
    }

    /// A question that names it: it may be called otherwise by now.
    fn request(&self) -> Result<libc::ifreq, Errno> {
        // SAFETY: of numbers and characters.
        let mut request: libc::ifreq = unsafe { zeroed() };
        request.ifr_ifru.ifru_ifindex = self.index.cast_signed();
        self.ask(libc::SIOCGIFNAME, &mut request)?;
        Ok(request)
    }

    fn flags_of(&self, request: &mut libc::ifreq) -> Result<i32, Errno> {
        self.ask(libc::SIOCGIFFLAGS, request)?;
        // SAFETY: the answer to this question is flags.
        Ok(unsafe { request.ifr_ifru.ifru_flags }.into())
    }

    fn mtu_of(&self, request: &mut libc::ifreq) -> Result<c_int, Errno> {
        self.ask(libc::SIOCGIFMTU, request)?;
        // SAFETY: the answer to this question is a number.
        Ok(unsafe { request.ifr_ifru.ifru_mtu })
    }

    fn ask(&self, question: libc::Ioctl, request: &mut libc::ifreq) -> Result<(), Errno> {
        // SAFETY: each of these questions reads and writes a `struct ifreq`.
        Errno::result(unsafe { libc::ioctl(self.socket.as_raw_fd(), question, &raw mut *request) }).map(drop)
    }
}

/// The numbers of the interfaces that devargs name.
pub(crate) fn indexes(devargs: &str) -> Vec<u32> {
    let values = devargs.split(',').filter_map(|argument| argument.split_once('='));
    let names = values.filter(|(key, _)| key.ends_with("iface") || key.ends_with("iface_in")).map(|(_, name)| name);
    names.filter_map(|name| nix::net::if_::if_nametoindex(name).ok()).collect()
}

/// What drivers set and leave behind.
const CHANGED: i32 = libc::IFF_PROMISC | libc::IFF_ALLMULTI;
