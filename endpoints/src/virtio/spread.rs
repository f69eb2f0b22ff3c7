//! A frame that needs more than one descriptor: which buffers it is spread over.

use ferrule_dataplane::port::Frame;
use ferrule_ffi::span::Span;

use crate::virtio::frames::write_header;
use crate::virtio::ids::Ids;
use crate::virtio::memory::Buffers;

/// How many buffers a frame takes, and how they are described.
pub(super) struct Spread {
    segments: u32,
    header_apart: bool,
    /// The descriptors lie in a table, in the buffer of the one that stands for it.
    pub(super) indirect: bool,
}

/// One descriptor's worth of a frame.
pub(super) struct Segment {
    pub(super) address: u64,
    pub(super) len: u32,
    /// The id of this one.
    pub(super) id: u16,
    /// What the next one is called, if there is one: its id, or its number in a table.
    pub(super) next: Option<u16>,
}

impl Spread {
    /// For a frame of `len` bytes; `None` if it is too long for a table.
    pub(super) fn new(len: u32, buffers: &Buffers, header_apart: bool, indirect: bool) -> Option<Self> {
        let segments = len.div_ceil(buffers.room) + u32::from(header_apart);
        let indirect = indirect && segments > 1;
        let fits = !indirect || segments <= buffers.room / DESCRIPTOR;
        fits.then_some(Self { segments, header_apart, indirect })
    }

    /// Buffers, each of which has an id.
    pub(super) fn ids(&self) -> u32 {
        self.segments + u32::from(self.indirect)
    }

    /// Descriptors in the ring.
    pub(super) fn slots(&self) -> u32 {
        if self.indirect { 1 } else { self.segments }
    }

    /// Copies the frame into the buffers of the next free ids, of which there are enough, and tells of each part.
    pub(super) fn fill(&self, frame: &Frame<'_>, buffers: &Buffers, ids: &Ids, mut tell: impl FnMut(Segment)) {
        let mut at = 0;
        for number in 0..self.segments {
            let id = ids.ahead(number + u32::from(self.indirect));
            let left = frame.bytes.len() as u32 - at;
            let first = number == 0;
            let len = if first && self.header_apart { 0 } else { left.min(buffers.room) };
            let part = frame.bytes.tail(at as usize).and_then(|rest| rest.head(len as usize));
            let copied = part.zip(buffers.frame_room(id, len)).is_some_and(|(part, mut room)| part.copy_to(&mut room));
            debug_assert!(copied, "a part is cut to the size of its buffer");
            at += len;
            let (address, len) = if first {
                write_header(buffers, id, frame.offload);
                (buffers.address(id), buffers.header_len + len)
            } else {
                (buffers.frame_address(id), len)
            };
            let following = number + 1;
            let next = (following < self.segments)
                .then(|| if self.indirect { following as u16 } else { ids.ahead(following) });
            tell(Segment { address, len, id, next });
        }
    }
}

/// Stores a table in the buffer of the id that stands for it. Its address.
pub(super) fn store_table(table: &[u8], buffers: &Buffers, id: u16) -> u64 {
    let room = buffers.frame_room(id, table.len() as u32);
    let stored = room.is_some_and(|mut room| Span::from(table).copy_to(&mut room));
    debug_assert!(stored, "a table fits a buffer, or it would not have been planned");
    buffers.frame_address(id)
}

/// Bytes of a descriptor in a table.
const DESCRIPTOR: u32 = 16;
