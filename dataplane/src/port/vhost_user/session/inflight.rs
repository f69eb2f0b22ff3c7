//! Memory that outlives a backend: what it has taken from its rings and not given back ("Inflight I/O tracking").

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::region::{Health, Region};

use crate::port::vhost_user::features::Features;
use crate::port::vhost_user::inflight::{PACKED_LEN, SPLIT_LEN};
use crate::port::vhost_user::message::Inflight;
use crate::port::vhost_user::vring::SIZE_MAX;

/// One block for each ring.
pub struct InflightMemory {
    description: Inflight,
    memory: Region,
    blocks: Vec<Region>,
}

impl InflightMemory {
    /// GET_INFLIGHT_FD: makes the memory, which the frontend keeps. Also what to tell it.
    pub fn create(
        asked: Inflight,
        rings: usize,
        features: Features,
        health: &Arc<Health>,
    ) -> Result<(Self, Inflight, Region), String> {
        let block = block_len(asked, rings, features)?;
        let mmap_size = block * u64::from(asked.queues);
        let made = Region::create("vhost-inflight", mmap_size, health).map_err(|error| error.to_string())?;
        // The frontend keeps the file, so what we populate of it is charged as its own memory is.
        let file = made.file().try_clone_to_owned().map_err(|error| error.to_string())?;
        let region = Region::map_window(file, 0, mmap_size, health).map_err(|error| error.to_string())?;
        let answer = Inflight { mmap_size, mmap_offset: 0, ..asked };
        Ok((Self::cut(region.clone(), answer, block)?, answer, region))
    }

    /// SET_INFLIGHT_FD: the memory that this backend or its predecessor made.
    pub fn adopt(
        told: Inflight,
        file: PeerFile,
        rings: usize,
        features: Features,
        health: &Arc<Health>,
    ) -> Result<Self, String> {
        let block = block_len(told, rings, features)?;
        let wanted = block * u64::from(told.queues);
        if told.mmap_size < wanted {
            return Err(format!("{} bytes for {} queues, which need {wanted}", told.mmap_size, told.queues));
        }
        if !told.mmap_offset.is_multiple_of(ALIGN) {
            return Err(format!("it begins at {:#x}, which is no multiple of {ALIGN}", told.mmap_offset));
        }
        let region = Region::map_window(file, told.mmap_offset, wanted, health).map_err(|error| error.to_string())?;
        Self::cut(region, told, block)
    }

    /// The block of a ring.
    pub fn of_ring(&self, index: usize) -> Option<&Region> {
        self.blocks.get(index)
    }

    /// The blocks of all rings.
    pub fn blocks(&self) -> impl Iterator<Item = &Region> {
        self.blocks.iter()
    }

    /// What the frontend knows of it.
    pub(crate) fn description(&self) -> Inflight {
        self.description
    }

    /// Its file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.memory.file()
    }

    fn cut(memory: Region, description: Inflight, block: u64) -> Result<Self, String> {
        let blocks = (0..u64::from(description.queues)).map(|ring| memory.part(ring * block, block));
        let blocks = blocks.collect::<Option<Vec<_>>>().ok_or("its blocks do not lie in its memory")?;
        Ok(Self { description, memory, blocks })
    }
}

/// Bytes for one ring. Counts are bounded before they are multiplied (CVE-2021-3839).
fn block_len(area: Inflight, rings: usize, features: Features) -> Result<u64, String> {
    if area.queues == 0 || usize::from(area.queues) > rings {
        return Err(format!("{} queues; this end has {rings}", area.queues));
    }
    if area.queue_size == 0 || u32::from(area.queue_size) > SIZE_MAX {
        return Err(format!("queues of {} descriptors; 1 to {SIZE_MAX} are possible", area.queue_size));
    }
    let (header, each) = if features.has(Features::RING_PACKED) { PACKED_LEN } else { SPLIT_LEN };
    Ok((header + each * u64::from(area.queue_size)).next_multiple_of(ALIGN))
}

/// Of the blocks, and of where they begin in their file.
const ALIGN: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Inflight = Inflight { mmap_size: 0, mmap_offset: 0, queues: 4, queue_size: 256 };

    fn create(asked: Inflight, features: Features) -> Result<(InflightMemory, Inflight, Region), String> {
        InflightMemory::create(asked, 4, features, &Arc::default())
    }

    #[test]
    fn each_ring_has_a_block_of_the_size_that_its_layout_needs() {
        let (memory, answer, _) = create(ASKED, Features::default()).unwrap();
        assert_eq!(answer, Inflight { mmap_size: 4 * (16 + 16 * 256 + 48), ..ASKED });
        assert_eq!(memory.of_ring(3).map(Region::len), Some(16 + 16 * 256 + 48));
        assert!(memory.of_ring(4).is_none());
        let (_, answer, _) = create(ASKED, Features::RING_PACKED).unwrap();
        assert_eq!(answer.mmap_size, 4 * (32 + 32 * 256 + 32));
    }

    #[test]
    fn counts_beyond_what_there_is_are_refused() {
        for (queues, queue_size) in [(0, 256), (5, 256), (u16::MAX, 256), (4, 0), (4, 32_769), (4, u16::MAX)] {
            assert!(create(Inflight { queues, queue_size, ..ASKED }, Features::default()).is_err());
        }
    }

    #[test]
    fn memory_that_does_not_hold_its_blocks_is_refused() {
        let (_, made, region) = create(ASKED, Features::default()).unwrap();
        let adopt = |told| {
            let file = region.file().try_clone_to_owned().unwrap();
            InflightMemory::adopt(told, file.into(), 4, Features::default(), &Arc::default())
        };
        assert!(adopt(made).is_ok());
        assert!(adopt(Inflight { mmap_size: made.mmap_size - 1, ..made }).is_err());
        assert!(adopt(Inflight { mmap_offset: 64, ..made }).is_err());
        assert!(adopt(Inflight { mmap_offset: 8, ..made }).is_err());
        assert!(adopt(Inflight { mmap_offset: u64::MAX, ..made }).is_err());
    }
}
