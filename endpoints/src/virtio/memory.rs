//! The memory of a driver: its rings and their buffers, in one memfd.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ferrule_dataplane::port::vhost_user::memory::MemoryRegion;
use ferrule_ffi::array::{Array, Plain};
use ferrule_ffi::region::{Health, Index, Region};
use ferrule_ffi::span::{Span, SpanMut};

use crate::virtio::DriverSpec;

/// All of a driver's memory.
pub struct DriverMemory {
    region: Region,
    health: Arc<Health>,
    spec: DriverSpec,
}

/// The user addresses of a ring, for SET_VRING_ADDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptors.
    pub desc: u64,
    /// The available ring, or the driver's event structure.
    pub avail: u64,
    /// The used ring, or the device's event structure.
    pub used: u64,
    /// The used ring's guest address, for the dirty log.
    pub used_guest: u64,
}

impl DriverMemory {
    /// Memory for so many rings.
    pub fn create(spec: DriverSpec, rings: usize) -> io::Result<Self> {
        let health = Arc::default();
        let region = Region::create("virtio", rings as u64 * ring_len(spec), &health)?;
        Ok(Self { region, health, spec })
    }

    /// Its row of the memory table.
    pub fn row(&self) -> MemoryRegion {
        MemoryRegion { guest: GUEST, size: self.region.len() as u64, user: USER, offset: 0 }
    }

    /// The file that the row lies in.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.region.file()
    }

    /// Its bytes.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Whether they are still there.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// What its rings look like.
    pub fn spec(&self) -> DriverSpec {
        self.spec
    }

    /// Where ring `index` is.
    pub fn addresses(&self, index: usize) -> RingAddresses {
        let ring = index as u64 * ring_len(self.spec);
        let [desc, avail, used, _] = parts(self.spec.size).map(|part| USER + ring + part);
        RingAddresses { desc, avail, used, used_guest: used - USER + GUEST }
    }

    pub(super) fn array<T: Plain>(&self, user: u64, len: u32) -> Array<T> {
        Array::new(&self.region, user - USER, len).expect("the part was given this place")
    }

    pub(super) fn word(&self, user: u64) -> Index {
        self.region.index(user - USER).expect("the part was given this place")
    }

    pub(super) fn buffers(&self, index: usize, header_len: u32) -> Buffers {
        let [.., buffers] = parts(self.spec.size);
        let first = index as u64 * ring_len(self.spec) + buffers;
        Buffers { region: self.region.clone(), first, stride: stride(self.spec), room: self.spec.buffer, header_len }
    }
}

/// The buffers of a ring, by descriptor id.
pub(super) struct Buffers {
    region: Region,
    first: u64,
    stride: u64,
    /// Bytes of frame in each.
    pub(super) room: u32,
    pub(super) header_len: u32,
}

impl Buffers {
    /// The guest address of the header in front of the frame.
    #[inline(always)]
    pub(super) fn address(&self, id: u16) -> u64 {
        self.frame_address(id) - u64::from(self.header_len)
    }

    /// The guest address of the frame.
    #[inline(always)]
    pub(super) fn frame_address(&self, id: u16) -> u64 {
        GUEST + self.frame_offset(id)
    }

    /// `len` bytes behind the first `skip` ones of the header and the frame.
    #[inline(always)]
    pub(super) fn read(&self, id: u16, skip: u32, len: u32) -> Option<Span<'_>> {
        if skip.checked_add(len)? > self.header_len + self.room {
            return None;
        }
        self.region.span_at(self.frame_offset(id) - u64::from(self.header_len) + u64::from(skip), len)
    }

    /// Room for `len` bytes of a frame.
    #[inline(always)]
    pub(super) fn frame_room(&self, id: u16, len: u32) -> Option<SpanMut<'_>> {
        if len > self.room {
            return None;
        }
        self.region.span_mut_at(self.frame_offset(id), len)
    }

    /// Room for the header.
    pub(super) fn header_room(&self, id: u16) -> Option<SpanMut<'_>> {
        self.region.span_mut_at(self.frame_offset(id) - u64::from(self.header_len), self.header_len)
    }

    #[inline(always)]
    fn frame_offset(&self, id: u16) -> u64 {
        self.first + u64::from(id) * self.stride + HEADROOM
    }
}

/// Where the descriptors, the available ring, the used ring and the buffers of a ring begin: each on a page of its own.
fn parts(size: u32) -> [u64; 4] {
    let size = u64::from(size);
    let avail = (16 * size).next_multiple_of(PAGE);
    let used = avail + (6 + 2 * size).next_multiple_of(PAGE);
    let buffers = used + (6 + 8 * size).next_multiple_of(PAGE);
    [0, avail, used, buffers]
}

fn ring_len(spec: DriverSpec) -> u64 {
    let [.., buffers] = parts(spec.size);
    buffers + (u64::from(spec.size) * stride(spec)).next_multiple_of(PAGE)
}

/// Not a power of two: buffers would compete for the same lines of the cache.
fn stride(spec: DriverSpec) -> u64 {
    HEADROOM + u64::from(spec.buffer).next_multiple_of(HEADROOM)
}

/// The frame begins with a cache line; the header ends before it.
const HEADROOM: u64 = 64;
const PAGE: u64 = 4096;
/// Where the driver's memory is for the guest. Above 4 GiB, and not its user address: who mixes them up is found out.
const GUEST: u64 = 1 << 32;
const USER: u64 = 0x7000_0000_0000;
