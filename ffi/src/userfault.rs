//! Missing pages of peers' memory, announced before the kernel populates them (userfaultfd).
//!
//! A range that is registered raises SIGBUS at an access to a page that no file cache has, and the SIGBUS guard
//! decides whether it is populated. Pages that are there cost nothing. A system call that is given such a page answers
//! EFAULT instead.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// Whether this process may use it; the error says what to do about it.
pub(crate) fn available() -> Result<(), &'static str> {
    match device() {
        Ok(_) => Ok(()),
        Err(problem) => Err(problem),
    }
}

/// From now on an access to a page of the range that is missing raises SIGBUS. The range is a whole mapping, in
/// pages of `page` bytes; unmapping it ends this.
pub(crate) fn register(base: usize, len: usize, page: usize) -> io::Result<()> {
    #[cfg(test)]
    if tests::DENIED.get() {
        return Err(Errno::EPERM.into());
    }
    let device = device().as_ref().map_err(|problem| io::Error::other(problem.as_str()))?;
    if page > PAGE {
        (*zeros())?;
    }
    let mut request = Register { start: base as u64, len: len as u64, mode: MODE_MISSING, ioctls: 0 };
    // SAFETY: the descriptor is a userfaultfd and the request is the one that the kernel reads and writes.
    unsafe { uffdio_register(device.as_raw_fd(), &raw mut request) }?;
    Ok(())
}

/// What became of a missing page.
pub(crate) enum Populated {
    /// It is zeros now.
    Now,
    /// Somebody else was faster.
    Before,
    /// It is not there; EFAULT: the file ends before it.
    Not(i32),
}

/// Populates one page of a registered range with zeros. Async-signal-safe; changes `errno`.
pub(crate) fn populate(at: usize, page: usize) -> Populated {
    let device = DEVICE_FD.load(Ordering::Relaxed);
    for _ in 0..TRIES_MAX {
        let done = if page == PAGE {
            let mut request = ZeroPage { start: at as u64, len: page as u64, mode: 0, zeroed: 0 };
            // SAFETY: as for `register`; the page belongs to a range that only peers' bytes are in.
            unsafe { uffdio_zeropage(device, &raw mut request) }
        } else {
            let Some(Ok(zeros)) = ZEROS.get() else { return Populated::Not(libc::ENOMEM) };
            let mut request = CopyPage { to: at as u64, from: *zeros as u64, len: page as u64, mode: 0, copied: 0 };
            // SAFETY: as above; hugetlbfs has no zero page, so `page` bytes of zeros are read from our own.
            unsafe { uffdio_copy(device, &raw mut request) }
        };
        match done {
            Ok(_) => return Populated::Now,
            Err(Errno::EEXIST) => return Populated::Before,
            // The kernel was changing the address space.
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Populated::Not(errno as i32),
        }
    }
    Populated::Not(libc::EAGAIN)
}

/// The one userfaultfd of this process.
fn device() -> &'static Result<OwnedFd, String> {
    static DEVICE: OnceLock<Result<OwnedFd, String>> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let device = open().map_err(|error| {
            format!(
                "userfaultfd cannot be used: {error}; so all that a peer's file has no pages for when it is mapped is \
                 charged to its `memory:`, and pages that it takes away later are not (allow the system call in the \
                 seccomp profile, or access to /dev/userfaultfd; Linux 4.14 or later)"
            )
        })?;
        DEVICE_FD.store(device.as_raw_fd(), Ordering::Relaxed);
        Ok(device)
    })
}

fn open() -> io::Result<OwnedFd> {
    let call = |flags: i32| {
        // SAFETY: userfaultfd takes flags only.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok::<_, Errno>(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    };
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // Needs no privilege; a kernel before 5.11 does not know the flag.
    let device = call(flags | USER_MODE_ONLY).or_else(|_| call(flags)).or_else(|errno| {
        let file = File::open("/dev/userfaultfd").map_err(|_| errno)?;
        // SAFETY: the request takes its flags by value and answers with a new descriptor.
        let fd = unsafe { userfaultfd_new(file.as_raw_fd(), flags) }?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok::<_, Errno>(unsafe { OwnedFd::from_raw_fd(fd) })
    })?;
    let mut api = Api { version: API, features: SIGBUS | MISSING_SHMEM | MISSING_HUGETLBFS, ioctls: 0 };
    // SAFETY: the descriptor is a userfaultfd and the request is the one that the kernel reads and writes.
    unsafe { uffdio_api(device.as_raw_fd(), &raw mut api) }?;
    Ok(device)
}

/// As many zeros as the largest huge page has: address space that is never written to.
fn zeros() -> &'static Result<usize, Errno> {
    ZEROS.get_or_init(|| {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let len = HUGE_PAGE_MAX.try_into().expect("it is not 0");
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ, flags) }?;
        Ok(base.as_ptr() as usize)
    })
}

/// `struct uffdio_api` of linux/userfaultfd.h.
#[repr(C)]
struct Api {
    version: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    zeroed: i64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct CopyPage {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, Register);
nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, CopyPage);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, ZeroPage);
nix::ioctl_write_int_bad!(userfaultfd_new, nix::request_code_none!(0xAA, 0x00));

const API: u64 = 0xAA;
const USER_MODE_ONLY: i32 = 1;
const MODE_MISSING: u64 = 1;
const MISSING_HUGETLBFS: u64 = 1 << 4;
const MISSING_SHMEM: u64 = 1 << 5;
const SIGBUS: u64 = 1 << 7;
const PAGE: usize = 4096;
const HUGE_PAGE_MAX: usize = 1 << 30;
const TRIES_MAX: usize = 1000;
/// The handler's way to the descriptor.
static DEVICE_FD: AtomicI32 = AtomicI32::new(-1);
static ZEROS: OnceLock<Result<usize, Errno>> = OnceLock::new();

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// Whether this thread is to find out what happens without it.
        pub(crate) static DENIED: Cell<bool> = const { Cell::new(false) };
    }
}
