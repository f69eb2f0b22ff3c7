//! What a ring is made from.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_ffi::array::{Array, Plain};
use ferrule_ffi::region::{Health, Index, Region};
use thiserror::Error;

use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::log::DirtyLog;
use crate::port::vhost_user::memory::GuestMemory;

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
    /// SET_VRING_ENABLE. A disabled ring that the guest transmits by is drained, and one
    /// that it receives by is given nothing.
    pub enabled: bool,
    /// What was negotiated.
    pub features: Features,
    /// What the guest notifies us by; none: it asks us to poll ("Ring initialization" of the protocol).
    pub kick: Option<Arc<OwnedFd>>,
    /// What we notify the guest by; none: it does not want to be notified.
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

/// How the descriptors of a ring are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VringLayout {
    Split,
    Packed,
}

impl VringSetup {
    /// The layout that was negotiated, if it allows a ring of this size.
    pub(crate) fn layout(&self) -> Result<VringLayout, VringError> {
        let packed = self.features.has(Features::RING_PACKED);
        if !(1..=SIZE_MAX).contains(&self.size) || !(packed || self.size.is_power_of_two()) {
            return Err(VringError::Size { index: self.index, size: self.size });
        }
        Ok(if packed { VringLayout::Packed } else { VringLayout::Split })
    }

    /// The descriptor area, the driver area and the device area (virtio 1.2, 2.6), all in the guest's memory.
    pub(crate) fn areas(&self) -> Result<[VringArea<'_>; 3], VringError> {
        let size = u64::from(self.size);
        let [driver, device] = match self.layout()? {
            VringLayout::Split => [("available ring", 6 + 2 * size, 2), ("used ring", 6 + 8 * size, 4)],
            VringLayout::Packed => [("driver event structure", 4, 4), ("device event structure", 4, 4)],
        };
        Ok([
            VringArea::new(self, ("descriptors", 16 * size, 16), self.desc)?,
            VringArea::new(self, driver, self.avail)?,
            VringArea::new(self, device, self.used)?,
        ])
    }
}

/// A part of a ring, found in the guest's memory.
pub(crate) struct VringArea<'a> {
    region: &'a Region,
    offset: u64,
    /// Its guest address.
    pub(crate) guest: u64,
    outside: VringError,
}

impl<'a> VringArea<'a> {
    /// What is called so, is so long and is so aligned, at a user address and all in one region.
    fn new(
        setup: &'a VringSetup,
        (part, len, align): (&'static str, u64, u64),
        address: u64,
    ) -> Result<Self, VringError> {
        let outside = VringError::Place { index: setup.index, part, address };
        let found = setup.memory.user(address, len).filter(|_| address.is_multiple_of(align));
        let (region, offset, guest) = found.ok_or_else(|| outside.clone())?;
        Ok(Self { region, offset, guest, outside })
    }

    pub(crate) fn index(&self, at: u64) -> Result<Index, VringError> {
        self.region.index(self.offset + at).ok_or_else(|| self.outside.clone())
    }

    pub(crate) fn array<T: Plain>(&self, at: u64, len: u32) -> Result<Array<T>, VringError> {
        Array::new(self.region, self.offset + at, len).ok_or_else(|| self.outside.clone())
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
    /// A base that is no position in the ring.
    #[error("vring {index}: base {base:#x} is outside of its {size} descriptors")]
    Base {
        /// The ring.
        index: u32,
        /// Where it should begin.
        base: u32,
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
