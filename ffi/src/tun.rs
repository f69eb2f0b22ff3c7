//! TUN devices: a network interface of the kernel without Ethernet, whose other end is a file descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::c_int;
use nix::unistd;

use crate::tap::{attach, open};

/// A TUN device. It is not persistent: dropping this value removes the interface. The descriptor does not block.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
}

impl Tun {
    /// Makes a TUN device in the network namespace of the calling thread. A name that exists is refused with `EBUSY`, whatever kind of
    /// interface has it.
    pub fn create(name: &str) -> io::Result<Self> {
        let fd = open()?;
        attach(&fd, name, FLAGS)?;
        Ok(Self { fd })
    }

    /// Reads one packet; `WouldBlock` when there is none. When the interface is gone, with its namespace for example, the answer is
    /// `EBADFD`.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(unistd::read(&self.fd, buffer)?)
    }

    /// Writes one packet, as if it had come in by the interface.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        unistd::write(&self.fd, packet)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Exclusive: an interface that exists is an error, not something to attach to.
const FLAGS: c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn a_tun_is_made_once_and_goes_with_its_value() {
        if let Err(error) = open() {
            return println!("skipped: no TUN device ({error})");
        }
        let Ok(netns) = NetNs::private() else { return println!("skipped: a namespace of its own") };
        let test = || {
            let tun = Tun::create("t0").unwrap();
            assert_eq!(Tun::create("t0").unwrap_err().raw_os_error(), Some(libc::EBUSY));
            assert_eq!(tun.read(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            drop(tun);
            Tun::create("t0").unwrap();
        };
        netns.run(test).unwrap();
    }
}
