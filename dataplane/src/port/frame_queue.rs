//! A bounded queue of frames between two workers: the one end is a target, the other a source.
//!
//! One source that feeds many wires (a tunnel's socket, a queue of a NIC) has a lane of its own, whose target is a
//! [`Demux`](crate::port::demux::Demux) to such queues; each wire has the other end of one. The way back is a queue too,
//! whose targets write a prefix of their own before each frame. Frames are copied into buffers of the queue, which were
//! made with it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use ferrule_ffi::notifier::eventfd;
use ferrule_ffi::span::Span;
use nix::sys::eventfd::EventFd;

use crate::port::{BURST, Fault, Frame, Put, Run, Source, Target};
use crate::sleep::SleepFlag;
use crate::status::DropReason;

/// Makes a queue of so many buffers of so many bytes, prefix included.
pub fn frame_queue(buffers: usize, buffer: usize) -> io::Result<(QueueTarget, QueueSource)> {
    let free = ArrayQueue::new(buffers);
    while free.push(Buffer { bytes: vec![0; buffer].into(), length: 0 }).is_ok() {}
    let shared = QueueState {
        free,
        filled: ArrayQueue::new(buffers),
        sleep_flag: SleepFlag::default(),
        eventfd: eventfd()?,
        full: AtomicU64::new(0),
    };
    let shared = Arc::new(shared);
    let target = QueueTarget { shared: Arc::clone(&shared), prefix: Box::default(), stored: false };
    Ok((target, QueueSource { shared, burst: ArrayVec::new(), next: 0 }))
}

/// Where frames are put.
pub struct QueueTarget {
    shared: Arc<QueueState>,
    prefix: Box<[u8]>,
    /// Whether something was stored since the last publish.
    stored: bool,
}

/// Where they are taken from.
pub struct QueueSource {
    shared: Arc<QueueState>,
    burst: ArrayVec<Buffer, BURST>,
    /// How many of the burst are taken.
    next: usize,
}

struct QueueState {
    free: ArrayQueue<Buffer>,
    filled: ArrayQueue<Buffer>,
    sleep_flag: SleepFlag,
    eventfd: EventFd,
    full: AtomicU64,
}

struct Buffer {
    bytes: Box<[u8]>,
    length: usize,
}

impl QueueTarget {
    /// One more target of the same queue, which writes `prefix` before each frame.
    #[must_use]
    pub fn with_prefix(&self, prefix: &[u8]) -> Self {
        Self { shared: Arc::clone(&self.shared), prefix: prefix.into(), stored: false }
    }

    /// How often a frame found no free buffer.
    pub fn full(&self) -> u64 {
        self.shared.full.load(Ordering::Relaxed)
    }

    fn store(&mut self, bytes: Span<'_>) -> Put {
        let Some(mut buffer) = self.shared.free.pop() else {
            self.shared.full.fetch_add(1, Ordering::Relaxed);
            return Put::Full;
        };
        let length = self.prefix.len() + bytes.len();
        let put = match buffer.bytes.get_mut(..length) {
            None => Put::Refused(DropReason::TooLong),
            Some(_) if bytes.is_empty() => Put::Refused(DropReason::TooShort),
            Some(room) => {
                let (prefix, frame) = room.split_at_mut(self.prefix.len());
                prefix.copy_from_slice(&self.prefix);
                // As long as the frame.
                let _ = bytes.copy_out(frame);
                Put::Stored
            }
        };
        buffer.length = length;
        let queue = if put == Put::Stored { &self.shared.filled } else { &self.shared.free };
        // Both have room for all buffers.
        let _ = queue.push(buffer);
        self.stored |= put == Put::Stored;
        put
    }
}

impl fmt::Debug for QueueTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueTarget").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Target for QueueTarget {
    fn refresh(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        run.iter().take_while(|frame| self.store(**frame) == Put::Stored).count()
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        Ok(self.store(frame.bytes))
    }

    fn publish(&mut self) -> bool {
        if std::mem::take(&mut self.stored) && self.shared.sleep_flag.must_wake() {
            // Ours alone, so it never blocks; no peer has it.
            let _ = self.shared.eventfd.write(1);
        }
        false
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Source for QueueSource {
    fn refresh(&mut self) -> Result<bool, Fault> {
        while !self.burst.is_full()
            && !self.shared.filled.is_empty()
            && let Some(buffer) = self.shared.filled.pop()
        {
            self.burst.push(buffer);
        }
        Ok(self.next < self.burst.len())
    }

    fn run<'a>(&'a mut self, run: &mut Run<'a>) {
        run.extend(self.burst[self.next..].iter().map(|buffer| Span::from(buffer.frame())));
    }

    fn advance_run(&mut self, count: usize) {
        self.next += count;
    }

    fn peek<'a>(&'a mut self, _gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        let frame = self.burst.get(self.next).map(Buffer::frame);
        Ok(frame.map(|bytes| Frame { bytes: bytes.into(), offload: None, slots: 1 }))
    }

    fn advance(&mut self, _slots: u32) {
        self.next += 1;
    }

    fn release(&mut self) {
        for buffer in self.burst.drain(..self.next) {
            // It has room for all buffers.
            let _ = self.shared.free.push(buffer);
        }
        self.next = 0;
    }

    fn enable_notify(&mut self, wanted: bool) {
        if wanted {
            // Whoever asks looks once more; what it finds then is in the queue.
            let _ = self.shared.sleep_flag.may_sleep(|| false);
        } else {
            self.shared.sleep_flag.awake();
        }
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.eventfd.as_fd())
    }
}

impl Buffer {
    fn frame(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
