//! What a ring is made from, and our ends of one.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ferrule_ffi::region::{Health, Region};
use thiserror::Error;

use crate::offload::Accepts;
use crate::port::{Fault, Frame, Put, Source, Target};
use crate::vhost::features::Features;
use crate::vhost::log::DirtyLog;
use crate::vhost::memory::GuestMemory;

/// Everything that the frontend said of one ring, once it is all there.
#[derive(Clone)]
pub struct VringSetup {
    /// Its index: even, the guest receives; odd, the guest transmits.
    pub index: u32,
    /// How many descriptors (SET_VRING_NUM).
    pub size: u32,
    /// User address of the descriptors (SET_VRING_ADDR).
    pub desc: u64,
    /// User address of the available ring; packed: of the driver's event structure.
    pub avail: u64,
    /// User address of the used ring; packed: of the device's event structure.
    pub used: u64,
    /// Where to begin, as SET_VRING_BASE and GET_VRING_BASE carry it. Split: an index. Packed: index and wrap counter of
    /// the available descriptor in the low half, of the used one in the high half; without a high half they are equal.
    pub base: u32,
    /// SET_VRING_ENABLE. A disabled ring of the guest's frames is drained, of ours it gets none.
    pub enabled: bool,
    /// What was negotiated.
    pub features: Features,
    /// What the guest rings; none: it asks us to poll.
    pub kick: Option<Arc<OwnedFd>>,
    /// What we ring; none: it does not want to be rung.
    pub call: Option<Arc<OwnedFd>>,
    /// Where the descriptors lead.
    pub memory: GuestMemory,
    /// Which pages we write, while a migration is going on.
    pub log: Option<VringLog>,
    /// Where the index of used buffers is kept over our own end, if INFLIGHT_SHMFD was negotiated: this ring's block.
    pub inflight: Option<Region>,
    /// Whether the guest's memory is still there.
    pub health: Arc<Health>,
}

/// How one ring logs.
#[derive(Clone)]
pub struct VringLog {
    /// The bitmap.
    pub dirty: DirtyLog,
    /// The guest address of the used ring, if SET_VRING_ADDR asked to log it too.
    pub used: Option<u64>,
}

/// Our end of a ring of which the guest transmits.
pub struct GuestTx {}

/// Our end of a ring of which the guest receives.
pub struct GuestRx {}

impl GuestTx {
    /// Takes hold of a ring.
    pub fn new(setup: &VringSetup) -> Result<Self, VringError> {
        let _ = setup;
        Ok(Self {})
    }

    /// Where a successor begins: the answer to GET_VRING_BASE.
    pub fn base(&self) -> u32 {
        0
    }
}

impl GuestRx {
    /// Takes hold of a ring.
    pub fn new(setup: &VringSetup) -> Result<Self, VringError> {
        let _ = setup;
        Ok(Self {})
    }

    /// Where a successor begins: the answer to GET_VRING_BASE.
    pub fn base(&self) -> u32 {
        0
    }
}

impl Source for GuestTx {
    fn look(&mut self) -> Result<bool, Fault> {
        Ok(false)
    }
    fn peek<'a>(&'a mut self, _gather: &'a mut [u8]) -> Result<Option<Frame<'a>>, Fault> {
        Ok(None)
    }
    fn advance(&mut self, _slots: u32) {}
    fn release(&mut self) {}
    fn want_bell(&mut self, _wanted: bool) {}
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Target for GuestRx {
    fn look(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn put(&mut self, _frame: &Frame<'_>) -> Result<Put, Fault> {
        Ok(Put::Full)
    }
    fn publish(&mut self) -> bool {
        false
    }
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn accepts(&self) -> Accepts {
        Accepts::NOTHING
    }
}

/// Why a ring cannot be started.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VringError {
    /// A size that no ring has.
    #[error("vring {index}: a ring of {size} descriptors (1 to {SIZE_MAX}; a power of two unless it is packed)")]
    Size {
        /// The ring.
        index: u32,
        /// Its size.
        size: u32,
    },
    /// A part of the ring that is not in guest memory.
    #[error("vring {index}: its {part} at user address {address:#x} is misaligned or not in one region of its memory")]
    Place {
        /// The ring.
        index: u32,
        /// `descriptors`, `available ring`, ...
        part: &'static str,
        /// Where it was said to be.
        address: u64,
    },
}

/// The longest ring (virtio 1.2, 2.7).
pub const SIZE_MAX: u32 = 32_768;
