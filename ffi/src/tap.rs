//! TAP devices: a network interface of the kernel whose other end is a file descriptor.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_char, c_int, c_short, c_uint, c_ulong};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;

use crate::span::Span;

/// A TAP device. It is not persistent: dropping this value removes the interface.
///
/// A virtio-net header of [`HEADER_LEN`] bytes, little-endian, precedes every frame in both
/// directions. The descriptor does not block.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Makes a TAP device in the network namespace of the calling thread, without offloads. A name
    /// that exists is refused with `EBUSY`, whatever kind of interface has it.
    pub fn create(name: &str) -> io::Result<Self> {
        let tap = Self { fd: open()? };
        attach(&tap.fd, name, FLAGS)?;
        tap.set(libc::TUNSETVNETHDRSZ, c_int::from(VNET_HEADER))?;
        tap.set(libc::TUNSETVNETLE, 1)?;
        Ok(tap)
    }

    /// Whether the kernel may hand over frames without checksums and segments longer than the MTU.
    /// What the far end cannot take must then be finished in software.
    pub fn set_offloads(&self, on: bool) -> io::Result<()> {
        if !on {
            return self.offload(0);
        }
        // UDP segmentation came with Linux 6.2; an older kernel refuses flags it does not know.
        self.offload(OFFLOADS | libc::TUN_F_USO4 | libc::TUN_F_USO6).or_else(|_| self.offload(OFFLOADS))
    }

    /// Raises or lowers the carrier. While it is down the kernel sends nothing into the interface.
    pub fn set_carrier(&self, up: bool) -> io::Result<()> {
        self.set(libc::TUNSETCARRIER, c_int::from(up))
    }

    /// Whether the interface went away, with its namespace for example.
    pub fn is_gone(&self) -> bool {
        let mut events = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        let _ = poll(&mut events, PollTimeout::ZERO);
        events[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
    }

    /// Reads one frame behind its virtio-net header; `WouldBlock` when there is none. When the
    /// interface is gone, with its namespace for example, the answer is `EBADFD`.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(unistd::read(&self.fd, buffer)?)
    }

    /// Writes one frame, of at most [`PARTS_MAX`] parts, behind its virtio-net header. The kernel copies the bytes itself:
    /// a page of a shared region that is missing is `EFAULT`, not a signal, and the write is repeated once after it was
    /// touched.
    pub fn write(&self, header: &[u8; HEADER_LEN], parts: &[Span<'_>]) -> io::Result<()> {
        match self.write_once(header, parts) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                for part in parts {
                    part.touch();
                }
                self.write_once(header, parts)
            }
            written => written,
        }
    }

    fn write_once(&self, header: &[u8; HEADER_LEN], parts: &[Span<'_>]) -> io::Result<()> {
        let vector = |base: *const u8, len| libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
        let mut vectors = [vector(header.as_ptr(), HEADER_LEN); PARTS_MAX + 1];
        let filled = vectors.get_mut(1..=parts.len()).ok_or(Errno::EMSGSIZE)?;
        for (to, part) in filled.iter_mut().zip(parts) {
            *to = vector(part.as_ptr(), part.len());
        }
        let count = c_int::try_from(parts.len() + 1).map_err(|_| Errno::EMSGSIZE)?;
        // SAFETY: the header and the parts are readable for their lengths during the call; writev does not write to them.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), vectors.as_ptr(), count) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn offload(&self, flags: c_uint) -> io::Result<()> {
        // SAFETY: this request takes its flags by value; no memory is touched.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(flags)) };
        check(result)
    }

    /// One of the requests that take a pointer to an int.
    fn set(&self, request: libc::Ioctl, value: c_int) -> io::Result<()> {
        // SAFETY: the requests given to this function read one int during the call only.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &raw const value) };
        check(result)
    }
}

impl TryFrom<OwnedFd> for Tap {
    type Error = io::Error;

