//! How frames get into buffers and out of them, whatever the layout of the ring.

use ferrule_dataplane::offload::{Accepts, VnetHeader};
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::{Fault, Frame, Put};
use ferrule_dataplane::status::DropReason;
use ferrule_ffi::span::Span;

use crate::InPlace;
use crate::virtio::memory::Buffers;

/// A ring that frames are copied into.
pub(super) trait CopyRing: InPlace {
    /// The descriptor id of the next frame, if there is room for one.
    fn next_id(&self) -> Option<u16>;

    /// Its buffers.
    fn buffers(&self) -> &Buffers;

    /// What was negotiated.
    fn features(&self) -> Features;

    /// Whether the header has a descriptor of its own.
    fn header_apart(&self) -> bool;

    /// Sends a frame that needs more than one descriptor.
    fn chain(&mut self, frame: &Frame<'_>) -> Put;
}

/// Copies a frame into the next buffer, or into several if it has no room there.
#[inline(always)]
pub(super) fn put(ring: &mut impl CopyRing, frame: &Frame<'_>) -> Put {
    let Some(id) = ring.next_id() else { return Put::Full };
    let len = frame.bytes.len() as u32;
    if len == 0 {
        return Put::Refused(DropReason::TooShort);
    }
    if ring.header_apart() {
        return ring.chain(frame);
    }
    let Some(mut room) = ring.buffers().frame_room(id, len) else { return ring.chain(frame) };
    let _ = frame.bytes.copy_to(&mut room);
    if ring.features().has(Features::CSUM) {
        // Otherwise nobody reads it.
        write_header(ring.buffers(), id, frame.offload);
    }
    ring.describe(0, len);
    ring.commit(1);
    Put::Stored
}

/// A frame that is read out of several buffers (VIRTIO_NET_F_MRG_RXBUF), or out of one that holds no plain frame.
pub(super) struct MergedFrame<'a> {
    buffers: &'a Buffers,
    mergeable: bool,
    header: &'a mut VnetHeader,
    gather: &'a mut [u8],
    len: usize,
    read: u16,
    wanted: u16,
}

impl<'a> MergedFrame<'a> {
    /// Nothing of it was read yet. Its bytes go to `gather`, its header to `header`.
    pub(super) fn new(buffers: &'a Buffers, mergeable: bool, header: &'a mut VnetHeader, gather: &'a mut [u8]) -> Self {
        Self { buffers, mergeable, header, gather, len: 0, read: 0, wanted: 1 }
    }

    /// How many of its buffers were read.
    pub(super) fn read(&self) -> u16 {
        self.read
    }

    /// Whether it has no more buffers.
    pub(super) fn is_whole(&self) -> bool {
        self.read == self.wanted
    }

    /// Reads its next buffer, which the device wrote `len` bytes to.
    pub(super) fn add(&mut self, id: u16, len: u32) -> Result<(), Fault> {
        let mut skip = 0;
        if self.read == 0 {
            skip = self.buffers.header_len;
            let mut bytes = [0; VnetHeader::LEN];
            let segment = self.buffers.read(id, 0, skip);
            let _ = segment.is_some_and(|segment| segment.copy_out(&mut bytes[..skip as usize]));
            *self.header = VnetHeader::parse(&bytes);
            self.wanted = if self.mergeable { self.header.num_buffers.max(1) } else { 1 };
        }
        let slot = u32::from(id);
        let len = len.checked_sub(skip).ok_or(Fault::NoRoom { slot, length: len })?;
        let bytes = self.buffers.read(id, skip, len);
        let bytes = bytes.ok_or(Fault::Descriptor { slot, region: 0, offset: skip, length: len })?;
        let end = self.len + len as usize;
        if !self.gather.get_mut(self.len..end).is_some_and(|room| bytes.copy_out(room)) {
            return Err(Fault::Oversize { slot });
        }
        self.len = end;
        self.read += 1;
        Ok(())
    }

    /// The frame, once it is whole.
    pub(super) fn finish(self) -> Frame<'a> {
        let Self { header, gather, len, wanted, .. } = self;
        let header: &'a VnetHeader = header;
        let gather: &'a [u8] = gather;
        let offload = (!header.is_plain()).then_some(header);
        Frame { bytes: gather[..len].into(), offload, slots: wanted.into() }
    }
}

/// What a device takes unfinished.
pub(super) fn accepted(features: Features) -> Accepts {
    Accepts {
        csum: features.has(Features::CSUM),
        tso4: features.has(Features::HOST_TSO4),
        tso6: features.has(Features::HOST_TSO6),
        ecn: features.has(Features::HOST_ECN),
        udp_l4: false,
    }
}

/// Which received buffers hold a plain frame: all of it, and with nothing left to do.
pub(super) struct Plain {
    unfinished: bool,
    pub(super) mergeable: bool,
}

impl Plain {
    pub(super) fn new(features: Features) -> Self {
        Self { unfinished: features.has(Features::GUEST_CSUM), mergeable: features.has(Features::MRG_RXBUF) }
    }

    /// The frame in a buffer that the device wrote `len` bytes to, if it is one.
    #[inline(always)]
    pub(super) fn frame<'a>(&self, buffers: &'a Buffers, id: u16, len: u32) -> Option<Span<'a>> {
        let header_len = buffers.header_len;
        // A buffer that is not full is the frame's last (virtio 1.2, 5.1.6.4.1).
        let one = !self.unfinished && len > header_len && (len < header_len + buffers.room || !self.mergeable);
        if one { buffers.read(id, header_len, len - header_len) } else { None }
    }
}

/// Writes what is left to do on a frame in front of it.
pub(super) fn write_header(buffers: &Buffers, id: u16, offload: Option<&VnetHeader>) {
    let header = offload.copied().unwrap_or_default().emit();
    let header = Span::from(&header[..buffers.header_len as usize]);
    let _ = buffers.header_room(id).is_some_and(|mut room| header.copy_to(&mut room));
}
