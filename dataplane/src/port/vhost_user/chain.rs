//! Chains of descriptors: a frame, or room for one, that lies in several segments of guest memory.
//!
//! The rings read the descriptors, each once, and list the [`Segment`]s here; what is decided is decided on that list. The
//! fast paths of the rings, for a frame in one segment, do without.

use ferrule_ffi::span::Span;

use crate::offload::VnetHeader;
use crate::port::pieces::{PieceReader, Pieces};
use crate::port::vhost_user::memory::{CachedRegion, GuestMemory};
use crate::port::{FRAME_MAX, Fault, SEGMENT_COST};

/// One descriptor, read once. Split rings have `next` where packed ones have their buffer's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtqDescriptor {
    /// The guest address of the buffer, or of the table.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// [`Self::NEXT`], [`Self::WRITE`], [`Self::INDIRECT`]; in a packed ring also whose turn it is.
    pub flags: u16,
    /// The next descriptor of the chain; in a packed ring the buffer's id.
    pub next: u16,
}

impl VirtqDescriptor {
    /// The frame goes on in another descriptor.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// It stands for a table of descriptors.
    pub const INDIRECT: u16 = 4;

    /// A split ring's (virtio 1.2, 2.7.5): address, length, flags, next.
    #[inline(always)]
    pub fn split(words: [u64; 2]) -> Self {
        Self { address: words[0], len: words[1] as u32, flags: (words[1] >> 32) as u16, next: (words[1] >> 48) as u16 }
    }

    /// A packed ring's (virtio 1.2, 2.8.13): address, length, id, flags.
    #[inline(always)]
    pub fn packed(words: [u64; 2]) -> Self {
        Self { address: words[0], len: words[1] as u32, flags: (words[1] >> 48) as u16, next: (words[1] >> 32) as u16 }
    }

    /// As a split ring has it.
    #[inline(always)]
    pub fn emit_split(self) -> [u64; 2] {
        [self.address, u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48]
    }

    /// As a packed ring has it.
    #[inline(always)]
    pub fn emit_packed(self) -> [u64; 2] {
        [self.address, u64::from(self.len) | u64::from(self.next) << 32 | u64::from(self.flags) << 48]
    }

    #[cold]
    pub(crate) fn fault(self, slot: u16) -> Fault {
        missing(slot, self.address, self.len)
    }
}

/// Some bytes of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) len: u32,
}

/// The segments of one chain or, for a received frame over several, of these in their order.
pub(crate) struct DescriptorChain {
    list: Vec<Segment>,
    /// Bytes that were put together.
    gathered: u64,
    /// Whether they are for the device to write.
    writable: bool,
    /// The ring's length, which no chain and no table exceeds.
    size: u32,
}

/// How a table of descriptors is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// By NEXT and `next`, from the first entry on.
    Split,
    /// All entries in their order.
    Packed,
}

impl DescriptorChain {
    /// An empty list with all the room it will ever need.
    pub(crate) fn new(writable: bool, size: u32) -> Self {
        Self { list: Vec::with_capacity(SEGMENTS_MAX), gathered: 0, writable, size }
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.gathered = 0;
    }

