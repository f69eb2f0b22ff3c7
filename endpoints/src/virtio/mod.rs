//! The driver's side of virtqueues: what a guest does, for a program of ours that is one.
//!
//! Every descriptor id has a buffer of its own for good, so that a sender can leave in it what does not change from frame
//! to frame ([`DriverTx::each_buffer`], [`InPlace`](crate::InPlace)). What is in shared memory is
//! written only where it changes: as long as a device completes in order, a split ring's descriptors and available
//! entries stay as they are, and a frame costs its own bytes and a share of an index.

mod frames;
mod ids;
mod memory;
mod packed;
mod split;
mod spread;

pub use memory::{DriverMemory, RingAddresses};
pub use packed::{PackedDriverRx, PackedDriverTx};
pub use split::{SplitDriverRx, SplitDriverTx};

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ferrule_dataplane::offload::Accepts;
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::{Fault, Frame, Put, Source, Target};
use ferrule_ffi::span::SpanMut;

/// What the rings of a driver look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverSpec {
    /// Descriptors of each ring.
    pub size: u32,
    /// Bytes of frame in each buffer.
    pub buffer: u32,
    /// The header has a descriptor of its own, as before ANY_LAYOUT.
    pub header_apart: bool,
}

impl Default for DriverSpec {
    fn default() -> Self {
        Self { size: 256, buffer: 2048, header_apart: false }
    }
}

/// A ring to transmit into.
pub enum DriverTx {
    /// Of the split layout.
    Split(Box<SplitDriverTx>),
    /// Of the packed layout.
    Packed(Box<PackedDriverTx>),
}

/// A ring to receive from.
pub enum DriverRx {
    /// Of the split layout.
    Split(Box<SplitDriverRx>),
    /// Of the packed layout.
    Packed(Box<PackedDriverRx>),
}

/// The eventfds of a ring.
#[derive(Clone)]
pub struct Eventfds {
    /// What the driver rings.
    pub kick: Arc<OwnedFd>,
    /// What the device rings.
    pub call: Arc<OwnedFd>,
}

impl Eventfds {
    /// A new pair.
    pub fn new() -> io::Result<Self> {
        let eventfd = || Ok::<_, io::Error>(Arc::new(OwnedFd::from(ferrule_ffi::notifier::eventfd()?)));
        Ok(Self { kick: eventfd()?, call: eventfd()? })
    }
}

impl DriverTx {
    /// Makes ring `index` of a memory, which nobody uses yet, ready to transmit.
    pub fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        if features.has(Features::RING_PACKED) {
            Self::Packed(Box::new(PackedDriverTx::new(memory, index, features, eventfds)))
        } else {
            Self::Split(Box::new(SplitDriverTx::new(memory, index, features, eventfds)))
        }
    }

    /// Visits the buffer of every descriptor id, as long as nothing was sent.
    pub fn each_buffer(&mut self, visit: impl FnMut(SpanMut<'_>)) {
        match self {
            Self::Split(ring) => ring.each_buffer(visit),
            Self::Packed(ring) => ring.each_buffer(visit),
        }
    }

    fn any(&mut self) -> &mut dyn Target {
        match self {
            Self::Split(ring) => &mut **ring,
            Self::Packed(ring) => &mut **ring,
        }
    }
}

impl DriverRx {
    /// Makes ring `index` of a memory, which nobody uses yet, ready to receive: all buffers are offered.
    pub fn new(memory: &DriverMemory, index: usize, features: Features, eventfds: Eventfds) -> Self {
        if features.has(Features::RING_PACKED) {
            Self::Packed(Box::new(PackedDriverRx::new(memory, index, features, eventfds)))
        } else {
            Self::Split(Box::new(SplitDriverRx::new(memory, index, features, eventfds)))
        }
    }

    fn any(&mut self) -> &mut dyn Source {
        match self {
            Self::Split(ring) => &mut **ring,
            Self::Packed(ring) => &mut **ring,
        }
    }
}

impl Target for DriverTx {
    fn refresh(&mut self) -> Result<(), Fault> {
        self.any().refresh()
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<Put, Fault> {
        self.any().put(frame)
    }

    fn publish(&mut self) -> bool {
        self.any().publish()
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Split(ring) => ring.notify_fd(),
            Self::Packed(ring) => ring.notify_fd(),
        }
    }

    fn accepts(&self) -> Accepts {
        match self {
            Self::Split(ring) => ring.accepts(),
            Self::Packed(ring) => ring.accepts(),
        }
    }
}

impl Source for DriverRx {
    fn refresh(&mut self) -> Result<bool, Fault> {
        self.any().refresh()
    }

    fn peek<'a>(&'a mut self, gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        self.any().peek(gather)
    }

    fn advance(&mut self, slots: u32) {
        self.any().advance(slots);
    }

    fn release(&mut self) {
        self.any().release();
    }

    fn release_notify_fd(&mut self) -> Option<BorrowedFd<'_>> {
        self.any().release_notify_fd()
    }

    fn enable_notify(&mut self, wanted: bool) {
        self.any().enable_notify(wanted);
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Split(ring) => ring.notify_fd(),
            Self::Packed(ring) => ring.notify_fd(),
        }
    }
}
