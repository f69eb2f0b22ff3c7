//! The data path of a kernel interface: frames are read from and written to its TAP descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use ferrule_ffi::span::Span;
use ferrule_ffi::tap::{HEADER_LEN, PARTS_MAX, Tap};

use crate::offload::{Accepts, Coalescer, TcpSegment, VnetHeader};
use crate::port::{FRAME_MAX, Fault, Frame, Put, Source, Target};
use crate::status::DropReason;

/// Takes the frames that the kernel sends out of the interface, unfinished ones included.
pub struct TapSource {
    tap: Arc<Tap>,
    /// One frame read ahead, behind its virtio-net header.
    buffer: Box<[u8]>,
    /// That header, if it says that something is left to do.
    unfinished: Option<VnetHeader>,
    /// How much of the buffer is filled; 0: nothing was read ahead.
    filled: usize,
}

impl TapSource {
    /// The source of an interface.
    pub fn new(tap: Arc<Tap>) -> Self {
        Self { tap, buffer: vec![0; HEADER_LEN + FRAME_MAX].into_boxed_slice(), unfinished: None, filled: 0 }
    }

    /// The same, with a frame that was read ahead already; `None`: it is longer than any.
    pub(super) fn with_read_ahead(tap: Arc<Tap>, frame: &[u8]) -> Option<Self> {
        let mut source = Self::new(tap);
        source.buffer.get_mut(..frame.len())?.copy_from_slice(frame);
        // Shorter than its header, it would be no frame.
        source.filled = if frame.len() > HEADER_LEN { frame.len() } else { 0 };
        Some(source)
    }

    /// The interface.
    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// The frame that was read ahead, behind its virtio-net header; empty: there is none.
    pub(super) fn read_ahead(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Reads one frame ahead, if there is none. Whether there is one now.
    fn read(&mut self) -> Result<bool, Fault> {
        while self.filled == 0 {
            match self.tap.read(&mut self.buffer) {
                // Shorter than its header: the kernel does not do that, and it would be no frame.
                Ok(len) => self.filled = if len > HEADER_LEN { len } else { 0 },
                Err(error) => return no_frame(&error).map(|()| false),
            }
        }
        Ok(true)
    }
}

impl Source for TapSource {
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.read()
    }

    fn peek<'a>(&'a mut self, _gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        if !self.read()? {
            return Ok(None);
        }
        let (header, bytes) = self.buffer[..self.filled].split_first_chunk().expect("read() leaves more than a header");
        let header = VnetHeader::parse(header);
        self.unfinished = (!header.is_plain()).then_some(header);
        Ok(Some(Frame { bytes: bytes.into(), offload: self.unfinished.as_ref(), slots: 1 }))
    }

    /// The kernel copies it to us.
    fn cost(&self, length: usize, _slots: u32) -> u64 {
        length as u64
    }

    fn owns_frames(&self) -> bool {
        true
    }

    fn own_frame(&mut self) -> &mut [u8] {
        self.buffer.get_mut(HEADER_LEN..self.filled).unwrap_or_default()
    }

    fn advance(&mut self, _slots: u32) {
        self.filled = 0;
    }

    fn release(&mut self) {}

    /// The descriptor is readable whenever there is a frame; nobody needs to be asked.
    fn enable_notify(&mut self, _wanted: bool) {}

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }
}

/// Hands frames to the kernel as if they had come in by the interface.
pub struct TapTarget {
    tap: Arc<Tap>,
}

impl TapTarget {
    /// The target of an interface.
    pub fn new(tap: Arc<Tap>) -> Self {
        Self { tap }
    }
}

impl TapTarget {
    /// Writes the next frame of a run, with those that it can be joined with. How many; none: there is no more, or the
    /// next one is for [`Target::put`], which says why.
    fn write_next(&self, run: &[Span<'_>]) -> Option<usize> {
        let (&frame, rest) = run.split_first()?;
        if frame.len() < ETHERNET_HEADER {
            return None;
        }
        // Most often a pure acknowledgement or another frame that is left alone.
        let Some(first) = TcpSegment::parse(frame) else { return self.write_plain(frame) };
        let mut joined = Coalescer::new(first);
        let mut parts: ArrayVec<Span<'_>, PARTS_MAX> = ArrayVec::new();
        parts.extend([Span::from(&[][..]), first.payload()]);
        for next in rest.iter().take(PARTS_MAX - parts.len()).map_while(|&frame| TcpSegment::parse(frame)) {
            if !joined.push(&next) {
                break;
            }
            parts.push(next.payload());
        }
        let count = joined.count();
        if count == 1 {
            return self.write_plain(frame);
        }
        let (header, headers) = joined.finish();
        parts[0] = headers.into();
        self.tap.write(&header.emit(), &parts).ok().map(|()| count)
    }

    fn write_plain(&self, frame: Span<'_>) -> Option<usize> {
        self.tap.write(&VnetHeader::default().emit(), &[frame]).ok().map(|()| 1)
    }
}

impl Target for TapTarget {
    fn refresh(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Frames of one TCP flow that follow each other are written as one.
    fn put_run(&mut self, run: &[Span<'_>]) -> usize {
        let mut stored = 0;
        while let Some(count) = self.write_next(&run[stored..]) {
            stored += count;
        }
        stored
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        if frame.bytes.len() < ETHERNET_HEADER {
            return Ok(Put::Refused(DropReason::TooShort));
        }
        let header = frame.offload.copied().unwrap_or_default();
        let Err(error) = self.tap.write(&header.emit(), &[frame.bytes]) else { return Ok(Put::Stored) };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Ok(Put::Full),
            Some(errno @ libc::EBADFD) => Err(Fault::InterfaceGone(errno)),
            Some(libc::EMSGSIZE) => Ok(Put::Refused(DropReason::TooLong)),
            // EIO: the interface was set down. EFAULT: the source's memory went away, which its own
            // next look will find.
            _ => Ok(Put::Refused(DropReason::Refused)),
        }
    }

    fn publish(&mut self) -> bool {
        false
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn accepts(&self) -> Accepts {
        // UDP segments only since Linux 6.2, and nothing tells which is running.
        Accepts { udp_l4: false, ..Accepts::ALL }
    }
}

/// What a failed read means: nothing there now, or nothing ever again.
fn no_frame(error: &io::Error) -> Result<(), Fault> {
    match error.raw_os_error() {
        Some(errno @ (libc::EBADFD | libc::ENODEV)) => Err(Fault::InterfaceGone(errno)),
        _ => Ok(()),
    }
}

/// The shortest thing that the kernel takes for a frame.
const ETHERNET_HEADER: usize = 14;