    /// What it took to list them and to put together what lies in them. One segment is nothing out of the ordinary.
    pub(crate) fn cost(&self) -> u64 {
        self.gathered + self.list.len().saturating_sub(1) as u64 * SEGMENT_COST
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Bytes in the segments from `first` on: 512 times 32 bits at most.
    pub(crate) fn bytes(&self, first: usize) -> u64 {
        self.list[first..].iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Adds what a descriptor in `slot` stands for. Whether the chain may go on behind it.
    pub(crate) fn add(
        &mut self,
        descriptor: VirtqDescriptor,
        slot: u16,
        links: Links,
        memory: &GuestMemory,
    ) -> Result<bool, Fault> {
        let chained = descriptor.flags & VirtqDescriptor::NEXT != 0;
        if descriptor.flags & VirtqDescriptor::INDIRECT == 0 {
            self.push(descriptor, slot)?;
            return Ok(chained);
        }
        // A table ends its chain (2.7.5.3.1), and a packed ring's is all of it (2.8.7).
        if chained {
            return Err(Fault::Table { slot: slot.into(), length: descriptor.len });
        }
        self.expand(descriptor, slot, links, memory)?;
        Ok(false)
    }

    fn push(&mut self, descriptor: VirtqDescriptor, slot: u16) -> Result<(), Fault> {
        let VirtqDescriptor { address, len, flags, .. } = descriptor;
        // A device must not write what is not meant for it; that it should not read what is (2.7.4.2), DPDK's driver does
        // not reckon with: it leaves the flag in the headers of its tables.
        if self.writable && flags & VirtqDescriptor::WRITE == 0 {
            return Err(Fault::Direction { slot: slot.into() });
        }
        if self.list.len() == SEGMENTS_MAX {
            return Err(Fault::Oversize { slot: slot.into() });
        }
        self.list.push(Segment { address, len });
        Ok(())
    }

    fn expand(&mut self, table: VirtqDescriptor, slot: u16, links: Links, memory: &GuestMemory) -> Result<(), Fault> {
        let fault = Fault::Table { slot: slot.into(), length: table.len };
        let entries = table.len / DESCRIPTOR;
        // No longer than the ring (2.7.5.3.1), but the field's drivers make tables of a fixed length in short rings.
        if !table.len.is_multiple_of(DESCRIPTOR) || entries == 0 || entries > self.size.max(SEGMENTS_MAX as u32) {
            return Err(fault);
        }
        let mut at = 0;
        // As many steps as entries: links in a circle end here.
        for _ in 0..entries {
            let mut words = [0; DESCRIPTOR as usize];
            let entry = table.address.checked_add(u64::from(at) * u64::from(DESCRIPTOR));
            let bytes = entry.and_then(|entry| memory.cached(0).span(entry, DESCRIPTOR));
            if !bytes.ok_or_else(|| table.fault(slot))?.copy_out(&mut words) {
                return Err(fault);
            }
            let (first, second) = words.split_at(8);
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of 16 bytes"));
            let words = [word(first), word(second)];
            let (entry, next) = match links {
                Links::Split => {
                    let entry = VirtqDescriptor::split(words);
                    (entry, (entry.flags & VirtqDescriptor::NEXT != 0).then_some(entry.next.into()))
                }
                Links::Packed => (VirtqDescriptor::packed(words), (at + 1 < entries).then_some(at + 1)),
            };
            // In a packed ring's table every flag but WRITE is reserved, and ignored (2.8.7).
            if links == Links::Split && entry.flags & VirtqDescriptor::INDIRECT != 0 {
                return Err(fault);
            }
            self.push(entry, slot)?;
            match next {
                None => return Ok(()),
                Some(next) if next >= entries => return Err(fault),
                Some(next) => at = next,
            }
        }
        Err(fault)
    }

    /// Reads the header in front of the frame into `header`, if that is wanted, and returns it if something is left to do
    /// on the frame.
    pub(crate) fn header<'a>(
        &self,
        len: u32,
        slot: u16,
        memory: &GuestMemory,
        header: Option<&'a mut VnetHeader>,
    ) -> Result<Option<&'a VnetHeader>, Fault> {
        let Some(header) = header else { return Ok(None) };
        let mut bytes = [0; VnetHeader::LEN];
        let mut at = 0;
        self.each(0, len.into(), slot, memory, |address, len, cached| {
            let part = cached.span(address, len)?;
            let end = at + len as usize;
            part.copy_out(bytes.get_mut(at..end)?).then(|| at = end)
        })?;
        *header = VnetHeader::parse(&bytes);
        Ok((!header.is_plain()).then_some(header))
    }

