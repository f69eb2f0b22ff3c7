//! The dirty log of a live migration: one bit for each page of guest memory that we write.
//!
//! Bits are collected for a burst and set before its buffers are given back: a page that the guest may look at is
//! logged by then. Setting them one by one would be an atomic write for each frame.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use ferrule_ffi::region::Region;

/// The bitmap that SET_LOG_BASE gave us. Clones share it.
#[derive(Clone)]
pub struct DirtyLog(Arc<Region>);

impl DirtyLog {
    /// The log in these bytes.
    pub fn new(bitmap: Region) -> Self {
        Self(Arc::new(bitmap))
    }

    /// Whether this is the same mapping.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The file that it is a window of.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.0.file()
    }
}

/// The bits of one ring that are not set yet.
pub(crate) struct DirtyPages {
    log: DirtyLog,
    /// The guest address of the used ring, if it is to be logged.
    used: Option<u64>,
    pending: ArrayVec<LogByte, PENDING_MAX>,
}

/// Bits of one byte of the log.
struct LogByte {
    byte: u64,
    bits: u8,
}

impl DirtyPages {
    pub(crate) fn new(log: DirtyLog, used: Option<u64>) -> Self {
        Self { log, used, pending: ArrayVec::new() }
    }

    /// Notes that `len` bytes from a guest address on were written.
    pub(crate) fn note(&mut self, address: u64, len: u32) {
        if len == 0 {
            return;
        }
        let last = address.saturating_add(u64::from(len) - 1) / PAGE;
        for page in address / PAGE..=last {
            self.set(page / 8, 1 << (page % 8));
        }
    }

    /// Notes that bytes of the used ring were written.
    pub(crate) fn note_used(&mut self, offset: u32, len: u32) {
        if let Some(used) = self.used {
            self.note(used.saturating_add(offset.into()), len);
        }
    }

    /// Sets everything noted so far.
    pub(crate) fn flush(&mut self) {
        for LogByte { byte, bits } in self.pending.drain(..) {
            // A page behind the end of the log is one that the frontend does not want to know of.
            let _ = self.log.0.set_bits(byte, bits);
        }
    }

    fn set(&mut self, byte: u64, bits: u8) {
        if let Some(entry) = self.pending.iter_mut().rev().find(|entry| entry.byte == byte) {
            entry.bits |= bits;
            return;
        }
        if self.pending.is_full() {
            self.flush();
        }
        self.pending.push(LogByte { byte, bits });
    }
}

/// Bytes that one bit stands for (vhost-user: VHOST_LOG_PAGE).
const PAGE: u64 = 4096;
const PENDING_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(used: Option<u64>) -> (DirtyPages, Region) {
        let file = Region::create("log", 4096, &Arc::default()).unwrap();
        let log = DirtyLog::new(file.part(64, 32).unwrap());
        (DirtyPages::new(log, used), file)
    }

    #[test]
    fn every_page_of_a_range_is_marked_when_flushed_and_no_other() {
        let (mut dirty, file) = dirty(None);
        dirty.note(4096 * 3 + 4095, 1);
        dirty.note(4096 * 7 + 4095, 4098);
        dirty.note(4096 * 20, 0);
        dirty.note_used(0, 64);
        assert_eq!(file.read_u32(64), Some(0));
        dirty.flush();
        assert_eq!(file.read_u32(64), Some(1 << 3 | 1 << 7 | 1 << 8 | 1 << 9));
    }

    #[test]
    fn pages_behind_the_end_of_the_log_are_nobody_s() {
        let (mut dirty, file) = dirty(Some(u64::MAX - 3));
        dirty.note(4096 * 255, 8192);
        dirty.note(u64::MAX - 10, u32::MAX);
        dirty.note_used(0, u32::MAX);
        dirty.flush();
        assert_eq!((file.read_u32(92), file.read_u32(96)), (Some(1 << 31), Some(0)));
    }

    #[test]
    fn more_pages_than_are_collected_are_marked_all_the_same() {
        let (mut dirty, file) = dirty(Some(0));
        dirty.note_used(0, 4096 * 256);
        dirty.flush();
        assert!((64..96).step_by(4).all(|at| file.read_u32(at) == Some(u32::MAX)));
    }
}