    /// A TAP device that another process made with [`Self::create`] and passed on.
    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let tap = Self { fd };
        // SAFETY: an ifreq is integers, byte arrays and a union of such, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one ifreq, which `request` is, during the call only.
        check(unsafe { libc::ioctl(tap.fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        let mut header_len: c_int = 0;
        // SAFETY: the kernel writes one int during the call only.
        check(unsafe { libc::ioctl(tap.fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut header_len) })?;
        // SAFETY: this request fills the flags in.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = FLAGS & !libc::IFF_TUN_EXCL;
        if flags & wanted != wanted || header_len != c_int::from(VNET_HEADER) {
            return Err(Errno::EINVAL.into());
        }
        Ok(tap)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A descriptor that is no interface yet, and does not block.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    Ok(device.into())
}

/// Makes a descriptor the other end of a new interface.
pub(crate) fn attach(fd: &OwnedFd, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = interface_request(name, flags)?;
    // SAFETY: the kernel reads and writes one ifreq, which `request` is, during the call only.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result)
}

fn interface_request(name: &str, flags: c_int) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is integers, byte arrays and a union of such, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // An empty name or one with a `%d` would make the kernel choose; the last byte stays NUL.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['\0', '%']) {
        return Err(Errno::EINVAL.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags as c_short;
    Ok(request)
}

fn check(result: c_int) -> io::Result<()> {
    Errno::result(result)?;
    Ok(())
}

/// Bytes of the virtio-net header before each frame: the layout with `num_buffers`.
pub const HEADER_LEN: usize = VNET_HEADER as usize;
/// Parts of a frame: a burst of payloads and the headers before them.
pub const PARTS_MAX: usize = 65;
const VNET_HEADER: u8 = 12;
const DEVICE: &str = "/dev/net/tun";
/// Exclusive: an interface that exists is an error, not something to attach to.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
const OFFLOADS: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn a_tap_is_made_once_and_goes_with_its_value() {
        in_private_namespace(|| {
            let tap = Tap::create("t0").unwrap();
            let taken = Tap::create("t0").unwrap_err();
            assert_eq!(taken.raw_os_error(), Some(libc::EBUSY));
            assert_eq!(Tap::create("lo").unwrap_err().raw_os_error(), Some(libc::EBUSY));
            drop(tap);
            Tap::create("t0").unwrap();
        });
    }

    #[test]
    fn offloads_and_carrier_can_be_switched() {
        in_private_namespace(|| {
            let tap = Tap::create("t0").unwrap();
            for on in [true, false, true] {
                tap.set_offloads(on).unwrap();
                tap.set_carrier(on).unwrap();
            }
            assert_eq!(tap.read(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        });
    }

    #[test]
    fn a_tap_that_was_passed_on_is_one_and_another_file_is_not() {
        in_private_namespace(|| {
            let tap = Tap::create("t0").unwrap();
            let passed = Tap::try_from(tap.fd.try_clone().unwrap()).unwrap();
            drop(tap);
            assert_eq!(Tap::create("t0").unwrap_err().raw_os_error(), Some(libc::EBUSY), "it stays");
            passed.set_carrier(true).unwrap();
            for path in ["/dev/null", DEVICE] {
                let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
                assert!(Tap::try_from(OwnedFd::from(file)).is_err(), "{path}");
            }
        });
    }

    #[test]
    fn a_name_that_the_kernel_would_change_is_refused() {
        for name in ["", "tap%d", "sixteen-bytes-xx", "a\0b"] {
            assert!(interface_request(name, FLAGS).is_err(), "{name}");
        }
    }

    fn in_private_namespace(test: impl FnOnce() + Send) {
        if let Err(error) = std::fs::metadata(DEVICE) {
            return println!("skipped: {DEVICE} ({error})");
        }
        match NetNs::private() {
            Ok(netns) => netns.run(test).unwrap(),
            Err(error) => println!("skipped: a namespace of its own ({error})"),
        }
    }
}
