//! What our end of a ring knows of its guest, whatever the layout of the ring.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ferrule_ffi::region::Health;
use ferrule_ffi::span::{Span, SpanMut};

use crate::offload::{Accepts, VnetHeader};
use crate::port::vhost_user::chain::VirtqDescriptor;
use crate::port::vhost_user::eventfd::{EventfdExchange, EventfdRole};
use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::log::DirtyPages;
use crate::port::vhost_user::memory::{CachedRegion, GuestMemory};
use crate::port::vhost_user::vring::VringSetup;
use crate::port::{FRAME_MAX, Fault};

pub(crate) struct Guest {
    /// The ring's index, by which its frontend names it.
    index: u32,
    pub(crate) memory: GuestMemory,
    /// The row of the last hit in it.
    pub(crate) cached: usize,
    /// Bytes of the virtio-net header.
    pub(crate) header_len: u32,
    pub(crate) features: Features,
    pub(crate) enabled: bool,
    pub(crate) dirty: Option<DirtyPages>,
    kick: Option<Arc<OwnedFd>>,
    call: Option<Arc<OwnedFd>>,
    health: Arc<Health>,
}

impl Guest {
    pub(crate) fn new(setup: &VringSetup) -> Self {
        let dirty = setup.log.as_ref().map(|log| DirtyPages::new(log.dirty.clone(), log.used));
        Self {
            index: setup.index,
            memory: setup.memory.clone(),
            cached: 0,
            header_len: setup.features.header_len(),
            features: setup.features,
            enabled: setup.enabled,
            dirty,
            kick: setup.kick.clone(),
            call: setup.call.clone(),
            health: Arc::clone(&setup.health),
        }
    }

    #[inline]
    pub(crate) fn check_health(&self) -> Result<(), Fault> {
        Ok(self.health.check()?)
    }

    /// Takes another eventfd, if it is for this ring.
    pub(crate) fn exchange(&mut self, exchange: &EventfdExchange) {
        if exchange.vring == self.index {
            let place = match exchange.role {
                EventfdRole::Kick => &mut self.kick,
                EventfdRole::Call => &mut self.call,
            };
            place.clone_from(&exchange.eventfd);
        }
    }

    /// What the guest rings.
    pub(crate) fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(|fd| fd.as_fd())
    }

    /// What we ring.
    pub(crate) fn call(&self) -> Option<BorrowedFd<'_>> {
        self.call.as_ref().map(|fd| fd.as_fd())
    }

    /// Whether the guest's frames can be unfinished, so that their headers must be read.
    pub(crate) fn sends_unfinished(&self) -> bool {
        // Segments need checksums (5.1.3.1), so there is nothing without.
        self.features.has(Features::CSUM)
    }

    /// What the guest takes unfinished.
    pub(crate) fn accepts(&self) -> Accepts {
        Accepts {
            csum: self.features.has(Features::GUEST_CSUM),
            tso4: self.features.has(Features::GUEST_TSO4),
            tso6: self.features.has(Features::GUEST_TSO6),
            ecn: self.features.has(Features::GUEST_ECN),
            udp_l4: false,
        }
    }
}

/// The header of a finished frame in one buffer.
pub(crate) const FINISHED: VnetHeader = VnetHeader {
    flags: 0,
    gso_type: VnetHeader::GSO_NONE,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 1,
};

/// The header in front of a frame that lies in one segment.
#[inline(always)]
pub(crate) fn read_header(segment: Span<'_>, header_len: u32) -> VnetHeader {
    let mut bytes = [0; VnetHeader::LEN];
    let room = &mut bytes[..header_len as usize];
    // The segment is longer than the header, or the caller would not have a frame.
    let _ = segment.head(room.len()).is_some_and(|header| header.copy_out(room));
    VnetHeader::parse(&bytes)
}

/// The frame and the header of a buffer that the guest sent in one segment.
#[inline(always)]
pub(crate) fn sent<'a>(
    descriptor: VirtqDescriptor,
    cached: &mut CachedRegion<'a>,
    header_len: u32,
) -> Option<(Span<'a>, Span<'a>)> {
    if descriptor.flags & (VirtqDescriptor::NEXT | VirtqDescriptor::INDIRECT) != 0 {
        return None;
    }
    let segment = cached.span(descriptor.address, descriptor.len)?;
    let frame = segment.tail(header_len as usize)?;
    frame.prefetch();
    // One that is empty is for whoever counts such.
    (frame.len() <= FRAME_MAX && !frame.is_empty()).then_some((frame, segment))
}

/// Room for a frame of `total` bytes with its header in a buffer of one segment.
#[inline(always)]
pub(crate) fn offered<'a>(
    descriptor: VirtqDescriptor,
    cached: &mut CachedRegion<'a>,
    total: u32,
    header_len: u32,
) -> Option<SpanMut<'a>> {
    if descriptor.flags & (VirtqDescriptor::NEXT | VirtqDescriptor::INDIRECT | VirtqDescriptor::WRITE)
        != VirtqDescriptor::WRITE
    {
        return None;
    }
    // A frame of no bytes is for whoever counts such.
    if total > descriptor.len || total == header_len {
        return None;
    }
    let room = cached.span_mut(descriptor.address, total)?;
    room.prefetch();
    room.prefetch_at(header_len as usize);
    Some(room)
}

/// Stores a finished frame and its header in a buffer that is long enough for both.
#[inline(always)]
pub(crate) fn write_finished(room: &mut SpanMut<'_>, header_len: u32, frame: Span<'_>) {
    let header: [u8; VnetHeader::LEN] = FINISHED_BYTES;
    // Sizes that the compiler knows become plain stores.
    let body = if header_len == LONG_HEADER {
        room.split(header.len()).map(|(mut room, body)| (Span::from(&header[..]).copy_to(&mut room), body))
    } else {
        room.split(SHORT_HEADER).map(|(mut room, body)| (Span::from(&header[..SHORT_HEADER]).copy_to(&mut room), body))
    };
    let stored = body.is_some_and(|(_, mut body)| frame.copy_to(&mut body));
    debug_assert!(stored, "the caller has made the room as long as header and frame");
}

const FINISHED_BYTES: [u8; VnetHeader::LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Buffers that one received frame can be spread over: the longest frame in buffers of a third of a KiB.
pub(crate) const MERGED_MAX: usize = 192;
const LONG_HEADER: u32 = VnetHeader::LEN as u32;
/// Without `num_buffers`.
const SHORT_HEADER: usize = 10;