    /// The bytes behind the first `skip` ones: where they lie, if that is one place, or put together in `gather`. Empty
    /// if there are none.
    pub(crate) fn assemble<'a>(
        &mut self,
        skip: u32,
        slot: u16,
        memory: &'a GuestMemory,
        gather: &'a mut [u8],
    ) -> Result<Span<'a>, Fault> {
        // The header may never be read, but it has to be there as well.
        self.each(0, skip.into(), slot, memory, |_, _, _| Some(()))?;
        let total = self.bytes(0).saturating_sub(skip.into());
        if total > FRAME_MAX as u64 {
            return Err(Fault::Oversize { slot: slot.into() });
        }
        if let Some(segment) = self.last_of_all(skip)
            && let Some(bytes) = memory.cached(0).span(segment.address, segment.len)
        {
            return Ok(bytes);
        }
        let mut at = 0;
        self.each(skip, total, slot, memory, |address, len, cached| {
            let bytes = cached.span(address, len)?;
            let end = at + len as usize;
            bytes.copy_out(gather.get_mut(at..end)?).then(|| at = end)
        })?;
        self.gathered = at as u64;
        Ok(Span::from(&gather[..at]))
    }

    /// Adds where the bytes behind the first `skip` ones lie to `pieces`. `false`: they are too many pieces, or a frame that
    /// is longer than any.
    pub(crate) fn pieces<'a>(
        &self,
        skip: u32,
        slot: u16,
        memory: &'a GuestMemory,
        pieces: &mut Pieces<'a>,
    ) -> Result<bool, Fault> {
        // The header may never be read, but it has to be there as well.
        self.each(0, skip.into(), slot, memory, |_, _, _| Some(()))?;
        let total = self.bytes(0).saturating_sub(skip.into());
        if total > FRAME_MAX as u64 {
            return Ok(false);
        }
        let mut fits = true;
        self.each(skip, total, slot, memory, |address, len, _| {
            fits &= pieces.try_push(memory.cached(0).span(address, len)?).is_ok();
            Some(())
        })?;
        Ok(fits)
    }

    /// What lies behind the first `skip` bytes, if it is one segment.
    fn last_of_all(&self, mut skip: u32) -> Option<Segment> {
        for (index, segment) in self.list.iter().enumerate() {
            if segment.len > skip {
                let rest_is_empty = self.list[index + 1..].iter().all(|segment| segment.len == 0);
                let segment = Segment { address: segment.address.checked_add(skip.into())?, len: segment.len - skip };
                return rest_is_empty.then_some(segment);
            }
            skip -= segment.len;
        }
        None
    }

    /// Stores what is left of a frame behind the first `skip` bytes. `written` hears of every place.
    pub(crate) fn fill(
        &self,
        skip: u32,
        frame: &mut PieceReader<'_>,
        slot: u16,
        memory: &GuestMemory,
        mut written: impl FnMut(u64, u32),
    ) -> Result<(), Fault> {
        self.each(skip, frame.len() as u64, slot, memory, |address, len, cached| {
            // A page that is noted before its bytes are there can be sent without them, and is not noted again.
            frame.fill(cached.span_mut(address, len)?).then(|| written(address, len))
        })
    }

    /// Visits `len` bytes behind the first `skip` ones, or as many as there are, in parts that lie in one region each.
    fn each(
        &self,
        mut skip: u32,
        mut len: u64,
        slot: u16,
        memory: &GuestMemory,
        mut visit: impl FnMut(u64, u32, &mut CachedRegion<'_>) -> Option<()>,
    ) -> Result<(), Fault> {
        let mut cached = memory.cached(0);
        for segment in &self.list {
            let passed = skip.min(segment.len);
            skip -= passed;
            // At most the segment's length, so it fits.
            let mut left = u64::from(segment.len - passed).min(len) as u32;
            len -= u64::from(left);
            let mut at = passed;
            while left > 0 {
                let fault = || missing(slot, segment.address, segment.len);
                let address = segment.address.checked_add(at.into()).ok_or_else(fault)?;
                let part = memory.reach(address, left).ok_or_else(fault)?;
                visit(address, part, &mut cached).ok_or_else(fault)?;
                at += part;
                left -= part;
            }
        }
        Ok(())
    }
}

#[cold]
fn missing(slot: u16, address: u64, length: u32) -> Fault {
    Fault::GuestMemory { slot: slot.into(), high: (address >> 32) as u32, low: address as u32, length }
}

/// DescriptorChain of one frame: the longest frame in segments of 128 bytes. Linux sends at most 19, DPDK one for each mbuf.
pub(crate) const SEGMENTS_MAX: usize = 512;
/// Bytes of a descriptor in a table.
const DESCRIPTOR: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::Arc;

    use ferrule_ffi::region::Region;

    use crate::port::vhost_user::memory::MemoryRegion;

    #[test]
    fn a_place_is_noted_once_its_bytes_are_there() {
        let region = Region::create("guest", 0x1_0000, &Arc::default()).unwrap();
        let row = MemoryRegion { guest: 0, size: 0x1_0000, user: 0, offset: 0 };
        let memory = GuestMemory::new(vec![(row, region.clone())]).unwrap();
        let mut chain = DescriptorChain::new(true, 8);
        // The second one lies on both sides of a border where the log's pending bytes can become too many.
        for address in [0x1000, 0x7fe0] {
            chain.push(VirtqDescriptor { address, len: 64, flags: VirtqDescriptor::WRITE, next: 0 }, 0).unwrap();
        }
        let noted = Cell::new(0);
        let see = |address: u64, len: u32| {
            let mut bytes = vec![0; len as usize];
            assert!(region.span_at(address, len).unwrap().copy_out(&mut bytes));
            assert!(bytes.iter().all(|&byte| byte == 7), "at {address:#x}");
            noted.set(noted.get() + len);
        };
        let pieces = [Span::from(&[7; 128][..])];
        chain.fill(0, &mut PieceReader::new(&pieces), 0, &memory, see).unwrap();
        assert_eq!(noted.get(), 128);
    }
}
