//! Notifies a peer's eventfd without ever blocking.
//!
//! An eventfd that came from a peer shares its flags and its counter with that peer: it can clear
//! O_NONBLOCK and fill the counter at any moment, and a plain `write` would then block the thread,
//! and with it every other wire. No check beforehand helps, as the peer can act after the check. So
//! the kernel does it: an asynchronous I/O request that completes at once (a read
//! of /dev/null) names the eventfd as the one to signal at its completion, and the kernel's
//! `eventfd_signal` never waits: it saturates. (`docs/decisions/notify.md` has the figures.)

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use arrayvec::ArrayVec;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A thread's means to notify peers through their eventfds.
pub struct Notifier {
    context: libc::c_ulong,
    null: File,
    /// The eventfds to be notified with the next [`Self::flush`].
    queue: ArrayVec<RawFd, BATCH>,
    /// Requests whose completion was not collected yet; the kernel's ring holds `DEPTH`.
    pending: usize,
}

impl Notifier {
    /// # Errors
    /// The kernel has no asynchronous I/O, or `/proc/sys/fs/aio-max-nr` is used up.
    pub fn new() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is a valid place for the one word that io_setup stores.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        if result < 0 {
            let cause = io::Error::last_os_error();
            let text = format!("set up asynchronous I/O: {cause} (if EAGAIN: raise /proc/sys/fs/aio-max-nr)");
            return Err(io::Error::new(cause.kind(), text));
        }
        Ok(Self { context, null, queue: ArrayVec::new(), pending: 0 })
    }

    /// Adds one to `eventfd`, or leaves a full one full. Never blocks.
    ///
    /// # Errors
    /// The descriptor is no eventfd.
    pub fn notify(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.submit(&[eventfd.as_raw_fd()]).map(|_| ())
    }

    /// Notes an eventfd that is to be notified with the next [`flush`](Self::flush), which is one system call for many;
    /// a full queue is flushed at once. The caller keeps the descriptor open until then: if it does not, whichever
    /// eventfd has its number is notified in its place.
    #[inline]
    pub fn queue(&mut self, eventfd: BorrowedFd<'_>) {
        if self.queue.is_full() {
            self.flush();
        }
        self.queue.push(eventfd.as_raw_fd());
    }

    /// Notifies what was queued. What turns out to be no eventfd is left out: it was one when its peer passed it.
    #[inline]
    pub fn flush(&mut self) {
        if !self.queue.is_empty() {
            self.submit_queue();
        }
    }

    fn submit_queue(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        let mut rest = &queue[..];
        while !rest.is_empty() {
            // The kernel stops at the first that it refuses.
            let submitted = self.submit(rest).unwrap_or(0);
            rest = &rest[submitted..];
            rest = rest.get(usize::from(submitted == 0)..).unwrap_or(&[]);
        }
    }

    /// Notifies the first ones, at most `BATCH`; how many.
    fn submit(&mut self, eventfds: &[RawFd]) -> io::Result<usize> {
        if self.pending + eventfds.len() > DEPTH {
            self.collect();
        }
        let mut byte = 0u8;
        let mut requests: ArrayVec<Iocb, BATCH> = ArrayVec::new();
        for &eventfd in eventfds.iter().take(BATCH) {
            requests.push(Iocb {
                opcode: IOCB_CMD_PREAD,
                file: self.null.as_raw_fd().cast_unsigned(),
                buffer: &raw mut byte as u64,
                bytes: 1,
                flags: IOCB_FLAG_RESFD,
                signal: eventfd.cast_unsigned(),
                ..Iocb::default()
            });
        }
        let mut list: ArrayVec<*mut Iocb, BATCH> = requests.iter_mut().map(std::ptr::from_mut).collect();
        // SAFETY: the context is ours; `list` names as many valid requests as it is long. Reads of /dev/null complete
        // within the call, so neither `requests` nor `byte` is used after it.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.context, list.len(), list.as_mut_ptr()) };
        let submitted = usize::try_from(submitted).map_err(|_| io::Error::last_os_error())?;
        self.pending += submitted;
        Ok(submitted)
    }

    fn collect(&mut self) {
        let mut events = [MaybeUninit::<Completion>::uninit(); DEPTH];
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the context is ours; the array has room for the DEPTH completions asked for.
        let collected = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 0, DEPTH, events.as_mut_ptr(), &raw const none)
        };
        self.pending -= usize::try_from(collected).unwrap_or(0).min(self.pending);
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // SAFETY: the context is ours and not used again; every request completed within its call.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// A new eventfd that nobody blocks on.
pub fn eventfd() -> io::Result<EventFd> {
    Ok(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// Whether a descriptor is an eventfd, and not a pipe, socket or file that a peer passed as one.
pub fn is_eventfd(file: impl AsFd) -> bool {
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    std::fs::read_link(link).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

/// `struct iocb` of linux/aio_abi.h, little-endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    signal: u32,
}

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Completion {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;
const DEPTH: usize = 64;
/// Eventfds that are notified by one system call.
const BATCH: usize = 32;
const _: () = assert!(size_of::<Iocb>() == 64);
const _: () = assert!(size_of::<Completion>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;

    #[test]
    fn every_notification_is_counted_also_beyond_the_depth_of_the_queue() {
        let eventfd = eventfd().unwrap();
        let mut notifier = Notifier::new().unwrap();
        for _ in 0..3 * DEPTH {
            notifier.notify(eventfd.as_fd()).unwrap();
        }
        assert_eq!(eventfd.read().unwrap(), 3 * DEPTH as u64);
    }

    #[test]
    fn what_is_queued_is_notified_by_the_flush_also_around_one_that_is_refused() {
        let eventfds = [eventfd().unwrap(), eventfd().unwrap()];
        let (_reader, writer) = pipe().unwrap();
        let mut notifier = Notifier::new().unwrap();
        notifier.flush();
        for _ in 0..3 {
            notifier.queue(eventfds[0].as_fd());
            notifier.queue(writer.as_fd());
            notifier.queue(eventfds[1].as_fd());
        }
        assert!(eventfds[0].read().is_err(), "not before the flush");
        notifier.flush();
        assert_eq!(eventfds.each_ref().map(|eventfd| eventfd.read().unwrap()), [3, 3]);
        notifier.flush();
        assert!(eventfds[1].read().is_err(), "once");
    }

    #[test]
    fn a_full_queue_is_flushed_and_nothing_of_it_is_lost() {
        let eventfd = eventfd().unwrap();
        let mut notifier = Notifier::new().unwrap();
        for _ in 0..5 * DEPTH + 3 {
            notifier.queue(eventfd.as_fd());
        }
        notifier.flush();
        assert_eq!(eventfd.read().unwrap(), 5 * DEPTH as u64 + 3);
    }

    #[test]
    fn a_full_eventfd_that_blocks_its_writers_does_not_block_the_notifier() {
        let blocking = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        blocking.write(u64::MAX - 1).unwrap();
        let mut notifier = Notifier::new().unwrap();
        for _ in 0..2 * DEPTH {
            notifier.notify(blocking.as_fd()).unwrap();
        }
    }

    #[test]
    fn what_is_no_eventfd_is_told_apart_and_refused() {
        let (_reader, writer) = pipe().unwrap();
        assert!(!is_eventfd(&writer));
        assert!(is_eventfd(eventfd().unwrap()));
        assert!(Notifier::new().unwrap().notify(writer.as_fd()).is_err());
    }
}
